//! Frames cut at every length, and frames of random bytes: never a wrong class of verdict, kernel and host agree.
//!
//! BPF_PROG_TEST_RUN takes frames of at least 14 bytes; shorter ones run on the host core alone. Needs root.

mod xdp_world;

use ebpf_common::{Fate, Mark, NextHop, Verdict};
use sheave_ebpf::host::HostTables;
use sheave_tests::packet::{Arp, BROADCAST, Eth};
use sheave_tests::xdp::{Kernel, Outcome};
use xdp_world::*;

/// Destination address of an IPv4 header, target of an ARP body: before them a frame cannot name a VIP.
const IPV4_NAMED: usize = 34;
const ARP_NAMED: usize = 42;

#[test]
fn a_packet_cut_short_is_not_ours_until_it_names_a_vip_and_malformed_after() {
    let tables = world();
    let mut kernel = Kernel::load(&tables).expect("loading the XDP program");
    let quoted = Eth { dst: ROUTER, src: PEER }.ipv4(VIP, CLIENT).options(&[1; 8]).tcp(REMOTE, 40000).build();
    for frame in [
        inbound(VIP).tcp(40000, LOCAL).syn().build(),
        inbound(VIP).tcp(40000, REMOTE).options(&[1; 40]).data(&[5; 100]).build(),
        inbound(VIP).tcp(40000, UNSERVED).syn().build(),
        inbound(VIP).options(&[1; 40]).tcp(40000, REMOTE).data(&[5; 100]).build(),
        inbound(OTHER).udp(40000, REMOTE, b"some data"),
        inbound(OTHER).fragment(0x2000).udp(40000, REMOTE, b"some data"),
        inbound(VIP).icmp(8, 0, [0; 4], b"ping"),
        inbound(VIP).icmp(3, 4, [0; 4], &quoted[14..]),
    ] {
        for len in 0..frame.len() {
            let outcome = at_length(&mut kernel, &tables, &frame[..len]);
            let want = if len < IPV4_NAMED { Verdict::NotOurs } else { Verdict::Malformed };
            assert_eq!(outcome.verdict, want, "{len} of {} bytes of {frame:02x?}", frame.len());
            assert_eq!(outcome.frame, frame[..len]);
        }
        assert_ne!(at_length(&mut kernel, &tables, &frame).verdict, Verdict::Malformed);
    }
}

/// As above, but the IPv4 header has the shorter length too: a header that is whole around a transport header that is not.
#[test]
fn a_packet_that_ends_within_its_transport_header_is_malformed() {
    let tables = world();
    let mut kernel = Kernel::load(&tables).expect("loading the XDP program");
    let quoted = Eth { dst: ROUTER, src: PEER }.ipv4(VIP, CLIENT).tcp(REMOTE, 40000).build();
    let cases = [
        (6, inbound(VIP).tcp(40000, REMOTE).syn().build(), 20),
        (6, inbound(VIP).tcp(40000, UNSERVED).options(&[1; 40]).build(), 60),
        (17, inbound(VIP).udp(40000, REMOTE, b""), 8),
        (1, inbound(VIP).icmp(8, 0, [0; 4], b""), 8),
        (1, inbound(VIP).icmp(3, 4, [0; 4], &quoted[14..]), 8 + 20 + 8),
    ];
    for (proto, frame, needed) in cases {
        for len in 0..needed {
            let cut = inbound(VIP).payload(proto, &frame[34..34 + len]);
            assert_eq!(at_length(&mut kernel, &tables, &cut).verdict, Verdict::Malformed, "{proto}: {len} bytes");
        }
    }
}

#[test]
fn arp_cut_short_is_not_ours() {
    let tables = world();
    let mut kernel = Kernel::load(&tables).expect("loading the XDP program");
    for vip in [VIP, OTHER] {
        let frame = Eth { dst: BROADCAST, src: ROUTER }.arp(Arp::request(ROUTER, CLIENT, vip));
        assert_eq!(frame.len(), ARP_NAMED);
        for len in 0..frame.len() {
            assert_eq!(at_length(&mut kernel, &tables, &frame[..len]).verdict, Verdict::NotOurs);
        }
    }
}

/// Random bytes in the places that the path reads, behind headers that lead there.
#[test]
fn random_frames_are_judged_alike_by_kernel_and_host() {
    let tables = world();
    let mut kernel = Kernel::load(&tables).expect("loading the XDP program");
    let mut random = Random(0x5eed);
    let templates = [
        inbound(VIP).tcp(40000, REMOTE).data(&[0; 60]).build(),
        inbound(VIP).options(&[1; 12]).udp(40000, MIXED, &[0; 60]),
        inbound(VIP).fragment(0x2000).udp(40000, MIXED, &[0; 60]),
        inbound(VIP).fragment(0x2010).payload(17, &[0; 60]),
        inbound(VIP).icmp(3, 4, [0; 4], &inbound(VIP).udp(1, 2, &[0; 60])[14..]),
        Eth { dst: BROADCAST, src: ROUTER }.arp(Arp::request(ROUTER, CLIENT, VIP)),
    ];
    let mut fates = [0; 3];
    for _ in 0..20_000 {
        let mut frame = templates[random.below(templates.len())].clone();
        for _ in 0..1 + random.below(4) {
            let at = random.below(frame.len());
            frame[at] = random.next() as u8;
        }
        frame.truncate(14 + random.below(2 * frame.len()).min(frame.len() - 14));
        let outcome = both(&mut kernel, &tables, &frame);
        fates[outcome.verdict.fate() as usize] += 1;
        if outcome.verdict.fate() != Fate::Tx {
            let expected = match mark_of(&outcome.frame) {
                Some(mark) if outcome.verdict == Verdict::FragmentLocal => guarded(marked(frame, mark)),
                Some(mark) => marked(frame, mark),
                None => frame,
            };
            assert_eq!(outcome.frame, expected, "only a frame that is sent is changed, but for its mark");
        }
    }
    assert!(fates.iter().all(|count| *count > 100), "one-sided: {fates:?}");
}

/// The mark that a frame carries.
fn mark_of(frame: &[u8]) -> Option<Mark> {
    let slot = u16::from_be_bytes([frame[10], frame[11]]);
    let hops = [1, 2, 3].map(NextHop::Alternate);
    let others = [NextHop::Local, NextHop::ToPrimary, NextHop::ToDispatcher, NextHop::InFragments];
    let next_hops = hops.into_iter().chain(others);
    let mut marks = next_hops.flat_map(|next_hop| [false, true].map(|no_reset| Mark { next_hop, no_reset, slot }));
    marks.find(|mark| frame[6..12] == mark.mac())
}

fn at_length(kernel: &mut Kernel, tables: &HostTables, frame: &[u8]) -> Outcome {
    if frame.len() < 14 { host(tables, frame) } else { both(kernel, tables, frame) }
}
