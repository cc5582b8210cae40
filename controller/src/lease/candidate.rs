//! Pure: one replica's view of the Lease record, and what it should do next. Expiry is judged by our own monotonic clock
//! since the record last *changed* for us: clocks of different nodes are never compared.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::args::LeaseConfig;
use crate::view::version;

/// A replica that competes.
#[derive(Debug)]
pub struct Candidate {
    identity: String,
    config: LeaseConfig,
    /// The record as last seen, and when it changed for us.
    seen: Option<(Lease, Instant)>,
    /// The highest version of the record, also of one that is gone.
    newest: u64,
    /// While we lead: when the last successful renewal was started.
    renewed: Option<Instant>,
    /// Whether this replica may take the lead.
    competes: bool,
}

/// What to do next.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Write this record (create it if it has no resourceVersion).
    Write(Box<Lease>),
    /// Nothing before then, unless the record changes.
    Wait(Instant),
}

/// What the API server keeps is older than what it had kept before: etcd was restored from a backup. Nothing that is known here can be
/// compared with it, and a watch that goes on from a version of the future shows nothing until the versions have caught up.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "StoreWentBack: the Lease has resourceVersion {read} and had {known}: etcd was restored from a backup; this replica starts anew"
)]
pub struct StoreWentBack {
    known: u64,
    read: u64,
}

impl Candidate {
    pub fn new(identity: String, config: LeaseConfig) -> Self {
        Candidate { identity, config, seen: None, newest: 0, renewed: None, competes: true }
    }

    /// Whether this replica may take the lead. One that could not decide anything would keep it from another that can. It keeps what it
    /// has.
    pub fn compete(&mut self, competes: bool) {
        self.competes = competes;
    }

    /// The record was read or has changed.
    pub fn observe(&mut self, lease: Lease, now: Instant) {
        let new = version(lease.resource_version());
        if self.seen.as_ref().is_some_and(|(known, _)| version(known.resource_version()) >= new) {
            return;
        }
        if holder(&lease) != Some(self.identity.as_str()) {
            self.renewed = None;
        }
        self.newest = self.newest.max(new);
        self.seen = Some((lease, now));
    }

    /// The record was read from the store itself, not from a watch.
    pub fn read(&mut self, lease: Lease, now: Instant) -> Result<(), StoreWentBack> {
        self.not_from_before(&lease)?;
        self.observe(lease, now);
        Ok(())
    }

    /// Versions of the store only grow. An older one than we know means that it was put back to an earlier state.
    fn not_from_before(&self, lease: &Lease) -> Result<(), StoreWentBack> {
        let read = version(lease.resource_version());
        if read < self.newest { Err(StoreWentBack { known: self.newest, read }) } else { Ok(()) }
    }

    /// The record does not exist.
    pub fn observe_absence(&mut self) {
        self.seen = None;
        self.renewed = None;
    }

    /// Our write, started at `started`, has succeeded.
    pub fn written(&mut self, lease: Lease, started: Instant, now: Instant) -> Result<(), StoreWentBack> {
        self.not_from_before(&lease)?;
        self.observe(lease, now);
        if self.seen.as_ref().is_some_and(|(lease, _)| holder(lease) == Some(self.identity.as_str())) {
            self.renewed = Some(started);
        }
        Ok(())
    }

    /// Since when we lead for sure (the start of the last renewal); None once nothing more may be written.
    pub fn leading(&mut self, now: Instant) -> Option<Instant> {
        if self.renewed.is_some_and(|at| now >= at + self.config.write_until) {
            // From here on we are a follower that must wait like any other.
            self.renewed = None;
        }
        self.renewed
    }

    /// How often the lead has changed hands: separates one time of leading from another.
    pub fn term(&self) -> i32 {
        let spec = self.seen.as_ref().and_then(|(lease, _)| lease.spec.as_ref());
        spec.and_then(|spec| spec.lease_transitions).unwrap_or_default()
    }

    /// What to do at `now`; `wall` goes into the record for people to read.
    pub fn step(&mut self, now: Instant, wall: Timestamp) -> Step {
        if let Some(renewed) = self.leading(now) {
            let next = renewed + self.config.renew;
            return if now >= next { Step::Write(Box::new(self.record(wall, false))) } else { Step::Wait(next) };
        }
        if !self.competes {
            return Step::Wait(now + self.config.renew);
        }
        let Some((lease, changed)) = &self.seen else {
            return Step::Write(Box::new(self.record(wall, true)));
        };
        let expires = *changed + self.expiry(lease);
        if holder(lease).is_none() || now >= expires {
            Step::Write(Box::new(self.record(wall, true)))
        } else {
            Step::Wait(expires)
        }
    }

    /// The record that gives the lead up, if we have it.
    pub fn release(&mut self, now: Instant, wall: Timestamp) -> Option<Lease> {
        self.leading(now)?;
        self.renewed = None;
        let mut lease = self.record(wall, false);
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        Some(lease)
    }

    /// The duration in the Lease; an unreasonable one is cut.
    fn expiry(&self, lease: &Lease) -> Duration {
        let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        match seconds.and_then(|s| u64::try_from(s).ok()) {
            Some(seconds @ 1..=600) => Duration::from_secs(seconds),
            _ => self.config.duration,
        }
    }

    fn record(&self, wall: Timestamp, acquires: bool) -> Lease {
        let mut lease = self.seen.as_ref().map(|(lease, _)| lease.clone()).unwrap_or_default();
        lease.metadata.managed_fields = None;
        let before = lease.spec.take().unwrap_or_default();
        let transitions = before.lease_transitions.unwrap_or(0).saturating_add(acquires.into());
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.config.duration.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: if acquires { Some(MicroTime(wall)) } else { before.acquire_time },
            renew_time: Some(MicroTime(wall)),
            lease_transitions: Some(transitions),
            ..before
        });
        lease
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: Timestamp = Timestamp::UNIX_EPOCH;

    fn config() -> LeaseConfig {
        let s = Duration::from_secs;
        LeaseConfig { name: "l".into(), duration: s(10), write_until: s(6), request: s(3), renew: s(2) }
    }

    /// The API server: one record, compare-and-swap by version.
    struct Server(Option<Lease>, u64);

    impl Server {
        fn write(&mut self, mut lease: Lease) -> Option<Lease> {
            if lease.resource_version() != self.0.as_ref().and_then(|l| l.resource_version()) {
                return None;
            }
            self.1 += 1;
            lease.metadata.resource_version = Some(self.1.to_string());
            self.0 = Some(lease.clone());
            Some(lease)
        }
    }

    /// Lets a candidate take its next step; true if it wrote.
    fn turn(candidate: &mut Candidate, server: &mut Server, now: Instant) -> bool {
        let Step::Write(lease) = candidate.step(now, WALL) else { return false };
        match server.write(*lease) {
            Some(lease) => {
                candidate.written(lease, now, now).unwrap();
                true
            }
            None => {
                candidate.observe(server.0.clone().unwrap(), now);
                false
            }
        }
    }

    #[test]
    fn the_first_leads_and_the_second_waits_for_silence() {
        let (start, mut server) = (Instant::now(), Server(None, 0));
        let at = |s: u64| start + Duration::from_secs(s);
        let (mut a, mut b) = (Candidate::new("a".into(), config()), Candidate::new("b".into(), config()));
        assert!(turn(&mut a, &mut server, at(0)) && !turn(&mut b, &mut server, at(0)));
        assert!(turn(&mut a, &mut server, at(2)), "renews");
        b.observe(server.0.clone().unwrap(), at(3));
        assert_eq!(b.step(at(4), WALL), Step::Wait(at(13)), "ten seconds after the last change that b has seen");
        assert!(turn(&mut b, &mut server, at(13)));
        assert_eq!(a.leading(at(8)), None, "a has stopped long before");
    }

    #[test]
    fn a_replica_that_has_not_read_everything_leaves_the_lead_to_another() {
        let (start, mut server) = (Instant::now(), Server(None, 0));
        let at = |s: u64| start + Duration::from_secs(s);
        let (mut a, mut b) = (Candidate::new("a".into(), config()), Candidate::new("b".into(), config()));
        a.compete(false);
        assert!(!turn(&mut a, &mut server, at(0)), "nobody has it");
        assert!(turn(&mut b, &mut server, at(0)));
        a.observe(server.0.clone().unwrap(), at(0));
        assert!(!turn(&mut a, &mut server, at(60)), "nobody renews it");
        a.compete(true);
        assert!(turn(&mut a, &mut server, at(60)));
        a.compete(false);
        assert!(turn(&mut a, &mut server, at(62)), "it keeps what it has");
    }

    #[test]
    fn a_store_that_went_back_is_named() {
        let now = Instant::now();
        let at = |version: u64| Server(None, version - 1).write(Lease::default()).unwrap();
        let mut a = Candidate::new("a".into(), config());
        assert_eq!(a.read(at(50), now), Ok(()));
        a.observe(at(1002), now);
        a.observe(at(60), now);
        assert_eq!(a.read(at(1002), now), Ok(()), "a watch may lag, a reading does not");
        assert_eq!(a.read(at(60), now), Err(StoreWentBack { known: 1002, read: 60 }));
        a.observe_absence();
        assert_eq!(a.written(at(61), now, now), Err(StoreWentBack { known: 1002, read: 61 }), "the backup had none");
    }

    #[test]
    fn a_leader_that_cannot_renew_stops_writing_before_another_may_start() {
        let (start, mut server) = (Instant::now(), Server(None, 0));
        let mut a = Candidate::new("a".into(), config());
        turn(&mut a, &mut server, start);
        assert!(a.leading(start + Duration::from_millis(5999)).is_some());
        assert!(a.leading(start + Duration::from_secs(6)).is_none());
        assert!(matches!(a.step(start + Duration::from_secs(6), WALL), Step::Wait(_)), "and waits like the others");
    }

    #[test]
    fn a_leader_that_leaves_is_followed_at_once() {
        let (now, mut server) = (Instant::now(), Server(None, 0));
        let (mut a, mut b) = (Candidate::new("a".into(), config()), Candidate::new("b".into(), config()));
        turn(&mut a, &mut server, now);
        turn(&mut b, &mut server, now);
        let released = a.release(now, WALL).unwrap();
        server.write(released).unwrap();
        b.observe(server.0.clone().unwrap(), now);
        assert!(turn(&mut b, &mut server, now));
        assert_eq!((a.term(), b.term()), (1, 2));
        assert_eq!(server.0.unwrap().spec.unwrap().lease_transitions, Some(2));
    }

    #[test]
    fn of_two_that_find_it_expired_one_wins() {
        let (start, mut server) = (Instant::now(), Server(None, 0));
        let later = start + Duration::from_secs(60);
        let mut dead = Candidate::new("dead".into(), config());
        turn(&mut dead, &mut server, start);
        let (mut a, mut b) = (Candidate::new("a".into(), config()), Candidate::new("b".into(), config()));
        a.observe(server.0.clone().unwrap(), start);
        b.observe(server.0.clone().unwrap(), start);
        assert!(turn(&mut a, &mut server, later));
        assert!(!turn(&mut b, &mut server, later));
        assert!(a.leading(later).is_some() && b.leading(later).is_none());
    }
}
