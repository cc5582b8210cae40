//! Scans conntrack from time to time: the flows of this node, for its report.

use std::collections::BTreeSet;
use std::future::pending;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use speaker_core::backend::Flow;
use speaker_core::time::Instant;
use tokio::task::JoinHandle;

use crate::backend::conntrack;
use crate::io::clock;

/// After a change of the table: flows go on being opened by dispatchers that lag.
const BUSY: Duration = Duration::from_secs(15);
/// Between looks while something changes, while this node holds flows of others' rows, and at rest.
const OFTEN: Duration = Duration::from_secs(1);
const SOMETIMES: Duration = Duration::from_secs(5);
const RARELY: Duration = Duration::from_secs(30);
/// A look takes at most this part of the time: with 100,000 entries it lasts a tenth of a second.
const SHARE: u32 = 20;

/// When to look, and the look that is under way.
pub struct ConntrackScan {
    /// This node holds flows of rows that are not its own.
    pub has_foreign_rows: bool,
    changed: Instant,
    /// When the last scan began; `None`: scan at once.
    scanned: Option<Instant>,
    took: Duration,
    running: Option<JoinHandle<io::Result<Vec<Flow>>>>,
}

impl ConntrackScan {
    pub fn new(now: Instant) -> Self {
        Self { has_foreign_rows: false, changed: now, scanned: None, took: Duration::ZERO, running: None }
    }

    /// The table is another one: this node reports at once.
    pub fn changed(&mut self, now: Instant) {
        self.changed = now;
        self.scanned = None;
    }

    /// `wary`: other nodes have other tables, or flows may be deleted by others.
    pub fn is_due(&self, often: bool, now: Instant) -> bool {
        if self.running.is_some() {
            return false;
        }
        let Some(scanned) = self.scanned else { return true };
        let pause = if often || now.since(self.changed) < BUSY {
            OFTEN
        } else if self.has_foreign_rows {
            SOMETIMES
        } else {
            RARELY
        };
        now >= scanned + pause.max(self.took * SHARE)
    }

    /// After a change rows may have come here whose flows meet entries of closed connections: those are deleted first.
    pub fn begin(&mut self, vips: BTreeSet<Ipv4Addr>, now: Instant) {
        let changed = self.scanned.replace(now).is_none();
        self.running = Some(tokio::task::spawn_blocking(move || {
            if changed {
                conntrack::forget_closed(&vips)?;
            }
            conntrack::flows(&vips)
        }));
    }

    /// The result of the look that is under way; never, if there is none.
    pub async fn done(&mut self) -> io::Result<Vec<Flow>> {
        let Some(running) = &mut self.running else { return pending().await };
        let result = running.await;
        self.running = None;
        if let Some(scanned) = self.scanned {
            self.took = clock::now().since(scanned);
        }
        result.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn often_after_a_change_and_rarely_at_rest() {
        let at = |seconds: u64| Instant::from_millis(1000 * seconds);
        let mut scan = ConntrackScan::new(at(0));
        assert!(scan.is_due(false, at(0)));
        scan.scanned = Some(at(0));
        assert!(!scan.is_due(false, at(0)) && scan.is_due(false, at(1)));
        scan.scanned = Some(at(100));
        assert!(!scan.is_due(false, at(129)) && scan.is_due(false, at(130)));
        assert!(scan.is_due(true, at(101)));
        scan.has_foreign_rows = true;
        assert!(!scan.is_due(false, at(104)) && scan.is_due(false, at(105)));
        scan.took = Duration::from_millis(500);
        assert!(!scan.is_due(true, at(109)) && scan.is_due(true, at(110)));
        scan.changed(at(101));
        assert!(scan.is_due(false, at(101)));
    }
}
