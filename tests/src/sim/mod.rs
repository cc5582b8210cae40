//! A cluster of speakers on a virtual clock, with faults from a seed and checkers that share nothing with the election.
//!
//! Same seed, same run, to the nanosecond. The nodes see public API only; what they hold is read off the actions, as the
//! kernel would: OWN and the lease. Files: `random` → `clock` (drift) → `paces` → `network` → `node` → `cluster` (the loop) →
//! `faults` (what goes wrong) → `checkers` (what must hold all the same).
//! Read first: docs/election.md, invariants. To repeat a failure: `SHEAVE_SIM_SEED=n cargo test -p sheave-tests --test sim_election`.

mod checkers;
mod clock;
mod cluster;
mod costs;
mod faults;
mod network;
mod node;
mod paces;
pub mod random;
pub mod scale;

use std::fmt;
use std::time::Duration;

pub use cluster::Cluster;
pub use faults::Profile;
pub use paces::Paces;

/// What a run has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub seed: u64,
    pub nodes: usize,
    pub vips: usize,
    pub faults: usize,
    pub datagrams: u64,
    /// Changes of what nodes hold.
    pub moves: u64,
    /// How often and for how long at most two nodes held one VIP.
    pub overlaps: u64,
    pub longest_overlap: Duration,
    /// The longest that two held one VIP although everything sent between them arrived, less the way there and back.
    pub longest_connected_overlap: Duration,
    /// The longest time without a holder of a VIP after a fault that took its owner, if another node could have held it.
    pub longest_gap: Duration,
    /// From the kill of an owner to its successor's claim.
    pub longest_takeover: Duration,
    /// The longest of them beyond the dead interval of the killed one.
    pub longest_overtime: Duration,
    /// How long after the last fault everything was in order.
    pub settled_after: Duration,
}

/// What did not hold, with the way to see it again.
#[derive(Clone, Debug)]
pub struct Violation {
    pub seed: u64,
    pub profile: Profile,
    pub paces: Paces,
    pub at: Duration,
    pub what: String,
    /// The last things that happened before it.
    pub trace: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} ({:?}, {:?}) at {:?}: {}", self.seed, self.profile, self.paces, self.at, self.what)?;
        self.trace.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

impl std::error::Error for Violation {}

/// One run.
pub fn run(seed: u64, profile: Profile, paces: Paces) -> Result<Report, Box<Violation>> {
    Cluster::new(seed, profile, paces).run()
}
