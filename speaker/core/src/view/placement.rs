//! Placements in the view: where an administrator wants VIPs to be.

use alloc::collections::BTreeMap;
use alloc::string::String;
use core::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::View;

/// Where an administrator wants a VIP to be, or a node to have none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub node: String,
    pub mode: PlacementMode,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlacementMode {
    /// The node owns VIPs only while no other can.
    Drain,
    /// The node comes first when an owner of the VIP is chosen.
    Prefer { vip: Ipv4Addr },
    /// The owner with this term hands the VIP over to the node.
    Move { vip: Ipv4Addr, owner: String, term: u64 },
}

/// What is wanted of one VIP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placed<'a> {
    pub preferred: Option<&'a str>,
    pub order: Option<Order<'a>>,
}

/// The owner with this term hands the VIP over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order<'a> {
    pub to: &'a str,
    pub from: &'a str,
    pub term: u64,
}

impl View {
    pub fn is_drained(&self, node: &str) -> bool {
        self.placements.values().any(|one| one.mode == PlacementMode::Drain && one.node == node)
    }

    /// What is wanted of the VIPs of which anything is.
    pub fn placed(&self) -> BTreeMap<Ipv4Addr, Placed<'_>> {
        let mut placed: BTreeMap<Ipv4Addr, Placed<'_>> = BTreeMap::new();
        for Placement { node, mode } in self.placements.values() {
            match mode {
                PlacementMode::Drain => {}
                PlacementMode::Prefer { vip } => placed.entry(*vip).or_default().preferred = Some(node),
                PlacementMode::Move { vip, owner, term } => {
                    placed.entry(*vip).or_default().order = Some(Order { to: node, from: owner, term: *term });
                }
            }
        }
        placed
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Change, Event, Key, Object};
    use super::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn place(view: &mut View, name: &str, mode: PlacementMode) -> Change {
        view.handle(Event::Apply(Object::Placement(name.into(), Placement { node: "a".into(), mode })))
    }

    /// Those of a VIP are joined; all outlive the speaker.
    #[test]
    fn what_is_wanted_is_known_until_it_is_taken_back() {
        let mut view = View::default();
        let order = PlacementMode::Move { vip: VIP, owner: "b".into(), term: 7 };
        for (name, mode) in
            [("drain", PlacementMode::Drain), ("prefer", PlacementMode::Prefer { vip: VIP }), ("move", order)]
        {
            assert_eq!(place(&mut view, name, mode.clone()), Change::Changed);
            assert_eq!(place(&mut view, name, mode), Change::None);
        }
        let order = Order { to: "a", from: "b", term: 7 };
        assert_eq!(view.placed(), [(VIP, Placed { preferred: Some("a"), order: Some(order) })].into());
        assert!(view.is_drained("a") && !view.is_drained("b"));
        assert_eq!(View::from(view.objects()), view, "the same from disk");
        assert_eq!(view.without_wait().placed(), view.placed());
        for name in ["drain", "move"] {
            assert_eq!(view.handle(Event::Delete(Key::Placement(name.into()))), Change::Changed);
        }
        assert_eq!(view.placed(), [(VIP, Placed { preferred: Some("a"), order: None })].into());
        assert!(!view.is_drained("a"));
    }
}
