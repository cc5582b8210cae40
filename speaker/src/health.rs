//! Flags that the threads share without waiting: the state behind readiness, liveness, the SpeakerState and some metrics.

mod cause;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use speaker_core::election::PeerStatus;
use speaker_core::time::Instant;
use speaker_core::view::Kind;

use crate::io::clock;
use crate::keys::source::Problem;

pub use cause::{Cause, Check};

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
    /// The programs of other nodes answer, and no advert arrives; or none of some.
    pub adverts_missing: AtomicBool,
    pub some_adverts_missing: AtomicBool,
    /// The election has no place for this node.
    pub beyond_limit: AtomicBool,
    /// Adverts of other nodes arrive, and none of their flow reports.
    pub reports_missing: AtomicBool,
    pub attached: AtomicBool,
    pub synced: AtomicBool,
    pub carrier: AtomicBool,
    /// The election has received a full view (or found itself alone).
    pub joined: AtomicBool,
    /// The newest plan for nftables was refused, or takes long.
    pub nft_failing: AtomicBool,
    /// The kernel refused the last writes to the maps.
    pub maps_failing: AtomicBool,
    /// No rules of kube-proxy, of whichever mode, were in the kernel when the host was surveyed last. False until the first survey.
    pub no_kube_proxy: AtomicBool,
    /// By which kube-proxy in iptables mode accepts forwarded packets; 0 until it was found.
    pub accept_mark: AtomicU32,
    /// The node's conntrack table has little room; packets were dropped because it had none.
    pub conntrack_nearly_full: AtomicBool,
    pub conntrack_full: AtomicBool,
    /// Boot clock, nanoseconds: the last turn of each loop.
    pub election_turned: AtomicU64,
    pub dataplane_turned: AtomicU64,
    pub lease_until: AtomicU64,
    /// VIPs that this node owns, with their terms.
    owned: Mutex<BTreeMap<Ipv4Addr, u64>>,
    /// VIPs of this node that another host of the segment announces as well.
    conflicts: Mutex<BTreeSet<Ipv4Addr>>,
    /// VIPs of the host speaker beside this one.
    of_host_speaker: Mutex<BTreeSet<Ipv4Addr>>,
    /// Kinds of objects that the API server does not let this speaker read.
    refused: Mutex<BTreeSet<Kind>>,
    /// Kinds of which an object cannot be read.
    unreadable: Mutex<BTreeSet<Kind>>,
    /// The host speaker serves this node: no loop turns here.
    pub stands_by: AtomicBool,
    /// And has not run for long.
    pub host_speaker_stopped: AtomicBool,
    /// Somebody wants to know of the peers.
    pub peers_wanted: AtomicBool,
    peers: Mutex<Vec<PeerStatus>>,
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

    pub fn not_alive(&self) -> Vec<Cause> {
        let mut causes = Vec::new();
        if self.lock_no_keys().is_some() || self.stands_by.load(Ordering::Relaxed) {
            return causes;
        }
        if stalled(&self.election_turned) {
            causes.push(Cause::ElectionStalled);
        }
        if stalled(&self.dataplane_turned) {
            causes.push(Cause::DataplaneStalled);
        }
        causes
    }

    pub fn not_ready(&self) -> Vec<Cause> {
        if self.stands_by.load(Ordering::Relaxed) {
            let stopped = self.host_speaker_stopped.load(Ordering::Relaxed);
            return stopped.then_some(Cause::HostSpeakerStopped).into_iter().collect();
        }
        if let Some(problem) = *self.lock_no_keys() {
            return vec![Cause::Keys(problem)];
        }
        let mut causes = self.not_alive();
        if self.held_back.load(Ordering::Relaxed) || self.outnumbered.load(Ordering::Relaxed) {
            causes.push(Cause::PeersUnverified);
        }
        if self.beyond_limit.load(Ordering::Relaxed) {
            causes.push(Cause::TooManyPeers);
        }
        if self.adverts_missing.load(Ordering::Relaxed) {
            causes.push(Cause::AdvertsMissing);
        }
        let flags = [
            (&self.attached, Cause::NotAttached),
            (&self.synced, Cause::NotSynced),
            (&self.carrier, Cause::NoCarrier),
            (&self.joined, Cause::Joining),
        ];
        let faults = [(&self.nft_failing, Cause::NftFailing), (&self.maps_failing, Cause::MapsFailing)];
        causes.extend(faults.iter().filter(|(fault, _)| fault.load(Ordering::Relaxed)).map(|(_, cause)| *cause));
        causes.extend(flags.iter().filter(|(flag, _)| !flag.load(Ordering::Relaxed)).map(|(_, cause)| *cause));
        causes
    }

    /// Notes of a ready node.
    pub fn notes(&self) -> Vec<Cause> {
        let flags = [
            (self.stands_by.load(Ordering::Relaxed), Cause::HostSpeaker),
            (self.identity_differs.load(Ordering::Relaxed), Cause::KeysIdentityDiffers),
            (self.unverified.load(Ordering::Relaxed) > 0, Cause::PeersUnverified),
            (self.some_adverts_missing.load(Ordering::Relaxed), Cause::AdvertsMissing),
            (self.reports_missing.load(Ordering::Relaxed), Cause::ReportsMissing),
            (!lock_kinds(&self.refused).is_empty(), Cause::RightsMissing),
            (!lock_kinds(&self.unreadable).is_empty(), Cause::ObjectsUnreadable),
            (!self.lock_conflicts().is_empty(), Cause::AddressConflict),
            (self.conntrack_full.load(Ordering::Relaxed), Cause::ConntrackFull),
            (self.conntrack_nearly_full.load(Ordering::Relaxed), Cause::ConntrackNearlyFull),
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

    pub fn set_conflicts(&self, vips: BTreeSet<Ipv4Addr>) {
        *self.lock_conflicts() = vips;
    }

    pub fn in_conflict(&self, vip: Ipv4Addr) -> bool {
        self.lock_conflicts().contains(&vip)
    }

    pub fn set_of_host_speaker(&self, vips: BTreeSet<Ipv4Addr>) {
        *self.lock_of_host_speaker() = vips;
    }

    pub fn of_host_speaker(&self) -> BTreeSet<Ipv4Addr> {
        self.lock_of_host_speaker().clone()
    }

    fn lock_of_host_speaker(&self) -> std::sync::MutexGuard<'_, BTreeSet<Ipv4Addr>> {
        self.of_host_speaker.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn lock_conflicts(&self) -> std::sync::MutexGuard<'_, BTreeSet<Ipv4Addr>> {
        self.conflicts.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn set_refused(&self, kind: Kind, refused: bool) {
        set(&mut lock_kinds(&self.refused), kind, refused);
    }

    pub fn set_unreadable(&self, kind: Kind, unreadable: bool) {
        set(&mut lock_kinds(&self.unreadable), kind, unreadable);
    }

    /// As of the last second, if they are wanted.
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.peers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    pub fn set_peers(&self, peers: Vec<PeerStatus>) {
        *self.peers.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = peers;
    }

    fn lock_no_keys(&self) -> std::sync::MutexGuard<'_, Option<Problem>> {
        self.no_keys.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn lock_owned(&self) -> std::sync::MutexGuard<'_, BTreeMap<Ipv4Addr, u64>> {
        // A panic while it was held cannot have left it half changed: every change is one call.
        self.owned.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn lock_kinds(kinds: &Mutex<BTreeSet<Kind>>) -> std::sync::MutexGuard<'_, BTreeSet<Kind>> {
    kinds.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn set(kinds: &mut BTreeSet<Kind>, kind: Kind, is_in: bool) {
    if is_in {
        kinds.insert(kind);
    } else {
        kinds.remove(&kind);
    }
}

pub fn turned(at: &AtomicU64, now: Instant) {
    at.store(now.as_nanos(), Ordering::Relaxed);
}

fn stalled(turned: &AtomicU64) -> bool {
    let age = clock::now().as_nanos().saturating_sub(turned.load(Ordering::Relaxed));
    Duration::from_nanos(age) > LOOP_STALLED
}
