//! sessionAffinity ClientIP of a Service with many ports, which share its chains: named target ports, ports that some pods do not serve,
//! and changes in place.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::time::Instant;

use sheave_tests::lab::netns;
use speaker_core::attributes::AffinityTimeout;
use speaker_core::backend::affinity::ClientSet;
use speaker_core::backend::{Guard, Plan, ruleset};
use speaker_core::view::{Protocol, endpoints::service_key};

use crate::affinity::{affine, clients, pods, tcp, udp, update, world};
use crate::world::{Connection, OTHER_VIP, PATIENCE, VIP, World, answer_tcp, run_nft};

/// Service ports beside 80; the pods' own numbers are these and more.
const PORTS: [u16; 2] = [81, 82];

/// On which number the nth pod serves a port: two versions of a Deployment.
fn target(n: usize, port: u16) -> u16 {
    8000 + port + if n % 3 == 1 { 1000 } else { 0 }
}

/// The pods serve these ports too, each on the numbers of its version.
fn versions(test: &str) -> World {
    let world = world(test);
    for (n, pod) in pods(12).into_iter().enumerate() {
        for port in PORTS.into_iter().chain([83]) {
            let listen = || Ok(TcpListener::bind((pod, target(n, port)))?);
            answer_tcp(netns::inside(&world.a.pods, listen).unwrap());
        }
    }
    world
}

/// The Service with these ports beside 80 and UDP 53, on the first pods.
fn with_ports(count: u8, ports: &[u16]) -> Plan {
    let mut plan = affine(&pods(count));
    for vip in [VIP, OTHER_VIP] {
        let mut local = plan.services[&service_key(vip, 80, Protocol::Tcp)].clone();
        for port in ports {
            local.pods = pods(count).into_iter().enumerate().map(|(n, pod)| (pod, target(n, *port))).collect();
            plan.services.insert(service_key(vip, *port, Protocol::Tcp), local.clone());
        }
    }
    plan
}

fn connect(world: &World, client: Ipv4Addr, vip: Ipv4Addr, port: u16) -> Connection {
    world.connect_as(SocketAddrV4::new(client, 0), vip, port).unwrap()
}

/// Each client's pod at this port; it must be the pod's own number.
fn reached(world: &World, clients: &[Ipv4Addr], vip: Ipv4Addr, port: u16) -> Vec<IpAddr> {
    let pod = |client: &Ipv4Addr| {
        let pod = connect(world, *client, vip, port).pod;
        let n = pods(12).iter().position(|address| IpAddr::from(*address) == pod.ip()).unwrap();
        assert_eq!(pod, SocketAddr::new(pod.ip(), target(n, port)));
        pod.ip()
    };
    clients.iter().map(pod).collect()
}

/// The rest of each client's record in seconds, by pod.
fn records(world: &World, plan: &Plan) -> BTreeMap<Ipv4Addr, BTreeMap<Ipv4Addr, u64>> {
    let of_set = |set: &ClientSet| {
        let arguments = ["-j", "list", "set", "ip", ruleset::TABLE, &set.name()];
        let json: serde_json::Value = serde_json::from_str(&run_nft(&world.a.name, &arguments, "").unwrap()).unwrap();
        let set = json["nftables"].as_array().unwrap().iter().find_map(|item| item.get("set")).unwrap();
        let elements = set["elem"].as_array().into_iter().flatten().map(|element| &element["elem"]);
        elements.map(|one| (one["val"].as_str().unwrap().parse().unwrap(), one["expires"].as_u64().unwrap())).collect()
    };
    plan.client_sets().keys().map(|set| (set.pod, of_set(set))).collect()
}

/// In whose sets a client is.
fn recorded(world: &World, plan: &Plan, client: Ipv4Addr) -> Vec<(Ipv4Addr, u64)> {
    let sets = records(world, plan).into_iter();
    sets.filter_map(|(pod, clients)| Some((pod, *clients.get(&client)?))).collect()
}

#[test]
fn each_port_leads_to_the_clients_pod_on_the_pods_own_number() {
    let (world, clients) = (versions("named"), &clients()[..30]);
    let plan = with_ports(6, &PORTS);
    world.a.apply(&plan);
    let first = reached(&world, clients, VIP, 81);
    assert!(pods(6).iter().all(|pod| first.contains(&IpAddr::from(*pod))), "{first:?}");
    assert_eq!(reached(&world, clients, VIP, 82), first);
    assert_eq!(reached(&world, clients, OTHER_VIP, 82), first, "another address of the Service");
    assert_eq!((tcp(&world, clients, VIP), udp(&world, clients)), (first.clone(), first.clone()), "8080 and 5353");
    let known: usize = records(&world, &plan).values().map(BTreeMap::len).sum();
    assert_eq!(known, clients.len(), "each is recorded once");
    // The new pods' numbers, and the hash over twelve.
    update(&world, &plan, &with_ports(12, &PORTS));
    assert_eq!(reached(&world, clients, VIP, 81), first);
    // Without records: strangers go by hash over all, at every port alike.
    world.a.apply(&with_ports(12, &PORTS));
    let anew = reached(&world, clients, VIP, 82);
    assert_ne!(anew, first);
    assert_eq!(reached(&world, clients, VIP, 81), anew);
    assert_eq!(world.a.guard(Guard::Unrecorded), 0);
}

#[test]
fn a_port_that_some_pods_do_not_serve_renews_no_record_of_theirs() {
    let (world, clients) = (versions("subset"), &clients()[..30]);
    let whole = with_ports(6, &PORTS);
    let mut plan = whole.clone();
    let lacking = &pods(6)[..2];
    for vip in [VIP, OTHER_VIP] {
        let local = plan.services.get_mut(&service_key(vip, 82, Protocol::Tcp)).unwrap();
        local.pods.retain(|(pod, _)| !lacking.contains(pod));
    }
    world.a.apply(&plan);
    let first = reached(&world, clients, VIP, 81);
    // What is renewed has more than this.
    let text: Vec<String> =
        records(&world, &plan).iter().flat_map(|(pod, clients)| shortened(&plan, *pod, clients)).collect();
    world.a.nft(&text.concat());
    let elsewhere = reached(&world, clients, VIP, 82);
    for ((client, pod), other) in clients.iter().zip(&first).zip(&elsewhere) {
        let IpAddr::V4(own) = *pod else { unreachable!("IPv4") };
        assert_eq!(pod == other, !lacking.contains(&own), "{client}");
        assert!(lacking.iter().all(|pod| IpAddr::from(*pod) != *other), "{client}");
        let known = recorded(&world, &plan, *client);
        assert!(
            matches!(known[..], [(pod, left)] if pod == own && (left > SHORT) != lacking.contains(&own)),
            "{known:?}"
        );
    }
    assert_eq!(reached(&world, clients, OTHER_VIP, 82), elsewhere, "by hash, each time");
    assert_eq!(reached(&world, clients, VIP, 81), first);
    // In place: the port gets its pods, and loses them again.
    update(&world, &plan, &whole);
    assert_eq!(reached(&world, clients, VIP, 82), first);
    update(&world, &whole, &plan);
    assert_eq!(reached(&world, clients, VIP, 82), elsewhere);
    assert_eq!(reached(&world, clients, VIP, 81), first);
}

/// A transaction after which these clients of a pod have been silent for long.
fn shortened(plan: &Plan, pod: Ipv4Addr, clients: &BTreeMap<Ipv4Addr, u64>) -> Vec<String> {
    let set = plan.client_sets().into_keys().find(|set| set.pod == pod).unwrap().name();
    let line = |client| {
        let element = format!("element ip {} {set} {{ {client}", ruleset::TABLE);
        format!("delete {element} }}\nadd {element} timeout 10800s expires {SHORT}s }}\n")
    };
    clients.keys().map(line).collect()
}

/// Seconds: longer than a test takes.
const SHORT: u64 = 5000;

#[test]
fn ports_and_pods_come_and_go_in_place() {
    let (world, clients) = (versions("inplace"), &clients()[..30]);
    let mut plan = with_ports(6, &[81]);
    world.a.apply(&plan);
    let first = reached(&world, clients, VIP, 81);
    let mut open: Vec<Connection> = clients[..6].iter().map(|client| connect(&world, *client, VIP, 81)).collect();
    let mut change = |to: Plan, known: &[IpAddr], ports: &[u16], what: &str| {
        update(&world, &plan, &to);
        plan = to;
        for (client, pod) in clients.iter().zip(known) {
            let sets = recorded(&world, &plan, *client);
            assert!(
                matches!(sets[..], [(recorded, _)] if IpAddr::from(recorded) == *pod),
                "{what}: {client}: {sets:?}"
            );
        }
        for port in ports {
            assert_eq!(reached(&world, clients, VIP, *port), known, "{what}: port {port}");
        }
        assert_eq!(udp(&world, clients), known, "{what}: UDP");
        assert!(open.iter_mut().all(Connection::is_alive), "{what}");
    };
    change(with_ports(6, &[81, 82]), &first, &[81, 82], "a port more");
    change(with_ports(6, &[81, 82, 83]), &first, &[81, 82, 83], "another one");
    change(with_ports(6, &[82, 83]), &first, &[82, 83], "one less");
    change(with_ports(7, &[82, 83]), &first, &[82, 83], "a pod more");
    change(with_ports(9, &[81, 82, 83]), &first, &[81, 82, 83], "two pods and a port more");
    change(with_ports(6, &[81]), &first, &[81], "three pods and two ports less");
    // The pods of other clients go: theirs stay.
    let stay: Vec<usize> =
        (0..clients.len()).filter(|i| pods(4).iter().any(|pod| IpAddr::from(*pod) == first[*i])).collect();
    let fewer = with_ports(4, &[81]);
    update(&world, &plan, &fewer);
    let moved = reached(&world, clients, VIP, 81);
    assert!(stay.iter().all(|i| moved[*i] == first[*i]) && moved != first, "{first:?} {moved:?}");
    update(&world, &fewer, &plan);
    assert_eq!(reached(&world, clients, VIP, 81), moved, "those that moved stay where they are");
    assert_eq!(world.connect(VIP, 82).err().map(|error| error.kind()), Some(std::io::ErrorKind::ConnectionRefused));
    assert!(open.iter_mut().all(Connection::is_alive));
}

fn with_timeout(plan: &Plan, seconds: i64) -> Plan {
    let mut plan = plan.clone();
    let timeout = AffinityTimeout::new(seconds).unwrap();
    plan.services.values_mut().for_each(|local| local.attributes.affinity_timeout = timeout);
    plan
}

#[test]
fn a_timeout_changed_in_place_counts_from_a_clients_next_connection() {
    let (world, clients) = (versions("timeout"), &clients()[..10]);
    let plans = [10_800, 600, 1, 10_800].map(|seconds| with_timeout(&with_ports(6, &PORTS), seconds));
    let [long, short, shortest, again] = &plans;
    world.a.apply(long);
    let first = reached(&world, clients, VIP, 81);
    let left = |plan, client| recorded(&world, plan, client).first().map(|(_, left)| *left);
    update(&world, long, short);
    assert!(clients.iter().all(|client| left(short, *client) > Some(600)), "records live on");
    assert_eq!(reached(&world, &clients[..5], VIP, 82), first[..5]);
    for (i, client) in clients.iter().enumerate() {
        let left = left(short, *client).expect("a record");
        assert_eq!(left <= 600, i < 5, "the new timeout is that of who connects");
    }
    update(&world, short, shortest);
    assert_eq!(reached(&world, &clients[..2], VIP, 81), first[..2]);
    let begun = Instant::now();
    while clients[..2].iter().any(|client| left(shortest, *client).is_some()) {
        assert!(begun.elapsed() < 5 * PATIENCE, "a record of one second lives on");
    }
    assert!(clients[2..].iter().all(|client| left(shortest, *client).is_some()), "who has not connected since");
    update(&world, shortest, again);
    assert!(left(again, clients[2]).is_some_and(|left| left <= 600));
    assert_eq!(reached(&world, &clients[2..], VIP, 82), first[2..]);
    assert!(clients[2..].iter().all(|client| left(again, *client) > Some(600)), "a longer one too");
}
