//! Nodes whose objects were deleted: how long each stays in the view for the flows that it has.

use std::collections::BTreeMap;
use std::time::Duration;

use speaker_core::time::Instant;
use speaker_core::view::View;

pub struct Departed {
    /// As long as open flows are followed at all (`--drain-window-s`).
    window: Duration,
    since: BTreeMap<String, Instant>,
}

/// Between two checks whether the window of a node is over.
pub const CHECK: Duration = Duration::from_secs(10);

impl Departed {
    pub fn new(window: Duration) -> Self {
        Self { window, since: BTreeMap::new() }
    }

    /// Drops nodes whose window is over; the own node never. Whether the view has changed.
    pub fn expire(&mut self, view: &mut View, own: &str, now: Instant) -> bool {
        let departed: Vec<String> =
            view.nodes().iter().filter(|(_, node)| node.departed).map(|(name, _)| name.clone()).collect();
        self.since.retain(|name, _| departed.contains(name));
        let mut changed = false;
        for name in departed {
            let since = *self.since.entry(name.clone()).or_insert(now);
            if name != own && now.since(since) >= self.window {
                changed |= view.forget_node(&name);
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use speaker_core::view::{Event, Key, Node, Object};

    use super::*;

    #[test]
    fn a_departed_node_stays_for_the_window_and_the_own_one_for_good() {
        let node = |name: &str, last: u8| Object::Node(name.into(), Node::at([192, 0, 2, last].into()));
        let mut view = View::from(vec![node("a", 1), node("b", 2), node("own", 3)]);
        for name in ["a", "own"] {
            view.handle(Event::Delete(Key::Node(name.into())));
        }
        let mut departed = Departed::new(Duration::from_secs(60));
        let at = Instant::from_millis;
        assert!(!departed.expire(&mut view, "own", at(1_000)));
        assert!(!departed.expire(&mut view, "own", at(60_000)));
        assert!(view.nodes().contains_key("a"));
        assert!(departed.expire(&mut view, "own", at(61_000)));
        assert_eq!(view.nodes().keys().collect::<Vec<_>>(), ["b", "own"]);
        assert!(!departed.expire(&mut view, "own", at(200_000)));
    }
}
