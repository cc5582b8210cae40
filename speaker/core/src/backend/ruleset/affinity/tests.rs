use alloc::string::ToString;
use alloc::vec;
use core::ops::Range;

use super::super::{replace, update};
use super::*;
use crate::attributes::AffinityTimeout;
use crate::backend::affinity::service_hash;
use crate::backend::tests::{plan, ready};
use crate::view::Affinity;
use crate::view::endpoints::service_key;
use crate::view::example::{VIP, web};

fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, b'a', n)
}

/// Ports of one Service with affinity, each with the same pods: on the port's own number.
fn many(ports: Range<u16>, pods: Range<u8>) -> Plan {
    with(ports.map(|port| (port, pods.clone().map(|n| (address(n), port)).collect::<Vec<_>>())))
}

fn with(ports: impl IntoIterator<Item = (u16, Vec<(Ipv4Addr, u16)>)>) -> Plan {
    let mut plan = plan([ready("a", 1)]);
    let (_, mut local) = plan.services.pop_last().unwrap();
    local.attributes.affinity = Affinity::ClientIp;
    let port = |(port, pods)| (service_key(VIP, port, Protocol::Tcp), LocalPods { pods, ..local.clone() });
    plan.services = ports.into_iter().map(port).collect();
    plan
}

fn chains(text: &str) -> usize {
    text.matches("\tchain ").count()
}

#[test]
fn what_a_service_costs_grows_with_its_ports_and_pods_not_with_both() {
    let (none, few, full) = (replace(&many(0..0, 0..0)), replace(&many(1..3, 1..31)), replace(&many(1..1001, 1..31)));
    // One for each pod, that which chooses, and that which asks for clients.
    assert_eq!([few, full.clone()].map(|text| chains(&text) - chains(&none)), [32, 32]);
    let of = |ports: u16, pods: u8| replace(&many(1..1 + ports, 1..1 + pods)).len() - none.len();
    let (port, pod) = (of(2, 1) - of(1, 1), of(1, 2) - of(1, 1));
    let most = of(1, 1) + 999 * (port + 10) + 29 * (pod + 10);
    assert!(full.len() - none.len() <= most, "{} of {most} bytes", full.len() - none.len());
}

#[test]
fn a_change_costs_what_changes() {
    let of = |from: &Plan, to: &Plan| {
        let text = update(from, to).unwrap();
        (text.lines().count(), text)
    };
    let (full, more_ports, more_pods) = (many(2..1001, 1..31), many(2..1002, 1..31), many(2..1001, 1..32));
    let lower = many(1..1001, 1..31);
    for (from, to) in [(&full, &more_ports), (&more_ports, &full), (&full, &lower), (&lower, &full)] {
        let (lines, text) = of(from, to);
        assert_eq!(lines, 3, "an element in each of three maps: {text}");
        assert!(text.len() < 500, "{text}");
    }
    // The two chains that choose among the pods and ask for clients are written anew.
    for (from, to, expected) in [(&full, &more_pods, 70), (&more_pods, &full, 66)] {
        let (lines, text) = of(from, to);
        assert!(lines == expected && text.len() < 150 * lines, "{lines} lines: {text}");
        assert!(!text.contains("element"), "{text}");
    }
    let timeout = AffinityTimeout::new(60).unwrap();
    let mut shorter = full.clone();
    shorter.services.values_mut().for_each(|local| local.attributes.affinity_timeout = timeout);
    let (lines, text) = of(&full, &shorter);
    assert!(lines == 30 * 4 && !text.contains(" set ") && !text.contains("element"), "{text}");
}

#[test]
fn few_pods_are_chosen_by_rules_and_many_by_a_map() {
    for pods in 1..=6 {
        let text = replace(&many(80..82, 1..1 + pods));
        let [rules, maps] = ["==", "vmap"].map(|by| text.matches(&format!("seed 0x53686561 {by} ")).count());
        assert_eq!((rules, maps), if pods <= 4 { (usize::from(pods) - 1, 0) } else { (0, 1) }, "{pods} pods: {text}");
    }
}

/// Sets that are there keep their size: another one would lose their clients.
#[test]
fn a_node_with_many_sets_has_less_room_in_new_ones() {
    let pods = |pods: Range<u8>| many(80..81, pods);
    let (few, more) = (pods(1..129), pods(1..130));
    assert_eq!((replace(&few).matches("size 16384;").count(), replace(&few).matches("size 12288;").count()), (128, 0));
    assert_eq!(
        (replace(&more).matches("size 16384;").count(), replace(&more).matches("size 12288;").count()),
        (0, 129)
    );
    let text = update(&few, &more).unwrap();
    assert_eq!((text.matches(" set ").count(), text.matches("size 12288;").count()), (1, 1), "{text}");
    assert!(!update(&more, &few).unwrap().contains("size"));
}

/// Named ports: two of four pods have other numbers, for both ports; one has a number of its own for one of them.
#[test]
fn pods_that_agree_share_a_map_of_target_ports() {
    let pods = |a: u16, b: u16, c: u16| vec![(address(1), a), (address(2), b), (address(3), b), (address(4), c)];
    let text = replace(&with([(80, pods(8080, 9090, 8080)), (81, pods(8081, 9091, 7777))]));
    let hash = service_hash(&web());
    for line in [
        "\tmap target_ports { type ipv4_addr . inet_proto . inet_service : inet_service; elements = { 192.0.2.1 . tcp . 80 : 8080, \
         192.0.2.1 . tcp . 81 : 8081 }; }"
            .to_string(),
        format!(
            "\tmap target_ports_{hash:016x}_1 {{ type ipv4_addr . inet_proto . inet_service : inet_service; elements = {{ \
             192.0.2.1 . tcp . 80 : 9090, 192.0.2.1 . tcp . 81 : 9091 }}; }}"
        ),
        "_2 { type ipv4_addr . inet_proto . inet_service : inet_service; elements = { 192.0.2.1 . tcp . 80 : 8080, 192.0.2.1 . tcp . 81 : 7777 }; }".to_string(),
        "dnat to 10.0.97.1 : ip daddr . meta l4proto . th dport map @target_ports; }".into(),
        format!("dnat to 10.0.97.3 : ip daddr . meta l4proto . th dport map @target_ports_{hash:016x}_1; }}"),
        format!("dnat to 10.0.97.4 : ip daddr . meta l4proto . th dport map @target_ports_{hash:016x}_2; }}"),
    ] {
        assert!(text.contains(&line), "{line}\nis not in\n{text}");
    }
    assert_eq!(text.matches("chain pod-").count(), 4);
}

#[test]
fn a_port_without_a_pod_of_the_service_has_its_own_choice() {
    let pods = |pods: Range<u8>, port: u16| (port, pods.map(|n| (address(n), port)).collect::<Vec<_>>());
    let text = replace(&with([pods(1..3, 80), pods(1..3, 81), pods(2..3, 82)]));
    let hash = service_hash(&web());
    for line in [
        format!(
            "192.0.2.1 . tcp . 80 : goto service-{hash:016x}, 192.0.2.1 . tcp . 81 : goto service-{hash:016x}, 192.0.2.1 . tcp . 82 : goto tcp-192.0.2.1-82 }}"
        ),
        format!(
            "\tchain tcp-192.0.2.1-82 {{ ip saddr @affinity-{hash:016x}-10.0.97.2 goto pod-{hash:016x}-10.0.97.2; \
             ip saddr @affinity-{hash:016x}-10.0.97.1 goto unrecorded-tcp-192.0.2.1-82; goto pod-{hash:016x}-10.0.97.2; }}"
        ),
        format!("\tchain unrecorded-tcp-192.0.2.1-82 {{ goto unrecorded-pod-{hash:016x}-10.0.97.2; }}"),
        format!("\tchain unrecorded-pod-{hash:016x}-10.0.97.2 {{ meta l4proto tcp dnat to 10.0.97.2 :"),
        format!("\tchain known-tcp-192.0.2.1-82 {{ ip saddr @affinity-{hash:016x}-10.0.97.2 accept; }}"),
    ] {
        assert!(text.contains(&line), "{line}\nis not in\n{text}");
    }
    assert_eq!(text.matches("chain unrecorded-").count(), 2, "where it is needed: {text}");
}

/// On the host's network, with one service port on two numbers.
#[test]
fn endpoints_at_one_address_share_its_clients() {
    let (first, second) = ((address(1), 8080), (address(1), 8081));
    let text = replace(&with([(80, vec![first, second, (address(2), 8080)])]));
    let hash = service_hash(&web());
    for line in [
        format!("\tchain pod-{hash:016x}-10.0.97.1-1 {{ update @affinity-{hash:016x}-10.0.97.1 {{"),
        format!(
            "jhash ip saddr mod 3 seed 0x53686561 == 0 goto pod-{hash:016x}-10.0.97.1; jhash ip saddr mod 3 seed 0x53686561 == 1 \
             goto pod-{hash:016x}-10.0.97.1-1; goto pod-{hash:016x}-10.0.97.2; }}"
        ),
    ] {
        assert!(text.contains(&line), "{line}\nis not in\n{text}");
    }
    assert_eq!(text.matches("\tset affinity-").count(), 2);
    assert_eq!(text.matches(&format!("ip saddr @affinity-{hash:016x}-10.0.97.1 goto")).count(), 1);
}

/// nft has refused one of the Service's ports: it is as before, and the others are new.
#[test]
fn ports_of_which_one_is_held_back_share_the_longer_timeout() {
    let mut plan = many(80..82, 1..3);
    let timeout = AffinityTimeout::new(60).unwrap();
    plan.services.values_mut().take(1).for_each(|local| local.attributes.affinity_timeout = timeout);
    let text = replace(&plan);
    assert_eq!((text.matches("timeout 10800s").count(), text.matches("timeout 60s").count()), (2, 0), "{text}");
}
