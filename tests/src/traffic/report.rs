//! What the measuring commands print, as one line of JSON. Times ending in `_ns` are CLOCK_MONOTONIC of this machine, so
//! reports of several processes can be compared; durations are milliseconds.

use serde::{Deserialize, Serialize};

/// The line a server sends on every new TCP connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Greeting {
    pub pod: String,
    pub node: String,
    /// The client's address and port as the pod sees it.
    pub client: String,
    /// When the server started (CLOCK_MONOTONIC): a pod that was restarted has the same name and another value.
    #[serde(default)]
    pub started_ns: u64,
    /// How long the connection had waited for the server: from the end of the handshake, in the pod's kernel, to this line.
    #[serde(default)]
    pub waited_ms: f64,
    /// The longest times that the server itself did not run.
    #[serde(default)]
    pub late: Vec<Late>,
}

/// A program looked every 10 ms whether it runs, and did not.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Late {
    pub until_ns: u64,
    pub ms: f64,
}

/// `hold`: connections that were kept open.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HoldReport {
    pub to: String,
    pub started_ns: u64,
    pub mark_ns: Option<u64>,
    /// When the report was requested: only an echo of what was sent later counts as life.
    pub report_ns: u64,
    pub counts: HoldCounts,
    /// Of the connections that are alive.
    pub longest_pause_ms: f64,
    pub longest_pause_after_mark_ms: Option<f64>,
    /// Attempts to open another connection in the place of one that ended (`--reopen`) that failed, and were repeated.
    #[serde(default)]
    pub reopen_failed: u64,
    /// The longest after the mark that the client itself did not run (10 ms are what it waits): a part of a pause with no other
    /// cause.
    #[serde(default)]
    pub late_ms: f64,
    pub connections: Vec<Held>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldCounts {
    pub alive: usize,
    pub reset: usize,
    pub closed: usize,
    pub silent: usize,
    /// Never connected.
    pub failed: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeldState {
    /// A record sent after the request for the report came back.
    Alive,
    /// The connection ended with an error (a reset, as a rule; see `error`).
    Reset,
    /// The server closed it.
    Closed,
    /// Nothing came back, no error either.
    Silent,
    /// It was never established.
    Failed,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Held {
    pub state: HeldState,
    /// The client's own address and port.
    pub local: String,
    pub pod: String,
    pub node: String,
    /// When the pod's server had started: see [`Greeting::started_ns`].
    #[serde(default)]
    pub started_ns: u64,
    /// The client's address and port as the pod saw it.
    pub seen: String,
    pub connected_ns: u64,
    #[serde(default)]
    pub last_echo_ns: u64,
    /// When it was reset or closed.
    pub ended_ns: Option<u64>,
    pub error: Option<String>,
    pub echoes: u64,
    pub longest_pause_ms: f64,
    /// The longest pause that ended after the mark, or goes on.
    pub longest_pause_after_mark_ms: Option<f64>,
    /// The longest after the mark without an acknowledgement of what was sent, checked whenever a record is sent: the part of a
    /// pause that is not the server's.
    #[serde(default)]
    pub unacknowledged_after_mark_ms: f64,
    /// From the mark to the reset or close.
    pub mark_to_end_ms: Option<f64>,
}

impl HoldReport {
    /// Connections by what became of them, for one node's pods or for all others.
    pub fn count(&self, state: HeldState, chosen: impl Fn(&Held) -> bool) -> usize {
        self.connections.iter().filter(|held| held.state == state && chosen(held)).count()
    }
}

/// `probe`: UDP datagrams at a fixed rate.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProbeReport {
    pub to: String,
    pub interval_ms: f64,
    pub mark_ns: Option<u64>,
    pub sent: u64,
    pub received: u64,
    pub lost: u64,
    /// Over all flows.
    pub longest_outage_ms: f64,
    pub longest_outage_after_mark_ms: Option<f64>,
    pub flows: Vec<ProbeFlow>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProbeFlow {
    pub local: String,
    pub sent: u64,
    pub received: u64,
    pub lost: u64,
    pub last_sent_ns: u64,
    pub outages: Vec<Outage>,
    /// The pods that answered, in the order in which the answering pod changed.
    pub answered_by: Vec<Answered>,
}

/// From the sending of the first lost probe to the sending of the next answered one (or to the end).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outage {
    pub from_ns: u64,
    pub to_ns: u64,
    pub lost: u64,
    pub ms: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answered {
    pub pod: String,
    pub node: String,
    /// As [`Greeting::started_ns`].
    pub started_ns: u64,
    /// Sending time of the first probe it answered.
    pub from_ns: u64,
    /// And of the last one.
    pub to_ns: u64,
    /// Between the sending of two probes that it answered one after the other.
    pub longest_gap_ms: f64,
    pub count: u64,
}

/// `connect`: new connections at a fixed rate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConnectReport {
    pub to: String,
    pub started_ns: u64,
    pub mark_ns: Option<u64>,
    pub attempts: u64,
    pub succeeded: u64,
    pub failed: u64,
    /// When the first connection had answered (connected and greeted).
    pub first_success_ns: Option<u64>,
    /// Attempts begun later than the first mark that failed, less those begun within the settling time (`--settle-ms`, 300)
    /// of any mark, and those that a mark met on their way or connected without a greeting.
    pub failed_after_mark: Option<u64>,
    /// The slowest success.
    pub slowest_ms: f64,
    /// The first twenty thousand failures.
    pub failures: Vec<Failure>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    pub begun_ns: u64,
    pub ms: f64,
    pub error: String,
    /// Whether it is one of those in `failed_after_mark`.
    #[serde(default)]
    pub later: bool,
    /// It was greeted after all, and would have been in time if the server had not let it wait ([`Greeting::waited_ms`]).
    #[serde(default)]
    pub server_late: bool,
    /// The client's own; 0: it had none.
    #[serde(default)]
    pub local_port: u16,
}

/// `arp-watch`: which MAC addresses answer for an address.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArpReport {
    pub ip: String,
    pub mark_ns: Option<u64>,
    pub sent: u64,
    /// Per MAC address, in order of the first answer.
    pub answerers: Vec<ArpAnswerer>,
    /// Every answer and announcement, in order of arrival (the first hundred thousand).
    pub answers: Vec<ArpAnswer>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArpAnswerer {
    pub mac: String,
    pub replies: u64,
    pub announcements: u64,
    pub first_ns: u64,
    /// Of replies and announcements.
    pub last_ns: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArpAnswer {
    pub at_ns: u64,
    pub mac: String,
    /// Not an answer to us: a gratuitous ARP, as request or reply.
    pub announcement: bool,
}
