//! What can go wrong with a write, by whose fault it is. One name each: log field and metric label. A user's fault is
//! no error here but a [`Refusal`](sheave_api::Refusal).

use sheave_api::Chain;

/// Why a write to the API server did not happen, or may not have.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("another writer was faster: {0}")]
    Conflict(String),
    #[error("the object is gone")]
    Gone,
    #[error("the API server does not allow it: {0}")]
    Forbidden(String),
    #[error("the API server finds it invalid: {0}")]
    Invalid(String),
    #[error("no answer in time")]
    Timeout,
    #[error("the API server is overloaded: {0}")]
    TooManyRequests(String),
    #[error("not the leader any more")]
    NotLeader,
    #[error("the API server cannot be reached or failed: {0}")]
    Unavailable(String),
}

impl WriteError {
    /// All names, for metrics that must exist with value zero.
    pub const KINDS: [&'static str; 8] =
        ["Conflict", "Gone", "Forbidden", "Invalid", "Timeout", "TooManyRequests", "NotLeader", "Unavailable"];

    /// The one name.
    pub fn kind(&self) -> &'static str {
        match self {
            WriteError::Conflict(_) => "Conflict",
            WriteError::Gone => "Gone",
            WriteError::Forbidden(_) => "Forbidden",
            WriteError::Invalid(_) => "Invalid",
            WriteError::Timeout => "Timeout",
            WriteError::TooManyRequests(_) => "TooManyRequests",
            WriteError::NotLeader => "NotLeader",
            WriteError::Unavailable(_) => "Unavailable",
        }
    }
}

impl From<kube::Error> for WriteError {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) => match status.code {
                404 | 410 => WriteError::Gone,
                409 => WriteError::Conflict(status.message.clone()),
                401 | 403 => WriteError::Forbidden(status.message.clone()),
                400 | 422 => WriteError::Invalid(status.message.clone()),
                429 => WriteError::TooManyRequests(status.message.clone()),
                _ => WriteError::Unavailable(status.message.clone()),
            },
            _ => WriteError::Unavailable(Chain(&error).to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use kube::{Api, Client, Config};

    use super::*;

    /// No API server at the address of the kubeconfig: an operator must read why.
    #[tokio::test]
    async fn the_whole_chain_is_printed() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let client = Client::try_from(Config::new(format!("http://{closed}").parse().unwrap())).unwrap();
        let error = Api::<Service>::all(client).get("x").await.expect_err("no server listens");
        assert!(!error.to_string().contains("refused"), "the client alone names the cause: {error}");
        let printed = WriteError::from(error).to_string();
        assert!(printed.contains("Connection refused"), "{printed}");
    }
}
