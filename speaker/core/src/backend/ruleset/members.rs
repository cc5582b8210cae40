//! What is led to the members of the API server endpoint, counted by port of the addresses and member: connections, bytes of clients, and
//! resets of the member.
//!
//! A packet of such a connection passes this node's input once, if it came in by a link, or else its postrouting once; by `lo`, from a
//! client of this node to this node's member, it passes both. The tuple of the answers has the member's address in both directions, so
//! one key is enough. A nat chain sees the first packet of a connection alone, and must stand before those that bind its source.
//!
//! The counters begin at 0 with each table; the speaker adds them up ([`crate::health::totals`]). Read first: nft(8), "counter", "ct".

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use super::{CLEAR_MARK_PRIORITY, elements, line};
use crate::backend::Plan;
use crate::health::totals::Totals;

/// A counter of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// Of the table's counters, by name, those of members.
pub fn totals(counters: &BTreeMap<String, Count>) -> Totals {
    let mut totals = Totals::new();
    for (name, count) in counters {
        let Some((kind, place)) = parse(name) else { continue };
        let total = totals.entry(place).or_default();
        match kind {
            CONNECTIONS => total.connections = count.packets,
            BYTES => total.bytes = count.bytes,
            _ => total.resets = count.packets,
        }
    }
    totals
}

pub fn objects(text: &mut String, plan: &Plan) {
    for kind in kinds(plan) {
        for (port, member) in &plan.counted {
            line(text, format_args!("\tcounter {} {{ }}", name(kind, *port, *member)));
        }
        let places = plan.counted.iter();
        let places: Vec<String> =
            places.map(|(port, member)| format!("{port} . {member} : \"{}\"", name(kind, *port, *member))).collect();
        line(text, format_args!("\tmap {kind} {{ type inet_service . ipv4_addr : counter; {}}}", elements(&places)));
    }
}

pub fn chains(text: &mut String, plan: &Plan) {
    if plan.counted.is_empty() {
        return;
    }
    line(text, format_args!("\tchain member_traffic {{"));
    line(text, format_args!("\t\t{TCP} ct direction original counter name {PLACE} map @{BYTES}"));
    line(text, format_args!("\t\t{TCP} ct direction reply tcp flags & rst == rst counter name {PLACE} map @{RESETS}"));
    line(text, format_args!("\t}}"));
    for (hook, of) in [("input", "iifname != \"lo\" "), ("postrouting", "")] {
        line(text, format_args!("\tchain member_connections_{hook} {{"));
        line(text, format_args!("\t\ttype nat hook {hook} priority {BEFORE_SOURCES}; policy accept;"));
        line(text, format_args!("\t\t{OURS} counter name {PLACE} map @{CONNECTIONS}"));
        line(text, format_args!("\t}}"));
        line(text, format_args!("\tchain member_traffic_{hook} {{"));
        line(text, format_args!("\t\ttype filter hook {hook} priority 0; policy accept;"));
        line(text, format_args!("\t\t{of}{OURS} goto member_traffic"));
        line(text, format_args!("\t}}"));
    }
}

fn kinds(plan: &Plan) -> impl Iterator<Item = &'static str> {
    [CONNECTIONS, BYTES, RESETS].into_iter().filter(|_| !plan.counted.is_empty())
}

fn name(kind: &str, port: u16, member: Ipv4Addr) -> String {
    format!("{kind}-{port}-{member}")
}

fn parse(name: &str) -> Option<(&'static str, (u16, Ipv4Addr))> {
    let mut words = name.splitn(3, '-');
    let kind = words.next()?;
    let kind = [CONNECTIONS, BYTES, RESETS].into_iter().find(|known| *known == kind)?;
    Some((kind, (words.next()?.parse().ok()?, words.next()?.parse().ok()?)))
}

const CONNECTIONS: &str = "member_connections";
const BYTES: &str = "member_bytes";
const RESETS: &str = "member_resets";
/// In each rule: nft wants to know that there are ports.
const TCP: &str = "meta l4proto tcp";
const OURS: &str = "meta l4proto tcp ct status dnat ct original ip daddr @vips";
const PLACE: &str = "ct original proto-dst . ct reply ip saddr";
/// A nat chain that masquerades ends the walk.
const BEFORE_SOURCES: i32 = CLEAR_MARK_PRIORITY - 10;

#[cfg(test)]
mod tests {
    use super::super::{needs_replace, replace, update};
    use super::*;
    use crate::backend::tests::{plan, ready};
    use crate::health::totals::Total;

    #[test]
    fn each_port_and_member_has_three_counters() {
        let without = plan([ready("a", 1)]);
        assert!(!replace(&without).contains("member_"));
        let counted = [(443, [192, 0, 2, 11].into()), (6443, [192, 0, 2, 12].into())].into();
        let with = Plan { counted, ..without.clone() };
        let text = replace(&with);
        for words in [
            "counter member_bytes-443-192.0.2.11 { }",
            "map member_resets { type inet_service . ipv4_addr : counter; ",
            "elements = { 443 . 192.0.2.11 : \"member_resets-443-192.0.2.11\", ",
            "type nat hook postrouting priority 80;",
            "iifname != \"lo\" meta l4proto tcp",
        ] {
            assert!(text.contains(words), "{words} is not in {text}");
        }
        assert!(needs_replace(&without, &with) && !needs_replace(&with, &with));
        assert_eq!(update(&without, &with), Some(text));
    }

    #[test]
    fn names_lead_back_to_port_and_member() {
        let member = Ipv4Addr::new(192, 0, 2, 11);
        let count = |packets| Count { packets, bytes: 100 * packets };
        let counters = [
            (name(CONNECTIONS, 443, member), count(1)),
            (name(BYTES, 443, member), count(2)),
            (name(RESETS, 443, member), count(3)),
            ("guard_reset".into(), count(4)),
            ("member_bytes-443".into(), count(5)),
            ("member_bytes-66666-192.0.2.11".into(), count(6)),
            ("member_other-443-192.0.2.11".into(), count(7)),
        ];
        let expected = Total { connections: 1, bytes: 200, resets: 3 };
        assert_eq!(totals(&counters.into()), [((443, member), expected)].into());
    }
}
