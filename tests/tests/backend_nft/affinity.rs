//! sessionAffinity ClientIP at the backend: a client keeps its pod while the pod serves here, through every port, for the timeout.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use ebpf_common::{Mark, NextHop};
use speaker_core::attributes::AffinityTimeout;
use speaker_core::backend::affinity::MAX_CLIENTS;
use speaker_core::backend::{Guard, Plan, ruleset};
use speaker_core::view::Affinity;

use crate::world::{A, B, OTHER_VIP, PODS, PODS_B, VIP, World, plan};

/// Node a with so many pods more than it has, and a client with a hundred addresses.
pub fn world(test: &str) -> World {
    let world = World::new(test);
    world.a.add_pods(&pods(12)[PODS.len()..]);
    world.add_clients(&clients());
    world
}

/// The first of node a.
pub fn pods(count: u8) -> Vec<Ipv4Addr> {
    (2..2 + count).map(|last| Ipv4Addr::new(10, 99, 1, last)).collect()
}

pub fn clients() -> Vec<Ipv4Addr> {
    (100..200).map(|last| Ipv4Addr::new(192, 0, 2, last)).collect()
}

pub fn affine(pods: &[Ipv4Addr]) -> Plan {
    plan(pods, Affinity::ClientIp)
}

/// The pods that these clients get, in their order.
pub fn tcp(world: &World, clients: &[Ipv4Addr], vip: Ipv4Addr) -> Vec<IpAddr> {
    let pod = |client: &Ipv4Addr| world.connect_as(SocketAddrV4::new(*client, 0), vip, 80).unwrap().pod.ip();
    clients.iter().map(pod).collect()
}

pub fn udp(world: &World, clients: &[Ipv4Addr]) -> Vec<IpAddr> {
    let pod = |client: &Ipv4Addr| {
        let socket = world.client_udp_as(*client);
        socket.send_to(b"hello", (VIP, 53)).unwrap();
        let mut buffer = [0; 128];
        let (length, _) = socket.recv_from(&mut buffer).unwrap();
        let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
        said.split(' ').next().unwrap().parse().unwrap()
    };
    clients.iter().map(pod).collect()
}

/// As a speaker changes the rules.
pub fn update(world: &World, from: &Plan, to: &Plan) {
    world.a.nft(&ruleset::update(from, to).expect("a difference"));
}

#[test]
fn a_client_keeps_its_pod_while_pods_come_and_one_restarts() {
    let (world, clients) = (world("affine"), clients());
    let plans = [6, 9, 12].map(|count| affine(&pods(count)));
    world.a.apply(&plans[0]);
    let first = tcp(&world, &clients, VIP);
    assert!(pods(6).iter().all(|pod| first.contains(&IpAddr::from(*pod))), "{first:?}");
    assert_eq!(udp(&world, &clients), first, "another port");
    assert_eq!(tcp(&world, &clients, OTHER_VIP), first, "another address of the Service");
    for (from, to) in [(0, 1), (1, 2)] {
        update(&world, &plans[from], &plans[to]);
        assert_eq!(tcp(&world, &clients, VIP), first);
    }
    // A pod restarts: its clients move, and stay where they are when it is back.
    let restarted = pods(12)[3];
    let rest: Vec<Ipv4Addr> = pods(12).into_iter().filter(|pod| *pod != restarted).collect();
    update(&world, &plans[2], &affine(&rest));
    let moved = tcp(&world, &clients, VIP);
    for (before, after) in first.iter().zip(&moved) {
        assert_eq!(before == after, *before != IpAddr::from(restarted), "{before} {after}");
    }
    update(&world, &affine(&rest), &plans[2]);
    assert_eq!(tcp(&world, &clients, VIP), moved);
    assert_eq!(udp(&world, &clients), moved);
    assert_eq!(world.a.guard(Guard::Unrecorded), 0);
}

#[test]
fn a_new_flow_renews_the_record_and_without_one_it_expires() {
    let world = world("expiry");
    let clients = &clients()[..20];
    let with_timeout = |count: u8| {
        let mut plan = affine(&pods(count));
        let timeout = AffinityTimeout::new(2).unwrap();
        plan.services.values_mut().for_each(|local| local.attributes.affinity_timeout = timeout);
        plan
    };
    world.a.apply(&with_timeout(2));
    let first = tcp(&world, clients, VIP);
    update(&world, &with_timeout(2), &with_timeout(12));
    for _ in 0..3 {
        // Less than the timeout passes each time, and more than it in all.
        std::thread::sleep(Duration::from_millis(900));
        assert_eq!(udp(&world, clients), first);
    }
    // Longer than the timeout: the end of an element is no event.
    std::thread::sleep(Duration::from_millis(2300));
    assert_ne!(tcp(&world, clients, VIP), first, "the hash over twelve pods");
}

/// With named ports a pod may serve one port and not the other.
#[test]
fn a_port_without_the_clients_pod_takes_another_and_leaves_the_record() {
    let (world, clients) = (world("ports"), clients());
    let mut plan = affine(&pods(6));
    let lacking = pods(6)[0];
    for (_, local) in plan.services.iter_mut().filter(|(key, _)| key.proto == 17) {
        local.pods.retain(|(address, _)| *address != lacking);
    }
    world.a.apply(&plan);
    let first = tcp(&world, &clients, VIP);
    for (tcp, udp) in first.iter().zip(udp(&world, &clients)) {
        assert_eq!(*tcp == udp, *tcp != IpAddr::from(lacking), "{tcp} {udp}");
    }
    assert_eq!(tcp(&world, &clients, VIP), first);
    update(&world, &plan, &affine(&pods(6)));
    assert_eq!(udp(&world, &clients), first);
}

#[test]
fn a_client_beyond_the_limit_is_served_and_counted() {
    let world = world("limit");
    let plan = affine(&PODS[..1]);
    world.a.apply(&plan);
    let (set, _) = plan.client_sets().pop_first().unwrap();
    let others = (0..MAX_CLIENTS as u32).map(|n| format!("{} timeout 60s", Ipv4Addr::from(0x0a00_0000 | n)));
    let others: Vec<String> = others.collect();
    world.a.nft(&format!("add element ip {} {} {{ {} }}", ruleset::TABLE, set.name(), others.join(", ")));
    assert_eq!(tcp(&world, &clients()[..3], VIP), [IpAddr::from(PODS[0]); 3]);
    assert_eq!(world.a.guard(Guard::Unrecorded), 3);
}

/// The rows of node b have moved to node a, whose marks name node b.
fn pair_after_a_move(test: &str) -> (World, Vec<Ipv4Addr>, Vec<IpAddr>) {
    let (world, clients) = (World::pair(test), clients());
    world.add_clients(&clients[..20]);
    world.a.apply(&affine(&PODS));
    world.b().apply(&affine(&PODS_B));
    world.dispatch_to(world.b());
    let first = tcp(&world, &clients[..10], VIP);
    world.dispatch_to(&world.a);
    let mark = |next_hop, slot| Mark { next_hop, no_reset: false, slot };
    world.a.mark_seeking_client(mark(NextHop::Alternate(1), B), mark(NextHop::Alternate(2), B));
    world.b().mark_seeking_client(mark(NextHop::Alternate(1), A), mark(NextHop::ToPrimary, A));
    (world, clients, first)
}

fn is_of(pods: [Ipv4Addr; 2], reached: &[IpAddr]) -> bool {
    reached.iter().all(|pod| pods.map(IpAddr::from).contains(pod))
}

#[test]
fn a_client_of_another_node_is_led_there_and_a_stranger_comes_home() {
    let (world, clients, first) = pair_after_a_move("affine-pair");
    assert!(is_of(PODS_B, &first));
    let (known, strangers) = (&clients[..10], &clients[10..20]);
    assert_eq!(tcp(&world, known, VIP), first);
    assert_eq!(udp(&world, known), first, "the first datagram of a flow");
    assert_eq!(world.a.travelled(), BTreeMap::new(), "none came back");
    let new = tcp(&world, strangers, VIP);
    assert!(is_of(PODS, &new));
    assert_eq!(world.a.travelled(), BTreeMap::from([("hop4".into(), 10)]), "each came back once");
    assert_eq!(udp(&world, strangers), new);
    assert_eq!(tcp(&world, strangers, VIP), new);
    assert_eq!(world.a.travelled()["hop4"], 10, "node a knows them now");
}

#[test]
fn clients_of_a_pod_that_is_gone_come_home_and_stay() {
    let (world, clients, first) = pair_after_a_move("affine-home");
    let known = &clients[..10];
    let all = affine(&PODS_B);
    assert_eq!(tcp(&world, known, VIP), first);
    world.b().nft(&ruleset::update(&all, &affine(&[])).unwrap());
    let moved = tcp(&world, known, VIP);
    assert!(is_of(PODS, &moved));
    world.b().nft(&ruleset::update(&affine(&[]), &all).unwrap());
    assert_eq!(tcp(&world, known, VIP), moved);
    // Pods that serve only until they end take none back: their clients are this node's when the ready ones are here.
    let mut ending = all.clone();
    ending.services.values_mut().for_each(|local| local.last_resort = true);
    let (world, clients, _) = pair_after_a_move("affine-ends");
    world.b().nft(&ruleset::update(&all, &ending).unwrap());
    assert!(is_of(PODS, &tcp(&world, &clients[..10], VIP)));
}
