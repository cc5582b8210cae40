//! What a unit of work takes, from a measurement that is kept in bench/costs/ (`make measure-election`).

use std::time::Duration;

use speaker_core::election::Work;

/// The election as it is.
const NOW: &str = include_str!("../../../bench/costs/election.txt");
/// The election of commit f452a5a, whose decisions went over all VIPs and all peers.
const BEFORE: &str = include_str!("../../../bench/costs/election-f452a5a.txt");

/// Nanoseconds each.
#[derive(Clone, Debug)]
pub struct Costs {
    receive: f64,
    send: f64,
    announce: f64,
    map_write: f64,
    lease: f64,
    /// Of the machines beside the election, for each verified advert: fixed, and for each peer.
    received: (f64, f64),
    /// Of a datagram: fixed, and for each 4 bytes.
    open: (f64, f64),
    seal: (f64, f64),
    work: Units,
}

#[derive(Clone, Debug)]
enum Units {
    Now {
        beat: f64,
        scan: f64,
        decision: f64,
        claim: f64,
        comparison: f64,
    },
    /// Of a decision: for each VIP, and for each VIP and peer.
    Before {
        beat: f64,
        scan: f64,
        per_vip: f64,
        per_vip_peer: f64,
    },
}

impl Costs {
    pub fn now() -> Self {
        let file = File(NOW);
        let [beat, scan, decision, claim, comparison] =
            ["beat", "scan", "decision", "claim", "comparison"].map(|name| file.get(name));
        let costs = Self::read(&file, Units::Now { beat, scan, decision, claim, comparison });
        let received = (file.get("received"), file.get("received_per_peer"));
        Self { received, ..costs }
    }

    /// What the machines beside the election take was not measured then: it is not charged.
    pub fn before() -> Self {
        let file = File(BEFORE);
        let [beat, scan, per_vip, per_vip_peer] =
            ["beat", "beat_per_peer", "decision_per_vip", "decision_per_vip_peer"].map(|name| file.get(name));
        Self::read(&file, Units::Before { beat, scan, per_vip, per_vip_peer })
    }

    fn read(file: &File, work: Units) -> Self {
        let get = |name| file.get(name);
        Self {
            receive: get("receive"),
            send: get("send"),
            announce: get("announce"),
            map_write: get("map_write"),
            lease: get("lease"),
            received: (0.0, 0.0),
            open: (get("heartbeat"), get("heartbeat_per_peer")),
            seal: (get("seal"), get("seal_per_peer")),
            work,
        }
    }

    pub fn receive(&self, bytes: usize) -> Duration {
        nanos(self.receive + self.open.0 + self.open.1 * bytes as f64 / 4.0)
    }

    pub fn send(&self, bytes: usize) -> Duration {
        nanos(self.send + self.seal.0 + self.seal.1 * bytes as f64 / 4.0)
    }

    pub fn announce(&self) -> Duration {
        nanos(self.announce)
    }

    pub fn map_write(&self) -> Duration {
        nanos(self.map_write)
    }

    pub fn lease(&self) -> Duration {
        nanos(self.lease)
    }

    /// What liveness, readiness, unicast and unverified do for a verified advert, their ticks included.
    pub fn received(&self, nodes: usize) -> Duration {
        nanos(self.received.0 + self.received.1 * nodes as f64)
    }

    /// What the machine did between two counts of its work.
    pub fn work(&self, before: Work, after: Work, nodes: usize) -> Duration {
        let done = |of: fn(Work) -> u64| (of(after) - of(before)) as f64;
        let beats = done(|work| work.beats);
        nanos(match self.work {
            Units::Now { beat, scan, decision, claim, comparison } => {
                beat * beats
                    + scan * done(|work| work.peers)
                    + decision * done(|work| work.decisions)
                    + claim * done(|work| work.listed)
                    + comparison * done(|work| work.compared)
            }
            Units::Before { beat, scan, .. } => (beat + scan * nodes as f64) * beats,
        })
    }

    /// One decision over all VIPs and all peers; nothing today.
    pub fn whole_decision(&self, vips: usize, nodes: usize) -> Duration {
        match self.work {
            Units::Now { .. } => Duration::ZERO,
            Units::Before { per_vip, per_vip_peer, .. } => nanos((per_vip + per_vip_peer * nodes as f64) * vips as f64),
        }
    }
}

struct File(&'static str);

impl File {
    fn get(&self, name: &str) -> f64 {
        let mut values = self.0.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        values.next().unwrap_or_else(|| panic!("bench/costs: no {name} in the measurement"))
    }
}

fn nanos(nanos: f64) -> Duration {
    Duration::from_nanos(nanos.max(0.0) as u64)
}
