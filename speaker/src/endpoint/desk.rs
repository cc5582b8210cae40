//! Requests of this node's administrator that the dataplane decides, and the records of drains on disk.
//!
//! A drain is decided by the machine of the checks, then on disk, then in force and acknowledged. Records that other nodes send are in
//! force first: their own nodes have them on disk.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context, Result};
use speaker_core::health::Health;
use speaker_core::health::drains::{self, Drains, Refused, Wish};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use super::board::Board;
use super::checker::Checker;
use crate::io::clock;
use crate::state::StateDir;

/// Requests that wait.
const MAX_REQUESTS: usize = 16;

/// To the dataplane.
pub enum Request {
    /// What the records would be.
    Decide { member: Ipv4Addr, wish: Wish, answer: oneshot::Sender<Result<Drains, Refused>> },
    /// They are on disk.
    Apply { drains: Drains, done: oneshot::Sender<()> },
    /// Members are checked otherwise from now on.
    Check { checks: Checks, done: oneshot::Sender<()> },
}

/// What is checked, and how.
pub struct Checks {
    pub ports: BTreeSet<u16>,
    /// It decides about ownership.
    pub first: u16,
    pub checker: Checker,
}

/// The dataplane's end.
pub struct Desk {
    pub board: Arc<Board>,
    pub requests: mpsc::Receiver<Request>,
    pub drains: watch::Sender<Drains>,
}

/// The other end.
#[derive(Clone)]
pub struct Clerk {
    pub board: Arc<Board>,
    requests: mpsc::Sender<Request>,
    drains: watch::Receiver<Drains>,
    disk: StateDir,
    /// The records on disk. Held by the write that is under way.
    saved: Arc<tokio::sync::Mutex<Drains>>,
}

/// Why a drain was not made.
pub enum NotDrained {
    Refused(Refused),
    Failed(anyhow::Error),
}

/// With the records of the speaker before this one.
pub fn open(board: Board, disk: &StateDir) -> (Desk, Clerk) {
    let mut saved = disk.load_member_drains();
    // Those of machines that are gone make room.
    saved.retain(|member, _| board.is_member(*member));
    board.begin_with(&saved);
    let board = Arc::new(board);
    let (requests, received) = mpsc::channel(MAX_REQUESTS);
    let (sender, drains) = watch::channel(saved.clone());
    let desk = Desk { board: board.clone(), requests: received, drains: sender };
    let saved = Arc::new(tokio::sync::Mutex::new(saved));
    (desk, Clerk { board, requests, drains, disk: disk.clone(), saved })
}

impl Clerk {
    pub async fn drain(&self, member: Ipv4Addr, wish: Wish) -> Result<(), NotDrained> {
        // One after the other: a record is newer than those that were decided before it.
        let mut saved = self.saved.lock().await;
        let drains = self.decide(member, wish).await.map_err(NotDrained::Failed)?.map_err(NotDrained::Refused)?;
        self.save(&drains, &mut saved).await.map_err(NotDrained::Failed)?;
        self.apply(drains).await.map_err(NotDrained::Failed)
    }

    /// Keeps what other nodes have decided on disk as well, and reports whether this node's member is drained.
    pub async fn keep(mut self, own: Ipv4Addr, drained: watch::Sender<bool>) {
        loop {
            let drains = self.drains.borrow_and_update().clone();
            let is_drained = self.is_drained(own);
            drained.send_if_modified(|drained| std::mem::replace(drained, is_drained) != is_drained);
            let mut saved = self.saved.lock().await;
            if let Err(error) = self.save(&drains, &mut saved).await {
                warn!(
                    error = format!("{error:#}"),
                    "drains of members not saved; after a restart the other nodes report them"
                );
            }
            drop(saved);
            if self.drains.changed().await.is_err() {
                return;
            }
        }
    }

    pub async fn check(&self, checks: Checks) -> Result<()> {
        let (done, taken) = oneshot::channel();
        self.requests.send(Request::Check { checks, done }).await.context("the dataplane thread has ended")?;
        taken.await.context("the dataplane thread has ended")
    }

    pub fn is_drained(&self, member: Ipv4Addr) -> bool {
        drains::wish(&self.drains.borrow(), member) != Wish::Serve
    }

    async fn decide(&self, member: Ipv4Addr, wish: Wish) -> Result<Result<Drains, Refused>> {
        let (answer, decided) = oneshot::channel();
        self.requests.send(Request::Decide { member, wish, answer }).await.context("the dataplane thread has ended")?;
        decided.await.context("the dataplane thread has ended")
    }

    async fn apply(&self, drains: Drains) -> Result<()> {
        let (done, applied) = oneshot::channel();
        self.requests.send(Request::Apply { drains, done }).await.context("the dataplane thread has ended")?;
        applied.await.context("the dataplane thread has ended")
    }

    /// The main loop does not wait for the disk.
    async fn save(&self, drains: &Drains, saved: &mut Drains) -> Result<()> {
        // Never an older record over a newer one.
        let mut wanted = saved.clone();
        if !drains::merge(&mut wanted, drains) {
            return Ok(());
        }
        let (disk, written) = (self.disk.clone(), wanted.clone());
        let written = tokio::task::spawn_blocking(move || disk.save_member_drains(&written)).await;
        written.context("the write to disk panicked")??;
        *saved = wanted;
        info!(drains = drains.values().filter(|drain| drain.wish != Wish::Serve).count(), "drains of members saved");
        Ok(())
    }
}

impl Request {
    /// By the dataplane, with its machine.
    pub fn carry_out(self, health: &mut Health, checker: &mut Checker) {
        // An administrator who went away does not wait.
        match self {
            Self::Decide { member, wish, answer } => {
                answer.send(health.wish(member, wish, clock::wall_nanos() / 1_000_000)).ok();
            }
            Self::Apply { drains, done } => {
                health.drained(&drains, clock::now());
                done.send(()).ok();
            }
            Self::Check { checks, done } => {
                health.set_ports(checks.ports, checks.first, clock::now());
                *checker = checks.checker;
                done.send(()).ok();
            }
        }
    }
}
