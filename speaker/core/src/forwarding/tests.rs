use alloc::vec;

use proptest::prelude::*;

use super::*;
use crate::view::endpoints::service_key;
use crate::view::example::*;
use crate::view::{Conditions, Endpoint, Event, Key, ObjectName, Protocol};

const KEY: [u64; 2] = [1, 2];

fn web_port() -> ServiceKey {
    service_key(VIP, 80, Protocol::Tcp)
}

const NOW: Instant = Instant::from_millis(1_000_000);

fn planner(key: [u64; 2]) -> Planner {
    Planner::new(key, History::new(Duration::from_secs(3600)))
}

fn down(nodes: &BTreeSet<String>) -> Availability {
    Availability { down: nodes.clone(), absent: none() }
}

fn table(view: &View, lost: &BTreeSet<String>) -> Table {
    planner(KEY).table(view, &down(lost), &Words::new(), NOW)
}

/// (node, pods, down) of the ring of port 80.
fn ring_members(endpoints: impl Into<Vec<Endpoint>>, down: &BTreeSet<String>) -> Vec<(String, u32, bool)> {
    let table = table(&view(endpoints), down);
    let members = &table.services[&web_port()].ring.members;
    members.iter().map(|(node, member)| (node.into(), member.pods, member.down)).collect()
}

fn ready(node: &str, n: u8) -> Endpoint {
    pod(node, n, Conditions::READY)
}

fn none() -> BTreeSet<String> {
    BTreeSet::new()
}

#[test]
fn members_are_the_ready_pods_of_each_node() {
    let endpoints = [ready("a", 1), ready("a", 2), ready("c", 1), pod("b", 1, UNREADY), pod("b", 2, TERMINATING)];
    assert_eq!(ring_members(endpoints, &none()), [("a".into(), 2, false), ("c".into(), 1, false)]);
}

#[test]
fn without_ready_pods_terminating_ones_that_serve_count() {
    let endpoints = [pod("a", 1, UNREADY), pod("b", 1, TERMINATING)];
    assert_eq!(ring_members(endpoints, &none()), [("b".into(), 1, false)]);
}

#[test]
fn nobody_serves() {
    let empty = table(&view([pod("a", 1, UNREADY)]), &none());
    assert!(empty.services[&web_port()].ring.rows.is_empty());
    assert_eq!(empty.services.len(), 2, "an empty ring is a service all the same: its clients get a reset");
    assert!(empty.vips.contains(&VIP));
}

#[test]
fn what_the_api_server_says_of_a_lost_node_moves_no_row() {
    let whole = table(&view([ready("a", 1), ready("b", 1), ready("c", 1)]), &none());
    let lost = table(&view([ready("a", 1), ready("b", 1), ready("c", 1)]), &names(["c"]));
    let told = table(&view([ready("a", 1), ready("b", 1), pod("c", 1, UNREADY)]), &names(["c"]));
    assert_eq!(lost.services, told.services);
    let rows = |table: &Table| table.services[&web_port()].ring.rows.clone();
    let (before, after) = (rows(&whole), rows(&lost));
    assert!(before.iter().zip(&after).all(|(&old, &new)| old == new || old == 2));
    assert!(!after.contains(&2));
}

#[test]
fn unready_pods_of_a_lost_node_count_only_while_somebody_serves() {
    let lost = names(["c"]);
    assert_eq!(ring_members([pod("a", 1, UNREADY), pod("c", 1, UNREADY)], &lost), []);
    // Nobody else: the ring is kept, the node may be back in a moment.
    assert_eq!(ring_members([pod("a", 1, UNREADY), ready("c", 1)], &lost), [("c".into(), 1, true)]);
    // Some ready: the others do not count, as before the loss.
    let endpoints = [ready("a", 1), ready("c", 1), pod("c", 2, UNREADY)];
    assert_eq!(ring_members(endpoints, &lost), [("a".into(), 1, false), ("c".into(), 1, true)]);
    // Pods that the control plane has given up are replaced elsewhere.
    assert_eq!(ring_members([ready("a", 1), pod("c", 1, TERMINATING)], &lost), [("a".into(), 1, false)]);
}

#[test]
fn unchanged_rings_are_kept_and_equal_ones_shared() {
    let mut planner = planner(KEY);
    let mut known = view([ready("a", 1), ready("b", 1)]);
    let first = planner.table(&known, &down(&none()), &Words::new(), NOW);
    let other = ObjectName::new("default", "other");
    known.handle(Event::Apply(service(other.clone(), Affinity::ClientIp)));
    known.handle(Event::Apply(vip(Ipv4Addr::new(192, 0, 2, 2), [other])));
    let second = planner.table(&known, &down(&none()), &Words::new(), NOW);
    let ring = |table: &Table, port, protocol| table.services[&service_key(VIP, port, protocol)].ring.clone();
    assert!(Arc::ptr_eq(&ring(&first, 80, Protocol::Tcp), &ring(&second, 80, Protocol::Tcp)));
    assert!(Arc::ptr_eq(&ring(&first, 80, Protocol::Tcp), &ring(&first, 53, Protocol::Udp)));
    assert_eq!(second.services.len(), 4);
    known.handle(Event::Delete(Key::VirtualIp(VIP)));
    known.handle(Event::Delete(Key::VirtualIp(Ipv4Addr::new(192, 0, 2, 2))));
    assert!(planner.table(&known, &down(&none()), &Words::new(), NOW).services.is_empty());
    assert!(planner.rings.is_empty(), "rings that nobody uses are forgotten");
}

#[test]
fn another_hash_key_gives_another_table() {
    let known = view([ready("a", 1), ready("b", 1)]);
    let other = planner([1, 3]).table(&known, &down(&none()), &Words::new(), NOW);
    assert_ne!(table(&known, &none()), other);
}

fn arbitrary_pods() -> impl Strategy<Value = Vec<Endpoint>> {
    let conditions = prop_oneof![Just(Conditions::READY), Just(UNREADY), Just(TERMINATING)];
    let pods = (prop::sample::select(vec!["a", "b", "c"]), 1u8..9, conditions).prop_map(|(node, n, c)| pod(node, n, c));
    proptest::collection::vec(pods, 0..9)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// Whatever order the watch delivered things in, and whatever stood there before.
    #[test]
    fn same_view_same_table(
        pods in arbitrary_pods(),
        before in arbitrary_pods(),
        lost in proptest::collection::btree_set(prop::sample::select(vec!["a", "b", "c"]), 0..3),
    ) {
        let lost: BTreeSet<String> = lost.into_iter().map(String::from).collect();
        let fresh = table(&view(pods.clone()), &lost);
        let mut planner = planner(KEY);
        let mut known = view(before);
        planner.table(&known, &down(&none()), &Words::new(), NOW);
        for object in view(pods).objects().into_iter().rev() {
            known.handle(Event::Apply(object));
        }
        // Former rings have no say in rows, nor in the digest.
        let late = planner.table(&known, &down(&lost), &Words::new(), NOW);
        prop_assert_eq!(late.digest, fresh.digest);
        for (key, service) in fresh.services {
            prop_assert_eq!(&late.services[&key].ring, &service.ring);
        }
    }
}
