//! New connections, one after the other, of which none may fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sheave_tests::lab::wait::wait_for;

use crate::client::Failure;
use crate::world::{CLIENT, World};
use crate::{MANY, PATIENCE};

pub struct Load {
    ends: Arc<AtomicBool>,
    opened: Arc<AtomicUsize>,
    thread: JoinHandle<Result<(), Failure>>,
}

impl Load {
    pub fn start(world: &World) -> Self {
        let (ends, opened) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (over, count, connect) = (ends.clone(), opened.clone(), world.connector(CLIENT, 6443));
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                connect()?;
                count.fetch_add(1, Ordering::Relaxed);
                // A hundred a second are load enough for a machine that does other things.
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        });
        Self { ends, opened, thread }
    }

    /// Until many more were opened.
    pub fn goes_on(&self) -> Result<()> {
        let before = self.opened.load(Ordering::Relaxed);
        wait_for("new connections", PATIENCE, || {
            ensure!(!self.thread.is_finished(), "a connection could not be opened");
            Ok((self.opened.load(Ordering::Relaxed) >= before + MANY).then_some(()))
        })
    }

    /// How many were opened; the first one that could not be is an error.
    pub fn stop(self) -> Result<usize> {
        self.ends.store(true, Ordering::Relaxed);
        let ended = self.thread.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
        ended.context("a new connection under load")?;
        Ok(self.opened.load(Ordering::Relaxed))
    }
}
