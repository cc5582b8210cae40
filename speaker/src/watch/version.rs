//! Whether the API server is new enough, asked once. An older one is named in the log; what works on it, works.

use k8s_openapi::apimachinery::pkg::version::Info;
use kube::Client;
use sheave_api::{Chain, kubernetes};
use tracing::{info, warn};

pub async fn log(client: Client) {
    match client.apiserver_version().await {
        Ok(found) => tell(&found),
        Err(error) => warn!(error = %Chain(&error), "version of the API server not read"),
    }
}

fn tell(found: &Info) {
    match kubernetes::check(&found.major, &found.minor) {
        Ok(()) => info!(version = %found.git_version, "API server"),
        Err(error) => warn!(version = %found.git_version, "{error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What the log has of this answer of `/version`.
    fn told(major: &str, minor: &str, version: &str) -> String {
        let log = Log::default();
        let found = Info { major: major.into(), minor: minor.into(), git_version: version.into(), ..Info::default() };
        let writer = {
            let log = log.clone();
            move || log.clone()
        };
        let subscriber = tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(writer).finish();
        tracing::subscriber::with_default(subscriber, || tell(&found));
        let text = log.0.lock().unwrap().clone();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn an_older_api_server_is_named_in_the_log() {
        let log = told("1", "30", "v1.30.9");
        let said = "KubernetesTooOld: the API server is Kubernetes 1.30; 1.31 or newer is needed";
        assert!(log.contains("WARN") && log.contains(said) && log.contains("version=v1.30.9"), "{log}");
        assert!(told("", "", "unknown").contains("KubernetesUnknown"));
        let log = told("1", "31+", "v1.31.0-provider");
        assert!(log.contains("INFO") && !log.contains("Kubernetes"), "{log}");
    }
}
