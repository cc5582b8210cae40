//! The thread of the nft program: brings the newest plan into force, repeats what failed, audits, and reads the counters.
//!
//! The dataplane loop hands over plans and takes what is in force; it never waits. A plan that waits is replaced by a newer one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use speaker_core::backend::affinity::{ClientSet, Kept};
use speaker_core::backend::{Plan, lag};
use speaker_core::health::totals::Totals;
use speaker_core::startup::Target;
use speaker_core::view::endpoints::Digests;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use super::conntrack_room::{self, Change, Room};
use super::nft::NftError;
use super::{Backend, Outcome};
use crate::backoff::Backoff;
use crate::health::HealthFlags;
use crate::metrics::Metrics;

/// A plan, and the view that it follows.
#[derive(Debug)]
pub struct Wanted {
    pub plan: Plan,
    pub viewed: Digests,
}

/// What the rules of this node do now, as far as the packet path depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InForce {
    /// Service ports that have a pod in the rules, with their pods; none where the rules are an earlier speaker's.
    pub services: Arc<lag::Pods>,
    pub peers: BTreeMap<u16, Ipv4Addr>,
    /// Where clients of sessionAffinity are recorded.
    pub client_sets: BTreeMap<ClientSet, Kept>,
    /// New pods of this node that are among those in the rules ([`Plan::starting`]).
    pub starting: BTreeSet<Target>,
    /// The newest view whose plan is in force as a whole; `None`: of this speaker none has been yet.
    pub viewed: Option<Digests>,
    /// The newest plan was refused, or takes long.
    pub failing: bool,
}

/// The loop's end of the worker.
#[derive(Debug)]
pub struct Rules {
    wanted: watch::Sender<Option<Arc<Wanted>>>,
    in_force: watch::Receiver<InForce>,
    totals: watch::Receiver<Option<Totals>>,
}

impl Rules {
    /// `restored`: what an earlier speaker's rules do, which stay in force until the first plan is. The worker ends with this value.
    pub fn start(
        backend: Backend,
        restored: InForce,
        metrics: Arc<Metrics>,
        health: Arc<HealthFlags>,
    ) -> io::Result<Self> {
        let (wanted, plans) = watch::channel(None);
        let (publisher, in_force) = watch::channel(restored);
        let (counted, totals) = watch::channel(None);
        let health = Health { metrics, health, failing: None, publisher, counted };
        thread::Builder::new().name("nft".into()).spawn(move || match tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
        {
            Ok(runtime) => runtime.block_on(Worker::new(backend, plans, health).run()),
            Err(error) => error!(%error, "nft worker not started: no runtime; rules will not change"),
        })?;
        Ok(Self { wanted, in_force, totals })
    }

    /// Replaces a plan that waits.
    pub fn want(&self, wanted: Wanted) {
        self.wanted.send_replace(Some(Arc::new(wanted)));
    }

    /// What was led to members until the last reading, if that was not taken yet; `None` also where it is not counted.
    pub fn new_totals(&mut self) -> Option<Totals> {
        // When the worker has ended, the loop ends.
        self.totals.has_changed().ok().filter(|changed| *changed)?;
        self.totals.borrow_and_update().clone()
    }

    /// What is in force, when that has changed; `None` when the worker has ended. May be dropped while it waits.
    pub async fn changed(&mut self) -> Option<InForce> {
        self.in_force.changed().await.ok()?;
        Some(self.in_force.borrow_and_update().clone())
    }
}

struct Worker {
    backend: Backend,
    plans: watch::Receiver<Option<Arc<Wanted>>>,
    health: Health,
    backoff: Backoff,
    attempted: Option<Instant>,
    /// When the newest plan is to be tried (again); `None`: it is in force.
    due: Option<Instant>,
    audit_fails: bool,
    room: conntrack_room::Watch,
    room_unknown: bool,
}

impl Worker {
    fn new(backend: Backend, plans: watch::Receiver<Option<Arc<Wanted>>>, health: Health) -> Self {
        let (backoff, room) = (Backoff::default(), conntrack_room::Watch::default());
        Self {
            backend,
            plans,
            health,
            backoff,
            attempted: None,
            due: None,
            audit_fails: false,
            room,
            room_unknown: false,
        }
    }

    /// Until the loop's end is gone.
    async fn run(mut self) {
        let mut audit = interval(AUDIT);
        audit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.due;
            tokio::select! {
                changed = self.plans.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = Instant::now();
                    // While plans are refused, newer ones are tried at a pace.
                    let earliest = match (self.health.failing, self.attempted) {
                        (Some(_), Some(attempted)) => now.max(attempted + PACE),
                        _ => now,
                    };
                    self.due = Some(due.map_or(earliest, |due| due.min(earliest)));
                }
                () = self.backend.changed() => self.audit().await,
                _ = audit.tick() => { self.audit().await; self.backend.remember_clients(); self.count(); self.look_for_room(); }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
            if self.due.is_some_and(|due| due <= Instant::now()) {
                self.apply().await;
            }
        }
    }

    async fn apply(&mut self) {
        self.due = None;
        let Some(wanted) = self.plans.borrow_and_update().clone() else { return };
        self.attempted = Some(Instant::now());
        let outcome = self.health.watch(self.backend.sync(wanted.plan.clone())).await;
        match outcome {
            Ok(outcome) => {
                if outcome != Outcome::Unchanged {
                    debug!(?outcome, "nftables transaction applied");
                }
                self.backoff.succeeded();
                self.health.works();
            }
            Err(ref error) => {
                self.health.fails(error.label(), error);
                let pause = if self.backend.is_searching() { Backoff::FIRST } else { self.backoff.failed() };
                self.due = Some(Instant::now() + pause);
            }
        }
        self.health.publish(self.backend.in_force(), outcome.is_ok().then(|| wanted.viewed.clone()));
        self.count();
    }

    async fn audit(&mut self) {
        match self.health.watch(self.backend.audit()).await {
            Ok(repaired) => {
                self.audit_fails = false;
                if self.due.is_none() && !self.backend.is_suspect() {
                    self.health.works();
                }
                if repaired {
                    warn!("third-party change of our nftables table; repaired");
                    self.health.metrics.repairs.with_label_values(&["nftables"]).inc();
                }
            }
            Err(error) => self.audit_failed(&error),
        }
        if self.backend.is_suspect() && self.attempted.is_some() && self.due.is_none() {
            self.due = Some(Instant::now() + self.backoff.failed());
        }
    }

    fn audit_failed(&mut self, error: &NftError) {
        self.health.metrics.nft_errors.with_label_values(&[error.label()]).inc();
        if !std::mem::replace(&mut self.audit_fails, true) {
            warn!(reason = error.label(), %error, "nftables audit failed; retrying");
        }
    }

    fn count(&mut self) {
        let metrics = &self.health.metrics;
        metrics.set_flows_forgotten(self.backend.flows_forgotten());
        metrics.flows_in_removal_grace.set(i64::try_from(self.backend.flows_in_removal_grace()).unwrap_or(i64::MAX));
        metrics.second_chance.set(i64::from(self.backend.second_chance()));
        match self.backend.counters() {
            Ok(counters) => metrics.set_guard(counters.iter().map(|(name, counter)| (*name, counter.packets))),
            Err(error) => debug!(%error, "counters of the table not read"),
        }
        let totals = self.backend.totals();
        self.health.counted.send_if_modified(|known| {
            let differs = known.as_ref() != totals;
            if differs {
                *known = totals.cloned();
            }
            differs
        });
    }

    /// A full table is the node's, and concerns every new flow to its pods, also those that are not ours.
    fn look_for_room(&mut self) {
        let room = match Room::read(Path::new("/proc")) {
            Ok(room) => room,
            Err(error) => {
                if !std::mem::replace(&mut self.room_unknown, true) {
                    warn!(%error, "it is not known how full conntrack is");
                }
                return;
            }
        };
        self.room_unknown = false;
        let Room { entries, limit, .. } = room;
        let metrics = &self.health.metrics;
        metrics.conntrack_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
        metrics.conntrack_limit.set(i64::try_from(limit).unwrap_or(i64::MAX));
        let changes = self.room.look(room);
        let flags = &self.health.health;
        flags.conntrack_nearly_full.store(self.room.is_nearly_full(), Ordering::Relaxed);
        // Dropped packets are told until there is room again.
        let was_full = flags.conntrack_full.load(Ordering::Relaxed) && self.room.is_nearly_full();
        let dropped = changes.iter().any(|change| matches!(change, Change::Dropped(_)));
        flags.conntrack_full.store(dropped || was_full, Ordering::Relaxed);
        for change in changes {
            match change {
                Change::NearlyFull => warn!(
                    entries,
                    limit,
                    "conntrack_nearly_full: when it is full, new connections to pods of this node get no answer; raise net.netfilter.nf_conntrack_max"
                ),
                Change::RoomAgain => info!(entries, limit, "conntrack has room again"),
                Change::Dropped(packets) => {
                    metrics.conntrack_dropped.inc_by(packets);
                    warn!(packets, entries, limit, "conntrack_full: first packets of new flows were dropped");
                }
            }
        }
    }
}

/// The worker's state, as other tasks see it.
struct Health {
    metrics: Arc<Metrics>,
    health: Arc<HealthFlags>,
    failing: Option<&'static str>,
    publisher: watch::Sender<InForce>,
    /// What was led to members; `None`: that is not counted.
    counted: watch::Sender<Option<Totals>>,
}

impl Health {
    /// A run of nft that takes long, for which the newest plan may wait, is a fault with a name.
    async fn watch<T>(&mut self, run: impl Future<Output = T>) -> T {
        tokio::pin!(run);
        if let Ok(outcome) = timeout(SLOW, &mut run).await {
            return outcome;
        }
        self.fails("slow", &format_args!("not finished after {SLOW:?}"));
        run.await
    }

    /// One log line for each reason in a row.
    fn fails(&mut self, reason: &'static str, error: &dyn std::fmt::Display) {
        self.metrics.nft_errors.with_label_values(&[reason]).inc();
        if self.failing.replace(reason) != Some(reason) {
            error!(reason, %error, "nftables transaction failed; what it changes stays as it was, retrying");
        }
        self.show(true);
    }

    fn works(&mut self) {
        if let Some(reason) = self.failing.take() {
            info!(reason, "nftables rules up to date again");
        }
        self.show(false);
    }

    fn show(&self, failing: bool) {
        self.metrics.nft_failing.set(i64::from(failing));
        self.health.nft_failing.store(failing, Ordering::Relaxed);
        self.publisher.send_if_modified(|known| std::mem::replace(&mut known.failing, failing) != failing);
    }

    /// `viewed`: of the plan, if all of it is in force.
    fn publish(&self, plan: Option<&Plan>, viewed: Option<Digests>) {
        let Some(plan) = plan else { return };
        self.publisher.send_if_modified(|known| {
            let services = Arc::new(lag::pods(plan));
            let viewed = viewed.or_else(|| known.viewed.clone());
            let (peers, client_sets, starting) = (plan.peers.clone(), plan.client_sets(), plan.starting.clone());
            let now = InForce { services, peers, client_sets, starting, viewed, failing: known.failing };
            let differs = *known != now;
            *known = now;
            differs
        });
    }
}

/// Audits in case the kernel did not report a third-party change.
const AUDIT: Duration = Duration::from_secs(5);
/// A run of nft that takes longer is a fault with a name; it goes on. (A table of 8192 services is built in 11 s.)
pub(super) const SLOW: Duration = Duration::from_secs(5);
/// Between attempts while they fail, although there are newer plans.
const PACE: Duration = Duration::from_secs(1);
