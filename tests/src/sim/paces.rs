//! At which pace each node runs, and what that allows.

use std::time::Duration;

use speaker_core::election::Config;
use speaker_core::wire::pace::Pace;

use super::random::Random;

/// Of the nodes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paces {
    /// The default for all. They state none, as speakers of earlier versions.
    Alike,
    /// Each its own, at least one fast and one slow; a speaker that starts anew may have another one.
    Mixed,
}

const FAST: [Pace; 3] = [pace(20, 3), pace(50, 3), pace(100, 3)];
/// Dead after 1,040 ms, and after 3.2 s.
const SLOW: [Pace; 2] = [pace(200, 5), pace(1000, 3)];
/// Of 1000 restarts.
const CHANGES: u32 = 300;

const fn pace(millis: u64, dead_intervals: u32) -> Pace {
    Pace { interval: Duration::from_millis(millis), dead_intervals }
}

impl Paces {
    pub fn draw(self, nodes: usize, random: &mut Random) -> Vec<Option<Pace>> {
        if self == Self::Alike {
            return vec![None; nodes];
        }
        let mut drawn: Vec<Option<Pace>> = (0..nodes).map(|_| Some(any(random))).collect();
        let fast = random.below(nodes);
        let slow = (fast + 1 + random.below(nodes - 1)) % nodes;
        (drawn[fast], drawn[slow]) = (Some(FAST[random.below(FAST.len())]), Some(SLOW[random.below(SLOW.len())]));
        drawn
    }

    /// Of a speaker that starts on a node which had this one.
    pub fn at_restart(self, before: Option<Pace>, random: &mut Random) -> Option<Pace> {
        if self == Self::Mixed && random.chance(CHANGES) { Some(any(random)) } else { before }
    }

    /// How much longer than with the default pace it takes until a silent node is dead, at most.
    pub fn extra(self) -> Duration {
        match self {
            Self::Alike => Duration::ZERO,
            Self::Mixed => SLOW[1].dead() - FAST[1].dead(),
        }
    }
}

/// The configuration of a node with this pace.
pub fn at(config: &Config, pace: Option<Pace>) -> Config {
    let config = config.clone();
    match pace {
        Some(pace) => config.at_pace(pace.interval, pace.dead_intervals),
        None => config,
    }
}

fn any(random: &mut Random) -> Pace {
    let all = [FAST.as_slice(), &SLOW].concat();
    all[random.below(all.len())]
}
