//! Limits that are reached now, for the SpeakerState. `sheave_limits_reached_total` counts how often each was.
//!
//! What is left out for as long as there is no room *stands*: who leaves it out says so each time that it looks. The others are moments
//! (a connection that was not accepted): they count for [`RECENT`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So long a limit that was reached for a moment is called reached.
const RECENT: Duration = Duration::from_secs(600);

#[derive(Default)]
pub struct Reached(Mutex<State>);

#[derive(Default)]
struct State {
    /// By who leaves something out.
    standing: BTreeMap<&'static str, BTreeSet<&'static str>>,
    /// Limits that have stood: their counters say nothing about the present.
    stood: BTreeSet<&'static str>,
    /// The last value of each counter, and when it was first seen.
    counted: BTreeMap<String, (f64, Instant)>,
}

impl Reached {
    /// `who` leaves out something for these limits now, and for no others.
    pub fn stand(&self, who: &'static str, limits: impl IntoIterator<Item = &'static str>) {
        let limits: BTreeSet<&'static str> = limits.into_iter().collect();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.stood.extend(&limits);
        state.standing.insert(who, limits);
    }

    /// In order. `counters`: how often each was reached.
    pub fn names<'a>(&self, counters: impl Iterator<Item = (&'a str, f64)>, now: Instant) -> Vec<String> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let State { standing, stood, counted } = &mut *state;
        let mut names: BTreeSet<String> = standing.values().flatten().map(|name| (*name).to_owned()).collect();
        for (name, value) in counters.filter(|(name, value)| *value > 0.0 && !stood.contains(name)) {
            let last = counted.entry(name.to_owned()).or_insert((value, now));
            if last.0 != value {
                *last = (value, now);
            }
            if now.duration_since(last.1) < RECENT {
                names.insert(name.to_owned());
            }
        }
        names.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_named_until_it_is_not_and_a_moment_for_ten_minutes() {
        let (reached, now) = (Reached::default(), Instant::now());
        let counters = [("ring", 0.0), ("services", 3.0), ("admin_connections", 1.0), ("node", 5.0)];
        reached.stand("view", ["services"]);
        reached.stand("maps", ["node"]);
        assert_eq!(reached.names(counters.into_iter(), now), ["admin_connections", "node", "services"]);
        // The counters stay. Another one's limits do, too.
        reached.stand("view", []);
        assert_eq!(reached.names(counters.into_iter(), now + RECENT / 2), ["admin_connections", "node"]);
        reached.stand("maps", []);
        assert_eq!(reached.names(counters.into_iter(), now + RECENT), [""; 0]);
        let again = [("admin_connections", 2.0)];
        assert_eq!(reached.names(again.into_iter(), now + 2 * RECENT), ["admin_connections"]);
        assert_eq!(reached.names(again.into_iter(), now + 3 * RECENT), [""; 0]);
    }
}
