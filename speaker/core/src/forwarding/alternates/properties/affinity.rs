//! sessionAffinity ClientIP over several nodes: a client keeps its pod while rows move, as long as the pod is ready.
//!
//! Clients connect through any node, also between the moments in which two nodes learn of the same change. The nodes are made of the
//! real parts ([`super::node`]); a kernel's rules are a map from client to pod, filled by the one that takes a SYN.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use ebpf_common::{NextHop, SearchState};
use sheave_ebpf::parse::{Content, Tcp};
use sheave_ebpf::second_chance::{Origin, Step};

use super::node::*;
use super::random::Random;
use crate::time::{Duration, Instant};
use crate::view::{
    Affinity, Conditions, Endpoint, EndpointSlice, Node, Object, ObjectName, Port, Protocol, Service, View, VirtualIp,
};

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const TURN: Duration = Duration::from_millis(250);
const UNREADY: Conditions = Conditions { ready: false, serving: false, terminating: false };
const CLIENTS: u8 = 100;

struct Cluster {
    now: Instant,
    random: Random,
    nodes: Vec<(Kernel, Speaker)>,
    /// Pod n is on node n modulo the number of nodes.
    pods: Vec<Conditions>,
    view: Arc<View>,
    /// Where each client has to come again.
    expected: BTreeMap<u8, Ipv4Addr>,
    connections: u64,
    /// Connections of clients whose pod is ready, to another pod.
    changed: u64,
    hops: u8,
}

impl Cluster {
    fn new(seed: u64, nodes: usize, pods: usize) -> Self {
        let now = Instant::from_millis(1_000_000);
        let speaker = |node| (Kernel::default(), Speaker::new(node, 1, None, None, nodes, now));
        let mut cluster = Self {
            now,
            random: Random(seed << 32),
            nodes: (0..nodes).map(speaker).collect(),
            pods: Vec::new(),
            view: Arc::default(),
            expected: BTreeMap::new(),
            connections: 0,
            changed: 0,
            hops: 0,
        };
        cluster.scale(pods);
        cluster.pass(60, false);
        cluster
    }

    fn address(pod: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, pod as u8 + 1)
    }

    fn scale(&mut self, pods: usize) {
        self.pods.resize(pods, Conditions::READY);
        self.publish();
    }

    fn set(&mut self, pod: usize, conditions: Conditions) {
        self.pods[pod] = conditions;
        if !conditions.ready {
            self.expected.retain(|_, expected| *expected != Self::address(pod));
        }
        self.publish();
    }

    fn publish(&mut self) {
        let nodes = 0..self.nodes.len();
        let node = |node| Object::Node(name(node), Node::at(Ipv4Addr::new(10, 255, 0, node as u8 + 1)));
        let web = ObjectName::new("default", "web");
        let ports: Vec<Port> = [("http", 80), ("https", 443)]
            .map(|(name, port)| Port { name: name.into(), port, protocol: Protocol::Tcp })
            .into();
        let endpoint = |(pod, conditions): (usize, &Conditions)| Endpoint {
            address: Self::address(pod),
            node: Some(name(pod % self.nodes.len())),
            conditions: *conditions,
        };
        let endpoints = self.pods.iter().enumerate().map(endpoint).collect();
        let slice = EndpointSlice { service: web.name.clone(), ports: ports.clone(), endpoints };
        let mut objects: Vec<Object> = nodes.map(node).collect();
        objects.push(Object::Service(web.clone(), Service { ports, attributes: Affinity::ClientIp.into() }));
        objects.push(Object::EndpointSlice(web.clone(), slice));
        objects.push(Object::VirtualIp(
            VIP,
            VirtualIp { pool: "pool".into(), services: [web].into(), ..VirtualIp::default() },
        ));
        self.view = Arc::new(View::from(objects));
    }

    /// So many seconds, in which clients connect or do not.
    fn pass(&mut self, seconds: u32, clients: bool) {
        for _ in 0..4 * seconds {
            self.now += TURN;
            let sights = Vec::from_iter(self.nodes.iter().map(|_| Sight { answers: true, program: true, ready: true }));
            for node in 0..self.nodes.len() {
                let (kernel, speaker) = &mut self.nodes[node];
                let sent = speaker.turn(Some(&self.view), &sights, kernel, &|_| true, self.now);
                let others = self.nodes.iter_mut().enumerate().filter(|(other, _)| *other != node);
                for (_, (_, speaker)) in others {
                    sent.iter().for_each(|datagram| speaker.receive(datagram, self.now));
                }
                for _ in 0..if clients { 3 } else { 0 } {
                    let client = self.random.below(usize::from(CLIENTS)) as u8;
                    self.connect(client);
                }
            }
        }
    }

    fn connect_all(&mut self) {
        (0..CLIENTS).for_each(|client| self.connect(client));
    }

    fn connect(&mut self, client: u8) {
        let entry = self.random.below(self.nodes.len());
        let port: u16 = if self.random.below(2) == 0 { 80 } else { 443 };
        let from = 40_000 + self.random.below(1000) as u16;
        let flow = ([198, 51, 100, client], VIP.octets(), from.to_be_bytes(), port.to_be_bytes(), 6);
        let pod = self.syn(flow, entry);
        self.connections += 1;
        match self.expected.get(&client) {
            Some(expected) => self.changed += u64::from(*expected != pod),
            // A node that does not know yet that a pod is not ready still sends clients there.
            None if self.pods[usize::from(pod.octets()[3]) - 1].ready => drop(self.expected.insert(client, pod)),
            None => {}
        }
    }

    /// From the client to a node, and on until one takes it. The pod.
    fn syn(&mut self, flow: Flow, entry: usize) -> Ipv4Addr {
        let content = Content::Tcp(Tcp { flags: Tcp::SYN });
        let (mut at, mut origin, mut began) = (entry, Origin::Client, 0);
        loop {
            let (kernel, _) = &mut self.nodes[at];
            let own = at as u16 + 1;
            let search_origin = match origin {
                Origin::Search { from, state } if state.hop == 1 && from == began => began,
                Origin::Search { state, .. } if matches!(state.hop, 2 | 3) && kernel.row_has(flow, began) => began,
                _ => 0,
            };
            let (step, primary) = kernel.xdp(at, flow, origin, search_origin, &content).expect("pods are ready");
            let (slot, hop) = match step {
                Step::Dispatch => (primary, 0),
                Step::ForwardSyn { hop } => (primary, hop),
                Step::PassToStack(mark) => {
                    if let Some(pod) = kernel.clients.get(&flow.0) {
                        return *pod;
                    }
                    if mark.next_hop == NextHop::Local {
                        let pods = &kernel.backends[&key_of(flow)];
                        let pod = *pods.get(self.random.below(pods.len())).expect("a node with a pod");
                        kernel.clients.insert(flow.0, pod);
                        return pod;
                    }
                    if mark.next_hop == NextHop::Alternate(1) {
                        began = own;
                    }
                    (mark.slot, mark.next_hop.hop())
                }
            };
            self.hops = self.hops.max(hop);
            origin = match hop {
                0 => Origin::Dispatcher { from: own },
                hop => Origin::Search { from: own, state: SearchState { hop, no_reset: false } },
            };
            at = usize::from(slot) - 1;
        }
    }
}

/// The demand of the issue: 6, 9, 12 pods, a hundred clients, one pod that restarts.
#[test]
fn no_client_loses_a_pod_that_lives() {
    for seed in 0..6 {
        let mut cluster = Cluster::new(seed, 3 + seed as usize % 4, 6);
        cluster.connect_all();
        let first = cluster.expected.clone();
        for pods in [9, 12] {
            cluster.scale(pods);
            cluster.pass(30, true);
            cluster.connect_all();
        }
        assert_eq!(cluster.expected, first, "seed {seed}");
        let restarted = cluster.random.below(12);
        cluster.set(restarted, UNREADY);
        cluster.pass(3, true);
        cluster.connect_all();
        cluster.set(restarted, Conditions::READY);
        cluster.pass(60, true);
        cluster.connect_all();
        let lives = |pod: &Ipv4Addr| *pod != Cluster::address(restarted);
        let moved = first.iter().filter(|(client, pod)| lives(pod) && cluster.expected[client] != **pod).count();
        assert_eq!(moved, 0, "seed {seed}");
        assert_eq!(cluster.changed, 0, "seed {seed}: of {} connections", cluster.connections);
        assert!(cluster.hops > 0, "seed {seed}: no row with a client moved");
    }
}
