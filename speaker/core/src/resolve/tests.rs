//! Explicit times; then a segment of speakers, with liveness beside each.

use alloc::format;
use alloc::vec;

use super::*;
use crate::liveness::{self, Liveness};

fn name(node: usize) -> NodeName {
    NodeName::new(&format!("node-{node}")).unwrap()
}

fn node(action: Action) -> NodeName {
    match action {
        Action::Query(node) | Action::Search(node) => node,
    }
}

fn handle(machine: &mut Resolver, event: Event, at: u64) -> Vec<NodeName> {
    let mut actions = vec![];
    machine.handle(event, Instant::from_millis(at), &mut actions);
    actions.into_iter().map(node).collect()
}

/// When each node is queried until `end`, in milliseconds.
fn queried(machine: &mut Resolver, end: u64) -> BTreeMap<NodeName, Vec<u64>> {
    let mut times = BTreeMap::<_, Vec<u64>>::new();
    while let Some(due) = machine.next_deadline().filter(|due| *due <= Instant::from_millis(end)) {
        let mut actions = vec![];
        machine.handle(Event::Tick, due, &mut actions);
        assert!(machine.next_deadline().is_none_or(|next| next > due), "a busy loop");
        for node in actions.into_iter().map(node) {
            times.entry(node).or_default().push(due.as_nanos() / 1_000_000);
        }
    }
    times
}

fn started(nodes: usize) -> Resolver {
    let mut machine = Resolver::new(Config::new(1));
    assert_eq!(handle(&mut machine, Event::Nodes((0..nodes).map(name).collect()), 0).len(), nodes);
    machine
}

#[test]
fn an_unknown_node_is_queried_with_back_off() {
    let mut machine = started(1);
    let times = queried(&mut machine, 120_000)[&name(0)].clone();
    assert!((75..=100).contains(&times[0]), "{times:?}");
    let pauses: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.iter().all(|pause| *pause <= 30_000), "{times:?}");
    assert!(pauses.last().is_some_and(|pause| *pause >= 22_500), "{times:?}");
    assert!(times.len() <= 14, "{times:?}");
}

/// The previous schedule queried none of the known ones while another was unknown.
#[test]
fn known_nodes_keep_their_own_schedule_beside_an_unknown_one() {
    let mut machine = started(2);
    handle(&mut machine, Event::Known(name(0)), 1);
    let mut times = vec![];
    while let Some(due) = machine.next_deadline().filter(|due| *due <= Instant::from_millis(70_000)) {
        let at = due.as_nanos() / 1_000_000 + 1;
        if handle(&mut machine, Event::Tick, at).contains(&name(0)) {
            handle(&mut machine, Event::Known(name(0)), at);
            times.push(at);
        }
    }
    assert!((2..=3).contains(&times.len()), "{times:?}");
    // What it sends by itself meanwhile puts nothing off.
    let mut machine = started(1);
    let queries = (1..60).filter(|second| !handle(&mut machine, Event::Known(name(0)), second * 1000).is_empty());
    assert_eq!(queries.count(), 1);
}

/// Its heartbeats come by multicast whatever its MAC address is, so liveness has no reason to query it.
#[test]
fn a_known_node_that_answers_no_query_is_searched() {
    let mut machine = started(1);
    handle(&mut machine, Event::Known(name(0)), 1);
    let mut actions = vec![];
    while let Some(due) = machine.next_deadline().filter(|due| *due <= Instant::from_millis(32_000)) {
        machine.handle(Event::Tick, due, &mut actions);
    }
    assert_eq!(actions.first(), Some(&Action::Query(name(0))));
    assert!(actions.len() >= 3 && actions[1..].iter().all(|action| *action == Action::Search(name(0))), "{actions:?}");
    // Its answer names another MAC address; the next query is due as for any known node.
    handle(&mut machine, Event::Known(name(0)), 32_000);
    assert!(machine.next_deadline() >= Some(Instant::from_millis(54_500)));
}

#[test]
fn a_node_that_is_down_is_left_to_liveness_and_queried_at_once_when_it_is_up() {
    let mut machine = started(1);
    handle(&mut machine, Event::Known(name(0)), 1);
    handle(&mut machine, Event::Down(name(0)), 1000);
    assert_eq!(queried(&mut machine, 200_000), BTreeMap::new());
    assert_eq!(handle(&mut machine, Event::Up(name(0)), 200_000), [name(0)]);
}

#[test]
fn our_own_change_reaches_every_node_in_a_burst() {
    let mut machine = started(3);
    (0..3).for_each(|node| _ = handle(&mut machine, Event::Known(name(node)), 1));
    handle(&mut machine, Event::Down(name(2)), 1);
    assert_eq!(handle(&mut machine, Event::OwnAddress, 5000).len(), 3);
    let times = queried(&mut machine, 6000);
    for node in 0..3 {
        assert_eq!(times[&name(node)], [5050, 5200, 6000], "node {node}");
    }
    (0..3).for_each(|node| _ = handle(&mut machine, Event::Known(name(node)), 6001));
    // Answers do not end it: another frame may have been lost.
    handle(&mut machine, Event::OwnAddress, 20_000);
    handle(&mut machine, Event::Known(name(0)), 20_001);
    assert_eq!(queried(&mut machine, 20_900)[&name(0)], [20_050, 20_200]);
}

#[test]
fn nothing_is_queried_without_a_link_and_all_are_when_it_returns() {
    let mut machine = started(2);
    handle(&mut machine, Event::Carrier(false), 10);
    assert_eq!(machine.next_deadline(), None);
    assert_eq!(handle(&mut machine, Event::Carrier(true), 60_000).len(), 2);
}

#[test]
fn an_address_that_is_new_is_queried_for_at_once() {
    let mut machine = started(1);
    handle(&mut machine, Event::Known(name(0)), 1);
    assert_eq!(handle(&mut machine, Event::Unknown(name(0)), 2000), [name(0)]);
    assert!(queried(&mut machine, 3000)[&name(0)].len() >= 3);
}

/// 40 speakers and 20 nodes of the view that never answer. The figures are what this prints with `--nocapture`.
#[test]
fn absent_nodes_do_not_cost_a_storm() {
    const SPEAKERS: usize = 40;
    const ABSENT: usize = 20;
    let mut frames = vec![0_u32; 120];
    for speaker in 0..SPEAKERS {
        broadcasts_of(speaker, SPEAKERS, ABSENT, &mut frames);
    }
    let (first, steady): (u32, u32) = (frames[0], frames[90..].iter().sum::<u32>() / 30);
    std::println!(
        "{SPEAKERS} speakers, {ABSENT} missing nodes: {first} broadcasts in the first second, {steady} a second after 90 s"
    );
    assert!(steady <= 60, "{frames:?}");
    assert!(first <= 10_000, "{frames:?}");
}

/// What one speaker sends for nodes whose MAC address it does not know, by second.
fn broadcasts_of(speaker: usize, speakers: usize, absent: usize, frames: &mut [u32]) {
    let seed = speaker as u64;
    let mut resolver = Resolver::new(Config::new(seed));
    let mut liveness = Liveness::new(liveness::Config::new(seed));
    let peers: BTreeSet<NodeName> = (0..speakers).filter(|peer| *peer != speaker).map(name).collect();
    let nodes: BTreeSet<NodeName> = peers.iter().cloned().chain((speakers..speakers + absent).map(name)).collect();
    let (mut queries, mut probes) = (vec![], vec![]);
    for at in 0..frames.len() as u64 * 1000 {
        let now = Instant::from_millis(at);
        if at == 0 {
            resolver.handle(Event::Nodes(nodes.clone()), now, &mut queries);
            liveness.handle(liveness::Event::Nodes(nodes.clone()), now, &mut probes);
        }
        if at % 50 == 0 {
            for peer in &peers {
                resolver.handle(Event::Known(peer.clone()), now, &mut queries);
                liveness.handle(liveness::Event::Heartbeat(peer.clone()), now, &mut probes);
            }
        }
        if liveness.next_deadline().is_some_and(|due| due <= now) {
            liveness.handle(liveness::Event::Tick, now, &mut probes);
        }
        let mut sent: Vec<NodeName> = vec![];
        for action in probes.drain(..) {
            match action {
                liveness::Action::Probe(node) | liveness::Action::Search(node) => sent.push(node),
                liveness::Action::NodeDown(node) => resolver.handle(Event::Down(node), now, &mut queries),
                _ => {}
            }
        }
        if resolver.next_deadline().is_some_and(|due| due <= now) {
            resolver.handle(Event::Tick, now, &mut queries);
        }
        sent.extend(queries.drain(..).map(node));
        frames[at as usize / 1000] += sent.iter().filter(|node| !peers.contains(*node)).count() as u32;
    }
}
