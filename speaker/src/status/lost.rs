//! Owners that are gone: a status that names a node which, by this node's election, owns the VIP no more.
//!
//! An owner takes its name off when it lets go. One that lost power cannot, and where no other node may own the VIP none writes its own
//! name over it. So any speaker takes it off after a while. A speaker that is wrong (it receives no adverts of a living owner) does so
//! once: the owner writes its name again, and the election has to receive that owner before the speaker judges the VIP anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sheave_api::NoOwner;
use speaker_core::time::Instant;

/// Without an owner for so long: a hand-over takes a second, the restart of a speaker a few.
const AFTER: Duration = Duration::from_secs(10);
/// Each speaker waits for a time of its own up to this long, so that the first spares the others the write.
const SPREAD_MS: u64 = 5_000;
/// Between looks.
pub const CHECK: Duration = Duration::from_secs(2);

/// What the election of this node knows: written where its reports arrive, read by the writer of statuses.
#[derive(Default)]
pub struct Elected(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// VIPs that it elects owners of.
    followed: BTreeSet<Ipv4Addr>,
    /// VIPs with an owner, on whichever node.
    owned: BTreeSet<Ipv4Addr>,
    /// VIPs that no node may own, and why.
    barred: BTreeMap<Ipv4Addr, NoOwner>,
}

impl Elected {
    pub fn follow(&self, vips: BTreeSet<Ipv4Addr>) {
        self.lock().followed = vips;
    }

    /// To be called before the election learns of it.
    pub fn bar(&self, vips: BTreeMap<Ipv4Addr, NoOwner>) {
        self.lock().barred = vips;
    }

    pub fn barred(&self, vip: Ipv4Addr) -> Option<NoOwner> {
        self.lock().barred.get(&vip).copied()
    }

    pub fn set_owned(&self, vip: Ipv4Addr, owned: bool) {
        let mut known = self.lock();
        if owned {
            known.owned.insert(vip)
        } else {
            known.owned.remove(&vip)
        };
    }

    fn state(&self, vip: Ipv4Addr) -> State {
        let known = self.lock();
        match (known.owned.contains(&vip), known.followed.contains(&vip)) {
            (true, _) => State::Owned,
            (false, true) => State::Vacant,
            (false, false) => State::Unknown,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Owned,
    Vacant,
    /// This node does not follow it: its view is another one.
    Unknown,
}

/// Which statuses name a node that is gone.
pub struct Lost {
    node: String,
    after: Duration,
    /// The node that the status of a VIP names, if it is another one.
    named: BTreeMap<Ipv4Addr, String>,
    vacant_since: BTreeMap<Ipv4Addr, Instant>,
    judged: BTreeSet<Ipv4Addr>,
}

impl Lost {
    pub fn new(node: &str) -> Self {
        let hash = node
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let after = AFTER + Duration::from_millis((hash >> 32) % SPREAD_MS);
        let node = node.to_owned();
        Self { node, after, named: BTreeMap::new(), vacant_since: BTreeMap::new(), judged: BTreeSet::new() }
    }

    /// Owners that statuses name now.
    pub fn seen(&mut self, seen: &BTreeMap<Ipv4Addr, Option<String>>) {
        for (vip, owner) in seen {
            match owner.as_ref().filter(|owner| **owner != self.node) {
                Some(owner) => drop(self.named.insert(*vip, owner.clone())),
                None => drop(self.named.remove(vip)),
            }
        }
    }

    /// VIPs whose status is to name no node any more, with the name that it has. `joined`: this node's election has received what there is.
    pub fn due(&mut self, elected: &Elected, joined: bool, now: Instant) -> BTreeMap<Ipv4Addr, String> {
        let mut due = BTreeMap::new();
        let named = &self.named;
        self.vacant_since.retain(|vip, _| joined && named.contains_key(vip));
        for (vip, owner) in named.iter().filter(|_| joined) {
            match elected.state(*vip) {
                State::Vacant => {
                    let since = *self.vacant_since.entry(*vip).or_insert(now);
                    if now.since(since) >= self.after && self.judged.insert(*vip) {
                        due.insert(*vip, owner.clone());
                    }
                }
                State::Owned => {
                    self.vacant_since.remove(vip);
                    self.judged.remove(vip);
                }
                State::Unknown => drop(self.vacant_since.remove(vip)),
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(1_000_000 + 1000 * seconds)
    }

    fn names(owner: Option<&str>) -> BTreeMap<Ipv4Addr, Option<String>> {
        [(VIP, owner.map(String::from))].into()
    }

    fn vacant() -> (Lost, Elected) {
        let (mut lost, elected) = (Lost::new("us"), Elected::default());
        elected.follow([VIP].into());
        lost.seen(&names(Some("gone")));
        (lost, elected)
    }

    #[test]
    fn a_name_is_taken_off_once_and_after_a_while() {
        let (mut lost, elected) = vacant();
        assert!(lost.due(&elected, true, at(0)).is_empty() && lost.due(&elected, true, at(9)).is_empty());
        assert_eq!(lost.due(&elected, true, at(15)), [(VIP, "gone".into())].into());
        // It lives, and writes again; this node's election still knows nothing of it.
        lost.seen(&names(None));
        lost.seen(&names(Some("gone")));
        assert!((16..200).all(|second| lost.due(&elected, true, at(second)).is_empty()), "once");
        // It was received, and is gone again.
        elected.set_owned(VIP, true);
        assert!(lost.due(&elected, true, at(200)).is_empty());
        elected.set_owned(VIP, false);
        assert!(lost.due(&elected, true, at(201)).is_empty());
        assert_eq!(lost.due(&elected, true, at(216)).len(), 1);
    }

    #[test]
    fn a_hand_over_is_no_loss() {
        let (mut lost, elected) = vacant();
        lost.due(&elected, true, at(0));
        elected.set_owned(VIP, true);
        lost.due(&elected, true, at(9));
        elected.set_owned(VIP, false);
        assert!(lost.due(&elected, true, at(18)).is_empty(), "it counts from the last owner on");
    }

    #[test]
    fn a_node_that_cannot_know_writes_nothing() {
        let (mut lost, elected) = vacant();
        lost.due(&elected, true, at(0));
        assert!(lost.due(&elected, false, at(15)).is_empty());
        assert!(lost.due(&elected, true, at(16)).is_empty(), "from then on");
        elected.follow(BTreeSet::new());
        assert!(lost.due(&elected, true, at(60)).is_empty(), "it does not follow the VIP");
        let mut ours = Lost::new("gone");
        ours.seen(&names(Some("gone")));
        elected.follow([VIP].into());
        ours.due(&elected, true, at(0));
        assert!(ours.due(&elected, true, at(60)).is_empty(), "its own name is another matter");
    }

    #[test]
    fn speakers_wait_for_times_of_their_own() {
        let times: BTreeSet<Duration> = (0..20).map(|node| Lost::new(&format!("node{node}")).after).collect();
        assert!(times.len() > 15 && times.iter().all(|time| (10..15).contains(&time.as_secs())), "{times:?}");
    }
}
