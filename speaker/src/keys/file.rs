//! `keys.json`, written beside the main loop: netlink events, watches and liveness do not wait for the disk. One write at a time; what
//! changed meanwhile is written next.

use anyhow::{Context, Result};
use speaker_core::rotation;
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::warn;

use super::Stored;
use crate::state::StateDir;

pub struct KeyFile {
    disk: StateDir,
    running: Option<(JoinHandle<Result<()>>, Option<rotation::Secret>)>,
    next: Option<(Stored, Option<rotation::Secret>)>,
}

impl KeyFile {
    pub fn new(disk: &StateDir) -> Self {
        Self { disk: disk.clone(), running: None, next: None }
    }

    /// Nothing is being written.
    pub fn is_idle(&self) -> bool {
        self.running.is_none()
    }

    /// Replaces keys that wait. `taken` are the keys of the Secret that must be on disk before they are used.
    pub fn write(&mut self, stored: Stored, taken: Option<rotation::Secret>) {
        let earlier = self.next.take().and_then(|(_, taken)| taken);
        self.next = Some((stored, taken.or(earlier)));
        self.start();
    }

    /// The write that runs is done; returns what was to wait for it. Never, while none runs. Loses nothing if it is dropped while it
    /// waits.
    pub async fn written(&mut self) -> Option<rotation::Secret> {
        let Some((running, _)) = &mut self.running else { return std::future::pending().await };
        let outcome = running.await.context("the write to disk panicked").flatten();
        if let Err(error) = outcome {
            warn!(
                error = format!("{error:#}"),
                "keys not saved; a restart without an API server will wait for the Secret"
            );
        }
        let taken = self.running.take().and_then(|(_, taken)| taken);
        self.start();
        taken
    }

    /// After the write that runs; nothing is written any more.
    pub async fn remove(&mut self) -> Result<()> {
        self.next = None;
        if !self.is_idle() {
            self.written().await;
        }
        let disk = self.disk.clone();
        spawn_blocking(move || disk.remove_keys()).await.context("the removal from disk panicked")?
    }

    fn start(&mut self) {
        if self.running.is_some() {
            return;
        }
        let Some((stored, taken)) = self.next.take() else { return };
        let disk = self.disk.clone();
        self.running = Some((spawn_blocking(move || disk.save_keys(&stored)), taken));
    }
}
