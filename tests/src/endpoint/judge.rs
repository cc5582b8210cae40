//! What the endpoint promises for each fault, and whether it held: the demo and the tests judge by the same.

use serde::Serialize;

use anyhow::Result;

use super::Seen;
use super::cold::{First, Refused};
use super::daemonset::Happened;
use super::faults::{AllDown, Faulted};
use super::fresh::READY;
use super::further::Killed;
use super::report::Window;
use super::session::USER_AGENT;
use super::streams::Streamed;
use super::upkeep::{Readiness, Renewed, SlowEtcd, WrongClock};
use crate::lab::ha::Ha;
use crate::lab::plan::CLIENT;
use crate::scenario::InTime;
use crate::scenario::survive::Survival;
use crate::scenario::waits::judge;

/// A promise and what was seen of it.
#[derive(Clone, Debug, Serialize)]
pub struct Promise {
    pub name: &'static str,
    pub outcome: InTime,
    pub seen: String,
}

impl Promise {
    pub fn counted(name: &'static str, held: bool, seen: impl Into<String>) -> Self {
        Self { name, outcome: if held { InTime::Kept } else { InTime::Broken }, seen: seen.into() }
    }

    /// Of a time, which a client that did not run makes longer.
    pub fn timed(name: &'static str, figure_ms: f64, limit_ms: f64, waited_ms: f64, seen: String) -> Self {
        let outcome = judge(figure_ms, limit_ms, waited_ms);
        let seen = match outcome {
            InTime::TooBusy => format!("{seen}; not judged: the client itself did not run for {waited_ms:.0} ms"),
            InTime::Kept | InTime::Broken => seen,
        };
        Self { name, outcome, seen }
    }
}

/// Before the first API server runs.
pub fn refused_at_once(refused: &Refused) -> Promise {
    let Refused { made, refused, longest_ms, others } = refused;
    let other = others.first().map_or(String::new(), |one| format!("; {one}"));
    let seen = format!("{refused} of {made}, the slowest after {longest_ms:.1} ms{other}");
    Promise::counted("without any API server every connection is refused at once", made == refused && *made > 0, seen)
}

pub fn first_served(first: &First) -> Promise {
    let seen = format!("{:.0} ms after {} was ready", first.served_after_ms, first.node);
    Promise::timed("the first API server is served within 1 s", first.served_after_ms, BACK_MS, 0.0, seen)
}

/// By node: how long after its kubelet started its static pod ran.
pub fn static_pods(pods: &[(String, f64)]) -> Promise {
    let longest = pods.iter().map(|(_, ms)| *ms).fold(0.0, f64::max);
    let seen = format!("on {} nodes, the last after {:.1} s", pods.len(), longest / 1e3);
    let name = "kubelets without an API server start their static pods within 30 s";
    Promise::counted(name, !pods.is_empty() && longest <= STATIC_PODS_MS, seen)
}

/// Its API server refuses: a new connection fails for less than a second.
pub fn killed(faulted: &Faulted) -> Vec<Promise> {
    let name = "no new connection fails that began more than 1 s after an API server was killed";
    after_a_dead_server(faulted, name, REFUSED_MS)
}

/// Its API server is silent.
pub fn frozen(faulted: &Faulted) -> Vec<Promise> {
    let name = "no new connection fails that began more than 3 s after an API server froze";
    after_a_dead_server(faulted, name, SILENT_MS)
}

/// An API server whose etcd member died is not ready: it goes on serving what is open.
pub fn without_etcd(faulted: &Faulted) -> Vec<Promise> {
    let mut promises =
        vec![fails_until("no new connection fails while an API server is not ready", &faulted.seen.fresh, 0.0)];
    promises.push(open_watches("open watches survive the death of an etcd member", &faulted.seen));
    promises.push(owner_stays(faulted));
    promises
}

/// The API servers refuse anonymous requests.
pub fn readiness_seen(seen: &Readiness, node: &str) -> Promise {
    let others_stay = || seen.without_etcd.iter().filter(|(of, _)| *of != node).all(|(_, reason)| reason == "Ready");
    let not_ready =
        || seen.without_etcd.get(node).is_some_and(|reason| ["NotReady", "Slow"].contains(&reason.as_str()));
    let held =
        seen.before.len() > 1 && seen.before.values().all(|reason| reason == "Ready") && not_ready() && others_stay();
    let name = "the status says which API server is ready, and which is not because its etcd is dead";
    Promise::counted(name, held, format!("{:?}, then {:?}", seen.before, seen.without_etcd))
}

/// The node that holds the address is gone, with its API server and its etcd member.
pub fn owner_lost(faulted: &Faulted) -> Vec<Promise> {
    let lost = dead(faulted);
    let moved = faulted.owner_after.is_some() && faulted.owner_after != faulted.owner_before;
    let seen = format!(
        "{} before, {} after",
        faulted.owner_before.as_deref().unwrap_or("none"),
        faulted.owner_after.as_deref().unwrap_or("none")
    );
    vec![
        fails_until(
            "new connections fail for at most 200 ms when the owner's node loses power",
            &faulted.seen.fresh,
            POWER_LOSS_MS,
        ),
        survivors("watches on other nodes survive the loss of the owner's node", &faulted.seen, &lost),
        Promise::counted("another node takes the address", moved, seen),
        on_nodes(&faulted.seen, POWER_LOSS_MS),
    ]
}

/// The speaker of the owner ended in order.
pub fn owner_stopped(faulted: &Faulted) -> Vec<Promise> {
    vec![
        fails_until("no new connection fails when the owner's speaker is stopped", &faulted.seen.fresh, 0.0),
        survivors("watches survive the stop of the owner's speaker", &faulted.seen, &[]),
    ]
}

/// None answers: refused at once, and the address stays where it is.
pub fn all_down(down: &AllDown) -> Vec<Promise> {
    let Window { made, failed, .. } = &down.seen.fresh;
    let refused = failed.get("refused").copied().unwrap_or_default();
    vec![
        Promise::counted(
            "while no API server answers every connection is refused",
            *made > 0 && refused == *made,
            format!("{refused} of {made}: {}", counts(failed)),
        ),
        Promise::counted(
            "the address does not move while no API server answers",
            down.owners.len() == 1,
            down.owners.join(", then "),
        ),
        Promise::timed(
            "the endpoint serves within 1 s of the first API server's answer",
            down.back_ms,
            BACK_MS,
            down.seen.fresh.late_ms,
            format!("after {:.0} ms", down.back_ms),
        ),
    ]
}

/// Each API server ended gracefully: /readyz failed before its listener closed.
pub fn rolled(seen: &Seen) -> Vec<Promise> {
    vec![
        fails_until("no new connection fails during a rolling restart of all API servers", &seen.fresh, 0.0),
        on_nodes(seen, 0.0),
    ]
}

/// API servers and checks have new certificates.
pub fn renewed(renewed: &Renewed) -> Vec<Promise> {
    let Renewed { owner_before, owner_after, seen, .. } = renewed;
    vec![
        fails_until("no new connection fails while all certificates are renewed", &seen.fresh, 0.0),
        survivors("watches survive the renewal of all certificates", seen, &[]),
        stays(owner_before, owner_after, seen),
        on_nodes(seen, 0.0),
    ]
}

/// The wall clock of the owner's speaker jumps, and it is restarted so.
pub fn clock_wrong(wrong: &WrongClock) -> Vec<Promise> {
    let WrongClock { node, jump, owner_after_jump, restart, .. } = wrong;
    vec![
        fails_until("no new connection fails when the clock of the owner's speaker jumps", &jump.fresh, 0.0),
        survivors("watches survive a jump of the owner's clock", jump, &[]),
        stays(&Some(node.clone()), owner_after_jump, jump),
        fails_until("no new connection fails when it is restarted with the wrong clock", &restart.fresh, 0.0),
        survivors("watches survive a restart with the wrong clock", restart, &[]),
    ]
}

/// What stands behind the further ports of one node is dead.
pub fn further_killed(killed: &Killed) -> Vec<Promise> {
    let name = "no connection to a further port fails that began more than 1 s after its server was killed";
    let mut promises: Vec<_> = killed
        .ports
        .iter()
        .map(|(port, window)| {
            let promise = fails_until(name, window, REFUSED_MS);
            Promise { seen: format!("{port}: {}", promise.seen), ..promise }
        })
        .collect();
    promises.push(fails_until("no new connection to an API server fails meanwhile", &killed.seen.fresh, 0.0));
    promises
}

/// The DaemonSet, its Services and their keys are nothing to the endpoint.
pub fn apart(happened: &Happened) -> Vec<Promise> {
    let Happened { owner_before, owner_after, seen, .. } = happened;
    let mut promises = handed_over(happened);
    promises.insert(0, stays(&Some(owner_before.clone()), &Some(owner_after.clone()), seen));
    promises
}

/// Its address may move.
pub fn handed_over(happened: &Happened) -> Vec<Promise> {
    let seen = &happened.seen;
    let mut promises = vec![
        fails_until("no new connection to the endpoint fails", &seen.fresh, 0.0),
        survivors("every open watch by the endpoint lives", seen, &[]),
        on_nodes(seen, 0.0),
    ];
    promises.extend(happened.service.iter().flat_map(of_service));
    promises
}

/// Its pods live.
fn of_service(survival: &Survival) -> Vec<Promise> {
    let side = &survival.sheave;
    let trouble = survival.trouble.as_ref().map_or(String::new(), |trouble| format!("; {trouble}"));
    let examples = side.examples.iter().map(|example| format!("; {example}")).collect::<String>();
    let open = side.whole() && side.eligible > 0 && survival.trouble.is_none();
    let seen = format!(
        "{} of {}, the longest pause {:.0} ms{trouble}{examples}",
        side.alive, side.eligible, side.longest_pause_ms
    );
    // What a pod's program took too late was there in time.
    let failed = side.new_failed_later.saturating_sub(side.new_server_late as u64);
    let outcome = match failed {
        0 => InTime::Kept,
        _ if side.longest_pause_ms.max(side.client_late_ms) > STOOD_STILL_MS => InTime::TooBusy,
        _ => InTime::Broken,
    };
    let new = format!("{failed} of {}", side.new);
    let new = Promise { name: "no new connection of the Service fails", outcome, seen: new };
    // None where there is no one to answer.
    let new = Some(new).filter(|_| side.new > 0);
    [Promise::counted("every open connection of the Service lives", open, seen)].into_iter().chain(new).collect()
}

/// No API server can say whether it is ready; each completes handshakes.
pub fn etcd_stopped(stopped: &SlowEtcd) -> Vec<Promise> {
    let SlowEtcd { owners, reasons, seen, .. } = stopped;
    vec![
        fails_until("no new connection fails while etcd stands still", &seen.fresh, 0.0),
        open_watches("watches stay open while etcd stands still", seen),
        Promise::counted(
            "the address does not move while etcd stands still",
            owners.len() == 1,
            format!("{}; members: {}", owners.join(", then "), reasons.join(", ")),
        ),
    ]
}

/// `kubectl exec` and `logs -f` live as long as their API server and the pod's node.
pub fn streams(streams: &[Streamed], dead: &[String]) -> Promise {
    let doomed = |stream: &Streamed| [&stream.server, &stream.node].iter().any(|node| dead.contains(node));
    let good = |stream: &Streamed| doomed(stream) || (stream.alive && stream.silent_ms < STREAM_SILENT_MS);
    let shown = |stream: &Streamed| {
        let state =
            if stream.alive { format!("alive, last line {:.0} ms ago", stream.silent_ms) } else { "ended".into() };
        let doomed = if doomed(stream) { ", which was lost" } else { "" };
        format!("{} to {} by {}{doomed}: {state}", stream.what, stream.node, stream.server)
    };
    let name = "kubectl exec and logs -f live as long as their API server and the pod's node";
    let seen = streams.iter().map(shown).collect::<Vec<_>>().join("; ");
    Promise::counted(name, !streams.is_empty() && streams.iter().all(good), seen)
}

/// The audit logs of the API servers name the client on the segment.
pub fn client_seen(ha: &Ha) -> Result<Promise> {
    let (own, all) = logged_with_address(ha)?;
    let seen = format!("{own} of {all} requests are logged with {CLIENT}");
    Ok(Promise::counted("the API servers' audit logs show the client's address", all > 0 && own == all, seen))
}

/// Requests of the client on the segment through the endpoint that are in audit logs: those with its address, and all.
pub fn logged_with_address(ha: &Ha) -> Result<(usize, usize)> {
    let (mut own, mut all) = (0, 0);
    for node in ha.nodes() {
        for event in ha.audit(&node, USER_AGENT)? {
            // Whether a server is ready is asked without the endpoint.
            if event["requestURI"] != READY {
                all += 1;
                own += usize::from(event["sourceIPs"][0] == CLIENT.to_string().as_str());
            }
        }
    }
    Ok((own, all))
}

fn after_a_dead_server(faulted: &Faulted, name: &'static str, limit_ms: f64) -> Vec<Promise> {
    vec![
        fails_until(name, &faulted.seen.fresh, limit_ms),
        survivors("watches on living API servers survive", &faulted.seen, &dead(faulted)),
        owner_stays(faulted),
        on_nodes(&faulted.seen, limit_ms),
    ]
}

fn dead(faulted: &Faulted) -> Vec<&str> {
    faulted.dead.iter().map(String::as_str).collect()
}

/// No connection failed that began later than that after the fault.
fn fails_until(name: &'static str, window: &Window, limit_ms: f64) -> Promise {
    let Window { made, served, failed, last_failed_ms, longest_ms, silence_ms, late_ms, .. } = window;
    let last = last_failed_ms.map_or("none".to_owned(), |ms| format!("the last began {ms:.0} ms after"));
    let seen = format!(
        "{} of {made} failed ({last}{}); longest handshake {longest_ms:.0} ms, nothing answered for {silence_ms:.0} ms; served by {}",
        window.failures(),
        if failed.is_empty() { String::new() } else { format!(": {}", counts(failed)) },
        counts(served)
    );
    if *made == 0 || served.is_empty() {
        return Promise::counted(name, false, seen);
    }
    match last_failed_ms {
        // One more interval between connections.
        Some(last) => Promise::timed(name, *last, limit_ms, *late_ms, seen),
        None => Promise::counted(name, true, seen),
    }
}

fn on_nodes(seen: &Seen, limit_ms: f64) -> Promise {
    let name = "clients on the nodes reach the endpoint as well";
    let last = seen
        .nodes
        .values()
        .filter_map(|window| window.last_failed_ms)
        .fold(None, |last: Option<f64>, ms| Some(last.map_or(ms, |last| last.max(ms))));
    let late = seen.nodes.values().map(|window| window.late_ms).fold(0.0, f64::max);
    let each = seen.nodes.iter().map(|(node, window)| {
        let why = if window.failed.is_empty() { String::new() } else { format!(" ({})", counts(&window.failed)) };
        format!("{node} {} of {}{why}", window.failures(), window.made)
    });
    let until = last.map_or(String::new(), |ms| format!("; the last began {ms:.0} ms after"));
    let text = format!("failed: {}{until}", each.collect::<Vec<_>>().join(", "));
    let all = !seen.nodes.is_empty() && seen.nodes.values().all(|window| !window.served.is_empty());
    match last {
        _ if !all => Promise::counted(name, false, text),
        Some(last) => Promise::timed(name, last, limit_ms, late, text),
        None => Promise::counted(name, true, text),
    }
}

fn survivors(name: &'static str, seen: &Seen, dead: &[&str]) -> Promise {
    let (open, alive) = seen.watches.except(dead);
    let ends = if seen.ends.is_empty() { String::new() } else { format!("; ended: {}", counts(&seen.ends)) };
    Promise::counted(name, open > 0 && alive == open, format!("{alive} of {open}{ends}"))
}

/// Whether events come is another question: etcd makes them.
fn open_watches(name: &'static str, seen: &Seen) -> Promise {
    let (open, alive) = seen.watches.all();
    Promise::counted(name, open > 0 && alive == open, format!("{alive} of {open}"))
}

fn owner_stays(faulted: &Faulted) -> Promise {
    stays(&faulted.owner_before, &faulted.owner_after, &faulted.seen)
}

fn stays(before: &Option<String>, after: &Option<String>, seen: &Seen) -> Promise {
    let shown = |owner: &Option<String>| owner.clone().unwrap_or_else(|| "none".to_owned());
    let same = before.is_some() && before == after;
    let text = format!("{} before, {} after", shown(before), shown(after));
    let name = "the address stays with its owner";
    let late_ms = seen.fresh.late_ms;
    match same || late_ms < STARVED_MS {
        true => Promise::counted(name, same, text),
        // Speakers did not run either, and were dead for the others.
        false => Promise::timed(name, DEAD_MS, 0.0, late_ms, text),
    }
}

/// "a 3, b 4".
pub fn counts(map: &std::collections::BTreeMap<String, usize>) -> String {
    map.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

const REFUSED_MS: f64 = 1_000.0;
const SILENT_MS: f64 = 3_000.0;
const POWER_LOSS_MS: f64 = 200.0;
const BACK_MS: f64 = 1_000.0;
/// Without a heartbeat for so long a speaker is dead: the lab's endpoint has the timing of profile `fast`.
const DEAD_MS: f64 = 150.0;
const STARVED_MS: f64 = DEAD_MS / 2.0;
/// Of the machine: new connections time out then.
const STOOD_STILL_MS: f64 = 450.0;
const STATIC_PODS_MS: f64 = 30_000.0;
/// Lines come once a second.
const STREAM_SILENT_MS: f64 = 3_000.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::report::Watches;

    fn window(last_failed_ms: Option<f64>, late_ms: f64) -> Window {
        let failed = last_failed_ms.map(|_| ("refused".to_owned(), 3)).into_iter().collect();
        Window {
            made: 120,
            served: [("node1".to_owned(), 117)].into(),
            failed,
            last_failed_ms,
            late_ms,
            ..Window::default()
        }
    }

    fn faulted(last_failed_ms: Option<f64>, late_ms: f64) -> Faulted {
        let watches = Watches {
            open: [("node1".to_owned(), 50), ("node2".to_owned(), 50)].into(),
            alive: [("node1".to_owned(), 50)].into(),
            awake: [("node1".to_owned(), 50)].into(),
        };
        let seen = Seen {
            fresh: window(last_failed_ms, late_ms),
            kubectl: Default::default(),
            watches,
            ends: [("node2: reset".to_owned(), 50)].into(),
            nodes: [("node1".to_owned(), window(None, 0.0))].into(),
        };
        Faulted {
            node: "node2".to_owned(),
            dead: vec!["node2".to_owned()],
            owner_before: Some("node1".to_owned()),
            owner_after: Some("node1".to_owned()),
            seen,
            back_ms: 0.0,
        }
    }

    fn broken(promises: &[Promise]) -> Vec<&'static str> {
        let broken = promises.iter().filter(|promise| promise.outcome == InTime::Broken);
        broken.map(|promise| promise.name).collect()
    }

    #[test]
    fn failures_until_the_limit_are_the_faults_and_later_ones_break_the_promise() {
        assert_eq!(broken(&killed(&faulted(None, 0.0))), [""; 0]);
        assert_eq!(broken(&killed(&faulted(Some(950.0), 0.0))), [""; 0]);
        assert_eq!(broken(&killed(&faulted(Some(1500.0), 10.0))).len(), 1);
        let busy = killed(&faulted(Some(1500.0), 400.0));
        assert_eq!(busy[0].outcome, InTime::TooBusy, "{}", busy[0].seen);
        assert_eq!(broken(&frozen(&faulted(Some(1500.0), 10.0))), [""; 0]);
    }

    #[test]
    fn a_watch_on_a_living_api_server_that_ends_is_broken() {
        let mut faulted = faulted(None, 0.0);
        faulted.seen.watches.awake.insert("node1".to_owned(), 49);
        assert_eq!(broken(&killed(&faulted)), ["watches on living API servers survive"]);
        faulted.seen.watches = Watches::default();
        assert_eq!(broken(&killed(&faulted)).len(), 1, "none was open");
    }

    #[test]
    fn an_owner_that_moves_is_broken_unless_the_machine_starved_the_speakers() {
        let mut faulted = faulted(None, 10.0);
        faulted.owner_after = Some("node3".to_owned());
        assert_eq!(broken(&killed(&faulted)), ["the address stays with its owner"]);
        faulted.seen.fresh.late_ms = 80.0;
        let busy = owner_stays(&faulted);
        assert_eq!(busy.outcome, InTime::TooBusy, "{}", busy.seen);
    }

    #[test]
    fn nothing_served_is_broken_without_any_failure() {
        let mut faulted = faulted(None, 0.0);
        faulted.seen.fresh.served.clear();
        assert_eq!(broken(&killed(&faulted)).len(), 1);
        faulted.seen.nodes.clear();
        assert_eq!(broken(&killed(&faulted)).len(), 2);
    }

    #[test]
    fn streams_may_end_with_their_api_server_alone() {
        let stream = |server: &str, alive| Streamed {
            what: "exec",
            server: server.to_owned(),
            node: "node3".to_owned(),
            alive,
            silent_ms: 10.0,
        };
        let dead = ["node2".to_owned()];
        assert_eq!(streams(&[stream("node1", true), stream("node2", false)], &dead).outcome, InTime::Kept);
        assert_eq!(streams(&[stream("node1", false)], &dead).outcome, InTime::Broken);
        let silent = Streamed { silent_ms: 5000.0, ..stream("node1", true) };
        assert_eq!(streams(&[silent], &dead).outcome, InTime::Broken);
        assert_eq!(streams(&[], &dead).outcome, InTime::Broken);
    }
}
