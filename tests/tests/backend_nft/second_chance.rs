//! The second chance: two nodes, and packets of flows that the first one does not know. A stand-in marks packets as XDP would.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use ebpf_common::{FlowTuple, Mark, NextHop};
use pnet_packet::tcp::TcpFlags;
use socket2::{Protocol, Socket};
use speaker_core::backend::{Guard, Plan, ruleset};
use speaker_core::view::Affinity;

use crate::PROXY;
use crate::packet::{Reply, icmp_error, initial_sequence, numbered_segment, receive, tcp_segment};
use crate::world::{A, B, CLIENT, PATIENCE, PODS, PODS_B, VIP, World, plan};

const FIRST_B: Mark = Mark { next_hop: NextHop::Alternate(1), no_reset: false, slot: B };

/// Both nodes have pods; packets go to node a, whose alternate is node b.
fn pair(test: &str) -> World {
    let world = World::pair(test);
    world.a.apply(&plan(&PODS, Affinity::None));
    world.b().apply(&plan(&PODS_B, Affinity::None));
    world
}

/// What the client does while its packets go to node b.
fn at_b<T>(world: &World, act: impl FnOnce() -> T) -> T {
    world.dispatch_to(world.b());
    let result = act();
    world.dispatch_to(&world.a);
    result
}

fn counts<const N: usize>(counts: [(&str, u64); N]) -> BTreeMap<String, u64> {
    counts.map(|(name, packets)| (name.to_owned(), packets)).into()
}

fn send(socket: &Socket, bytes: &[u8]) {
    socket.send_to(bytes, &SocketAddr::from((VIP, 0)).into()).unwrap();
}

/// The pod that answers, if one does in time.
fn query(udp: &UdpSocket) -> std::io::Result<String> {
    let mut buffer = [0; 64];
    let length = udp.send(b"x").and_then(|_| udp.recv(&mut buffer))?;
    let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
    Ok(answer.split(' ').next().unwrap_or_default().to_owned())
}

/// A UDP flow of node a, and its pod.
fn udp_flow(world: &World) -> (UdpSocket, String) {
    let udp = world.client_udp();
    udp.connect((VIP, 53)).unwrap();
    world.a.mark(Mark::LOCAL);
    let pod = query(&udp).unwrap();
    world.a.mark(FIRST_B);
    (udp, pod)
}

/// The flags of the answer of a VIP's port 80 to the port that single segments are sent from; None: silence.
fn answer(tcp: &Socket) -> Option<u8> {
    loop {
        if let Reply::Tcp { from: 80, to: 40001, flags } = receive(tcp, VIP)? {
            return Some(flags);
        }
    }
}

fn wait_for(mut happened: impl FnMut() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < patience, "it did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn no_entries(world: &World) -> bool {
    world.a.conntrack_entries() == 0 && world.b().conntrack_entries() == 0
}

#[test]
fn a_flow_of_another_node_goes_on() {
    let world = pair("second-chance");
    let mut connection = at_b(&world, || world.connect(VIP, 80).unwrap());
    let udp = world.client_udp();
    udp.connect((VIP, 53)).unwrap();
    at_b(&world, || query(&udp).unwrap());
    assert!(PODS_B.map(IpAddr::from).contains(&connection.pod.ip()));

    assert!(connection.is_alive() && connection.carries(1 << 20));
    query(&udp).unwrap();
    assert!(world.a.guard(Guard::Forwarded) > 20);
    assert!(world.a.guards().keys().eq(["second_chance"]) && world.b().travelled().keys().eq(["hop1"]));
    assert_eq!(world.b().guards(), counts([]));
    assert_eq!(world.a.conntrack_entries(), 0, "nothing is remembered of what was handed on");
}

#[test]
fn a_flow_of_this_node_stays() {
    let world = pair("stays");
    let mut connection = world.connect(VIP, 80).unwrap();
    let (udp, _) = udp_flow(&world);
    query(&udp).unwrap();
    assert!(connection.is_alive() && connection.carries(1 << 20));
    assert_eq!((world.a.guards(), world.b().travelled()), (counts([]), counts([])));
}

/// kube-proxy makes conntrack delete the flows of pods that do not serve by its view.
#[test]
fn a_pinned_flow_finds_its_pod_again_without_its_entry() {
    let world = pair("pinned");
    let (udp, pod) = udp_flow(&world);
    let address = PODS.into_iter().find(|address| address.to_string() == pod).expect("a pod of node a");
    let port = udp.local_addr().unwrap().port();
    let tuple = FlowTuple {
        src: CLIENT.octets(),
        dst: VIP.octets(),
        src_port: port.to_be_bytes(),
        dst_port: 53_u16.to_be_bytes(),
        proto: 17,
    };
    world.a.flush_conntrack();
    assert!(PODS_B.map(|pod| pod.to_string()).contains(&query(&udp).unwrap()), "no node knows the flow");

    // No pod here serves, by the status in Kubernetes.
    let silent = plan(&[], Affinity::None);
    let udp_pins = Plan { udp_pins: [(tuple, (address, 5353))].into(), ..silent.clone() };
    world.a.nft(&ruleset::replace(&silent));
    world.a.nft(&ruleset::update(&silent, &udp_pins).expect("a difference"));
    assert_eq!(query(&udp).unwrap(), pod);
    let other = world.client_udp();
    other.connect((VIP, 53)).unwrap();
    assert!(PODS_B.map(|pod| pod.to_string()).contains(&query(&other).unwrap()), "another flow");
    // It has its entry again.
    world.a.nft(&ruleset::update(&udp_pins, &silent).expect("a difference"));
    assert_eq!(query(&udp).unwrap(), pod);
}

#[test]
fn what_no_node_knows_is_reset_in_the_end() {
    let world = pair("nobody");
    let tcp = world.client_raw(Protocol::TCP);
    for (flags, expected) in [
        (TcpFlags::ACK, TcpFlags::RST),
        (TcpFlags::ACK | TcpFlags::PSH, TcpFlags::RST),
        // Conntrack calls it invalid, which for once means nothing.
        (TcpFlags::ACK | TcpFlags::FIN, TcpFlags::RST),
        (TcpFlags::FIN, TcpFlags::RST | TcpFlags::ACK),
    ] {
        send(&tcp, &tcp_segment(40001, (VIP, 80), flags, true));
        assert_eq!(answer(&tcp), Some(expected), "{flags:#x}");
    }
    assert_eq!(world.a.guards(), counts([("second_chance", 4)]));
    assert_eq!((world.b().travelled(), world.b().guards()), (counts([("hop1", 4)]), counts([("guard_reset", 4)])));
    assert!(no_entries(&world));
}

#[test]
fn what_is_invalid_where_its_search_begins_is_never_answered() {
    let world = pair("no_reset");
    let tcp = world.client_raw(Protocol::TCP);
    // A reset, no flags at all, a SYN-ACK, a checksum that is wrong.
    for flags in [TcpFlags::RST, TcpFlags::RST | TcpFlags::ACK, 0, TcpFlags::SYN | TcpFlags::ACK] {
        send(&tcp, &tcp_segment(40001, (VIP, 80), flags, true));
    }
    send(&tcp, &tcp_segment(40001, (VIP, 80), TcpFlags::ACK, false));
    send(&world.client_raw(Protocol::ICMPV4), &icmp_error((VIP, 80), 40001));
    assert_eq!(answer(&tcp), None);
    assert_eq!(world.a.guards(), counts([("second_chance", 6)]));
    assert_eq!(world.b().travelled(), counts([("no_reset1", 6)]));
    assert_eq!(world.b().guards(), counts([("second_chance_no_reset", 6)]));

    // Beyond the window of a flow that this node has: it goes round and ends, and the flow goes on.
    let mut connection = world.connect_from(40002, VIP, 80).unwrap();
    let beyond = initial_sequence(&tcp, VIP, 40002).wrapping_add(1 << 30);
    send(&tcp, &numbered_segment(40002, (VIP, 80), TcpFlags::ACK, beyond, true));
    wait_for(|| world.b().guard(Guard::NoReset) == 7);
    assert!(connection.is_alive());
}

/// With `nf_conntrack_tcp_loose` off every segment of an unknown flow is invalid: silence instead of a reset. Hence
/// `Sysctls::require_tcp_loose`.
#[test]
fn without_loose_pickup_flows_are_found_but_not_reset() {
    let world = pair("loose");
    let mut connection = at_b(&world, || world.connect(VIP, 80).unwrap());
    world.a.sysctl("netfilter/nf_conntrack_tcp_loose", "0").unwrap();
    assert!(connection.is_alive());
    let tcp = world.client_raw(Protocol::TCP);
    send(&tcp, &tcp_segment(40001, (VIP, 80), TcpFlags::ACK, true));
    send(&tcp, &tcp_segment(40001, (VIP, 80), TcpFlags::ACK | TcpFlags::FIN, true));
    assert_eq!(answer(&tcp), Some(TcpFlags::RST), "the FIN");
    assert_eq!(answer(&tcp), None, "the ACK");
    assert_eq!(world.b().guard(Guard::NoReset), 1);
}

#[test]
fn resets_and_icmp_errors_reach_the_pod() {
    let world = pair("errors");
    let connection = at_b(&world, || world.connect(VIP, 80).unwrap());
    let port = connection.local().port();
    send(&world.client_raw(Protocol::ICMPV4), &icmp_error((VIP, 80), port));
    assert_eq!((world.b().travelled(), world.b().guards()), (counts([("no_reset1", 1)]), counts([])));
    connection.abort();
    assert_eq!(world.b().travelled(), counts([("no_reset1", 2)]));
    assert_eq!((world.b().guards(), world.a.conntrack_entries()), (counts([]), 0));
}

#[test]
fn a_udp_flow_that_no_node_knows_begins_at_the_primary() {
    let world = pair("home");
    world.b().mark_searching(Mark::LOCAL, Mark { next_hop: NextHop::ToPrimary, no_reset: false, slot: A });
    let udp = world.client_udp();
    udp.connect((VIP, 53)).unwrap();
    query(&udp).unwrap();
    assert_eq!((world.b().travelled(), world.a.travelled()), (counts([("hop1", 1)]), counts([("hop4", 1)])));
    query(&udp).unwrap();
    assert_eq!(world.b().travelled(), counts([("hop1", 1)]), "known from the first packet on");
    assert_eq!(world.b().conntrack_entries(), 0);

    // No pod at home: refused by the primary.
    world.a.apply(&plan(&[], Affinity::None));
    let udp = world.client_udp();
    udp.connect((VIP, 53)).unwrap();
    assert_eq!(query(&udp).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(world.a.guards(), counts([("second_chance", 1), ("guard_unreachable", 1)]));
}

/// A pod that only listens: its flows count as known before it has answered.
#[test]
fn a_udp_flow_without_an_answer_is_known() {
    let world = pair("listener");
    world.b().cut_pods_off();
    let udp = world.client_udp();
    udp.connect((VIP, 53)).unwrap();
    at_b(&world, || udp.send(b"x").unwrap());
    let (entries, guards) = (world.b().conntrack_entries(), world.b().guards());
    udp.send(b"x").unwrap();
    assert_eq!(world.b().travelled(), counts([("hop1", 1)]));
    assert_eq!((world.b().conntrack_entries(), world.b().guards()), (entries, guards));
}

/// The dispatcher (node b here) may know flows that this node's old rows do not name; it resets what it does not know.
#[test]
fn a_dispatched_segment_of_no_flow_goes_back() {
    let world = pair("back");
    world.a.mark(Mark { next_hop: NextHop::ToDispatcher, no_reset: false, slot: B });
    let mut connection = at_b(&world, || world.connect(VIP, 80).unwrap());
    assert!(connection.is_alive());
    assert!(world.b().travelled()["hop1"] > 0 && world.a.conntrack_entries() == 0);
    let tcp = world.client_raw(Protocol::TCP);
    send(&tcp, &tcp_segment(40001, (VIP, 80), TcpFlags::ACK, true));
    assert_eq!(answer(&tcp), Some(TcpFlags::RST));
    assert_eq!(world.b().guards(), counts([("guard_reset", 1)]));
    // A flow of this node is held by nothing.
    world.a.nft(&format!("delete table ip {}", ruleset::TABLE));
    world.a.apply(&plan(&PODS, Affinity::None));
    assert!(world.connect(VIP, 80).unwrap().is_alive());
}

/// kube-proxy's rules are there, and would make the packet a flow of one of its own pods, which would answer with a reset.
#[test]
fn without_our_table_no_node_takes_flows_of_another() {
    let world = pair("gap");
    world.a.nft(PROXY);
    let mut connection = at_b(&world, || world.connect(VIP, 80).unwrap());
    assert!(connection.is_alive());
    world.a.nft(&format!("delete table ip {}", ruleset::TABLE));
    let sending = std::thread::spawn(move || connection.is_alive());
    wait_for(|| world.a.counters("proxy")["nat"] > 0);
    world.a.apply(&plan(&PODS, Affinity::None));
    assert!(sending.join().unwrap(), "it is sent again, and finds its way");
    assert_eq!((world.a.conntrack_entries(), world.b().guards()), (0, counts([])));
}

#[test]
fn a_search_of_several_hops_counts_them() {
    let world = pair("hops");
    world.b().mark_searching(Mark::LOCAL, Mark { next_hop: NextHop::Alternate(2), no_reset: false, slot: A });
    let tcp = world.client_raw(Protocol::TCP);
    send(&tcp, &tcp_segment(40001, (VIP, 80), TcpFlags::ACK, true));
    assert_eq!(answer(&tcp), Some(TcpFlags::RST));
    send(&tcp, &tcp_segment(40001, (VIP, 80), TcpFlags::RST, true));
    assert_eq!(answer(&tcp), None);
    assert_eq!(world.b().travelled(), counts([("hop1", 1), ("no_reset1", 1)]));
    assert_eq!(world.a.travelled(), counts([("hop2", 1), ("no_reset2", 1)]));
    let end = counts([("second_chance", 2), ("guard_reset", 1), ("second_chance_no_reset", 1)]);
    assert_eq!(world.a.guards(), end);

    // No reset to the last: what was invalid stays so on its way to the primary.
    world.b().mark_searching(Mark::LOCAL, Mark { next_hop: NextHop::ToPrimary, no_reset: false, slot: A });
    send(&tcp, &tcp_segment(40001, (VIP, 80), TcpFlags::RST, true));
    assert_eq!(answer(&tcp), None);
    assert_eq!(world.a.travelled(), counts([("hop2", 1), ("no_reset2", 1), ("no_reset4", 1)]));
    assert!(no_entries(&world));
}

/// A retransmitted SYN goes by a newer ring to node a, whose pod answers too. The client confirms data of node b's pod: to node
/// a's conntrack that is over or under the numbers of its half-open entry, at random. Either way it is none of its own.
#[test]
fn a_repeated_syn_at_another_node_does_no_harm() {
    let world = pair("halfopen");
    for port in 40001..=40008 {
        let tcp = world.client_raw(Protocol::TCP);
        let mut connection = at_b(&world, || world.connect_from(port, VIP, 80).unwrap());
        let sequence = initial_sequence(&tcp, VIP, port);
        send(&tcp, &numbered_segment(port, (VIP, 80), TcpFlags::SYN, sequence, true));
        assert_eq!(initial_sequence(&tcp, VIP, port), sequence, "the pod of node a has answered");
        assert_eq!(connection.fate(), None, "{port}");
        assert!(connection.carries(100_000));
        // The pod of node a repeats its answer after a second.
        if port == 40001 {
            std::thread::sleep(Duration::from_millis(1200));
            assert!(connection.is_alive());
        }
    }
    assert!(world.a.guards().keys().eq(["second_chance"]));
    assert_eq!(world.b().guards(), counts([]));
    assert!(world.b().travelled().keys().eq(["hop1", "no_reset1"]), "over and under: {:?}", world.b().travelled());
}

/// The same at the node that the client did confirm: the other one's entry does not matter.
#[test]
fn a_repeated_syn_may_also_win() {
    let world = pair("wins");
    let tcp = world.client_raw(Protocol::TCP);
    // Node b's pod gets a SYN and its answer is lost on the way to the client, who begins again at node a.
    world.client_nft(
        "table netdev loss { chain ingress { type filter hook ingress device \"node2\" priority 0; ip saddr 192.0.2.200 drop; }; }",
    );
    at_b(&world, || send(&tcp, &tcp_segment(40001, (VIP, 80), TcpFlags::SYN, true)));
    wait_for(|| world.b().conntrack_entries() == 1);
    world.client_nft("delete table netdev loss");
    let mut connection = world.connect_from(40001, VIP, 80).unwrap();
    std::thread::sleep(Duration::from_millis(1200));
    assert!(connection.is_alive() && connection.carries(100_000));
    assert_eq!((world.a.guards(), world.b().guards()), (counts([]), counts([])));
}

#[test]
fn without_marks_only_a_syn_begins_a_flow() {
    let world = pair("unmarked");
    let mut connection = world.connect(VIP, 80).unwrap();
    let mut elsewhere = at_b(&world, || world.connect(VIP, 80).unwrap());
    world.a.unmark();
    assert!(connection.is_alive());
    assert!(world.connect(VIP, 80).unwrap().is_alive());
    let entries = world.a.conntrack_entries();

    let tcp = world.client_raw(Protocol::TCP);
    for flags in [TcpFlags::ACK, TcpFlags::ACK | TcpFlags::FIN, TcpFlags::RST] {
        send(&tcp, &tcp_segment(40001, (VIP, 80), flags, true));
    }
    // No pod for this one.
    send(&tcp, &tcp_segment(40001, (VIP, 81), TcpFlags::SYN, true));
    assert_eq!(answer(&tcp), None);
    world.client_udp().send_to(b"x", (VIP, 53)).unwrap();
    assert_eq!(world.a.guards(), counts([("guard_unmarked", 5)]));
    assert_eq!(world.a.conntrack_entries(), entries);
    // Soon XDP is back: the flow of another node has got no reset.
    world.a.mark(FIRST_B);
    assert!(elsewhere.is_alive() && connection.is_alive());
}

/// Node b is no next hop once its slot is gone, and again when it is back; no update harms a flow. While the rules do not lead to it, its
/// flows wait, and a SYN does not.
#[test]
fn peers_come_and_go_and_flows_stay() {
    let world = pair("peers");
    let all = plan(&PODS, Affinity::None);
    let none = Plan { peers: BTreeMap::new(), ..all.clone() };
    let change = |from: &Plan, to: &Plan| world.a.nft(&ruleset::update(from, to).expect("a difference"));
    let mut here = world.connect(VIP, 80).unwrap();
    let mut there = at_b(&world, || world.connect(VIP, 80).unwrap());
    let tcp = world.client_raw(Protocol::TCP);

    change(&all, &none);
    assert!(here.is_alive());
    send(&tcp, &tcp_segment(40001, (VIP, 80), TcpFlags::ACK, true));
    assert_eq!(answer(&tcp), None);
    assert_eq!((world.a.guards(), world.b().travelled()), (counts([("second_chance_no_reset", 1)]), counts([])));
    let udp = world.client_udp();
    udp.connect((VIP, 53)).unwrap();
    at_b(&world, || query(&udp).unwrap());
    udp.send(b"x").unwrap();
    assert!(world.connect(VIP, 80).unwrap().is_alive());
    assert_eq!((world.a.guards(), world.a.conntrack_entries()), (counts([("second_chance_no_reset", 2)]), 2));
    let without = Plan { second_chance: false, ..all.clone() };
    change(&none, &without);
    send(&tcp, &tcp_segment(40001, (VIP, 80), TcpFlags::ACK, true));
    assert_eq!(answer(&tcp), Some(TcpFlags::RST));
    assert!(here.is_alive());
    change(&without, &none);
    change(&none, &all);
    query(&udp).unwrap();
    assert!(here.is_alive() && there.is_alive());
}

/// The pod is gone with its network, the view has it, its conntrack entries are deleted: see `speaker/src/backend/forget.rs`.
#[test]
fn a_client_of_a_pod_that_is_gone_is_reset_with_its_next_packet() {
    let world = pair("gone");
    let mut connection = world.connect(VIP, 80).unwrap();
    let (udp, _) = udp_flow(&world);
    world.b().mark_searching(Mark::LOCAL, Mark { next_hop: NextHop::ToPrimary, no_reset: false, slot: A });
    world.a.cut_pods_off();
    world.a.apply(&plan(&[], Affinity::None));
    world.a.flush_conntrack();
    let started = Instant::now();
    // TCP is never returned to the primary; the mark of the stand-in sends it there all the same.
    assert_eq!(connection.fate(), Some(ErrorKind::ConnectionReset));
    assert!(started.elapsed() < Duration::from_millis(100), "{:?}", started.elapsed());
    // The client keeps its port; the row's primary is node b by now.
    world.b().mark(Mark::LOCAL);
    at_b(&world, || query(&udp).unwrap());
}

#[test]
fn a_udp_flow_that_conntrack_forgot_finds_its_pod_again() {
    let world = pair("again");
    world.a.mark(Mark::LOCAL);
    for _ in 0..8 {
        let udp = world.client_udp();
        udp.connect((VIP, 53)).unwrap();
        let pod = query(&udp).unwrap();
        world.a.flush_conntrack();
        assert_eq!(query(&udp).unwrap(), pod);
    }
}
