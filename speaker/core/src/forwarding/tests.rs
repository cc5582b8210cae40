//! Tables of a small view: members of rings, digests, and that equal views make equal tables.

mod alternates;
mod excluded;

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

/// kube-proxy goes by `ready` alone.
#[test]
fn what_a_service_publishes_counts_as_ready_also_while_it_terminates() {
    assert_eq!(ring_members([pod("a", 1, PUBLISHED)], &none()), [("a".into(), 1, false)]);
    let endpoints = [pod("a", 1, PUBLISHED), ready("b", 1), pod("c", 1, TERMINATING)];
    assert_eq!(ring_members(endpoints, &none()), [("a".into(), 1, false), ("b".into(), 1, false)]);
    let endpoints = [pod("a", 1, PUBLISHED), pod("b", 1, PUBLISHED)];
    assert_eq!(ring_members(endpoints, &names(["a"])), [("a".into(), 1, true), ("b".into(), 1, false)], "lost");
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
    assert!(before.iter().zip(after.iter()).all(|(old, new)| old == new || old == 2));
    assert!(after.iter().all(|node| node != 2));
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
