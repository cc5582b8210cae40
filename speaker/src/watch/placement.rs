//! Placements of the API server into those of the view.

use std::net::Ipv4Addr;

use kube::ResourceExt;
use sheave_api::{Placement, PlacementMode, PlacementSpec};
use speaker_core::view::{Key, Object, Placement as View, PlacementMode as Mode};
use tracing::warn;

/// The API server admits what can be read, and addresses of IPv6, which are not served yet.
pub fn convert(placement: Placement) -> Option<(Key, Option<Object>)> {
    let name = placement.name_any();
    let view = view(placement.spec);
    if view.is_none() {
        warn!(placement = name, "Placement left out: its address is none of IPv4, which alone is served");
    }
    Some((Key::Placement(name.clone()), view.map(|view| Object::Placement(name, view))))
}

fn view(spec: PlacementSpec) -> Option<View> {
    let PlacementSpec { mode, address, node, owner, term, by: _, reason: _ } = spec;
    let vip = || address.and_then(|address| address.parse::<Ipv4Addr>().ok());
    let mode = match mode {
        PlacementMode::Drain => Mode::Drain,
        PlacementMode::Prefer => Mode::Prefer { vip: vip()? },
        PlacementMode::Move => Mode::Move { vip: vip()?, owner: owner?, term: u64::try_from(term?).ok()? },
    };
    Some(View { node, mode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_arrives() {
        let vip = Ipv4Addr::new(192, 0, 2, 1);
        let moved = Mode::Move { vip, owner: "a".into(), term: 7 };
        for (spec, mode) in [
            (serde_json::json!({ "mode": "Drain", "node": "n", "by": "me" }), Some(Mode::Drain)),
            (serde_json::json!({ "mode": "Prefer", "node": "n", "address": "192.0.2.1" }), Some(Mode::Prefer { vip })),
            (
                serde_json::json!({ "mode": "Move", "node": "n", "address": "192.0.2.1", "owner": "a", "term": 7 }),
                Some(moved),
            ),
            (serde_json::json!({ "mode": "Prefer", "node": "n", "address": "2001:db8::1" }), None),
        ] {
            let object = serde_json::json!({ "metadata": { "name": "x" }, "spec": spec });
            let (key, view) = convert(serde_json::from_value(object).unwrap()).unwrap();
            let expected = mode.map(|mode| Object::Placement("x".into(), View { node: "n".into(), mode }));
            assert_eq!((key, view), (Key::Placement("x".into()), expected));
        }
    }
}
