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

/// Faults begin after everything has settled once.
pub const FIRST_FAULT: Duration = Duration::from_secs(2);
const CHAOS: Duration = Duration::from_secs(20);

pub fn plan(profile: Profile, nodes: usize, vips: usize, random: &mut Random) -> Vec<Planned> {
    let mut plan = match profile {
        Profile::Calm => Vec::new(),
        Profile::Crashes => crashes(nodes, random),
        Profile::HandOvers => hand_overs(nodes, random),
        Profile::CutOffs => cut_offs(nodes, random),
        Profile::OneWays => one_ways(nodes, random),
        Profile::Stalls => stalls(nodes, random),
        Profile::Chaos => chaos(nodes, vips, random),
    };
    plan.sort_by_key(|planned| planned.at);
    plan
}

/// Far enough apart that everything settles in between.
fn crashes(nodes: usize, random: &mut Random) -> Vec<Planned> {
    let mut plan = Vec::new();
    for round in 0..5 {
        let at =
            FIRST_FAULT + Duration::from_secs(4 * round) + random.duration(Duration::ZERO..Duration::from_millis(100));
        let node = random.below(nodes);
        plan.push(Planned { at, fault: Fault::Crash(node) });
        let back = at + Duration::from_millis(1500);
        plan.push(Planned { at: back, fault: Fault::Restart(node, Epoch::Higher) });
    }
    plan
}

fn hand_overs(nodes: usize, random: &mut Random) -> Vec<Planned> {
    let mut plan = Vec::new();
    for round in 0..5 {
        let at =
            FIRST_FAULT + Duration::from_secs(4 * round) + random.duration(Duration::ZERO..Duration::from_millis(100));
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

fn cut_offs(nodes: usize, random: &mut Random) -> Vec<Planned> {
    let mut plan = Vec::new();
    for round in 0..5 {
        let at =
            FIRST_FAULT + Duration::from_secs(4 * round) + random.duration(Duration::ZERO..Duration::from_millis(100));
        plan.push(Planned { at, fault: Fault::CutOff(random.below(nodes)) });
        // From a pause without effect to one that all nodes notice; mostly about the dead interval.
        let longest = if random.chance(700) { 250 } else { 1500 };
        let heal = at + random.duration(Duration::from_millis(20)..Duration::from_millis(longest));
        plan.push(Planned { at: heal, fault: Fault::Heal });
    }
    plan
}

fn one_ways(nodes: usize, random: &mut Random) -> Vec<Planned> {
    let mut plan = Vec::new();
    for round in 0..5 {
        let at =
            FIRST_FAULT + Duration::from_secs(4 * round) + random.duration(Duration::ZERO..Duration::from_millis(100));
        let from = random.below(nodes);
        let to = (from + 1 + random.below(nodes - 1)) % nodes;
        plan.push(Planned { at, fault: Fault::OneWay(from, to) });
        let heal = at + random.duration(Duration::from_millis(20)..Duration::from_millis(3000));
        plan.push(Planned { at: heal, fault: Fault::Heal });
    }
    plan
}

fn stalls(nodes: usize, random: &mut Random) -> Vec<Planned> {
    let mut plan = Vec::new();
    for round in 0..40 {
        let at = FIRST_FAULT
            + Duration::from_millis(500 * round)
            + random.duration(Duration::ZERO..Duration::from_millis(100));
        let node = random.below(nodes);
        plan.push(Planned { at, fault: Fault::Freeze(node, false) });
        // An interval may have passed already since its last heartbeat.
        let back = at + random.duration(Duration::from_millis(1)..Duration::from_millis(105));
        plan.push(Planned { at: back, fault: Fault::Thaw(node) });
    }
    plan
}

fn chaos(nodes: usize, vips: usize, random: &mut Random) -> Vec<Planned> {
    let mut plan = Vec::new();
    let mut at = FIRST_FAULT;
    let end = FIRST_FAULT + CHAOS;
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
