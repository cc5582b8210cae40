//! Every verdict on the real verifier: a frame in, a counter moved and a frame out.
//!
//! Needs root. Each frame also runs on the host core, which must agree byte for byte.

mod arp;
mod fragments;
mod node_address;
mod second_chance;
#[path = "../xdp_world/mod.rs"]
mod xdp_world;

use std::collections::BTreeSet;

use ebpf_common::{Config, Mark, NextHop, Verdict};
use sheave_ebpf::Frame;
use sheave_ebpf::frame::Window;
use sheave_ebpf::host::{HostFrame, HostTables};
use sheave_tests::packet::{Addr, Arp, BROADCAST, Eth, Mac, Tcp, check_sums};
use sheave_tests::xdp::Kernel;
use xdp_world::*;

/// The maps of a group of cases.
struct Scene {
    name: &'static str,
    tables: HostTables,
    cases: Vec<Case>,
}

struct Case {
    name: &'static str,
    frame: Vec<u8>,
    verdict: Verdict,
    /// `None`: as it came.
    out: Option<Vec<u8>>,
}

fn case(name: &'static str, frame: Vec<u8>, verdict: Verdict) -> Case {
    Case { name, frame, verdict, out: None }
}

/// To the stack, without a next hop.
fn up(name: &'static str, frame: Vec<u8>, verdict: Verdict) -> Case {
    asking(name, frame, verdict, Mark::LOCAL)
}

fn asking(name: &'static str, frame: Vec<u8>, verdict: Verdict, mark: Mark) -> Case {
    let out = marked(frame.clone(), mark);
    changed(name, frame, verdict, out)
}

fn changed(name: &'static str, frame: Vec<u8>, verdict: Verdict, out: Vec<u8>) -> Case {
    Case { name, frame, verdict, out: Some(out) }
}

#[test]
fn every_verdict_is_reached_as_the_table_says() {
    let mut seen = BTreeSet::new();
    let mut cases = 0;
    for scene in scenes() {
        let mut kernel = Kernel::load(&scene.tables).expect("loading the XDP program");
        for case in scene.cases {
            let outcome = both(&mut kernel, &scene.tables, &case.frame);
            let name = format!("{}: {}", scene.name, case.name);
            assert_eq!(outcome.verdict, case.verdict, "{name}");
            let out = case.out.as_ref().unwrap_or(&case.frame);
            assert!(outcome.frame == *out, "{name}:\n  out {:02x?}\n want {out:02x?}", outcome.frame);
            if case.out.is_some() && out[12..14] == [8, 0] && check_sums(&case.frame).is_ok() {
                check_sums(&outcome.frame).unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
            }
            seen.insert(case.verdict);
            cases += 1;
        }
    }
    seen.insert(no_room());
    let missing: Vec<_> = Verdict::ALL.iter().filter(|verdict| !seen.contains(verdict)).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
    println!("{cases} cases, {} verdicts", seen.len());
}

/// The one verdict that BPF_PROG_TEST_RUN cannot produce: a kernel that refuses to shorten a frame. On the host core.
fn no_room() -> Verdict {
    struct Rigid(HostFrame);

    impl Frame for Rigid {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn window<const N: usize>(&self, at: usize) -> Option<impl Window> {
            self.0.window::<N>(at)
        }
        fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
            self.0.read(at)
        }
        fn write<const N: usize>(&mut self, at: usize, bytes: [u8; N]) -> Option<()> {
            self.0.write(at, bytes)
        }
        fn truncate(&mut self, _: usize) -> Option<()> {
            None
        }
    }

    let frame = inbound(VIP).tcp(40000, UNSERVED).syn().data(b"x").build();
    let mut rigid = Rigid(HostFrame(frame.clone()));
    let verdict = sheave_ebpf::walk(&mut rigid, &world());
    assert_eq!(verdict, Verdict::NoRoom);
    assert_eq!(rigid.0.0, frame, "a frame that is not answered is not changed");
    verdict
}

fn scenes() -> Vec<Scene> {
    let with = |change: fn(&mut HostTables)| {
        let mut tables = world();
        change(&mut tables);
        tables
    };
    vec![
        Scene { name: "arp", tables: world(), cases: arp::cases() },
        Scene {
            name: "lease over",
            tables: with(|tables| tables.lease.until_ns = tables.now_ns - 1),
            cases: vec![
                case("own", who_has(VIP), Verdict::ArpLeaseOver),
                case("another's", who_has(OTHER), Verdict::ArpNotOwner),
                case("echo", inbound(VIP).icmp(8, 0, [0; 4], b""), Verdict::Protocol),
                changed("dispatch goes on", syn(REMOTE), Verdict::DispatchedPeer, sent_on(REMOTE)),
            ],
        },
        Scene {
            name: "lease and mute over",
            tables: with(|tables| {
                tables.lease.until_ns = tables.now_ns - 2;
                tables.lease.mute_until_ns = tables.now_ns - 1;
            }),
            cases: vec![
                case("own", who_has(VIP), Verdict::ArpMuteOver),
                case("another's", who_has(OTHER), Verdict::ArpMuteOver),
            ],
        },
        Scene {
            name: "never filled",
            tables: with(|tables| {
                tables.config = Config::default();
                tables.lease.mute_until_ns = 0;
            }),
            cases: vec![
                case("to a VIP", syn(LOCAL), Verdict::NotReady),
                case("ARP for an owned VIP, and no address to answer with", who_has(VIP), Verdict::NotReady),
                case("ARP for another's", who_has(OTHER), Verdict::ArpMuteOver),
                case("anything else", vec![0; 60], Verdict::NotOurs),
            ],
        },
        Scene { name: "not ours", tables: world(), cases: not_ours() },
        Scene { name: "dispatch", tables: world(), cases: dispatch() },
        Scene { name: "refused", tables: world(), cases: refused() },
        Scene {
            name: "silent",
            tables: with(|tables| tables.config.flags |= Config::UDP_SILENT),
            cases: vec![
                case("unserved", inbound(VIP).udp(40000, UNSERVED, b"x"), Verdict::UnservedSilent),
                case("empty ring", inbound(VIP).udp(40000, EMPTY, b"x"), Verdict::EmptyRingSilent),
            ],
        },
        Scene { name: "closed", tables: world(), cases: closed() },
        Scene { name: "icmp", tables: world(), cases: icmp() },
        Scene { name: "from a client", tables: world(), cases: second_chance::from_client() },
        Scene { name: "from a dispatcher", tables: world(), cases: second_chance::from_dispatcher() },
        Scene { name: "in search", tables: world(), cases: second_chance::in_search() },
        Scene { name: "fragments", tables: world(), cases: fragments::from_client() },
        Scene {
            name: "fragments of earlier datagrams",
            tables: with(|tables| tables.fragments.get_mut().extend(fragments::earlier(tables.now_ns))),
            cases: fragments::after_a_while(),
        },
        Scene { name: "fragments of denied clients", tables: world(), cases: fragments::denied() },
        Scene { name: "fragments from nodes", tables: world(), cases: fragments::from_nodes() },
        Scene {
            name: "from nodes, silent",
            tables: with(|tables| tables.config.flags |= Config::UDP_SILENT),
            cases: vec![up("unserved", dispatched(PEER).udp(40000, UNSERVED, b"x"), Verdict::FromPeer)],
        },
        Scene { name: "malformed", tables: world(), cases: malformed() },
    ]
}

const ASKER: Addr = [192, 0, 2, 200];

fn who_has(vip: Addr) -> Vec<u8> {
    Eth { dst: BROADCAST, src: ROUTER }.arp(Arp::request(ROUTER, ASKER, vip))
}

fn is_at(vip: Addr, asker: Addr) -> Vec<u8> {
    let reply = Arp { operation: 2, sender_mac: SELF, sender: vip, target_mac: ROUTER, target: asker };
    Eth { dst: ROUTER, src: SELF }.arp(reply)
}

fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(60, 0);
    frame
}

fn syn(port: u16) -> Vec<u8> {
    inbound(VIP).tcp(40000, port).syn().build()
}

/// What [`syn`] becomes on its way to the peer.
fn sent_on(port: u16) -> Vec<u8> {
    Eth { dst: PEER, src: SELF }.ipv4(CLIENT, VIP).ttl(63).tcp(40000, port).syn().build()
}

fn not_ours() -> Vec<Case> {
    let tagged = |ethertype: u16| {
        let frame = syn(LOCAL);
        [&frame[..12], &ethertype.to_be_bytes(), &[0, 5], &frame[12..]].concat()
    };
    vec![
        case("an address of the node", inbound(NODE).tcp(40000, LOCAL).syn().build(), Verdict::NotOurs),
        case("from a VIP", Eth { dst: SELF, src: PEER }.ipv4(VIP, CLIENT).tcp(80, 40000).build(), Verdict::NotOurs),
        case("IPv6", Eth { dst: SELF, src: ROUTER }.payload(0x86dd, &[0x60; 60]), Verdict::NotOurs),
        case("an unknown protocol", Eth { dst: SELF, src: ROUTER }.payload(0x88b5, &[0; 46]), Verdict::NotOurs),
        case("802.1Q", tagged(0x8100), Verdict::Vlan),
        case("802.1ad", tagged(0x88a8), Verdict::Vlan),
        case(
            "a frame for another station",
            Eth { dst: STRANGER, src: ROUTER }.ipv4(CLIENT, VIP).tcp(40000, LOCAL).syn().build(),
            Verdict::NotOurMac,
        ),
        case(
            "a broadcast frame",
            Eth { dst: BROADCAST, src: ROUTER }.ipv4(CLIENT, VIP).udp(40000, REMOTE, b"x"),
            Verdict::NotOurMac,
        ),
    ]
}

/// Record route (RFC 791 section 3.1), three bytes and the end of the list.
const OPTIONS: [u8; 8] = [7, 7, 4, 0, 0, 0, 0, 0];

fn dispatch() -> Vec<Case> {
    let on = || Eth { dst: PEER, src: SELF }.ipv4(CLIENT, VIP).ttl(63);
    let data = vec![0x5a; 1460];
    vec![
        up("to this node", syn(LOCAL), Verdict::DispatchedLocal),
        up("to this node, TTL 1", inbound(VIP).ttl(1).tcp(40000, ALONE).build(), Verdict::DispatchedLocal),
        up("to this node, UDP", inbound(OTHER).udp(40000, ALONE, b"x"), Verdict::DispatchedLocal),
        changed("to a peer", syn(REMOTE), Verdict::DispatchedPeer, sent_on(REMOTE)),
        changed("to a peer, padded", padded(syn(REMOTE)), Verdict::DispatchedPeer, padded(sent_on(REMOTE))),
        changed(
            "to a peer, full size",
            inbound(VIP).tcp(40000, REMOTE).data(&data).build(),
            Verdict::DispatchedPeer,
            on().tcp(40000, REMOTE).data(&data).build(),
        ),
        changed(
            "to a peer, UDP",
            inbound(VIP).udp(40000, REMOTE, b"query"),
            Verdict::DispatchedPeer,
            on().udp(40000, REMOTE, b"query"),
        ),
        changed(
            "to a peer, VIP of another owner (a router with an old ARP entry)",
            inbound(OTHER).ttl(2).tcp(40000, REMOTE).build(),
            Verdict::DispatchedPeer,
            Eth { dst: PEER, src: SELF }.ipv4(CLIENT, OTHER).ttl(1).tcp(40000, REMOTE).build(),
        ),
        changed(
            "IP and TCP options are carried along",
            inbound(VIP).options(&OPTIONS).tcp(40000, REMOTE).options(&[2, 4, 5, 0xb4]).syn().build(),
            Verdict::DispatchedPeer,
            on().options(&OPTIONS).tcp(40000, REMOTE).options(&[2, 4, 5, 0xb4]).syn().build(),
        ),
        up("IP options, this node", inbound(VIP).options(&[1; 40]).udp(1, ALONE, b"x"), Verdict::DispatchedLocal),
        case("TTL 1", inbound(VIP).ttl(1).tcp(40000, REMOTE).build(), Verdict::TtlExpired),
        case("TTL 0", inbound(VIP).ttl(0).udp(40000, REMOTE, b""), Verdict::TtlExpired),
        case("no neighbour entry", syn(NO_MAC), Verdict::NoNeighbour),
        case("the ring is not there", syn(NO_RING), Verdict::BadRing),
        case("a row without a node", syn(ROW_ZERO), Verdict::BadRing),
        case("a row out of range", syn(ROW_OUT_OF_RANGE), Verdict::BadRing),
    ]
}

fn reset(port: u16, seq: u32, ack: u32, flags: u8) -> Vec<u8> {
    let ip = Eth { dst: ROUTER, src: SELF }.ipv4(VIP, CLIENT).id(0);
    ip.tcp(port, 40000).seq(seq).ack(ack).flags(flags).window(0).build()
}

/// RFC 9293 section 3.10.7.1.
fn refused() -> Vec<Case> {
    const ANSWER: u8 = Tcp::RST | Tcp::ACK;
    let tcp = || inbound(VIP).tcp(40000, UNSERVED).seq(1000);
    vec![
        changed("SYN", tcp().syn().build(), Verdict::UnservedReset, reset(UNSERVED, 0, 1001, ANSWER)),
        changed("SYN, padded", padded(tcp().syn().build()), Verdict::UnservedReset, reset(UNSERVED, 0, 1001, ANSWER)),
        changed(
            "SYN with options, data and FIN",
            inbound(VIP)
                .options(&OPTIONS)
                .tcp(40000, UNSERVED)
                .seq(u32::MAX)
                .options(&[1; 40])
                .flags(Tcp::SYN | Tcp::FIN)
                .data(&[7; 1301])
                .build(),
            Verdict::UnservedReset,
            reset(UNSERVED, 0, 1302, ANSWER),
        ),
        changed("no flag", tcp().data(b"abc").build(), Verdict::UnservedReset, reset(UNSERVED, 0, 1003, ANSWER)),
        changed(
            "ACK",
            tcp().ack(0x8000_0001).flags(Tcp::ACK).data(b"abc").build(),
            Verdict::UnservedReset,
            reset(UNSERVED, 0x8000_0001, 0, Tcp::RST),
        ),
        changed(
            "FIN, ACK",
            tcp().ack(5).flags(Tcp::ACK | Tcp::FIN).build(),
            Verdict::UnservedReset,
            reset(UNSERVED, 5, 0, Tcp::RST),
        ),
        case("RST", tcp().flags(Tcp::RST).build(), Verdict::UnservedRst),
        case("RST, ACK", tcp().flags(Tcp::RST | Tcp::ACK).build(), Verdict::UnservedRst),
        up("UDP", inbound(VIP).udp(40000, UNSERVED, b"x"), Verdict::UnservedUnreachable),
        changed(
            "empty ring",
            inbound(VIP).tcp(40000, EMPTY).seq(9).syn().build(),
            Verdict::EmptyRingReset,
            reset(EMPTY, 0, 10, ANSWER),
        ),
        case("empty ring, RST", inbound(VIP).tcp(40000, EMPTY).flags(Tcp::RST).build(), Verdict::UnservedRst),
        up("empty ring, UDP", inbound(VIP).udp(40000, EMPTY, b"x"), Verdict::EmptyRingUnreachable),
        case("no source range, SYN", inbound(VIP).tcp(40000, NO_RANGE).syn().build(), Verdict::SourceDenied),
        case("no source range, UDP", inbound(VIP).udp(40000, NO_RANGE, b"x"), Verdict::SourceDenied),
        changed(
            "no source range, segment",
            inbound(VIP).tcp(40000, NO_RANGE).ack(7).flags(Tcp::ACK).data(b"abc").build(),
            Verdict::SourceReset,
            reset(NO_RANGE, 7, 0, Tcp::RST),
        ),
    ]
}

/// No pod is ready: what begins a flow is refused, all else goes the way of its row.
fn closed() -> Vec<Case> {
    let segment = |port, flags| inbound(VIP).tcp(40000, port).flags(flags).data(b"x").build();
    let on =
        |flags| Eth { dst: PEER, src: SELF }.ipv4(CLIENT, VIP).ttl(63).tcp(40000, REMOTE_NO_NEW_FLOWS).flags(flags);
    let first = Mark { next_hop: NextHop::Alternate(1), no_reset: false, slot: 2 };
    vec![
        changed(
            "SYN",
            inbound(VIP).tcp(40000, LOCAL_NO_NEW_FLOWS).seq(9).syn().build(),
            Verdict::EmptyRingReset,
            reset(LOCAL_NO_NEW_FLOWS, 0, 10, Tcp::RST | Tcp::ACK),
        ),
        up("SYN from a peer", dispatched(PEER).tcp(40000, REMOTE_NO_NEW_FLOWS).syn().build(), Verdict::FromPeer),
        changed(
            "segment, to a peer",
            segment(REMOTE_NO_NEW_FLOWS, Tcp::ACK),
            Verdict::DispatchedPeer,
            on(Tcp::ACK).data(b"x").build(),
        ),
        changed(
            "RST, to a peer",
            segment(REMOTE_NO_NEW_FLOWS, Tcp::RST),
            Verdict::DispatchedPeer,
            on(Tcp::RST).data(b"x").build(),
        ),
        asking("segment, this node", segment(LOCAL_NO_NEW_FLOWS, Tcp::ACK), Verdict::SecondChanceLocal, first),
        asking(
            "datagram, this node",
            inbound(VIP).udp(40000, LOCAL_NO_NEW_FLOWS, b"x"),
            Verdict::SecondChanceLocal,
            first,
        ),
        asking("error", too_big(&quoted(LOCAL_NO_NEW_FLOWS)), Verdict::IcmpLocal, first),
    ]
}

/// The packet that an error is about: what a router on the way to the client saw, from the IP header on.
fn quoted(port: u16) -> Vec<u8> {
    Eth { dst: ROUTER, src: PEER }.ipv4(VIP, CLIENT).tcp(port, 40000).build()[14..].to_vec()
}

/// "Fragmentation needed" with an MTU of 1280, from a router on the way.
fn too_big(quoted: &[u8]) -> Vec<u8> {
    error(SELF, ROUTER, 64, 3, quoted)
}

fn error(dst: Mac, src: Mac, ttl: u8, kind: u8, quoted: &[u8]) -> Vec<u8> {
    Eth { dst, src }.ipv4([203, 0, 113, 9], VIP).ttl(ttl).icmp(kind, 4, [0, 0, 5, 0], quoted)
}

fn icmp() -> Vec<Case> {
    let echo = |vip| inbound(vip).ttl(9).icmp(8, 0, [1, 2, 0, 3], b"abcde");
    let pong = Eth { dst: ROUTER, src: SELF }.ipv4(VIP, CLIENT).icmp(0, 0, [1, 2, 0, 3], b"abcde");
    let first_fragment = Eth { dst: ROUTER, src: PEER }.ipv4(VIP, CLIENT).fragment(0x2000);
    let later_fragment = Eth { dst: ROUTER, src: PEER }.ipv4(VIP, CLIENT).fragment(0x0010);
    let with_options = Eth { dst: ROUTER, src: PEER }.ipv4(VIP, CLIENT).options(&OPTIONS);
    let not_the_vip = Eth { dst: ROUTER, src: PEER }.ipv4(NODE, CLIENT).tcp(LOCAL, 40000).build();
    let mut other_version = quoted(LOCAL);
    other_version[0] = 0x65;
    let mut short_header = quoted(LOCAL);
    short_header[0] = 0x44;
    vec![
        changed("echo", echo(VIP), Verdict::EchoAnswered, pong),
        case("echo, another's VIP", echo(OTHER), Verdict::Protocol),
        case("echo, IP options", inbound(VIP).options(&OPTIONS).icmp(8, 0, [0; 4], b""), Verdict::Protocol),
        case("echo, a code", inbound(VIP).icmp(8, 1, [0; 4], b""), Verdict::Protocol),
        case("echo reply", inbound(VIP).icmp(0, 0, [0; 4], b""), Verdict::Protocol),
        case("redirect", error(SELF, ROUTER, 64, 5, &quoted(LOCAL)), Verdict::Protocol),
        case("timestamp", inbound(VIP).icmp(13, 0, [0; 4], &[0; 12]), Verdict::Protocol),
        up("too big, local", too_big(&quoted(ALONE)), Verdict::IcmpLocal),
        up("only 64 bits of data", too_big(&quoted(ALONE)[..28]), Verdict::IcmpLocal),
        changed(
            "too big, peer",
            too_big(&quoted(REMOTE)),
            Verdict::IcmpPeer,
            error(PEER, SELF, 63, 3, &quoted(REMOTE)),
        ),
        changed(
            "time exceeded, UDP, options",
            error(SELF, ROUTER, 64, 11, &with_options.udp(REMOTE, 40000, b"x")[14..]),
            Verdict::IcmpPeer,
            error(
                PEER,
                SELF,
                63,
                11,
                &Eth { dst: ROUTER, src: PEER }.ipv4(VIP, CLIENT).options(&OPTIONS).udp(REMOTE, 40000, b"x")[14..],
            ),
        ),
        up("parameter problem", error(SELF, ROUTER, 64, 12, &quoted(ALONE)), Verdict::IcmpLocal),
        up("about a first fragment", too_big(&first_fragment.udp(ALONE, 40000, b"x")[14..]), Verdict::IcmpLocal),
        case("about a later fragment", too_big(&later_fragment.payload(17, &[0; 8])[14..]), Verdict::Fragment),
        case("TTL 1", error(SELF, ROUTER, 1, 3, &quoted(REMOTE)), Verdict::TtlExpired),
        case("about no flow of ours", too_big(&quoted(UNSERVED)), Verdict::Protocol),
        case("about an empty ring", too_big(&quoted(EMPTY)), Verdict::Protocol),
        case("about another address", too_big(&not_the_vip[14..]), Verdict::Protocol),
        case("about ICMP", too_big(&inbound(VIP).icmp(8, 0, [0; 4], b"")[14..]), Verdict::Protocol),
        case("quotes too little", too_big(&quoted(LOCAL)[..27]), Verdict::Malformed),
        case("quotes nothing", too_big(&[]), Verdict::Malformed),
        case("quotes IPv6", too_big(&other_version), Verdict::Malformed),
        case("quotes a short header", too_big(&short_header), Verdict::Malformed),
        case("shorter than ICMP", inbound(VIP).payload(1, &[3, 4, 0, 0, 0, 0, 5]), Verdict::Malformed),
        case("GRE", inbound(VIP).payload(47, &[0; 40]), Verdict::Protocol),
        case("SCTP", inbound(VIP).payload(132, &[0; 40]), Verdict::Protocol),
    ]
}

fn malformed() -> Vec<Case> {
    // Changes one byte of a frame that is otherwise whole.
    let broken = |frame: Vec<u8>, at: usize, value: u8| {
        let mut frame = frame;
        frame[at] = value;
        frame
    };
    let udp = || inbound(VIP).udp(40000, ALONE, b"abcd");
    let from = |src| Eth { dst: SELF, src: ROUTER }.ipv4(src, VIP).tcp(40000, UNSERVED).syn().build();
    vec![
        case("IP version", broken(syn(LOCAL), 14, 0x55), Verdict::NotOurs),
        case("IP header of 16 bytes", broken(syn(LOCAL), 14, 0x44), Verdict::Malformed),
        case("IP header longer than the packet", broken(syn(LOCAL), 14, 0x4f), Verdict::Malformed),
        case("total length below the header", broken(syn(LOCAL), 17, 19), Verdict::Malformed),
        case("total length beyond the frame", broken(syn(LOCAL), 17, 41), Verdict::Malformed),
        case("total length of 64 kB", broken(syn(LOCAL), 16, 0xff), Verdict::Malformed),
        case("TCP header cut", inbound(VIP).payload(6, &syn(LOCAL)[34..53]), Verdict::Malformed),
        case("TCP data offset 4", broken(syn(LOCAL), 46, 0x40), Verdict::Malformed),
        case("TCP data offset beyond the packet", broken(syn(LOCAL), 46, 0x60), Verdict::Malformed),
        case("UDP header cut", inbound(VIP).payload(17, &udp()[34..41]), Verdict::Malformed),
        case("UDP length 7", broken(udp(), 39, 7), Verdict::Malformed),
        case("UDP length beyond the packet", broken(udp(), 39, 13), Verdict::Malformed),
        up("UDP length below the packet", broken(udp(), 39, 11), Verdict::DispatchedLocal),
        case("from \"this\" network", from([0, 1, 2, 3]), Verdict::Malformed),
        case("from loopback", from([127, 0, 0, 1]), Verdict::Malformed),
        case("from a group", from([224, 0, 0, 1]), Verdict::Malformed),
        case("from broadcast", from([255; 4]), Verdict::Malformed),
    ]
}
