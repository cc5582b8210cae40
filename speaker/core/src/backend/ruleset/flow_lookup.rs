//! `flow_lookup`: is the flow known here? If not, the mark names the next hop.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use ebpf_common::{Mark, NextHop, SearchState};

use super::{FLOW, IS_FIN, IS_SYN, SLOT_MASK, affinity, line, mac, node_ports};
use crate::backend::{Guard, Plan};

/// Known flows go on; the mark decides about the others.
pub fn chains(text: &mut String, plan: &Plan) {
    let no_reset = Guard::NoReset.label();
    let unmarked = Guard::Unmarked.label();
    // The time to live with which the copy arrives, plus the one that `dup` takes.
    let ttl = |hop, no_reset| SearchState { hop, no_reset }.ttl() + 1;

    line(text, format_args!("\tchain no-reset {{ counter name {no_reset} drop; }}"));
    if plan.second_chance {
        // The maps may be ahead of these rules: a node has joined, or has another address. What it may know is sent again a moment
        // later; a SYN goes on as if it had no next hop.
        let slot = format!("ether saddr & {} vmap @peers", mac(SLOT_MASK));
        line(text, format_args!("\tchain to-peer {{ {slot}; {IS_SYN} accept; goto no-reset; }}"));
        line(text, format_args!("\tchain to-peer-no-reset {{ {slot}; goto no-reset; }}"));
        let later = [NextHop::Alternate(2), NextHop::Alternate(3), NextHop::ToPrimary];
        for (next_hop, no_reset, chain) in MARKS.into_iter().filter(|(next_hop, ..)| later.contains(next_hop)) {
            let (ttl, next) = (ttl(next_hop.hop(), no_reset), if no_reset { "to-peer-no-reset" } else { "to-peer" });
            let known = affinity::KNOWN_CLIENT;
            line(text, format_args!("\tchain {chain} {{ jump {known}; ip ttl set {ttl} goto {next}; }}"));
        }
        line(text, format_args!("\tchain alternate-1-in-fragments {{"));
        line(text, format_args!("\t\tjump {}", affinity::KNOWN_CLIENT));
        // Conntrack calls a FIN invalid whenever it does not know the flow; it deserves its reset all the same.
        line(text, format_args!("\t\t{IS_FIN} ip ttl set {} goto to-peer", ttl(1, false)));
        // Invalid also where the flow is: out of its window, damaged. A reset from elsewhere could end it.
        line(text, format_args!("\t\tct state invalid ip ttl set {} goto to-peer-no-reset", ttl(1, true)));
        line(text, format_args!("\t\tip ttl set {} goto to-peer", ttl(1, false)));
        line(text, format_args!("\t}}"));
        // Not for fragments: the next node puts them together by their identification.
        let origin = plan.address.map(|address| format!("ip id set {} ", SearchState::origin_id(address.octets())));
        line(
            text,
            format_args!(
                "\tchain alternate-1 {{ jump {}; {}goto alternate-1-in-fragments; }}",
                affinity::KNOWN_CLIENT,
                origin.unwrap_or_default()
            ),
        );
        line(
            text,
            format_args!(
                "\tchain to-dispatcher {{ limit rate {BACK_PER_SECOND}/second burst {BACK_PER_SECOND} packets goto alternate-1; accept; }}"
            ),
        );
    }
    let verdicts: Vec<String> = MARKS
        .iter()
        .map(|&(next_hop, no_reset, chain)| {
            let verdict = match (next_hop, no_reset) {
                (NextHop::Local, false) => "accept".into(),
                (NextHop::Local, true) => "goto no-reset".into(),
                _ if plan.second_chance => format!("goto {chain}"),
                (_, false) => "accept".into(),
                (_, true) => "goto no-reset".into(),
            };
            format!("{} : {verdict}", mac(Mark { next_hop, no_reset, slot: 0 }.mac()))
        })
        .collect();
    line(text, format_args!("\tchain unknown {{"));
    line(text, format_args!("\t\tether saddr & {} vmap {{ {} }}", mac(NEXT_HOP_MASK), verdicts.join(", ")));
    // Without a mark XDP has not seen it, and it may be another node's. Only a SYN begins a flow for certain.
    line(text, format_args!("\t\t{IS_SYN} accept"));
    line(text, format_args!("\t\tcounter name {unmarked} drop"));
    line(text, format_args!("\t}}"));

    known_flows(text);
    node_ports::source_denied(text);
    node_ports::flow_lookup(text);
    line(text, format_args!("\tchain flow_lookup {{"));
    line(text, format_args!("\t\ttype filter hook prerouting priority {FLOW_LOOKUP_PRIORITY}; policy accept;"));
    // Translated once, and not held: a flow of this node. Most packets go no further than this. (What kube-proxy translates goes
    // on too: it is not for a VIP, or was begun while this table was missing.)
    line(text, format_args!("\t\t{IS_KNOWN} ip ttl != {} accept", Mark::GUARD_TTL));
    line(text, format_args!("\t\tiifname != \"{}\" accept", plan.uplink.as_str()));
    line(text, format_args!("\t\tip daddr @vips goto known_flows"));
    line(text, format_args!("\t\tip daddr @node_addresses goto node_flow_lookup"));
    line(text, format_args!("\t}}"));
}

/// Of packets to VIPs and node ports.
fn known_flows(text: &mut String) {
    line(text, format_args!("\tchain known_flows {{"));
    // As XDP left it, the packet would not be forwarded: see `GUARD_TTL`.
    line(text, format_args!("\t\tip ttl {} ip ttl set {}", Mark::GUARD_TTL, Mark::KNOWN_TTL));
    line(text, format_args!("\t\t{IS_KNOWN} accept"));
    // The client has not confirmed data of a pod of this node, and this is no confirmation either: it is an answer to another
    // node, which got the SYN first. Since Linux 6.1 conntrack lets it pass (`tcp_in_window`: "ACK is under the lower bound"),
    // and our pod would end the client's connection with a reset.
    line(text, format_args!("\t\tct status dnat {IS_ACK} goto unknown"));
    // UDP also before the pod has answered; an ICMP error counts as the flow that it quotes.
    line(text, format_args!("\t\tct status dnat accept"));
    line(text, format_args!("\t\tmeta l4proto udp {FLOW} @udp_pin accept"));
    line(text, format_args!("\t\tgoto unknown"));
    line(text, format_args!("\t}}"));
}

/// Each mark: next hop, without reset or not, and its chain. XDP never sets `NextHop::Alternate(1)` without reset: whether a
/// packet is invalid shows here.
const MARKS: [(NextHop, bool, &str); 11] = [
    (NextHop::Local, false, ""),
    (NextHop::Local, true, ""),
    (NextHop::Alternate(1), false, "alternate-1"),
    (NextHop::InFragments, false, "alternate-1-in-fragments"),
    (NextHop::ToDispatcher, false, "to-dispatcher"),
    (NextHop::Alternate(2), false, "alternate-2"),
    (NextHop::Alternate(2), true, "alternate-2-no-reset"),
    (NextHop::Alternate(3), false, "alternate-3"),
    (NextHop::Alternate(3), true, "alternate-3-no-reset"),
    (NextHop::ToPrimary, false, "to-primary"),
    (NextHop::ToPrimary, true, "to-primary-no-reset"),
];
pub const NEXT_HOP_MASK: [u8; 6] = [0xff, 0xff, 0xff, 0xff, 0, 0];
const IS_ACK: &str = "tcp flags & (fin | syn | rst | ack) == ack";
/// Translated and seen both ways, in conntrack.
const IS_KNOWN: &str = "ct status & (dnat | assured) == (dnat | assured)";
/// Behind conntrack (-200), before our nat chain: a packet that is forwarded leaves no entry.
const FLOW_LOOKUP_PRIORITY: i32 = -150;
/// Packets that go back to their dispatchers, from all of this node: a flood of segments of no flow stays spread over the nodes. A second's
/// worth of them at once: many clients send in the same moment (with nft's own default of 5, 952 connections were reset in one run of 1,000 clients).
const BACK_PER_SECOND: u32 = 20_000;
