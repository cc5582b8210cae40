//! IO: whether the API server is new enough, asked once. An older one is named in log and metric; what works on it, works.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::version::Info;
use kube::Client;
use sheave_api::{Chain, kubernetes};
use tracing::{debug, info, warn};

use crate::metrics::Metrics;

/// Asks until there is an answer.
pub async fn check(client: Client, metrics: Arc<Metrics>) {
    let found = loop {
        match client.apiserver_version().await {
            Ok(found) => break found,
            Err(error) => debug!(error = %Chain(&error), "version of the API server not read; retrying"),
        }
        tokio::time::sleep(RETRY).await;
    };
    tell(&found, &metrics);
}

fn tell(found: &Info, metrics: &Metrics) {
    match kubernetes::check(&found.major, &found.minor) {
        Ok(()) => info!(version = %found.git_version, "API server"),
        Err(error) => {
            metrics.kubernetes_too_old.set(1);
            warn!(version = %found.git_version, "{error}");
        }
    }
}

/// Between questions to an API server that does not answer.
const RETRY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Mutex, PoisonError};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Log {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    /// What the log has of this answer of `/version`, and the gauge.
    fn told(major: &str, minor: &str, version: &str) -> (String, i64) {
        let (log, metrics) = (Log::default(), Metrics::register().unwrap());
        let found = Info { major: major.into(), minor: minor.into(), git_version: version.into(), ..Info::default() };
        let subscriber = tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(log.clone()).finish();
        tracing::subscriber::with_default(subscriber, || tell(&found, &metrics));
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        (text, metrics.kubernetes_too_old.get())
    }

    #[test]
    fn an_older_api_server_is_named_in_log_and_gauge() {
        let (log, gauge) = told("1", "30", "v1.30.9");
        let said = "KubernetesTooOld: the API server is Kubernetes 1.30; 1.31 or newer is needed";
        assert!(log.contains("WARN") && log.contains(said) && log.contains("version=v1.30.9"), "{log}");
        assert_eq!(gauge, 1);
        let (log, gauge) = told("", "", "unknown");
        assert!(log.contains("KubernetesUnknown") && gauge == 1, "{log}");
        let (log, gauge) = told("1", "31+", "v1.31.0-provider");
        assert!(log.contains("INFO") && !log.contains("Kubernetes") && gauge == 0, "{log}");
    }
}
