//! Path MTU discovery through a router with a small MTU: the router's ICMP error goes to the VIP, and has to reach the pod.
//!
//! ```text
//! far client 198.51.100.7 --- MTU 1280 --- router 192.0.2.5 (the client of the other tests) -+- node a: what is for a VIP comes in here
//!                                                                                            +- node b: its pod has the connection
//! ```

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};

use ebpf_common::{Row, Verdict};
use sheave_tests::lab::netns;
use speaker_core::view::Affinity;

use crate::packet_path::PacketPath;
use crate::world::{A, B, Connection, PATIENCE, PODS, PODS_B, VIP, World, plan};

const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const MTU: u32 = 1280;

/// A client behind a router, its namespace gone with the value.
struct Far {
    name: String,
}

impl Far {
    fn new(world: &World) -> Self {
        let far = Self { name: format!("{}-far", world.client) };
        netns::create(&far.name).expect("a namespace");
        let link = format!("link add far0 type veth peer name eth0 netns {}\n", far.name);
        netns::ip(&world.client, &format!("{link}addr add 198.51.100.1/24 dev far0\nlink set far0 mtu {MTU} up\n"))
            .unwrap();
        netns::sysctl(&world.client, &[("ipv4/ip_forward", "1")]).unwrap();
        // The client announces segments as large as its own link would not carry, as one does that is further away from the small MTU.
        let route = "route add default via 198.51.100.1 advmss 1460\n";
        netns::ip(&far.name, &format!("addr add {FAR}/24 dev eth0\nlink set eth0 mtu {MTU} up\n{route}")).unwrap();
        for node in [&world.a, world.b()] {
            node.ip("route add 198.51.100.0/24 via 192.0.2.5\n");
        }
        far
    }

    fn connect(&self) -> Connection {
        let connect = || Ok(TcpStream::connect_timeout(&SocketAddr::from((VIP, 80)), PATIENCE)?);
        Connection::greet(netns::inside(&self.name, connect).expect("a connection")).expect("the pod's first line")
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = netns::delete(&self.name);
    }
}

/// What the pods' kernel has learned of the path to the far client.
fn path_mtu(world: &World) -> Option<u64> {
    let read = || netns::run("ip", &["-j", "route", "get", &FAR.to_string()]);
    let json = netns::inside(&world.b().pods, read).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json[0]["metrics"][0]["mtu"].as_u64()
}

#[test]
fn an_error_of_a_router_reaches_the_pod_at_another_node() {
    let world = World::pair("pmtu");
    let [a, b] = PacketPath::pair(&world, Row::new(B, [A, 0, 0]));
    world.a.apply(&plan(&PODS, Affinity::None));
    world.b().apply(&plan(&PODS_B, Affinity::None));
    let far = Far::new(&world);

    // The errors are not there for show: without them the transfer ends where segments become larger than the MTU.
    world.client_nft("table ip mute { chain output { type filter hook output priority 0; icmp type destination-unreachable counter drop; }; }");
    assert!(!far.connect().carries(1 << 20));
    assert_eq!((path_mtu(&world), a.count(Verdict::IcmpPeer)), (None, 0));
    world.client_nft("delete table ip mute");

    let mut connection = far.connect();
    assert_eq!(connection.seen.ip(), FAR);
    assert!(connection.carries(1 << 20));
    assert_eq!(path_mtu(&world), Some(MTU.into()));
    assert!(a.count(Verdict::IcmpPeer) > 0 && a.count(Verdict::IcmpLocal) == 0);
    assert_eq!(b.count(Verdict::IcmpPeer), 0, "it came in at node a");
}

/// The router makes fragments of fragments. A reply that fits the pod's own link may not be fragmented (Linux sets "don't fragment"): the
/// first one is lost, and the pod's kernel learns from the error.
#[test]
fn large_datagrams_pass_a_router_with_a_small_mtu() {
    let world = World::pair("pmtu-udp");
    let [a, _b] = PacketPath::pair(&world, Row::new(B, [0; 3]));
    world.b().apply(&plan(&PODS_B, Affinity::None));
    let far = Far::new(&world);
    let udp = netns::inside(&far.name, || Ok(UdpSocket::bind((FAR, 0))?)).unwrap();
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = vec![0; 65_536];
    udp.send_to("x".repeat(1400).as_bytes(), (VIP, 53)).unwrap();
    assert_eq!(udp.recv(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!((path_mtu(&world), a.count(Verdict::IcmpPeer)), (Some(MTU.into()), 1));
    for bytes in [1400, 3000, 8000] {
        let sent = "x".repeat(bytes);
        udp.send_to(sent.as_bytes(), (VIP, 53)).unwrap();
        let (length, from) = udp.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{bytes}: {error}"));
        assert_eq!(from, SocketAddr::from((VIP, 53)));
        assert!(buffer[..length].ends_with(sent.as_bytes()), "{bytes}");
    }
    assert_eq!(a.count(Verdict::FragmentWithoutFirst), 0);
}
