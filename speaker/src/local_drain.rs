//! Whether this node was drained on the node itself (`sheave drain --local`): on disk first, then in force.

use std::sync::Arc;

use anyhow::{Context, Result};
use sheave_api::local::LocalDrain;
use tokio::sync::{Mutex, watch};

use crate::state::StateDir;

#[derive(Clone)]
pub struct LocalDrains {
    disk: StateDir,
    current: Arc<watch::Sender<Option<LocalDrain>>>,
    /// Held by the change that is being written.
    writing: Arc<Mutex<()>>,
}

impl LocalDrains {
    /// As the speaker before this one left it.
    pub fn load(disk: &StateDir) -> Self {
        let (current, _) = watch::channel(disk.load_drain());
        Self { disk: disk.clone(), current: Arc::new(current), writing: Arc::default() }
    }

    pub fn current(&self) -> Option<LocalDrain> {
        self.current.borrow().clone()
    }

    pub fn subscribe(&self) -> watch::Receiver<Option<LocalDrain>> {
        self.current.subscribe()
    }

    /// An error means that nothing changed.
    pub async fn set(&self, drain: Option<LocalDrain>) -> Result<()> {
        let _writing = self.writing.lock().await;
        let (disk, kept) = (self.disk.clone(), drain.clone());
        // The main loop does not wait for the disk.
        let saved = tokio::task::spawn_blocking(move || disk.save_drain(kept.as_ref())).await;
        saved.context("the write to disk panicked")??;
        self.current.send_replace(drain);
        Ok(())
    }
}
