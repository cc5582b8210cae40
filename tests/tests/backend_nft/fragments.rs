//! Datagrams larger than the MTU, both ways, through the packet path, the kernel's reassembly and our chains.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use ebpf_common::{Row, Verdict};
use sheave_tests::packet::Eth;
use socket2::Protocol;
use speaker_core::backend::Guard;
use speaker_core::view::Affinity;

use crate::packet_path::PacketPath;
use crate::world::{A, B, CLIENT, PODS, PODS_B, VIP, World, plan};

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

/// The client's own kernel sends fragments in order: these are made by hand.
#[test]
fn a_fragment_that_overtakes_the_first_is_dropped_and_counted() {
    let (world, [a, b]) = pair("frag-order", AT_B);
    let udp = flow(&world);
    let raw = world.client_raw(Protocol::UDP);
    raw.set_header_included_v4(true).unwrap();
    let whole = {
        let from = udp.local_addr().unwrap().port();
        let head = [from, 53, 8 + 2000, 0].map(u16::to_be_bytes).concat();
        [head, data(2000, 0)].concat()
    };
    let piece = |id: u16, later: bool| {
        let ip = Eth { dst: [0; 6], src: [0; 6] }.ipv4(CLIENT.octets(), VIP.octets()).id(id);
        let frame = match later {
            false => ip.fragment(0x2000).payload(17, &whole[..1000]),
            true => ip.fragment(1000 / 8).payload(17, &whole[1000..]),
        };
        raw.send_to(&frame[14..], &SocketAddr::from((VIP, 0)).into()).unwrap();
    };
    piece(1, true);
    piece(1, false);
    assert_silence(&udp);
    assert_eq!((a.count(Verdict::FragmentWithoutFirst), a.count(Verdict::FragmentPeer)), (1, 0));
    assert_eq!(b.count(Verdict::FromPeer), 1);
    // Another datagram, in order; and one whose first fragment does not come at all.
    piece(2, false);
    piece(2, true);
    assert!(PODS_B.contains(&receive(&udp, &[data(2000, 0)]).unwrap().0));
    piece(3, true);
    assert_silence(&udp);
    assert_eq!((a.count(Verdict::FragmentWithoutFirst), a.count(Verdict::FragmentPeer)), (2, 1));
}
