//! IO: whether the API server is new enough, asked once. An older one is named in log and metric; what works on it, works.

use std::sync::Arc;
use std::time::Duration;

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
