//! Connections to new pods of this node: each is a task, its answer an event of the dataplane loop. `speaker_core::startup` decides.

use speaker_core::startup::{Answer, Probe};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::io::tcp_probe::tcp_probe;

#[derive(Debug)]
pub struct PodProbes {
    sender: UnboundedSender<(Probe, Answer)>,
    answers: UnboundedReceiver<(Probe, Answer)>,
}

impl PodProbes {
    pub fn new() -> Self {
        let (sender, answers) = unbounded_channel();
        Self { sender, answers }
    }

    /// Needs a runtime. The machine bounds how many run.
    pub fn start(&self, probe: Probe) {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let answer = tcp_probe(probe.target.address, probe.target.port).await;
            // The loop has ended: then nothing waits for it.
            sender.send((probe, answer)).ok();
        });
    }

    /// The next answer. May be dropped while it waits.
    pub async fn next(&mut self) -> (Probe, Answer) {
        match self.answers.recv().await {
            Some(answer) => answer,
            // Cannot be: there is a sender here.
            None => std::future::pending().await,
        }
    }
}
