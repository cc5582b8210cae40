use alloc::vec;

use proptest::prelude::*;

use super::*;
use crate::reports::Reported;
use crate::view::endpoints::service_key;
use crate::view::example::*;
use crate::view::{
    Affinity, Conditions, Endpoint, EndpointSlice, Event, Key, L2Advertisement, Object, ObjectName, Protocol, VirtualIp,
};

const KEY: [u64; 2] = [1, 2];

fn web_port() -> ServiceKey {
    service_key(VIP, 80, Protocol::Tcp)
}

const NOW: Instant = Instant::from_millis(1_000_000);

fn planner(key: [u64; 2]) -> Planner {
    Planner::new(key, PreviousRings::new(Duration::from_secs(3600)))
}

fn down(nodes: &BTreeSet<String>) -> TrafficStates {
    TrafficStates { no_flows: nodes.clone(), ..TrafficStates::default() }
}

fn table(view: &View, lost: &BTreeSet<String>) -> Table {
    planner(KEY).table(view, &down(lost), &Reports::new(), NOW)
}

/// (node, pods, down) of the ring of port 80, and whether it takes no new flows.
fn web_ring(endpoints: impl Into<Vec<Endpoint>>, traffic_states: &TrafficStates) -> (Vec<(String, u32, bool)>, bool) {
    let table = planner(KEY).table(&view(endpoints), traffic_states, &Reports::new(), NOW);
    let service = &table.services[&web_port()];
    let members = service.ring.members.iter().map(|(node, member)| (node.into(), member.pods, member.down));
    (members.collect(), service.no_new_flows)
}

/// The same of a ring that is open.
fn ring_members(endpoints: impl Into<Vec<Endpoint>>, lost: &BTreeSet<String>) -> Vec<(String, u32, bool)> {
    let (members, no_new_flows) = web_ring(endpoints, &down(lost));
    assert!(!no_new_flows);
    members
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

/// The ring's members where these pods have not started, by address.
fn ring_of_started(endpoints: impl Into<Vec<Endpoint>>, unstarted: &[Endpoint], states: &TrafficStates) -> Vec<String> {
    let view = view(endpoints);
    let (mut frontends, refused) = frontends(&view);
    for pod in frontends.get_mut(&web_port()).into_iter().flat_map(|frontend| &mut frontend.pods) {
        pod.started = !unstarted.iter().any(|endpoint| endpoint.address == pod.address);
    }
    let table = planner(KEY).table_of(&view, &(frontends, refused), states, &Reports::new(), NOW);
    let dns = &table.services[&service_key(VIP, 53, Protocol::Udp)];
    assert!(dns.ring.members != table.services[&web_port()].ring.members, "ports of one Service differ");
    let up = table.services[&web_port()].ring.members.iter().filter(|(_, member)| !member.down);
    up.map(|(node, member)| alloc::format!("{node}{}", member.pods)).collect()
}

#[test]
fn a_pod_that_has_not_started_has_no_rows_while_another_accepts() {
    let states = TrafficStates::default();
    let all = [ready("a", 1), ready("a", 2), ready("b", 1)];
    assert_eq!(ring_of_started(all.clone(), &[ready("b", 1)], &states), ["a2"]);
    assert_eq!(ring_of_started(all.clone(), &[ready("a", 1)], &states), ["a1", "b1"]);
    // A pod that ends accepts, as far as is known; one that has not started refuses.
    let ending = [pod("a", 1, TERMINATING), ready("b", 1)];
    assert_eq!(ring_of_started(ending, &[ready("b", 1)], &states), ["a1"]);
    // So does one on a node whose speaker is silent.
    let silent = TrafficStates { existing_only: names(["a"]), ..TrafficStates::default() };
    assert_eq!(ring_of_started([ready("a", 1), ready("b", 1)], &[ready("b", 1)], &silent), ["a1"]);
}

#[test]
fn where_no_pod_has_started_all_have_rows_and_refuse_themselves() {
    let all = [ready("a", 1), ready("b", 1), pod("c", 1, UNREADY)];
    let view = view(all);
    let (mut frontends, refused) = frontends(&view);
    frontends.values_mut().flat_map(|frontend| &mut frontend.pods).for_each(|pod| pod.started = false);
    let table = planner(KEY).table_of(&view, &(frontends, refused), &TrafficStates::default(), &Reports::new(), NOW);
    let web = &table.services[&web_port()];
    assert_eq!((web.no_new_flows, web.ring.nodes.clone()), (false, ["a", "b"].map(String::from).to_vec()));
}

#[test]
fn without_a_pod_the_ring_is_empty() {
    let empty = table(&view([]), &none());
    assert!(empty.services[&web_port()].ring.rows.is_empty());
    assert_eq!(empty.services.len(), 2, "an empty ring is a service all the same: its clients get a reset");
    assert!(empty.vips.contains(&VIP));
}

/// Their open flows live, so no row may move.
#[test]
fn pods_that_all_turn_unready_keep_their_rows_and_get_nothing_new() {
    let serving = table(&view([ready("a", 1), ready("b", 1)]), &none());
    let no_new_flows = table(&view([pod("a", 1, UNREADY), pod("b", 1, UNREADY)]), &none());
    let web = |table: &Table| table.services[&web_port()].clone();
    assert_eq!((web(&serving).no_new_flows, web(&no_new_flows).no_new_flows), (false, true));
    assert_eq!(web(&serving).ring, web(&no_new_flows).ring);
    assert_ne!(serving.digest, no_new_flows.digest, "nodes that disagree on it go by different tables");
}

/// Its selector was changed: the pods may live, and their open flows with them.
#[test]
fn a_service_that_names_no_pod_any_more_keeps_its_rows_and_gets_nothing_new() {
    let mut planner = planner(KEY);
    let mut make = |endpoints: Vec<Endpoint>, lost: &BTreeSet<String>, now| {
        planner.table(&view(endpoints), &down(lost), &Reports::new(), now)
    };
    let later = NOW + Duration::from_secs(100 * 3600);
    let serving = make(vec![ready("a", 1), ready("b", 1)], &none(), NOW);
    let unnamed = make(vec![], &none(), NOW);
    let still = make(vec![], &none(), later);
    let lost = make(vec![], &names(["b"]), later);
    let back = make(vec![ready("c", 1)], &none(), later);
    let web = |table: &Table| table.services[&web_port()].clone();
    assert_eq!((web(&unnamed).no_new_flows, &web(&unnamed).ring.rows), (true, &web(&serving).ring.rows));
    assert_eq!(web(&still).ring, web(&unnamed).ring, "there is no time limit");
    assert!((0..4093).all(|row| web(&lost).ring.primary(row) == Some("a")), "clients of a lost node get their reset");
    assert_eq!((web(&back).no_new_flows, web(&back).ring.primary(0)), (false, Some("c")));
    assert_eq!(
        web(&back).alternates.unwrap().of(0).collect::<Vec<_>>(),
        ["a", "b"],
        "the previous members are alternates"
    );
    // A node that is new has not seen them, and no alarm is raised.
    let fresh = table(&view([]), &none());
    assert_eq!((fresh.digest, web(&fresh).ring.rows.len()), (unnamed.digest, 0));
}

#[test]
fn the_last_pods_of_a_service_are_known_after_a_restart_and_forgotten_with_their_nodes() {
    let mut first = planner(KEY);
    let serving = first.table(&view([ready("a", 1)]), &down(&none()), &Reports::new(), NOW);
    first.table(&view([]), &down(&none()), &Reports::new(), NOW);
    let saved = first.previous_rings().save("boot", NOW);
    let previous_rings = PreviousRings::restore(&saved, Duration::from_secs(3600), "boot", NOW).unwrap();
    let mut second = Planner::new(KEY, previous_rings);
    let restarted = second.table(&view([]), &down(&none()), &Reports::new(), NOW);
    assert_eq!(restarted.services[&web_port()].ring, serving.services[&web_port()].ring);
    let mut without = view([]);
    without.handle(Event::Delete(Key::Node("a".into())));
    let gone = second.table(&without, &down(&none()), &Reports::new(), NOW);
    assert!(gone.services[&web_port()].ring.rows.is_empty() && !gone.services[&web_port()].no_new_flows);
}

#[test]
fn the_status_of_a_lost_node_moves_no_row() {
    let whole = table(&view([ready("a", 1), ready("b", 1), ready("c", 1)]), &none());
    let lost = table(&view([ready("a", 1), ready("b", 1), ready("c", 1)]), &names(["c"]));
    let late_status = table(&view([ready("a", 1), ready("b", 1), pod("c", 1, UNREADY)]), &names(["c"]));
    assert_eq!(lost.services, late_status.services);
    let rows = |table: &Table| table.services[&web_port()].ring.rows.clone();
    let (before, after) = (rows(&whole), rows(&lost));
    assert!(before.iter().zip(&after).all(|(&old, &new)| old == new || old == 2));
    assert!(!after.contains(&2));
}

#[test]
fn unready_pods_of_a_lost_node_count_only_while_a_node_answers() {
    let lost = names(["c"]);
    assert_eq!(ring_members([pod("c", 1, UNREADY)], &lost), [], "for its clients to get their reset");
    // No node is left: the ring is kept, the nodes may be back in a moment.
    assert_eq!(ring_members([ready("c", 1)], &lost), [("c".into(), 1, true)]);
    // A node is left whose flows live, and which resets the others.
    for other in [pod("c", 1, UNREADY), ready("c", 1)] {
        let no_new_flows = (vec![("a".into(), 1, false), ("c".into(), 1, true)], true);
        assert_eq!(web_ring([pod("a", 1, UNREADY), other], &down(&lost)), no_new_flows);
    }
    // Some ready: the others do not count, as before the loss.
    let endpoints = [ready("a", 1), ready("c", 1), pod("c", 2, UNREADY)];
    assert_eq!(ring_members(endpoints, &lost), [("a".into(), 1, false), ("c".into(), 1, true)]);
    // Pods that the control plane has given up are replaced elsewhere.
    assert_eq!(ring_members([ready("a", 1), pod("c", 1, TERMINATING)], &lost), [("a".into(), 1, false)]);
}

/// As a node sees it that does not reach the API server, and whose silent peers are known: only itself is left.
#[test]
fn silent_nodes_serve_where_no_other_does_and_lost_ones_get_nothing() {
    let traffic_states =
        TrafficStates { no_flows: names(["b"]), existing_only: names(["c"]), ..TrafficStates::default() };
    let alone = (vec![("b".into(), 1, true), ("c".into(), 1, false)], false);
    assert_eq!(web_ring([ready("b", 1), ready("c", 1)], &traffic_states), alone);
    let others = (vec![("a".into(), 1, false), ("b".into(), 1, true), ("c".into(), 1, true)], false);
    assert_eq!(web_ring([ready("a", 1), ready("b", 1), ready("c", 1)], &traffic_states), others);
}

#[test]
fn unchanged_rings_are_kept_and_equal_ones_shared() {
    let mut planner = planner(KEY);
    let mut known = view([ready("a", 1), ready("b", 1)]);
    let first = planner.table(&known, &down(&none()), &Reports::new(), NOW);
    let other = ObjectName::new("default", "other");
    known.handle(Event::Apply(service(other.clone(), Affinity::ClientIp)));
    known.handle(Event::Apply(vip(Ipv4Addr::new(192, 0, 2, 2), [other])));
    let second = planner.table(&known, &down(&none()), &Reports::new(), NOW);
    let ring = |table: &Table, port, protocol| table.services[&service_key(VIP, port, protocol)].ring.clone();
    assert!(Arc::ptr_eq(&ring(&first, 80, Protocol::Tcp), &ring(&second, 80, Protocol::Tcp)));
    assert!(Arc::ptr_eq(&ring(&first, 80, Protocol::Tcp), &ring(&first, 53, Protocol::Udp)));
    assert_eq!(second.services.len(), 4);
    known.handle(Event::Delete(Key::VirtualIp(VIP)));
    known.handle(Event::Delete(Key::VirtualIp(Ipv4Addr::new(192, 0, 2, 2))));
    assert!(planner.table(&known, &down(&none()), &Reports::new(), NOW).services.is_empty());
    assert!(planner.rings.is_empty(), "unused rings are dropped");
}

#[test]
fn another_hash_key_gives_another_table() {
    let known = view([ready("a", 1), ready("b", 1)]);
    let other = planner([1, 3]).table(&known, &down(&none()), &Reports::new(), NOW);
    assert_ne!(table(&known, &none()), other);
}

fn excluded(mut known: View, nodes: &[&str]) -> View {
    for name in nodes {
        let node = crate::view::Node { excluded: true, ..known.nodes()[*name].clone() };
        known.handle(Event::Apply(crate::view::Object::Node((*name).into(), node)));
    }
    known
}

#[test]
fn nodes_that_take_no_new_flows_are_not_asked_for_clients() {
    let known = view([ready("a", 1), ready("b", 1), ready("c", 1)]);
    let closed = |known: &View, traffic_states: &TrafficStates| {
        planner(KEY).table(known, traffic_states, &Reports::new(), NOW).existing_only
    };
    assert!(closed(&known, &TrafficStates::default()).is_empty());
    let silent = TrafficStates { existing_only: ["b".into()].into(), ..TrafficStates::default() };
    assert_eq!(closed(&known, &silent), ["b".into()].into());
    assert_eq!(closed(&excluded(known, &["c"]), &silent), ["b".into()].into(), "the label is another matter");
}

/// Nodes with the exclude label: (they have it, the service lets them take new flows).
fn label(known: &View) -> (Vec<String>, bool) {
    let table = planner(KEY).table(known, &TrafficStates::default(), &Reports::new(), NOW);
    (table.excluded.iter().cloned().collect(), table.services[&web_port()].excluded_take)
}

#[test]
fn excluded_nodes_are_asked_for_clients_where_the_label_is_ignored() {
    let known = view([ready("a", 1), ready("b", 1), ready("c", 1)]);
    assert_eq!(label(&known), (vec![], false));
    let one = excluded(known.clone(), &["c"]);
    assert_eq!(label(&one), (vec!["c".into()], false));
    let mut ignoring = one.clone();
    let advertisement = L2Advertisement { ignores_exclude_label: true, ..L2Advertisement::default() };
    ignoring.handle(Event::Apply(Object::L2Advertisement("x".into(), advertisement)));
    let vip = VirtualIp { advertisements: vec!["x".into()], ..ignoring.vips()[&VIP].clone() };
    ignoring.handle(Event::Apply(Object::VirtualIp(VIP, vip)));
    assert_eq!(label(&ignoring), (vec!["c".into()], true), "an L2Advertisement of the VIP says so");
    assert!(label(&excluded(known, &["a", "b", "c"])).1, "all have it");
    let elsewhere = excluded(view([ready("c", 1), pod("a", 1, UNREADY)]), &["c"]);
    assert!(label(&elsewhere).1, "no other node has a ready pod");
}

/// The label moves the rows of its node, and no others.
#[test]
fn excluded_nodes_have_no_rows_while_others_are_ready() {
    let rows = |known: &View| table(known, &none()).services[&web_port()].ring.clone();
    let known = view([ready("a", 1), ready("b", 1), ready("c", 1)]);
    let (before, after) = (rows(&known), rows(&excluded(known, &["c"])));
    assert!(before.rows.iter().zip(&after.rows).all(|(&old, &new)| old == new || old == 2) && !after.rows.contains(&2));
    // No other node is ready: the label is ignored.
    for others in [vec![ready("c", 1)], vec![ready("c", 1), pod("a", 1, UNREADY), pod("b", 1, TERMINATING)]] {
        assert!(rows(&excluded(view(others), &["c"])).primary(0) == Some("c"));
    }
    let all = view([ready("a", 1), ready("b", 1)]);
    assert_eq!(rows(&all), rows(&excluded(all.clone(), &["a", "b"])));
    // What is not ready on an excluded node is no member.
    let known = excluded(view([ready("a", 1), pod("c", 1, UNREADY)]), &["c"]);
    assert_eq!(rows(&known).members.iter().count(), 1);
}

/// An L2Advertisement of the VIP says so; of another VIP beside it none does.
#[test]
fn excluded_nodes_have_rows_of_a_vip_that_ignores_the_label() {
    use crate::view::{L2Advertisement, VirtualIp};

    let mut known = excluded(view([ready("a", 1), ready("b", 1), ready("c", 1)]), &["c"]);
    let other = Ipv4Addr::new(192, 0, 2, 2);
    known.handle(Event::Apply(vip(other, [web()])));
    let ignoring = L2Advertisement { ignores_exclude_label: true, ..L2Advertisement::default() };
    known.handle(Event::Apply(Object::L2Advertisement("x".into(), ignoring)));
    let named = VirtualIp { advertisements: vec!["x".into()], ..known.vips()[&VIP].clone() };
    known.handle(Event::Apply(Object::VirtualIp(VIP, named)));
    let table = table(&known, &none());
    let on_c = |vip: Ipv4Addr| {
        let ring = &table.services[&service_key(vip, 80, Protocol::Tcp)].ring;
        (0..ring.rows.len()).filter(|row| ring.primary(*row as u32) == Some("c")).count()
    };
    assert!(on_c(VIP) > 0 && on_c(other) == 0);
}

#[test]
fn excluded_nodes_serve_when_the_others_are_lost() {
    let known = excluded(view([ready("a", 1), ready("b", 1)]), &["b"]);
    assert_eq!(table(&known, &none()).services[&web_port()].ring.primary(0), Some("a"));
    assert_eq!(table(&known, &names(["a"])).services[&web_port()].ring.primary(0), Some("b"));
}

/// Alternates of rows that were another node's.
fn moved_rows(table: &Table) -> Option<BTreeSet<String>> {
    let service = &table.services[&web_port()];
    let rows = 0..service.ring.rows.len() as u32;
    let alternates = service.alternates.as_ref()?;
    Some(rows.flat_map(|row| alternates.of(row).map(String::from).collect::<Vec<_>>()).collect())
}

fn reported(table: &Table, at: Instant) -> Reported {
    let report = crate::reports::Report { digest: table.digest, ..Default::default() };
    Reported { report: Arc::new(report), confirmed: at, ..Reported::default() }
}

/// From a change until the previous primary has reported, some time later and by the same table, that it has no such flows.
#[test]
fn a_previous_primary_is_an_alternate_until_it_has_reported() {
    let mut planner = planner(KEY);
    let all = TrafficStates::default();
    let (before, after) = (view([ready("a", 1)]), view([ready("b", 1)]));
    let mut reports = Reports::new();
    let mut at = |known: &View, reports: &Reports, seconds: u64| {
        let table = planner.table(known, &all, reports, NOW + Duration::from_secs(seconds));
        let moved = moved_rows(&table);
        assert_eq!(planner.awaits_reports(), moved.is_some());
        (table, moved)
    };
    assert_eq!(at(&before, &reports, 0).1, None);
    let (table, moved) = at(&after, &reports, 10);
    assert_eq!(moved, Some(names(["a"])));
    let same = at(&after, &reports, 11).0.services;
    assert!(same.iter().zip(&table.services).all(|((_, a), (_, b))| match (&a.alternates, &b.alternates) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        _ => false,
    }));
    reports.insert("a".into(), reported(&table, NOW + Duration::from_secs(19)));
    assert_eq!(at(&after, &reports, 20).1, Some(names(["a"])), "too soon after the change");
    reports.insert("a".into(), Reported { confirmed: NOW + Duration::from_secs(30), ..Reported::default() });
    assert_eq!(at(&after, &reports, 30).1, Some(names(["a"])), "by another table");
    reports.insert("a".into(), reported(&table, NOW + Duration::from_secs(31)));
    assert_eq!(at(&after, &reports, 31).1, None);
    // Its report about that time stays true.
    reports.clear();
    assert_eq!(at(&after, &reports, 32).1, None);
    let rows = [(web_port(), Arc::new(crate::reports::Rows::new(4093, [5])))];
    let report = crate::reports::Report { services: rows.into(), ..Default::default() };
    reports.insert("a".into(), Reported { report: Arc::new(report), confirmed: NOW, ..Reported::default() });
    let table = planner.table(&after, &all, &reports, NOW + Duration::from_secs(33));
    assert_eq!(moved_rows(&table), Some(names(["a"])));
    let lost = planner.table(&after, &down(&names(["a"])), &reports, NOW + Duration::from_secs(34));
    assert_eq!(moved_rows(&lost), None, "a dead node is no alternate");
    let absent = TrafficStates { existing_only: names(["a"]), ..TrafficStates::default() };
    assert_eq!(
        moved_rows(&planner.table(&after, &absent, &reports, NOW + Duration::from_secs(35))),
        Some(names(["a"]))
    );
}

#[test]
fn nobodys_word_is_all_while_some_table_differs() {
    let mut planner = planner(KEY);
    let all = TrafficStates::default();
    planner.table(&view([ready("a", 1)]), &all, &Reports::new(), NOW);
    let after = view([ready("b", 1)]);
    let table = planner.table(&after, &all, &Reports::new(), NOW);
    // The last dispatcher that lags sends its flows to a until the 30th second.
    let at = |seconds: u64| NOW + Duration::from_secs(seconds);
    planner.tables_differ(at(30));
    let reports = |seconds: u64| Reports::from([(String::from("a"), reported(&table, at(seconds)))]);
    assert_eq!(moved_rows(&planner.table(&after, &all, &reports(39), at(39))), Some(names(["a"])));
    assert_eq!(moved_rows(&planner.table(&after, &all, &reports(40), at(40))), None);
}

/// Nodes receive views at slightly different moments, and come to equal tables before their own time.
#[test]
fn a_node_applies_additions_with_its_peers_and_after_a_restart_at_once() {
    let all = TrafficStates::default();
    let [mut ahead, mut behind] = [planner(KEY), planner(KEY)];
    let [few, more] = [view([ready("a", 1), ready("b", 1)]), view([ready("a", 1), ready("b", 1), ready("c", 1)])];
    let before = [&mut ahead, &mut behind].map(|planner| planner.table(&few, &all, &Reports::new(), NOW));
    assert_eq!(ahead.table(&more, &all, &Reports::new(), NOW).digest, before[0].digest, "c waits");
    assert_eq!(ahead.next_deadline(), Some(NOW + QUIET));
    let applied = ahead.table(&more, &all, &Reports::new(), NOW + QUIET);
    assert_ne!(applied.digest, before[0].digest);
    let reports = Reports::from([(String::from("a"), reported(&applied, NOW + QUIET))]);
    let waiting = behind.table(&more, &all, &Reports::new(), NOW + QUIET);
    assert_eq!((waiting.digest, behind.next_deadline()), (before[0].digest, Some(NOW + QUIET * 2)));
    assert!(moved_rows(&waiting).unwrap().contains("c"), "a peer may have flows by the next ring already");
    let followed = behind.table(&more, &all, &reports, NOW + QUIET);
    assert_eq!((followed.digest, behind.next_deadline()), (applied.digest, None));
    // What the API server named while the speaker was away was applied by its peers.
    let saved = ahead.previous_rings().save("boot", NOW + QUIET);
    let mut restarted =
        Planner::new(KEY, PreviousRings::restore(&saved, Duration::from_secs(3600), "boot", NOW).unwrap());
    restarted.was_away("a");
    let most = view([ready("a", 1), ready("a", 2), ready("b", 1), ready("c", 1)]);
    assert_eq!(restarted.table(&most, &all, &reports, NOW + QUIET).digest, table(&most, &none()).digest);
    // A pod that is ready again soon has the rows again that it had.
    let unready = ahead.table(&few, &all, &Reports::new(), NOW + QUIET * 2);
    let again = ahead.table(&more, &all, &Reports::new(), NOW + QUIET * 3);
    assert_eq!((unready.digest, again.digest), (before[0].digest, applied.digest));
}

#[test]
fn a_node_that_was_away_has_alternates_that_served_meanwhile() {
    let mut planner = planner(KEY);
    let known = view([ready("a", 1), ready("b", 1)]);
    planner.was_away("a");
    let table = planner.table(&known, &TrafficStates::default(), &Reports::new(), NOW);
    let service = &table.services[&web_port()];
    let others = service.alternates.as_ref().unwrap();
    // c has no part in this ring, but may have flows of a ring in between.
    let alternates_of = |row| if service.ring.primary(row) == Some("a") { vec!["b", "c"] } else { vec!["c"] };
    assert!((0..4093).all(|row| others.of(row).eq(alternates_of(row)) || others.of(row).eq(["c", "b"])));
    assert!(planner.awaits_reports());
    // By this table b has nothing that is not its own.
    let reports = |at| Reports::from(["b", "c"].map(|node| (String::from(node), reported(&table, at))));
    let later = NOW + SETTLE;
    let one_reported = planner.table(&known, &TrafficStates::default(), &reports(NOW), later);
    assert_eq!(moved_rows(&one_reported), Some(names(["b"])), "of the ring without a");
    assert_eq!(moved_rows(&planner.table(&known, &TrafficStates::default(), &reports(later), later)), None);
    assert!(!planner.awaits_reports());
}

/// Another affinity is another hash: flows lie in rows that no ring shows.
#[test]
fn with_another_affinity_all_nodes_are_alternates_until_all_have_reported() {
    let mut planner = planner(KEY);
    let mut known = view([ready("a", 1), ready("b", 1)]);
    let mut at = |known: &View, reports: &Reports, now| planner.table(known, &TrafficStates::default(), reports, now);
    assert_eq!(moved_rows(&at(&known, &Reports::new(), NOW)), None);
    known.handle(Event::Apply(service(ObjectName::new("default", "web"), Affinity::ClientIp)));
    let table = at(&known, &Reports::new(), NOW);
    let web = &table.services[&web_port()];
    let alternates_of = |row| web.alternates.as_ref().unwrap().of(row).collect::<BTreeSet<_>>();
    let others = |row| ["a", "b", "c"].into_iter().filter(move |node| web.ring.primary(row) != Some(node)).collect();
    assert!((0..4093).all(|row| alternates_of(row) == others(row)));
    let reports = |now| Reports::from(["a", "b", "c"].map(|node| (String::from(node), reported(&table, now))));
    let (soon, later) = (NOW + SETTLE / 2, NOW + SETTLE);
    assert!(
        moved_rows(&at(&known, &reports(soon), later)).is_some(),
        "dispatchers that lag open flows by the old hash"
    );
    assert_eq!(moved_rows(&at(&known, &reports(later), later)), None);
}

/// Nodes without a speaker do not stand in every row for ever.
#[test]
fn the_report_of_a_silent_node_expires() {
    let mut planner = planner(KEY);
    let known = view([ready("a", 1)]);
    planner.was_away("a");
    let mut at = |seconds| {
        let now = NOW + Duration::from_secs(seconds);
        moved_rows(&planner.table(&known, &TrafficStates::default(), &Reports::new(), now))
    };
    assert_eq!((at(0), at(599), at(600)), (Some(names(["b", "c"])), Some(names(["b", "c"])), None));
}

#[test]
fn tables_that_are_equal_have_one_digest() {
    let digest = |known: &View, lost: &BTreeSet<String>| table(known, lost).digest;
    let known = view([ready("a", 1), ready("b", 1)]);
    let same = digest(&known, &none());
    assert_eq!(digest(&view([ready("b", 1), ready("a", 1)]), &none()), same);
    let mut affine = known.clone();
    affine.handle(Event::Apply(service(ObjectName::new("default", "web"), Affinity::ClientIp)));
    let others = [
        digest(&known, &names(["a"])),
        digest(&view([ready("a", 1), ready("a", 2), ready("b", 1)]), &none()),
        digest(&affine, &none()),
    ];
    assert!(!others.contains(&same), "{same} {others:?}");
    assert_eq!(digest(&known, &names(["c"])), same, "it has no pod");
}

fn arbitrary_pods() -> impl Strategy<Value = Vec<Endpoint>> {
    let conditions = prop_oneof![Just(Conditions::READY), Just(UNREADY), Just(TERMINATING)];
    let pods = (prop::sample::select(vec!["a", "b", "c"]), 1u8..9, conditions).prop_map(|(node, n, c)| pod(node, n, c));
    proptest::collection::vec(pods, 0..9)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// Two ports of one Service may have other pods, or the same in another condition: each has the ring that it would have alone.
    #[test]
    fn a_port_has_the_ring_of_its_own_pods(http in arbitrary_pods(), dns in arbitrary_pods(), alike: bool) {
        let dns = if alike { http.clone() } else { dns };
        let slice_of = |port: usize, endpoints: &[Endpoint]| {
            let slice = EndpointSlice { service: "web".into(), ports: vec![ports(8080, 5353).remove(port)], endpoints: endpoints.into() };
            Event::Apply(Object::EndpointSlice(ObjectName::new("default", ["web-http", "web-dns"][port]), slice))
        };
        let with = |slices: &[(usize, &[Endpoint])]| {
            let mut known = view([]);
            slices.iter().for_each(|(port, endpoints)| _ = known.handle(slice_of(*port, endpoints)));
            table(&known, &none())
        };
        let both = with(&[(0, &http), (1, &dns)]);
        for (key, alone) in [(web_port(), with(&[(0, &http)])), (service_key(VIP, 53, Protocol::Udp), with(&[(1, &dns)]))] {
            let state = |table: &Table| (table.services[&key].ring.members.clone(), table.services[&key].no_new_flows);
            prop_assert_eq!(state(&both), state(&alone));
        }
    }

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
        planner.table(&known, &down(&none()), &Reports::new(), NOW);
        for object in view(pods).objects().into_iter().rev() {
            known.handle(Event::Apply(object));
        }
        // Previous rings have no effect on rows, except for services without pods, nor on the digest; additions wait.
        planner.table(&known, &down(&lost), &Reports::new(), NOW);
        let applied = planner.next_deadline().unwrap_or(NOW);
        prop_assert!(applied <= NOW + QUIET);
        let late = planner.table(&known, &down(&lost), &Reports::new(), applied);
        prop_assert_eq!(planner.next_deadline(), None);
        prop_assert_eq!(late.digest, fresh.digest);
        for (key, service) in fresh.services.into_iter().filter(|(_, service)| !service.ring.rows.is_empty()) {
            prop_assert_eq!(&late.services[&key].ring, &service.ring);
        }
    }
}

/// Speakers of two versions stand side by side during an upgrade: what a Service had in November 2026 keeps its digest.
/// (With affinity it has another one since: its rows are no longer chosen by the port.)
#[test]
fn the_digest_of_a_table_without_new_attributes_is_that_of_an_earlier_version() {
    let of = |affinity: Affinity| {
        let ports = [(53, Protocol::Udp, 0x1111), (80, Protocol::Tcp, 0x2222)];
        let services = ports.map(|(port, protocol, digest)| {
            let ring = Arc::new(Ring { digest, ..Ring::default() });
            let service = Service {
                attributes: affinity.into(),
                no_new_flows: false,
                excluded_take: false,
                ring,
                alternates: None,
            };
            (service_key(VIP, port, protocol), service)
        });
        digest(&services.into(), &BTreeMap::new())
    };
    assert_eq!([of(Affinity::None), of(Affinity::ClientIp)], [15_396_362_144_224_917_164, 12_843_928_512_731_508_430]);
}
