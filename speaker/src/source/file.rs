//! The file of the API server endpoint as source: the same view that Kubernetes would give. Members are nodes, each port of the addresses
//! is a Service, and the API servers are its endpoints.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use sheave_endpoint::{Endpoint, Member, Port};
use speaker_core::attributes::StartupProbe;
use speaker_core::rotation;
use speaker_core::view::{
    Conditions, Endpoint as EndpointView, EndpointSlice, Event, Kind, Node, Object, ObjectName, Port as PortView,
    Prefix, Protocol, Service, ServiceAttributes, SourceRanges, SpeakerState, VirtualIp,
};
use speaker_core::wire::advert::Key;
use tokio::sync::mpsc;
use tracing::info;

use crate::endpoint::board::Board;
use crate::endpoint::desk::Clerk;
use crate::endpoint::reload::Reload;
use crate::endpoint::{Opened, serve};
use crate::keys::source::{MAX_UPDATES, Update};
use crate::keys::{Contents, Found, Identity, Keys};
use crate::mailbox;
use crate::state::StateDir;
use crate::status::Ownership;

pub struct File {
    opened: Opened,
    clerk: Clerk,
    keys: mpsc::Sender<Update>,
    /// Until they are taken.
    updates: Mutex<Option<mpsc::Receiver<Update>>>,
}

impl File {
    pub fn new(opened: Opened, clerk: Clerk) -> Self {
        let (keys, updates) = mpsc::channel(MAX_UPDATES);
        Self { opened, clerk, keys, updates: Mutex::new(Some(updates)) }
    }

    /// Those of the file, whatever is on disk; then those that it changes to.
    pub async fn keys(&self, disk: &StateDir) -> Result<(Keys, mpsc::Receiver<Update>)> {
        let updates = self.updates.lock().unwrap_or_else(PoisonError::into_inner).take();
        let updates = updates.context("the keys of the file are taken once")?;
        Ok((Keys::adopt(disk, found(&self.opened.endpoint)).await, updates))
    }

    /// The whole view, and again when the file has changed. All of it at once: the receiver is in this thread, and has room for it.
    pub async fn run(self, events: mpsc::Sender<Event>) {
        let Self { opened, clerk, keys, .. } = self;
        let mut endpoint = opened.endpoint.clone();
        let mut reload = Reload::new(opened, clerk);
        loop {
            for event in view(&endpoint) {
                // The receivers end only with the process.
                if events.send(event).await.is_err() {
                    return;
                }
            }
            let next = reload.next().await;
            if next.keys != endpoint.keys && keys.send(Update::Found(Box::new(found(&next)))).await.is_err() {
                return;
            }
            endpoint = next;
        }
    }
}

fn found(endpoint: &Endpoint) -> Found {
    let keys = &endpoint.keys;
    let signing = rotation::Secret { current: Key::new(keys.current), previous: keys.previous.map(Key::new) };
    Found { contents: Contents { identity: identity(endpoint), signing }, kubernetes: None }
}

/// The group is that of its addresses: other keys leave it, so that they can change on one member after the other. None of this is
/// secret: who can reach the addresses can reach the members too.
fn identity(endpoint: &Endpoint) -> Identity {
    let mut hash = Sha256::new();
    hash.update(b"sheave endpoint");
    // In order, so the first one is the lowest on all members.
    for address in endpoint.addresses.iter().take(1) {
        hash.update(address.octets());
    }
    Identity::from_hash(hash.finalize().into())
}

/// Lists of every kind: what the file does not name is not there.
fn view(endpoint: &Endpoint) -> Vec<Event> {
    let nodes = endpoint.members.iter().filter(|member| member.speaker);
    let nodes = nodes.map(|member| Object::Node(member.name.clone(), Node::at(member.address)));
    let services = endpoint.ports.iter().map(|port| Object::Service(name(port), service(port)));
    let slices = endpoint.ports.iter().map(|port| Object::EndpointSlice(name(port), slice(port, &endpoint.members)));
    let names: Vec<ObjectName> = endpoint.ports.iter().map(name).collect();
    let vips = endpoint.addresses.iter().map(|address| {
        Object::VirtualIp(
            *address,
            VirtualIp { pool: NAMESPACE.into(), services: names.clone(), ..VirtualIp::default() },
        )
    });
    // Their addresses are known: the ports of adverts are closed to all others.
    let speaker = |member: &Member| SpeakerState { addresses: vec![member.address], ..SpeakerState::default() };
    let speakers = endpoint.members.iter().filter(|member| member.speaker);
    let speakers = speakers.map(|member| Object::SpeakerState(member.name.clone(), speaker(member)));
    vec![
        Event::Relisted(Kind::L2Advertisement, Vec::new()),
        Event::Relisted(Kind::Placement, Vec::new()),
        Event::Relisted(Kind::SpeakerState, speakers.collect()),
        Event::Relisted(Kind::Node, nodes.collect()),
        Event::Relisted(Kind::Service, services.collect()),
        Event::Relisted(Kind::EndpointSlice, slices.collect()),
        Event::Relisted(Kind::VirtualIp, vips.collect()),
    ]
}

fn name(port: &Port) -> ObjectName {
    ObjectName::new(NAMESPACE, format!("port-{}", port.listen))
}

/// No kube-proxy knows of it: each node translates for its own clients. The checks know better than a startup probe.
fn service(port: &Port) -> Service {
    let prefix = |range: &ipnet::Ipv4Net| Prefix { network: range.network(), length: range.prefix_len() };
    let ranges: Vec<Prefix> = port.sources.iter().map(prefix).collect();
    let attributes = ServiceAttributes {
        source_ranges: (!ranges.is_empty()).then(|| SourceRanges::from(ranges)),
        without_kube_proxy: true,
        startup_probe: StartupProbe::Off,
        ..ServiceAttributes::default()
    };
    Service { ports: vec![tcp(port.listen)], attributes }
}

/// A member without a speaker is no node: others translate for it.
fn slice(port: &Port, members: &[Member]) -> EndpointSlice {
    let endpoint = |member: &Member| EndpointView {
        address: member.address,
        node: member.speaker.then(|| member.name.clone()),
        conditions: Conditions::READY,
    };
    EndpointSlice {
        service: name(port).name,
        ports: vec![tcp(port.target)],
        endpoints: members.iter().map(endpoint).collect(),
    }
}

fn tcp(port: u16) -> PortView {
    PortView { name: String::new(), port, protocol: Protocol::Tcp }
}

/// Owners go to the log and to the status of this node.
pub async fn keep_status(mut updates: mailbox::Receiver<Ipv4Addr, Ownership>, board: Arc<Board>) {
    while let Some(updates) = updates.recv().await {
        for (vip, ownership) in updates {
            info!(%vip, ?ownership, "ownership");
            board.ownership(vip, &ownership, serve::now());
        }
    }
}

/// Of the Services that the view has for the ports.
pub const NAMESPACE: &str = "endpoint";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use speaker_core::view::View;
    use speaker_core::view::endpoints::frontends;

    use super::*;

    fn endpoint(addresses: &str) -> Endpoint {
        let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let text = format!(
            "addresses: {addresses}
ports: [{{listen: 6443}}, {{listen: 8443, target: 6443, sources: [198.51.100.0/24]}}]
members: [{{name: a, address: 192.0.2.11}}, {{name: b, address: 192.0.2.12}}, {{name: c, address: 192.0.2.13, speaker: false}}]
key: {key}
health: {{insecureSkipVerify: true}}
"
        );
        Endpoint::parse(&text).unwrap()
    }

    #[test]
    fn the_view_has_every_port_of_every_address_with_all_members() {
        let mut known = View::default();
        for event in view(&endpoint("[192.0.2.100, 192.0.2.101]")) {
            known.handle(event);
        }
        let (frontends, refusals) = frontends(&known);
        assert_eq!((frontends.len(), refusals), (4, vec![]));
        for (key, frontend) in &frontends {
            let pods: Vec<_> = frontend.pods.iter().map(|pod| (pod.address.octets()[3], pod.port, pod.via)).collect();
            // The member without a speaker has two nodes that translate for it.
            assert_eq!(pods, [(11, 6443, false), (12, 6443, false), (13, 6443, true), (13, 6443, true)]);
            let restricted = u16::from_be_bytes(key.port) == 8443;
            assert_eq!(frontend.attributes.source_ranges.is_some(), restricted);
            assert!(frontend.attributes.without_kube_proxy && !frontend.attributes.startup_probe.is_on());
        }
        assert!(!known.is_saved() && known.members().count() == 2);
        let members = [11, 12].map(|last| Ipv4Addr::new(192, 0, 2, last));
        assert_eq!(known.senders(), Some(members.into()), "no other sends adverts");
    }

    /// Serving waits for a list of each of these kinds.
    #[test]
    fn every_kind_that_is_waited_for_is_listed() {
        let listed = view(&endpoint("[192.0.2.100]")).into_iter().filter_map(|event| match event {
            Event::Relisted(kind, _) => Some(kind),
            _ => None,
        });
        assert!(listed.collect::<BTreeSet<_>>().is_superset(&crate::watch::unlisted()));
    }

    #[test]
    fn the_group_is_that_of_the_address_and_not_of_the_key() {
        let one = endpoint("[192.0.2.100]");
        let mut rotated = one.clone();
        rotated.keys.current[0] ^= 1;
        assert!(identity(&one) == identity(&rotated));
        assert!(identity(&one) != identity(&endpoint("[192.0.2.101]")));
    }
}
