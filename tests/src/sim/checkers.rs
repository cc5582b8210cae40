//! What must hold, judged from outside: from what kernels answer for and what the network did.

use std::collections::BTreeMap;
use std::time::Duration;

use speaker_core::name::Vip;

use super::Report;
use super::network::Network;
use super::node::{Node, State, vip};

/// I3 allows one interval, of the slower one; this is the drift of clocks and a late scheduler. The way there and back comes on top.
const CONNECTED_OVERLAP_MORE: Duration = Duration::from_millis(10);

/// Beyond a lease: the drift of clocks.
const DRIFT: Duration = Duration::from_millis(1);

/// Follows which node holds what.
#[derive(Debug, Default)]
pub struct Watcher {
    /// Two nodes that hold one VIP: since when.
    overlaps: BTreeMap<(Vip, usize, usize), Duration>,
    /// VIPs without a holder: since when.
    gaps: BTreeMap<Vip, Duration>,
    /// How long a VIP may be without a holder in this run.
    pub gap_max: Option<Duration>,
}

/// The dead interval, the next heartbeat of a witness, the skew by rank, the drift: I5.
pub const GAP_MAX: Duration = Duration::from_millis(160 + 50 + 10 * 4 + 15);

impl Watcher {
    /// Checks everything; called whenever something may have changed.
    pub fn observe(
        &mut self,
        now: Duration,
        nodes: &[Node],
        vips: usize,
        network: &Network,
        report: &mut Report,
    ) -> Result<(), String> {
        for vip in (0..vips).map(vip) {
            let holders: Vec<usize> = (0..nodes.len()).filter(|node| nodes[*node].holds(vip, now)).collect();
            abandoned(now, vip, &holders, nodes)?;
            self.overlap(now, vip, &holders, nodes, network, report)?;
            self.gap(now, vip, holders.is_empty(), report)?;
        }
        Ok(())
    }

    /// I3: two nodes that receive each other never both hold a VIP for longer than an interval.
    fn overlap(
        &mut self,
        now: Duration,
        vip: Vip,
        holders: &[usize],
        nodes: &[Node],
        network: &Network,
        report: &mut Report,
    ) -> Result<(), String> {
        self.overlaps.retain(|(of, a, b), _| *of != vip || holders.contains(a) && holders.contains(b));
        for (at, a) in holders.iter().enumerate() {
            for b in &holders[at + 1..] {
                let since = *self.overlaps.entry((vip, *a, *b)).or_insert_with(|| {
                    report.overlaps += 1;
                    now
                });
                report.longest_overlap = report.longest_overlap.max(now - since);
                let awake = |node: usize| nodes[node].state == State::Running && nodes[node].carrier;
                let Some(whole) = network.whole_since(*a, *b).filter(|_| awake(*a) && awake(*b)) else { continue };
                let connected = now.saturating_sub(since.max(whole) + network.delay_max() * 2);
                report.longest_connected_overlap = report.longest_connected_overlap.max(connected);
                let interval = nodes[*a].config.interval.max(nodes[*b].config.interval);
                if connected > interval + CONNECTED_OVERLAP_MORE {
                    return Err(format!(
                        "node-{a} and node-{b} receive each other and both hold {vip} for {connected:?} (I3)"
                    ));
                }
            }
        }
        Ok(())
    }

    /// I5: a VIP has an owner again soon after the fault.
    fn gap(&mut self, now: Duration, vip: Vip, nobody: bool, report: &mut Report) -> Result<(), String> {
        if !nobody {
            self.gaps.remove(&vip);
            return Ok(());
        }
        let lasted = now - *self.gaps.entry(vip).or_insert(now);
        if let Some(max) = self.gap_max {
            report.longest_gap = report.longest_gap.max(lasted);
            if lasted > max {
                return Err(format!("no node holds {vip} for {lasted:?} (I5)"));
            }
        }
        Ok(())
    }
}

/// I1: a kernel without a speaker answers no longer than the lease. R11: a node without a link holds nothing.
fn abandoned(now: Duration, vip: Vip, holders: &[usize], nodes: &[Node]) -> Result<(), String> {
    for node in holders.iter().map(|holder| &nodes[*holder]) {
        if node.state == State::Running && !node.carrier {
            return Err(format!("{} holds {vip} without a link (R11)", node.name));
        }
        if node.state == State::Running {
            continue;
        }
        let since = now - node.stopped_at;
        if since > node.config.lease + DRIFT {
            return Err(format!("{} answers for {vip} {since:?} after its speaker stopped (I1)", node.name));
        }
    }
    Ok(())
}

/// I4: every desired VIP has one owner, all nodes agree on it, nothing else is held.
pub fn in_order(now: Duration, nodes: &[Node], vips: usize, desired: usize) -> Result<(), String> {
    for index in 0..vips {
        let vip = vip(index);
        let holders: Vec<usize> = (0..nodes.len()).filter(|node| nodes[*node].holds(vip, now)).collect();
        let wanted = usize::from(index < desired);
        if holders.len() != wanted {
            return Err(format!("{vip} is held by {holders:?}, desired by {wanted}"));
        }
        for node in nodes.iter().filter(|node| node.state == State::Running) {
            let said = node.election.owner(vip).map(|owner| owner.node.clone());
            let truth = holders.first().map(|holder| nodes[*holder].name.clone());
            if said != truth {
                return Err(format!("{} takes {said:?} for the owner of {vip}, it is {truth:?}", node.name));
            }
        }
    }
    Ok(())
}
