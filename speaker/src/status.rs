//! Writes the status of VirtualIPs: the owner writes that it is. Only the newest state of each VIP waits to be written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use futures::FutureExt;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use sheave_api::{Chain, NoOwner, VirtualIP, VirtualIPStatus};
use tracing::{debug, warn};

use crate::mailbox;

/// The status to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// This node won the VIP.
    Owned { term: u64, since: Timestamp },
    /// Another node owns it. An owner that kept its VIP in a conflict writes nothing: the loser corrects what it has written.
    Elsewhere { owner: String, term: u64, since: Timestamp },
    /// This node released the VIP and knows of no other owner.
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
    // VIPs whose status this node may have written its own name into.
    let mut named = BTreeSet::new();
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
            match ownership {
                Ownership::Owned { .. } => {
                    named.insert(vip);
                }
                // Every node receives the claims of every owner.
                Ownership::Elsewhere { .. } if !named.contains(&vip) => continue,
                _ => {}
            }
            match write(&api, &node, vip, &ownership).await {
                Ok(()) => {
                    debug!(%vip, ?ownership, "status written");
                    if !matches!(ownership, Ownership::Owned { .. }) {
                        named.remove(&vip);
                    }
                }
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    debug!(%vip, "VirtualIP deleted; status dropped");
                    named.remove(&vip);
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
    let Some(status) = status(&known, node, ownership) else { return Ok(()) };
    let patch = json!({ "metadata": { "resourceVersion": current.metadata.resource_version }, "status": status });
    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ())
}

/// What is to be written over the known status; `None`: it stays.
fn status(known: &VirtualIPStatus, node: &str, ownership: &Ownership) -> Option<Value> {
    let names_us = known.owner.as_deref() == Some(node);
    let owned = |owner: &str, term: u64, since: &Timestamp| {
        let term = i64::try_from(term).unwrap_or(i64::MAX);
        (owner != node || !is_newer(known, term, *since))
            .then(|| json!({ "owner": owner, "term": term, "since": since.to_string(), "reason": null }))
    };
    let unowned = |reason: &NoOwner| json!({ "owner": null, "since": null, "reason": reason.as_str() });
    match ownership {
        Ownership::Owned { term, since } => owned(node, *term, since),
        Ownership::Elsewhere { owner, term, since } => names_us.then(|| owned(owner, *term, since)).flatten(),
        Ownership::Unowned(reason) => names_us.then(|| unowned(reason)),
        // All speakers have the same reason: the first writes it.
        Ownership::Refused(reason) => {
            let others = known.owner.is_some() && !names_us;
            let written = known.owner.is_none() && known.reason.as_deref() == Some(reason.as_str());
            (!others && !written).then(|| unowned(reason))
        }
    }
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

    /// Multicast is filtered: this node receives no peer, claims a VIP, receives the owner again and loses. The owner never released the
    /// VIP, so it has nothing to write.
    #[test]
    fn the_loser_of_a_conflict_removes_its_own_name() {
        let since: Timestamp = "2026-01-02T03:04:06Z".parse().expect("a time");
        let elsewhere = Ownership::Elsewhere { owner: "owner".into(), term: 3, since };
        let named = |owner: &str| VirtualIPStatus { owner: Some(owner.into()), term: Some(4), ..Default::default() };
        let written = status(&named("us"), "us", &elsewhere).expect("our own name");
        assert_eq!((written["owner"].as_str(), written["term"].as_i64()), (Some("owner"), Some(3)));
        assert_eq!(status(&named("owner"), "us", &elsewhere), None);
        assert_eq!(status(&named("third"), "us", &elsewhere), None);
        assert_eq!(status(&VirtualIPStatus::default(), "us", &elsewhere), None, "no owner is named");
    }
}
