//! The threads of the speaker, and a notice of the first that ends.

use std::thread;

use anyhow::{Context, Result};
use tokio::sync::mpsc;

/// Reports when a thread ends: none may while the process runs.
pub struct ThreadExits {
    sender: mpsc::Sender<String>,
    receiver: mpsc::Receiver<String>,
}

impl Default for ThreadExits {
    fn default() -> Self {
        // The first end is the process's; others have no room and need none.
        let (sender, receiver) = mpsc::channel(1);
        Self { sender, receiver }
    }
}

impl ThreadExits {
    pub fn spawn(&mut self, name: &'static str, body: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
        let sender = self.sender.clone();
        let named = thread::Builder::new().name(name.into());
        named
            .spawn(move || {
                let end = match body() {
                    Ok(()) => format!("the {name} thread ended"),
                    Err(error) => format!("the {name} thread ended: {error:#}"),
                };
                // Full or closed: the process is ending.
                let _ = sender.try_send(end);
            })
            .with_context(|| format!("start the {name} thread"))?;
        Ok(())
    }

    /// Why the first thread ended.
    pub async fn first(&mut self) -> String {
        self.receiver.recv().await.unwrap_or_else(|| "all threads ended".into())
    }
}
