//! 200,000 connections that live on while a Deployment scales out pod by pod: how many of them end up without a place.
//!
//! Read first: docs/decisions/0015. A connection has a place if its node is the primary or an alternate of its row. Three planners stand for
//! twenty nodes: one receives each pod's readiness at once, the others a little later, so their tables differ for moments, as real ones do.
//! Flow reports are made from the connections themselves: `Reporter` hashes each connection again, which takes too long for this many.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use std::println;

use ebpf_common::{ALTERNATES, MAX_ROWS, row_of, siphash13};

use super::node::{HASH_KEY, WINDOW, name};
use super::random::Random;
use crate::forwarding::previous::PreviousRings;
use crate::forwarding::{LONGEST_WAIT, Planner, SETTLE, Service, Table, TrafficStates};
use crate::reports::{Report, Reports, Rows};
use crate::time::{Duration, Instant};
use crate::view::endpoints::service_key;
use crate::view::example::{VIP, ports, service, vip, web};
use crate::view::{Affinity, Conditions, Endpoint, EndpointSlice, Node, Object, ObjectName, Protocol, View};

const NODES: usize = 20;
const FLOWS: usize = 200_000;
/// How much later than the first the nodes of each planner receive a view.
const LATE: [u64; 3] = [0, 60, 150];
const STEP: Duration = Duration::from_millis(10);
const START: Instant = Instant::from_millis(1_000_000);

/// Pods become ready `gap` apart, half of it more or less at random.
#[derive(Clone, Copy)]
struct Pace {
    gap: Duration,
    /// So many at a time.
    together: usize,
}

/// The row of each connection in a ring of the largest size; of the smaller one it is the sixteenth part.
fn fine_rows() -> Vec<u16> {
    (0..FLOWS as u64).map(|flow| row_of(siphash13(&HASH_KEY, flow, 1), MAX_ROWS).unwrap() as u16).collect()
}

fn view(pods: usize) -> Arc<View> {
    let nodes = (0..NODES).map(|node| {
        let address = Ipv4Addr::new(10, 255, 0, node as u8 + 1);
        Object::Node(name(node), Node::at(address))
    });
    let endpoint = |pod: usize| Endpoint {
        address: Ipv4Addr::from(0x0a00_0001 + pod as u32),
        node: Some(name(pod % NODES)),
        conditions: Conditions::READY,
    };
    let endpoints = (0..pods).map(endpoint).collect();
    let slice = EndpointSlice { service: "web".into(), ports: ports(8080, 5353), endpoints };
    let slice = Object::EndpointSlice(ObjectName::new("default", "web-1"), slice);
    let rest = [service(web(), Affinity::None), slice, vip(VIP, [web()])];
    Arc::new(View::from(nodes.chain(rest).collect::<Vec<_>>()))
}

/// The nodes with this number modulo three, which all have the same table.
struct Group {
    planner: Planner,
    table: Table,
    view: Arc<View>,
    dirty: bool,
    planned: Instant,
    ring_since: Instant,
}

impl Group {
    fn service(&self) -> &Service {
        &self.table.services[&service_key(VIP, 80, Protocol::Tcp)]
    }

    fn row(&self, fine: u16) -> u32 {
        u32::from(fine) / (MAX_ROWS / self.service().ring.rows.len() as u32)
    }

    fn primary(&self, fine: u16) -> usize {
        let ring = &self.service().ring;
        ring.primary(self.row(fine)).unwrap()[1..].parse().unwrap()
    }

    fn turn(&mut self, reports: &Reports, now: Instant) {
        let again = self.planner.awaits_reports() && now.since(self.planned) >= Duration::from_secs(1);
        let due = self.planner.next_deadline().is_some_and(|due| due <= now);
        if !self.dirty && !again && !due {
            return;
        }
        let before = self.table.digest;
        self.table = self.planner.table(&self.view, &TrafficStates::default(), reports, now);
        (self.dirty, self.planned) = (false, now);
        if self.table.digest != before {
            self.ring_since = now;
        }
    }
}

struct Scaling {
    now: Instant,
    groups: [Group; 3],
    reports: Reports,
    flows: Vec<u16>,
    /// The node of each connection that is open: the first of `flows`.
    nodes: Vec<usize>,
    random: Random,
    /// Since when tables have differed, and for how long they did at most.
    differ: Option<Instant>,
    differed: Duration,
    rings: BTreeSet<u64>,
}

impl Scaling {
    fn new(pods: usize, flows: &[u16]) -> Self {
        let view = view(pods);
        let group = |_| Group {
            planner: Planner::new(HASH_KEY, PreviousRings::new(WINDOW)),
            table: Table::default(),
            view: view.clone(),
            dirty: true,
            planned: START,
            ring_since: START,
        };
        let mut scaling = Self {
            now: START,
            groups: [0, 1, 2].map(group),
            reports: Reports::new(),
            flows: flows.into(),
            nodes: Vec::new(),
            random: Random(1),
            differ: None,
            differed: Duration::ZERO,
            rings: BTreeSet::new(),
        };
        scaling.turn();
        scaling
    }

    fn turn(&mut self) {
        for group in &mut self.groups {
            group.turn(&self.reports, self.now);
            self.rings.insert(group.service().ring.digest);
        }
        let [first, others @ ..] = &self.groups;
        if others.iter().all(|group| group.table.digest == first.table.digest) {
            self.differ = None;
        } else {
            let since = *self.differ.get_or_insert(self.now);
            self.differed = self.differed.max(self.now.since(since));
            if self.now.since(since) >= Duration::from_secs(2) {
                self.groups.iter_mut().for_each(|group| group.planner.tables_differ(self.now));
            }
        }
    }

    /// What every node reports: as `Reporter` does it.
    fn report(&mut self) {
        let differ = self.differ.is_some_and(|since| self.now.since(since) >= Duration::from_secs(2));
        let mut rows = vec![BTreeSet::new(); NODES];
        for (fine, node) in self.flows.iter().zip(&self.nodes) {
            let group = &self.groups[node % 3];
            if differ || self.now.since(group.ring_since) < SETTLE || group.primary(*fine) != *node {
                rows[*node].insert(group.row(*fine));
            }
        }
        for (node, rows) in rows.into_iter().enumerate() {
            let table = &self.groups[node % 3].table;
            let of = self.groups[node % 3].service().ring.rows.len() as u32;
            let named = (service_key(VIP, 80, Protocol::Tcp), Arc::new(Rows::new(of, rows)));
            let report = Report { digest: table.digest, partial: false, services: [named].into() };
            let reported = self.reports.entry(name(node)).or_default();
            reported.confirmed = self.now;
            if *reported.report != report {
                reported.report = Arc::new(report);
                self.groups.iter_mut().for_each(|group| group.dirty = true);
            }
        }
    }

    fn open(&mut self, until: usize) {
        for fine in &self.flows[self.nodes.len()..until] {
            let dispatcher = self.random.below(3);
            self.nodes.push(self.groups[dispatcher].primary(*fine));
        }
    }

    /// Connections whose node is not in their row, by the table of the first group.
    fn per_cent_without_place(&self) -> f64 {
        let group = &self.groups[0];
        let names: Vec<_> = (0..NODES).map(name).collect();
        let lost = |(fine, node): &(&u16, &usize)| {
            let alternates = group.service().alternates.as_ref();
            group.primary(**fine) != **node
                && !alternates.is_some_and(|others| others.of(group.row(**fine)).any(|other| other == names[**node]))
        };
        self.flows.iter().zip(&self.nodes).filter(lost).count() as f64 * 100.0 / FLOWS as f64
    }

    fn overflow(&self) -> [usize; 2] {
        let group = &self.groups[0];
        let counted = group.service().alternates.as_ref().map_or(0, |alternates| alternates.overflow as usize);
        let mut others: BTreeMap<u32, BTreeSet<usize>> = BTreeMap::new();
        for (fine, node) in self.flows.iter().zip(&self.nodes).filter(|(fine, node)| group.primary(**fine) != **node) {
            others.entry(group.row(*fine)).or_default().insert(*node);
        }
        [counted, others.values().filter(|nodes| nodes.len() > ALTERNATES).count()]
    }
}

/// What became of it.
#[derive(Debug)]
struct Outcome {
    /// Per cent of the connections, when all nodes have reported.
    lost: f64,
    /// The most that it was at any time.
    worst: f64,
    rings: usize,
    /// For how long tables differed at most.
    differed: Duration,
    /// Rows of which more nodes than fit have connections, as the table counts them and as they are.
    overflow: [usize; 2],
}

/// From three pods to so many, while connections are opened at a steady rate.
fn scale_out(flows: &[u16], to: usize, pace: Pace) -> Outcome {
    let mut scaling = Scaling::new(3, flows);
    let (mut at, mut pods) = (START, 3);
    let mut views: BTreeMap<Instant, Vec<(usize, Arc<View>)>> = BTreeMap::new();
    while pods < to {
        at += pace.gap / 20 * (10 + scaling.random.below(21) as u32);
        pods = to.min(pods + pace.together);
        let view = view(pods);
        for (group, late) in LATE.into_iter().enumerate() {
            views.entry(at + Duration::from_millis(late)).or_default().push((group, view.clone()));
        }
    }
    let end = at + Duration::from_secs(2);
    let mut worst = 0.0f64;
    while scaling.now < end + LONGEST_WAIT + SETTLE * 2 {
        scaling.now += STEP;
        let due = views.split_off(&(scaling.now + Duration::from_nanos(1)));
        for (group, view) in core::mem::replace(&mut views, due).into_values().flatten() {
            (scaling.groups[group].view, scaling.groups[group].dirty) = (view, true);
        }
        scaling.turn();
        let share = scaling.now.since(START).as_secs_f64() / end.since(START).as_secs_f64();
        scaling.open(((share * FLOWS as f64) as usize).min(FLOWS));
        let steps = scaling.now.since(START).as_nanos() / STEP.as_nanos();
        if steps.is_multiple_of(100) {
            scaling.report();
        }
        if steps.is_multiple_of(530) {
            worst = worst.max(scaling.per_cent_without_place());
        }
    }
    let lost = scaling.per_cent_without_place();
    let Scaling { ref rings, differed, .. } = scaling;
    Outcome { lost, worst, rings: rings.len(), differed, overflow: scaling.overflow() }
}

/// The figures of bench/README.md, Additions to a ring, come from here (`--nocapture`).
fn measured(flows: &[u16], to: usize, millis: u64, together: usize) -> Outcome {
    let outcome = scale_out(flows, to, Pace { gap: Duration::from_millis(millis), together });
    println!("3 to {to} pods, {together} every {millis} ms: {outcome:?}");
    assert!(outcome.differed < Duration::from_secs(1), "{outcome:?}");
    assert_eq!(outcome.overflow[0], outcome.overflow[1], "{outcome:?}");
    outcome
}

/// One to five pods a second, as those of a Deployment become ready.
#[test]
fn a_deployment_that_scales_out_leaves_no_connection_without_a_place() {
    let flows = fine_rows();
    for to in [36, 44] {
        for millis in [200, 1000] {
            let outcome = measured(&flows, to, millis, 1);
            assert!(outcome.lost <= 0.05 && outcome.worst <= 0.05, "{outcome:?}");
        }
        let outcome = measured(&flows, to, 16_000, 14);
        assert_eq!((outcome.lost, outcome.worst), (0.0, 0.0), "three batches: {outcome:?}");
        assert!(outcome.rings <= 1 + ALTERNATES, "{outcome:?}");
    }
}

/// Slower than batches are far apart, it is a ring for every few pods. What then has no place is counted.
#[test]
fn rows_that_overflow_are_counted_as_they_are() {
    let outcome = measured(&fine_rows(), 36, 3000, 1);
    assert!(outcome.overflow[0] > 0 && outcome.lost > 0.0, "{outcome:?}");
}
