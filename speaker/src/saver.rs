//! The thread that writes to the state directory: the newest view, the newest previous rings and since when nodes are gone, at most once
//! a second, whatever the disk does.
//!
//! A speaker that restarts finds the view of at most [`PAUSE`] and the time of one write ago; behind a slow disk, of [`SHARE`] times the
//! last write ago, at most [`Backoff::LONGEST`]. An orderly end writes what waits first ([`Saver::flush`]).

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use speaker_core::view::View;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::departed::SavedDepartures;
use crate::metrics::Metrics;
use crate::state::{PersistedState, StateDir};

/// Between the beginnings of two writes.
const PAUSE: Duration = Duration::from_secs(1);
/// Writing takes at most this part of the time.
const SHARE: u32 = 20;

/// Hands over what is to be saved. Never waits for the disk.
#[derive(Clone)]
pub struct Saver(Arc<Desk>);

#[derive(Default)]
struct Desk {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    contents: Contents,
    writing: bool,
    /// A caller waits for the end of it.
    hurry: bool,
}

/// One for each file, if it is to be written.
#[derive(Default)]
struct Contents {
    view: Option<Arc<View>>,
    forwarding: Option<Arc<PersistedState>>,
    departures: Option<Arc<SavedDepartures>>,
}

impl Contents {
    fn is_empty(&self) -> bool {
        self.view.is_none() && self.forwarding.is_none() && self.departures.is_none()
    }

    /// These, and of the others what is missing.
    fn or(self, Self { view, forwarding, departures }: Self) -> Self {
        Self {
            view: self.view.or(view),
            forwarding: self.forwarding.or(forwarding),
            departures: self.departures.or(departures),
        }
    }
}

impl Saver {
    /// The thread lives as long as the process.
    pub fn start(disk: StateDir, metrics: Arc<Metrics>) -> io::Result<Self> {
        let desk = Arc::new(Desk::default());
        let writer = Writer { desk: desk.clone(), disk, metrics, failing: false, backoff: Backoff::default() };
        thread::Builder::new().name("disk".into()).spawn(move || writer.run())?;
        Ok(Self(desk))
    }

    /// Replaces a view that waits.
    pub fn view(&self, view: Arc<View>) {
        self.0.lock().contents.view = Some(view);
        self.0.changed.notify_all();
    }

    /// Replaces previous rings that wait.
    pub fn forwarding(&self, persisted: PersistedState) {
        self.0.lock().contents.forwarding = Some(Arc::new(persisted));
        self.0.changed.notify_all();
    }

    /// Replaces departures that wait.
    pub fn departures(&self, departures: SavedDepartures) {
        self.0.lock().contents.departures = Some(Arc::new(departures));
        self.0.changed.notify_all();
    }

    /// Has written what waits now, without a pause. False: not within this time.
    pub fn flush(&self, patience: Duration) -> bool {
        let mut waiting = self.0.lock();
        waiting.hurry = true;
        self.0.changed.notify_all();
        let unfinished = |waiting: &mut Waiting| !waiting.contents.is_empty() || waiting.writing;
        let outcome = self.0.changed.wait_timeout_while(waiting, patience, unfinished);
        let (mut waiting, timed) = outcome.unwrap_or_else(PoisonError::into_inner);
        waiting.hurry = false;
        !timed.timed_out()
    }
}

impl Desk {
    /// A panic while it was held cannot have left it half changed.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Writer {
    desk: Arc<Desk>,
    disk: StateDir,
    metrics: Arc<Metrics>,
    failing: bool,
    backoff: Backoff,
}

impl Writer {
    fn run(mut self) {
        loop {
            let contents = self.next();
            let Contents { view, forwarding, departures } = &contents;
            let began = Instant::now();
            let outcomes = [
                view.as_ref().map(|view| ("view", self.disk.save_view(view))),
                forwarding.as_ref().map(|persisted| ("forwarding", self.disk.save_forwarding(persisted))),
                departures.as_ref().map(|departures| ("departed", self.disk.save_departures(departures))),
            ];
            let failed = self.judge(outcomes);
            let pause = if failed { self.backoff.failed() } else { (began.elapsed() * SHARE).min(Backoff::LONGEST) };
            self.done(if failed { contents } else { Contents::default() });
            self.rest(pause.max(PAUSE.saturating_sub(began.elapsed())));
        }
    }

    fn next(&self) -> Contents {
        let waiting = self.desk.lock();
        let nothing = |waiting: &mut Waiting| waiting.contents.is_empty();
        let mut waiting = self.desk.changed.wait_while(waiting, nothing).unwrap_or_else(PoisonError::into_inner);
        waiting.writing = true;
        std::mem::take(&mut waiting.contents)
    }

    /// What could not be written waits again, unless there is something newer.
    fn done(&self, unwritten: Contents) {
        let mut waiting = self.desk.lock();
        waiting.writing = false;
        waiting.contents = std::mem::take(&mut waiting.contents).or(unwritten);
        self.desk.changed.notify_all();
    }

    fn rest(&self, pause: Duration) {
        let waiting = self.desk.lock();
        let calm = |waiting: &mut Waiting| !waiting.hurry;
        drop(self.desk.changed.wait_timeout_while(waiting, pause, calm));
    }

    /// Whether something could not be written. One log line for failures in a row.
    fn judge(&mut self, outcomes: [Option<(&'static str, Result<()>)>; 3]) -> bool {
        let mut failed = false;
        for (file, outcome) in outcomes.into_iter().flatten() {
            let Err(error) = outcome else { continue };
            failed = true;
            self.metrics.state_errors.with_label_values(&[file]).inc();
            if !std::mem::replace(&mut self.failing, true) {
                warn!(
                    file,
                    error = format!("{error:#}"),
                    "state not saved; a restart would find an older one, retrying"
                );
            }
        }
        self.metrics.state_unsaved.set(i64::from(failed));
        if !failed {
            self.backoff.succeeded();
            if std::mem::take(&mut self.failing) {
                info!("state is saved again");
            }
        }
        failed
    }
}
