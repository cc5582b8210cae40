//! Pure: node-address mode. Which Services have their ports at the addresses of which nodes, and what their statuses show. Knows no order
//! of events and no API: the same facts give the same answer, and what the ledger grants comes first.
//!
//! A Service has all its ports at a node, or none: a client that finds half of them is worse off than one that finds another node. As
//! klipper-lb (ServiceLB of k3s) does it, whose labels of nodes and Services count here as well.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use sheave_api::{MAX_SERVICE_PORTS, MAX_SERVICES_PER_ADDRESS, Refusal, ServiceRef};

use crate::request::Refused;
use crate::view::{Port, ServiceKey};

/// A Service that asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanting {
    pub service: ServiceRef,
    /// Seconds since 1970: of two that want one port, neither of which has it, the older one gets it.
    pub created: i64,
    pub ports: BTreeSet<Port>,
    /// Its label [`POOL_LABEL`].
    pub pool: Option<String>,
    /// externalTrafficPolicy Local: its status shows nodes with pods of it alone.
    pub local: bool,
}

/// A node, as far as this mode goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    pub internal: Vec<Ipv4Addr>,
    pub external: Vec<Ipv4Addr>,
    /// Its condition Ready. Where it is not, the ports stay, for open connections, and are not shown.
    pub ready: bool,
    /// Its label [`ENABLE_LABEL`] is `true`.
    pub enabled: bool,
    /// Its label [`POOL_LABEL`].
    pub pool: Option<String>,
    /// Ports on which something listens, as its speaker reports them. `None`: no speaker that knows this mode.
    pub listening: Option<BTreeSet<Port>>,
    /// Services with policy Local that have ready pods there.
    pub with_pods: BTreeSet<ServiceKey>,
}

/// By the names of nodes.
pub type Hosts = BTreeMap<String, Host>;
/// The Services that the ledger names at each node, by the nodes' names.
pub type Held = BTreeMap<String, Vec<ServiceRef>>;

/// What follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// As the ledger is to have it: in its order, then those that are new. Nodes without any are left out.
    pub nodes: Held,
    pub services: BTreeMap<ServiceKey, Outcome>,
}

/// What a Service gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What its status shows, in order.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Where it does not get it, or why nowhere.
    pub refused: Option<Refused>,
}

/// `node_ports`: those of all Services of the cluster, which kube-proxy serves on every node. `room`: how many service ports there may be
/// at nodes, each port of each address being one.
pub fn grant(wanting: &[Wanting], hosts: &Hosts, held: &Held, node_ports: &BTreeSet<Port>, room: usize) -> Granted {
    let restricted = hosts.values().any(|host| host.enabled);
    let mut nodes: BTreeMap<&str, Taken<'_>> = BTreeMap::new();
    let mut services = BTreeMap::new();
    let has = |node: &str, wanting: &Wanting| {
        held.get(node).into_iter().flatten().position(|service| service.uid == wanting.service.uid)
    };
    let mut room = room;
    // What the ledger has comes first, on every node.
    for is_new in [false, true] {
        for (name, host) in hosts {
            let places = wanting.iter().map(|one| (has(name, one).unwrap_or(usize::MAX), one));
            let mut order: Vec<(usize, &Wanting)> =
                places.filter(|(place, _)| (*place == usize::MAX) == is_new).collect();
            order.sort_by_key(|(place, one)| (*place, one.created, ServiceKey::from(&one.service)));
            for (_, one) in order.into_iter().filter(|(_, one)| is_chosen(one, host, restricted)) {
                let takes = one.ports.len() * (host.internal.len() + host.external.len());
                let left = if is_new { room.checked_sub(takes) } else { Some(room.saturating_sub(takes)) };
                if nodes.entry(name).or_default().offer(one, host, node_ports, left.is_some()) {
                    room = left.unwrap_or(room);
                }
            }
        }
    }
    for one in wanting {
        services.insert(ServiceKey::from(&one.service), outcome(one, hosts, &nodes));
    }
    let granted = |taken: &Taken<'_>| taken.services.iter().map(|one| one.service.clone()).collect::<Vec<_>>();
    let nodes = nodes.iter().map(|(name, taken)| ((*name).to_string(), granted(taken)));
    Granted { nodes: nodes.filter(|(_, services)| !services.is_empty()).collect(), services }
}

/// Whether the Service is to be at the node, ports aside.
fn is_chosen(wanting: &Wanting, host: &Host, restricted: bool) -> bool {
    let by_pool = wanting.pool.is_none() || wanting.pool == host.pool;
    let has_address = !host.internal.is_empty() || !host.external.is_empty();
    host.listening.is_some() && has_address && by_pool && (host.enabled || !restricted)
}

/// The ports of one node.
#[derive(Debug, Default)]
struct Taken<'a> {
    services: Vec<&'a Wanting>,
    /// Why a Service is not among them.
    refused: BTreeMap<ServiceKey, Barred>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Barred {
    /// Something listens there, or it is a NodePort.
    InUse(Port),
    /// Another Service has it.
    Taken(Port, ServiceKey),
    /// As many Services have ports there as may.
    Full,
    /// The Services of the cluster have as many service ports as they may.
    NoRoom,
}

impl<'a> Taken<'a> {
    /// Whether the Service gets its ports here.
    fn offer(&mut self, wanting: &'a Wanting, host: &Host, node_ports: &BTreeSet<Port>, has_room: bool) -> bool {
        let in_use =
            |port: &&Port| node_ports.contains(port) || host.listening.iter().flatten().any(|one| one == *port);
        let has = |port: &Port| self.services.iter().find(|other| other.ports.contains(port));
        let taken = |port: &Port| has(port).map(|other| Barred::Taken(port.clone(), ServiceKey::from(&other.service)));
        let in_use = wanting.ports.iter().find(in_use).map(|port| Barred::InUse(port.clone()));
        let barred = in_use.or_else(|| wanting.ports.iter().find_map(taken));
        let barred = barred.or((self.services.len() >= MOST).then_some(Barred::Full));
        match barred.or((!has_room).then_some(Barred::NoRoom)) {
            None => self.services.push(wanting),
            Some(barred) => {
                self.refused.insert(ServiceKey::from(&wanting.service), barred);
                return false;
            }
        }
        true
    }
}

fn outcome(one: &Wanting, hosts: &Hosts, nodes: &BTreeMap<&str, Taken<'_>>) -> Outcome {
    let key = ServiceKey::from(&one.service);
    let at = |name: &str| {
        nodes.get(name).is_some_and(|taken| taken.services.iter().any(|other| other.service == one.service))
    };
    let shown: Vec<&Host> = hosts
        .iter()
        .filter(|(name, host)| at(name) && host.ready && (!one.local || host.with_pods.contains(&key)))
        .map(|(_, host)| host)
        .collect();
    // As klipper-lb: the external addresses of all, if any node has one.
    let external: BTreeSet<Ipv4Addr> = shown.iter().flat_map(|host| &host.external).copied().collect();
    let internal = || shown.iter().flat_map(|host| &host.internal).copied().collect();
    let addresses = if external.is_empty() { internal() } else { external };
    let barred: Vec<(&str, &Barred)> =
        nodes.iter().filter_map(|(name, taken)| Some((*name, taken.refused.get(&key)?))).collect();
    let anywhere = hosts.keys().any(|name| at(name));
    Outcome { addresses, refused: refusal(one, &barred, anywhere) }
}

fn refusal(one: &Wanting, barred: &[(&str, &Barred)], anywhere: bool) -> Option<Refused> {
    // The other Service first: that is what its owner can change.
    let taken = barred.iter().find(|(_, why)| matches!(why, Barred::Taken(..)));
    let Some((node, why)) = taken.or(barred.first()) else {
        return (!anywhere).then(|| no_node(one));
    };
    let others = barred.iter().filter(|(other, _)| other != node).count();
    let others = if others == 0 { String::new() } else { format!(" and {others} more") };
    Some(match why {
        Barred::Taken(port, other) => Refused {
            reason: Refusal::PortTakenOnNode,
            message: format!("port {port} of node {node}{others} is taken by Service {other}"),
        },
        Barred::Full => Refused {
            reason: Refusal::LimitReached,
            message: format!("{MOST} Services have ports at node {node}{others}, and no more can"),
        },
        Barred::NoRoom => Refused {
            reason: Refusal::LimitReached,
            message: format!(
                "its {} service ports have no room at node {node}{others} beside those of other Services: the Services of a cluster \
                 may have {MAX_SERVICE_PORTS}, each port of each address being one",
                one.ports.len()
            ),
        },
        Barred::InUse(port) => Refused {
            reason: Refusal::PortInUseOnNode,
            message: format!(
                "port {port} is in use on node {node}{others}: by a process of the node, or as a NodePort"
            ),
        },
    })
}

fn no_node(one: &Wanting) -> Refused {
    let pool = one.pool.as_ref().map_or(String::new(), |pool| format!(", label {POOL_LABEL} '{pool}'"));
    let message = format!(
        "no node has an IPv4 address and a speaker that reports its ports, and is selected by the labels{pool}"
    );
    Refused { reason: Refusal::NoNodeForService, message }
}

/// What an entry of the ledger has in place of a pool's name: no pool can have it.
pub const NODE_POOL: &str = "(node)";
/// Services that an entry of the ledger names at most.
const MOST: usize = MAX_SERVICES_PER_ADDRESS;
/// Of k3s: nodes with `true` alone serve, once one has it.
pub const ENABLE_LABEL: &str = "svccontroller.k3s.cattle.io/enablelb";
/// Of k3s: a Service with this label is at the nodes with the same value alone.
pub const POOL_LABEL: &str = "svccontroller.k3s.cattle.io/lbpool";

#[cfg(test)]
mod tests {
    use super::*;

    fn wanting(name: &str, ports: &[i32]) -> Wanting {
        let service = ServiceRef { namespace: "default".into(), name: name.into(), uid: format!("uid of {name}") };
        let ports = ports.iter().map(|port| Port::new(*port, None)).collect();
        Wanting { service, created: 0, ports, pool: None, local: false }
    }

    fn key(name: &str) -> ServiceKey {
        ServiceKey { namespace: "default".into(), name: name.into() }
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, last)
    }

    fn host(last: u8) -> Host {
        let listening = Some([Port::new(22, None)].into());
        Host { internal: vec![address(last)], ready: true, listening, ..Host::default() }
    }

    fn hosts() -> Hosts {
        [("a", 1), ("b", 2), ("c", 3)].map(|(name, last)| (name.to_string(), host(last))).into()
    }

    fn granted(wanting: &[Wanting], hosts: &Hosts) -> Granted {
        grant(wanting, hosts, &Held::new(), &BTreeSet::new(), usize::MAX)
    }

    fn shown(granted: &Granted, name: &str) -> Vec<u8> {
        granted.services[&key(name)].addresses.iter().map(|address| address.octets()[3]).collect()
    }

    fn reason(granted: &Granted, name: &str) -> Option<(Refusal, String)> {
        granted.services[&key(name)].refused.clone().map(|refused| (refused.reason, refused.message))
    }

    #[test]
    fn every_node_that_can_serves_and_external_addresses_are_shown_if_any_node_has_one() {
        let mut hosts = hosts();
        let all = granted(&[wanting("web", &[80, 443])], &hosts);
        assert_eq!((shown(&all, "web"), reason(&all, "web"), all.nodes.len()), (vec![1, 2, 3], None, 3));
        hosts.get_mut("b").unwrap().external = vec![address(77)];
        assert_eq!(shown(&granted(&[wanting("web", &[80])], &hosts), "web"), [77]);
        // Not one that is not Ready, has no speaker, or no address.
        hosts.get_mut("b").unwrap().ready = false;
        hosts.get_mut("a").unwrap().listening = None;
        let fewer = granted(&[wanting("web", &[80])], &hosts);
        assert_eq!((shown(&fewer, "web"), reason(&fewer, "web")), (vec![3], None));
        assert!(fewer.nodes.contains_key("b"), "its open connections go on");
        hosts.get_mut("c").unwrap().internal.clear();
        hosts.get_mut("b").unwrap().listening = None;
        let none = granted(&[wanting("web", &[80])], &hosts);
        assert_eq!(reason(&none, "web").unwrap().0, Refusal::NoNodeForService);
        assert!(none.nodes.is_empty());
    }

    #[test]
    fn a_port_in_use_bars_the_service_from_that_node_by_name() {
        let mut hosts = hosts();
        hosts.get_mut("b").unwrap().listening.as_mut().unwrap().insert(Port::new(443, None));
        let some = granted(&[wanting("web", &[80, 443])], &hosts);
        assert_eq!(shown(&some, "web"), [1, 3], "all ports or none");
        let (name, message) = reason(&some, "web").unwrap();
        assert_eq!(name, Refusal::PortInUseOnNode);
        assert!(message.contains("443/TCP") && message.contains("node b"), "{message}");
        // UDP is another port; a NodePort is taken everywhere.
        let udp = Wanting { ports: [Port::new(22, Some("UDP"))].into(), ..wanting("dns", &[]) };
        assert_eq!(shown(&granted(&[udp], &hosts), "dns"), [1, 2, 3]);
        let node_ports = [Port::new(30080, None)].into();
        let none = grant(&[wanting("web", &[30080])], &hosts, &Held::new(), &node_ports, usize::MAX);
        assert_eq!(reason(&none, "web").unwrap().0, Refusal::PortInUseOnNode);
        assert!(reason(&none, "web").unwrap().1.contains("and 2 more") && none.nodes.is_empty());
    }

    #[test]
    fn a_second_service_on_the_port_is_refused_with_the_name_of_the_first() {
        let older = Wanting { created: 1, ..wanting("z", &[80]) };
        let younger = Wanting { created: 2, ..wanting("a", &[80, 81]) };
        let both = granted(&[younger.clone(), older.clone()], &hosts());
        assert_eq!((shown(&both, "z"), shown(&both, "a")), (vec![1, 2, 3], vec![]));
        let (name, message) = reason(&both, "a").unwrap();
        assert_eq!(name, Refusal::PortTakenOnNode);
        assert!(message.contains("80/TCP of node a and 2 more is taken by Service default/z"), "{message}");
        // Who has it keeps it, whatever was created when.
        let held: Held = hosts().keys().map(|node| (node.clone(), vec![younger.service.clone()])).collect();
        let kept = grant(&[younger.clone(), older.clone()], &hosts(), &held, &BTreeSet::new(), usize::MAX);
        assert_eq!((shown(&kept, "a"), shown(&kept, "z")), (vec![1, 2, 3], vec![]));
        assert_eq!(kept.nodes, held);
        // One of the same name that was made anew has nothing.
        let again = Wanting { service: ServiceRef { uid: "other".into(), ..younger.service.clone() }, ..younger };
        let anew = grant(&[again, older], &hosts(), &held, &BTreeSet::new(), usize::MAX);
        assert_eq!((shown(&anew, "a"), shown(&anew, "z")), (vec![], vec![1, 2, 3]));
    }

    /// Two addresses at each of three nodes: 2 ports take 12 of the places.
    #[test]
    fn what_has_no_room_in_the_speakers_tables_is_refused_and_what_is_there_stays() {
        let mut hosts = hosts();
        hosts
            .values_mut()
            .for_each(|host| host.external = vec![Ipv4Addr::new(198, 51, 100, host.internal[0].octets()[3])]);
        let services = [wanting("a", &[80, 443]), wanting("b", &[81]), wanting("c", &[82])];
        let granted = |held: &Held, room| grant(&services, &hosts, held, &BTreeSet::new(), room);
        let at = |granted: &Granted, name: &str| {
            granted.nodes.values().filter(|all| all.iter().any(|one| one.name == name)).count()
        };
        let all = |granted: &Granted| ["a", "b", "c"].map(|name| at(granted, name));
        assert_eq!(all(&granted(&Held::new(), 24)), [3, 3, 3]);
        let some = granted(&Held::new(), 23);
        assert_eq!(all(&some), [3, 3, 2]);
        let (name, message) = reason(&some, "c").unwrap();
        assert_eq!(name, Refusal::LimitReached);
        assert!(message.starts_with("its 1 service ports have no room at node c beside"), "{message}");
        // Who has a port keeps it, whatever was created when, and with fewer places than it takes.
        let held: Held = hosts.keys().map(|node| (node.clone(), vec![services[2].service.clone()])).collect();
        assert_eq!([11, 6, 3].map(|room| all(&granted(&held, room))), [[1, 0, 3], [0, 0, 3], [0, 0, 3]]);
    }

    #[test]
    fn labels_of_klipper_choose_nodes() {
        let mut hosts = hosts();
        let pool = |pool: &str| Some(pool.to_string());
        hosts.get_mut("a").unwrap().pool = pool("x");
        let of_pool = |pool| Wanting { pool, ..wanting("web", &[80]) };
        assert_eq!(shown(&granted(&[of_pool(pool("x"))], &hosts), "web"), [1]);
        assert_eq!(shown(&granted(&[of_pool(None)], &hosts), "web"), [1, 2, 3], "a pool is not asked for");
        let none = granted(&[of_pool(pool("y"))], &hosts);
        let (name, message) = reason(&none, "web").unwrap();
        assert!(name == Refusal::NoNodeForService && message.contains("'y'"), "{message}");
        hosts.get_mut("b").unwrap().enabled = true;
        assert_eq!(shown(&granted(&[of_pool(None)], &hosts), "web"), [2]);
        assert_eq!(shown(&granted(&[of_pool(pool("x"))], &hosts), "web"), [0; 0], "both labels count");
    }

    #[test]
    fn local_shows_nodes_with_pods_and_serves_on_all() {
        let mut hosts = hosts();
        let local = Wanting { local: true, ..wanting("web", &[80]) };
        let none = granted(std::slice::from_ref(&local), &hosts);
        assert_eq!((shown(&none, "web"), reason(&none, "web"), none.nodes.len()), (vec![], None, 3));
        hosts.get_mut("c").unwrap().with_pods.insert(key("web"));
        assert_eq!(shown(&granted(&[local], &hosts), "web"), [3]);
    }
}
