//! What if another host of the segment announces a VIP that this node owns?
//!
//! Read first: RFC 5227 section 2.4 (address conflict detection). Nodes of this cluster settle it by their adverts (`election`, R5); here are
//! the others: a host that has the address as its own, and a node of another cluster, whose pool overlaps.
//!
//! Against a host the owner stays, and announces the VIP again (RFC 5227 section 2.4 (c)). Of two clusters one yields, and both come to the
//! same result, because both compare the same [`Claim`]: an owner of more than [`SETTLED`] stays against a new one, else the lower cluster
//! number. What is compared only grows while a node owns the VIP, so that the two cannot both yield. The owner that yields stays the elected
//! one: no other node of its cluster claims; it is silent, concedes to the other one alone and probes it until it has gone.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::machine::Machine;
use crate::name::{Term, Vip};
use crate::time::{Duration, Instant};

/// An owner for so long is not a new one.
pub const SETTLED: Duration = Duration::from_secs(2);
/// Between two announcements against another cluster, and against a host (DEFEND_INTERVAL of RFC 5227).
const AGAINST_CLUSTER: Duration = Duration::from_millis(100);
const AGAINST_HOST: Duration = Duration::from_secs(10);
/// Between two probes of an owner that has yielded, and of one that stays.
const PROBE_YIELDED: Duration = Duration::from_secs(1);
const PROBE_KEPT: Duration = Duration::from_secs(5);
/// From the first advert of another cluster to the announcements of the one that may have to yield.
const HEARD_BEFORE: Duration = Duration::from_millis(300);
/// Between two probes after answers to announcements.
const PROBE_ANSWERED: Duration = Duration::from_secs(1);
/// So many probes without an answer: the other has gone.
const UNANSWERED: u32 = 3;
/// Probes of one turn; the rest is due at once.
const MAX_PER_TURN: usize = 64;

/// What an announcement of ours says of its sender, in the target hardware address of its request form, which RFC 5227 leaves unused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    pub state: Owner,
    /// 16 bits of the cluster id.
    pub cluster: u16,
}

/// What the sender of a claim is. The higher one keeps a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// It has yielded, and says so to the other one alone.
    Silent,
    New,
    /// It has owned the VIP for [`SETTLED`].
    Settled,
}

impl Owner {
    const ALL: [Self; 3] = [Self::Silent, Self::New, Self::Settled];

    const fn letter(self) -> u8 {
        match self {
            Self::Silent => b'S',
            Self::New => b'N',
            Self::Settled => b'O',
        }
    }
}

impl Claim {
    /// As an Ethernet address: locally administered, "Sh", a letter for the state, the cluster.
    pub const fn bytes(self) -> [u8; 6] {
        let [high, low] = self.cluster.to_be_bytes();
        [0x02, 0x53, 0x68, self.state.letter(), high, low]
    }

    /// `None`: not an announcement of a speaker of this version or later.
    pub fn of(bytes: [u8; 6]) -> Option<Self> {
        let [0x02, 0x53, 0x68, letter, high, low] = bytes else { return None };
        let state = Owner::ALL.into_iter().find(|state| state.letter() == letter)?;
        Some(Self { state, cluster: u16::from_be_bytes([high, low]) })
    }

    /// Of two clusters that claim one VIP this one keeps it.
    fn outranks(self, other: Self) -> bool {
        (self.state, other.cluster) > (other.state, self.cluster)
    }
}

/// The cluster number that a claim has, of the cluster's id.
pub const fn number(cluster: u64) -> u16 {
    let [a, b, c, d, e, f, g, h] = cluster.to_be_bytes();
    u16::from_be_bytes([a ^ c ^ e ^ g, b ^ d ^ f ^ h])
}

/// Of all VIPs that this node owns.
#[derive(Clone, Debug)]
pub struct Conflicts {
    cluster: u16,
    owned: BTreeMap<Vip, Owned>,
    conflicts: BTreeMap<Vip, Conflict>,
}

#[derive(Clone, Copy, Debug)]
struct Owned {
    term: Term,
    since: Instant,
    /// The last probe on account of [`Event::Answered`].
    asked: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Conflict {
    mac: [u8; 6],
    yielded: bool,
    defended: Instant,
    probe_at: Instant,
    unanswered: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Acquired {
        vip: Vip,
        term: Term,
    },
    Released(Vip),
    /// An ARP frame with the VIP as sender, of a host that is no node of this cluster.
    Heard {
        vip: Vip,
        mac: [u8; 6],
        claim: Option<Claim>,
    },
    /// Such a host has answered our announcement. One that has the VIP does, and so does proxy ARP of Linux for what it routes; a probe,
    /// which comes from nobody, tells them apart.
    Answered(Vip),
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Announce the VIP again.
    Defend(Vip),
    /// From now on this node neither answers for the VIP nor announces it.
    Yield {
        vip: Vip,
        term: Term,
    },
    /// It does again.
    Resume {
        vip: Vip,
        term: Term,
    },
    /// Ask whether the other host still has the address (RFC 5227 section 2.1.1).
    Probe(Vip),
    /// Send the claim of this node, which has yielded, to the other one alone: nobody else may take it for an announcement.
    Concede {
        vip: Vip,
        to: [u8; 6],
    },
    /// A conflict has begun, or has another result. `cluster`: the other is a node of another cluster.
    Began {
        vip: Vip,
        mac: [u8; 6],
        cluster: bool,
        yielded: bool,
    },
    Ended {
        vip: Vip,
        mac: [u8; 6],
    },
}

impl Conflicts {
    /// `cluster`: the cluster's id.
    pub fn new(cluster: u64) -> Self {
        Self { cluster: number(cluster), owned: BTreeMap::new(), conflicts: BTreeMap::new() }
    }

    /// What an announcement of the VIP says.
    pub fn claim(&self, vip: Vip, now: Instant) -> Claim {
        let settled = self.owned.get(&vip).is_some_and(|owned| now.since(owned.since) >= SETTLED);
        let state = match self.conflicts.get(&vip).is_some_and(|known| known.yielded) {
            true => Owner::Silent,
            false if settled => Owner::Settled,
            false => Owner::New,
        };
        Claim { state, cluster: self.cluster }
    }

    /// Of two clusters that meet the one with the lower number keeps what both have owned for long: it announces at once, and the other one,
    /// which may have to yield, waits until it has heard that. So nobody takes an announcement that is about to be withdrawn.
    pub fn waits_for(&self, other: u64) -> Duration {
        if number(other) < self.cluster { HEARD_BEFORE } else { Duration::ZERO }
    }

    /// VIPs of this node that another host announces as well.
    pub fn vips(&self) -> impl Iterator<Item = Vip> {
        self.conflicts.keys().copied()
    }

    /// The lowest and the highest VIP of this node.
    pub fn range(&self) -> Option<(Vip, Vip)> {
        Some((*self.owned.first_key_value()?.0, *self.owned.last_key_value()?.0))
    }

    fn heard(&mut self, vip: Vip, mac: [u8; 6], claim: Option<Claim>, now: Instant, actions: &mut Vec<Action>) {
        let Some(Owned { term, .. }) = self.owned.get(&vip).copied() else { return };
        // A node of this cluster whose address is not known yet.
        if claim.is_some_and(|claim| claim.cluster == self.cluster) {
            return;
        }
        let yields = claim.is_some_and(|claim| claim.outranks(self.claim(vip, now)));
        let concedes = claim.is_some_and(|claim| claim.state == Owner::Silent);
        let known = self.conflicts.get(&vip).copied();
        if let Some(known) = known.filter(|known| known.yielded) {
            // A proxy of the segment may answer our probes as well. Another one that has yielded does not.
            if !concedes && (known.mac == mac || claim.is_some()) {
                self.conflicts.insert(vip, Conflict { mac, unanswered: 0, ..known });
            }
            return;
        }
        let pause = if claim.is_some() { AGAINST_CLUSTER } else { AGAINST_HOST };
        let defends = !yields && known.is_none_or(|known| !concedes && known.defended + pause <= now);
        let next = if yields { PROBE_YIELDED } else { PROBE_KEPT };
        let conflict = Conflict {
            mac,
            yielded: yields,
            defended: if defends { now } else { known.map_or(now, |known| known.defended) },
            probe_at: known.filter(|_| !yields).map_or(now + next, |known| known.probe_at),
            unanswered: 0,
        };
        self.conflicts.insert(vip, conflict);
        if yields {
            actions.extend([Action::Yield { vip, term }, Action::Concede { vip, to: mac }]);
        } else if defends {
            actions.push(Action::Defend(vip));
        }
        if known.is_none() || yields {
            actions.push(Action::Began { vip, mac, cluster: claim.is_some(), yielded: yields });
        }
    }

    fn answered(&mut self, vip: Vip, now: Instant, actions: &mut Vec<Action>) {
        let Some(owned) = self.owned.get_mut(&vip) else { return };
        // In a conflict it is probed anyway.
        if !self.conflicts.contains_key(&vip) && owned.asked.is_none_or(|asked| asked + PROBE_ANSWERED <= now) {
            owned.asked = Some(now);
            actions.push(Action::Probe(vip));
        }
    }

    fn end(&mut self, vip: Vip, actions: &mut Vec<Action>) {
        if let Some(conflict) = self.conflicts.remove(&vip) {
            actions.push(Action::Ended { vip, mac: conflict.mac });
        }
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let due: Vec<Vip> = self.conflicts.iter().filter(|(_, one)| one.probe_at <= now).map(|(vip, _)| *vip).collect();
        for vip in due.into_iter().take(MAX_PER_TURN) {
            let Some(conflict) = self.conflicts.get_mut(&vip) else { continue };
            if conflict.unanswered < UNANSWERED {
                conflict.unanswered += 1;
                conflict.probe_at = now + if conflict.yielded { PROBE_YIELDED } else { PROBE_KEPT };
                actions.push(Action::Probe(vip));
                // So the other one names the conflict for as long as there is one.
                if conflict.yielded {
                    actions.push(Action::Concede { vip, to: conflict.mac });
                }
                continue;
            }
            let yielded = conflict.yielded;
            self.end(vip, actions);
            if let Some(owned) = self.owned.get_mut(&vip).filter(|_| yielded) {
                owned.since = now;
                actions.push(Action::Resume { vip, term: owned.term });
            }
        }
    }
}

impl Machine for Conflicts {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Acquired { vip, term } => {
                self.owned.insert(vip, Owned { term, since: now, asked: None });
            }
            Event::Released(vip) => {
                self.owned.remove(&vip);
                self.end(vip, actions);
            }
            Event::Answered(vip) => self.answered(vip, now, actions),
            Event::Heard { vip, mac, claim } => self.heard(vip, mac, claim, now, actions),
            Event::Tick => self.tick(now, actions),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.conflicts.values().map(|conflict| conflict.probe_at).min()
    }
}

#[cfg(test)]
mod tests;
