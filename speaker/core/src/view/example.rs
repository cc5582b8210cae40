//! A small cluster for tests: nodes `a`, `b`, `c`, Service `default/web` (80 TCP to 8080, 53 UDP to 5353) behind one VIP.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use super::*;

pub const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const TERMINATING: Conditions = Conditions { ready: false, serving: true, terminating: true };
/// Of a Service with publishNotReadyAddresses: a pod that terminates, and has failed its probe.
pub const PUBLISHED: Conditions = Conditions { ready: true, serving: false, terminating: true };
pub const UNREADY: Conditions = Conditions { ready: false, serving: false, terminating: false };

pub fn web() -> ObjectName {
    ObjectName::new("default", "web")
}

pub fn ports(http: u16, dns: u16) -> Vec<Port> {
    [("http", http, Protocol::Tcp), ("dns", dns, Protocol::Udp)]
        .map(|(name, port, protocol)| Port { name: name.into(), port, protocol })
        .into()
}

/// The nth pod on a node; its address has the number.
pub fn pod(node: &str, n: u8, conditions: Conditions) -> Endpoint {
    Endpoint { address: Ipv4Addr::new(10, 0, node.as_bytes()[0], n), node: Some(node.into()), conditions }
}

pub fn slice(endpoints: impl Into<Vec<Endpoint>>) -> Object {
    slice_named("web-1", endpoints)
}

pub fn slice_named(name: &str, endpoints: impl Into<Vec<Endpoint>>) -> Object {
    let slice = EndpointSlice { service: "web".into(), ports: ports(8080, 5353), endpoints: endpoints.into() };
    Object::EndpointSlice(ObjectName::new("default", name), slice)
}

pub fn vip(address: Ipv4Addr, services: impl Into<Vec<ObjectName>>) -> Object {
    Object::VirtualIp(address, VirtualIp { pool: "pool".into(), services: services.into(), ..VirtualIp::default() })
}

/// Ports of the Services at an address of a node.
pub fn at_node(node: &str, address: Ipv4Addr, services: impl Into<Vec<ObjectName>>) -> Object {
    let (pool, node) = ("(node)".into(), Some(node.into()));
    Object::VirtualIp(address, VirtualIp { pool, node, services: services.into(), ..VirtualIp::default() })
}

pub fn service(name: ObjectName, attributes: impl Into<ServiceAttributes>) -> Object {
    Object::Service(name, Service { ports: ports(80, 53), attributes: attributes.into() })
}

pub fn node(name: &str) -> Object {
    let address = Ipv4Addr::new(192, 0, 2, name.as_bytes()[0]);
    Object::Node(name.into(), Node::at(address))
}

pub fn view(endpoints: impl Into<Vec<Endpoint>>) -> View {
    let nodes = ["a", "b", "c"].map(node);
    let rest = [service(web(), Affinity::None), slice(endpoints), vip(VIP, [web()])];
    View::from(nodes.into_iter().chain(rest).collect::<Vec<_>>())
}

pub fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(String::from).into()
}
