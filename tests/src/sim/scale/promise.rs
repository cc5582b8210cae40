//! What is promised of a large cluster: it starts, loses an owner, is cut in two and heals, and each outcome is judged.
//!
//! Read first: docs/election.md, invariants I3, I4 and I6.

use std::fmt;
use std::time::Duration;

use super::watched::LOOK;
use super::{Cluster, Loop, Outcome, Shape};

/// What happens to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// All nodes at once: no VIP has an owner.
    Start,
    /// Two share all VIPs, then the others start.
    Join,
    /// The owner of that many VIPs loses power.
    OwnerLost(usize),
    /// Every second node is cut off from the others.
    Cut,
    Heal,
    /// For a while.
    Nothing,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("all start"),
            Self::Join => f.write_str("two start, then the others"),
            Self::OwnerLost(had) => write!(f, "owner of {had} lost"),
            Self::Cut => f.write_str("cut in two"),
            Self::Heal => f.write_str("the cut heals"),
            Self::Nothing => f.write_str("nothing"),
        }
    }
}

/// After any single fault.
pub const SETTLE: Duration = Duration::from_secs(3);
/// For clusters larger than that is promised for: they may be slow, and come to rest all the same.
pub const REST: Duration = Duration::from_secs(10);
const CALM: Duration = Duration::from_secs(2);

const INTERVAL: Duration = Duration::from_millis(50);
const ROUND_TRIP: Duration = Duration::from_micros(800);

impl Shape {
    /// 100 nodes with all VIPs that there may be, or all nodes that there may be with 1,000.
    fn settle(&self) -> Duration {
        if self.nodes <= 100 || self.vips <= 1000 { SETTLE } else { REST }
    }
}

/// Each fault after the one before has settled; `with` gets what came of it. Ends with the first after which the cluster does not settle.
pub fn play(shape: &Shape, mut with: impl FnMut(Fault, &Outcome)) {
    let mut all = Cluster::new(shape.clone());
    all.start(0..shape.nodes);
    with(Fault::Start, &all.settle(REST));
    drop(all);
    let mut cluster = Cluster::new(shape.clone());
    cluster.start(0..2);
    cluster.advance_by(Duration::from_secs(1));
    cluster.start(2..shape.nodes);
    let mut settles = |fault: Fault, outcome: Outcome| {
        with(fault, &outcome);
        outcome.settled.is_some()
    };
    if !settles(Fault::Join, cluster.settle(REST)) {
        return;
    }
    let had = cluster.kill_largest_owner();
    if !settles(Fault::OwnerLost(had), cluster.settle(REST)) {
        return;
    }
    for (fault, cut) in [(Fault::Cut, true), (Fault::Heal, false)] {
        cluster.partition(cut);
        if !settles(fault, cluster.settle(REST)) {
            return;
        }
    }
    cluster.begin();
    cluster.advance_by(CALM);
    settles(Fault::Nothing, cluster.settle(REST));
}

/// The promises that this outcome breaks, in words. Nothing is promised of the loop of f452a5a.
pub fn broken(shape: &Shape, fault: Fault, outcome: &Outcome) -> Vec<String> {
    let limit = if fault == Fault::Nothing { Duration::ZERO } else { shape.settle() };
    let mut broken = Vec::new();
    let mut expect = |kept: bool, what: String| {
        if !kept && shape.kind == Loop::Now {
            broken.push(what);
        }
    };
    match outcome.settled {
        Some(after) => expect(after <= limit, format!("settled after {after:?}, not {limit:?}")),
        None => expect(false, format!("does not settle: {} of {} VIPs held", outcome.held, shape.vips)),
    }
    expect(outcome.wrong == 0, format!("{} wrong releases", outcome.wrong));
    expect(outcome.frozen == 0, format!("{} releases as frozen", outcome.frozen));
    // I3, of nodes that receive each other, which those of different sides do not at once when a cut heals.
    let twice = INTERVAL + ROUND_TRIP + LOOK + 2 * outcome.longest_turn;
    let kept = fault == Fault::Heal || outcome.doubled_for <= twice;
    expect(kept, format!("VIPs held twice for {:?}, not {twice:?}", outcome.doubled_for));
    expect(fault != Fault::Nothing || outcome.moves == 0, format!("{} moves without a fault", outcome.moves));
    broken
}
