//! Connections to new pods of this node: each is a task, its answer an event of the dataplane loop. `speaker_core::startup` decides.

use speaker_core::startup::{Answer, MAX_PROBES, Probe};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::io::tcp_probe::tcp_probe;

#[derive(Debug)]
pub struct PodProbes {
    sender: Sender<(Probe, Answer)>,
    answers: Receiver<(Probe, Answer)>,
}

impl PodProbes {
    pub fn new() -> Self {
        let (sender, answers) = channel(MAX_PROBES);
        Self { sender, answers }
    }

    /// Needs a runtime. The machine bounds how many run. One whose answer finds no room waits: the loop takes them all.
    pub fn start(&self, probe: Probe) {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let answer = tcp_probe(probe.target.address, probe.target.port).await;
            // The loop has ended: then nothing waits for it.
            sender.send((probe, answer)).await.ok();
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
