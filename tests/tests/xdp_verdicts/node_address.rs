//! Ports of nodes' addresses on the real verifier: those of a Service go the way of a VIP's, everything else passes as it came.

use ebpf_common::{Config, Mark, NextHop, ServiceKey, ServiceValue, Verdict};
use sheave_ebpf::host::HostTables;
use sheave_tests::packet::{Arp, BROADCAST, Eth, Ipv4};
use sheave_tests::xdp::Kernel;

use super::xdp_world::*;

/// A port from which the node opens flows of its own, with the ring of [`REMOTE`].
const OWN_FLOWS: u16 = 8080;
/// Another one, whose Service admits no client.
const RESTRICTED: u16 = 8081;

fn served() -> HostTables {
    let mut tables = world();
    tables.config.flags |= Config::NODE_ADDRESSES;
    tables.node_addresses.insert(NODE);
    let restricted = ServiceValue::NODE_FLOWS | ServiceValue::restricted_to(9);
    for (port, flags) in [(LOCAL, 0), (REMOTE, 0), (OWN_FLOWS, ServiceValue::NODE_FLOWS), (RESTRICTED, restricted)] {
        for proto in [6, 17] {
            let ring = if port == LOCAL { 1 } else { 2 };
            let key = ServiceKey { addr: NODE, port: port.to_be_bytes(), proto, pad: 0 };
            tables.services.insert(key, ServiceValue { ring, flags });
        }
    }
    tables
}

fn to_node() -> Ipv4 {
    inbound(NODE)
}

#[test]
fn ports_of_a_service_are_dispatched_and_all_else_passes_as_it_came() {
    let tables = served();
    let mut kernel = Kernel::load(&tables).expect("loading the XDP program");
    let mut verdict = |frame: &[u8]| both(&mut kernel, &tables, frame);
    let quoted = |port| Eth { dst: ROUTER, src: SELF }.ipv4(NODE, CLIENT).udp(port, 40000, b"y");
    let error = |port| to_node().icmp(3, 4, [0, 0, 5, 0], &quoted(port)[14..42]);

    assert_eq!(verdict(&to_node().tcp(40000, LOCAL).syn().build()).verdict, Verdict::DispatchedLocal);
    assert_eq!(verdict(&to_node().tcp(40000, REMOTE).syn().build()).verdict, Verdict::DispatchedPeer);
    assert_eq!(verdict(&to_node().udp(40000, REMOTE, b"x")).verdict, Verdict::DispatchedPeer);
    assert_eq!(verdict(&error(REMOTE)).verdict, Verdict::IcmpPeer);

    let syn = to_node().tcp(40000, OWN_FLOWS).syn().build();
    assert_eq!(verdict(&syn).verdict, Verdict::DispatchedPeer);
    let mark = Mark { next_hop: NextHop::Alternate(1), no_reset: false, slot: 2 };
    for frame in [
        to_node().tcp(40000, OWN_FLOWS).flags(16).build(),
        to_node().tcp(40000, OWN_FLOWS).flags(18).build(),
        to_node().udp(40000, OWN_FLOWS, b"x"),
        error(OWN_FLOWS),
    ] {
        assert_eq!(verdict(&frame).frame, marked(frame, mark));
    }

    assert_eq!(verdict(&to_node().tcp(40000, RESTRICTED).syn().build()).verdict, Verdict::SourceDenied);
    for frame in
        [to_node().tcp(40000, RESTRICTED).flags(16).build(), to_node().udp(40000, RESTRICTED, b"x"), error(RESTRICTED)]
    {
        assert_eq!(verdict(&frame).frame, marked(frame, Mark::SOURCE_DENIED));
    }
    let reset = to_node().tcp(40000, RESTRICTED).flags(4).build();
    assert_eq!(verdict(&reset).frame, marked(reset, mark));

    for frame in [
        to_node().tcp(40000, 22).syn().build(),
        to_node().udp(40000, 53, b"x"),
        error(53),
        to_node().icmp(8, 0, [0, 1, 0, 1], b"ping"),
        to_node().payload(47, &[0; 8]),
        to_node().fragment(0x2000).payload(6, &[0; 24]),
        to_node().fragment(185).payload(17, &[0; 24]),
        to_node().payload(6, &[0, 80]),
        Eth { dst: PEER, src: ROUTER }.ipv4(CLIENT, NODE).tcp(40000, LOCAL).syn().build(),
        Eth { dst: BROADCAST, src: ROUTER }.arp(Arp::request(ROUTER, [192, 0, 2, 254], NODE)),
    ] {
        let outcome = verdict(&frame);
        assert_eq!((outcome.verdict, outcome.frame), (Verdict::NotOurs, frame));
    }
}

/// Any bytes behind the headers: the kernel and the host agree, and with no port served nothing changes.
#[test]
fn kernel_and_host_agree_about_anything() {
    let mut tables = served();
    for served in [true, false] {
        if !served {
            tables.services.retain(|key, _| key.addr != NODE);
            tables.fragments.take();
        }
        let mut kernel = Kernel::load(&tables).expect("loading the XDP program");
        let mut random = Random(19);
        for _ in 0..5_000 {
            let proto = [1, 6, 17, 47][random.below(4)];
            let word = [0, 0, 0x2000, 185, 0x8000][random.below(5)];
            let mut bytes: Vec<u8> = (0..random.below(60)).map(|_| random.next() as u8).collect();
            if let Some(port) = bytes.get_mut(2..4) {
                port.copy_from_slice(&[LOCAL, REMOTE, OWN_FLOWS, RESTRICTED, 22][random.below(5)].to_be_bytes());
            }
            let src = [ROUTER, PEER][random.below(2)];
            let frame = Eth { dst: SELF, src }.ipv4(CLIENT, NODE).fragment(word).payload(proto, &bytes);
            let outcome = both(&mut kernel, &tables, &frame);
            assert!(served || (outcome.verdict, &outcome.frame) == (Verdict::NotOurs, &frame), "{frame:02x?}");
        }
    }
}
