//! Kubernetes watches into view events. The API server is only a source of desired state: when it is gone, nothing is sent
//! and the last view goes on serving.
//!
//! [`ApiServer`] finds out where an API server answers. A watch whose connection hangs is silent, like one without events, for up to
//! a minute ([`crate::apiserver::SILENCE`]). The other nodes detect that sooner (`speaker_core::staleness`); then new connections are made.

mod advertisement;
mod placement;
mod unreadable;
mod version;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, NodeAddress, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use sheave_api::kubernetes::{self, EXCLUDE_LABEL, Watched};
use sheave_api::{Announce, Chain, SpeakerState, VirtualIP};
use speaker_core::view::{
    Conditions, Endpoint, EndpointSlice as Slice, Event, Key, Kind, Node as NodeView, Object, ObjectName, Port,
    Protocol, Service as ServiceView, SpeakerState as SpeakerStateView, VirtualIp,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::apiserver::ApiServer;
use crate::health::{Cause, HealthFlags};
use crate::metrics::Metrics;
use crate::{attributes, mailbox};
use unreadable::{Converted, Unreadable};

/// The time the API server has for its answer, and the pause before the next request: doubled after each attempt, since a busy
/// one may need long.
const ATTEMPT: Duration = Duration::from_secs(1);
const ATTEMPT_MAX: Duration = Duration::from_secs(8);
/// The same while the view of this node lags.
const ATTEMPT_MAX_LAGGING: Duration = Duration::from_secs(2);
/// A watch that has had no answer for so long is begun anew wherever an API server answers.
const UNANSWERED: Duration = Duration::from_secs(5);
/// Between renewals of the watches that do not end the lag: another node is out of date, or all are.
const RENEWAL: Duration = Duration::from_secs(10);
const RENEWAL_MAX: Duration = Duration::from_secs(300);

/// The API server ends a watch after so many seconds, and it is resumed: a connection that is silent for longer hangs. Each node
/// draws its own number, so that not all watches are renewed at once.
const SECONDS: RangeInclusive<u32> = 40..=50;

/// Keeps the watches. While the view lags, or they have no answer from the API server, they are begun anew as soon as it
/// answers on a connection of its own.
/// `jitter`: a random number.
pub async fn run(server: ApiServer, reports: Reports, mut lagging: watch::Receiver<bool>, jitter: u64) {
    let mut watches = JoinSet::new();
    let (mut unanswered, mut why) = (Unanswered::default(), "the speaker begins");
    let (mut attempt, mut pause) = (ATTEMPT, RENEWAL);
    let mut asked = false;
    loop {
        match server.reach(attempt).await {
            Ok((client, url)) => {
                if !std::mem::replace(&mut asked, true) {
                    tokio::spawn(version::log(client.clone()));
                }
                info!(%url, why, "watches started");
                // Nothing of the old ones may come behind the new lists.
                watches.shutdown().await;
                unanswered = Unanswered::default();
                watches = start(&client, &reports, &unanswered, jitter);
                attempt = ATTEMPT;
                let certain = timeout(pause, lagging.wait_for(|lagging| !*lagging));
                pause = if certain.await.is_ok() { RENEWAL } else { RENEWAL_MAX.min(2 * pause) };
            }
            Err(error) => {
                debug!(error = format!("{error:#}"), why, "API server does not answer; retrying");
                sleep(attempt).await;
                let most = if *lagging.borrow() { ATTEMPT_MAX_LAGGING } else { ATTEMPT_MAX };
                attempt = most.min(2 * attempt);
                pause = RENEWAL;
            }
        }
        if watches.is_empty() {
            continue;
        }
        why = tokio::select! {
            lagging = lagging.wait_for(|lagging| *lagging) => match lagging {
                Ok(_) => "other nodes have another view",
                Err(_) => return,
            },
            () = unanswered.lasts() => "no answer",
        };
    }
}

/// Where the watches report to.
#[derive(Clone)]
pub struct Reports {
    pub events: mpsc::Sender<Event>,
    /// The owner that the status of a VirtualIP names. It is in no view: a status moves no packet.
    pub owners: Arc<mailbox::Sender<Ipv4Addr, Option<String>>>,
    /// Whether each kind may be read.
    pub rights: Rights,
}

/// Kinds that the API server refuses to this speaker: an upgrade without the ClusterRole of its version.
#[derive(Clone)]
pub struct Rights {
    pub health: Arc<HealthFlags>,
    pub metrics: Arc<Metrics>,
}

impl Rights {
    fn set(&self, kind: Kind, missing: bool) {
        self.health.set_refused(kind, missing);
        self.metrics.rights_missing.with_label_values(&[&format!("{kind:?}")]).set(i64::from(missing));
    }
}

/// Each first sends a full list ([`Event::Relisted`]). They end when the set is dropped.
#[must_use]
fn start(client: &Client, reports: &Reports, unanswered: &Unanswered, jitter: u64) -> JoinSet<()> {
    let with = |kind| Watch {
        kind,
        client: client.clone(),
        events: reports.events.clone(),
        unanswered: unanswered.clone(),
        rights: reports.rights.clone(),
        seconds: seconds(kind, jitter),
    };
    let mut watches = JoinSet::new();
    watches.spawn(with(Kind::Node).follow(node));
    watches.spawn(with(Kind::Service).follow(service));
    watches.spawn(with(Kind::EndpointSlice).follow(slice));
    let owners = reports.owners.clone();
    watches.spawn(with(Kind::VirtualIp).follow(move |vip| virtual_ip(vip, &owners)));
    watches.spawn(with(Kind::SpeakerState).follow(speaker_state));
    watches.spawn(with(Kind::L2Advertisement).follow(advertisement::convert));
    watches.spawn(with(Kind::Placement).follow(placement::convert));
    watches
}

/// Which watches have no answer from the API server. A refusal is an answer.
#[derive(Clone, Default)]
struct Unanswered(Arc<watch::Sender<BTreeSet<Kind>>>);

impl Unanswered {
    fn set(&self, kind: Kind, unanswered: bool) {
        self.0.send_if_modified(|kinds| if unanswered { kinds.insert(kind) } else { kinds.remove(&kind) });
    }

    /// Returns when some watch has had no answer for [`UNANSWERED`].
    async fn lasts(&self) {
        let mut kinds = self.0.subscribe();
        loop {
            // An error would mean that the sender is gone; it is held here.
            let _ = kinds.wait_for(|kinds| !kinds.is_empty()).await;
            if timeout(UNANSWERED, kinds.wait_for(BTreeSet::is_empty)).await.is_err() {
                return;
            }
        }
    }
}

struct Watch {
    kind: Kind,
    client: Client,
    events: mpsc::Sender<Event>,
    unanswered: Unanswered,
    rights: Rights,
    seconds: u32,
}

fn seconds(kind: Kind, jitter: u64) -> u32 {
    let number = jitter.rotate_right(8 * kind as u32) as u32;
    SECONDS.start() + number % (SECONDS.end() - SECONDS.start() + 1)
}

impl Watch {
    async fn follow<K: Watched + Resource<DynamicType = ()>>(self, convert: impl Fn(K) -> Converted) {
        let config = watcher::Config::default().timeout(self.seconds);
        let begin = || {
            let objects = Api::<DeserializeGuard<K>>::all(self.client.clone());
            Box::pin(kubernetes::follow_all(objects, config.clone()))
        };
        let mut stream = begin();
        let mut listed = Vec::new();
        let mut unreadable = Unreadable::new(self.kind);
        let mut failing = false;
        let mut refused = None;
        while let Some(item) = stream.next().await {
            let event = match item {
                Ok(event) => event,
                Err(error) => {
                    let forbidden = kubernetes::is_forbidden(&error);
                    let other = refused.replace(forbidden) != Some(forbidden);
                    if other {
                        self.rights.set(self.kind, forbidden);
                    }
                    self.failed(&error, std::mem::replace(&mut failing, true) && !other);
                    // A watch that is resumed says nothing until something changes; a list says that the right is back.
                    if forbidden && other {
                        stream = begin();
                    }
                    // An upgrade without the CRD of its version: then there are none. Of every other kind the last known state is served.
                    let none = NEWER.contains(&self.kind) && kubernetes::is_not_served(&error);
                    if none && self.events.send(Event::Relisted(self.kind, Vec::new())).await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            // `Init` announces only that a list will be requested.
            let answered = !matches!(event, watcher::Event::Init);
            if answered && refused.replace(false) != Some(false) {
                self.rights.set(self.kind, false);
            }
            if answered && std::mem::take(&mut failing) {
                self.unanswered.set(self.kind, false);
                info!(kind = ?self.kind, "watch works again");
            }
            let event = match event {
                watcher::Event::Init => {
                    listed.clear();
                    unreadable.begin();
                    continue;
                }
                watcher::Event::InitApply(object) => {
                    listed.extend(unreadable.read(object, &convert).and_then(|(_, object)| object));
                    continue;
                }
                watcher::Event::InitDone => {
                    unreadable.complete();
                    Some(Event::Relisted(self.kind, std::mem::take(&mut listed)))
                }
                watcher::Event::Apply(object) => unreadable.read(object, &convert).map(|(key, object)| match object {
                    Some(object) => Event::Apply(object),
                    None => Event::Delete(key),
                }),
                watcher::Event::Delete(object) => unreadable.deleted(object, &convert).map(Event::Delete),
            };
            self.set_unreadable(unreadable.count());
            let Some(event) = event else { continue };
            if self.events.send(event).await.is_err() {
                return;
            }
        }
    }

    fn set_unreadable(&self, count: usize) {
        self.rights.health.set_unreadable(self.kind, count > 0);
        self.rights.metrics.objects_unreadable.with_label_values(&[&format!("{:?}", self.kind)]).set(count as i64);
    }

    /// Logs once, not at every retry.
    fn failed(&self, error: &watcher::Error, again: bool) {
        self.unanswered.set(self.kind, is_unanswered(error));
        if again {
            debug!(kind = ?self.kind, error = %Chain(error), "watch still fails");
        } else if kubernetes::is_forbidden(error) {
            let (kind, reason) = (self.kind, Cause::RightsMissing.label());
            warn!(?kind, reason, error = %Chain(error), "not allowed to read; serving the last known state, retrying");
        } else {
            warn!(kind = ?self.kind, error = %Chain(error), "watch failed; serving the last known state, retrying");
        }
    }
}

fn is_unanswered(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => {
            !matches!(error, kube::Error::Api(_))
        }
        _ => false,
    }
}

fn node(node: Node) -> Converted {
    let name = node.name_any();
    let created = node.creation_timestamp().map_or(0, |Time(at)| at.as_second());
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let excluded = labels.contains_key(EXCLUDE_LABEL);
    let cordoned = node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
    let status = node.status.unwrap_or_default();
    let addresses = status.addresses.unwrap_or_default();
    let parse = |address: &NodeAddress| address.address.parse::<Ipv4Addr>().ok();
    let address = addresses.iter().filter(|address| address.type_ == "InternalIP").find_map(parse);
    let aliases =
        addresses.iter().filter_map(parse).filter(|alias| Some(*alias) != address).take(MAX_ALIASES).collect();
    let condition = status.conditions.unwrap_or_default().into_iter().find(|condition| condition.type_ == "Ready");
    let ready = condition.as_ref().is_some_and(|condition| condition.status == "True");
    let since = condition.as_ref().and_then(|condition| condition.last_transition_time.as_ref());
    let ready_since = since.map_or(0, |Time(since)| since.as_second());
    let reported = condition.as_ref().and_then(|condition| condition.last_heartbeat_time.as_ref());
    let reported = reported.map_or(0, |Time(at)| at.as_second() - at.as_second().rem_euclid(REPORTED_STEP));
    let object = address.map(|address| {
        let departed = false;
        let node =
            NodeView { address, ready, ready_since, excluded, cordoned, departed, aliases, created, reported, labels };
        Object::Node(name.clone(), node)
    });
    Some((Key::Node(name), object))
}

fn service(service: Service) -> Converted {
    let (name, attributes) = (object_name(&service), attributes::of(&service));
    let spec = service.spec.unwrap_or_default();
    if spec.type_.as_deref() != Some("LoadBalancer") {
        return Some((Key::Service(name), None));
    }
    let ports = spec.ports.unwrap_or_default().into_iter().filter_map(|port| {
        let protocol = Protocol::parse(port.protocol.as_deref().unwrap_or("TCP"))?;
        Some(Port { name: port.name.unwrap_or_default(), port: u16::try_from(port.port).ok()?, protocol })
    });
    let object = Object::Service(name.clone(), ServiceView { ports: ports.collect(), attributes });
    Some((Key::Service(name), Some(object)))
}

fn slice(slice: EndpointSlice) -> Converted {
    let name = object_name(&slice);
    let key = Key::EndpointSlice(name.clone());
    let Some(service) = slice.labels().get("kubernetes.io/service-name").cloned() else { return Some((key, None)) };
    match slice.address_type.as_str() {
        "IPv4" => {}
        "FQDN" => return Some((key, Some(Object::NameSlice(name, service)))),
        _ => return Some((key, None)),
    }
    let ports = slice.ports.unwrap_or_default().into_iter().filter_map(|port| {
        let protocol = Protocol::parse(port.protocol.as_deref().unwrap_or("TCP"))?;
        Some(Port { name: port.name.unwrap_or_default(), port: u16::try_from(port.port?).ok()?, protocol })
    });
    let ports = ports.collect();
    let endpoints = slice.endpoints.into_iter().filter_map(|endpoint| {
        let conditions = endpoint.conditions.unwrap_or_default();
        // "Clients must use the first address only" (discovery/v1).
        let address = endpoint.addresses.first()?.parse().ok()?;
        let conditions = Conditions::from_optional(conditions.ready, conditions.serving, conditions.terminating);
        Some(Endpoint { address, node: endpoint.node_name, conditions })
    });
    let endpoints = endpoints.collect();
    Some((key, Some(Object::EndpointSlice(name, Slice { service, ports, endpoints }))))
}

fn virtual_ip(vip: VirtualIP, owners: &mailbox::Sender<Ipv4Addr, Option<String>>) -> Converted {
    let Ok(address) = vip.spec.address.parse::<Ipv4Addr>() else {
        let (name, address) = (vip.name_any(), &vip.spec.address);
        // The controller reserves these. Nothing else is to be known of them: not even who owns one.
        match address.parse::<Ipv6Addr>() {
            Ok(_) => debug!(virtualip = name, %address, "VirtualIP of IPv6, which is not served; left out"),
            Err(_) => warn!(virtualip = name, address, "address of the VirtualIP is none; left out"),
        }
        return None;
    };
    let services = vip.spec.services.iter().map(|service| ObjectName::new(&service.namespace, &service.name)).collect();
    let uid = vip.uid().unwrap_or_default();
    // The writer ends only with the process.
    let _ = owners.send(address, vip.status.as_ref().and_then(|status| status.owner.clone()));
    let (advertisements, unannounced) = (vip.spec.l2_advertisements, vip.spec.announce == Some(Announce::None));
    let (pool, node) = (vip.spec.pool, vip.spec.node);
    let vip = VirtualIp { pool, services, uid, advertisements, unannounced, node };
    let object = Object::VirtualIp(address, vip);
    Some((Key::VirtualIp(address), Some(object)))
}

fn speaker_state(state: SpeakerState) -> Converted {
    let name = state.name_any();
    let created = state.creation_timestamp().map_or(0, |Time(at)| at.as_second());
    let stands_by = state.stands_by().is_some();
    let uplink = state.status.and_then(|status| status.uplinks.into_iter().next());
    // An IPv6 one is none of these. Here as everywhere what an object may hold has a limit.
    let addresses = uplink.iter().flat_map(|uplink| &uplink.addresses).filter_map(|address| address.parse().ok());
    let addresses = addresses.take(MAX_ADDRESSES).collect();
    let state = SpeakerStateView { created, stands_by, uplink: uplink.map(|uplink| uplink.name), addresses };
    Some((Key::SpeakerState(name.clone()), Some(Object::SpeakerState(name, state))))
}

fn object_name<K: Resource>(object: &K) -> ObjectName {
    ObjectName::new(object.namespace().unwrap_or_default(), object.name_any())
}

/// Seconds. A kubelet reports every five minutes, a virtual one every minute, and each report that counts makes another view.
const REPORTED_STEP: i64 = 300;
/// Addresses of a node beside its first; kubelet reports a handful.
const MAX_ALIASES: usize = 64;
/// Addresses of a node's uplink.
const MAX_ADDRESSES: usize = 16;

/// Kinds that an API server may not serve: a speaker is upgraded before their definitions are installed.
pub const NEWER: [Kind; 2] = [Kind::L2Advertisement, Kind::Placement];

/// Which kinds have not been listed since the start. Without SpeakerStates no node counts as one without a speaker, nor has one an uplink
/// that matches: the others need not wait for them.
pub fn unlisted() -> BTreeSet<Kind> {
    [Kind::Node, Kind::Service, Kind::EndpointSlice, Kind::VirtualIp].into_iter().chain(NEWER).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeAddress, NodeStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    /// The server must end a watch before the client closes its connection as silent, and not on all nodes at once.
    #[test]
    fn a_watch_ends_before_its_connection_counts_as_dead() {
        let kinds = unlisted();
        let all: BTreeSet<u32> = (0..1000)
            .flat_map(|node| {
                kinds.iter().map(move |kind| seconds(*kind, u64::wrapping_mul(node, 0x9e37_79b9_7f4a_7c15)))
            })
            .collect();
        assert_eq!(all, SECONDS.collect());
        assert!(Duration::from_secs(u64::from(*SECONDS.end())) + Duration::from_secs(5) < crate::apiserver::SILENCE);
    }

    /// Reports within five minutes are one view: hundreds of kubelets report.
    #[test]
    fn a_node_is_made_once_and_reports_in_steps() {
        let of = |heartbeat: &str| {
            let object = serde_json::json!({
                "metadata": {"name": "n1", "creationTimestamp": "2026-01-02T03:00:00Z"},
                "status": {
                    "addresses": [{"type": "InternalIP", "address": "192.0.2.11"}],
                    "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": heartbeat}],
                },
            });
            match node(serde_json::from_value(object).unwrap()) {
                Some((_, Some(Object::Node(_, node)))) => node,
                other => panic!("{other:?}"),
            }
        };
        let first = of("2026-01-02T03:10:00Z");
        assert_eq!(first.reported - first.created, 600);
        assert_eq!(of("2026-01-02T03:14:59Z"), first);
        assert_eq!(of("2026-01-02T03:15:00Z").reported - first.created, 900);
    }

    /// Neither the view nor the writer of statuses learns of it.
    #[tokio::test]
    async fn a_virtualip_of_ipv6_is_left_out() {
        let (owners, mut seen) = mailbox::channel(8);
        let read = |address: &str| {
            let spec = serde_json::json!({
                "address": address, "pool": "p", "services": [{"namespace": "a", "name": "b", "uid": "c"}],
            });
            let name = sheave_api::virtual_ip_name(address.parse().unwrap());
            let object = serde_json::json!({ "metadata": {"name": name}, "spec": spec, "status": {"owner": "n1"} });
            virtual_ip(serde_json::from_value(object).unwrap(), &owners)
        };
        assert!(read("2001:db8::10").is_none());
        assert!(matches!(read("192.0.2.1"), Some((Key::VirtualIp(_), Some(Object::VirtualIp(..))))));
        let named: Vec<Ipv4Addr> = seen.recv().await.unwrap().into_keys().collect();
        assert_eq!(named, [Ipv4Addr::new(192, 0, 2, 1)]);
    }

    #[test]
    fn the_exclude_label_counts_whatever_its_value() {
        let excluded = |labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(key, value)| (String::from(*key), String::from(*value))).collect();
            let address = NodeAddress { address: "192.0.2.11".into(), type_: "InternalIP".into() };
            let status = NodeStatus { addresses: Some(vec![address]), ..NodeStatus::default() };
            let metadata = ObjectMeta { name: Some("n1".into()), labels: Some(labels), ..ObjectMeta::default() };
            match node(Node { metadata, status: Some(status), ..Node::default() }) {
                Some((_, Some(Object::Node(_, node)))) => node.excluded,
                other => panic!("{other:?}"),
            }
        };
        assert!(excluded(&[(EXCLUDE_LABEL, "")]) && excluded(&[(EXCLUDE_LABEL, "false")]));
        assert!(!excluded(&[]) && !excluded(&[("kubernetes.io/hostname", "n1")]));
    }
}
