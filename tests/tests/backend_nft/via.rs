//! Endpoints of no node: this node translates for them with its own address.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ebpf_common::Mark;
use speaker_core::backend::ruleset;
use speaker_core::view::{Affinity, Conditions, Endpoint};

use super::world::{CLIENT, Connection, OTHER_VIP, PODS, PODS_B, VIP, World, plan_of};

/// Behind a router, as far as node a knows: it answers to whatever address it sees, and knows no VIP.
const OUTSIDE: Ipv4Addr = PODS_B[0];

fn endpoint(address: Ipv4Addr, node: Option<&str>) -> Endpoint {
    Endpoint { address, node: node.map(String::from), conditions: Conditions::READY }
}

/// The pods of so many connections, and the client's address that each saw.
fn seen(world: &World, count: usize) -> BTreeSet<(IpAddr, IpAddr)> {
    let connections: Vec<Connection> = (0..count).map(|_| world.connect(VIP, 80).unwrap()).collect();
    connections.iter().map(|connection| (connection.pod.ip(), connection.seen.ip())).collect()
}

#[test]
fn an_endpoint_of_no_node_sees_this_node_and_a_pod_the_client() {
    let world = World::pair("via");
    world.a.mark(Mark::LOCAL);
    world.dispatch_to(&world.a);
    world.a.ip(&format!("route add {OUTSIDE}/32 via {}\n", world.b().address()));
    let node = IpAddr::V4(world.a.address());

    let alone = plan_of(vec![endpoint(OUTSIDE, None)], Affinity::None);
    world.a.apply(&alone);
    let mut first = world.connect(VIP, 80).unwrap();
    assert_eq!((first.pod, first.seen.ip()), (SocketAddr::from((OUTSIDE, 8080)), node));
    assert!(first.is_alive() && first.carries(1 << 20));
    assert_eq!(world.connect(OTHER_VIP, 80).unwrap().seen.ip(), node);
    let udp = world.client_udp();
    udp.send_to(b"hello", (VIP, 53)).unwrap();
    let mut buffer = [0; 64];
    let (length, from) = udp.recv_from(&mut buffer).unwrap();
    assert_eq!(from, SocketAddr::from((VIP, 53)));
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    assert!(text.starts_with(&format!("{OUTSIDE} {node}:")) && text.ends_with(" hello"), "{text}");

    // A pod comes, by an update: it sees the client, the other one does not.
    let mixed = plan_of(vec![endpoint(OUTSIDE, None), endpoint(PODS[0], Some("node"))], Affinity::None);
    world.a.nft(&ruleset::update(&alone, &mixed).unwrap());
    let both: BTreeSet<(IpAddr, IpAddr)> = [(OUTSIDE.into(), node), (PODS[0].into(), CLIENT.into())].into();
    assert_eq!(seen(&world, 64), both, "of 64 connections some go to each");

    // It goes again.
    let pod = plan_of(vec![endpoint(PODS[0], Some("node"))], Affinity::None);
    world.a.nft(&ruleset::update(&mixed, &pod).unwrap());
    assert_eq!(seen(&world, 8), [(PODS[0].into(), CLIENT.into())].into());
    assert!(first.is_alive(), "an open connection keeps its translation");
    let listed = ruleset::replace(&pod);
    assert!(!listed.contains(&OUTSIDE.to_string()), "{listed}");
}
