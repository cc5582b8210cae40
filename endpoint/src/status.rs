//! What a node knows of the endpoint, as one value: the page, JSON, the table of the command line and the metrics are made of it.
//!
//! What is not counted is not there: a figure that nobody has is `None`, and is shown as none.
//! Read: here → [`events`] (what has changed) → `page`, `table`, `metrics` (pure functions of the value).

pub mod events;
mod metrics;
mod page;
mod table;

use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use metrics::metrics;
pub use page::page;
pub use table::{event_line, table};

/// The endpoint, as one of its nodes has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The member whose speaker reports this.
    pub node: String,
    pub version: String,
    pub at: Timestamp,
    /// Why this node may own no address; none: it may.
    pub not_ready: Vec<String>,
    pub notes: Vec<String>,
    /// A speaker of an earlier version reads it at its start only.
    #[serde(default)]
    pub file: Option<File>,
    pub addresses: Vec<Address>,
    pub members: Vec<Member>,
    pub ports: Vec<Port>,
    /// The nodes whose counters are in the totals of members. A speaker of an earlier version has none.
    #[serde(default)]
    pub counted_by: Vec<String>,
    /// Those whose counters are missing: they do not report, or have not counted yet.
    #[serde(default)]
    pub not_counted_by: Vec<String>,
    pub peers: Vec<Peer>,
}

/// What is served is by this file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct File {
    /// When what is served was read.
    pub taken: Timestamp,
    /// As it is now it was read then, and is refused.
    pub refused: Option<RefusedFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedFile {
    pub at: Timestamp,
    /// Each with field, value, and what is allowed.
    pub because: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    pub address: Ipv4Addr,
    pub owner: Option<String>,
    pub term: Option<u64>,
    /// Since when this node knows it so.
    pub since: Option<Timestamp>,
    /// Why it has no owner.
    pub reason: Option<String>,
    /// The newest first, [`HISTORY`] at most. It begins with this speaker.
    pub history: Vec<OwnerChange>,
}

/// Changes of an owner that are kept.
pub const HISTORY: usize = 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerChange {
    pub at: Timestamp,
    pub owner: Option<String>,
    pub reason: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    pub name: String,
    pub address: Ipv4Addr,
    /// It runs a speaker.
    pub speaker: bool,
    /// It gets no new connections, because an administrator wants that.
    pub drained: Option<Drained>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drained {
    pub since: Timestamp,
    /// Also where no other member answers.
    pub by_force: bool,
}

/// A port of the addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    pub listen: u16,
    pub target: u16,
    /// `https` or `tls`.
    pub check: String,
    /// What came in at this node.
    pub traffic: Option<Traffic>,
    /// In order of name.
    pub members: Vec<Server>,
}

/// At one node, since its speaker started. Counted where a client's packet comes in: for all members together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// SYNs that led to a member, repeated ones included.
    pub connections: u64,
    pub packets: u64,
    pub bytes: u64,
    /// In place of a member.
    pub resets: u64,
}

/// A member's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    pub member: String,
    pub state: State,
    /// How the last check ended, in one word; `NoReport`: the node that checks it does not report.
    pub reason: String,
    /// The HTTP status behind it.
    pub http_status: Option<u16>,
    /// Since when this node knows the state.
    pub since: Timestamp,
    /// How long the last check took.
    pub check_millis: Option<u64>,
    /// Open, from all nodes that count; none: no node has counted yet.
    pub connections: Option<u64>,
    /// From all nodes that count; none: none does.
    #[serde(default)]
    pub total: Option<Total>,
    /// Of this, what this node's kernel led to the member.
    #[serde(default)]
    pub counted_here: Option<Total>,
    /// Of a thousand new connections, as this node's table has it.
    pub weight: Option<u32>,
    /// Nodes that translate for it: it does not see the client's address.
    pub via: Vec<String>,
}

/// Of a member's port, since the counting nodes' speakers started, each for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Total {
    pub connections: u64,
    /// Of clients, with their IP headers.
    pub bytes: u64,
    /// By the member.
    pub resets: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum State {
    /// It answers, and gets new connections.
    Serving,
    /// It answers, and is drained.
    Drained,
    /// Its checks are not known: it counts as one that answers.
    Unknown,
    Failing,
}

impl State {
    pub const ALL: [Self; 4] = [Self::Serving, Self::Drained, Self::Unknown, Self::Failing];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Serving => "Serving",
            Self::Drained => "Drained",
            Self::Unknown => "Unknown",
            Self::Failing => "Failing",
        }
    }
}

/// Another node's speaker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    pub node: String,
    /// Its heartbeats arrive.
    pub alive: bool,
    /// Of the last adverts that it sent, those that did not arrive here.
    pub lost: u32,
    /// As many adverts are meant: 64, or fewer at the start.
    pub of: u32,
}

impl Status {
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name == name)
    }

    /// "2 of 3 nodes (without c)"; none: nothing is counted.
    fn counting(&self) -> Option<String> {
        let (counting, all) = (self.counted_by.len(), self.counted_by.len() + self.not_counted_by.len());
        let without = match self.not_counted_by.as_slice() {
            [] => String::new(),
            missing => format!(" (without {})", missing.join(", ")),
        };
        (counting > 0).then(|| format!("{counting} of {all} nodes{without}"))
    }

    /// Every address has an owner, and every port a member that gets new connections.
    pub fn is_whole(&self) -> bool {
        let takes = |server: &Server| matches!(server.state, State::Serving | State::Unknown);
        self.not_ready.is_empty()
            && self.addresses.iter().all(|address| address.owner.is_some())
            && self.ports.iter().all(|port| port.members.iter().any(takes))
    }
}

/// "3 s", "5 min", "4 h", "12 d": how long before `now` this was.
fn age(now: Timestamp, then: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(then.as_second()).max(0);
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// "33.3 %"
fn percent(per_mille: u32) -> String {
    format!("{}.{} %", per_mille / 10, per_mille % 10)
}

#[cfg(test)]
mod tests;
