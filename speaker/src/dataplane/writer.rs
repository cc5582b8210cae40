//! The thread that writes the maps: one job at a time, its completion is an event of the dataplane loop.

use std::io;
use std::thread;

use anyhow::{Result, anyhow};
use ebpf_common::Config;
use speaker_core::forwarding::diff::MapOp;
use tokio::sync::mpsc;

use super::maps::ForwardingMaps;

/// Writes, in order.
#[derive(Debug)]
pub struct Job {
    pub config: Option<Config>,
    pub ops: Vec<MapOp>,
}

/// A job, and how much of it was carried out.
#[derive(Debug)]
pub struct Written {
    pub job: Job,
    pub config: bool,
    pub ops: usize,
    pub result: Result<()>,
}

/// The loop's end of the worker.
#[derive(Debug)]
pub struct MapWriter {
    jobs: mpsc::Sender<Job>,
    written: mpsc::Receiver<Written>,
}

impl MapWriter {
    /// The thread ends with this value.
    pub fn start(mut maps: ForwardingMaps) -> io::Result<Self> {
        let (jobs, mut inbox) = mpsc::channel(1);
        let (completions, written) = mpsc::channel(1);
        thread::Builder::new().name("maps".into()).spawn(move || {
            while let Some(job) = inbox.blocking_recv() {
                if completions.blocking_send(write(&mut maps, job)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { jobs, written })
    }

    /// An error means that the last job is not done yet, or that the thread has ended.
    pub fn write(&self, job: Job) -> Result<()> {
        self.jobs.try_send(job).map_err(|error| anyhow!("hand over writes to the maps: {error}"))
    }

    /// The job that is done; `None` when the thread has ended. May be dropped while it waits.
    pub async fn written(&mut self) -> Option<Written> {
        self.written.recv().await
    }
}

fn write(maps: &mut ForwardingMaps, job: Job) -> Written {
    let (mut config, mut ops) = (false, 0);
    let result = job.config.map_or(Ok(()), |config| maps.set_config(config)).and_then(|()| {
        config = true;
        maps.execute(&job.ops, |_| ops += 1)
    });
    Written { job, config, ops, result }
}
