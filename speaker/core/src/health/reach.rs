//! Whether this node may own the addresses: one that reaches no member must not, while another does.
//!
//! A node gives up ownership when for [`LOST`] it has reached no member on the first port while a peer has reported that it reaches one. It
//! is eligible again after [`REGAINED`] of reaching one. Where no node reaches any the owner stays, and refuses. The node's own member
//! alone decides nothing: while it fails, the others are checked.

use crate::time::{Duration, Instant};

pub const LOST: Duration = Duration::from_secs(3);
pub const REGAINED: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    given_up: bool,
    /// Since when what would change that has been true.
    since: Option<Instant>,
}

impl Reach {
    pub fn given_up(&self) -> bool {
        self.given_up
    }

    /// `own`: this node reaches a member. `peer`: another one reports that it does. Whether that changed something.
    pub fn observe(&mut self, own: bool, peer: bool, now: Instant) -> bool {
        let counts = if self.given_up { own } else { !own && peer };
        if !counts {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let changes = now.since(since) >= self.delay();
        if changes {
            *self = Self { given_up: !self.given_up, since: None };
        }
        changes
    }

    /// When it changes, if nothing else does.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.since.map(|since| since + self.delay())
    }

    fn delay(&self) -> Duration {
        if self.given_up { REGAINED } else { LOST }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Instant {
        Instant::from_millis((seconds * 1000.0) as u64)
    }

    #[test]
    fn a_node_that_reaches_none_while_a_peer_does_gives_up() {
        let mut reach = Reach::default();
        assert!(!reach.observe(true, true, at(0.0)) && reach.next_deadline().is_none());
        assert!(!reach.observe(false, true, at(1.0)));
        assert_eq!(reach.next_deadline(), Some(at(4.0)));
        assert!(!reach.observe(false, true, at(3.999)) && !reach.given_up());
        assert!(reach.observe(false, true, at(4.0)) && reach.given_up());
        // And back.
        assert!(!reach.observe(true, true, at(6.0)));
        assert!(!reach.observe(true, false, at(10.9)) && reach.given_up(), "whatever peers report");
        assert!(reach.observe(true, false, at(11.0)) && !reach.given_up());
    }

    #[test]
    fn where_no_node_reaches_any_the_owner_stays() {
        let mut reach = Reach::default();
        for second in 0..600 {
            assert!(!reach.observe(false, false, at(f64::from(second))));
        }
        assert!(!reach.given_up());
    }

    #[test]
    fn an_interruption_starts_the_time_again() {
        let mut reach = Reach::default();
        for (second, own, peer) in [(0.0, false, true), (2.9, true, true), (3.0, false, true), (5.9, false, false)] {
            assert!(!reach.observe(own, peer, at(second)));
        }
        assert!(!reach.observe(false, true, at(6.0)) && !reach.observe(false, true, at(8.9)));
        assert!(reach.observe(false, true, at(9.0)));
        for (second, own) in [(10.0, true), (14.9, false), (15.0, true), (19.9, true)] {
            assert!(!reach.observe(own, true, at(second)), "{second}");
        }
        assert!(reach.observe(true, true, at(20.0)));
    }
}
