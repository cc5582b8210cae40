//! The verdicts of ARP: about VIPs, and another node's question for this program. Read first: docs/dataplane.md, "Stated rules"; RFC 826, RFC 5227.

use ebpf_common::{PROGRAM_QUERY, Verdict};
use sheave_tests::packet::{Addr, Arp, BROADCAST, Eth, Mac};

use super::xdp_world::*;
use super::{ASKER, Case, case, changed, is_at, padded, who_has};

pub fn cases() -> Vec<Case> {
    let from_router = |arp| Eth { dst: BROADCAST, src: ROUTER }.arp(arp);
    let unicast = |dst: Mac| Eth { dst, src: ROUTER }.arp(Arp::request(ROUTER, ASKER, VIP));
    let gratuitous = Arp { operation: 1, sender_mac: PEER, sender: OTHER, target_mac: [0; 6], target: OTHER };
    let mut other_hardware = who_has(VIP);
    other_hardware[15] = 6;
    vec![
        changed("request for an owned VIP", who_has(VIP), Verdict::ArpAnswered, is_at(VIP, ASKER)),
        changed("with padding", padded(who_has(VIP)), Verdict::ArpAnswered, padded(is_at(VIP, ASKER))),
        changed(
            "probe (RFC 5227)",
            from_router(Arp::request(ROUTER, [0; 4], VIP)),
            Verdict::ArpAnswered,
            is_at(VIP, [0; 4]),
        ),
        changed("unicast to us", unicast(SELF), Verdict::ArpAnswered, is_at(VIP, ASKER)),
        case("unicast to another, flooded", unicast(STRANGER), Verdict::NotOurs),
        case("request for another's VIP", who_has(OTHER), Verdict::ArpNotOwner),
        case("request for a node", who_has(NODE), Verdict::NotOurs),
        case("gratuitous request", from_router(gratuitous), Verdict::ArpAnnouncement),
        case("gratuitous reply", from_router(Arp { operation: 2, ..gratuitous }), Verdict::ArpAnnouncement),
        case("gratuitous for an owned VIP", from_router(Arp::request(PEER, VIP, VIP)), Verdict::ArpAnnouncement),
        case("a request of a VIP for a VIP", from_router(Arp::request(PEER, OTHER, VIP)), Verdict::ArpAnnouncement),
        case(
            "reply to a VIP",
            Eth { dst: SELF, src: ROUTER }.arp(Arp { operation: 2, ..Arp::request(ROUTER, ASKER, VIP) }),
            Verdict::ArpAnnouncement,
        ),
        case("a group as asker", from_router(Arp::request(BROADCAST, ASKER, VIP)), Verdict::Malformed),
        case("no sender", from_router(Arp::request([0; 6], ASKER, VIP)), Verdict::Malformed),
        case("not Ethernet", other_hardware, Verdict::NotOurs),
        changed("a peer's question", asks(SELF, PEER), Verdict::ProgramAnswered, answers(PEER)),
        changed("to broadcast", asks(BROADCAST, PEER), Verdict::ProgramAnswered, answers(PEER)),
        changed("padded", padded(asks(SELF, PEER)), Verdict::ProgramAnswered, padded(answers(PEER))),
        case("a stranger's question", asks(SELF, STRANGER), Verdict::NotOurs),
        case("a question for another node, flooded", asks(FOURTH, PEER), Verdict::NotOurs),
        case(
            "a question about another node",
            Eth { dst: BROADCAST, src: PEER }.arp(question(PEER, ASKER)),
            Verdict::NotOurs,
        ),
        case(
            "a question in another's name",
            Eth { dst: SELF, src: PEER }.arp(question(FOURTH, NODE)),
            Verdict::NotOurs,
        ),
        case(
            "an answer",
            Eth { dst: SELF, src: PEER }.arp(Arp { operation: 2, ..question(PEER, NODE) }),
            Verdict::NotOurs,
        ),
    ]
}

/// Is there a program of ours?
fn question(sender_mac: Mac, target: Addr) -> Arp {
    Arp { target_mac: PROGRAM_QUERY, ..Arp::request(sender_mac, ASKER, target) }
}

fn asks(dst: Mac, src: Mac) -> Vec<u8> {
    Eth { dst, src }.arp(question(src, NODE))
}

fn answers(to: Mac) -> Vec<u8> {
    let answer = Arp { operation: 2, sender_mac: SELF, sender: NODE, target_mac: PROGRAM_QUERY, target: ASKER };
    Eth { dst: to, src: SELF }.arp(answer)
}
