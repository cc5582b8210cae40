//! A cluster as the API server would describe it: Services with three ports each, most of them with few pods.

use std::net::Ipv4Addr;

use speaker_core::attributes::{Prefix, ServiceAttributes, SourceRanges};
use speaker_core::view::{
    Conditions, Endpoint, EndpointSlice, Event, Node, Object, ObjectName, Port, Protocol, Service, View, VirtualIp,
};

/// Nodes of every world.
pub const NODES: usize = 100;

/// What the Services of a world have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Three ports each, so that three service ports have the same pods. Of 100 Services 30 have one pod, 30 two, 25 three, 10 five,
    /// 4 ten, and one fifty.
    Usual,
    /// One port each, with pods as of the usual ones: so many Services share the most addresses that a cluster may have.
    Shared,
    /// One port each, on three nodes that no other Service has all three of: no two rings are equal.
    Apart,
    /// One port and [`RANGES`] source ranges each, and a pod on this node.
    Ranged,
}

impl Kind {
    pub fn ports(self) -> &'static [(&'static str, u16, Protocol)] {
        match self {
            Self::Usual => &PORTS,
            Self::Shared | Self::Apart | Self::Ranged => &PORTS[..1],
        }
    }

    fn pods(self, service: usize) -> usize {
        match (self, service % 100) {
            (Self::Apart, _) => 3,
            (_, 0..30) => 1,
            (_, 30..60) => 2,
            (_, 60..85) => 3,
            (_, 85..95) => 5,
            (_, 95..99) => 10,
            _ => 50,
        }
    }

    /// The node of a pod.
    fn node(self, service: usize, pod: usize) -> usize {
        match self {
            Self::Ranged if pod == 0 => crate::node::OWN,
            Self::Usual | Self::Shared | Self::Ranged => random(service * 64 + pod) % NODES,
            Self::Apart => three_nodes(service * 13 % 161_700).get(pod).copied().unwrap_or(pod % NODES),
        }
    }
}

const VIPS: usize = ebpf_common::MAX_VIPS as usize;
const PORTS: [(&str, u16, Protocol); 3] =
    [("http", 80, Protocol::Tcp), ("https", 443, Protocol::Tcp), ("dns", 53, Protocol::Udp)];

/// A world with so many service ports, or up to two more.
pub fn view(kind: Kind, ports: usize) -> View {
    let mut view = View::default();
    for number in 0..NODES {
        let node = Node::at(address(number));
        view.handle(Event::Apply(Object::Node(name(number), node)));
    }
    for number in 0..services(kind, ports) {
        // More Services than a view has addresses share them, each with ports of its own.
        view.handle(restricted(kind, number, 0));
        let sharing = (number % VIPS..=number).step_by(VIPS).map(object_name).collect();
        let vip = VirtualIp { pool: "pool".into(), services: sharing, ..VirtualIp::default() };
        view.handle(Event::Apply(Object::VirtualIp(vip_of(number % VIPS), vip)));
        view.handle(Event::Apply(slice(kind, number, kind.pods(number))));
    }
    view
}

pub fn services(kind: Kind, ports: usize) -> usize {
    ports.div_ceil(kind.ports().len())
}

/// One more pod for a Service than it had, or one less.
pub fn scaled(kind: Kind, service: usize, more: bool) -> Event {
    let pods = kind.pods(service);
    Event::Apply(slice(kind, service, if more { pods + 1 } else { pods }))
}

/// The Service, with a list of its own for each version.
pub fn restricted(kind: Kind, service: usize, version: u32) -> Event {
    // Single addresses, none beside another: nothing can be joined.
    let first = 0x0b00_0000 + service as u32 * 4 * RANGES + version % 2;
    let range = |n: u32| Prefix { network: (first + 2 * n).into(), length: 32 };
    let list = || (0..RANGES).map(range).collect::<Vec<_>>().into();
    let source_ranges: Option<SourceRanges> = (kind == Kind::Ranged).then(list);
    let attributes = ServiceAttributes { source_ranges, ..ServiceAttributes::default() };
    let ports = named(kind, (service / VIPS) as u16);
    Event::Apply(Object::Service(object_name(service), Service { ports, attributes }))
}

/// Of each restricted Service.
pub const RANGES: u32 = 10;

pub fn name(node: usize) -> String {
    format!("node-{node:03}.example.internal")
}

pub fn address(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 1 + node as u8)
}

pub fn mac(node: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, 1 + node as u8]
}

fn vip_of(service: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + service as u32)
}

fn object_name(service: usize) -> ObjectName {
    ObjectName::new(format!("team-{:02}", service % 40), format!("service-{service:05}"))
}

fn named(kind: Kind, offset: u16) -> Vec<Port> {
    let port =
        |&(name, port, protocol): &(&str, u16, Protocol)| Port { name: name.into(), port: port + offset, protocol };
    kind.ports().iter().map(port).collect()
}

fn slice(kind: Kind, service: usize, pods: usize) -> Object {
    let ObjectName { namespace, name: service_name } = object_name(service);
    let endpoint = |pod: usize| Endpoint {
        address: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + (service * 64 + pod) as u32 + 1),
        node: Some(name(kind.node(service, pod))),
        conditions: Conditions::READY,
    };
    let endpoints = (0..pods).map(endpoint).collect();
    let slice_name = ObjectName::new(namespace, format!("{service_name}-abcde"));
    Object::EndpointSlice(slice_name, EndpointSlice { service: service_name, ports: named(kind, 8000), endpoints })
}

/// The nth way to choose three of 100 nodes.
fn three_nodes(mut n: usize) -> [usize; 3] {
    let choose = |of: usize, k: usize| if k == 3 { of * (of - 1) * (of - 2) / 6 } else { of * (of - 1) / 2 };
    let largest = |k: usize, n: usize| (k - 1..NODES).rev().find(|&of| of >= k && choose(of, k) <= n).unwrap_or(k - 1);
    let third = largest(3, n);
    n -= if third >= 3 { choose(third, 3) } else { 0 };
    let second = largest(2, n);
    n -= if second >= 2 { choose(second, 2) } else { 0 };
    [n, second, third]
}

/// The same in every run.
fn random(seed: usize) -> usize {
    ebpf_common::siphash13(&[1, 2], seed as u64, 3) as usize
}
