//! A few nodes on a virtual wire, with explicit times.

mod stale;
mod totals;
mod unicast;

use alloc::vec;

use super::*;
use crate::reports::Rows;
use crate::startup::Target;
use crate::view::Protocol;
use crate::view::endpoints::service_key;
use crate::wire::advert::MAX_DATAGRAM;
use crate::wire::seal::Key;

fn name(node: usize) -> NodeName {
    NodeName::new(&alloc::format!("n{node}")).unwrap()
}

fn config(node: usize, epoch: u64) -> Config {
    Config {
        node: name(node),
        cluster: 1,
        epoch,
        keys: Keyring { current: Key { id: 1, secret: [1; 32] }, other: None },
        interval: Duration::from_secs(1),
        differ: Duration::from_secs(5),
        pods: BTreeMap::new(),
    }
}

/// Rows of one service by a table.
fn report(digest: u64, rows: impl IntoIterator<Item = u32>) -> Arc<Report> {
    let rows = Rows::new(65488, rows);
    let key = service_key([192, 0, 2, 1].into(), 80, Protocol::Tcp);
    let services = if rows.is_empty() { BTreeMap::new() } else { [(key, Arc::new(rows))].into() };
    Arc::new(Report { digest, partial: false, services })
}

/// A view by its digest, and the digests of nodes' pods.
fn view<const N: usize>(view: u64, pods: [(&str, u64); N]) -> Event {
    Event::Applied(Digests { view, pods: pods.map(|(node, pods)| (node.into(), pods)).into() })
}

struct Wire {
    now: Instant,
    nodes: BTreeMap<usize, Exchange>,
    /// Datagrams from these are lost: every nth, from 1.
    lossy: BTreeMap<usize, usize>,
    /// From, to, and whether it is multicast that does not arrive.
    filtered: BTreeSet<(usize, usize, bool)>,
    sent: BTreeMap<usize, Vec<Vec<u8>>>,
    log: Vec<(usize, Action)>,
}

impl Wire {
    fn new(nodes: usize) -> Self {
        let now = Instant::from_millis(10_000);
        let nodes = (0..nodes).map(|node| (node, Exchange::new(config(node, 1), now))).collect();
        Self { now, nodes, lossy: BTreeMap::new(), filtered: BTreeSet::new(), sent: BTreeMap::new(), log: vec![] }
    }

    fn event(&mut self, node: usize, event: Event) {
        let Some(exchange) = self.nodes.get_mut(&node) else { return };
        let mut actions = vec![];
        exchange.handle(event, self.now, &mut actions);
        for action in actions {
            let (bytes, to) = match action {
                Action::Send(bytes) => (bytes, None),
                Action::SendTo(to, bytes) => (bytes, Some(to)),
                action => {
                    self.log.push((node, action));
                    continue;
                }
            };
            assert!(bytes.len() <= MAX_DATAGRAM);
            let multicast = to.is_none();
            let sent = self.sent.entry(node).or_default();
            sent.push(bytes.clone());
            if self.lossy.get(&node).is_some_and(|every| sent.len().is_multiple_of(*every)) {
                continue;
            }
            let arrives = |other: &usize| {
                *other != node
                    && to.as_ref().is_none_or(|to| *to == name(*other))
                    && !self.filtered.contains(&(node, *other, multicast))
            };
            let others: Vec<usize> = self.nodes.keys().copied().filter(arrives).collect();
            others.into_iter().for_each(|other| self.event(other, Event::Datagram { bytes: bytes.clone(), multicast }));
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(10);
            for node in self.nodes.keys().copied().collect::<Vec<_>>() {
                if self.nodes[&node].next_deadline().is_some_and(|due| due <= self.now) {
                    self.event(node, Event::Tick);
                }
            }
        }
    }

    fn local(&mut self, node: usize, report: &Arc<Report>) {
        self.event(node, Event::Local(report.clone()));
    }

    /// What `at` knows of `node`.
    fn known(&self, at: usize, node: usize) -> Option<Arc<Report>> {
        Some(self.nodes[&at].reports().get(name(node).as_str())?.report.clone())
    }

    fn others(&self) -> BTreeSet<NodeName> {
        self.nodes.keys().map(|node| name(*node)).collect()
    }
}

fn to_all(bytes: Vec<u8>) -> Event {
    Event::Datagram { bytes, multicast: true }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn every_node_knows_the_reports_of_all() {
    let mut wire = Wire::new(3);
    wire.run(SECOND);
    let held = report(7, (0..65488).step_by(3));
    wire.local(0, &held);
    wire.local(1, &report(7, []));
    assert_eq!(
        (wire.known(1, 0), wire.known(2, 0), wire.known(2, 1)),
        (Some(held.clone()), Some(held), Some(report(7, [])))
    );
    assert_eq!(wire.known(0, 2), None, "it has not reported yet");
    let changed = |node: usize| wire.log.iter().filter(|(_, action)| *action == Action::Changed(name(node))).count();
    assert_eq!((changed(0), changed(1), changed(2)), (3, 3, 0));
}

#[test]
fn an_idle_node_sends_one_small_datagram_a_second() {
    let mut wire = Wire::new(2);
    wire.local(0, &report(7, []));
    wire.local(1, &report(7, [1, 2, 3]));
    wire.run(5 * SECOND);
    wire.sent.clear();
    wire.log.clear();
    wire.run(10 * SECOND);
    assert!(wire.sent.values().all(|sent| sent.len() == 10 && sent.iter().all(|bytes| bytes.len() < 110)));
    assert_eq!(wire.log, []);
}

/// Its report is as old as its last scan of conntrack.
#[test]
fn reports_are_confirmed_with_each_scan() {
    let mut wire = Wire::new(2);
    let held = report(7, [1]);
    wire.local(0, &held);
    wire.run(5 * SECOND);
    let confirmed = |wire: &Wire| wire.nodes[&1].reports()["n0"].confirmed;
    assert_eq!(confirmed(&wire), Instant::from_millis(10_000));
    let scanned = wire.now;
    wire.local(0, &held);
    wire.run(2 * SECOND);
    assert_eq!(confirmed(&wire), scanned);
}

#[test]
fn lost_parts_are_sent_again_on_request() {
    let mut wire = Wire::new(2);
    wire.run(SECOND);
    wire.lossy.insert(0, 3);
    let held = report(7, (0..65488).step_by(2));
    wire.local(0, &held);
    assert_eq!(wire.known(1, 0), None);
    wire.run(5 * SECOND);
    assert_eq!(wire.known(1, 0), Some(held));
}

#[test]
fn a_speaker_that_starts_requests_reports_and_gets_them_at_once() {
    let mut wire = Wire::new(2);
    let held = report(7, [1, 2]);
    wire.local(0, &held);
    wire.local(1, &held);
    wire.run(10 * SECOND);
    wire.nodes.insert(2, Exchange::new(config(2, 1), wire.now));
    let others = [name(0), name(1)].into();
    wire.event(2, Event::Nodes(others));
    assert!(!wire.nodes[&2].all_reported(wire.now));
    wire.run(Duration::from_millis(300));
    assert!(wire.nodes[&2].all_reported(wire.now));
    assert_eq!((wire.known(2, 0), wire.known(2, 1)), (Some(held.clone()), Some(held)));
}

#[test]
fn silent_nodes_are_not_waited_for() {
    let mut wire = Wire::new(1);
    wire.event(0, Event::Nodes([name(5)].into()));
    wire.run(SECOND);
    assert!(!wire.nodes[&0].all_reported(wire.now));
    wire.run(SECOND / 2);
    assert!(wire.nodes[&0].all_reported(wire.now), "no peer has been received");
    // A node that is received and whose parts never come.
    let mut wire = Wire::new(2);
    wire.lossy.insert(0, 2);
    wire.local(0, &report(7, (0..65488).step_by(2)));
    wire.lossy.insert(0, 1);
    wire.run(4 * SECOND);
    wire.event(1, Event::Rejoin);
    wire.run(5 * SECOND);
    assert!(wire.nodes[&1].all_reported(wire.now));
}

/// Its flows live on.
#[test]
fn the_last_report_counts_until_the_node_is_removed() {
    let mut wire = Wire::new(3);
    let held = report(7, [1]);
    wire.local(0, &held);
    wire.run(SECOND);
    wire.nodes.remove(&0);
    wire.run(600 * SECOND);
    assert_eq!(wire.known(1, 0), Some(held.clone()));
    // Its next run knows nothing at first: the report of the last one counts.
    wire.nodes.insert(0, Exchange::new(config(0, 2), wire.now));
    wire.run(2 * SECOND);
    assert_eq!(wire.known(1, 0), Some(held));
    wire.local(0, &report(7, []));
    assert_eq!(wire.known(1, 0), Some(report(7, [])));
    wire.log.clear();
    wire.event(1, Event::Nodes([name(2)].into()));
    assert_eq!((wire.known(1, 0), wire.log.as_slice()), (None, &[(1, Action::Changed(name(0)))][..]));
    wire.local(0, &report(7, [5]));
    assert!(wire.log.contains(&(1, Action::Rejected(Reject::UnknownNode))));
}

#[test]
fn replayed_reports_are_rejected() {
    let mut wire = Wire::new(2);
    wire.local(0, &report(7, [1]));
    wire.run(3 * SECOND);
    wire.nodes.insert(0, Exchange::new(config(0, 2), wire.now));
    let old = wire.sent[&0].clone();
    wire.run(SECOND);
    wire.local(0, &report(7, [2]));
    wire.log.clear();
    wire.event(1, to_all(old[0].clone()));
    let last = wire.sent[&0].last().unwrap().clone();
    wire.event(1, to_all(last));
    wire.event(0, to_all(old[0].clone()));
    let rejected = [(1, Reject::StaleEpoch), (1, Reject::Replayed), (0, Reject::OwnEcho)];
    assert_eq!(wire.log, rejected.map(|(node, reject)| (node, Action::Rejected(reject))));
    assert_eq!(wire.known(1, 0), Some(report(7, [2])));
}

/// A node whose clock was set back and whose disk was lost is received again once the election has verified it, and only then.
#[test]
fn a_lower_epoch_counts_once_the_election_has_verified_it() {
    let mut wire = Wire::new(2);
    wire.nodes.insert(0, Exchange::new(config(0, 900), wire.now));
    wire.local(0, &report(7, [1]));
    wire.run(3 * SECOND);
    let before = wire.sent[&0].clone();
    wire.nodes.insert(0, Exchange::new(config(0, 5), wire.now));
    wire.local(0, &report(7, [2]));
    wire.run(10 * SECOND);
    assert_eq!(wire.known(1, 0), Some(report(7, [1])), "it may be a recording");
    assert!(wire.log.contains(&(1, Action::Rejected(Reject::StaleEpoch))));
    wire.event(1, Event::Incarnations([(name(0), 5)].into()));
    wire.run(2 * SECOND);
    assert_eq!(wire.known(1, 0), Some(report(7, [2])));

    // Recordings of the higher epoch lead nowhere, before the fact is repeated and after it.
    wire.log.clear();
    for _ in 0..2 {
        before.iter().for_each(|datagram| wire.event(1, to_all(datagram.clone())));
        wire.event(1, Event::Incarnations([(name(0), 5)].into()));
    }
    assert!(wire.log.iter().all(|(_, action)| *action == Action::Rejected(Reject::StaleEpoch)), "{:?}", wire.log);
    let last = wire.sent[&0].last().unwrap().clone();
    wire.event(1, to_all(last));
    assert_eq!(wire.log.last(), Some(&(1, Action::Rejected(Reject::Replayed))), "nor do those of its own");
    wire.local(0, &report(7, [3]));
    assert_eq!(wire.known(1, 0), Some(report(7, [3])));
}

/// The election may verify late: the next incarnation, with an epoch between the two, is received again as soon as it is verified.
#[test]
fn a_verified_incarnation_is_received_after_any_earlier_one() {
    let mut wire = Wire::new(2);
    for (epoch, row) in [(900, 1), (5, 2), (6, 3), (800, 4)] {
        wire.nodes.insert(0, Exchange::new(config(0, epoch), wire.now));
        wire.local(0, &report(7, [row]));
        wire.event(1, Event::Incarnations([(name(0), epoch)].into()));
        wire.run(2 * SECOND);
        assert_eq!(wire.known(1, 0), Some(report(7, [row])));
    }
    // The clock is right again: an epoch above all others needs no verification.
    wire.nodes.insert(0, Exchange::new(config(0, 901), wire.now));
    wire.local(0, &report(7, [5]));
    assert_eq!(wire.known(1, 0), Some(report(7, [5])));
}

#[test]
fn rows_that_are_as_they_were_keep_their_allocation() {
    let mut wire = Wire::new(2);
    wire.local(0, &report(7, [1]));
    let rows = |wire: &Wire| wire.known(1, 0).unwrap().services.values().next().unwrap().clone();
    let before = rows(&wire);
    wire.local(0, &report(8, [1]));
    assert!(Arc::ptr_eq(&before, &rows(&wire)));
    wire.local(0, &report(8, [2]));
    assert!(!Arc::ptr_eq(&before, &rows(&wire)));
}

#[test]
fn tables_that_differ_for_long_are_an_alarm() {
    let mut wire = Wire::new(2);
    (0..2).for_each(|node| wire.local(node, &report(7, [])));
    wire.run(3 * SECOND);
    wire.log.clear();
    let since = wire.now;
    wire.local(0, &report(8, []));
    wire.run(SECOND);
    assert!(!wire.nodes[&0].differs(wire.now));
    wire.run(3 * SECOND);
    assert!(wire.nodes[&0].differs(wire.now), "enough to tell all rows, not for an alarm");
    wire.run(8 * SECOND);
    let alarms = |wire: &Wire| {
        wire.log.iter().filter(|(_, action)| !matches!(action, Action::Changed(_))).cloned().collect::<Vec<_>>()
    };
    let differs = |node| Action::Differs { node: name(node), since };
    assert_eq!(alarms(&wire), [(0, differs(1)), (1, differs(0))]);
    wire.log.clear();
    wire.local(1, &report(8, []));
    assert_eq!(alarms(&wire), [(1, Action::Agrees(name(0))), (0, Action::Agrees(name(1)))]);
    assert!(!wire.nodes[&0].differs(wire.now) && wire.others().len() == 2);
}

/// Additions come all the time and wait; nodes with equal views have applied different ones of them (decision 15).
#[test]
fn tables_that_differ_while_additions_may_wait_are_no_alarm() {
    let mut wire = Wire::new(3);
    let alarms = |wire: &Wire| {
        let wanted = wire.log.iter().filter(|(_, action)| matches!(action, Action::Differs { .. } | Action::Stale(_)));
        wanted.cloned().collect::<Vec<_>>()
    };
    for second in 1..=30 {
        for node in 0..3 {
            wire.event(node, view(second, []));
            wire.local(node, &report(100 * node as u64 + second, []));
        }
        wire.run(SECOND);
    }
    assert_eq!(alarms(&wire), []);
    // The views stay: what waited is applied in 15 s. Node 2 does not reach the table of the others.
    let since = Instant::from_millis(10_000);
    (0..2).for_each(|node| wire.local(node, &report(500, [])));
    wire.run(18 * SECOND);
    assert_eq!(alarms(&wire), []);
    wire.run(4 * SECOND);
    let differs = |node| Action::Differs { node: name(node), since };
    let mut raised = alarms(&wire);
    raised.sort_by_key(|(node, _)| *node);
    assert_eq!(raised, [(0, differs(2)), (1, differs(2)), (2, differs(0)), (2, differs(1))]);
}

/// Node 2 reports the same view again and again.
#[test]
fn a_table_of_an_old_view_is_an_alarm_while_additions_wait() {
    let mut wire = Wire::new(3);
    for second in 1..=10 {
        for node in 0..3 {
            let seen = if node == 2 { 1 } else { second };
            wire.event(node, view(seen, []));
            wire.local(node, &report(seen, []));
        }
        wire.run(SECOND);
    }
    let differs = |node| {
        wire.log.iter().any(|(_, action)| matches!(action, Action::Differs { node: other, .. } if *other == name(node)))
    };
    assert!(differs(2) && differs(0) && differs(1));
    let of_each_other = [(0, 1), (1, 0)];
    for (node, other) in of_each_other {
        let alarm = |(at, action): &(usize, Action)| {
            *at == node && matches!(action, Action::Differs { node, .. } if *node == name(other))
        };
        assert!(!wire.log.iter().any(alarm));
    }
}

/// By its new table row 1 is its own, so it no longer reports it. By ours it is not.
#[test]
fn superseded_reports_count_until_tables_agree() {
    let mut wire = Wire::new(2);
    wire.local(0, &report(7, []));
    wire.local(1, &report(7, [1, 2]));
    let key = service_key([192, 0, 2, 1].into(), 80, Protocol::Tcp);
    let rows = |wire: &Wire, digest| -> BTreeSet<u32> {
        let reported = &wire.nodes[&0].reports()["n1"];
        let now = reported.report.services.get(&key).into_iter();
        now.chain(reported.superseded_rows(&key, digest)).flat_map(|rows| rows.iter()).collect()
    };
    assert_eq!(rows(&wire, 7), [1, 2].into());
    wire.local(1, &report(8, [2, 3]));
    wire.local(1, &report(9, [4]));
    assert_eq!((rows(&wire, 7), rows(&wire, 9)), ([1, 2, 3, 4].into(), [4].into()));
    wire.local(0, &report(9, []));
    wire.local(1, &report(10, [5]));
    assert_eq!(rows(&wire, 9), [4, 5].into(), "they agreed meanwhile");
    (11..20).for_each(|digest| wire.local(1, &report(digest, [digest as u32])));
    assert_eq!(rows(&wire, 9).len(), 5, "the last few");
}

#[test]
fn new_pods_are_reported_at_once_and_again_until_there_are_none() {
    let target = |port| Target { address: [10, 0, 0, 1].into(), port };
    let mut wire = Wire::new(2);
    wire.run(SECOND);
    let received = |wire: &mut Wire| -> Vec<Starts> {
        let taken = core::mem::take(&mut wire.log).into_iter().filter(|(at, _)| *at == 1);
        let starts = |(_, action)| match action {
            Action::Starts { node, starts } if node == name(0) => Some(starts),
            _ => None,
        };
        taken.filter_map(starts).collect()
    };
    received(&mut wire);
    let refuses = Starts::from([(target(80), false), (target(81), true)]);
    wire.event(0, Event::Starts(refuses.clone()));
    assert_eq!(received(&mut wire), core::slice::from_ref(&refuses));
    // The same again is no news.
    wire.event(0, Event::Starts(refuses.clone()));
    assert_eq!(received(&mut wire), []);
    wire.run(3 * SECOND);
    assert_eq!(received(&mut wire), [refuses.clone(), refuses.clone(), refuses]);
    // The news itself is lost.
    let started = Starts::from([(target(80), true), (target(81), true)]);
    wire.lossy.insert(0, 1);
    wire.event(0, Event::Starts(started.clone()));
    wire.lossy.clear();
    wire.run(SECOND);
    assert_eq!(received(&mut wire), [started]);
    // A recording brings it back to nobody.
    let recorded = wire.sent[&0].last().unwrap().clone();
    wire.event(0, Event::Starts(Starts::new()));
    wire.event(1, to_all(recorded));
    assert_eq!(received(&mut wire), [Starts::new()]);
    wire.run(3 * SECOND);
    assert_eq!(received(&mut wire), []);
}

#[test]
fn what_a_node_has_checked_is_reported_at_once_and_every_second() {
    let mut wire = Wire::new(2);
    wire.run(SECOND);
    let received = |wire: &mut Wire| -> Vec<health::Report> {
        let taken = core::mem::take(&mut wire.log).into_iter().filter(|(at, _)| *at == 1);
        let reports = |(_, action)| match action {
            Action::Health { node, report } if node == name(0) => Some(report),
            _ => None,
        };
        taken.filter_map(reports).collect()
    };
    assert_eq!(received(&mut wire), [], "a node that checks nothing reports nothing");
    let report = health::Report { reaches: true, ..health::Report::default() };
    for _ in 0..2 {
        wire.event(0, Event::Health(report.clone()));
    }
    assert_eq!(received(&mut wire), core::slice::from_ref(&report), "the same again is no news");
    wire.run(2 * SECOND);
    assert_eq!(received(&mut wire), [report.clone(), report]);
}
