//! Which VIPs are to have an owner, and which nodes may be it?
//!
//! Every node can reach every pod, so only the node's own packet path decides, and the election gets that as events (ready, carrier).
//! L2Advertisements restrict and order the nodes of the VIPs that name them (`advertised`); Placements name the node that comes first, or
//! that is to get a VIP from its owner. Of a drained node its own speaker informs the others.
//! externalTrafficPolicy Local changes the order alone: nodes with pods come first in rank, so that most packets are where their pod is.
//! Which these are is what the view says, also while the table of this node is behind it. An owner whose last pod ends keeps the VIP:
//! moving it would cost more than the hop.
//! A VIP whose services have no ready pod keeps its owner on purpose: the owner's
//! dispatcher resets new connections, so that clients fail at once; without an owner no node answers ARP and they hang until they
//! time out. When the pods return nothing has to be elected first.

mod advertised;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use core::net::Ipv4Addr;

use ebpf_common::ServiceKey;

use crate::election::{Eligible, Order};
use crate::forwarding::Table;
use crate::forwarding::members::{is_last_resort, is_ready};
use crate::name::{NodeName, Term, Vip};
use crate::view::endpoints::{Frontend, Pod, frontends};
use crate::view::{Placed, TrafficPolicy, View, VirtualIp};

/// Every VIP that is to have an owner, and the nodes among which it is elected. The view may be newer than the table.
pub fn desired(table: &Table, view: &View) -> BTreeMap<Vip, Eligible> {
    let (all, placed, with_pods) = (candidates(view), view.placed(), nodes_with_pods(view));
    let mut known: BTreeMap<(&[String], bool), Option<Arc<Eligible>>> = BTreeMap::new();
    let mut desired = BTreeMap::new();
    for vip in ownable(table) {
        let none = VirtualIp::default();
        let granted = view.vips().get(&vip);
        let named = granted.map_or((&[][..], false), |granted| (&granted.advertisements[..], granted.unannounced));
        let of = known.entry(named);
        let of = of.or_insert_with(|| advertised::eligible(view, granted.unwrap_or(&none), &all).map(Arc::new));
        let Some(of) = of.clone() else { continue };
        let of = placed.get(&vip).map_or_else(|| of.clone(), |placed| Arc::new(as_placed(placed, of.clone())));
        let eligible = match with_pods.get(&vip) {
            Some(nodes) => Eligible::WithPods { nodes: nodes.clone(), of },
            None => (*of).clone(),
        };
        desired.insert(Vip(vip), eligible);
    }
    desired
}

/// What an administrator wants of one VIP, beside what holds for all that are announced alike.
fn as_placed(placed: &Placed<'_>, of: Arc<Eligible>) -> Eligible {
    let order = placed.order.and_then(|order| {
        Some(Order { to: NodeName::new(order.to)?, from: NodeName::new(order.from)?, term: Term(order.term) })
    });
    Eligible::Placed { preferred: placed.preferred.and_then(NodeName::new), order, of }
}

/// Why no node is to own a VIP that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unowned {
    /// Its pool is not announced.
    NotAnnounced,
    /// No node may announce it.
    NoEligibleNode,
}

/// The VIPs of the table that no node is to own. `desired`: by the same table and view.
pub fn unowned(table: &Table, desired: &BTreeMap<Vip, Eligible>) -> BTreeMap<Ipv4Addr, Unowned> {
    let why = |vip: Ipv4Addr| match desired.get(&Vip(vip)) {
        None => Some(Unowned::NotAnnounced),
        Some(eligible) => eligible.is_nobodys().then_some(Unowned::NoEligibleNode),
    };
    ownable(table).filter_map(|vip| Some((vip, why(vip)?))).collect()
}

/// Nodes that have given up ownership ([`crate::health::reach`]) keep and claim VIPs only while no other node can own them.
pub fn put_second(desired: &mut BTreeMap<Vip, Eligible>, given_up: &BTreeSet<String>, view: &View) {
    let names = |second: bool| -> BTreeSet<NodeName> {
        let members = view.members().filter(|(name, _)| given_up.contains(*name) == second);
        members.filter_map(|(name, _)| NodeName::new(name)).collect()
    };
    let (first, second) = (names(false), names(true));
    if first.is_empty() || second.is_empty() {
        return;
    }
    let (nodes, others) = (Arc::new(first), Arc::new(second));
    for eligible in desired.values_mut().filter(|eligible| **eligible == Eligible::All) {
        *eligible = Eligible::Preferred { nodes: nodes.clone(), others: others.clone() };
    }
}

/// Whether pods play a part for any VIP.
pub fn prefers_pods(view: &View) -> bool {
    view.services().values().any(|service| service.attributes.traffic_policy == TrafficPolicy::Local)
}

/// The nodes with pods that take new flows, for VIPs whose Services are all Local.
pub fn nodes_with_pods(view: &View) -> BTreeMap<Ipv4Addr, Arc<BTreeSet<NodeName>>> {
    if !prefers_pods(view) {
        return BTreeMap::new();
    }
    let frontends = frontends(view).0;
    let is_local = |frontend: &Frontend<'_>| frontend.attributes.traffic_policy == TrafficPolicy::Local;
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
    use alloc::vec::Vec;

    use super::*;
    use crate::forwarding::previous::PreviousRings;
    use crate::forwarding::{self, Planner};
    use crate::time::{Duration, Instant};
    use crate::view::endpoints::service_key;
    use crate::view::example::{self, TERMINATING, UNREADY, pod};
    use crate::view::{
        Conditions, Endpoint, Event, Node, Object, ObjectName, Placement, PlacementMode, Port, Protocol, Service,
        ServiceAttributes,
    };

    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn table(with_service: bool) -> Table {
        let mut table = Table::default();
        table.vips.insert(VIP);
        if with_service {
            let attributes = ServiceAttributes::default();
            let service = forwarding::Service {
                attributes,
                no_new_flows: false,
                excluded_take: false,
                ring: Arc::default(),
                alternates: None,
            };
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

    fn names_of_nodes_with_pods(view: &View) -> Option<Vec<String>> {
        let nodes = nodes_with_pods(view).remove(&example::VIP)?;
        Some(nodes.iter().map(|node| node.as_str().into()).collect())
    }

    #[test]
    fn nodes_with_ready_pods_come_first_where_all_services_of_a_vip_are_local() {
        use TrafficPolicy::{Cluster, Local};
        let pods = [pod("a", 1, UNREADY), pod("b", 1, Conditions::READY), pod("c", 1, TERMINATING)];
        assert_eq!(names_of_nodes_with_pods(&local_view(&pods, Cluster, None)), None);
        assert_eq!(names_of_nodes_with_pods(&local_view(&pods, Local, Some(Cluster))), None);
        for other in [None, Some(Local)] {
            assert_eq!(names_of_nodes_with_pods(&local_view(&pods, Local, other)), Some(alloc::vec!["b".into()]));
        }
        let ending = [pod("a", 1, UNREADY), pod("c", 1, TERMINATING)];
        assert_eq!(
            names_of_nodes_with_pods(&local_view(&ending, Local, None)),
            Some(alloc::vec!["c".into()]),
            "KEP-1669"
        );
        assert_eq!(names_of_nodes_with_pods(&local_view(&[], Local, None)), Some(alloc::vec![]));
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

    /// The table is that of a moment before: the VIP is in it and its pods are not.
    #[test]
    fn pods_count_before_the_table_has_them() {
        let local = |pods: &[Endpoint]| local_view(pods, TrafficPolicy::Local, None);
        let mut planner = Planner::new([1, 2], PreviousRings::new(Duration::from_secs(60)));
        let table = planner.table(&local(&[]), &Default::default(), &Default::default(), Instant::ZERO);
        let desired = desired(&table, &local(&[pod("b", 1, Conditions::READY)]));
        let eligible = &desired[&Vip(example::VIP)];
        assert!(eligible.has_pod(&NodeName::new("b").unwrap()) && !eligible.lacks_pods());
    }

    /// Unless all have: then none is better than another.
    #[test]
    fn a_node_that_has_given_up_comes_second() {
        let node = |name: &str| Object::Node(name.into(), Node::at(Ipv4Addr::new(192, 0, 2, name.as_bytes()[0])));
        let view = View::from(alloc::vec![node("a"), node("b")]);
        let names = |names: &[&str]| -> Arc<BTreeSet<NodeName>> {
            Arc::new(names.iter().filter_map(|name| NodeName::new(name)).collect())
        };
        let of = |given_up: &[&str]| {
            let mut desired = BTreeMap::from([(Vip(VIP), Eligible::All)]);
            put_second(&mut desired, &given_up.iter().map(|name| String::from(*name)).collect(), &view);
            desired.remove(&Vip(VIP)).unwrap()
        };
        assert_eq!(of(&["a"]), Eligible::Preferred { nodes: names(&["b"]), others: names(&["a"]) });
        assert_eq!([of(&[]), of(&["a", "b"]), of(&["z"])], [Eligible::All, Eligible::All, Eligible::All]);
    }

    /// Of this VIP alone, with pods known or not; a node that may not own it is not made one that may.
    #[test]
    fn placements_name_the_node_that_comes_first_and_the_one_that_is_to_own_it() {
        let mut view = local_view(&[pod("b", 1, Conditions::READY)], TrafficPolicy::Local, None);
        let mut place = |vip: Ipv4Addr, name: &str, node: &str, of: fn(Ipv4Addr) -> PlacementMode| {
            let placement = Placement { node: node.into(), mode: of(vip) };
            view.handle(Event::Apply(Object::Placement(format!("{name}-{vip}"), placement)));
        };
        for vip in [example::VIP, VIP] {
            place(vip, "prefer", "a", |vip| PlacementMode::Prefer { vip });
            place(vip, "move", "z", |vip| PlacementMode::Move { vip, owner: "a".into(), term: 7 });
        }
        let mut planner = Planner::new([1, 2], PreviousRings::new(Duration::from_secs(60)));
        let table = planner.table(&view, &Default::default(), &Default::default(), Instant::ZERO);
        let desired = desired(&table, &view);
        let eligible = &desired[&Vip(example::VIP)];
        let [a, b, z] = ["a", "b", "z"].map(|name| NodeName::new(name).unwrap());
        assert!(eligible.weight(&a) > eligible.weight(&b) && eligible.has_pod(&b));
        assert_eq!(eligible.order(), Some(&Order { to: z, from: a, term: Term(7) }));
        assert_eq!(desired.len(), 1, "the other VIP is granted to no Service");
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
