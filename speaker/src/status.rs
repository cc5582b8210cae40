//! Writes the status of VirtualIPs: the owner writes that it is, and what of the VIP is not served. Only the newest state of each VIP
//! waits to be written.

pub mod lost;
mod overload;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use sheave_api::{Chain, NoOwner, Partly, VirtualIP, VirtualIPStatus};
use speaker_core::view::{Part, View};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::health::HealthFlags;
use crate::io::clock;
use crate::mailbox;
use lost::{Elected, Lost};
pub use overload::{Overload, client};

/// The status to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// This node won the VIP.
    Owned { term: u64, since: Timestamp },
    /// Another node owns it, and writes so itself: a speaker may name its own node alone (`manifests/base/speaker-policy.yaml`). An owner
    /// that kept its VIP in a conflict leaves the loser's later term alone. The loser takes its name off; then the owner writes.
    Elsewhere { owner: String, term: u64, conflict: bool },
    /// This node won it and is silent, as another cluster has it. It may have been silent before its name was written.
    Yielded { term: u64, since: Timestamp },
    /// This node released the VIP and knows of no other owner.
    Unowned(NoOwner),
    /// It must not be served.
    Refused(NoOwner),
    /// No node is to own it. An owner that still does writes so itself when it lets go.
    Vacant(NoOwner),
    /// The owner that the status names is gone.
    Lost { owner: String },
}

pub type Updates = BTreeMap<Ipv4Addr, Ownership>;

const RETRY: Duration = Duration::from_millis(500);

/// The newest view, if there is one.
pub type Views = watch::Receiver<Option<Arc<View>>>;

/// What the writer goes by beside the updates.
pub struct Sources {
    /// The owner that each status names.
    pub seen: mailbox::Receiver<Ipv4Addr, Option<String>>,
    pub views: Views,
    pub elected: Arc<Elected>,
    pub health: Arc<HealthFlags>,
}

/// Runs until the sender is gone.
pub async fn run(
    (client, overload): (Client, Overload),
    node: String,
    mut updates: mailbox::Receiver<Ipv4Addr, Ownership>,
    sources: Sources,
) {
    let Sources { mut seen, mut views, elected, health } = sources;
    let api: Api<VirtualIP> = Api::all(client);
    let (mut lost, mut check) = (Lost::new(&node), tokio::time::interval(lost::CHECK));
    check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut waiting = Updates::new();
    let mut written = Written::default();
    let mut failing = false;
    loop {
        // What failed waits behind what is newer.
        let newer = match waiting.is_empty() {
            true => tokio::select! {
                newer = updates.recv() => newer,
                Ok(()) = views.changed() => Some(written.outdated(&views, &health)),
                Some(seen) = seen.recv() => {
                    lost.seen(&seen);
                    Some(written.not_named(&node, &seen))
                }
                _ = check.tick() => {
                    let joined = health.joined.load(Ordering::Relaxed);
                    let gone = lost.due(&elected, joined, clock::now()).into_iter();
                    let gone: Updates = gone.map(|(vip, owner)| (vip, Ownership::Lost { owner })).collect();
                    let mut updates = written.outdated(&views, &health);
                    updates.extend(gone);
                    Some(updates)
                }
            },
            false => updates.recv().now_or_never().unwrap_or(Some(Updates::new())),
        };
        let Some(newer) = newer else { return };
        waiting.extend(newer);
        let mut failed = Updates::new();
        let mut all = std::mem::take(&mut waiting).into_iter();
        for (vip, ownership) in all.by_ref() {
            // Every node receives the claims of every owner.
            if matches!(ownership, Ownership::Elsewhere { .. }) && !written.named.contains(&vip) {
                continue;
            }
            let parts = partly(&views, &health, vip);
            written.begin(vip, &ownership);
            match write(&api, &node, vip, &ownership, &parts).await {
                Ok(uid) => {
                    debug!(%vip, ?ownership, ?parts, uid, "status written");
                    written.done(vip, ownership, parts, uid);
                }
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    debug!(%vip, "VirtualIP deleted; status dropped unless the address is granted again");
                    written.done(vip, ownership, parts, String::new());
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(%vip, error = %Chain(&error), "VirtualIP status not written; retrying");
                    }
                    failed.insert(vip, ownership);
                    // The others would be refused as well.
                    if overload.until().is_some() {
                        break;
                    }
                }
            }
        }
        failed.extend(all);
        if failed.is_empty() {
            failing = false;
        } else {
            waiting = failed;
            tokio::time::sleep_until(overload.until().unwrap_or_else(|| Instant::now() + RETRY)).await;
        }
    }
}

/// What of a VIP is not served, in the words of the API.
fn partly(views: &Views, health: &HealthFlags, vip: Ipv4Addr) -> BTreeSet<Partly> {
    let in_words = |part| match part {
        Part::TooManyPorts => Partly::TooManyPorts,
        Part::Names => Partly::FQDNNotServed,
        Part::NodeUnknown => Partly::NodeNotListed,
        Part::NoSpeakerYet => Partly::NodeWithoutSpeaker,
        Part::EndpointAddress => Partly::EndpointAddress,
        Part::TooManySlices => Partly::TooManyEndpointSlices,
        Part::TooManyEndpointPorts => Partly::TooManyEndpointPorts,
        Part::Via => Partly::ClientAddressLost,
    };
    let parts = views.borrow().as_ref().map_or(BTreeSet::new(), |view| view.parts(vip));
    let conflict = health.in_conflict(vip).then_some(Partly::AddressConflict);
    parts.into_iter().map(in_words).chain(conflict).collect()
}

/// Of the VIP's object in the view. One that an earlier version saved has none.
fn uid(views: &Views, vip: Ipv4Addr) -> Option<String> {
    let views = views.borrow();
    let uid = &views.as_ref()?.vips().get(&vip)?.uid;
    (!uid.is_empty()).then(|| uid.clone())
}

/// What this node has written.
#[derive(Default)]
struct Written {
    /// VIPs whose status this node may have written its own name into.
    named: BTreeSet<Ipv4Addr>,
    /// Those that it owns, and what it wrote of each.
    owned: BTreeMap<Ipv4Addr, Record>,
}

struct Record {
    ownership: Ownership,
    parts: BTreeSet<Partly>,
    /// Of the object that has it; empty if there was none.
    uid: String,
}

impl Written {
    fn begin(&mut self, vip: Ipv4Addr, ownership: &Ownership) {
        if matches!(ownership, Ownership::Owned { .. }) {
            self.named.insert(vip);
        }
    }

    fn done(&mut self, vip: Ipv4Addr, ownership: Ownership, parts: BTreeSet<Partly>, uid: String) {
        match ownership {
            Ownership::Owned { .. } => drop(self.owned.insert(vip, Record { ownership, parts, uid })),
            Ownership::Vacant(_) | Ownership::Lost { .. } => {}
            Ownership::Elsewhere { .. } | Ownership::Yielded { .. } | Ownership::Unowned(_) | Ownership::Refused(_) => {
                self.named.remove(&vip);
                self.owned.remove(&vip);
            }
        }
    }

    /// VIPs of this node of which another part is not served now, or whose object is another one: the address was taken back and
    /// granted again so quickly that its owner never released it.
    fn outdated(&self, views: &Views, health: &HealthFlags) -> Updates {
        let outdated = self.owned.iter().filter(|(vip, record)| {
            let other = uid(views, **vip).is_some_and(|uid| uid != record.uid);
            other || partly(views, health, **vip) != record.parts
        });
        outdated.map(|(vip, record)| (*vip, record.ownership.clone())).collect()
    }

    /// VIPs of this node whose status names another one, or none.
    fn not_named(&self, node: &str, seen: &BTreeMap<Ipv4Addr, Option<String>>) -> Updates {
        let owned =
            self.owned.iter().filter(|(vip, _)| seen.get(vip).is_some_and(|owner| owner.as_deref() != Some(node)));
        owned.map(|(vip, record)| (*vip, record.ownership.clone())).collect()
    }
}

fn signed(term: u64) -> i64 {
    i64::try_from(term).unwrap_or(i64::MAX)
}

/// Whether the status names an owner that won later. Terms start again when all speakers have gone; then the time decides.
fn is_newer(known: &VirtualIPStatus, term: i64, since: Timestamp) -> bool {
    let later = || known.since.as_ref().is_some_and(|at| at.0 > since);
    known.owner.is_some() && known.term.is_some_and(|newer| newer > term) && later()
}

/// Compares before it writes, under the object's resourceVersion: a late message of a previous owner never hides a newer one. Returns
/// the object's uid.
async fn write(
    api: &Api<VirtualIP>,
    node: &str,
    vip: Ipv4Addr,
    ownership: &Ownership,
    parts: &BTreeSet<Partly>,
) -> kube::Result<String> {
    let name = vip.to_string();
    let current = api.get(&name).await?;
    let uid = current.metadata.uid.clone().unwrap_or_default();
    let known = current.status.clone().unwrap_or_default();
    let Some(status) = status(&known, node, ownership, parts) else { return Ok(uid) };
    let patch = json!({ "metadata": { "resourceVersion": current.metadata.resource_version }, "status": status });
    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| uid)
}

/// What is to be written over the known status; `None`: it stays.
fn status(known: &VirtualIPStatus, node: &str, ownership: &Ownership, parts: &BTreeSet<Partly>) -> Option<Value> {
    let names_us = known.owner.as_deref() == Some(node);
    let reason = Partly::join(parts);
    let owned = |term: u64, since: &Timestamp| {
        let term = signed(term);
        (!is_newer(known, term, *since))
            .then(|| json!({ "owner": node, "term": term, "since": since.to_string(), "reason": reason }))
    };
    let unowned = |reason: &NoOwner| json!({ "owner": null, "since": null, "reason": reason.as_str() });
    let written = |reason: &NoOwner| known.owner.is_none() && known.reason.as_deref() == Some(reason.as_str());
    match ownership {
        Ownership::Owned { term, since } => owned(*term, since),
        Ownership::Elsewhere { conflict, .. } => (*conflict && names_us).then(|| unowned(&NoOwner::HandingOver)),
        Ownership::Yielded { term, since } => {
            let reason = NoOwner::AddressConflict;
            (!is_newer(known, signed(*term), *since) && !written(&reason)).then(|| unowned(&reason))
        }
        Ownership::Unowned(reason) => names_us.then(|| unowned(reason)),
        // All speakers have the same reason: the first writes it.
        Ownership::Refused(reason) => {
            let others = known.owner.is_some() && !names_us;
            (!others && !written(reason)).then(|| unowned(reason))
        }
        Ownership::Vacant(reason) => (known.owner.is_none() && !written(reason)).then(|| unowned(reason)),
        // A status that names another owner meanwhile is newer than what was judged.
        Ownership::Lost { owner } => {
            (known.owner.as_ref() == Some(owner) && !names_us).then(|| unowned(&NoOwner::OwnerLost))
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    use super::overload::PATIENCE;
    use super::*;

    /// The far end accepts connections and sends nothing: each request times out, and the next one uses a new connection.
    #[tokio::test]
    async fn a_connection_that_hangs_is_replaced() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (client, _) = client(kube::Config::new(address.parse().unwrap())).unwrap();
        let api: Api<VirtualIP> = Api::all(client);
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
        let elsewhere = Ownership::Elsewhere { owner: "n2".into(), term: 9, conflict: true };
        let named = |owner: &str| VirtualIPStatus { owner: Some(owner.into()), term: Some(4), ..Default::default() };
        let written = status(&named("us"), "us", &elsewhere, &BTreeSet::new()).expect("our own name");
        assert_eq!((written["owner"].is_null(), written["reason"].as_str()), (true, Some("HandingOver")));
        assert_eq!(status(&named("owner"), "us", &elsewhere, &BTreeSet::new()), None);
        assert_eq!(status(&named("third"), "us", &elsewhere, &BTreeSet::new()), None);
        assert_eq!(status(&VirtualIPStatus::default(), "us", &elsewhere, &BTreeSet::new()), None, "no owner is named");
        let taken_over = Ownership::Elsewhere { owner: "n2".into(), term: 9, conflict: false };
        assert_eq!(status(&named("us"), "us", &taken_over, &BTreeSet::new()), None, "the new owner writes");
    }

    /// Both clusters of a segment claim an address in the same moment: the one that yields may do so before its name was written.
    #[test]
    fn a_silent_owner_says_so_although_its_name_was_never_written() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let yielded = Ownership::Yielded { term: 7, since: at("2026-01-02T03:04:05Z") };
        let written = |known: &VirtualIPStatus| status(known, "us", &yielded, &BTreeSet::new());
        let never = written(&VirtualIPStatus::default()).expect("the reason");
        assert_eq!((never["owner"].is_null(), never["reason"].as_str()), (true, Some("AddressConflict")));
        let named = |owner: &str, term, since| {
            let since = Some(MicroTime(at(since)));
            VirtualIPStatus { owner: Some(owner.into()), term: Some(term), since, ..Default::default() }
        };
        let before = "2026-01-02T03:04:04Z";
        assert!(written(&named("us", 7, before)).is_some() && written(&named("them", 6, before)).is_some());
        assert_eq!(written(&named("them", 8, "2026-01-02T03:04:06Z")), None, "a newer owner");
        let known = VirtualIPStatus { reason: Some("AddressConflict".into()), ..Default::default() };
        assert_eq!(written(&known), None, "it is there already");
    }

    /// A VIP that no node is to own: what an owner wrote stays, and the reason is written once.
    #[test]
    fn a_vip_that_no_node_is_to_own_has_the_reason() {
        let vacant = Ownership::Vacant(NoOwner::NotAnnounced);
        let status = |owner: Option<&str>, reason: &str| {
            let known =
                VirtualIPStatus { owner: owner.map(Into::into), reason: Some(reason.into()), ..Default::default() };
            status(&known, "us", &vacant, &BTreeSet::new())
        };
        assert_eq!(status(None, "HandingOver").expect("another one")["reason"], "NotAnnounced");
        assert_eq!(
            (status(None, "NotAnnounced"), status(Some("us"), ""), status(Some("them"), "")),
            (None, None, None)
        );
        let (vip, owned) = (Ipv4Addr::new(192, 0, 2, 1), Ownership::Owned { term: 3, since: Timestamp::UNIX_EPOCH });
        let mut written = Written::default();
        written.begin(vip, &owned);
        written.done(vip, owned, BTreeSet::new(), String::new());
        written.done(vip, vacant, BTreeSet::new(), String::new());
        assert!(written.owned.contains_key(&vip) && written.named.contains(&vip), "it owns it until it lets go");
    }

    #[test]
    fn only_the_name_of_the_owner_that_is_gone_is_taken_off() {
        let lost = Ownership::Lost { owner: "gone".into() };
        let written = |owner: Option<&str>| {
            let known = VirtualIPStatus { owner: owner.map(Into::into), term: Some(4), ..Default::default() };
            status(&known, "us", &lost, &BTreeSet::new())
        };
        let unowned = written(Some("gone")).expect("its name");
        assert_eq!((unowned["owner"].is_null(), unowned["reason"].as_str()), (true, Some("OwnerLost")));
        assert_eq!((written(Some("next")), written(Some("us")), written(None)), (None, None, None));
    }

    /// The other side of that conflict: the status that the loser has emptied is written again.
    #[test]
    fn an_owner_that_the_status_does_not_name_writes_again() {
        let [vip, other] = [1, 2].map(|n| Ipv4Addr::new(192, 0, 2, n));
        let owned = Ownership::Owned { term: 3, since: Timestamp::UNIX_EPOCH };
        let mut written = Written::default();
        written.begin(vip, &owned);
        written.done(vip, owned.clone(), BTreeSet::new(), String::new());
        let not_named = |owner: Option<&str>| {
            let seen = [vip, other].map(|vip| (vip, owner.map(String::from)));
            written.not_named("us", &seen.into())
        };
        assert_eq!(not_named(Some("us")), Updates::new());
        for owner in [None, Some("loser")] {
            assert_eq!(not_named(owner), Updates::from([(vip, owned.clone())]));
        }
    }

    /// The owner says what it leaves out, and takes it back when the view has changed.
    #[test]
    fn the_owner_names_the_part_that_is_not_served() {
        use speaker_core::view::{Conditions, Endpoint, EndpointSlice, Event, Object, ObjectName, VirtualIp};

        let vip = Ipv4Addr::new(192, 0, 2, 1);
        let web = ObjectName::new("default", "web");
        let granted = |uid: &str| VirtualIp { services: vec![web.clone()], uid: uid.into(), ..VirtualIp::default() };
        let mut view = View::default();
        view.handle(Event::Apply(Object::VirtualIp(vip, granted("first"))));
        view.handle(Event::Apply(Object::NameSlice(ObjectName::new("default", "web-1"), "web".into())));
        let (sender, views) = watch::channel(Some(Arc::new(view.clone())));
        let health = HealthFlags::default();
        let part = partly(&views, &health, vip);
        assert_eq!(part, [Partly::FQDNNotServed].into());
        let owned = Ownership::Owned { term: 3, since: Timestamp::UNIX_EPOCH };
        let status = |parts: &BTreeSet<_>| status(&VirtualIPStatus::default(), "us", &owned, parts).expect("we own it");
        let none = BTreeSet::new();
        assert_eq!(
            (status(&part)["reason"].as_str(), status(&none)["reason"].is_null()),
            (Some("FQDNNotServed"), true)
        );
        let two = BTreeSet::from([Partly::ClientAddressLost, Partly::FQDNNotServed]);
        assert_eq!(status(&two)["reason"].as_str(), Some("FQDNNotServed,ClientAddressLost"));

        let mut written = Written::default();
        written.begin(vip, &owned);
        written.done(vip, owned.clone(), part.clone(), "first".into());
        assert_eq!(written.outdated(&views, &health), Updates::new());
        // Taken back and granted again: with the deletion unseen, and after the deletion was found first.
        view.handle(Event::Apply(Object::VirtualIp(vip, granted("second"))));
        sender.send_replace(Some(Arc::new(view.clone())));
        assert_eq!(written.outdated(&views, &health), Updates::from([(vip, owned.clone())]));
        written.done(vip, owned.clone(), part.clone(), String::new());
        assert_eq!(written.outdated(&views, &health), Updates::from([(vip, owned.clone())]));
        written.done(vip, owned.clone(), part.clone(), "second".into());
        assert_eq!(written.outdated(&views, &health), Updates::new());
        let outside = Endpoint { address: Ipv4Addr::new(198, 51, 100, 1), node: None, conditions: Conditions::READY };
        let slice = EndpointSlice { service: "web".into(), ports: vec![], endpoints: vec![outside] };
        view.handle(Event::Apply(Object::EndpointSlice(ObjectName::new("default", "web-1"), slice)));
        sender.send_replace(Some(Arc::new(view.clone())));
        assert_eq!(partly(&views, &health, vip), [Partly::ClientAddressLost].into());
        health.set_conflicts([vip].into());
        assert_eq!(partly(&views, &health, vip), [Partly::AddressConflict, Partly::ClientAddressLost].into());
        health.set_conflicts(BTreeSet::new());
        view.handle(Event::Relisted(speaker_core::view::Kind::EndpointSlice, vec![]));
        sender.send_replace(Some(Arc::new(view)));
        assert_eq!(written.outdated(&views, &health), Updates::from([(vip, owned)]));
        written.done(vip, Ownership::Unowned(NoOwner::HandingOver), BTreeSet::new(), "second".into());
        assert_eq!(written.outdated(&views, &health), Updates::new(), "the new owner writes");
    }

    /// Controller and speaker leave out the same.
    #[test]
    fn the_limits_are_those_of_the_api() {
        use speaker_core::view::Limit;

        assert_eq!(Limit::PortsPerObject.value(), sheave_api::MAX_PORTS);
        assert_eq!(Limit::RangesPerService.value(), sheave_api::MAX_SOURCE_RANGES);
        assert_eq!(Limit::VirtualIps.value(), sheave_api::MAX_VIRTUAL_IPS);
        assert_eq!(ebpf_common::MAX_SERVICES as usize, sheave_api::MAX_SERVICE_PORTS);
        assert_eq!(Limit::EndpointSlices.value(), sheave_api::MAX_SLICES);
        assert_eq!(ebpf_common::MAX_RESTRICTED as usize, sheave_api::MAX_RESTRICTED_SERVICES + 1);
        assert_eq!(ebpf_common::MAX_SOURCE_RANGES as usize, sheave_api::MAX_ALL_SOURCE_RANGES);
    }
}
