//! What a notice of the election means for the status of a VirtualIP.

use std::net::Ipv4Addr;

use sheave_api::NoOwner;
use speaker_core::election::{LoseReason, Owner};
use speaker_core::name::NodeName;
use speaker_core::view::View;

use crate::driver::Notice;
use crate::io::clock;
use crate::status::Ownership;

/// `own`: this node. `view`: the newest one. `barred`: why no node may own a VIP.
pub fn of(
    notice: Notice,
    own: &NodeName,
    view: Option<&View>,
    barred: impl Fn(Ipv4Addr) -> Option<NoOwner>,
) -> Option<(Ipv4Addr, Ownership)> {
    match notice {
        Notice::Acquired { vip, term } => Some((vip, Ownership::Owned { term: term.0, since: clock::timestamp() })),
        Notice::Yielded { vip, term } => Some((vip, Ownership::Yielded { term: term.0, since: clock::timestamp() })),
        Notice::OwnerChanged { vip, owner: None, why } => {
            let unannounced = |view: &View| view.vips().get(&vip).is_some_and(|granted| granted.unannounced);
            let reason = match why {
                Some(LoseReason::Undesired) if view.is_some_and(unannounced) => NoOwner::NotAnnounced,
                // Else the name for what came of it would be written over its cause.
                Some(LoseReason::Undesired) => barred(vip).unwrap_or(NoOwner::NotServed),
                Some(why) => no_owner(why),
                None => NoOwner::HandingOver,
            };
            Some((vip, Ownership::Unowned(reason)))
        }
        Notice::OwnerChanged { vip, owner: Some(Owner { node, term }), why } => {
            let conflict = why == Some(LoseReason::Conflict);
            let elsewhere = Ownership::Elsewhere { owner: node.as_str().to_owned(), term: term.0, conflict };
            (node != *own).then_some((vip, elsewhere))
        }
        Notice::HandedOver { .. } | Notice::Keys(_) | Notice::HeldBack | Notice::IdentityConfirmed => None,
    }
}

const fn no_owner(reason: LoseReason) -> NoOwner {
    match reason {
        LoseReason::Conflict | LoseReason::HandedOver => NoOwner::HandingOver,
        LoseReason::NoSuccessor => NoOwner::NoEligibleNode,
        LoseReason::Undesired | LoseReason::SavedView => NoOwner::NotServed,
        LoseReason::Frozen => NoOwner::NodeFrozen,
        LoseReason::NoCarrier => NoOwner::NoCarrier,
        LoseReason::NoQuorum => NoOwner::NoQuorum,
        LoseReason::MapWriteFailed => NoOwner::MapWriteFailed,
    }
}

#[cfg(test)]
mod tests {
    use speaker_core::name::Term;
    use speaker_core::view::{Object, VirtualIp};

    use super::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn node(name: &str) -> NodeName {
        NodeName::new(name).unwrap()
    }

    fn view(unannounced: bool) -> View {
        View::from(vec![Object::VirtualIp(VIP, VirtualIp { pool: "p".into(), unannounced, ..VirtualIp::default() })])
    }

    fn lost(why: Option<LoseReason>, view: Option<&View>) -> Option<Ownership> {
        let (vip, ownership) = of(Notice::OwnerChanged { vip: VIP, owner: None, why }, &node("own"), view, |_| None)?;
        assert_eq!(vip, VIP);
        Some(ownership)
    }

    #[test]
    fn a_vip_without_an_owner_names_why_it_has_none() {
        for (why, reason) in [
            (None, "HandingOver"),
            (Some(LoseReason::Conflict), "HandingOver"),
            (Some(LoseReason::HandedOver), "HandingOver"),
            (Some(LoseReason::NoSuccessor), "NoEligibleNode"),
            (Some(LoseReason::Undesired), "NotServed"),
            (Some(LoseReason::SavedView), "NotServed"),
            (Some(LoseReason::Frozen), "NodeFrozen"),
            (Some(LoseReason::NoCarrier), "NoCarrier"),
            (Some(LoseReason::NoQuorum), "NoQuorum"),
            (Some(LoseReason::MapWriteFailed), "MapWriteFailed"),
        ] {
            for view in [None, Some(&view(false))] {
                let Some(Ownership::Unowned(written)) = lost(why, view) else { panic!("{why:?} is written") };
                assert_eq!(written.as_str(), reason, "{why:?}");
            }
        }
        let unannounced = view(true);
        assert_eq!(
            lost(Some(LoseReason::Undesired), Some(&unannounced)),
            Some(Ownership::Unowned(NoOwner::NotAnnounced))
        );
        assert_eq!(lost(Some(LoseReason::Frozen), Some(&unannounced)), Some(Ownership::Unowned(NoOwner::NodeFrozen)));
    }

    /// A node joined with the address: its owner lets go, whose word is the last.
    #[test]
    fn an_owner_of_a_barred_vip_names_the_cause_and_not_what_came_of_it() {
        let barred = |vip| (vip == VIP).then_some(NoOwner::AddressOfNode);
        let lost = |why| {
            let notice = Notice::OwnerChanged { vip: VIP, owner: None, why: Some(why) };
            of(notice, &node("own"), Some(&view(false)), barred)
        };
        assert_eq!(lost(LoseReason::Undesired), Some((VIP, Ownership::Unowned(NoOwner::AddressOfNode))));
        assert_eq!(lost(LoseReason::Frozen), Some((VIP, Ownership::Unowned(NoOwner::NodeFrozen))));
    }

    #[test]
    fn another_owner_is_left_to_write_its_name_and_the_own_one_was_written() {
        let owned_by = |name: &str, why| {
            let owner = Some(Owner { node: node(name), term: Term(7) });
            of(Notice::OwnerChanged { vip: VIP, owner, why }, &node("own"), None, |_| None)
        };
        assert_eq!(owned_by("own", None), None);
        for (why, conflict) in
            [(None, false), (Some(LoseReason::HandedOver), false), (Some(LoseReason::Conflict), true)]
        {
            let elsewhere = Ownership::Elsewhere { owner: "other".into(), term: 7, conflict };
            assert_eq!(owned_by("other", why), Some((VIP, elsewhere)));
        }
        let owned = of(Notice::Acquired { vip: VIP, term: Term(7) }, &node("own"), None, |_| None);
        assert!(matches!(owned, Some((VIP, Ownership::Owned { term: 7, .. }))));
        let yielded = of(Notice::Yielded { vip: VIP, term: Term(7) }, &node("own"), None, |_| None);
        assert!(matches!(yielded, Some((VIP, Ownership::Yielded { term: 7, .. }))));
        assert_eq!(of(Notice::HandedOver { all_taken: true }, &node("own"), None, |_| None), None);
    }
}
