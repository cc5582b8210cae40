//! The DaemonSet's speaker on a node whose host speaker ([`crate::host_speaker`]) has no place for another behind its packet path: its
//! kernel cannot, it is of an earlier version, or it has not begun yet. This one touches neither maps nor rules, says so in `/readyz`,
//! SpeakerState and on its socket, and goes on answering requests to probe addresses, which need no packet path.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use sheave_api::speakerstate::stands_by::HOST_SPEAKER;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{error, info, warn};

use crate::admin::{self, Admin};
use crate::app::{Ended, Start};
use crate::args::RunArgs;
use crate::dataplane::loader::Pins;
use crate::health::HealthFlags;
use crate::host_speaker::Locks;
use crate::io::clock;
use crate::local_drain::LocalDrains;
use crate::local_socket;
use crate::metrics::Metrics;
use crate::source::{self, Surroundings};

/// Between two looks whether the host speaker runs.
const LOOK: Duration = Duration::from_secs(1);
/// It restarts, or is upgraded, in less.
const STOPPED: Duration = Duration::from_secs(60);

pub async fn run(args: RunArgs, locks: Locks) -> Result<Ended> {
    let start = Start::new(args)?;
    let args = &start.args;
    let probes = admin::bind("--probe-listen", args.probe_listen).await?;
    let scrapes = admin::bind("--metrics-listen", args.metrics_listen).await?;
    let scrapes = sheave_admin::metrics::Server::new(scrapes, "sheave-speaker").context("--metrics-listen")?;
    let health = Arc::new(HealthFlags::new(clock::now()));
    health.stands_by.store(true, Ordering::Relaxed);
    let metrics = Arc::new(Metrics::new(None)?);
    let surroundings =
        Surroundings { health: health.clone(), metrics: metrics.clone(), drains: LocalDrains::load(&start.disk) };
    // Held to the end: there is no view.
    let (_no_views, views) = watch::channel(None);
    let reviewer = source::stand_by(&start, surroundings, views).await?;
    let admin = Admin { health: health.clone(), metrics: metrics.clone(), office: None };
    let mut server = tokio::spawn(admin::serve(probes, scrapes, Some(reviewer), admin));
    match local_socket::bind(&args.paths.local_socket) {
        Ok(listener) => drop(tokio::spawn(local_socket::refuse(listener, REFUSAL, metrics))),
        Err(error) => warn!(error = format!("{error:#}"), "no local socket"),
    }
    info!(
        node = %start.node,
        "{HOST_SPEAKER}: the API server endpoint's speaker has no place beside it (yet); this one serves nothing"
    );
    let pins = Pins::new(&args.paths.pin_dir);
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    tokio::select! {
        () = locks.leaves() => {
            info!("the host speaker was removed from this node; beginning to serve");
            Ok(Ended::Anew)
        }
        () = place_is_there(&pins) => {
            info!("the host speaker has a place beside it; beginning to serve");
            Ok(Ended::Anew)
        }
        never = watch_host_speaker(&locks, &health) => never,
        served = &mut server => served.context("admin server")?.map(|()| Ended::Stopped),
        _ = terminate.recv() => Ok(Ended::Stopped),
        _ = interrupt.recv() => Ok(Ended::Stopped),
    }
}

async fn place_is_there(pins: &Pins) {
    while !pins.have_next() {
        sleep(LOOK).await;
    }
}

/// Whether it has not run for long. Never returns.
async fn watch_host_speaker<T>(locks: &Locks, health: &HealthFlags) -> T {
    let mut ran = Instant::now();
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        if locks.host_speaker_runs() {
            ran = now;
        }
        let stopped = now - ran >= STOPPED;
        match (health.host_speaker_stopped.swap(stopped, Ordering::Relaxed), stopped) {
            (false, true) => {
                error!("HostSpeakerStopped: the host speaker has not run for a minute; nothing serves this node")
            }
            (true, false) => info!("the host speaker runs again"),
            _ => {}
        }
    }
}

const REFUSAL: &str = "HostSpeaker: the speaker of the API server endpoint serves this node, so this one owns no address \
                       (sheave endpoint status)";
