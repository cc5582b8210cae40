//! Datagrams larger than the MTU, both ways, through the packet path, the kernel's reassembly and our chains.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use ebpf_common::{MAX_FRAGMENTED, Row, Verdict};
use sheave_tests::lab::wait_for;
use sheave_tests::packet::Eth;
use socket2::{Protocol, Socket};
use speaker_core::backend::Guard;
use speaker_core::view::Affinity;

use crate::packet_path::PacketPath;
use crate::world::{A, B, CLIENT, PATIENCE, PODS, PODS_B, VIP, World, plan};

/// Bytes of data; the MTU is 1,500 everywhere.
const SIZES: [usize; 4] = [1473, 3000, 8000, 60_000];

const AT_A: Row = Row::new(A, [0; 3]);
const AT_B: Row = Row::new(B, [0; 3]);
/// As a ring has it once flows may be at the other node.
const A_THEN_B: Row = Row::new(A, [B, 0, 0]);
const B_THEN_A: Row = Row::new(B, [A, 0, 0]);

/// Packets of the client come in at node a.
fn pair(test: &str, row: Row) -> (World, [PacketPath; 2]) {
    let world = World::pair(test);
    let paths = PacketPath::pair(&world, row);
    world.a.apply(&plan(&PODS, Affinity::None));
    world.b().apply(&plan(&PODS_B, Affinity::None));
    (world, paths)
}

fn flow(world: &World) -> UdpSocket {
    let udp = world.client_udp();
    udp.connect((VIP, 53)).unwrap();
    udp
}

/// Sends so many bytes; the pod that gets all of them, and whose reply of even more comes back.
fn exchange(udp: &UdpSocket, bytes: usize) -> std::io::Result<Ipv4Addr> {
    udp.send(&data(bytes, 0))?;
    receive(udp, &[data(bytes, 0)]).map(|(pod, _)| pod)
}

/// Letters, so that the pod's reply has them as they are.
fn data(bytes: usize, number: usize) -> Vec<u8> {
    (0..bytes).map(|at| b'a' + ((at / 8 + number) % 26) as u8).collect()
}

/// A reply to any of these: the pod, and what it replies to.
fn receive(udp: &UdpSocket, sent: &[Vec<u8>]) -> std::io::Result<(Ipv4Addr, usize)> {
    let mut buffer = vec![0; 65_536];
    let length = udp.recv(&mut buffer)?;
    let reply = String::from_utf8(buffer[..length].to_vec()).expect("letters");
    let [pod, client, said] = reply.split(' ').collect::<Vec<_>>()[..] else { panic!("{reply}") };
    assert_eq!(client.parse(), Ok(udp.local_addr().unwrap()));
    let number = sent.iter().position(|data| data == said.as_bytes()).expect("what was sent");
    Ok((pod.parse().expect("an address"), number))
}

fn assert_silence(udp: &UdpSocket) {
    assert_eq!(udp.recv(&mut [0; 64]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn large_datagrams_reach_a_pod_of_their_row_and_the_client_gets_its_reply() {
    for (test, row, pods) in
        [("frag-a", AT_A, PODS), ("frag-b", AT_B, PODS_B), ("frag-ba", B_THEN_A, PODS_B), ("frag-ab", A_THEN_B, PODS)]
    {
        let (world, [a, b]) = pair(test, row);
        for bytes in SIZES {
            for _ in 0..4 {
                let pod = exchange(&flow(&world), bytes).unwrap_or_else(|error| panic!("{test}, {bytes}: {error}"));
                assert!(pods.contains(&pod), "{test}, {bytes}: {pod}");
            }
        }
        let counts =
            |path: &PacketPath| [Verdict::FragmentWithoutFirst, Verdict::Fragment].map(|verdict| path.count(verdict));
        assert_eq!((counts(&a), counts(&b)), ([0; 2], [0; 2]), "{test}");
        assert_eq!(a.count(Verdict::FragmentPeer) > 100, row.primary() == B, "{test}");
        assert!((if row.primary() == B { b } else { a }).count(Verdict::FragmentLocal) > 100, "{test}");
        // Also one whose flow two nodes are asked for left nothing behind where it did not end.
        let elsewhere = if row.primary() == B { &world.a } else { world.b() };
        assert_eq!(elsewhere.conntrack_entries(), 0, "{test}");
    }
}

/// The row moves from node b to node a. The datagram is put together at a, whose conntrack does not know it, and forwarded in fragments.
#[test]
fn a_large_datagram_of_another_nodes_flow_finds_it() {
    let (world, [mut a, mut b]) = pair("frag-search", AT_B);
    let udp = flow(&world);
    let pod = exchange(&udp, 100).unwrap();
    assert!(PODS_B.contains(&pod));
    a.set_row(A_THEN_B);
    b.set_row(A_THEN_B);
    for bytes in SIZES {
        assert_eq!(exchange(&udp, bytes).unwrap(), pod, "{bytes}");
    }
    assert_eq!(world.a.guard(Guard::Forwarded), SIZES.len() as u64);
    assert_eq!(b.count(Verdict::SecondChanceArrived), SIZES.len() as u64, "the first fragments");
    assert_eq!((world.a.conntrack_entries(), world.b().guards().len()), (0, 0));

    // Several at a time (as many as a socket's buffer has room for): each keeps its identification, so no two are mixed up.
    let sent: Vec<Vec<u8>> = (0..8).map(|number| data(8000, number)).collect();
    sent.iter().for_each(|data| assert_eq!(udp.send(data).unwrap(), 8000));
    let replies = sent.iter().map(|_| receive(&udp, &sent).expect("a reply"));
    let numbers: BTreeSet<usize> = replies.map(|(from, number)| (assert_eq!(from, pod), number).1).collect();
    assert_eq!(numbers.len(), sent.len());
}

#[test]
fn no_fragment_of_a_denied_client_passes() {
    for (test, row) in [("frag-deny-a", AT_A), ("frag-deny-b", AT_B)] {
        let (world, [mut a, b]) = pair(test, row);
        let udp = flow(&world);
        exchange(&udp, 8000).unwrap();
        let passed = |a: &PacketPath| {
            [Verdict::DispatchedLocal, Verdict::DispatchedPeer, Verdict::FragmentLocal, Verdict::FragmentPeer]
                .map(|verdict| a.count(verdict))
        };
        let before = passed(&a);
        a.restrict(Ipv4Addr::new(198, 51, 100, 0), 24);
        udp.send(&data(8000, 0)).unwrap();
        assert_silence(&udp);
        assert_eq!((a.count(Verdict::SourceDenied), a.count(Verdict::FragmentWithoutFirst)), (1, 5), "{test}");
        assert_eq!(passed(&a), before, "{test}");
        a.restrict(CLIENT, 32);
        exchange(&udp, 8000).unwrap();
        drop(b);
    }
}

/// A datagram of 2,000 bytes in two fragments. The client's own kernel sends them in order: these are made by hand.
struct ByHand {
    raw: Socket,
    from: u16,
}

impl ByHand {
    fn new(world: &World, flow: &UdpSocket) -> Self {
        let raw = world.client_raw(Protocol::UDP);
        raw.set_header_included_v4(true).unwrap();
        Self { raw, from: flow.local_addr().unwrap().port() }
    }

    fn whole(&self, port: u16) -> Vec<u8> {
        let head = [self.from, port, 8 + 2000, 0].map(u16::to_be_bytes).concat();
        [head, data(2000, 0)].concat()
    }

    fn first(&self, id: u16, port: u16) {
        self.send(id, 0x2000, &self.whole(port)[..1000]);
    }

    fn later(&self, id: u16) {
        self.send(id, 1000 / 8, &self.whole(53)[1000..]);
    }

    fn send(&self, id: u16, flags: u16, payload: &[u8]) {
        let ip = Eth { dst: [0; 6], src: [0; 6] }.ipv4(CLIENT.octets(), VIP.octets()).id(id);
        let frame = ip.fragment(flags).payload(17, payload);
        self.raw.send_to(&frame[14..], &SocketAddr::from((VIP, 0)).into()).unwrap();
    }
}

#[test]
fn a_fragment_that_overtakes_the_first_is_dropped_and_counted() {
    let (world, [a, b]) = pair("frag-order", AT_B);
    let udp = flow(&world);
    let by_hand = ByHand::new(&world, &udp);
    by_hand.later(1);
    by_hand.first(1, 53);
    assert_silence(&udp);
    assert_eq!((a.count(Verdict::FragmentWithoutFirst), a.count(Verdict::FragmentPeer)), (1, 0));
    assert_eq!(b.count(Verdict::FromPeer), 1);
    // Another datagram, in order; and one whose first fragment does not come at all.
    by_hand.first(2, 53);
    by_hand.later(2);
    assert!(PODS_B.contains(&receive(&udp, &[data(2000, 0)]).unwrap().0));
    by_hand.later(3);
    assert_silence(&udp);
    assert_eq!((a.count(Verdict::FragmentWithoutFirst), a.count(Verdict::FragmentPeer)), (2, 1));
}

/// A flood of first fragments, which end at node a: twice as many as there is room for.
#[test]
fn a_full_table_lets_go_what_was_not_used_and_counts_its_later_fragments() {
    const MOST: u16 = MAX_FRAGMENTED as u16;
    const UNUSED: u16 = 1;
    const USED: u16 = 2;
    const FLOOD: u16 = 100;
    let (world, [a, _b]) = pair("frag-full", AT_B);
    let udp = flow(&world);
    let by_hand = ByHand::new(&world, &udp);
    by_hand.first(UNUSED, 53);
    by_hand.first(USED, 53);
    let counts = || [Verdict::FragmentWithoutFirst, Verdict::FragmentPeer].map(|verdict| a.count(verdict));
    let (mut sent, mut used) = (0, 0);
    for id in FLOOD..FLOOD + 2 * MOST {
        by_hand.first(id, UNSERVED);
        sent += 1;
        // Fewer at a time than a device's queue takes, so that none is lost on the way.
        if sent % 128 == 0 {
            by_hand.later(USED);
            used += 1;
            let arrived = || a.count(Verdict::UnservedUnreachable) == sent && counts()[1] == used;
            wait_for("the flood to come in", PATIENCE, || Ok(arrived().then_some(()))).unwrap();
        }
    }
    assert_eq!(counts(), [0, used], "a datagram that is used stays");
    let kept = a.fragments();
    assert!(kept <= MOST.into() && kept > usize::from(MOST) / 2, "{kept} datagrams are remembered");
    by_hand.later(UNUSED);
    wait_for("a later fragment without the first", PATIENCE, || Ok((counts() != [0, used]).then_some(()))).unwrap();
    assert_eq!(counts(), [1, used]);
    // The datagram that was used is whole, and the next ones have room.
    assert!(PODS_B.contains(&receive(&udp, &[data(2000, 0)]).unwrap().0));
    exchange(&udp, 8000).unwrap();
    assert_eq!(a.count(Verdict::FragmentWithoutFirst), 1);
}

/// A port that no Service has.
const UNSERVED: u16 = 9;
