//! A thread in a network namespace of the lab, with the clients that stand there.

use std::future::Future;
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::lab::netns;

/// What is spawned here has its sockets in the namespace. Dropped, it ends with all its clients.
pub struct Place {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Place {
    pub fn new(namespace: &str) -> Result<Self> {
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let namespace = namespace.to_owned();
        let thread = std::thread::spawn(move || {
            netns::inside(&namespace, move || {
                let runtime = crate::traffic::single_threaded()?;
                tell.send(runtime.handle().clone()).ok();
                // An error is the sender's end, which is the same.
                runtime.block_on(stopped).ok();
                Ok(())
            })
        });
        let Ok(handle) = told.recv() else {
            let ended = thread.join().map_err(|_| anyhow!("a thread of clients panicked"))?;
            return Err(ended.err().unwrap_or_else(|| anyhow!("a thread of clients ended at once")));
        };
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(work);
    }

    /// Waits for the result.
    pub fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T> {
        let (tell, told) = mpsc::channel();
        self.handle.spawn(async move { tell.send(work.await).ok() });
        told.recv().context("a client panicked")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && !matches!(thread.join(), Ok(Ok(())))
        {
            eprintln!("a thread of clients failed");
        }
    }
}
