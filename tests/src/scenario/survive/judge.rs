//! What became of connections, by whether their pod lives.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::causes::{Causes, Seen, reset_by};
use super::datagrams::{self, Datagrams};
use super::watch::Reports;
use crate::scenario::deploy::{POD_PORT, Scene};
use crate::scenario::pods::{Pod, greeting_from};
use crate::traffic::clock::milliseconds;
use crate::traffic::report::{ConnectReport, Failure, Greeting, Held, HeldState, HoldReport};

/// One address, and what its clients saw.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Side {
    /// With those that replaced others.
    pub opened: usize,
    /// Not even opened at the beginning.
    pub failed: usize,
    /// Their pod lives, and is the same process, or served others after their end: all of them must be alive.
    pub eligible: usize,
    pub alive: usize,
    /// What became of the eligible ones that are not alive.
    pub lost: Ends,
    /// How many of these kube-proxy's rules had opened: the pod saw a node as its client. They end with the node by which they came.
    /// At Sheave's address this happens only while our table is missing.
    pub lost_by_kube_proxy: usize,
    /// The lost ones by the second of their last echo, from the first fault.
    pub lost_at: BTreeMap<u64, usize>,
    /// Of those that were reset, where it is recorded.
    #[serde(default)]
    pub lost_by: BTreeMap<String, usize>,
    /// Of the eligible ones that are alive, between two echoes, from the first fault on.
    pub longest_pause_ms: f64,
    /// The same without an acknowledgement of the pod's kernel: the pause less what the pod's program slept.
    pub longest_unacknowledged_ms: f64,
    /// The longest that the client itself did not run: a pause that it makes.
    pub client_late_ms: f64,
    /// Their pod is gone.
    pub gone: usize,
    /// How they ended: by FIN or by a reset, never in silence.
    pub ended: Ends,
    /// The longest that one of them waited for its end after its last echo.
    pub longest_wait_ms: f64,
    /// Attempts to open new connections.
    pub new: u64,
    pub new_failed: u64,
    /// Without those begun within 300 ms of a fault.
    pub new_failed_later: u64,
    /// Of these, the ones whose pod's kernel had them in time, and whose pod's program took them too late.
    pub new_server_late: usize,
    /// All others of these, by the second in which they began, from the first fault.
    pub new_failed_at: BTreeMap<u64, usize>,
    /// The same ones by cause, where causes were recorded.
    pub new_failed_causes: Option<Causes>,
    pub udp: Datagrams,
    /// Where the address went meanwhile, if it is today's.
    pub moved_to: Vec<String>,
    /// The first few that are not as they should be.
    pub examples: Vec<String>,
}

/// Ends of connections that are not alive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    pub closed: usize,
    pub reset: usize,
    pub silent: usize,
}

impl Side {
    /// Every eligible connection lives, none of the others was left in silence, and UDP stayed where it was.
    pub fn whole(&self) -> bool {
        self.failed == 0 && self.alive == self.eligible && self.ended.silent == 0 && self.udp.whole()
    }
}

/// When the server of each pod that is there now was started. Pods that are on their way out do not count.
pub type Living = BTreeMap<String, u64>;

/// Fetches every pod's greeting at its own address, from its own node: the API's status of a pod may be older than a loss of
/// power.
pub fn greet_all(scene: &Scene) -> Result<Vec<Greeting>> {
    let pods = scene.pods()?;
    // A pod that does not answer is not there.
    let greet = |pod: &Pod| greeting_from(&scene.lab, &pod.node, &format!("{}:{POD_PORT}", pod.ip?)).ok();
    Ok(pods.iter().filter_map(greet).collect())
}

pub fn living(greetings: &[Greeting]) -> Living {
    greetings.iter().map(|greeting| (greeting.pod.clone(), greeting.started_ns)).collect()
}

/// When each pod, started at a time, last answered any client.
pub type LastServed = BTreeMap<(String, u64), u64>;

pub fn last_served<'a>(reports: impl Iterator<Item = &'a Reports>) -> LastServed {
    let mut last_served = LastServed::new();
    for held in reports.flat_map(|reports| &reports.held.connections) {
        let last = last_served.entry((held.pod.clone(), held.started_ns)).or_default();
        *last = held.last_echo_ns.max(*last);
    }
    last_served
}

/// Whether the connection must be alive. One that was reset, or fell silent, while its pod went on serving others was lost, whatever
/// became of the pod later. A FIN is the server's own: nothing on the way makes one.
fn must_live(held: &Held, living: &Living, last_served: &LastServed) -> bool {
    let last = last_served.get(&(held.pod.clone(), held.started_ns)).copied().unwrap_or_default();
    let outlived = held.ended_ns.is_some_and(|ended| last > ended + AT_ONCE_NS);
    outlived && held.state != HeldState::Closed || living.get(&held.pod) == Some(&held.started_ns)
}

/// Who reset the connections that must live, as the switch saw it, and how long before the last answer of the pod to anybody.
pub fn lost_by(held: &HoldReport, living: &Living, last_served: &LastServed, seen: &Seen) -> BTreeMap<String, usize> {
    let reset = held.connections.iter().filter(|held| held.state == HeldState::Reset);
    count_by(reset.filter(|held| must_live(held, living, last_served)).map(|held| {
        let port = held.local.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let by = port.and_then(|port| reset_by(&seen.frames, port, held.ended_ns.unwrap_or_default()));
        let last = last_served.get(&(held.pod.clone(), held.started_ns)).copied().unwrap_or_default();
        let later = milliseconds(held.ended_ns.unwrap_or_default(), last) / 1e3;
        format!(
            "by {}, to {} on {}, which served {later:.1} s longer",
            by.unwrap_or("nobody seen".into()),
            held.pod,
            held.node
        )
    }))
}

/// `last_served`: of the clients of both addresses.
pub fn judge(reports: &Reports, living: &Living, last_served: &LastServed) -> Side {
    let all = &reports.held.connections;
    let lives = |held: &&Held| must_live(held, living, last_served);
    let opened = || all.iter().filter(|held| held.state != HeldState::Failed);
    let eligible: Vec<_> = opened().filter(lives).collect();
    let gone: Vec<_> = opened().filter(|held| !lives(held)).collect();
    let alive = || eligible.iter().filter(|held| held.state == HeldState::Alive);
    let pause = |held: &&&Held| held.longest_pause_after_mark_ms.unwrap_or(held.longest_pause_ms);
    let wait = |held: &&Held| held.ended_ns.map(|ended| milliseconds(held.last_echo_ns, ended));
    let mut wrong: Vec<_> = eligible.iter().filter(|held| held.state != HeldState::Alive).collect();
    wrong.sort_by_key(|held| held.last_echo_ns);
    let hanging = gone.iter().filter(|held| held.state == HeldState::Silent);
    let mut waited: Vec<_> = gone.iter().filter(|held| wait(held).is_some_and(|wait| wait > LONG_MS)).collect();
    waited.sort_by(|a, b| wait(b).partial_cmp(&wait(a)).unwrap_or(Ordering::Equal));
    let mark = reports.held.mark_ns.unwrap_or_default();
    let new = reports.connecting.as_ref();
    Side {
        opened: opened().count(),
        failed: all.len() - opened().count(),
        eligible: eligible.len(),
        alive: alive().count(),
        lost: ends(&eligible),
        lost_by_kube_proxy: wrong.iter().filter(|held| ip(&held.seen) != ip(&held.local)).count(),
        lost_by: BTreeMap::new(),
        lost_at: count_by(wrong.iter().map(|held| seconds(mark, held.last_echo_ns) as u64)),
        longest_pause_ms: alive().map(|held| pause(&held)).fold(0.0, f64::max),
        longest_unacknowledged_ms: alive().map(|held| held.unacknowledged_after_mark_ms).fold(0.0, f64::max),
        client_late_ms: reports.held.late_ms,
        gone: gone.len(),
        ended: ends(&gone),
        longest_wait_ms: gone.iter().filter_map(wait).fold(0.0, f64::max),
        new: new.map_or(0, |new| new.attempts),
        new_failed: new.map_or(0, |new| new.failed),
        new_failed_later: new.map_or(0, |new| new.failed_after_mark.unwrap_or(new.failed)),
        new_server_late: new.map_or(0, |new| later(new).filter(|failure| failure.server_late).count()),
        new_failed_at: new.map(|new| failed_at(new, mark)).unwrap_or_default(),
        new_failed_causes: None,
        udp: reports.probed.as_ref().map(|probed| datagrams::judge(probed, living)).unwrap_or_default(),
        moved_to: Vec::new(),
        examples: one_a_second(wrong.into_iter().copied(), |held| held.last_echo_ns)
            .chain(hanging.take(FEW).copied())
            .chain(waited.into_iter().take(FEW).copied())
            .map(|held| example(held, mark))
            .chain(new.iter().flat_map(|new| new_failed(new, mark)))
            .collect(),
    }
}

/// Of `address:port`.
fn ip(address: &str) -> Option<&str> {
    Some(address.rsplit_once(':')?.0)
}

fn ends(connections: &[&Held]) -> Ends {
    let count = |state| connections.iter().filter(|held| held.state == state).count();
    Ends { closed: count(HeldState::Closed), reset: count(HeldState::Reset), silent: count(HeldState::Silent) }
}

fn example(held: &Held, mark_ns: u64) -> String {
    let seconds = |at| seconds(mark_ns, at);
    let end = held.ended_ns.map_or("no end".to_owned(), |at| format!("ended at {:.1} s", seconds(at)));
    let error = held.error.as_deref().unwrap_or("no error");
    let Held { local, pod, node, seen, state, .. } = held;
    let (opened, echo) = (seconds(held.connected_ns), seconds(held.last_echo_ns));
    format!(
        "{local} (as {seen}) to {pod} on {node} {state:?}: opened at {opened:.1} s, last echo at {echo:.1} s, {end}, {error}"
    )
}

fn new_failed(report: &ConnectReport, mark_ns: u64) -> impl Iterator<Item = String> {
    one_a_second(unanswered(report), |failure| failure.begun_ns).map(move |Failure { begun_ns, ms, error, .. }| {
        format!("a new one, begun at {:.1} s, failed after {ms:.0} ms: {error}", seconds(mark_ns, *begun_ns))
    })
}

fn failed_at(report: &ConnectReport, mark_ns: u64) -> BTreeMap<u64, usize> {
    count_by(unanswered(report).map(|failure| seconds(mark_ns, failure.begun_ns) as u64))
}

fn later(report: &ConnectReport) -> impl Iterator<Item = &Failure> {
    report.failures.iter().filter(|failure| failure.later)
}

/// Whatever it was, it was not that the pod's program was late.
pub(super) fn unanswered(report: &ConnectReport) -> impl Iterator<Item = &Failure> {
    later(report).filter(|failure| !failure.server_late)
}

/// The first of each second, and no more than a few of these.
fn one_a_second<'a, T: 'a>(all: impl Iterator<Item = &'a T>, at_ns: fn(&T) -> u64) -> impl Iterator<Item = &'a T> {
    let mut seen = BTreeSet::new();
    all.filter(move |one| seen.insert(at_ns(one) / SECOND_NS)).take(MANY)
}

fn count_by<T: Ord>(all: impl Iterator<Item = T>) -> BTreeMap<T, usize> {
    let mut counts = BTreeMap::new();
    all.for_each(|one| *counts.entry(one).or_default() += 1);
    counts
}

/// Before the mark they are negative.
pub fn seconds(mark_ns: u64, at_ns: u64) -> f64 {
    (at_ns as f64 - mark_ns as f64) / 1e9
}

const FEW: usize = 4;
/// Of one for each second.
const MANY: usize = 40;
const SECOND_NS: u64 = 1_000_000_000;
/// A client that waits longer for its end is worth an example.
const LONG_MS: f64 = 5000.0;
/// A server closes all its connections at once; its clients notice within this time.
const AT_ONCE_NS: u64 = 500_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::report::HoldReport;

    #[test]
    fn a_pod_that_was_restarted_is_another_one_and_one_that_served_on_was_there() {
        let held = |pod: &str, started_ns, state| Held {
            state,
            local: "192.0.2.5:1".to_owned(),
            pod: pod.to_owned(),
            node: String::new(),
            started_ns,
            seen: "192.0.2.5:1".to_owned(),
            connected_ns: 0,
            last_echo_ns: 5_000_000,
            ended_ns: (state != HeldState::Alive && state != HeldState::Silent).then_some(25_000_000),
            error: None,
            echoes: 0,
            longest_pause_ms: 1.0,
            longest_pause_after_mark_ms: None,
            unacknowledged_after_mark_ms: 0.0,
            mark_to_end_ms: None,
        };
        let served_later = Held { last_echo_ns: 900_000_000, ..held("d", 1, HeldState::Silent) };
        let masqueraded = Held { seen: "192.0.2.11:1".to_owned(), ..held("a", 1, HeldState::Reset) };
        let connections = vec![
            masqueraded,
            held("d", 1, HeldState::Reset),
            served_later,
            held("a", 1, HeldState::Alive),
            held("a", 1, HeldState::Silent),
            held("b", 1, HeldState::Reset),
            held("b", 2, HeldState::Reset),
            held("c", 1, HeldState::Silent),
            held("", 0, HeldState::Failed),
        ];
        let held = HoldReport { connections, ..HoldReport::default() };
        let reports = Reports { held, connecting: None, probed: None };
        let living = Living::from([("a".to_owned(), 1), ("b".to_owned(), 2)]);
        let side = judge(&reports, &living, &last_served([&reports].into_iter()));
        assert_eq!((side.opened, side.failed, side.eligible, side.alive, side.gone), (8, 1, 5, 1, 3));
        assert_eq!(side.lost, Ends { closed: 0, reset: 3, silent: 1 });
        assert_eq!(side.lost_by_kube_proxy, 1, "it is lost all the same");
        assert_eq!(side.ended, Ends { closed: 0, reset: 1, silent: 2 });
        assert_eq!(
            (side.longest_wait_ms, side.examples.len()),
            (20.0, 3),
            "of those that were lost one for each second"
        );
        assert!(!side.whole());
    }
}
