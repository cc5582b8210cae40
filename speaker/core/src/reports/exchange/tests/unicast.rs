//! Multicast is filtered: reports take the other way, and are named where they have none.

use super::*;

/// Nodes that know each other; the election of each receives the others.
fn cluster(nodes: usize) -> Wire {
    let mut wire = Wire::new(nodes);
    let all = wire.others();
    for node in 0..nodes {
        let others = all.iter().filter(|other| **other != name(node)).cloned().collect();
        wire.event(node, Event::Nodes(others));
    }
    wire
}

/// The adverts between all nodes arrive.
fn run(wire: &mut Wire, seconds: usize) {
    for _ in 0..seconds {
        for node in wire.nodes.keys().copied().collect::<Vec<_>>() {
            let others = wire.others().into_iter().filter(|other| *other != name(node));
            wire.event(node, Event::Incarnations(others.map(|other| (other, 1)).collect()));
        }
        wire.run(SECOND);
    }
}

fn filter(wire: &mut Wire, nodes: usize, multicast: bool) {
    let pairs = (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to, multicast)));
    wire.filtered.extend(pairs.filter(|(from, to, _)| from != to));
}

fn by_unicast<const N: usize>(wire: &Wire) -> [usize; N] {
    core::array::from_fn(|node| wire.nodes[&node].ways().0)
}

fn missing<const N: usize>(wire: &Wire) -> [usize; N] {
    core::array::from_fn(|node| wire.nodes[&node].ways().1)
}

#[test]
fn while_multicast_arrives_nothing_goes_by_unicast() {
    let mut wire = cluster(3);
    (0..3).for_each(|node| wire.local(node, &report(7, [1])));
    run(&mut wire, 60);
    assert_eq!(
        (by_unicast(&wire), missing(&wire), wire.log.iter().any(|(_, action)| matches!(action, Action::Unicast(..)))),
        ([0; 3], [0; 3], false)
    );
}

/// The election sends its adverts by unicast: reports follow at once, long before they were missed.
#[test]
fn reports_go_where_the_election_sends_its_adverts_by_unicast() {
    let mut wire = cluster(3);
    wire.local(0, &report(7, [1]));
    run(&mut wire, 3);
    filter(&mut wire, 3, true);
    (0..3).for_each(|node| {
        let others = wire.others().into_iter().filter(|other| *other != name(node)).collect();
        wire.event(node, Event::Unicast(others));
    });
    let held = report(8, (0..65488).step_by(3));
    wire.local(0, &held);
    wire.run(SECOND / 2);
    assert_eq!([wire.known(1, 0), wire.known(2, 0)], [Some(held.clone()), Some(held)]);
    wire.local(1, &report(8, []));
    wire.event(2, view(5, []));
    run(&mut wire, 2);
    assert_eq!(wire.known(2, 1), Some(report(8, [])), "no rows are a report too");
    assert_eq!(wire.nodes[&0].staleness.view(&name(2)), 5);
    assert_eq!(by_unicast(&wire), [2; 3]);
    assert!(wire.log.iter().all(|(_, action)| !matches!(action, Action::Rejected(_))), "{:?}", wire.log);
    wire.filtered.clear();
    (0..3).for_each(|node| wire.event(node, Event::Unicast(BTreeSet::new())));
    run(&mut wire, 10);
    assert_eq!(by_unicast(&wire), [0; 3]);
}

/// Only the multicast of reports is filtered: the election has no reason to act.
#[test]
fn a_node_whose_reports_do_not_come_by_multicast_gets_and_sends_them_by_unicast() {
    let mut wire = cluster(2);
    run(&mut wire, 2);
    filter(&mut wire, 2, true);
    wire.local(0, &report(7, [1]));
    run(&mut wire, 6);
    assert_eq!(wire.known(1, 0), Some(report(7, [1])));
    assert_eq!((by_unicast(&wire), missing(&wire)), ([1; 2], [0; 2]));
    wire.log.clear();
    run(&mut wire, 60);
    assert_eq!(wire.log, [], "no flapping");
    wire.filtered.clear();
    run(&mut wire, 10);
    assert_eq!(by_unicast(&wire), [0; 2]);
}

#[test]
fn one_direction_filtered() {
    let mut wire = cluster(2);
    run(&mut wire, 2);
    wire.filtered.insert((0, 1, true));
    wire.local(0, &report(7, [1]));
    run(&mut wire, 6);
    assert_eq!(wire.known(1, 0), Some(report(7, [1])));
    wire.log.clear();
    run(&mut wire, 60);
    assert_eq!((by_unicast(&wire), wire.log.as_slice()), ([1; 2], &[][..]), "asked for all the time, no flapping");
    wire.filtered.clear();
    run(&mut wire, 10);
    assert_eq!(by_unicast(&wire), [0; 2], "neither keeps the other at it");
}

#[test]
fn lost_parts_are_sent_again_by_unicast_to_the_node_that_misses_them() {
    let mut wire = cluster(3);
    filter(&mut wire, 3, true);
    run(&mut wire, 5);
    wire.lossy.insert(0, 3);
    let held = report(7, (0..65488).step_by(2));
    wire.local(0, &held);
    run(&mut wire, 8);
    assert_eq!([wire.known(1, 0), wire.known(2, 0)], [Some(held.clone()), Some(held)]);
}

/// The port is filtered altogether: named, on the node that misses them, until one arrives.
#[test]
fn reports_that_take_no_way_are_named() {
    let mut wire = cluster(3);
    run(&mut wire, 2);
    for multicast in [true, false] {
        wire.filtered.extend([(0, 1, multicast), (1, 0, multicast)]);
    }
    run(&mut wire, 9);
    assert_eq!(missing(&wire), [0; 3]);
    run(&mut wire, 3);
    assert_eq!(missing(&wire), [1, 1, 0]);
    let named = |wire: &Wire, action: &dyn Fn(NodeName) -> Action| {
        [(0, 1), (1, 0)].map(|(at, of)| wire.log.iter().filter(|logged| **logged == (at, action(name(of)))).count())
    };
    assert_eq!((named(&wire, &Action::Missing), named(&wire, &Action::NotMissing)), ([1, 1], [0, 0]));
    wire.filtered.retain(|(_, _, multicast)| *multicast);
    run(&mut wire, 2);
    assert_eq!((missing(&wire), named(&wire, &Action::NotMissing)), ([0; 3], [1, 1]));
}

/// Its adverts are missing too, or it has none: that has another name.
#[test]
fn a_node_without_adverts_has_no_missing_reports_and_gets_nothing() {
    let mut wire = cluster(2);
    wire.nodes.remove(&1);
    wire.run(60 * SECOND);
    assert_eq!((wire.nodes[&0].ways(), wire.sent[&0].len()), ((0, 0), 60));
    // And one whose adverts end while its reports are missed.
    wire.event(0, Event::Incarnations([(name(1), 1)].into()));
    for _ in 0..12 {
        wire.event(0, Event::Incarnations([(name(1), 1)].into()));
        wire.run(SECOND);
    }
    assert_eq!(wire.nodes[&0].ways(), (1, 1));
    wire.run(5 * SECOND);
    assert_eq!(wire.nodes[&0].ways(), (0, 0));
}

/// Multicast carries a list once; by unicast it costs as many times as there are nodes, and must not keep the loop.
#[test]
fn a_long_list_goes_to_many_nodes_in_small_pieces_and_reaches_all() {
    const NODES: usize = 256;
    let now = Instant::from_millis(10_000);
    let mut sender = Exchange::new(config(0, 1), now);
    let others: BTreeSet<NodeName> = (1..NODES).map(name).collect();
    sender.handle(Event::Nodes(others.clone()), now, &mut vec![]);
    sender.handle(Event::Unicast(others.clone()), now, &mut vec![]);
    let mut now = now;
    let mut got: BTreeMap<NodeName, BTreeSet<u16>> = BTreeMap::new();
    let mut receivers: BTreeMap<NodeName, Peer> = others.iter().map(|node| (node.clone(), Peer::new(now))).collect();
    let started = now;
    let mut version = 0;
    while receivers.values().any(|receiver| receiver.reported.is_none()) {
        assert!(now.since(started) < 60 * SECOND, "some node gets no turn");
        let mut actions = vec![];
        // The list changes every second; each has many parts.
        if now.since(started) >= version * SECOND {
            version += 1;
            let services = (0..20).map(|port| {
                let rows = Rows::new(65488, (version % 2..65488).step_by(2));
                (service_key([192, 0, 2, 1].into(), 80 + port, Protocol::Tcp), Arc::new(rows))
            });
            let report = Report { digest: u64::from(version), partial: false, services: services.collect() };
            sender.handle(Event::Local(Arc::new(report)), now, &mut actions);
            assert!(actions.iter().all(|action| !matches!(action, Action::SendTo(..))), "not in the same turn");
        }
        sender.handle(Event::Tick, now, &mut actions);
        let (mut parts, mut small) = (0, 0);
        for action in actions {
            let Action::SendTo(node, bytes) = action else { continue };
            let datagram = Datagram::open(&bytes, 1, &config(0, 1).keys).unwrap();
            match &datagram.piece {
                Some(piece) => {
                    parts += 1;
                    got.entry(node.clone()).or_default().insert(piece.part);
                }
                None => small += 1,
            }
            receivers.get_mut(&node).unwrap().take(datagram, now).unwrap();
        }
        assert!(parts <= 64 && small <= NODES, "{parts} parts and {small} others in one turn");
        now += Duration::from_millis(10);
    }
    assert_eq!(got.len(), NODES - 1);
}
