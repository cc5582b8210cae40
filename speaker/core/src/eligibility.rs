//! Which VIPs are to have an owner, and which nodes may be it?
//!
//! Every node can reach every pod, so only the node's own packet path decides, and the election gets that as events (ready, carrier).
//! externalTrafficPolicy Local changes the order alone: nodes with pods come first in rank, so that most packets are where their pod is.
//! An owner whose last pod ends keeps the VIP: moving it would cost more than the hop.
//! A VIP whose services have no ready pod keeps its owner on purpose: the owner's
//! dispatcher resets new connections, so that clients fail at once; without an owner no node answers ARP and they hang until they
//! time out. When the pods return nothing has to be elected first.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use core::net::Ipv4Addr;

use ebpf_common::ServiceKey;

use crate::election::Eligible;
use crate::forwarding::Table;
use crate::forwarding::members::{is_last_resort, is_ready};
use crate::name::{NodeName, Vip};
use crate::view::endpoints::{Frontend, Pod};
use crate::view::{TrafficPolicy, View};

/// Every VIP that is to have an owner, and the nodes among which it is elected.
pub fn desired(table: &Table, view: &View) -> BTreeMap<Vip, Eligible> {
    let all = candidates(view);
    let of = Arc::new(all.clone());
    let eligible = |vip: &Ipv4Addr| match table.with_pods.get(vip) {
        Some(nodes) => Eligible::WithPods { nodes: nodes.clone(), of: of.clone() },
        None => all.clone(),
    };
    ownable(table).map(|vip| (Vip(vip), eligible(&vip))).collect()
}

/// The nodes with pods that take new flows, for VIPs whose Services are all Local.
pub fn with_pods(frontends: &BTreeMap<ServiceKey, Frontend<'_>>) -> BTreeMap<Ipv4Addr, Arc<BTreeSet<NodeName>>> {
    let is_local = |frontend: &Frontend<'_>| frontend.attributes.traffic_policy == TrafficPolicy::Local;
    if !frontends.values().any(is_local) {
        return BTreeMap::new();
    }
    let vip = |key: &ServiceKey| Ipv4Addr::from(key.addr);
    let others: BTreeSet<_> = frontends.iter().filter(|(_, one)| !is_local(one)).map(|(key, _)| vip(key)).collect();
    let mut found: BTreeMap<Ipv4Addr, BTreeSet<NodeName>> = BTreeMap::new();
    for (key, frontend) in frontends.iter().filter(|(key, _)| !others.contains(&vip(key))) {
        let none_ready = !frontend.pods.iter().any(is_ready);
        let takes = |pod: &&Pod<'_>| if none_ready { is_last_resort(pod) } else { is_ready(pod) };
        let nodes = frontend.pods.iter().filter(takes).filter_map(|pod| NodeName::new(pod.node));
        found.entry(vip(key)).or_default().extend(nodes);
    }
    found.into_iter().map(|(vip, nodes)| (vip, Arc::new(nodes))).collect()
}

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
    use alloc::string::String;
    use alloc::vec::Vec;

    use super::*;
    use crate::forwarding::previous::PreviousRings;
    use crate::forwarding::{self, Planner};
    use crate::time::{Duration, Instant};
    use crate::view::endpoints::{frontends, service_key};
    use crate::view::example::{self, TERMINATING, UNREADY, pod};
    use crate::view::{
        Conditions, Endpoint, Event, Node, Object, ObjectName, Port, Protocol, Service, ServiceAttributes,
    };

    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn table(with_service: bool) -> Table {
        let mut table = Table::default();
        table.vips.insert(VIP);
        if with_service {
            let attributes = ServiceAttributes::default();
            let service =
                forwarding::Service { attributes, no_new_flows: false, ring: Arc::default(), alternates: None };
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

    /// Of one VIP with the Services `default/web` and, if `other` is given, `default/zeb` on other ports.
    fn local_view(pods: &[Endpoint], web_is: TrafficPolicy, other: Option<TrafficPolicy>) -> View {
        let of = |traffic_policy| ServiceAttributes { traffic_policy, ..ServiceAttributes::default() };
        let mut view = example::view(pods);
        view.handle(Event::Apply(example::service(example::web(), of(web_is))));
        if let Some(policy) = other {
            let zeb = ObjectName::new("default", "zeb");
            let port = Port { name: "".into(), port: 90, protocol: Protocol::Tcp };
            let service = Service { ports: alloc::vec![port], attributes: of(policy) };
            view.handle(Event::Apply(Object::Service(zeb.clone(), service)));
            view.handle(Event::Apply(example::vip(example::VIP, [example::web(), zeb])));
        }
        view
    }

    fn nodes_with_pods(view: &View) -> Option<Vec<String>> {
        let nodes = with_pods(&frontends(view).0).remove(&example::VIP)?;
        Some(nodes.iter().map(|node| node.as_str().into()).collect())
    }

    #[test]
    fn nodes_with_ready_pods_come_first_where_all_services_of_a_vip_are_local() {
        use TrafficPolicy::{Cluster, Local};
        let pods = [pod("a", 1, UNREADY), pod("b", 1, Conditions::READY), pod("c", 1, TERMINATING)];
        assert_eq!(nodes_with_pods(&local_view(&pods, Cluster, None)), None);
        assert_eq!(nodes_with_pods(&local_view(&pods, Local, Some(Cluster))), None);
        for other in [None, Some(Local)] {
            assert_eq!(nodes_with_pods(&local_view(&pods, Local, other)), Some(alloc::vec!["b".into()]));
        }
        let ending = [pod("a", 1, UNREADY), pod("c", 1, TERMINATING)];
        assert_eq!(nodes_with_pods(&local_view(&ending, Local, None)), Some(alloc::vec!["c".into()]), "KEP-1669");
        assert_eq!(nodes_with_pods(&local_view(&[], Local, None)), Some(alloc::vec![]));
    }

    /// The order changes, not who may own it.
    #[test]
    fn a_local_vip_has_the_candidates_of_all() {
        let view = local_view(&[pod("b", 1, Conditions::READY)], TrafficPolicy::Local, None);
        let mut planner = Planner::new([1, 2], PreviousRings::new(Duration::from_secs(60)));
        let table = planner.table(&view, &Default::default(), &Default::default(), Instant::ZERO);
        let desired = desired(&table, &view);
        let eligible = &desired[&Vip(example::VIP)];
        let [a, b] = ["a", "b"].map(|name| NodeName::new(name).unwrap());
        assert!(eligible.contains(&a) && eligible.contains(&b) && !eligible.falls_back_to(&a));
        assert!(eligible.has_pod(&b) && !eligible.has_pod(&a) && !eligible.lacks_pods());
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
        known.handle(Event::Delete(crate::view::Key::Node("d".into())));
        let preferred = Eligible::Preferred { nodes: Arc::new(names(&["a"])), others: Arc::new(names(&["b"])) };
        assert_eq!(candidates(&known), preferred);
        let all =
            View::from(alloc::vec![node("a", |node| node.cordoned = true), node("b", |node| node.cordoned = true)]);
        assert_eq!(candidates(&all), Eligible::All, "the last ones keep them");
    }
}
