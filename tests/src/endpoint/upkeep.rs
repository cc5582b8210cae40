//! What happens to a cluster in its years: certificates are renewed, clocks are wrong, etcd is slow. As [`super::faults`], each makes one
//! thing happen under all clients and says what they saw.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::Serialize;
use sheave_endpoint::status::{Server, State, Status};

use super::faults::{SERVED_WITHIN, wait_ready};
use super::place::Place;
use super::session::{Access, USER_AGENT};
use super::{Clients, Seen};
use crate::lab::ha::{Ha, Part};
use crate::lab::wait_for;
use crate::traffic::clock::{milliseconds, now_ns, sleep_until};

/// All API servers, and the checks of all speakers, have new certificates.
#[derive(Clone, Debug, Serialize)]
pub struct Renewed {
    /// Until all API servers showed the new ones, and all speakers used theirs.
    pub taken_ms: f64,
    pub owner_before: Option<String>,
    pub owner_after: Option<String>,
    pub seen: Seen,
}

pub fn renew_certificates(ha: &Ha, clients: &Clients) -> Result<Renewed> {
    let owner_before = ha.owner()?;
    let place = Place::new(&ha.netns("client"))?;
    let access = Access::of(ha, USER_AGENT)?;
    let used_before = ha.nodes().iter().map(|node| used(ha, node)).collect::<Result<Vec<_>>>()?;
    let from = now_ns();
    ha.nodes().iter().try_for_each(|node| ha.renew_certificates(node))?;
    for (node, before) in ha.nodes().iter().zip(used_before) {
        let at = ha.api_server(node)?;
        wait_for(&format!("the API server of {node} to show its new certificate"), TAKEN_WITHIN, || {
            let (access, of) = (access.clone(), node.clone());
            let newest = place.run(async move { access.has_newest(at, &of).await })??;
            Ok(newest.then_some(()))
        })?;
        if matches!(ha.balancer(), [Part::Speaker]) {
            wait_for(&format!("the speaker of {node} to use its new certificate"), TAKEN_WITHIN, || {
                Ok((used(ha, node)? > before).then_some(()))
            })?;
        }
    }
    let taken_ms = milliseconds(from, now_ns());
    let seen = clients.measure(from, since(from) + AFTER)?;
    clients.fill()?;
    Ok(Renewed { taken_ms, owner_before, owner_after: ha.owner()?, seen })
}

/// How often the speaker of a node has taken new files for its checks.
fn used(ha: &Ha, node: &str) -> Result<usize> {
    let log = ha.log(node, Part::Speaker);
    let text = fs::read_to_string(&log).with_context(|| log.display().to_string())?;
    Ok(text.matches("files of the checks have changed").count())
}

/// The wall clock of the owner's speaker is wrong.
#[derive(Clone, Debug, Serialize)]
pub struct WrongClock {
    pub node: String,
    pub seconds: i64,
    /// Reasons of the node's own member while it was wrong.
    pub reasons: Vec<String>,
    /// The clock jumped.
    pub jump: Seen,
    pub owner_after_jump: Option<String>,
    /// The speaker was stopped in order and started again with that clock.
    pub restart: Seen,
}

/// `test_build`: a speaker with the feature `wall-offset`, which the owner gets first.
pub fn wrong_clock(ha: &Ha, clients: &Clients, test_build: &Path, seconds: i64) -> Result<WrongClock> {
    // A link on the node leads to it.
    let test_build = &fs::canonicalize(test_build).with_context(|| test_build.display().to_string())?;
    for node in ha.nodes() {
        ha.replace_speaker(&node, test_build)?;
        wait_serving(ha, &node)?;
    }
    let node = ha.owner()?.context("an owner")?;
    let from = now_ns();
    ha.set_wall_offset(&node, seconds)?;
    let off = ha.status(&node)?.at.as_second() - wall_seconds()?;
    ensure!(
        (off - seconds).abs() < 60,
        "the clock of {node} is off by {off} s, not by {seconds}: is {} a test build?",
        test_build.display()
    );
    let jump = clients.measure(from, MEASURED)?;
    let owner_after_jump = ha.owner()?;
    let reasons = reasons(ha, &node)?;
    let from = now_ns();
    ha.replace_speaker(&node, test_build)?;
    wait_for(&format!("the speaker of {node} to say that it serves"), SERVED_WITHIN, || {
        Ok(ha.status(&node).is_ok_and(|status| status.not_ready.is_empty()).then_some(()))
    })?;
    let restart = clients.measure(from, since(from) + AFTER)?;
    ha.set_wall_offset(&node, 0)?;
    wait_serving(ha, &node)?;
    clients.fill()?;
    Ok(WrongClock { node, seconds, reasons, jump, owner_after_jump, restart })
}

/// Until the speaker of a node finds that every member serves.
pub fn wait_serving(ha: &Ha, node: &str) -> Result<()> {
    wait_for(&format!("every member to serve, as {node} has it"), SERVED_WITHIN, || {
        let Ok(status) = ha.status(node) else { return Ok(None) };
        let serving = servers(&status).all(|server| server.state == State::Serving);
        Ok((status.not_ready.is_empty() && serving).then_some(()))
    })
}

/// Why the node's own API server serves or does not, as its speaker has it.
fn reasons(ha: &Ha, node: &str) -> Result<Vec<String>> {
    let status = ha.status(node)?;
    Ok(servers(&status).filter(|server| server.member == node).map(|server| server.reason.clone()).collect())
}

fn servers(status: &Status) -> impl Iterator<Item = &Server> {
    status.ports.iter().flat_map(|port| &port.members)
}

/// The reason of each member's first port, by its own node.
pub type Reasons = BTreeMap<String, String>;

/// What the status says of readiness, which an API server tells authenticated clients alone.
#[derive(Clone, Debug, Serialize)]
pub struct Readiness {
    pub before: Reasons,
    /// While the etcd member of one node is dead; its API server lives.
    pub without_etcd: Reasons,
}

/// The etcd member of a node dies, and is started again when its status has said so.
pub fn readiness(ha: &Ha, node: &str) -> Result<Readiness> {
    let all = || -> Result<Reasons> {
        let first = |of: String| {
            let own = ha.status(&of)?.ports.into_iter().next().context("the endpoint has ports")?.members;
            let own = own.into_iter().find(|server| server.member == of).context("the node is a member")?;
            Ok((of, own.reason))
        };
        ha.nodes().into_iter().map(first).collect()
    };
    let before = all()?;
    ha.stop(node, Part::Etcd)?;
    let without_etcd = wait_for(&format!("{node} to find its API server not ready"), SERVED_WITHIN, || {
        let reasons = all()?;
        Ok((reasons.get(node) != before.get(node)).then_some(reasons))
    });
    ha.start(node, Part::Etcd)?;
    wait_ready(ha, node)?;
    wait_serving(ha, node)?;
    Ok(Readiness { before, without_etcd: without_etcd? })
}

/// All etcd members stand still.
#[derive(Clone, Debug, Serialize)]
pub struct SlowEtcd {
    pub owner: Option<String>,
    /// Every owner that the client knew meanwhile.
    pub owners: Vec<String>,
    /// Reasons of all members while they stood still.
    pub reasons: Vec<String>,
    pub seen: Seen,
}

/// SIGSTOP for all etcd members, and SIGCONT after a time: API servers live, are not ready, and do not even say so in time.
pub fn stop_all_etcd(ha: &Ha, clients: &Clients, time: Duration) -> Result<SlowEtcd> {
    let owner = ha.owner()?;
    let nodes = ha.nodes();
    let signal = |signal| nodes.iter().try_for_each(|node| ha.signal(node, Part::Etcd, signal));
    let from = now_ns();
    signal(Signal::SIGSTOP)?;
    let until = from + u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let watched = || -> Result<(Vec<String>, Vec<String>)> {
        let mut owners: Vec<String> = owner.iter().cloned().collect();
        while now_ns() < until {
            owners.extend(ha.owner()?.filter(|one| !owners.contains(one)));
            sleep_until(now_ns() + LOOKS_EVERY_NS);
        }
        let reasons = match ha.balancer() {
            [Part::Speaker] => servers(&ha.status(&nodes[0])?).map(|server| server.reason.clone()).collect(),
            _ => Vec::new(),
        };
        Ok((owners, reasons))
    }();
    let seen = clients.measure(from, time);
    signal(Signal::SIGCONT)?;
    let ((owners, reasons), seen) = (watched?, seen?);
    nodes.iter().try_for_each(|node| wait_ready(ha, node).map(drop))?;
    clients.fill()?;
    Ok(SlowEtcd { owner, owners, reasons, seen })
}

fn wall_seconds() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs())?)
}

pub(super) fn since(from_ns: u64) -> Duration {
    Duration::from_nanos(now_ns().saturating_sub(from_ns))
}

/// Files are looked at once a minute at least (Kubernetes, `dynamiccertificates`).
const TAKEN_WITHIN: Duration = Duration::from_secs(90);
const MEASURED: Duration = Duration::from_secs(6);
/// Longer than it takes to find that a member does not answer.
const AFTER: Duration = Duration::from_secs(3);
const LOOKS_EVERY_NS: u64 = 50_000_000;
