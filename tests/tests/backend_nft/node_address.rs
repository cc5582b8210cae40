//! Addresses of nodes with real packets: a Service's ports are its pods', on whichever node, and all the rest stays the node's own.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener};

use ebpf_common::Mark;
use pnet_packet::tcp::TcpFlags;
use sheave_tests::lab::netns;
use socket2::{Domain, Protocol, Socket, Type};
use speaker_core::backend::{Guard, Plan, ruleset};
use speaker_core::view::Affinity;

use crate::packet::{Reply, icmp_echo, receive, tcp_segment};
use crate::world::{ADDRESS, CLIENT, PATIENCE, PODS, PODS_B, World, plan};

/// A flow of no node ends on node b, which sends nothing back.
fn pair(test: &str) -> World {
    let world = World::pair(test);
    world.a.apply(&plan(&PODS[..1], Affinity::None));
    world.b().apply(&plan(&PODS_B[..1], Affinity::None));
    world
}

#[test]
fn the_ports_of_the_service_are_its_pods_and_the_others_the_nodes() {
    let world = pair("node-ports");
    world.a.serve_on_node(22);
    let mut connection = world.connect(ADDRESS, 80).unwrap();
    assert_eq!((connection.pod.ip(), connection.seen), (PODS[0].into(), connection.local()));
    assert!(connection.is_alive() && connection.carries(1 << 20));
    let udp = world.client_udp();
    world.a.mark(Mark::LOCAL);
    udp.send_to(b"hello", (ADDRESS, 53)).unwrap();
    let (length, from) = udp.recv_from(&mut [0; 64]).unwrap();
    assert_eq!((length > 0, from), (true, SocketAddr::from((ADDRESS, 53))));

    assert_eq!(world.connect(ADDRESS, 22).unwrap().pod, SocketAddr::from((ADDRESS, 22)));
    let refused = world.connect(ADDRESS, 23).err().map(|error| error.kind());
    assert_eq!(refused, Some(ErrorKind::ConnectionRefused), "by the node's kernel");
    let icmp = world.client_raw(Protocol::ICMPV4);
    icmp.send_to(&icmp_echo(), &SocketAddr::from((ADDRESS, 0)).into()).unwrap();
    assert!(receive(&icmp, ADDRESS).is_some(), "a ping is the node's to answer");
    assert!(world.a.guards().is_empty(), "{:?}", world.a.guards());
}

/// Its segments come to node a, whose address they name.
#[test]
fn a_connection_whose_pod_is_on_another_node_goes_on() {
    let world = pair("node-other");
    let route = |via: &str| netns::ip(&world.client, &format!("route {via}\n")).unwrap();
    route(&format!("add {ADDRESS}/32 via 192.0.2.12"));
    let mut connection = world.connect(ADDRESS, 80).unwrap();
    assert_eq!((connection.pod.ip(), connection.seen), (PODS_B[0].into(), connection.local()));
    route(&format!("del {ADDRESS}/32"));
    assert!(connection.is_alive() && connection.carries(1 << 20));
    assert!(world.a.guard(Guard::Forwarded) > 20);
    assert_eq!((world.a.conntrack_entries(), world.b().guards().len()), (0, 0));
}

/// Programs of the client that send back what they get.
fn echo_at_client(world: &World, ports: &[u16]) {
    for port in ports {
        let server = netns::inside(&world.client, || Ok(TcpListener::bind((CLIENT, *port))?)).unwrap();
        std::thread::spawn(move || {
            for stream in server.incoming().flatten() {
                std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
    }
}

/// From this address of the namespace to a port of the client.
fn connect_out(namespace: &str, from: SocketAddrV4, to: u16) -> Socket {
    netns::inside(namespace, || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&SocketAddrV4::new(CLIENT, to).into(), PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    })
    .unwrap()
}

fn assert_echoed(socket: &mut Socket) {
    let mut echoed = [0; 5];
    socket.write_all(b"hello").unwrap();
    socket.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"hello");
}

/// The node connects from the Service's port, and so does a pod that it masquerades. What comes back is not the Service's.
#[test]
fn flows_of_the_node_itself_from_that_port_go_on() {
    let world = pair("node-own");
    echo_at_client(&world, &[9999, 9998]);
    // Another port of the client than the node's own: else both flows would be the same.
    let masquerade = format!("ip saddr {} ip daddr {CLIENT} tcp dport 9998 masquerade to :80", PODS[0]);
    world.a.nft(&format!(
        "table ip outward {{ chain out {{ type nat hook postrouting priority srcnat; policy accept; {masquerade}; }}; }}"
    ));
    let (own, pod) = (SocketAddrV4::new(ADDRESS, 80), SocketAddrV4::new(PODS[0], 0));
    for (namespace, from, to) in [(&world.a.name, own, 9999), (&world.a.pods, pod, 9998)] {
        assert_echoed(&mut connect_out(namespace, from, to));
    }
    assert!(world.a.guards().is_empty(), "{:?}", world.a.guards());
}

/// What the packet path marks because its client is not admitted (any more) ends, wherever its pod is, but for flows of the node itself.
#[test]
fn clients_outside_the_source_ranges_are_cut_off() {
    let world = pair("node-denied");
    echo_at_client(&world, &[9999]);
    let mut own = connect_out(&world.a.name, SocketAddrV4::new(ADDRESS, 80), 9999);
    let mut here = world.connect(ADDRESS, 80).unwrap();
    let route = |via: &str| netns::ip(&world.client, &format!("route {via}\n")).unwrap();
    route(&format!("add {ADDRESS}/32 via 192.0.2.12"));
    let mut there = world.connect(ADDRESS, 80).unwrap();
    route(&format!("del {ADDRESS}/32"));
    assert_eq!((here.pod.ip(), there.pod.ip()), (PODS[0].into(), PODS_B[0].into()));
    world.a.mark(Mark::SOURCE_DENIED);
    assert_echoed(&mut own);
    assert!(world.a.guards().is_empty(), "{:?}", world.a.guards());
    for (count, connection) in (1..).zip([&mut here, &mut there]) {
        assert_eq!(connection.fate(), Some(ErrorKind::ConnectionReset));
        assert_eq!(world.a.guard(Guard::Source), count);
    }
    let udp = world.client_udp();
    udp.send_to(b"hello", (ADDRESS, 53)).unwrap();
    assert_eq!(udp.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!((world.a.guard(Guard::Source), world.a.guards().len()), (3, 1), "{:?}", world.a.guards());
    assert_echoed(&mut own);
}

#[test]
fn what_no_node_knows_is_refused_once_from_the_address() {
    let world = pair("node-refused");
    let tcp = world.client_raw(Protocol::TCP);
    tcp.send_to(&tcp_segment(40001, (ADDRESS, 80), TcpFlags::ACK, true), &SocketAddr::from((ADDRESS, 0)).into())
        .unwrap();
    assert_eq!(receive(&tcp, ADDRESS), Some(Reply::Tcp { from: 80, to: 40001, flags: TcpFlags::RST }));
    assert_eq!((world.a.guards().len(), world.b().guard(Guard::Reset)), (1, 1), "{:?}", world.a.guards());
    assert_eq!(world.b().travelled().values().sum::<u64>(), 1);
    assert_eq!((world.a.conntrack_entries(), world.b().conntrack_entries()), (0, 0));

    // No pod anywhere. A process that has come to listen there is not reached either, until the Service is gone.
    let nobody = plan(&[], Affinity::None);
    world.a.apply(&nobody);
    world.a.serve_on_node(80);
    let refused = world.connect(ADDRESS, 80).err().map(|error| error.kind());
    assert_eq!((refused, world.a.guard(Guard::Reset)), (Some(ErrorKind::ConnectionRefused), 1));
    let gone = Plan { node_ports: [].into(), services: [].into(), ..nobody.clone() };
    world.a.nft(&ruleset::update(&nobody, &gone).expect("a difference"));
    let mut own = world.connect(ADDRESS, 80).unwrap();
    assert_eq!(own.pod, SocketAddr::from((ADDRESS, 80)));
    // The other way round: its connections go on, new ones are the pods'.
    let both = plan(&PODS[..1], Affinity::None);
    world.a.nft(&ruleset::update(&gone, &both).expect("a difference"));
    assert!(own.is_alive());
    assert_eq!(world.connect(ADDRESS, 80).unwrap().pod.ip(), PODS[0]);
}
