//! What has changed, in order: owners, members, drains, peers. A ring: the oldest make room, and a reader that comes too late is told how
//! many it missed.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::State;

/// Events that are kept.
pub const KEPT: usize = 512;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// One more than that of the event before it.
    pub sequence: u64,
    pub at: Timestamp,
    #[serde(flatten)]
    pub change: Change,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all_fields = "camelCase")]
pub enum Change {
    /// `to`: none, and why.
    OwnerChanged {
        address: Ipv4Addr,
        from: Option<String>,
        to: Option<String>,
        term: Option<u64>,
        reason: Option<String>,
    },
    /// `port`: where the member serves.
    MemberChanged {
        member: String,
        port: u16,
        from: State,
        to: State,
        reason: String,
    },
    DrainBegan {
        member: String,
        by_force: bool,
    },
    DrainEnded {
        member: String,
    },
    PeerChanged {
        node: String,
        alive: bool,
    },
}

/// An answer to a reader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Events {
    /// Of the speaker: a new one counts from 1 again.
    pub run: u64,
    /// To ask for what comes after these.
    pub after: u64,
    /// Events that had made room before they were asked for.
    pub missed: u64,
    pub events: Vec<Event>,
}

#[derive(Debug)]
pub struct Ring {
    run: u64,
    last: u64,
    most: usize,
    events: VecDeque<Event>,
}

impl Ring {
    pub fn new(run: u64, most: usize) -> Self {
        Self { run, last: 0, most, events: VecDeque::new() }
    }

    pub fn push(&mut self, at: Timestamp, change: Change) {
        self.last += 1;
        self.events.push_back(Event { sequence: self.last, at, change });
        while self.events.len() > self.most {
            self.events.pop_front();
        }
    }

    /// The sequence of the newest event.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// What came after this event of this run; of another run: everything.
    pub fn after(&self, run: u64, sequence: u64) -> Events {
        let sequence = if run == self.run { sequence.min(self.last) } else { 0 };
        let events: Vec<Event> = self.events.iter().filter(|event| event.sequence > sequence).cloned().collect();
        let missed = (self.last - sequence).saturating_sub(events.len() as u64);
        Events { run: self.run, after: self.last, missed, events }
    }
}
