//! sessionAffinity ClientIP at the backend: a client keeps its pod while the pod serves here, through every port, for the timeout.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use speaker_core::attributes::AffinityTimeout;
use speaker_core::backend::affinity::MAX_CLIENTS;
use speaker_core::backend::{Guard, Plan, ruleset};
use speaker_core::view::Affinity;

use crate::world::{OTHER_VIP, PODS, VIP, World, plan};

/// Node a with so many pods more than it has, and a client with a hundred addresses.
fn world(test: &str) -> World {
    let world = World::new(test);
    world.a.add_pods(&pods(12)[PODS.len()..]);
    world.add_clients(&clients());
    world
}

/// The first of node a.
fn pods(count: u8) -> Vec<Ipv4Addr> {
    (2..2 + count).map(|last| Ipv4Addr::new(10, 99, 1, last)).collect()
}

fn clients() -> Vec<Ipv4Addr> {
    (100..200).map(|last| Ipv4Addr::new(192, 0, 2, last)).collect()
}

fn affine(pods: &[Ipv4Addr]) -> Plan {
    plan(pods, Affinity::ClientIp)
}

/// The pods that these clients get, in their order.
fn tcp(world: &World, clients: &[Ipv4Addr], vip: Ipv4Addr) -> Vec<IpAddr> {
    let pod = |client: &Ipv4Addr| world.connect_as(SocketAddrV4::new(*client, 0), vip, 80).unwrap().pod.ip();
    clients.iter().map(pod).collect()
}

fn udp(world: &World, clients: &[Ipv4Addr]) -> Vec<IpAddr> {
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
fn update(world: &World, from: &Plan, to: &Plan) {
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
