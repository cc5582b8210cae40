//! Which VIPs are to have an owner, and which nodes may be it?
//!
//! externalTrafficPolicy Cluster: every node can reach every pod, so only the node's own packet path decides, and the election
//! gets that as events (ready, carrier). A VIP whose services have no ready pod keeps its owner on purpose: the owner's
//! dispatcher resets new connections, so that clients fail at once; without an owner no node answers ARP and they hang until they
//! time out. When the pods return nothing has to be elected first.

use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use core::net::Ipv4Addr;

use crate::election::Eligible;
use crate::forwarding::Table;
use crate::name::NodeName;
use crate::view::View;

/// VIPs that some service port stands behind: for others there is nothing to answer.
pub fn ownable(table: &Table) -> impl Iterator<Item = Ipv4Addr> {
    let served: BTreeSet<Ipv4Addr> = table.services.keys().map(|key| key.addr.into()).collect();
    table.vips.iter().copied().filter(move |vip| served.contains(vip))
}

/// The nodes among which VIPs are elected: without the nodes that the administrator excluded (label
/// `node.kubernetes.io/exclude-from-external-load-balancers`, KEP-1143). If all are excluded, the label is ignored. Nodes that
/// are not cordoned are the first choice. A cordoned owner hands over, as long as a first choice can take over.
pub fn candidates(view: &View) -> Eligible {
    let excluded_counts = view.members().any(|(_, node)| !node.excluded);
    let may = || view.members().filter(|(_, node)| !(excluded_counts && node.excluded));
    let names = |cordoned: bool| -> BTreeSet<NodeName> {
        may().filter(|(_, node)| node.cordoned == cordoned).filter_map(|(name, _)| NodeName::new(name)).collect()
    };
    let (first, cordoned) = (names(false), names(true));
    let all = first.len() + cordoned.len() == view.members().count();
    match (first.is_empty(), cordoned.is_empty()) {
        (true, _) | (_, true) if all => Eligible::All,
        (true, _) => Eligible::only(cordoned),
        (_, true) => Eligible::only(first),
        (false, false) => Eligible::Preferred { nodes: Arc::new(first), others: Arc::new(cordoned) },
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec::Vec;

    use super::*;
    use crate::forwarding::Service;
    use crate::view::endpoints::service_key;
    use crate::view::{Node, Object, Protocol, ServiceAttributes};

    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn table(with_service: bool) -> Table {
        let mut table = Table::default();
        table.vips.insert(VIP);
        if with_service {
            let attributes = ServiceAttributes::default();
            let service = Service { attributes, no_new_flows: false, ring: Arc::default(), alternates: None };
            table.services.insert(service_key(VIP, 80, Protocol::Tcp), service);
        }
        table
    }

    #[test]
    fn an_empty_ring_keeps_its_owner() {
        let table = table(true);
        assert!(table.services.values().all(|service| service.ring.rows.is_empty()));
        assert_eq!(ownable(&table).collect::<Vec<_>>(), [VIP]);
    }

    #[test]
    fn nothing_to_answer_for_needs_no_owner() {
        assert_eq!(ownable(&table(false)).count(), 0);
    }

    #[test]
    fn excluded_nodes_are_no_candidates_unless_all_are() {
        let view = |excluded: &[bool]| {
            let node = |(i, &excluded): (usize, &bool)| {
                let address = Ipv4Addr::new(192, 0, 2, 10 + i as u8);
                Object::Node(format!("n{i}"), Node { excluded, ..Node::at(address) })
            };
            View::from(excluded.iter().enumerate().map(node).collect::<Vec<_>>())
        };
        let only = |names: &[&str]| Eligible::only(names.iter().filter_map(|name| NodeName::new(name)).collect());
        assert_eq!(candidates(&view(&[false, false])), Eligible::All);
        assert_eq!(candidates(&view(&[true, true])), Eligible::All);
        assert_eq!(candidates(&view(&[false, true, false])), only(&["n0", "n2"]));
    }

    /// A cordoned node is the second choice, an excluded or deleted one none.
    #[test]
    fn cordoned_nodes_come_second() {
        let node = |name: &str, change: fn(&mut Node)| {
            let mut node = Node::at(Ipv4Addr::new(192, 0, 2, name.as_bytes()[0]));
            change(&mut node);
            Object::Node(name.into(), node)
        };
        let names =
            |names: &[&str]| -> BTreeSet<NodeName> { names.iter().filter_map(|name| NodeName::new(name)).collect() };
        let mut known = View::from(alloc::vec![
            node("a", |_| {}),
            node("b", |node| node.cordoned = true),
            node("c", |node| node.excluded = true),
            node("d", |_| {}),
        ]);
        known.handle(crate::view::Event::Delete(crate::view::Key::Node("d".into())));
        let preferred = Eligible::Preferred { nodes: Arc::new(names(&["a"])), others: Arc::new(names(&["b"])) };
        assert_eq!(candidates(&known), preferred);
        let all =
            View::from(alloc::vec![node("a", |node| node.cordoned = true), node("b", |node| node.cordoned = true)]);
        assert_eq!(candidates(&all), Eligible::All, "the last ones keep them");
    }
}
