//! Configuration, events, actions and phases of the election: the tables of docs/election.md.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::eligible::Eligible;
use super::peer::Loss;
use crate::name::{NodeName, Term, Vip};
use crate::time::{Duration, Instant};
use crate::wire::advert::{Keyring, Reject};
use crate::wire::pace::Pace;

#[derive(Clone, Debug)]
pub struct Config {
    pub node: NodeName,
    /// Adverts of other clusters on the segment are refused.
    pub cluster: u64,
    /// Higher than that of every earlier incarnation of this node if at all possible: max(wall clock ns, persisted + 1).
    pub epoch: u64,
    pub keys: Keyring,
    /// Between heartbeats.
    pub interval: Duration,
    /// Silence of this many intervals, and a skew, is death.
    pub dead_intervals: u32,
    /// Between the claims of nodes that are next in rank.
    pub rank_skew: Duration,
    /// How long the kernel answers for the VIPs after a heartbeat. Shorter than the dead interval (I2).
    pub lease: Duration,
    /// A node that joins waits no longer than this for a full view.
    pub join_timeout: Duration,
    /// A new VIP whose owner is to be a node with pods waits no longer than this for the first of them to be known.
    pub pods_wait: Duration,
    /// A node that leaves waits no longer than this for its successors.
    pub leave_timeout: Duration,
    /// A node with a saved view keeps what it holds for so long beside a peer whose view an API server has confirmed (R14).
    pub concede: Duration,
    /// Between repetitions of an unchanged claim list.
    pub claims_refresh: Duration,
    /// A VIP whose entry the kernel refused is not claimed again before this time; none is after it refused the lease.
    pub retry: Duration,
    pub partition: PartitionPolicy,
    /// From the system's random source: the challenges that prove freshness come from it.
    pub seed: u64,
}

impl Config {
    /// The defaults of docs/election.md.
    pub fn new(node: NodeName, cluster: u64, epoch: u64, keys: Keyring, seed: u64) -> Self {
        Self {
            node,
            cluster,
            epoch,
            keys,
            interval: Duration::from_millis(50),
            dead_intervals: 3,
            rank_skew: Duration::from_millis(10),
            lease: Duration::from_millis(120),
            join_timeout: Duration::from_secs(1),
            pods_wait: Duration::from_secs(2),
            leave_timeout: Duration::from_secs(1),
            concede: Duration::from_secs(10),
            claims_refresh: Duration::from_secs(1),
            retry: Duration::from_secs(10),
            partition: PartitionPolicy::Availability,
            seed,
        }
    }

    /// Another pace; what hangs on it keeps its proportion.
    pub fn at_pace(self, interval: Duration, dead_intervals: u32) -> Self {
        let paced = Self { interval, dead_intervals, rank_skew: interval / 5, ..self };
        Self { lease: paced.dead() * 3 / 4, ..paced }
    }

    /// A little more than the intervals: the heartbeat that is due at their end must have had time to arrive, else two lost
    /// ones and some jitter are a death.
    pub fn dead(&self) -> Duration {
        self.interval * self.dead_intervals + self.rank_skew
    }

    /// Of two or more peers one is received within this time, or this node receives none (rule R3a).
    pub fn group_silence(&self) -> Duration {
        self.interval * 3 / 2
    }

    /// A heartbeat echoes the peers that its sender received within this time. With [`Self::testimony_window`] it stays within
    /// the dead interval, so that the testimony of a witness is never older than the silence it contradicts (rule R6). Shorter
    /// than two intervals: else the last heartbeat before the dead interval ends still echoes the dead peer, and a takeover waits
    /// for the next.
    pub fn echo_window(&self) -> Duration {
        self.interval * self.dead_intervals - self.interval * 3 / 2
    }

    /// The heartbeat of a witness counts for this long: until the next one must have come.
    pub fn testimony_window(&self) -> Duration {
        self.interval + self.rank_skew
    }

    /// Between datagrams out of turn. Two nodes that meet may need two rounds, and have an interval for them (I3): that of the faster one,
    /// which judges sooner.
    pub fn answer_pause(&self) -> Duration {
        (self.rank_skew / 2).min(Duration::from_millis(5))
    }

    /// As peers are told it.
    pub fn pace(&self) -> Pace {
        Pace { interval: self.interval, dead_intervals: self.dead_intervals }
    }

    /// What the invariants need of the times.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.interval < Duration::from_millis(1) {
            return Err(ConfigError::IntervalTooShort);
        }
        if self.dead_intervals < 3 {
            return Err(ConfigError::DeadTooShort);
        }
        // The last heartbeat arrives after it was sent, and clocks differ by far less than the tenth that is left.
        if self.lease > self.dead().mul_f32(0.9) || self.lease <= self.interval {
            return Err(ConfigError::LeaseOutOfRange);
        }
        if self.rank_skew * 2 >= self.interval {
            return Err(ConfigError::SkewTooLong);
        }
        Ok(())
    }
}

/// Times that do not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("the heartbeat interval must be at least 1 ms")]
    IntervalTooShort,
    #[error("a node may be declared dead after three intervals of silence at the earliest")]
    DeadTooShort,
    #[error("the lease must be longer than an interval and at most nine tenths of the dead interval")]
    LeaseOutOfRange,
    #[error("the skew between ranks must be shorter than half an interval")]
    SkewTooLong,
}

/// What a node does that receives half of the members or fewer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartitionPolicy {
    /// Each side serves.
    Availability,
    /// Only the side with more than half of these nodes serves.
    Quorum { members: BTreeSet<NodeName> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The loop begins to work: after its wait, and before a heartbeat. `stalled`: for how long since the last heartbeat its thread was
    /// kept from running (it overslept a deadline, or lost the processor); its own work does not count.
    Woke { stalled: Duration },
    /// `next_beat()` is reached: send the heartbeat before what is pending is read. Without effect when the lease is over.
    Beat,
    /// A datagram on the advert port, as it came. What it changes is decided at the next tick, which is due at once.
    Datagram(Vec<u8>),
    /// Every VIP that is to be served; replaces the previous set. Empty at start: until the first one nothing is claimed.
    Desired(BTreeMap<Vip, Eligible>),
    /// All other nodes of the view: adverts in the name of others are refused. Until the first one all are taken, and while the view is a
    /// saved one: there may be newer nodes.
    Nodes(BTreeSet<NodeName>),
    /// Nodes of the view beyond the number that may take part: adverts in their names are refused.
    BeyondLimit(BTreeSet<NodeName>),
    /// Whether the view is that of the disk: no API server has confirmed it (R14). False at start.
    SavedView(bool),
    /// An administrator wants this node to own VIPs only while no other node can (R4, R14). False at start.
    Drained(bool),
    /// The kernel refused the entry of [`Action::Acquire`]: the VIP is released, and not announced.
    NotAcquired(Vip),
    /// The kernel refused the lease of [`Action::RenewLease`]: it is about to answer for no VIP.
    NotRenewed,
    /// The dataplane of this node can serve. False at start; an owner that is not ready hands over.
    Ready(bool),
    /// The link of this node. True at start.
    Carrier(bool),
    /// The MAC address of this node's uplink; peers receive it.
    OwnMac([u8; 6]),
    /// New keys; adverts are signed with `current` from now on.
    Keys(Keyring),
    /// The node stops: hand over, then `Action::HandedOver`.
    Leave,
    /// `next_deadline()` is reached. Before it, everything pending on the socket has been delivered.
    Tick,
}

/// To be carried out in order. Never after a failed one of the same batch is the rest left out: they do not depend on results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// To every other node (unicast to each, or multicast). Never longer than `wire::advert::MAX_DATAGRAM`.
    Send(Vec<u8>),
    /// Write `until` to the lease in the kernel. This loop alone extends it.
    RenewLease {
        until: Instant,
    },
    /// Add to the OWN map. Also given for a VIP already held whose term rose.
    Acquire {
        vip: Vip,
        term: Term,
    },
    /// Remove from the OWN map and stop announcing.
    Release {
        vip: Vip,
        reason: LoseReason,
    },
    /// Start the burst of announcements (`announce::Event::Announce`): after a win and after a won conflict.
    Announce {
        vip: Vip,
    },
    /// A verified advert of this node came: its kernel and its speaker live (`liveness::Event::Heartbeat`). It states whether the
    /// node takes new flows (`readiness::Event::Ready`).
    Received {
        node: NodeName,
        /// Of its present incarnation.
        epoch: u64,
        ready: bool,
        /// It names this node in its heartbeats.
        receives_us: bool,
        /// Its own; `None`: as this node's.
        pace: Option<Pace>,
    },
    /// A verified peer's MAC address, under its signature: it outranks ARP.
    Address {
        node: NodeName,
        mac: [u8; 6],
    },
    PeerUp {
        node: NodeName,
    },
    /// Neither this node nor another one that it receives receives it.
    PeerDown {
        node: NodeName,
        /// Its speaker had said that it ends.
        left: bool,
    },
    /// For metrics, logs, events: the phase of this node changed.
    Phase(Phase),
    /// For metrics and status: the owner of a VIP as this node knows it changed.
    OwnerChanged {
        vip: Vip,
        owner: Option<Owner>,
    },
    /// A datagram was not taken.
    Rejected {
        reason: Reject,
    },
    /// After `Event::Leave`: nothing is held any more. `all_taken`: every VIP has a new owner.
    HandedOver {
        all_taken: bool,
    },
}

/// How much the machine has done: what its time is proportional to (bench/costs/).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    pub datagrams: u64,
    /// Heartbeats, with the scans of all peers that belong to them.
    pub beats: u64,
    pub decisions: u64,
    /// Peers whose rank was compared with this node's.
    pub compared: u64,
    /// Claims of lists that changed or were sent.
    pub listed: u64,
    /// Peers visited in scans of all peers.
    pub peers: u64,
}

/// The owner of a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub node: NodeName,
    pub term: Term,
}

/// Why this node let a VIP go. The label is the metric label and the log field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LoseReason {
    /// The VIP is no longer desired.
    Undesired,
    /// Another claim won.
    Conflict,
    /// A successor has claimed (leave, not ready, not eligible).
    HandedOver,
    /// No successor came in time, or there is none.
    NoSuccessor,
    /// This node was kept from running for longer than the dead interval.
    Frozen,
    /// The kernel refused this node's entry in `OWN`, or its lease.
    MapWriteFailed,
    /// The link of this node is down.
    NoCarrier,
    /// Fewer than half of the members are received (policy quorum).
    NoQuorum,
    /// The VIP is of a saved view, and no peer with a confirmed view has claimed it.
    SavedView,
}

impl LoseReason {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Undesired => "undesired",
            Self::Conflict => "conflict",
            Self::HandedOver => "handed_over",
            Self::NoSuccessor => "no_successor",
            Self::Frozen => "frozen",
            Self::MapWriteFailed => "map_write_failed",
            Self::NoCarrier => "no_carrier",
            Self::NoQuorum => "no_quorum",
            Self::SavedView => "saved_view",
        }
    }
}

/// The phase of a node. The label is the metric label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Listens until the view is full: no new claims.
    #[default]
    Joining,
    /// Takes part.
    Member,
    /// Was a member and receives no peer any more, or its link is down.
    Isolated,
    /// Hands over, then is gone.
    Leaving,
}

impl Phase {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Member => "member",
            Self::Isolated => "isolated",
            Self::Leaving => "leaving",
        }
    }
}

/// A picture of the machine for metrics and people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub phase: Phase,
    pub ready: bool,
    /// Receives no peer that receives it.
    pub alone: bool,
    pub lease_until: Instant,
    /// What this node holds.
    pub held: BTreeMap<Vip, Term>,
    /// The owner of every desired VIP that has one.
    pub owners: BTreeMap<Vip, Owner>,
    pub peers: Vec<PeerStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    pub node: NodeName,
    pub epoch: u64,
    pub alive: bool,
    /// Alive by the echo of another peer only.
    pub vouched: bool,
    /// It has proved that it is no recording.
    pub verified: bool,
    /// It echoes this node's challenge.
    pub receives_us: bool,
    pub ready: bool,
    pub leaving: bool,
    pub last_received: Instant,
    pub claims: usize,
    pub loss: Loss,
}
