//! Writes the status of VirtualIPs: the owner writes that it is. Only the newest state of each VIP waits to be written.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use futures::FutureExt;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use sheave_api::{Chain, NoOwner, VirtualIP, VirtualIPStatus};
use tracing::{debug, warn};

use crate::mailbox;

/// The status to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// This node won the VIP.
    Owned { term: u64, since: Timestamp },
    /// This node let go and knows of no other owner.
    Unowned(NoOwner),
    /// It must not be served.
    Refused(NoOwner),
}

pub type Updates = BTreeMap<Ipv4Addr, Ownership>;

const RETRY: Duration = Duration::from_millis(500);
/// For a connection, and for an answer on it. A connection that hangs (the API server's node lost power) is given up and replaced.
const PATIENCE: Duration = Duration::from_secs(5);

/// Its connections are its own: no watch rests on them.
pub fn client(mut config: kube::Config) -> kube::Result<Client> {
    config.connect_timeout = Some(PATIENCE);
    config.read_timeout = Some(PATIENCE);
    Client::try_from(config)
}

/// Runs until the sender is gone.
pub async fn run(client: Client, node: String, mut updates: mailbox::Receiver<Ipv4Addr, Ownership>) {
    let api: Api<VirtualIP> = Api::all(client);
    let mut waiting = Updates::new();
    let mut failing = false;
    loop {
        // What failed waits behind what is newer.
        let newer = match waiting.is_empty() {
            true => updates.recv().await,
            false => updates.recv().now_or_never().unwrap_or(Some(Updates::new())),
        };
        let Some(newer) = newer else { return };
        waiting.extend(newer);
        let mut failed = Updates::new();
        for (vip, ownership) in std::mem::take(&mut waiting) {
            match write(&api, &node, vip, &ownership).await {
                Ok(()) => debug!(%vip, ?ownership, "status written"),
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    debug!(%vip, "VirtualIP deleted; status dropped")
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(%vip, error = %Chain(&error), "VirtualIP status not written; retrying");
                    }
                    failed.insert(vip, ownership);
                }
            }
        }
        if failed.is_empty() {
            failing = false;
        } else {
            waiting = failed;
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Whether the status names an owner that won later. Terms start again when all speakers have gone; then the time decides.
fn is_newer(known: &VirtualIPStatus, term: i64, since: Timestamp) -> bool {
    let later = || known.since.as_ref().is_some_and(|at| at.0 > since);
    known.owner.is_some() && known.term.is_some_and(|newer| newer > term) && later()
}

/// Compares before it writes, under the object's resourceVersion: a late message of a previous owner never hides a newer one.
async fn write(api: &Api<VirtualIP>, node: &str, vip: Ipv4Addr, ownership: &Ownership) -> kube::Result<()> {
    let name = vip.to_string();
    let current = api.get(&name).await?;
    let known = current.status.clone().unwrap_or_default();
    let status = match ownership {
        Ownership::Owned { term, since } => {
            let term = i64::try_from(*term).unwrap_or(i64::MAX);
            if is_newer(&known, term, *since) {
                return Ok(());
            }
            json!({ "owner": node, "term": term, "since": since.to_string(), "reason": null })
        }
        Ownership::Unowned(reason) => {
            if known.owner.as_deref() != Some(node) {
                return Ok(());
            }
            json!({ "owner": null, "since": null, "reason": reason.as_str() })
        }
        // All speakers write the same: the first one does.
        Ownership::Refused(reason) => {
            let others = known.owner.as_deref().is_some_and(|owner| owner != node);
            if others || known.owner.is_none() && known.reason.as_deref() == Some(reason.as_str()) {
                return Ok(());
            }
            json!({ "owner": null, "since": null, "reason": reason.as_str() })
        }
    };
    let patch = json!({ "metadata": { "resourceVersion": current.metadata.resource_version }, "status": status });
    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    use super::*;

    /// The far end accepts connections and sends nothing: each request times out, and the next one uses a new connection.
    #[tokio::test]
    async fn a_connection_that_hangs_is_replaced() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let api: Api<VirtualIP> = Api::all(client(kube::Config::new(address.parse().unwrap())).unwrap());
        let mut hanging = Vec::new();
        for _ in 0..2 {
            let both = async { tokio::join!(api.get("192.0.2.1"), listener.accept()) };
            let (answer, connection) = tokio::time::timeout(3 * PATIENCE, both).await.expect("given up");
            assert!(answer.is_err());
            hanging.push(connection.unwrap());
        }
    }

    #[test]
    fn a_late_message_is_told_from_terms_that_start_again() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let since = Some(MicroTime(at("2026-01-02T03:04:05.5Z")));
        let known = VirtualIPStatus { owner: Some("n1".into()), term: Some(7), since, ..Default::default() };
        // Won before, received later.
        assert!(is_newer(&known, 6, at("2026-01-02T03:04:05.4Z")));
        // Won later, by speakers that know of no term before.
        assert!(!is_newer(&known, 1, at("2026-01-02T03:04:06Z")));
        assert!(!is_newer(&known, 8, at("2026-01-02T03:04:05Z")));
        assert!(!is_newer(&VirtualIPStatus { owner: None, ..known }, 1, at("2026-01-02T03:04:05Z")));
    }
}
