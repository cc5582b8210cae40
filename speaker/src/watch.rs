//! Kubernetes watches into view events. The API server is only a source of desired state: when it is gone, nothing is sent
//! and the last view goes on serving.
//!
//! [`ApiServer`] finds out where an API server answers. A watch whose connection hangs is silent, like one without events, for up to
//! a minute ([`crate::apiserver::SILENCE`]). The other nodes detect that sooner (`speaker_core::staleness`); then new connections are made.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, NodeAddress, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use sheave_api::{Chain, VirtualIP, kubernetes};
use speaker_core::view::{
    Conditions, Endpoint, EndpointSlice as Slice, Event, Key, Kind, Node as NodeView, Object, ObjectName, Port,
    Protocol, Service as ServiceView, VirtualIp,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::apiserver::ApiServer;
use crate::attributes;

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

/// Keeps the four watches. While the view lags, or they have no answer from the API server, they are begun anew as soon as it
/// answers on a connection of its own.
/// `jitter`: a random number.
pub async fn run(server: ApiServer, events: mpsc::Sender<Event>, mut lagging: watch::Receiver<bool>, jitter: u64) {
    let mut watches = JoinSet::new();
    let (mut unanswered, mut why) = (Unanswered::default(), "the speaker begins");
    let (mut attempt, mut pause) = (ATTEMPT, RENEWAL);
    let mut asked = false;
    loop {
        match server.reach(attempt).await {
            Ok((client, url)) => {
                if !std::mem::replace(&mut asked, true) {
                    tokio::spawn(log_version(client.clone()));
                }
                info!(%url, why, "watches started");
                // Nothing of the old ones may come behind the new lists.
                watches.shutdown().await;
                unanswered = Unanswered::default();
                watches = start(&client, &events, &unanswered, jitter);
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

/// Whether the API server is new enough. An older one is named; what works on it, works.
async fn log_version(client: Client) {
    match client.apiserver_version().await {
        Ok(found) => match kubernetes::check(&found.major, &found.minor) {
            Ok(()) => info!(version = %found.git_version, "API server"),
            Err(error) => warn!(version = %found.git_version, "{error}"),
        },
        Err(error) => warn!(error = %Chain(&error), "version of the API server not read"),
    }
}

/// Each first sends a full list ([`Event::Relisted`]). They end when the set is dropped.
#[must_use]
fn start(client: &Client, events: &mpsc::Sender<Event>, unanswered: &Unanswered, jitter: u64) -> JoinSet<()> {
    let with = |kind| Watch {
        kind,
        client: client.clone(),
        events: events.clone(),
        unanswered: unanswered.clone(),
        seconds: seconds(kind, jitter),
    };
    let mut watches = JoinSet::new();
    watches.spawn(with(Kind::Node).follow::<Node>(node));
    watches.spawn(with(Kind::Service).follow::<Service>(service));
    watches.spawn(with(Kind::EndpointSlice).follow::<EndpointSlice>(slice));
    watches.spawn(with(Kind::VirtualIp).follow::<VirtualIP>(virtual_ip));
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
    seconds: u32,
}

fn seconds(kind: Kind, jitter: u64) -> u32 {
    let number = jitter.rotate_right(8 * kind as u32) as u32;
    SECONDS.start() + number % (SECONDS.end() - SECONDS.start() + 1)
}

/// What an object means to the view: its key, and the object unless it does not concern us.
type Convert<K> = fn(K) -> Option<(Key, Option<Object>)>;

impl Watch {
    async fn follow<K>(self, convert: Convert<K>)
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let config = watcher::Config::default().timeout(self.seconds);
        let stream = watcher(Api::<K>::all(self.client.clone()), config).default_backoff();
        let mut stream = std::pin::pin!(stream);
        let mut listed = Vec::new();
        let mut failing = false;
        while let Some(item) = stream.next().await {
            let event = match item {
                Ok(event) => event,
                Err(error) => {
                    self.failed(&error, std::mem::replace(&mut failing, true));
                    continue;
                }
            };
            // `Init` announces only that a list will be requested.
            if !matches!(event, watcher::Event::Init) && std::mem::take(&mut failing) {
                self.unanswered.set(self.kind, false);
                info!(kind = ?self.kind, "watch works again");
            }
            let event = match event {
                watcher::Event::Init => {
                    listed.clear();
                    continue;
                }
                watcher::Event::InitApply(object) => {
                    listed.extend(convert(object).and_then(|(_, object)| object));
                    continue;
                }
                watcher::Event::InitDone => Event::Relisted(self.kind, std::mem::take(&mut listed)),
                watcher::Event::Apply(object) => match convert(object) {
                    Some((_, Some(object))) => Event::Apply(object),
                    Some((key, None)) => Event::Delete(key),
                    None => continue,
                },
                watcher::Event::Delete(object) => match convert(object) {
                    Some((key, _)) => Event::Delete(key),
                    None => continue,
                },
            };
            if self.events.send(event).await.is_err() {
                return;
            }
        }
    }

    /// Logs once, not at every retry.
    fn failed(&self, error: &watcher::Error, again: bool) {
        self.unanswered.set(self.kind, is_unanswered(error));
        if again {
            debug!(kind = ?self.kind, error = %Chain(error), "watch still fails");
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

fn node(node: Node) -> Option<(Key, Option<Object>)> {
    let name = node.name_any();
    let excluded = node.labels().contains_key(EXCLUDED);
    let cordoned = node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
    let status = node.status.unwrap_or_default();
    let addresses = status.addresses.unwrap_or_default();
    let parse = |address: &NodeAddress| address.address.parse::<Ipv4Addr>().ok();
    let address = addresses.iter().filter(|address| address.type_ == "InternalIP").find_map(parse);
    let aliases =
        addresses.iter().filter_map(parse).filter(|alias| Some(*alias) != address).take(MAX_ALIASES).collect();
    let condition = status.conditions.unwrap_or_default().into_iter().find(|condition| condition.type_ == "Ready");
    let ready = condition.as_ref().is_some_and(|condition| condition.status == "True");
    let since = condition.and_then(|condition| condition.last_transition_time);
    let ready_since = since.map_or(0, |Time(since)| since.as_second());
    let object = address.map(|address| {
        let node = NodeView { address, ready, ready_since, excluded, cordoned, departed: false, aliases };
        Object::Node(name.clone(), node)
    });
    Some((Key::Node(name), object))
}

fn service(service: Service) -> Option<(Key, Option<Object>)> {
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

fn slice(slice: EndpointSlice) -> Option<(Key, Option<Object>)> {
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

fn virtual_ip(vip: VirtualIP) -> Option<(Key, Option<Object>)> {
    let Ok(address) = vip.spec.address.parse::<Ipv4Addr>() else {
        warn!(virtualip = vip.name_any(), address = vip.spec.address, "address of the VirtualIP is not IPv4; left out");
        return None;
    };
    let services = vip.spec.services.iter().map(|service| ObjectName::new(&service.namespace, &service.name)).collect();
    let uid = vip.uid().unwrap_or_default();
    let object = Object::VirtualIp(address, VirtualIp { pool: vip.spec.pool.clone(), services, uid });
    Some((Key::VirtualIp(address), Some(object)))
}

fn object_name<K: Resource>(object: &K) -> ObjectName {
    ObjectName::new(object.namespace().unwrap_or_default(), object.name_any())
}

/// "Instructs cloud providers not to add this node to a load balancer" (Kubernetes, well-known labels); its value does not matter.
/// Addresses of a node beside its first; kubelet reports a handful.
const MAX_ALIASES: usize = 64;
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Which kinds have not been listed since the start.
pub fn unlisted() -> BTreeSet<Kind> {
    BTreeSet::from([Kind::Node, Kind::Service, Kind::EndpointSlice, Kind::VirtualIp])
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
        assert!(excluded(&[(EXCLUDED, "")]) && excluded(&[(EXCLUDED, "false")]));
        assert!(!excluded(&[]) && !excluded(&[("kubernetes.io/hostname", "n1")]));
    }
}
