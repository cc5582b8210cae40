//! The promises as assertions: counts strictly; times against limits that a busy machine keeps too, or by what waited for a processor.

use anyhow::{Context, Result, bail, ensure};
use sheave_tests::scenario::measure::{Connections, Observed};
use sheave_tests::scenario::outside::Outside;
use sheave_tests::scenario::survive::{self, Setup, Survival};
use sheave_tests::scenario::waits::judge;
use sheave_tests::scenario::{self, InTime, NodeLoss, Scene, SpeakerFault};

pub fn owner_loss(scene: &Scene) -> Result<String> {
    let report = scenario::owner_loss(scene, CONNECTIONS)?;
    scenario::restore(scene, &report.lost)?;
    node_loss(&report)
}

pub fn other_node_loss(scene: &Scene) -> Result<String> {
    let report = scenario::other_node_loss(scene, CONNECTIONS)?;
    scenario::restore(scene, &report.lost)?;
    let new = report.observed.new_connections.as_ref().context("new connections were opened")?;
    ensure!(report.owner_after == report.owner_before, "the address moved: {report:#?}");
    let in_time = report.observed.in_time(new.failed_until_ms, SETTLED_MS);
    let failed = format!("new connections failed later than 300 ms after the loss: {new:?}");
    ensure!(new.failed_later == 0 || in_time == InTime::TooBusy, "{failed}, {:?}", report.observed.waits);
    let busy = if new.failed_later == 0 { String::new() } else { format!("; machine too busy to judge: {failed}") };
    Ok(node_loss(&report)? + &busy)
}

pub fn api_server_down(scene: &Scene) -> Result<String> {
    let report = scenario::api_server_down_then_owner_loss(scene, CONNECTIONS)?;
    scenario::restore(scene, &report.lost)?;
    node_loss(&report)
}

pub fn speaker_kill(scene: &Scene) -> Result<String> {
    fenced(&scenario::speaker_kill(scene, CONNECTIONS)?)
}

pub fn speaker_stop(scene: &Scene) -> Result<String> {
    // The report covers the time after SIGCONT too.
    fenced(&scenario::speaker_stop_and_cont(scene, CONNECTIONS)?)
}

pub fn graceful_delete(scene: &Scene) -> Result<String> {
    let report = scenario::graceful_delete(scene, CONNECTIONS)?;
    alive(&report.observed.connections)?;
    ensure!(report.owner_after != report.owner_before, "no node took over: {report:#?}");
    Ok(figures(&report.observed))
}

pub fn speaker_restarts(scene: &Scene) -> Result<String> {
    let reports = scenario::speaker_restarts(scene, CONNECTIONS)?;
    reports.iter().try_for_each(|report| alive(&report.observed.connections).context(report.node.clone()))?;
    Ok(reports
        .iter()
        .map(|report| format!("{}: {}", report.node, figures(&report.observed)))
        .collect::<Vec<_>>()
        .join("; "))
}

pub fn client_address(scene: &Scene) -> Result<String> {
    let report = scenario::client_address(scene, 60)?;
    for client in &report.clients {
        ensure!(client.saw_client == client.connections, "pods saw somebody else than {}: {report:#?}", client.client);
        ensure!(client.nodes == scene.nodes, "not all nodes answered {}: {report:#?}", client.client);
    }
    ensure!(report.other_ways_failed.is_empty(), "NodePort or ClusterIP: {:#?}", report.other_ways_failed);
    Ok(format!("both clients seen; {} other ways work", report.other_ways_worked))
}

pub fn endpoints_of_no_node(scene: &Scene) -> Result<String> {
    translated_by_two(scene, &scenario::outside(scene, 30)?)
}

pub fn node_without_speaker(scene: &Scene) -> Result<String> {
    translated_by_two(scene, &scenario::virtual_node(scene, 30)?)
}

pub fn translator_loss(scene: &Scene) -> Result<String> {
    let report = scenario::translator_loss(scene, 40)?;
    scenario::restore(scene, &report.lost)?;
    ensure!(report.through_lost > 0 && report.reset == report.through_lost, "not all were reset: {report:#?}");
    ensure!(report.others_ended == 0 && report.counted >= report.reset as f64, "{report:#?}");
    ensure!(report.slow_until_ms < TRANSLATED_MS, "new connections were late: {report:#?}");
    Ok(format!(
        "{} of {} open connections went through {} and were reset, counted {}; {} new ones, slow until {:.0} ms",
        report.reset, report.open, report.lost, report.counted, report.new, report.slow_until_ms
    ))
}

fn translated_by_two(scene: &Scene, report: &Outside) -> Result<String> {
    let nodes: Vec<_> = scene.nodes.iter().map(|node| scene.node_address(node)).collect::<Result<_>>()?;
    let translated = report.seen.iter().all(|address| nodes.iter().any(|node| node == address));
    ensure!(
        translated && report.seen.len() == 2,
        "the server saw other addresses than those of two nodes: {report:#?}"
    );
    Ok(format!("{} of 30 answered, through {:?}; {}", report.answered, report.seen, report.reason))
}

pub fn controller_failover(scene: &Scene) -> Result<String> {
    let report = scenario::controller_failover(scene)?;
    ensure!(report.moved.is_empty(), "addresses moved: {:#?}", report.moved);
    ensure!(report.addresses.len() >= 4, "too few addresses to tell: {:?}", report.addresses);
    Ok(format!("{} addresses stay; a new Service served after {:.0} ms", report.addresses.len(), report.new_address_ms))
}

pub fn pool_exhaustion(scene: &Scene) -> Result<String> {
    let report = scenario::pool_exhaustion(scene)?;
    ensure!(report.third_waited_without_address, "{report:#?}");
    ensure!(report.event.starts_with("PoolExhausted"), "{report:#?}");
    ensure!(report.third_got == report.granted[0], "the third got an address that was not freed: {report:#?}");
    Ok(report.event)
}

pub fn whole_segment(scene: &Scene) -> Result<String> {
    let report = scenario::whole_segment(scene, 240)?;
    ensure!(report.untrue.is_empty(), "{:#?}", report.untrue);
    let decided = report.granted.len() + report.refused.len();
    ensure!(decided == report.services && report.served == report.granted.len(), "{report:#?}");
    let left_out = [
        ("AddressOfAPIServer", 1),
        ("AddressOfGateway", 1),
        ("AddressOfNode", scene.nodes.len() as i64),
        ("BroadcastAddress", 1),
        ("ExcludedBySpec", 1),
        ("NetworkAddress", 1),
    ];
    ensure!(report.left_out == left_out.map(|(reason, count)| (reason.into(), count)).into(), "{:#?}", report.left_out);
    // Nodes, API server, router, client, and the client behind the router.
    ensure!(report.reached.len() == scene.nodes.len() + 4, "{:#?}", report.reached);
    for (target, reached) in &report.reached {
        ensure!(reached.failed.is_empty() && reached.attempts > 10, "{target}: {reached:#?}");
    }
    let reached = report.reached.iter();
    let reached: Vec<String> =
        reached.map(|(target, one)| format!("{target} {} in {:.0} ms", one.attempts, one.slowest_ms)).collect();
    Ok(format!(
        "{} Services in {:.1} s: {} granted and served, {} refused; reached: {}",
        report.services,
        report.decided_ms / 1e3,
        report.served,
        report.refused.len(),
        reached.join(", ")
    ))
}

pub fn address_conflict(scene: &Scene) -> Result<String> {
    let report = scenario::conflict(scene)?;
    ensure!(report.granted != report.next && report.granted != report.asked, "a host's address: {report:#?}");
    ensure!(report.beside_proxy != report.used, "a host's address beside a proxy: {report:#?}");
    ensure!(report.refusal.contains("no Service may have it"), "{report:#?}");
    ensure!(report.proxy.contains("answers ARP for every address"), "{report:#?}");
    ensure!(!report.proxy_said.is_empty() && report.proxy_said.iter().all(|times| *times == 1), "{report:#?}");
    ensure!(report.router_named.is_empty(), "a router's proxy ARP is no conflict: {:#?}", report.router_named);
    Ok(format!(
        "{} skipped for {}; {} refused after {:.0} ms ({} late), granted {:.1} s after the host was gone; beside a proxy {} \
         for {}",
        report.next,
        report.granted,
        report.asked,
        report.refused_ms,
        report.late,
        report.freed_s,
        report.beside_proxy,
        report.used
    ))
}

pub fn first_answer(scene: &Scene) -> Result<String> {
    let report = scenario::first_answer(scene, 1)?;
    ensure!(report.first_answer_ms < SANE_MS, "{report:#?}");
    Ok(format!("{:.0} ms", report.first_answer_ms))
}

/// An effect that forged datagrams have comes every time. A hand-over because this machine starved a speaker does not.
pub fn forged_heartbeats(scene: &Scene) -> Result<String> {
    let mut moved = Vec::new();
    for _ in 0..3 {
        let report = scenario::forged_heartbeats(scene)?;
        ensure!(report.refused.values().all(|by| *by > 0.0), "not counted: {report:#?}");
        if report.owner_before == report.owner_after && report.transitions == 0.0 {
            return Ok(format!("{:?}; moved before: {}", report.refused, moved.len()));
        }
        moved.push(report);
    }
    bail!("it has an effect: {moved:#?}")
}

pub fn keys_replaced(scene: &Scene) -> Result<String> {
    let report = scenario::keys_replaced(scene, CONNECTIONS)?;
    alive(&report.observed.connections)?;
    ensure!(report.owner_before == report.owner_after, "the address moved: {report:#?}");
    ensure!(report.refused.values().all(|by| *by == 0.0), "nodes misunderstood one another: {report:#?}");
    Ok(format!("{} restarted; {}", report.restarted, figures(&report.observed)))
}

pub fn keys_awaited(scene: &Scene) -> Result<String> {
    let report = scenario::keys_awaited(scene)?;
    ensure!(report.live == 200, "a speaker that waits is alive: {report:#?}");
    let after = report.created_to_keys_ms;
    let in_time = judge(after, KEYS_WITHIN_MS, report.waits.until(after));
    ensure!(in_time != InTime::Broken, "{report:#?}");
    let busy = if in_time == InTime::TooBusy { "; machine too busy to judge that" } else { "" };
    Ok(format!("{}, keys after {after:.0} ms{busy}", report.waited_for.trim()))
}

pub fn speaker_states(scene: &Scene) -> Result<String> {
    let report = scenario::speaker_states(scene)?;
    ensure!(report.untrue.is_empty(), "{:#?}", report.untrue);
    ensure!(report.written_at_rest.is_empty(), "written while nothing happened: {:?}", report.written_at_rest);
    Ok(format!("\n{}", report.table))
}

/// The Services alone are 150 MB of JSON.
pub fn odd_objects(scene: &Scene) -> Result<String> {
    let report = scenario::odd_objects(scene)?;
    ensure!(report.unnamed.is_empty(), "objects that cannot be read have no name there: {report:#?}");
    ensure!(report.first_answer_ms < SANE_MS, "{report:#?}");
    ensure!(report.peak_mb < 100.0, "{report:#?}");
    Ok(format!(
        "at most {:.0} MB resident, a new Service answers after {:.0} ms",
        report.peak_mb, report.first_answer_ms
    ))
}

pub fn resources(scene: &Scene) -> Result<String> {
    let report = scenario::resources(scene, std::time::Duration::from_secs(5))?;
    ensure!(report.speaker_mb < 100.0 && report.controller_mb < 100.0, "{report:#?}");
    Ok(format!("{report:?}"))
}

pub fn uninstall(scene: &Scene) -> Result<String> {
    let left = scenario::uninstall(scene)?;
    ensure!(left.is_empty(), "left on the nodes: {left:#?}");
    Ok("nothing is left on the nodes".into())
}

pub fn node_back(scene: &Scene) -> Result<String> {
    survived(scene, survive::nodes::back_after_5_s)
}

pub fn rolling_update(scene: &Scene) -> Result<String> {
    survived(scene, survive::pods::rolled)
}

pub fn drain_of_the_owner(scene: &Scene) -> Result<String> {
    survived(scene, survive::drain::owner)
}

pub fn announced_by_chosen_nodes(scene: &Scene) -> Result<String> {
    use survive::announced;
    let chosen = survived(scene, announced::labels).and_then(|figures| Ok((figures, announced::none(scene)?)));
    // Whatever failed.
    announced::clear(scene)?;
    chosen.map(|(figures, none)| format!("{figures}; {none}"))
}

pub fn placed_by_hand(scene: &Scene) -> Result<String> {
    use survive::placed;
    let figures = survived(scene, placed::by_hand);
    // Whatever failed.
    placed::clear(scene)?;
    figures
}

/// A frame that nobody counted did not reach anybody.
pub fn forged_arp(scene: &Scene) -> Result<String> {
    let figures = survived(scene, survive::addresses::forged_arp)?;
    ensure!(!figures.ends_with("forged frames counted: 0"), "{figures}");
    Ok(figures)
}

pub fn all_speakers_killed(scene: &Scene) -> Result<String> {
    survived(scene, survive::speakers::killed_at_once)
}

pub fn nft_and_xdp_deleted(scene: &Scene) -> Result<String> {
    let nft = survived(scene, survive::tables::nft_deleted)?;
    Ok(format!("{nft}; {}", survived(scene, survive::tables::xdp_detached)?))
}

pub fn no_pod_ready(scene: &Scene) -> Result<String> {
    survived(scene, survive::pods::none_ready_and_back)
}

/// Blue and green.
pub fn selector_changes(scene: &Scene) -> Result<String> {
    survived(scene, survive::pods::selector)
}

pub fn session_affinity(scene: &Scene) -> Result<String> {
    let report = scenario::session_affinity(scene)?;
    survive::whole::make_whole(scene, &[])?;
    ensure!(report.clients == 100 && report.nodes.len() == scene.nodes.len(), "{report:#?}");
    ensure!(report.changed.is_empty(), "clients whose pod lives got another: {report:#?}");
    ensure!(report.failed.is_empty(), "connections failed: {report:#?}");
    ensure!(report.searched > 0.0, "no row with a client moved: {report:#?}");
    Ok(format!(
        "{} connections of {} clients, {} of them moved with their pod",
        report.connections, report.clients, report.moved
    ))
}

/// UDP too: kube-proxy deletes the entries of flows whose pods it takes for dead.
pub fn api_lost_on_one_node(scene: &Scene) -> Result<String> {
    survived(scene, survive::late::scaled)
}

/// Without Sheave: only that the comparison itself works.
pub fn baseline(scene: &Scene) -> Result<String> {
    let report = scenario::baseline(scene, CONNECTIONS, 200.0)?;
    scenario::restore(scene, &report.lost)?;
    let connections = &report.observed.connections;
    ensure!(connections.eligible > 0 && report.new_connections_served > 0, "the comparison is unfair: {report:#?}");
    Ok(format!("{} of {} alive without Sheave", connections.alive, connections.eligible))
}

/// Sheave alone: nothing is lost, nothing hangs, no new connection fails later than 300 ms after a fault.
fn survived(scene: &Scene, scenario: fn(&Scene, &Setup) -> Result<Survival>) -> Result<String> {
    let setup = Setup { connections: CONNECTIONS, compare: false, ..Setup::default() };
    let survival = scenario(scene, &setup)?;
    // What comes next finds the cluster as it was, evenly spread pods included.
    survive::whole::make_whole(scene, &[])?;
    let side = &survival.sheave;
    ensure!(survival.trouble.is_none(), "{survival:#?}");
    ensure!(side.whole() && side.eligible > 0, "connections were lost or left in silence: {survival:#?}");
    // What a pod's program took too late was there in time. On a machine that stood still for longer than is promised, attempts time
    // out although a pod is there to answer them.
    let new_failed = side.new_failed_later.saturating_sub(side.new_server_late as u64);
    let stood_still = side.longest_pause_ms > PAUSE_MS || side.client_late_ms > PAUSE_MS;
    ensure!(new_failed == 0 || stood_still, "new connections failed: {survival:#?}");
    ensure!(side.longest_pause_ms <= SANE_MS, "a pause of {:.0} ms: {survival:#?}", side.longest_pause_ms);
    for (name, value) in survival.figures.iter().filter(|(name, _)| name.ends_with("back after, ms")) {
        ensure!(*value <= REPAIRED_MS, "{name}: {value:.0}");
    }
    let figures: String = survival.figures.iter().map(|(name, value)| format!(", {name}: {value:.0}")).collect();
    Ok(format!(
        "{} of {} alive, of {} others {} by FIN and {} by a reset, pause {:.0} ms{figures}",
        side.alive, side.eligible, side.gone, side.ended.closed, side.ended.reset, side.longest_pause_ms
    ))
}

fn node_loss(report: &NodeLoss) -> Result<String> {
    let Observed { connections, claims, .. } = &report.observed;
    alive(connections)?;
    let lost = &connections.pod_lost;
    ensure!(lost.all_reset(), "connections of lost pods were left in silence: {report:#?}");
    if report.lost == report.owner_before {
        ensure!(claims.takeover_ms.is_some_and(|ms| ms < SANE_MS), "no node took over: {report:#?}");
    }
    Ok(format!("{}; pod lost: {} of {} reset", figures(&report.observed), lost.reset, lost.opened))
}

fn fenced(report: &SpeakerFault) -> Result<String> {
    alive(&report.observed.connections)?;
    ensure!(report.owner_after != report.owner_before, "no node took over: {report:#?}");
    let until = report.observed.claims.old_owner_until_ms.unwrap_or_default();
    let in_time = report.observed.in_time(until, report.struck_ms + FENCED_MS);
    ensure!(in_time != InTime::Broken, "the old owner claimed the address for {until:.0} ms: {report:#?}");
    let busy =
        if in_time == InTime::TooBusy { "; machine too busy to judge how long the old owner claimed" } else { "" };
    Ok(figures(&report.observed) + busy)
}

fn alive(connections: &Connections) -> Result<()> {
    ensure!(connections.all_alive(), "not all connections are alive: {connections:#?}");
    Ok(())
}

fn figures(observed: &Observed) -> String {
    let Observed { connections, claims, probes, .. } = observed;
    let ms = |value: Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.0}"));
    format!(
        "{} of {} alive, pause {:.0} ms, UDP {} lost in {:.0} ms, takeover {} ms, old owner until {} ms, last reset {} ms",
        connections.alive,
        connections.eligible,
        connections.longest_pause_ms,
        probes.lost,
        probes.longest_outage_ms,
        ms(claims.takeover_ms),
        ms(claims.old_owner_until_ms),
        ms(connections.pod_lost.slowest_reset_ms),
    )
}

/// Half of what the benches hold open: their packets are most of what a lab costs the machine.
const CONNECTIONS: u16 = 100;
/// The promise, on a machine that has nothing else to do.
const PAUSE_MS: f64 = 450.0;
const REPAIRED_MS: f64 = 1000.0;
/// No promise: a machine that is this slow would not test anything.
const SANE_MS: f64 = 5000.0;
/// From the Secret's creation on.
const KEYS_WITHIN_MS: f64 = 1000.0;
/// A promise, kept by the kernel: the lease, and the way of one answer.
const FENCED_MS: f64 = 150.0;
/// A new connection that begins this long after a fault succeeds.
const SETTLED_MS: f64 = 300.0;
/// The same where no thread measures how long this program waited for a processor.
const TRANSLATED_MS: f64 = 1000.0;
