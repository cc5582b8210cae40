use alloc::format;
use alloc::string::String;

use ebpf_common::Row;

use super::*;
use crate::forwarding::previous::PreviousRings;
use crate::forwarding::{Planner, TrafficStates};
use crate::reports::Reports;
use crate::time::{Duration, Instant};
use crate::view::endpoints::service_key;
use crate::view::example::*;
use crate::view::{Affinity, Conditions, Event, Key, Protocol, View};

type Macs = BTreeMap<String, [u8; 6]>;

fn macs() -> Macs {
    ["a", "b", "c", "d"].map(|name| (String::from(name), [2, 0, 0, 0, 0, name.as_bytes()[0]])).into()
}

fn table(view: &View) -> Table {
    let mut planner = Planner::new([1, 2], PreviousRings::new(Duration::from_secs(3600)));
    planner.table(view, &TrafficStates::default(), &Reports::new(), Instant::ZERO)
}

fn full() -> View {
    view([pod("a", 1, Conditions::READY), pod("b", 1, Conditions::READY)])
}

/// Everything that points at something points at something, and no row names a node that has no slot.
fn check(state: &MapState) {
    for (key, value) in &state.services {
        assert!(state.rings.contains_key(&value.ring), "{key:?}");
    }
    for vip in &state.vips {
        assert!(state.services.keys().any(|key| key.addr == *vip), "{vip:?} is known before its services");
    }
    for contents in state.rings.values() {
        let known = |slot: u16| state.nodes.contains_key(&u32::from(slot));
        let mut rows = contents.rows();
        assert!(rows.all(|row| known(row.primary()) && row.alternates().iter().all(|&slot| slot == 0 || known(slot))));
    }
}

/// Executes one write after the other and checks after each.
fn execute(have: &mut MapState, ops: &[MapOp]) {
    for op in ops {
        have.apply(op);
        check(have);
    }
}

#[test]
fn from_nothing_and_back() {
    let mut have = MapState::default();
    let mut layout = Layout::default();
    let (want, exhausted) = layout.want(&table(&full()), &have, &macs(), "a", &BTreeSet::new());
    assert!(exhausted.is_empty());
    let ops = diff(&have, &want);
    execute(&mut have, &ops);
    assert_eq!(have, want);
    assert_eq!(diff(&have, &want), []);
    assert_eq!(layout.node_slot(Ipv4Addr::new(192, 0, 2, b'a')), Some(1));
    assert_eq!(have.peers.len(), 2, "the node itself is no peer");
    assert_eq!(format!("{:?}", ops.last().unwrap()), "SetVip(192.0.2.1)");

    let (want, _) = layout.want(&Table::default(), &have, &macs(), "a", &BTreeSet::new());
    let ops = diff(&have, &want);
    assert_eq!(format!("{:?}", ops[..2].to_vec()), "[DelVip(192.0.2.1), DelService(192.0.2.1:53/17)]");
    execute(&mut have, &ops);
    assert_eq!(have, MapState::default());
}

#[test]
fn a_change_never_leaves_a_gap() {
    let mut have = MapState::default();
    let mut layout = Layout::default();
    let other = Ipv4Addr::new(192, 0, 2, 2);
    let mut known = full();
    let events = [
        Event::Apply(slice([pod("c", 1, Conditions::READY)])),
        Event::Delete(Key::Node("b".into())),
        Event::Apply(node("d")),
        Event::Apply(slice([pod("c", 1, Conditions::READY), pod("d", 1, Conditions::READY)])),
        Event::Apply(vip(other, [web()])),
        Event::Delete(Key::VirtualIp(VIP)),
        Event::Apply(slice([])),
    ];
    for event in events {
        // Long after b left: its flows are over.
        known.forget_node("b");
        let (want, _) = layout.want(&table(&known), &have, &macs(), "a", &BTreeSet::new());
        let ops = diff(&have, &want);
        execute(&mut have, &ops);
        assert_eq!(have, want);
        known.handle(event);
    }
    // b's slot was free again when d came.
    assert_eq!(layout.node_slot(Ipv4Addr::new(192, 0, 2, b'd')), Some(2));
}

#[test]
fn a_slot_is_not_given_out_while_the_maps_still_name_it() {
    let mut have = MapState::default();
    let mut layout = Layout::default();
    let mut known = full();
    let (want, _) = layout.want(&table(&known), &have, &macs(), "a", &BTreeSet::new());
    execute(&mut have, &diff(&MapState::default(), &want));
    // b goes, d comes, in one step: d gets a slot of its own.
    known.handle(Event::Delete(Key::Node("b".into())));
    known.forget_node("b");
    known.handle(Event::Apply(node("d")));
    let (want, _) = layout.want(&table(&known), &have, &macs(), "a", &BTreeSet::new());
    assert_eq!(want.nodes.keys().copied().collect::<Vec<_>>(), [1, 3, 4]);
}

#[test]
fn a_restarted_speaker_changes_nothing() {
    let mut known = full();
    let mut layout = Layout::default();
    let (_, _) = layout.want(&table(&known), &MapState::default(), &macs(), "a", &BTreeSet::new());
    known.handle(Event::Delete(Key::Node("b".into())));
    known.forget_node("b");
    known.handle(Event::Apply(node("d")));
    let (have, _) = layout.want(&table(&known), &MapState::default(), &macs(), "a", &BTreeSet::new());
    let (want, _) = Layout::restore(&have).want(&table(&known), &have, &macs(), "a", &BTreeSet::new());
    assert_eq!(diff(&have, &want), []);
}

#[test]
fn unknown_and_changed_macs() {
    let known = full();
    let mut layout = Layout::default();
    let (have, _) = layout.want(&table(&known), &MapState::default(), &Macs::new(), "a", &BTreeSet::new());
    assert!(have.peers.is_empty() && have.nodes.values().all(|node| node.mac == [0; 6]));
    let (want, _) = layout.want(&table(&known), &have, &macs(), "a", &BTreeSet::new());
    assert_eq!(format!("{:?}", diff(&have, &want)[3]), "SetPeer([02, 00, 00, 00, 00, 62], 2)");
    let mut moved = macs();
    moved.insert("b".into(), [2, 9, 9, 9, 9, 9]);
    let (after, _) = layout.want(&table(&known), &want, &moved, "a", &BTreeSet::new());
    let ops = format!("{:?}", diff(&want, &after));
    let expected = "[SetNode(2, 192.0.2.98), SetPeer([02, 09, 09, 09, 09, 09], 2), DelPeer([02, 00, 00, 00, 00, 62])]";
    assert_eq!(ops, expected);
}

/// A node that has no part in the ring any more may be an alternate; unchanged rows are the same allocation.
#[test]
fn alternates_are_slots() {
    let previous_rings = PreviousRings::new(Duration::from_secs(3600));
    let mut planner = Planner::new([1, 2], previous_rings);
    let mut layout = Layout::default();
    let mut want = |known: &View, have: &MapState, served: &BTreeSet<ServiceKey>| {
        let table = planner.table(known, &TrafficStates::default(), &Reports::new(), Instant::ZERO);
        layout.want(&table, have, &macs(), "a", served).0
    };
    let none = BTreeSet::new();
    let mut have = want(&full(), &MapState::default(), &none);
    assert!(have.rings[&0].rows().all(|row| row.alternates() == [0; 3]));
    let scaled = view([pod("a", 1, Conditions::READY)]);
    let state = want(&scaled, &have, &none);
    // b is slot 2.
    let moved = |row: Row| row.nodes() == [1, 2, 0, 0];
    assert!(state.rings[&0].rows().all(moved));
    execute(&mut have, &diff(&MapState::default(), &state));
    let again = want(&scaled, &have, &none);
    assert_eq!(again.rings, state.rings);
    let key = service_key(VIP, 80, Protocol::Tcp);
    let served = want(&scaled, &have, &[key].into());
    let counted = ServiceValue::counted_in(1);
    let flags = (served.services[&key].flags, have.services[&key].flags);
    assert_eq!(flags, (ServiceValue::SERVED_HERE | counted, counted));
    assert_eq!(diff(&have, &served).len(), 1);
}

/// Its address has just changed, or it has just joined. Without a place in the row its flows would be reset until the rules follow.
#[test]
fn a_node_that_the_rules_do_not_lead_to_is_the_last_alternate() {
    let mut planner = Planner::new([1, 2], PreviousRings::new(Duration::from_secs(3600)));
    let mut table = |known: &View| planner.table(known, &TrafficStates::default(), &Reports::new(), Instant::ZERO);
    let ready = |name: &str, host| pod(name, host, Conditions::READY);
    table(&view([ready("a", 1), ready("b", 2), ready("c", 3)]));
    let scaled = table(&view([ready("a", 1)]));
    let mut layout = Layout::default();
    let [b, c, former] = [b'b', b'c', 9].map(|host| Ipv4Addr::new(192, 0, 2, host));
    let mut order = |peers: &[(u16, Ipv4Addr)]| {
        layout.set_peers(peers.iter().copied().collect());
        let (state, _) = layout.want(&scaled, &MapState::default(), &macs(), "a", &BTreeSet::new());
        let rows: BTreeSet<[u16; 4]> = state.rings.values().flat_map(Contents::rows).map(Row::nodes).collect();
        rows.into_iter().collect::<Vec<_>>()
    };
    let both = order(&[(2, b), (3, c)]);
    assert_eq!(both, [[1, 2, 3, 0], [1, 3, 2, 0]]);
    assert_eq!(order(&[(3, c)]), [[1, 3, 2, 0]]);
    assert_eq!(order(&[(2, former), (3, c)]), [[1, 3, 2, 0]]);
    assert_eq!(order(&[(2, b)]), [[1, 2, 3, 0]]);
    assert_eq!(order(&[]), both);
}

#[test]
fn a_node_that_takes_no_new_flows_is_marked() {
    let closed = Table { existing_only: ["b".into()].into(), ..table(&full()) };
    let (state, _) = Layout::default().want(&closed, &MapState::default(), &macs(), "a", &BTreeSet::new());
    let marked = state.nodes.values().filter(|node| node.flags == ebpf_common::Node::EXISTING_FLOWS_ONLY);
    assert_eq!(marked.map(|node| node.addr).collect::<Vec<_>>(), [closed.nodes["b"].octets()]);
}

#[test]
fn the_exclude_label_is_a_flag_of_the_node_and_whether_it_counts_one_of_the_service() {
    let mut labelled = Table { excluded: ["b".into()].into(), ..table(&full()) };
    let key = service_key(VIP, 80, Protocol::Tcp);
    labelled.services.get_mut(&key).expect("the service").excluded_take = true;
    let (state, _) = Layout::default().want(&labelled, &MapState::default(), &macs(), "a", &BTreeSet::new());
    let marked = state.nodes.values().filter(|node| node.flags == ebpf_common::Node::EXCLUDED);
    assert_eq!(marked.map(|node| node.addr).collect::<Vec<_>>(), [labelled.nodes["b"].octets()]);
    let with = |flag: u32| state.services.iter().filter(|(_, value)| value.flags & flag != 0).count();
    assert_eq!((with(ServiceValue::EXCLUDED_TAKE), state.services[&key].flags & ServiceValue::EXCLUDED_TAKE), (1, 16));
}

#[test]
fn affinity_is_a_flag_and_equal_rings_are_one_slot() {
    let mut known = full();
    known.handle(Event::Apply(service(web(), Affinity::ClientIp)));
    let (state, _) = Layout::default().want(&table(&known), &MapState::default(), &macs(), "a", &BTreeSet::new());
    let values =
        [(80, Protocol::Tcp), (53, Protocol::Udp)].map(|(port, of)| state.services[&service_key(VIP, port, of)]);
    let flags = ServiceValue::CLIENT_AFFINITY | ServiceValue::counted_in(1);
    assert_eq!(values, [ServiceValue { ring: 0, flags }; 2]);
    assert_eq!(state.rings.len(), 1);
    assert_eq!(state.rings[&0].len(), 4093);
}

fn many(ports: u32) -> Table {
    let mut known = table(&full());
    let (key, service) = known.services.pop_first().unwrap();
    known.services = (0..ports).map(|port| (numbered(key, port), service.clone())).collect();
    known
}

fn numbered(key: ServiceKey, port: u32) -> ServiceKey {
    ServiceKey { addr: [10, 0, 0, (port >> 16) as u8], port: (port as u16).to_be_bytes(), ..key }
}

#[test]
fn a_full_map_is_named_and_the_rest_is_served() {
    let known = many(MAX_SERVICES + 1);
    let (state, exhausted) = Layout::default().want(&known, &MapState::default(), &macs(), "a", &BTreeSet::new());
    assert_eq!(state.services.len(), MAX_SERVICES as usize);
    assert_eq!(
        exhausted.iter().map(|error| format!("{error}")).collect::<Vec<_>>(),
        ["all 16384 service_port slots are taken"]
    );
}

/// The map has no room for a new service port before the removed one is out of it. The present ones stay in any case.
#[test]
fn a_new_service_port_waits_for_room_and_takes_nothing_from_others() {
    let mut layout = Layout::limited(3, 8);
    let want =
        |layout: &mut Layout, table: &Table, have: &MapState| layout.want(table, have, &macs(), "a", &BTreeSet::new());
    let all = many(4);
    let mut last = all.clone();
    last.services.pop_first();
    let (mut have, exhausted) = want(&mut layout, &last, &MapState::default());
    assert_eq!((have.services.len(), exhausted.len()), (3, 0));
    let (state, exhausted) = want(&mut layout, &all, &have);
    assert_eq!((state, exhausted[0].what), (have.clone(), "service_port"), "the first by number came last");
    let mut first = all.clone();
    first.services.pop_last();
    for left_out in [1, 0] {
        let (state, exhausted) = want(&mut layout, &first, &have);
        assert_eq!((state.services.len(), exhausted.len()), (3 - left_out, left_out));
        let ops = diff(&have, &state);
        let mut services = have.services.len();
        for op in &ops {
            services += usize::from(matches!(op, MapOp::SetService { .. }));
            services -= usize::from(matches!(op, MapOp::DelService { .. }));
            assert!(services <= 3);
        }
        have = state;
    }
    assert!(have.services.keys().eq(first.services.keys()));
}

/// Without a slot for a ring that two service ports no longer share, both keep their present one.
#[test]
fn without_a_free_slot_a_service_port_keeps_its_ring() {
    let mut layout = Layout::limited(8, 1);
    let mut known = many(2);
    let (have, exhausted) = layout.want(&known, &MapState::default(), &macs(), "a", &BTreeSet::new());
    assert_eq!((have.rings.len(), have.services.len(), exhausted.len()), (1, 2, 0));
    let other = table(&view([pod("c", 1, Conditions::READY)])).services.pop_first().unwrap().1;
    let third = numbered(*known.services.first_key_value().unwrap().0, 7);
    known.services.last_entry().unwrap().insert(other.clone());
    known.services.insert(third, other.clone());
    let (state, exhausted) = layout.want(&known, &have, &macs(), "a", &BTreeSet::new());
    assert_eq!(format!("{}", exhausted[0]), "all 1 ring slots are taken");
    assert_eq!(state, have, "the third has none to keep");
    // Both get the other one: in place.
    known.services.values_mut().for_each(|service| *service = other.clone());
    let (state, exhausted) = layout.want(&known, &have, &macs(), "a", &BTreeSet::new());
    assert_eq!((state.services.len(), exhausted.len()), (3, 0));
    assert_eq!(format!("{:?}", diff(&have, &state)[0]), "SetRing(0, 4093 rows)");
}

/// The address comes last and goes first, so that no packet to it finds half of its ports. From port 512 on the node's own flows begin.
#[test]
fn an_address_of_a_node_is_there_while_its_ports_are() {
    let own = Ipv4Addr::new(192, 0, 2, b'a');
    let mut known = full();
    known.handle(Event::Apply(at_node("a", own, [web()])));
    let mut layout = Layout::default();
    let mut have = MapState::default();
    let (want, _) = layout.want(&table(&known), &have, &macs(), "a", &BTreeSet::new());
    assert_eq!((want.vips.len(), &want.node_addresses), (1, &[own.octets()].into()));
    let ops = diff(&have, &want);
    assert_eq!(ops.last(), Some(&MapOp::SetNodeAddress { addr: own.octets() }));
    execute(&mut have, &ops);
    assert_eq!(have, want);
    let flags = |state: &MapState, vip, port| state.services[&service_key(vip, port, Protocol::Tcp)].flags;
    assert_eq!(flags(&have, own, 80) & ServiceValue::NODE_FLOWS, 0);

    let ports = [511, 512].map(|port| crate::view::Port { name: "http".into(), port, protocol: Protocol::Tcp });
    let service = crate::view::Service { ports: ports.into(), attributes: Affinity::None.into() };
    known.handle(Event::Apply(crate::view::Object::Service(web(), service)));
    let (want, _) = layout.want(&table(&known), &have, &macs(), "a", &BTreeSet::new());
    let of_node = |vip, port| flags(&want, vip, port) & ServiceValue::NODE_FLOWS != 0;
    assert_eq!([of_node(own, 511), of_node(own, 512), of_node(VIP, 512)], [false, true, false]);

    let (want, _) = layout.want(&table(&full()), &have, &macs(), "a", &BTreeSet::new());
    let ops = diff(&have, &want);
    let removals = ops.iter().position(|op| *op == MapOp::DelNodeAddress { addr: own.octets() });
    let services = ops.iter().position(|op| matches!(op, MapOp::DelService { .. }));
    assert!(removals < services && removals.is_some(), "{ops:?}");
    execute(&mut have, &ops);
    assert!(have.node_addresses.is_empty());
}
