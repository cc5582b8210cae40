//! Looks at conntrack from time to time: what this node holds, for the others to know.

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
pub struct Look {
    /// This node holds flows of rows that are not its own.
    pub holding: bool,
    changed: Instant,
    /// When the last look began; `None`: look at once.
    looked: Option<Instant>,
    took: Duration,
    running: Option<JoinHandle<io::Result<Vec<Flow>>>>,
}

impl Look {
    pub fn new(now: Instant) -> Self {
        Self { holding: false, changed: now, looked: None, took: Duration::ZERO, running: None }
    }

    /// The table is another one: what this node holds is to be told at once.
    pub fn changed(&mut self, now: Instant) {
        self.changed = now;
        self.looked = None;
    }

    /// `wary`: other nodes have other tables, or flows may be deleted by others.
    pub fn is_due(&self, wary: bool, now: Instant) -> bool {
        if self.running.is_some() {
            return false;
        }
        let Some(looked) = self.looked else { return true };
        let pause = if wary || now.since(self.changed) < BUSY {
            OFTEN
        } else if self.holding {
            SOMETIMES
        } else {
            RARELY
        };
        now >= looked + pause.max(self.took * SHARE)
    }

    /// After a change rows may have come here whose flows meet what closed connections left: that goes first.
    pub fn begin(&mut self, vips: BTreeSet<Ipv4Addr>, now: Instant) {
        let changed = self.looked.replace(now).is_none();
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
        if let Some(looked) = self.looked {
            self.took = clock::now().since(looked);
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
        let mut look = Look::new(at(0));
        assert!(look.is_due(false, at(0)));
        look.looked = Some(at(0));
        assert!(!look.is_due(false, at(0)) && look.is_due(false, at(1)));
        look.looked = Some(at(100));
        assert!(!look.is_due(false, at(129)) && look.is_due(false, at(130)));
        assert!(look.is_due(true, at(101)));
        look.holding = true;
        assert!(!look.is_due(false, at(104)) && look.is_due(false, at(105)));
        look.took = Duration::from_millis(500);
        assert!(!look.is_due(true, at(109)) && look.is_due(true, at(110)));
        look.changed(at(101));
        assert!(look.is_due(false, at(101)));
    }
}
