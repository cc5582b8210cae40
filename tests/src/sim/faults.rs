//! What goes wrong, when, for how long: drawn from the seed before the run.

use std::time::Duration;

use super::random::Random;

/// Which faults a run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// None: no VIP may move.
    Calm,
    /// One speaker after the other is killed and comes back, on a good network: bounds the time without an owner.
    Crashes,
    /// One node after the other leaves in good order, loses its dataplane or is drained, and comes back: no client notices.
    HandOvers,
    /// One node after the other is cut off from all others and comes back: the others keep what they have.
    CutOffs,
    /// One direction of one link after the other fails: the others bear witness, no VIP moves.
    OneWays,
    /// One node after the other gets no processor for a while, but less than would cost it a heartbeat too many: no VIP moves.
    Stalls,
    /// Everything at once.
    Chaos,
}

#[derive(Clone, Debug)]
pub struct Planned {
    pub at: Duration,
    pub fault: Fault,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Groups by bit: nodes with different bits do not receive each other.
    Partition(u64),
    /// This node receives no other, and no other receives it.
    CutOff(usize),
    /// One direction of one link.
    OneWay(usize, usize),
    /// All links are whole, the weather is fair.
    Heal,
    Weather {
        loss_per_mille: u32,
        duplicate_per_mille: u32,
        delay_ms: u64,
    },
    Crash(usize),
    /// After a crash: with an epoch from the wall clock, or with a lower one (clock set back, disk lost).
    Restart(usize, Epoch),
    /// SIGSTOP; `true`: in the middle of carrying out actions.
    Freeze(usize, bool),
    Thaw(usize),
    Carrier(usize, bool),
    Ready(usize, bool),
    /// By an administrator; a new speaker on the node knows it.
    Drain(usize, bool),
    /// SIGTERM; it is gone 300 ms later at the latest.
    Leave(usize),
    /// So many of the VIPs are desired.
    Desire(usize),
    /// An old datagram again, to this node.
    Replay(usize),
    /// An old datagram with one bit changed, to this node.
    Forge(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epoch {
    Higher,
    Lower,
}

/// Faults begin after everything has settled once: `extra` later where slow nodes take so much longer for dead.
pub fn first_fault(extra: Duration) -> Duration {
    Duration::from_secs(2) + 3 * extra
}

const CHAOS: Duration = Duration::from_secs(20);

/// `stalls`: how long each node may get no processor without a heartbeat too many.
pub fn plan(
    profile: Profile,
    vips: usize,
    stalls_max: &[Duration],
    extra: Duration,
    random: &mut Random,
) -> Vec<Planned> {
    let nodes = stalls_max.len();
    let mut plan = match profile {
        Profile::Calm => Vec::new(),
        Profile::Crashes => crashes(nodes, extra, random),
        Profile::HandOvers => hand_overs(nodes, extra, random),
        Profile::CutOffs => cut_offs(nodes, extra, random),
        Profile::OneWays => one_ways(nodes, extra, random),
        Profile::Stalls => stalls(stalls_max, extra, random),
        Profile::Chaos => chaos(nodes, vips, extra, random),
    };
    plan.sort_by_key(|planned| planned.at);
    plan
}

/// Far enough apart that everything settles in between.
fn crashes(nodes: usize, extra: Duration, random: &mut Random) -> Vec<Planned> {
    let mut plan = Vec::new();
    for round in 0..5 {
        let at = begin(round, extra, random);
        let node = random.below(nodes);
        plan.push(Planned { at, fault: Fault::Crash(node) });
        let back = at + Duration::from_millis(1500) + extra * 3 / 2;
        plan.push(Planned { at: back, fault: Fault::Restart(node, Epoch::Higher) });
    }
    plan
}

fn hand_overs(nodes: usize, extra: Duration, random: &mut Random) -> Vec<Planned> {
    let mut plan = Vec::new();
    for round in 0..5 {
        let at = begin(round, extra, random);
        let node = random.below(nodes);
        let (goes, returns) = match random.below(3) {
            0 => (Fault::Leave(node), Fault::Restart(node, Epoch::Higher)),
            1 => (Fault::Ready(node, false), Fault::Ready(node, true)),
            _ => (Fault::Drain(node, true), Fault::Drain(node, false)),
        };
        plan.push(Planned { at, fault: goes });
        let back = at + random.duration(Duration::from_millis(300)..Duration::from_millis(2000));
        plan.push(Planned { at: back, fault: returns });
    }
    plan
}

fn cut_offs(nodes: usize, extra: Duration, random: &mut Random) -> Vec<Planned> {
    let mut plan = Vec::new();
    for round in 0..5 {
        let at = begin(round, extra, random);
        plan.push(Planned { at, fault: Fault::CutOff(random.below(nodes)) });
        // From a pause without effect to one that all nodes notice; mostly about the dead interval.
        let longest = if random.chance(700) { Duration::from_millis(250) } else { Duration::from_millis(1500) + extra };
        let heal = at + random.duration(Duration::from_millis(20)..longest);
        plan.push(Planned { at: heal, fault: Fault::Heal });
    }
    plan
}

fn one_ways(nodes: usize, extra: Duration, random: &mut Random) -> Vec<Planned> {
    let mut plan = Vec::new();
    for round in 0..5 {
        let at = begin(round, extra, random);
        let from = random.below(nodes);
        let to = (from + 1 + random.below(nodes - 1)) % nodes;
        plan.push(Planned { at, fault: Fault::OneWay(from, to) });
        let heal = at + random.duration(Duration::from_millis(20)..Duration::from_millis(3000) + extra);
        plan.push(Planned { at: heal, fault: Fault::Heal });
    }
    plan
}

fn stalls(stalls_max: &[Duration], extra: Duration, random: &mut Random) -> Vec<Planned> {
    let mut plan = Vec::new();
    for round in 0..40 {
        let at = first_fault(extra)
            + Duration::from_millis(500 * round)
            + random.duration(Duration::ZERO..Duration::from_millis(100));
        let node = random.below(stalls_max.len());
        plan.push(Planned { at, fault: Fault::Freeze(node, false) });
        let back = at + random.duration(Duration::from_millis(1)..stalls_max[node]);
        plan.push(Planned { at: back, fault: Fault::Thaw(node) });
    }
    plan
}

/// A round of faults that are far enough apart.
fn begin(round: u32, extra: Duration, random: &mut Random) -> Duration {
    let period = Duration::from_secs(4) + 3 * extra;
    first_fault(extra) + period * round + random.duration(Duration::ZERO..Duration::from_millis(100))
}

fn chaos(nodes: usize, vips: usize, extra: Duration, random: &mut Random) -> Vec<Planned> {
    let mut plan = Vec::new();
    let mut at = first_fault(extra);
    let end = at + CHAOS;
    while at < end {
        one_fault(at, nodes, vips, random, &mut plan);
        // Mostly close together, sometimes with time to settle in between.
        let pause = if random.chance(200) { 3000 } else { 400 };
        at += random.duration(Duration::from_millis(5)..Duration::from_millis(pause));
    }
    plan
}

fn one_fault(at: Duration, nodes: usize, vips: usize, random: &mut Random, plan: &mut Vec<Planned>) {
    let node = random.below(nodes);
    let later = at + random.duration(Duration::from_millis(1)..Duration::from_millis(1500));
    let mut push = |at, fault| plan.push(Planned { at, fault });
    match random.below(17) {
        0 | 1 => push(at, Fault::Partition(random.word())),
        2 => push(at, Fault::OneWay(node, random.below(nodes))),
        3 | 4 => push(at, Fault::Heal),
        5 => {
            let loss_per_mille = random.below(400) as u32;
            let duplicate_per_mille = random.below(200) as u32;
            push(at, Fault::Weather { loss_per_mille, duplicate_per_mille, delay_ms: random.below(120) as u64 });
        }
        6 | 7 => {
            let epoch = if random.chance(300) { Epoch::Lower } else { Epoch::Higher };
            push(at, Fault::Crash(node));
            push(later, Fault::Restart(node, epoch));
        }
        8 | 9 => {
            push(at, Fault::Freeze(node, random.chance(500)));
            push(later, Fault::Thaw(node));
        }
        10 => {
            push(at, Fault::Carrier(node, false));
            push(later, Fault::Carrier(node, true));
        }
        11 => {
            push(at, Fault::Ready(node, false));
            push(later, Fault::Ready(node, true));
        }
        12 => {
            push(at, Fault::Leave(node));
            push(later + Duration::from_millis(400), Fault::Restart(node, Epoch::Higher));
        }
        13 => push(at, Fault::Desire(random.below(vips + 1))),
        14 => push(at, Fault::Replay(node)),
        // It may last.
        15 => push(at, Fault::Drain(node, random.chance(700))),
        _ => push(at, Fault::Forge(node)),
    }
}
