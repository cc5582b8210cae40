//! What the threads tell each other without waiting: the state behind readiness, liveness and some metrics.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use speaker_core::time::Instant;

use crate::io::clock;

/// A loop that has not turned for this long is not alive.
const LOOP_STALLED: Duration = Duration::from_secs(5);

#[derive(Default)]
pub struct Shared {
    pub attached: AtomicBool,
    pub synced: AtomicBool,
    pub carrier: AtomicBool,
    /// The election has heard a full view (or found itself alone).
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

impl Shared {
    pub fn not_alive(&self) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        if stalled(&self.election_turned) {
            reasons.push("election_stalled");
        }
        if stalled(&self.dataplane_turned) {
            reasons.push("dataplane_stalled");
        }
        reasons
    }

    pub fn not_ready(&self) -> Vec<&'static str> {
        let mut reasons = self.not_alive();
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

    /// Time until the lease in the kernel ends; zero when it has.
    pub fn lease_remaining(&self) -> Duration {
        let until = self.lease_until.load(Ordering::Relaxed);
        Duration::from_nanos(until.saturating_sub(clock::now().as_nanos()))
    }

    pub fn owned(&self) -> BTreeMap<Ipv4Addr, u64> {
        self.lock_owned().clone()
    }

    pub fn own(&self, vip: Ipv4Addr, term: u64) {
        self.lock_owned().insert(vip, term);
    }

    pub fn disown(&self, vip: Ipv4Addr) {
        self.lock_owned().remove(&vip);
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
