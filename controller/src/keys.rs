//! IO: the Secret with the speakers' keys. Created once by the leader if there is none; afterwards it belongs to the
//! cluster's owner, who may rotate its entries.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use sheave_api::{CONTROLLER_NAME, keys};
use tracing::info;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("no random bytes: {0}")]
    Random(#[from] std::io::Error),
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
    #[error("the API server did not answer in time")]
    Timeout(#[from] tokio::time::error::Elapsed),
}

/// Makes sure that the Secret exists. Reads and creates it by name; never lists Secrets.
pub async fn ensure(client: &Client, namespace: &str) -> Result<(), KeysError> {
    let api = Api::<Secret>::namespaced(client.clone(), namespace);
    if tokio::time::timeout(REQUEST, api.get_opt(keys::SECRET)).await??.is_some() {
        return Ok(());
    }
    let entries = [(keys::CURRENT, 32), (keys::FLOW_HASH, 16), (keys::CLUSTER_ID, 8)];
    let mut data = BTreeMap::new();
    for (name, length) in entries {
        data.insert(name.to_string(), ByteString(random(length)?));
    }
    let labels = BTreeMap::from([("app.kubernetes.io/part-of".to_string(), "sheave".to_string())]);
    let metadata = ObjectMeta {
        name: Some(keys::SECRET.to_string()),
        namespace: Some(namespace.to_string()),
        labels: Some(labels),
        ..ObjectMeta::default()
    };
    let secret = Secret { metadata, data: Some(data), type_: Some("sheave.dev/keys".to_string()), ..Secret::default() };
    let params = PostParams { field_manager: Some(CONTROLLER_NAME.to_string()), ..PostParams::default() };
    match tokio::time::timeout(REQUEST, api.create(&params, &secret)).await? {
        Ok(_) => {
            info!(namespace, name = keys::SECRET, "keys for the speakers created");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Eight characters that tell two processes of one name apart.
pub fn suffix() -> Result<String, std::io::Error> {
    Ok(random(4)?.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn random(length: usize) -> Result<Vec<u8>, std::io::Error> {
    let mut bytes = vec![0; length];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

const REQUEST: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_bytes_differ() {
        let (a, b) = (random(32).unwrap(), random(32).unwrap());
        assert_eq!(a.len(), 32);
        assert_ne!(a, b);
    }
}
