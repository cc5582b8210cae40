//! Keeps this node's SpeakerState in the API as the node is: a task of its own, which nothing waits for.
//!
//! Read: `survey` (what is read of the host) → `content` (pure: what the object says) → `object` (the API server). It looks once a second,
//! so that a second's changes are one write, and writes only what differs. An API server that is away costs a retry.

mod content;
mod object;
mod survey;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec};
use sheave_api::SpeakerStateStatus;
use speaker_core::view::{ObjectName, TrafficPolicy, View};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use crate::apiserver::ApiServer;
use crate::backoff::Backoff;
use crate::health::HealthFlags;
use crate::io::clock;
use crate::local_drain::LocalDrains;
use crate::metrics::Metrics;
use crate::status::Views;
use content::Facts;
use object::{Failure, Object};
use survey::HostFacts;

pub use survey::Survey;

/// Between two looks, and so between two writes.
const PACE: Duration = Duration::from_secs(1);
/// Between two surveys of the host: flags need none.
const SURVEY: Duration = Duration::from_secs(10);
/// Between two readings of the object when nothing is to be written: it goes with its Node, and may be there again. It is read at once when
/// the watch reports that it is gone: a node without one may count as one without a speaker.
const REREAD: Duration = Duration::from_secs(60);

/// [`SpeakerStateStatus::local_services`].
const MOST_LOCAL: usize = 64;

/// Runs as long as the process.
/// `views`: the newest one, if there is one.
pub async fn run(
    server: ApiServer,
    node: String,
    mut survey: Survey,
    views: Views,
    (health, drains): (Arc<HealthFlags>, LocalDrains),
    metrics: Arc<Metrics>,
) {
    let counts = (metrics.speaker_state_writes.clone(), metrics.speaker_state_errors.clone());
    let mut writer = Writer::new(Object::new(server, node.clone()), counts);
    let mut was_listed = false;
    let mut host = HostFacts::default();
    let mut surveyed: Option<Instant> = None;
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        if surveyed.is_none_or(|at| now - at >= SURVEY) {
            host = survey.read().await;
            surveyed = Some(now);
            if let Some(proxy) = &host.service_proxy {
                health.no_kube_proxy.store(proxy == survey::NO_PROXY, Ordering::Relaxed);
            }
            if let Some(mark) = host.accept_mark
                && health.accept_mark.swap(mark, Ordering::Relaxed) != mark
            {
                info!(
                    mark = format!("{mark:#x}"),
                    "kube-proxy accepts forwarded packets by this mark; rules of Sheave set it"
                );
            }
            metrics.forward_policy_drop.set(i64::try_from(host.dropping.len()).unwrap_or(i64::MAX));
        }
        let facts = Facts {
            host: &host,
            of_host_speaker: health.of_host_speaker(),
            attached: health.attached.load(Ordering::Relaxed),
            not_ready: health.not_ready(),
            notes: health.notes(),
            limits: metrics.names_of_limits_reached(now.into_std()),
            drained: drains.current(),
            local_services: views.borrow().as_ref().map_or(Vec::new(), |view| local_services(view, &node)),
        };
        let listed = views.borrow().as_ref().is_some_and(|view| view.has_speaker_state(&node));
        if std::mem::replace(&mut was_listed, listed) && !listed {
            writer.known = None;
        }
        writer.look(&facts).await;
    }
}

/// At this node's address, with policy Local and ready pods here. As many as an entry of the ledger names.
fn local_services(view: &View, node: &str) -> Vec<String> {
    let granted =
        view.divided_node_addresses().0.into_iter().filter(|(_, granted)| granted.node.as_deref() == Some(node));
    let named: BTreeSet<&ObjectName> = granted.flat_map(|(_, granted)| &granted.services).collect();
    let is_local = |name: &&&ObjectName| {
        let service = view.services().get(**name);
        service.is_some_and(|service| service.attributes.traffic_policy == TrafficPolicy::Local)
    };
    let has_pod = |name: &&&ObjectName| {
        let slices = view.slices().iter().filter(|(slice, _)| slice.namespace == name.namespace);
        let mut endpoints =
            slices.filter(|(_, slice)| slice.service == name.name).flat_map(|(_, slice)| &slice.endpoints);
        endpoints.any(|endpoint| endpoint.conditions.ready && endpoint.node.as_deref() == Some(node))
    };
    named.iter().filter(is_local).filter(has_pod).take(MOST_LOCAL).map(|name| name.to_string()).collect()
}

/// What is known of the object, and when it is asked for again.
struct Writer {
    object: Object,
    writes: IntCounter,
    /// By reason.
    errors: IntCounterVec,
    /// As the API server has it; `None`: not read yet, or a write failed, after which anything may be there.
    known: Option<SpeakerStateStatus>,
    read: Instant,
    backoff: Backoff,
    /// Not before.
    retry: Instant,
    /// The failure that was logged.
    failing: Option<&'static str>,
}

impl Writer {
    fn new(object: Object, (writes, errors): (IntCounter, IntCounterVec)) -> Self {
        let now = Instant::now();
        Self { object, writes, errors, known: None, read: now, backoff: Backoff::default(), retry: now, failing: None }
    }

    async fn look(&mut self, facts: &Facts<'_>) {
        if Instant::now() < self.retry {
            return;
        }
        match self.follow(facts).await {
            Ok(()) => {
                self.backoff.succeeded();
                if let Some(reason) = self.failing.take() {
                    info!(reason, "SpeakerState up to date again");
                }
            }
            Err(failure) => {
                self.known = None;
                self.retry = Instant::now() + self.backoff.failed();
                let reason = failure.label();
                self.errors.with_label_values(&[reason]).inc();
                if self.failing.replace(reason) != Some(reason) {
                    warn!(reason, error = %failure, "SpeakerState not written; retrying");
                }
            }
        }
    }

    async fn follow(&mut self, facts: &Facts<'_>) -> Result<(), Failure> {
        let known = match self.known.take().filter(|_| self.read.elapsed() < REREAD) {
            Some(known) => known,
            None => {
                let found = self.object.read().await?;
                self.read = Instant::now();
                found
            }
        };
        let wanted = content::status(facts, &known.conditions, clock::timestamp());
        if wanted != known {
            self.object.write(&wanted).await?;
            self.writes.inc();
            debug!("SpeakerState written");
        }
        self.known = Some(wanted);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Opts;
    use tokio::sync::watch;

    use super::*;

    /// No server listens: a failure has a name, and the next attempt waits longer each time.
    #[tokio::test]
    async fn an_api_server_that_is_away_costs_a_retry() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (_sender, known) = watch::channel(Vec::new());
        let server = ApiServer::new(kube::Config::new(format!("http://{closed}").parse().unwrap()), known);
        let errors = IntCounterVec::new(Opts::new("errors", "Failures."), &["reason"]).unwrap();
        let counts = (IntCounter::new("writes", "Writes.").unwrap(), errors.clone());
        let mut writer = Writer::new(Object::new(server, "n1".into()), counts);
        let host = HostFacts::default();
        let facts = Facts {
            host: &host,
            of_host_speaker: BTreeSet::new(),
            attached: false,
            not_ready: vec![],
            notes: vec![],
            limits: vec![],
            drained: None,
            local_services: vec![],
        };
        let failures = || errors.with_label_values(&["unreachable"]).get();
        let mut pause = Duration::ZERO;
        for attempt in 1..=4 {
            writer.retry = Instant::now();
            writer.look(&facts).await;
            assert_eq!(failures(), attempt);
            let next = writer.retry - Instant::now();
            assert!(next > pause, "{next:?} after {pause:?}");
            pause = next;
            // However busy this machine is.
            writer.retry += Duration::from_secs(60);
            writer.look(&facts).await;
            assert_eq!(failures(), attempt, "not before the pause has passed");
        }
        assert_eq!((writer.failing, writer.writes.get()), (Some("unreachable"), 0));
    }
}
