//! The network of a lab: a switch, the control plane, a client on the segment, a router and a client behind it.
//!
//! ```text
//!   node1..N (.11 ..)   cp (.2)   client (.5)   router (.3) ---- far (10.99.0.2)
//!        |                 |           |            |
//!   ===== bridge in namespace `sw` (has no address) ======  192.168.77.0/24
//! ```

use std::net::Ipv4Addr;

use anyhow::Result;

use super::netns;
use super::plan::{self, CLIENT, FAR_CLIENT, Plan, ROUTER, ROUTER_FAR_SIDE, UPLINK, port};
use super::state::State;
use super::xdp;

/// Everything but the nodes.
pub fn create(plan: &Plan) -> Result<()> {
    let switch = plan.netns(SWITCH);
    netns::create(&switch)?;
    netns::sysctl(&switch, &[("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1")])?;
    // No spanning tree, no IGMP snooping: a port forwards at once and multicast reaches every port.
    netns::ip(&switch, "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set br0 up\n")?;
    // A new namespace has 1 here: the bridge would then translate addresses too.
    netns::sysctl(&switch, &BRIDGE_WITHOUT_NETFILTER)?;

    let router = plan.own_address(ROUTER);
    for (role, address) in plan.control_plane_alone() {
        connect(plan, &role, address)?;
        default_route(plan, &role, router)?;
        // Pods talk to the API server with their own addresses.
        netns::ip(&plan.netns(&role), &pod_routes(plan, None, plan::node_address))?;
    }
    connect(plan, "client", plan.own_address(CLIENT))?;
    default_route(plan, "client", router)?;
    connect(plan, "router", router)?;
    netns::ip(&plan.netns("router"), &pod_routes(plan, None, plan::node_address))?;
    behind_the_router(plan)
}

/// The namespace of a node with its cable and routes: the direct ways to the pods of the other nodes included.
pub fn create_node(state: &State, node: &str) -> Result<()> {
    let plan = &state.plan;
    connect(plan, node, state.node_address(node)?)?;
    let name = plan.netns(node);
    netns::sysctl(&name, &[("ipv4/ip_forward", "1"), ("ipv4/conf/all/rp_filter", "0")])?;
    node_routes(state, node)?;
    let switch = plan.netns(SWITCH);
    let switch_port = port(node);
    netns::inside(&switch, || xdp::attach_pass(&switch_port))
}

/// Also after the node's own device went down and up, which empties its routes.
pub fn node_routes(state: &State, node: &str) -> Result<()> {
    let routes = pod_routes(&state.plan, Some(state.plan.node_number(node)?), |number| state.address_of(number));
    let router = state.plan.own_address(ROUTER);
    netns::ip(&state.plan.netns(node), &format!("route replace default via {router} dev {UPLINK}\n{routes}"))
}

/// The node has another address; the other nodes' routes to its pods follow.
pub fn set_address(state: &State, node: &str, old: Ipv4Addr, new: Ipv4Addr) -> Result<()> {
    // Not the other way round: an address of the same subnet that came later goes with the first one.
    let batch = format!("address delete {old}/24 dev {UPLINK}\naddress add {new}/24 dev {UPLINK}\n");
    netns::ip(&state.plan.netns(node), &batch)?;
    node_routes(state, node)?;
    way_to_pods(state, node)
}

/// From the API servers, the router and all other nodes that have power.
pub fn way_to_pods(state: &State, node: &str) -> Result<()> {
    let plan = &state.plan;
    let number = plan.node_number(node)?;
    let others = state.nodes.keys().filter(|name| *name != node).cloned();
    let servers = plan.control_plane_alone().into_iter().map(|(role, _)| role);
    let route = pod_route(number, state.address_of(number));
    others.chain(servers).chain(["router".to_owned()]).try_for_each(|role| netns::ip(&plan.netns(&role), &route))
}

/// The direct ways to the pods of all nodes but one.
fn pod_routes(plan: &Plan, except: Option<u8>, address: impl Fn(u8) -> Ipv4Addr) -> String {
    let others = plan.node_numbers().filter(|number| Some(*number) != except);
    others.map(|number| pod_route(number, address(number))).collect()
}

fn pod_route(number: u8, gateway: Ipv4Addr) -> String {
    format!("route replace {} via {gateway} dev {UPLINK}\n", plan::pod_range(number))
}

/// Removes a node's namespace and its cable.
pub fn remove_node(plan: &Plan, node: &str) -> Result<()> {
    // The cable by itself first: the kernel removes the devices of a deleted namespace some time later, and the name of
    // the port must be free for the next start.
    let switch_port = port(node);
    netns::inside(&plan.netns(SWITCH), || {
        if nix::net::if_::if_nametoindex(switch_port.as_str()).is_ok() {
            netns::run("ip", &["link", "delete", &switch_port])?;
        }
        Ok(())
    })?;
    netns::delete(&plan.netns(node))
}

/// The cable at the switch: down is what the other side sees as a loss of carrier.
pub fn set_port(plan: &Plan, node: &str, up: bool) -> Result<()> {
    netns::set_link(&plan.netns(SWITCH), &port(node), up)
}

/// Whether the switch forwards frames of a port: with `false` the carrier stays and everything is lost.
pub fn set_forwarding(plan: &Plan, node: &str, forwarding: bool) -> Result<()> {
    let state = if forwarding { "3" } else { "0" };
    let arguments = ["-netns", &plan.netns(SWITCH), "link", "set", "dev", &port(node), "state", state];
    netns::run("bridge", &arguments).map(drop)
}

/// Whether the switch forwards packets between a node and the API servers. Everything else goes on.
pub fn set_api(plan: &Plan, node: &str, reachable: bool) -> Result<()> {
    let (port, chain) = (port(node), format!("bridge {API_CUT} {node}"));
    let servers: Vec<_> = plan.control_plane().iter().map(|(_, address)| address.to_string()).collect();
    let servers = servers.join(", ");
    // Added first, so that removing works in any case.
    let mut rules = format!(
        "add table bridge {API_CUT}\n\
         add chain {chain} {{ type filter hook forward priority 0; }}\n\
         flush chain {chain}\n"
    );
    rules += &if reachable {
        format!("delete chain {chain}\n")
    } else {
        format!(
            "add rule {chain} iifname {port} ip daddr {{ {servers} }} drop\n\
             add rule {chain} oifname {port} ip saddr {{ {servers} }} drop\n"
        )
    };
    netns::inside(&plan.netns(SWITCH), || netns::run("nft", &[&rules]).map(drop))
}

/// Whether the switch forwards what goes to the speakers' multicast group. Everything else goes on.
pub fn set_multicast(plan: &Plan, passes: bool) -> Result<()> {
    // Added first, so that removing works in any case.
    let mut rules = format!("add table bridge {NO_MULTICAST}\ndelete table bridge {NO_MULTICAST}\n");
    if !passes {
        rules += &format!(
            "add table bridge {NO_MULTICAST}\n\
             add chain bridge {NO_MULTICAST} speakers {{ type filter hook forward priority 0; }}\n\
             add rule bridge {NO_MULTICAST} speakers ip daddr {SPEAKERS} drop\n"
        );
    }
    netns::inside(&plan.netns(SWITCH), || netns::run("nft", &[&rules]).map(drop))
}

/// Whether the switch forwards what the speakers of two nodes send each other, to all or to one. Everything else goes on.
pub fn set_speakers_between(plan: &Plan, nodes: Option<[&str; 2]>) -> Result<()> {
    let mut rules = format!("add table bridge {PARTED}\ndelete table bridge {PARTED}\n");
    if let Some([one, other]) = nodes.map(|nodes| nodes.map(port)) {
        let chain = format!("bridge {PARTED} speakers");
        rules += &format!(
            "add table bridge {PARTED}\n\
             add chain {chain} {{ type filter hook forward priority 0; }}\n\
             add rule {chain} iifname {one} oifname {other} udp dport {{ {SPEAKER_PORTS} }} drop\n\
             add rule {chain} iifname {other} oifname {one} udp dport {{ {SPEAKER_PORTS} }} drop\n"
        );
    }
    netns::inside(&plan.netns(SWITCH), || netns::run("nft", &[&rules]).map(drop))
}

/// One segment of two: a cable between the switches of labs that share no address. It goes with either switch.
pub fn join(one: &Plan, other: &Plan) -> Result<()> {
    let ((here, near), (there, far)) = (cable_end(one, other), cable_end(other, one));
    netns::ip(&here, &format!("link add {near} type veth peer name {far} netns {there}\n"))?;
    netns::ip(&there, &format!("link set {far} master br0 up\n"))?;
    // From here on frames pass.
    netns::ip(&here, &format!("link set {near} master br0 up\n"))
}

/// Two segments again. Nothing happens if they are.
pub fn part(one: &Plan, other: &Plan) -> Result<()> {
    let (switch, end) = cable_end(one, other);
    netns::inside(&switch, || {
        if nix::net::if_::if_nametoindex(end.as_str()).is_ok() {
            netns::run("ip", &["link", "delete", &end])?;
        }
        Ok(())
    })
}

/// The switch of a lab, and its end of the cable to another lab.
fn cable_end(of: &Plan, to: &Plan) -> (String, String) {
    (of.netns(SWITCH), format!("j-{}", to.name))
}

/// The node's own device.
pub fn set_uplink(state: &State, node: &str, up: bool) -> Result<()> {
    netns::set_link(&state.plan.netns(node), UPLINK, up)?;
    if up { node_routes(state, node) } else { Ok(()) }
}

/// A namespace with a cable to the switch.
pub fn connect(plan: &Plan, role: &str, address: Ipv4Addr) -> Result<()> {
    let mac = plan::mac_of(address).map(|byte| format!("{byte:02x}")).join(":");
    let (switch, name, switch_port) = (plan.netns(SWITCH), plan.netns(role), port(role));
    netns::create(&name)?;
    netns::ip(
        &switch,
        &format!(
            "link add {switch_port} type veth peer name {UPLINK} address {mac} netns {name}\n\
             link set {switch_port} master br0\n"
        ),
    )?;
    // A frame from a local socket carries "checksum to be completed", which XDP_TX on a node would lose. A real wire
    // carries complete checksums: the switch's ports complete them.
    netns::inside(&switch, || netns::run("ethtool", &["-K", &switch_port, "tx", "off"]).map(drop))?;
    netns::ip(&name, &format!("address add {address}/24 dev {UPLINK}\nlink set {UPLINK} up\n"))?;
    netns::ip(&switch, &format!("link set {switch_port} up\n"))
}

fn default_route(plan: &Plan, role: &str, gateway: Ipv4Addr) -> Result<()> {
    netns::ip(&plan.netns(role), &format!("route add default via {gateway}\n"))
}

fn behind_the_router(plan: &Plan) -> Result<()> {
    let (router, far) = (plan.netns("router"), plan.netns("far"));
    netns::create(&far)?;
    netns::ip(
        &router,
        &format!(
            "link add eth1 type veth peer name {UPLINK} netns {far}\n\
             address add {ROUTER_FAR_SIDE}/24 dev eth1\nlink set eth1 up\n"
        ),
    )?;
    // It routes into the segment it came from (pods' replies to the far client): no redirects about that.
    netns::sysctl(
        &router,
        &[
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            ("ipv4/conf/eth0/send_redirects", "0"),
        ],
    )?;
    netns::ip(&far, &format!("address add {FAR_CLIENT}/24 dev {UPLINK}\nlink set {UPLINK} up\n"))?;
    default_route(plan, "far", ROUTER_FAR_SIDE)
}

pub const SWITCH: &str = "sw";
const API_CUT: &str = "api-cut";
const NO_MULTICAST: &str = "no-multicast";
const PARTED: &str = "parted";
/// Adverts and flow reports.
const SPEAKER_PORTS: &str = "7480, 7481";
/// docs/decisions/0005-multicast-group.md.
const SPEAKERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 254);
const BRIDGE_WITHOUT_NETFILTER: [(&str, &str); 3] = [
    ("bridge/bridge-nf-call-iptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
    ("bridge/bridge-nf-call-arptables", "0"),
];
