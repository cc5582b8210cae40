//! Nodes whose objects were deleted: how long each stays in the view for the flows that it has.
//!
//! The time counts on while no speaker runs, so that restarts neither prolong nor shorten it. Only what a machine was off for does not
//! count: no clock tells it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use speaker_core::name::NodeName;
use speaker_core::time::Instant;
use speaker_core::view::{Limit, View};

pub struct Departed {
    /// As long as open flows are followed at all (`--drain-window-s`).
    window: Duration,
    /// When the window of each is over.
    ends: BTreeMap<String, Instant>,
    /// The names that are on disk or will be, and since when.
    saved: Option<(Vec<String>, Instant)>,
}

/// How long each had been gone when it was saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedDepartures {
    boot: String,
    /// On the boot clock.
    saved_at_nanos: u64,
    age_millis: BTreeMap<String, u64>,
}

/// Between two checks whether the window of a node is over.
pub const CHECK: Duration = Duration::from_secs(10);
/// Between two saves of the same nodes: what a start of the machine takes from their time at most.
const REFRESH: Duration = Duration::from_secs(600);

impl Departed {
    pub fn new(window: Duration) -> Self {
        Self { window, ends: BTreeMap::new(), saved: None }
    }

    /// As the speaker before this one left it. Of more nodes than a view holds, and of what is no name of one, nothing is taken.
    pub fn restore(window: Duration, saved: &SavedDepartures, boot: &str, now: Instant) -> Self {
        let away = match Instant::from_nanos(saved.saved_at_nanos) {
            saved_at if boot == saved.boot => now.since(saved_at),
            _ => Duration::ZERO,
        };
        let names = saved.age_millis.iter().filter(|(name, _)| NodeName::new(name).is_some());
        let end = |age: u64| now + window.saturating_sub(Duration::from_millis(age).saturating_add(away));
        let ends = names.take(Limit::Nodes.value()).map(|(name, age)| (name.clone(), end(*age))).collect();
        Self { window, ends, saved: None }
    }

    /// Drops nodes whose window is over; the own node never. Whether the view has changed.
    pub fn expire(&mut self, view: &mut View, own: &str, now: Instant) -> bool {
        let departed: Vec<String> =
            view.nodes().iter().filter(|(_, node)| node.departed).map(|(name, _)| name.clone()).collect();
        self.ends.retain(|name, _| departed.contains(name));
        let mut changed = false;
        for name in departed {
            let end = *self.ends.entry(name.clone()).or_insert(now + self.window);
            if name != own && now >= end && view.forget_node(&name) {
                self.ends.remove(&name);
                changed = true;
            }
        }
        changed
    }

    /// What is to be saved, if it is not.
    pub fn unsaved(&mut self, boot: &str, now: Instant) -> Option<SavedDepartures> {
        let names: Vec<String> = self.ends.keys().cloned().collect();
        let is_saved = |(saved, since): &(Vec<String>, Instant)| {
            *saved == names && (names.is_empty() || now.since(*since) < REFRESH)
        };
        if self.saved.as_ref().is_some_and(is_saved) {
            return None;
        }
        self.saved = Some((names, now));
        let age = |end: Instant| self.window.saturating_sub(end.since(now));
        let age_millis = |end: Instant| u64::try_from(age(end).as_millis()).unwrap_or(u64::MAX);
        let age_millis = self.ends.iter().map(|(name, end)| (name.clone(), age_millis(*end))).collect();
        Some(SavedDepartures { boot: boot.into(), saved_at_nanos: now.as_nanos(), age_millis })
    }
}

#[cfg(test)]
mod tests {
    use speaker_core::view::{Event, Key, Node, Object};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    /// The nodes `a`, `b` and `own`; `a` and `own` are deleted.
    fn view() -> View {
        let node = |name: &str, last: u8| Object::Node(name.into(), Node::at([192, 0, 2, last].into()));
        let mut view = View::from(vec![node("a", 1), node("b", 2), node("own", 3)]);
        for name in ["a", "own"] {
            view.handle(Event::Delete(Key::Node(name.into())));
        }
        view
    }

    #[test]
    fn a_departed_node_stays_for_the_window_and_the_own_one_for_good() {
        let mut view = view();
        let mut departed = Departed::new(MINUTE);
        assert!(!departed.expire(&mut view, "own", at(1_000)));
        assert!(!departed.expire(&mut view, "own", at(60_000)));
        assert!(view.nodes().contains_key("a"));
        assert!(departed.expire(&mut view, "own", at(61_000)));
        assert_eq!(view.nodes().keys().collect::<Vec<_>>(), ["b", "own"]);
        assert!(!departed.expire(&mut view, "own", at(200_000)));
    }

    /// Of the same boot the time without a speaker counts; of another one what had passed when it was saved last.
    #[test]
    fn a_restart_neither_prolongs_the_window_nor_shortens_it() {
        for (boot, restarted, ends) in [("boot", 40_000, 61_000), ("other", 5_000, 5_000 + 51_000)] {
            let mut first = Departed::new(MINUTE);
            let mut seen = view();
            first.expire(&mut seen, "own", at(1_000));
            assert!(first.unsaved("boot", at(1_000)).is_some_and(|saved| saved.age_millis["a"] == 0));
            assert_eq!(first.unsaved("boot", at(9_000)), None);
            first.saved = None;
            let saved = first.unsaved("boot", at(10_000)).expect("it is to be saved");
            let read = serde_json::from_slice(&serde_json::to_vec(&saved).expect("bytes")).expect("what was written");
            assert_eq!(saved, read);
            let mut next = Departed::restore(MINUTE, &read, boot, at(restarted));
            for again in [restarted, ends - 1] {
                assert!(!next.expire(&mut seen, "own", at(again)), "{boot} {again}");
            }
            assert!(next.expire(&mut seen, "own", at(ends)), "{boot}");
        }
    }

    #[test]
    fn nodes_that_are_gone_for_long_are_saved_again_and_a_bad_file_costs_nothing() {
        let mut departed = Departed::new(MINUTE * 60);
        assert!(departed.unsaved("boot", at(0)).is_some_and(|saved| saved.age_millis.is_empty()), "an earlier file");
        assert_eq!(departed.unsaved("boot", at(700_000)), None);
        departed.expire(&mut view(), "own", at(700_000));
        assert!(departed.unsaved("boot", at(700_000)).is_some());
        assert_eq!(departed.unsaved("boot", at(1_299_999)), None);
        let saved = departed.unsaved("boot", at(1_300_000)).expect("it is to be saved");
        assert_eq!(saved.age_millis["a"], 600_000);
        // Half an hour is left after a longer window was set, and none after a shorter one; a name that is none is left out.
        let mut bad = saved;
        bad.age_millis = [("a", 1_800_000), ("own", u64::MAX), ("no/name", 0)].map(|(n, age)| (n.into(), age)).into();
        for (window, left) in [(MINUTE * 60, 1_800_000), (MINUTE, 0)] {
            let departed = Departed::restore(window, &bad, "other", at(5_000));
            let ends = [("a", 5_000 + left), ("own", 5_000)].map(|(name, end)| (String::from(name), at(end)));
            assert_eq!(departed.ends, ends.into());
        }
    }
}
