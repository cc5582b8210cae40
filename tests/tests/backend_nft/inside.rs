//! Clients inside without kube-proxy: this node translates for its own processes and pods, to pods of the whole cluster.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Instant;

use sheave_tests::lab::netns;
use socket2::{Domain, Socket, Type};
use speaker_core::backend::{Guard, Plan, ruleset};
use speaker_core::view::{Conditions, Endpoint, Prefix, ServiceAttributes, TrafficPolicy};

use super::world::{Connection, PATIENCE, PODS, PODS_B, VIP, World, plan_with};

/// Pods of both nodes, and the ways to them; the VIP is on no interface, and no node answers for it.
fn world(test: &str) -> World {
    let world = World::pair(test);
    let (a, b) = (&world.a, world.b());
    a.ip(&format!("route add 10.99.2.0/24 via {}\n", b.address()));
    b.ip(&format!("route add 10.99.1.0/24 via {}\n", a.address()));
    world
}

fn plan(pods: &[Ipv4Addr], attributes: ServiceAttributes) -> Plan {
    let node = |pod: &Ipv4Addr| if PODS.contains(pod) { "node" } else { "b" };
    let endpoint =
        |pod: &Ipv4Addr| Endpoint { address: *pod, node: Some(node(pod).into()), conditions: Conditions::READY };
    plan_with(pods.iter().map(endpoint).collect(), attributes)
}

fn attributes(traffic_policy: TrafficPolicy) -> ServiceAttributes {
    ServiceAttributes { traffic_policy, without_kube_proxy: true, ..ServiceAttributes::default() }
}

/// A connection of a process in this namespace, with this address, or with the one that its kernel chooses.
fn connect(namespace: &str, from: Option<Ipv4Addr>) -> std::io::Result<Connection> {
    let open = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        if let Some(from) = from {
            socket.bind(&SocketAddr::from((from, 0)).into())?;
        }
        let connected = socket.connect_timeout(&SocketAddr::from((VIP, 80)).into(), PATIENCE);
        Ok(connected.map(|()| TcpStream::from(socket)))
    };
    Connection::greet(netns::inside(namespace, open).expect("a socket")?)
}

/// Each pod that answers so many connections, and the address that it saw.
fn seen(namespace: &str, from: Option<Ipv4Addr>, times: usize) -> BTreeSet<(Ipv4Addr, Ipv4Addr)> {
    let v4 = |address: SocketAddr| match address {
        SocketAddr::V4(address) => *address.ip(),
        SocketAddr::V6(address) => panic!("{address}"),
    };
    let connection = |_| connect(namespace, from).expect("a connection");
    (0..times).map(connection).map(|connection| (v4(connection.pod), v4(connection.seen))).collect()
}

#[test]
fn the_node_and_its_pods_reach_pods_of_all_nodes() {
    let world = world("inside");
    let a = &world.a;
    let gateway = Ipv4Addr::new(10, 99, 1, 1);
    let pods = [PODS[0], PODS_B[0]];
    let beside_kube_proxy = plan(&pods, ServiceAttributes::default());
    a.apply(&beside_kube_proxy);
    assert!(connect(&a.name, None).is_err(), "without the rules no node answers for the VIP");

    // By an update. The node's own processes are masqueraded: by the address of the device that leads to the pod.
    let local = plan(&pods, attributes(TrafficPolicy::Local));
    a.nft(&ruleset::update(&beside_kube_proxy, &local).unwrap());
    let by_node: BTreeSet<_> = [(PODS[0], gateway), (PODS_B[0], a.address())].into();
    assert_eq!(seen(&a.name, None, TIMES), by_node);
    // A pod keeps its address, but where it reaches itself.
    assert_eq!(seen(&a.pods, Some(PODS[0]), TIMES), [(PODS[0], gateway), (PODS_B[0], PODS[0])].into());
    let mut open = connect(&a.pods, Some(PODS[0])).unwrap();
    assert!(open.is_alive() && open.carries(1 << 20));
    // It keeps no pod's address where kube-proxy keeps none.
    let cluster = plan(&pods, attributes(TrafficPolicy::Cluster));
    a.nft(&ruleset::update(&local, &cluster).unwrap());
    assert_eq!(seen(&a.pods, Some(PODS[1]), TIMES), by_node);
    assert_eq!(seen(&a.name, None, TIMES), by_node);
    assert!(open.is_alive(), "an open connection keeps its translation");
    // A pod goes, on another node; then the whole table is built anew.
    let one = plan(&pods[..1], attributes(TrafficPolicy::Cluster));
    a.nft(&ruleset::update(&cluster, &one).unwrap());
    assert_eq!(seen(&a.name, None, 8), [(PODS[0], gateway)].into());
    a.apply(&plan(&pods[1..], attributes(TrafficPolicy::Cluster)));
    assert_eq!(seen(&a.pods, Some(PODS[0]), 8), [(PODS_B[0], a.address())].into());
    // And back.
    a.apply(&one);
    a.nft(&ruleset::update(&one, &beside_kube_proxy).unwrap());
    assert!(connect(&a.name, None).is_err());
}

#[test]
fn a_client_outside_keeps_its_address_and_datagrams_are_served() {
    let world = world("insideout");
    let a = &world.a;
    a.apply(&plan(&[PODS[0]], attributes(TrafficPolicy::Cluster)));
    let outside = world.connect(VIP, 80).unwrap();
    assert_eq!((outside.pod.ip(), outside.seen.ip()), (PODS[0].into(), super::world::CLIENT.into()));
    let socket = netns::inside(&a.name, || Ok(UdpSocket::bind("0.0.0.0:0")?)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(b"hello", (VIP, 53)).unwrap();
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(from, SocketAddr::from((VIP, 53)));
    assert!(buffer[..length].ends_with(b" hello"));
}

#[test]
fn a_port_without_a_pod_is_refused_to_the_node_and_its_pods_at_once() {
    let world = world("insidenone");
    let a = &world.a;
    let served = plan(&[PODS_B[0]], attributes(TrafficPolicy::Cluster));
    a.apply(&served);
    let mut open = connect(&a.pods, Some(PODS[0])).unwrap();
    // The last pod goes, by an update; a Docker beside us drops what it does not know.
    let none = plan(&[], attributes(TrafficPolicy::Cluster));
    a.nft(&ruleset::update(&served, &none).unwrap());
    let docker = "chain forward { type filter hook forward priority 0; policy drop; ct state established accept; }";
    a.nft(&format!("table ip docker {{\n{docker}\n}}"));
    for (namespace, from) in [(&a.name, None), (&a.pods, Some(PODS[0]))] {
        let started = Instant::now();
        let refused = connect(namespace, from).err().map(|error| error.kind());
        assert_eq!(refused, Some(ErrorKind::ConnectionRefused), "{namespace}");
        let socket = netns::inside(namespace, || Ok(UdpSocket::bind((from.unwrap_or(Ipv4Addr::UNSPECIFIED), 0))?));
        let socket = socket.unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect((VIP, 53)).unwrap();
        // What is refused in hook output fails the very call too (EPERM).
        let sent = socket.send(b"hello").map(drop).or_else(|error| match error.kind() {
            ErrorKind::PermissionDenied if from.is_none() => Ok(()),
            _ => Err(error),
        });
        let refused = sent.and_then(|()| socket.recv(&mut [0; 64])).map_err(|error| error.kind());
        assert_eq!(refused, Err(ErrorKind::ConnectionRefused), "{namespace}");
        assert!(started.elapsed() < PATIENCE / 2, "{namespace}: late, {:?}", started.elapsed());
    }
    assert!(open.is_alive(), "what is open goes on");
    a.nft(&ruleset::update(&none, &served).unwrap());
    assert!(connect(&a.name, None).is_ok());
}

/// kube-proxy's chains come first (-100): what they translate goes where they say.
#[test]
fn kube_proxy_comes_first() {
    let world = world("insidefirst");
    let a = &world.a;
    a.apply(&plan(&[PODS_B[0]], attributes(TrafficPolicy::Cluster)));
    let translate = format!("ip daddr {VIP} tcp dport 80 dnat to {}:8080", PODS[1]);
    a.nft(&format!(
        "table ip stand-in {{
             chain output {{ type nat hook output priority -100; {translate}; }}
             chain prerouting {{ type nat hook prerouting priority -100; {translate}; }}
         }}"
    ));
    let pods = |from| seen(&a.name, from, 4).into_iter().map(|(pod, _)| pod).collect::<BTreeSet<_>>();
    assert_eq!(pods(None), [PODS[1]].into());
    a.nft("delete table ip stand-in");
    assert_eq!(pods(None), [PODS_B[0]].into());
}

#[test]
fn source_ranges_hold_for_clients_inside() {
    let world = world("insiderange");
    let a = &world.a;
    let admitted = Prefix { network: PODS[0], length: 32 };
    let ranges = Some(vec![admitted].into());
    a.apply(&plan(&[PODS_B[0]], ServiceAttributes { source_ranges: ranges, ..attributes(TrafficPolicy::Cluster) }));
    assert!(connect(&a.pods, Some(PODS[0])).is_ok());
    assert_eq!(a.guard(Guard::Source), 0);
    assert!(connect(&a.pods, Some(PODS[1])).is_err() && connect(&a.name, None).is_err());
    assert!(a.guard(Guard::Source) >= 2, "{:?}", a.guards());
}

/// Of so many connections some go to each of two pods.
const TIMES: usize = 48;
