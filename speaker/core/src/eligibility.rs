//! May this node hold this VIP?
//!
//! externalTrafficPolicy Cluster: every node can reach every pod, so only the node's own packet path decides. A VIP whose
//! services have no ready pod keeps its owner on purpose: the owner's dispatcher resets new connections, so that clients
//! fail at once; without an owner nobody answers ARP and they hang until they time out. When the pods return nothing has to
//! be elected first.

use core::net::Ipv4Addr;

use crate::election::Eligible;
use crate::forwarding::Table;
use crate::name::NodeName;
use crate::view::View;

/// What this node's packet path can do, as the daemon last saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dataplane {
    /// The XDP program is attached to the uplink.
    pub attached: bool,
    /// The maps and the nftables table say what the view says, since a full view was heard.
    pub synced: bool,
    /// The uplink has carrier.
    pub carrier: bool,
}

/// Why not. The label is log field, metric label and the reason in the VirtualIP's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NotEligible {
    /// The VIP is not granted (any more).
    NotGranted,
    /// No service port is behind the VIP: nothing to answer for.
    NoService,
    NoCarrier,
    NotAttached,
    NotSynced,
}

impl NotEligible {
    pub const ALL: &'static [NotEligible] =
        &[Self::NotGranted, Self::NoService, Self::NoCarrier, Self::NotAttached, Self::NotSynced];

    pub const fn label(self) -> &'static str {
        match self {
            Self::NotGranted => "not_granted",
            Self::NoService => "no_service",
            Self::NoCarrier => "no_carrier",
            Self::NotAttached => "not_attached",
            Self::NotSynced => "not_synced",
        }
    }
}

/// `Ok`: it may.
pub fn may_hold(table: &Table, vip: Ipv4Addr, dataplane: Dataplane) -> Result<(), NotEligible> {
    let Dataplane { attached, synced, carrier } = dataplane;
    if !table.vips.contains(&vip) {
        Err(NotEligible::NotGranted)
    } else if !table.services.keys().any(|key| key.addr == vip.octets()) {
        Err(NotEligible::NoService)
    } else if !carrier {
        Err(NotEligible::NoCarrier)
    } else if !attached {
        Err(NotEligible::NotAttached)
    } else if !synced {
        Err(NotEligible::NotSynced)
    } else {
        Ok(())
    }
}

/// The nodes among which VIPs are elected: without those that the cluster's administrator has excluded (label
/// `node.kubernetes.io/exclude-from-external-load-balancers`, KEP-1143). An owner that is excluded hands over. If all are, the
/// label says nothing.
pub fn candidates(view: &View) -> Eligible {
    if view.nodes().values().all(|node| !node.excluded) || view.nodes().values().all(|node| node.excluded) {
        return Eligible::Everybody;
    }
    let names = view.nodes().iter().filter(|(_, node)| !node.excluded).filter_map(|(name, _)| NodeName::new(name));
    Eligible::Only(names.collect())
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::sync::Arc;
    use alloc::vec::Vec;

    use super::*;
    use crate::forwarding::Service;
    use crate::view::endpoints::service_key;
    use crate::view::{Affinity, Node, Object, Protocol};

    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const ALL_WELL: Dataplane = Dataplane { attached: true, synced: true, carrier: true };

    fn table(with_service: bool) -> Table {
        let mut table = Table::default();
        table.vips.insert(VIP);
        if with_service {
            let service = Service { affinity: Affinity::None, ring: Arc::default(), alternates: None };
            table.services.insert(service_key(VIP, 80, Protocol::Tcp), service);
        }
        table
    }

    #[test]
    fn an_empty_ring_keeps_its_owner() {
        let table = table(true);
        assert!(table.services.values().all(|service| service.ring.rows.is_empty()));
        assert_eq!(may_hold(&table, VIP, ALL_WELL), Ok(()));
    }

    #[test]
    fn excluded_nodes_are_no_candidates_unless_all_are() {
        let view = |excluded: &[bool]| {
            let node = |(i, &excluded): (usize, &bool)| {
                let address = Ipv4Addr::new(192, 0, 2, 10 + i as u8);
                Object::Node(format!("n{i}"), Node { address, ready: true, excluded })
            };
            View::from(excluded.iter().enumerate().map(node).collect::<Vec<_>>())
        };
        let only = |names: &[&str]| Eligible::Only(names.iter().filter_map(|name| NodeName::new(name)).collect());
        assert_eq!(candidates(&view(&[false, false])), Eligible::Everybody);
        assert_eq!(candidates(&view(&[true, true])), Eligible::Everybody);
        assert_eq!(candidates(&view(&[false, true, false])), only(&["n0", "n2"]));
    }

    #[test]
    fn every_refusal_is_named() {
        let with = |dataplane| may_hold(&table(true), VIP, dataplane);
        assert_eq!(may_hold(&Table::default(), VIP, ALL_WELL), Err(NotEligible::NotGranted));
        assert_eq!(may_hold(&table(false), VIP, ALL_WELL), Err(NotEligible::NoService));
        assert_eq!(with(Dataplane { carrier: false, ..ALL_WELL }), Err(NotEligible::NoCarrier));
        assert_eq!(with(Dataplane { attached: false, ..ALL_WELL }), Err(NotEligible::NotAttached));
        assert_eq!(with(Dataplane { synced: false, ..ALL_WELL }), Err(NotEligible::NotSynced));
    }
}
