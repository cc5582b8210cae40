//! Flags that the threads share without waiting: the state behind readiness, liveness and some metrics.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use speaker_core::time::Instant;

use crate::io::clock;
use crate::keys::IDENTITY_DIFFERS;
use crate::keys::source::Problem;

/// A loop that has not turned for this long is not alive.
const LOOP_STALLED: Duration = Duration::from_secs(5);

#[derive(Default)]
pub struct HealthFlags {
    /// Why there are no keys; `None` once there are.
    no_keys: Mutex<Option<Problem>>,
    /// The Secret names another cluster id or flow key than this node works with.
    pub identity_differs: AtomicBool,
    /// Nodes of the cluster whose adverts cannot be verified.
    pub unverified: AtomicU64,
    /// For the same reason this node, which is new, owns nothing.
    pub held_back: AtomicBool,
    /// This node can verify fewer nodes than it cannot.
    pub outnumbered: AtomicBool,
    /// The programs of other nodes answer, and no advert arrives.
    pub adverts_missing: AtomicBool,
    pub attached: AtomicBool,
    pub synced: AtomicBool,
    pub carrier: AtomicBool,
    /// The election has received a full view (or found itself alone).
    pub joined: AtomicBool,
    /// The newest plan for nftables was refused, or takes long.
    pub nft_failing: AtomicBool,
    /// The kernel refused the last writes to the maps.
    pub maps_failing: AtomicBool,
    /// Boot clock, nanoseconds: the last turn of each loop.
    pub election_turned: AtomicU64,
    pub dataplane_turned: AtomicU64,
    pub lease_until: AtomicU64,
    /// VIPs that this node owns, with their terms.
    owned: Mutex<BTreeMap<Ipv4Addr, u64>>,
}

impl HealthFlags {
    pub fn new(now: Instant) -> Self {
        let health = Self::default();
        health.begin(now);
        health
    }

    /// The loops are about to turn.
    pub fn begin(&self, now: Instant) {
        turned(&self.election_turned, now);
        turned(&self.dataplane_turned, now);
    }

    /// Before the speaker has keys, no loop turns.
    pub fn wait_for_keys(&self, problem: Option<Problem>) {
        *self.lock_no_keys() = problem;
    }

    pub fn not_alive(&self) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        if self.lock_no_keys().is_some() {
            return reasons;
        }
        if stalled(&self.election_turned) {
            reasons.push("election_stalled");
        }
        if stalled(&self.dataplane_turned) {
            reasons.push("dataplane_stalled");
        }
        reasons
    }

    pub fn not_ready(&self) -> Vec<&'static str> {
        if let Some(problem) = *self.lock_no_keys() {
            return vec![problem.label()];
        }
        let mut reasons = self.not_alive();
        if self.held_back.load(Ordering::Relaxed) || self.outnumbered.load(Ordering::Relaxed) {
            reasons.push("peers_unverified");
        }
        if self.adverts_missing.load(Ordering::Relaxed) {
            reasons.push("adverts_missing");
        }
        let flags = [
            (&self.attached, "not_attached"),
            (&self.synced, "not_synced"),
            (&self.carrier, "no_carrier"),
            (&self.joined, "joining"),
        ];
        let faults = [(&self.nft_failing, "nft_failing"), (&self.maps_failing, "maps_failing")];
        reasons.extend(faults.iter().filter(|(fault, _)| fault.load(Ordering::Relaxed)).map(|(_, reason)| *reason));
        reasons.extend(flags.iter().filter(|(flag, _)| !flag.load(Ordering::Relaxed)).map(|(_, reason)| *reason));
        reasons
    }

    /// Notes of a ready node.
    pub fn notes(&self) -> Vec<&'static str> {
        let flags = [
            (self.identity_differs.load(Ordering::Relaxed), IDENTITY_DIFFERS),
            (self.unverified.load(Ordering::Relaxed) > 0, "peers_unverified"),
        ];
        flags.into_iter().filter(|(set, _)| *set).map(|(_, note)| note).collect()
    }

    /// Time until the lease in the kernel ends; zero when it has.
    pub fn lease_remaining(&self) -> Duration {
        let until = self.lease_until.load(Ordering::Relaxed);
        Duration::from_nanos(until.saturating_sub(clock::now().as_nanos()))
    }

    pub fn owned(&self) -> BTreeMap<Ipv4Addr, u64> {
        self.lock_owned().clone()
    }

    pub fn owns(&self, vip: Ipv4Addr) -> bool {
        self.lock_owned().contains_key(&vip)
    }

    pub fn own(&self, vip: Ipv4Addr, term: u64) {
        self.lock_owned().insert(vip, term);
    }

    pub fn disown(&self, vip: Ipv4Addr) {
        self.lock_owned().remove(&vip);
    }

    fn lock_no_keys(&self) -> std::sync::MutexGuard<'_, Option<Problem>> {
        self.no_keys.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn lock_owned(&self) -> std::sync::MutexGuard<'_, BTreeMap<Ipv4Addr, u64>> {
        // A panic while it was held cannot have left it half changed: every change is one call.
        self.owned.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

pub fn turned(at: &AtomicU64, now: Instant) {
    at.store(now.as_nanos(), Ordering::Relaxed);
}

fn stalled(turned: &AtomicU64) -> bool {
    let age = clock::now().as_nanos().saturating_sub(turned.load(Ordering::Relaxed));
    Duration::from_nanos(age) > LOOP_STALLED
}
