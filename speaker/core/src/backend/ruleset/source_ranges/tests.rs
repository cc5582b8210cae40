use alloc::vec;
use core::net::Ipv4Addr;

use super::super::{replace, update};
use super::*;
use crate::backend::tests::{plan, ready};
use crate::view::{Prefix, Protocol, endpoints::service_key, example::VIP};

fn list(ranges: &[(u8, u8)]) -> SourceRanges {
    let range = |(a, length): &(u8, u8)| Prefix { network: Ipv4Addr::new(*a, 0, 0, 0), length: *length };
    ranges.iter().map(range).collect::<Vec<_>>().into()
}

fn many(n: u32) -> SourceRanges {
    let ranges = (0..n).map(|n| Prefix { network: (0x0a00_0000 + 2 * n).into(), length: 32 });
    ranges.collect::<Vec<_>>().into()
}

/// Ports of one pod each, from 1 on, each with a list.
fn with(lists: impl IntoIterator<Item = Option<SourceRanges>>) -> Plan {
    let mut plan = plan([ready("a", 1)]);
    let (_, local) = plan.services.pop_first().unwrap();
    plan.services = BTreeMap::new();
    for (ranges, port) in lists.into_iter().zip(1..) {
        let mut local = local.clone();
        local.attributes.source_ranges = ranges;
        plan.services.insert(service_key(VIP, port, Protocol::Tcp), local);
    }
    plan
}

#[test]
fn a_list_is_a_set_and_a_chain_and_ports_are_led_to_it() {
    let (one, other) = (list(&[(10, 8), (11, 9)]), list(&[]));
    let text = replace(&with([Some(one.clone()), Some(other.clone()), Some(one.clone()), None]));
    let (first, second) = (format!("{:032x}", one.name()), format!("{:032x}", other.name()));
    for line in [
        format!("\tset ranges-{first} {{ type ipv4_addr; flags interval; elements = {{ 10.0.0.0/8, 11.0.0.0/9 }}; }}"),
        format!("\tchain admit-{first} {{ ip saddr != @ranges-{first} counter name source_denied drop; }}"),
        format!("\tset ranges-{second} {{ type ipv4_addr; flags interval; }}"),
        format!(
            "\tmap restricted {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ 192.0.2.1 . tcp . 1 : jump \
             admit-{first}, 192.0.2.1 . tcp . 2 : jump admit-{second}, 192.0.2.1 . tcp . 3 : jump admit-{first} }}; }}"
        ),
        // The first rule of the chain.
        "priority -110; policy accept;\n\t\tiifname \"eth0\" ip daddr @vips ip daddr . meta l4proto . th dport vmap @restricted\n".into(),
    ] {
        assert!(text.contains(&line), "{line}\nis not in\n{text}");
    }
    assert_eq!(text.matches("set ranges-").count(), 2);
}

#[test]
fn a_changed_list_costs_itself_and_its_ports() {
    let before: Vec<_> = (0..200).map(|n| Some(list(&[(n, 32)]))).collect();
    let mut after = before.clone();
    after[7] = Some(list(&[(10, 8)]));
    let (gone, new) = (list(&[(7, 32)]).name(), list(&[(10, 8)]).name());
    let text = update(&with(before.clone()), &with(after.clone())).unwrap();
    let of_ranges = format!(
        "add set ip sheave ranges-{new:032x} {{ type ipv4_addr; flags interval; elements = {{ 10.0.0.0/8 }}; }}\n\
         add chain ip sheave admit-{new:032x}\n\
         add rule ip sheave admit-{new:032x} ip saddr != @ranges-{new:032x} counter name source_denied drop\n\
         delete element ip sheave restricted {{ 192.0.2.1 . tcp . 8 }}\n\
         add element ip sheave restricted {{ 192.0.2.1 . tcp . 8 : jump admit-{new:032x} }}\n\
         flush chain ip sheave admit-{gone:032x}\n\
         delete chain ip sheave admit-{gone:032x}\n\
         delete set ip sheave ranges-{gone:032x}\n"
    );
    assert!(text.starts_with(&of_ranges), "{text}");
    assert!(text.len() < of_ranges.len() + 1000, "{text}");
    // Ports that come to a list that is there, and leave one that stays.
    let mut shared = before.clone();
    shared[9] = Some(list(&[(7, 32)]));
    let (ninth, key) = (list(&[(9, 32)]).name(), "192.0.2.1 . tcp . 10");
    let text = update(&with(before.clone()), &with(shared.clone())).unwrap();
    let led = format!("add element ip sheave restricted {{ {key} : jump admit-{gone:032x} }}\n");
    assert!(text.contains(&led) && !text.contains("add set"), "{text}");
    assert!(text.contains(&format!("delete set ip sheave ranges-{ninth:032x}\n")), "{text}");
    let text = update(&with(shared), &with(before)).unwrap();
    assert!(text.contains(&format!("add set ip sheave ranges-{ninth:032x}")) && !text.contains("delete set"), "{text}");
}

#[test]
fn a_thousand_ports_of_one_service_have_its_ranges_once() {
    let ranges = many(1024);
    let plan = with((0..1000).map(|_| Some(ranges.clone())));
    for text in [replace(&plan), update(&with([]), &plan).unwrap()] {
        assert_eq!(text.matches("10.0.7.254").count(), 1);
        assert_eq!(text.matches("jump admit-").count(), 1000);
    }
}

#[test]
fn beyond_the_limit_the_longest_lists_admit_no_client() {
    let lists = [many(5), many(3), many(4), many(2)];
    let all = Restricted::of(&with(lists.clone().map(Some)));
    assert_eq!(all.lists.len(), 4);
    let Restricted { ports, lists: left } = all.limited(9);
    let no_client = SourceRanges::default();
    let expected = [&no_client, &lists[1], &lists[2], &lists[3]].map(SourceRanges::name);
    assert_eq!(ports.into_values().collect::<Vec<_>>(), expected);
    assert_eq!(left.keys().copied().collect::<BTreeSet<_>>(), expected.into());
    assert!(left[&no_client.name()].is_empty());
    // Whatever a tenant asks for, the table stays within the limit.
    let lists = (0..70).map(|n| Prefix { network: Ipv4Addr::new(9, 0, 0, n), length: 32 });
    let lists = lists.map(|first| {
        let rest: Vec<Prefix> = many(1023).into();
        Some(SourceRanges::from([vec![first], rest].concat()))
    });
    let Restricted { ports, lists } = Restricted::of(&with(lists));
    assert_eq!((ports.len(), lists.values().map(SourceRanges::len).sum::<usize>()), (70, 64 * 1024));
}
