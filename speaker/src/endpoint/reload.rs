//! The file while the speaker serves: read again when it changes and on SIGHUP. What is in order is taken over, by the same ways as changes
//! of Kubernetes: a view, keys, checks. What is not, or needs a restart, is refused by name, and what was served before goes on.
//!
//! The path is looked at once a second, not watched: an editor's rename, a mount and a link that is set anew are all seen. A change counts
//! when two looks agree, so that no half of a file is read.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use sheave_endpoint::{Endpoint, Refusal, Refusals};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::{error, info, warn};

use super::desk::Clerk;
use super::{Opened, Stamp, open, serve};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// A refused file is read again after so many looks: what it was refused for may be elsewhere, as a certificate or an interface.
const AGAIN: u32 = 5;

pub struct Reload {
    serving: Opened,
    clerk: Clerk,
    looks: Looks,
    ticks: Interval,
    /// `None`: it cannot be had, and the file is looked at all the same.
    hangup: Option<Signal>,
    /// As it was logged.
    refused: Vec<String>,
}

impl Reload {
    /// In the runtime of the task that waits.
    pub fn new(serving: Opened, clerk: Clerk) -> Self {
        let hangup = signal(SignalKind::hangup());
        if let Err(error) = &hangup {
            warn!(%error, "SIGHUP is not taken; the file is read again when it changes");
        }
        let looks = Looks::new(serving.stamp);
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { serving, clerk, looks, ticks, hangup: hangup.ok(), refused: Vec::new() }
    }

    /// The next file that is served. Its checks are in force.
    pub async fn next(&mut self) -> Endpoint {
        loop {
            self.awaited().await;
            match self.take().await {
                Ok(Some(endpoint)) => return endpoint,
                Ok(None) => self.show(Vec::new()),
                Err(error) => self.show(lines(&error)),
            }
        }
    }

    /// A change, or the signal.
    async fn awaited(&mut self) {
        for looks in 1_u32.. {
            let hangup = async {
                match &mut self.hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = hangup => {
                    info!("SIGHUP: the file is read again");
                    return;
                }
                _ = self.ticks.tick() => {}
            }
            let stamp = stamp(self.serving.path.clone()).await;
            if self.looks.are_changed(stamp) || looks >= AGAIN && !self.refused.is_empty() {
                return;
            }
        }
    }

    /// `None`: it is the one that is served.
    async fn take(&mut self) -> Result<Option<Endpoint>> {
        let path = self.serving.path.clone();
        let opened = spawn_blocking(move || open(&path)).await.context("the reader panicked")?;
        if let Ok(opened) = &opened {
            self.looks.read(opened.stamp);
        }
        let opened = opened?;
        if opened.endpoint == self.serving.endpoint && opened.seat == self.serving.seat {
            return Ok(None);
        }
        self.serving.endpoint.can_become(&self.serving.seat, &opened.endpoint, &opened.seat)?;
        self.clerk.check(opened.checks()?).await?;
        self.clerk.board.follow(opened.endpoint.clone(), serve::now());
        let Endpoint { addresses, ports, members, .. } = &opened.endpoint;
        let (addresses, ports, members) = (addresses.len(), ports.len(), members.len());
        info!(addresses, ports, members, "the file has changed, and is taken over");
        self.refused.clear();
        self.serving = opened;
        Ok(Some(self.serving.endpoint.clone()))
    }

    /// Each state once in the log.
    fn show(&mut self, refused: Vec<String>) {
        if self.refused == refused {
            return;
        }
        match refused.is_empty() {
            true => info!("the file is the one that is served again"),
            false => {
                let file = self.serving.path.display();
                error!(%file, refusals = refused.join("; "), "file refused; what it was before is served");
            }
        }
        self.clerk.board.refused(refused.clone(), serve::now());
        self.refused = refused;
    }
}

/// What was seen of the path.
#[derive(Debug)]
struct Looks {
    /// What was read last; `None`: nothing can be read.
    read: Option<Stamp>,
    seen: Option<Stamp>,
}

impl Looks {
    fn new(read: Stamp) -> Self {
        Self { read: Some(read), seen: Some(read) }
    }

    fn read(&mut self, stamp: Stamp) {
        (self.read, self.seen) = (Some(stamp), Some(stamp));
    }

    /// The file is another one than was read, and has been the same for two looks. It counts as read from then on.
    fn are_changed(&mut self, stamp: Option<Stamp>) -> bool {
        let settled = std::mem::replace(&mut self.seen, stamp) == stamp;
        let changed = settled && self.read != stamp;
        if changed {
            self.read = stamp;
        }
        changed
    }
}

/// `None`: it is not there, or not for us to see. The reader says why.
async fn stamp(path: PathBuf) -> Option<Stamp> {
    let metadata = spawn_blocking(move || fs::metadata(path)).await.ok()?;
    metadata.ok().map(|metadata| Stamp::of(&metadata))
}

/// Each refusal as a line of its own.
fn lines(error: &anyhow::Error) -> Vec<String> {
    if let Some(Refusals(refusals)) = error.downcast_ref() {
        return refusals.iter().map(Refusal::to_string).collect();
    }
    let gone = |error: &std::io::Error| error.kind() == ErrorKind::NotFound;
    match error.downcast_ref::<std::io::Error>().is_some_and(gone) {
        true => vec!["the file is not there".to_owned()],
        false => vec![format!("{error:#}")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(second: i64) -> Stamp {
        Stamp { file: (1, 2), length: 3, written: (second, 0), changed: (second, 0) }
    }

    #[test]
    fn a_change_counts_once_when_two_looks_agree() {
        let mut looks = Looks::new(stamp(0));
        assert!(!looks.are_changed(Some(stamp(0))) && !looks.are_changed(Some(stamp(0))));
        assert!(!looks.are_changed(Some(stamp(1))), "it may be being written");
        assert!(!looks.are_changed(Some(stamp(2))));
        assert!(looks.are_changed(Some(stamp(2))));
        assert!(!looks.are_changed(Some(stamp(2))), "it was read, whatever came of that");
        // A rename takes it away for a moment.
        assert!(!looks.are_changed(None));
        let other = Stamp { file: (1, 9), ..stamp(2) };
        assert!(!looks.are_changed(Some(other)) && looks.are_changed(Some(other)));
        // It stays away, and comes back as it was.
        assert!(!looks.are_changed(None) && looks.are_changed(None) && !looks.are_changed(None));
        assert!(!looks.are_changed(Some(other)) && looks.are_changed(Some(other)));
        // Read on a signal, meanwhile.
        looks.read(stamp(5));
        assert!(!looks.are_changed(Some(stamp(5))));
    }

    #[test]
    fn each_refusal_is_a_line() {
        let refusals = Endpoint::parse("addresses: [192.0.2.100]\nport: 1\n").unwrap_err();
        let error = anyhow::Error::from(refusals.clone()).context("--config /etc/sheave/endpoint.yaml");
        assert_eq!(lines(&error).len(), refusals.0.len());
        assert!(lines(&error).iter().all(|line| !line.contains("--config")), "{:?}", lines(&error));
        let gone = anyhow::Error::from(std::io::Error::from(ErrorKind::NotFound)).context("--config /nowhere");
        assert_eq!(lines(&gone), ["the file is not there"]);
        let mode = anyhow::Error::from(Endpoint::check_mode(0o644).unwrap_err()).context("--config /f");
        assert_eq!(lines(&mode), [format!("--config /f: {}", Endpoint::check_mode(0o644).unwrap_err())]);
    }
}
