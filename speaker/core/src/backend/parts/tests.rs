use alloc::vec;

use super::super::tests::{plan, ready};
use super::*;
use crate::startup::Target;
use crate::view::{Protocol, endpoints::service_key, example::VIP};

fn port(n: u16) -> Part {
    Part::Port(service_key(VIP, n, Protocol::Tcp))
}

/// What a kernel that refuses these parts is led to: those that are blamed, those that came into force, and the transactions.
fn search(parts: u16, bad: &[u16], attempts: usize) -> (BTreeSet<Part>, BTreeSet<Part>, Vec<Part>, usize) {
    let bad: BTreeSet<Part> = bad.iter().map(|n| port(*n)).collect();
    let mut search = Search::new((1..=parts).map(port), true, attempts);
    let (mut blamed, mut taken, mut tried) = (BTreeSet::new(), BTreeSet::new(), 0);
    while let Some(group) = search.next_group() {
        tried += 1;
        match group.iter().any(|part| bad.contains(part)) {
            true => blamed.extend(search.refused(group)),
            false => taken.extend(group),
        }
    }
    let (unknown, left) = search.end();
    assert_eq!(left, attempts - tried);
    (blamed, taken, unknown, tried)
}

#[test]
fn one_part_of_thousands_is_found_in_few_transactions() {
    for bad in [1, 77, 4096, 8192] {
        let (blamed, taken, unknown, tried) = search(8192, &[bad], 40);
        assert_eq!((blamed, taken.len(), unknown), ([port(bad)].into(), 8191, vec![]));
        assert_eq!(tried, 26);
    }
    assert_eq!(search(1, &[1], 40).0, [port(1)].into());
}

#[test]
fn groups_are_cut_to_what_fits() {
    for (refused, most) in [(false, 3), (true, 3), (false, 0), (true, 100)] {
        let mut search = Search::new((1..=10).map(port), refused, 40).at_most(most);
        let groups: Vec<Vec<Part>> = core::iter::from_fn(|| search.next_group()).collect();
        assert!(groups.iter().all(|group| !group.is_empty() && group.len() <= most.max(1)), "{groups:?}");
        assert_eq!(groups.concat(), (1..=10).map(port).collect::<Vec<_>>());
    }
}

#[test]
fn the_work_is_bounded_and_no_part_is_forgotten() {
    let bad: Vec<u16> = (1..=100).map(|n| n * 9).collect();
    let (blamed, taken, unknown, tried) = search(1000, &bad, 40);
    assert_eq!(tried, 40);
    let unknown: BTreeSet<Part> = unknown.into_iter().collect();
    let all: BTreeSet<Part> = blamed.union(&taken).chain(&unknown).copied().collect();
    assert_eq!((all.len(), blamed.len() + taken.len() + unknown.len()), (1000, 1000));
    assert!(!blamed.is_empty() && !taken.is_empty(), "the next search has less to do");
    let (blamed, taken, unknown, _) = search(1000, &bad, 4000);
    assert_eq!((blamed.len(), taken.len(), unknown.len()), (100, 900, 0));
}

#[test]
fn every_change_is_of_a_part_and_parts_lead_from_plan_to_plan() {
    let before = plan([ready("a", 1)]);
    let mut after = plan([ready("a", 1), ready("a", 2)]).with_peers([(2, Ipv4Addr::new(192, 0, 2, 12))].into());
    let [http, dns] = [(80, Protocol::Tcp), (53, Protocol::Udp)].map(|(port, proto)| service_key(VIP, port, proto));
    let new = Target { address: Ipv4Addr::new(10, 0, b'a', 2), port: 8080 };
    after.starting = [new].into();
    let changes = before.changes(&after);
    assert!(changes.contains(&Part::Port(http)) && changes.contains(&Part::Rest));
    assert!(after.changes(&after).is_empty());
    assert_eq!(before.with(&after, &changes), after);
    assert_eq!(after.with(&before, &after.changes(&before)), before);

    // One that is left out stays as it was, and its new pod has not started.
    let without: BTreeSet<Part> = changes.iter().filter(|part| **part != Part::Port(http)).copied().collect();
    let held = before.with(&after, &without);
    assert_eq!((&held.services[&http], &held.peers), (&before.services[&http], &after.peers));
    assert_eq!(held.services.get(&dns), after.services.get(&dns));
    assert!(held.starting.is_empty());
    assert_eq!(held.changes(&after), [Part::Port(http)].into());
    assert_ne!(before.content(&Part::Port(http)), after.content(&Part::Port(http)));
    assert_ne!(before.content(&Part::Rest), after.content(&Part::Rest));
    assert_eq!(held.content(&Part::Rest), after.content(&Part::Rest));

    // Gone: no rule for it.
    let none = after.with(&after.without_ports(), &[Part::Port(http)].into());
    assert!(!none.services.contains_key(&http) && none.services.len() + 1 == after.services.len());
}
