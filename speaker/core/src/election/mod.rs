//! Who holds which VIP: one heartbeat per node, a lease shorter than the dead interval, claims with terms.
//!
//! Read first: docs/election.md (states, rules R1.., invariants I1..); RFC 9568 for what it grew from.

mod state;

use alloc::vec::Vec;

pub use state::{Action, Config, Eligible, Event, LoseReason, Owner, PartitionPolicy, Phase, Status};

use crate::machine::Machine;
use crate::name::Vip;
use crate::time::Instant;

/// One node's part in the election of the owners of all VIPs.
#[derive(Debug)]
pub struct Election {
    config: Config,
}

impl Election {
    /// Sends nothing before the first `Event::Tick`, which must come at `now` or later.
    pub fn new(config: Config, _now: Instant) -> Self {
        Self { config }
    }

    pub fn phase(&self) -> Phase {
        let _ = &self.config.node;
        Phase::Joining
    }

    /// The owner of a VIP as this node knows it.
    pub fn owner(&self, _vip: Vip) -> Option<Owner> {
        None
    }

    /// For metrics and `sheave status`.
    pub fn status(&self) -> Status {
        Status::default()
    }
}

impl Machine for Election {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, _event: Event, _now: Instant, _actions: &mut Vec<Action>) {}

    fn next_deadline(&self) -> Option<Instant> {
        None
    }
}
