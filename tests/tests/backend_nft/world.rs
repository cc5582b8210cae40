//! A client and one or two nodes with their pods, each in a namespace, and what can be done in them. Gone with the value, also
//! on a panic.
//!
//! ```text
//! client eth0 192.0.2.5 -+- eth0 192.0.2.11 node a, pods0 10.99.1.1 --- eth0 10.99.1.2, 10.99.1.3 pods of a
//!   (a bridge)           +- eth0 192.0.2.12 node b, pods0 10.99.2.1 --- eth0 10.99.2.2, 10.99.2.3 pods of b
//! ```
//! The client reaches the VIPs by a route through node a: that is what a dispatcher's MAC rewrite amounts to. Before each node's
//! chains stands a stand-in for XDP, which marks what is for a VIP, see [`Node::mark`].

mod connection;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ebpf_common::{Mark, NextHop, SearchState};
use sheave_tests::lab::netns;
use socket2::{Domain, Protocol, Socket, Type};
use speaker_core::backend::{Guard, Plan, Uplink, ruleset};
use speaker_core::view::{
    Affinity, Conditions, Endpoint, EndpointSlice, Node as NodeView, Object, ObjectName, Port, Protocol as Ip, Service,
    ServiceAttributes, View, VirtualIp,
};

use crate::packet;

pub use connection::{Connection, answer_tcp};

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 5);
pub const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
pub const OTHER_VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 201);
/// Of node a.
pub const PODS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 1, 2), Ipv4Addr::new(10, 99, 1, 3)];
/// Of node b.
pub const PODS_B: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 2, 2), Ipv4Addr::new(10, 99, 2, 3)];
/// The slots of the nodes, as their marks name them.
pub const A: u16 = 1;
pub const B: u16 = 2;
pub const PATIENCE: Duration = Duration::from_secs(2);

pub struct World {
    pub client: String,
    pub a: Node,
    pub b: Option<Node>,
}

pub struct Node {
    pub name: String,
    pub pods: String,
    pub slot: u16,
}

impl World {
    /// One node. Pods answer on 8080 TCP and 5353 UDP; nothing translates yet.
    pub fn new(test: &str) -> Self {
        let name = |part: &str| format!("backend-{}-{test}-{part}", std::process::id());
        let world =
            Self { client: name("client"), a: Node { name: name("a"), pods: name("a-pods"), slot: A }, b: None };
        netns::create(&world.client).expect("a namespace");
        let routes = format!("route add {VIP} via 192.0.2.11\nroute add {OTHER_VIP} via 192.0.2.11\n");
        let bridge = "link add eth0 type bridge\naddr add 192.0.2.5/24 dev eth0\nlink set eth0 up\n";
        netns::ip(&world.client, &format!("{bridge}{routes}")).expect("a client");
        // Else the bridge's frames pass netfilter twice.
        netns::sysctl(&world.client, &[("bridge/bridge-nf-call-iptables", "0")]).expect("a client");
        world.a.build(&world.client, PODS).expect("node a");
        world
    }

    /// Two nodes; packets of flows that node a does not know may be node b's.
    pub fn pair(test: &str) -> Self {
        let mut world = Self::new(test);
        let name = |part: &str| format!("backend-{}-{test}-{part}", std::process::id());
        let node = Node { name: name("b"), pods: name("b-pods"), slot: B };
        world.b.insert(node).build(&world.client, PODS_B).expect("node b");
        world.a.mark(Mark { next_hop: NextHop::Alternate(1), no_reset: false, slot: B });
        world
    }

    pub fn b(&self) -> &Node {
        self.b.as_ref().expect("a pair")
    }

    pub fn connect(&self, vip: Ipv4Addr, port: u16) -> std::io::Result<Connection> {
        self.connect_from(0, vip, port)
    }

    /// From a given client port, which may be in use towards another address.
    pub fn connect_from(&self, from: u16, vip: Ipv4Addr, port: u16) -> std::io::Result<Connection> {
        self.connect_as(SocketAddrV4::new(CLIENT, from), vip, port)
    }

    /// From a given address of the client.
    pub fn connect_as(&self, from: SocketAddrV4, vip: Ipv4Addr, port: u16) -> std::io::Result<Connection> {
        let connect = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
            Ok(socket.connect_timeout(&SocketAddrV4::new(vip, port).into(), PATIENCE).map(|()| socket))
        };
        Connection::greet(netns::inside(&self.client, connect).expect("a client socket")?.into())
    }

    pub fn client_udp(&self) -> UdpSocket {
        self.client_udp_as(CLIENT)
    }

    /// From a given address of the client.
    pub fn client_udp_as(&self, from: Ipv4Addr) -> UdpSocket {
        let socket = netns::inside(&self.client, || Ok(UdpSocket::bind((from, 0))?)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Sends and sees packets of one IP protocol as the client, its own IP header not included.
    pub fn client_raw(&self, protocol: Protocol) -> Socket {
        let open = || Ok(Socket::new(Domain::IPV4, Type::RAW, Some(protocol))?);
        let socket = netns::inside(&self.client, open).expect("CAP_NET_RAW");
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket
    }

    /// The client has these addresses too.
    pub fn add_clients(&self, addresses: &[Ipv4Addr]) {
        let add: String = addresses.iter().map(|address| format!("addr add {address}/24 dev eth0\n")).collect();
        netns::ip(&self.client, &add).unwrap();
    }

    /// What the client sends to a VIP goes to this node from now on.
    pub fn dispatch_to(&self, node: &Node) {
        let route = |vip| format!("route replace {vip} via {}\n", node.address());
        netns::ip(&self.client, &format!("{}{}", route(VIP), route(OTHER_VIP))).unwrap();
    }

    /// One transaction at the client.
    pub fn client_nft(&self, text: &str) {
        run_nft(&self.client, &["-f", "-"], text).unwrap();
    }
}

/// What becomes of SYNs.
enum Syns {
    /// They have this mark.
    Begin(Mark),
    /// They are marked as all packets, until the last hop.
    Search,
}

impl Node {
    fn build(&self, client: &str, addresses: [Ipv4Addr; 2]) -> Result<()> {
        let Self { name, pods, slot } = self;
        for name in [name, pods] {
            netns::create(name)?;
        }
        netns::ip(name, &format!("link add eth0 type veth peer name node{slot} netns {client}\n"))?;
        netns::ip(client, &format!("link set node{slot} master eth0\nlink set node{slot} up\n"))?;
        netns::ip(name, &format!("link add pods0 type veth peer name eth0 netns {pods}\n"))?;
        netns::ip(name, &format!("addr add {}/24 dev eth0\nlink set eth0 up\n", self.address()))?;
        netns::ip(name, &format!("addr add 10.99.{slot}.1/24 dev pods0\nlink set pods0 up\n"))?;
        let [first, second] = addresses;
        netns::ip(pods, &format!("addr add {first}/24 dev eth0\naddr add {second}/24 dev eth0\nlink set eth0 up\n"))?;
        netns::ip(pods, &format!("route add default via 10.99.{slot}.1\n"))?;
        netns::sysctl(name, &[("ipv4/ip_forward", "1"), ("netfilter/nf_conntrack_tcp_loose", "1")])?;
        self.redirects("0")?;
        self.mark(Mark::LOCAL);
        addresses.into_iter().try_for_each(|address| self.serve(address))
    }

    /// More pods of this node.
    pub fn add_pods(&self, addresses: &[Ipv4Addr]) {
        for address in addresses {
            netns::ip(&self.pods, &format!("addr add {address}/24 dev eth0\n")).unwrap();
            self.serve(*address).unwrap();
        }
    }

    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, 10 + self.slot as u8)
    }

    /// Stands in for XDP: packets to a VIP, or to the Service's ports of a node, get this mark, SYNs and packets in search [`Mark::LOCAL`], with or without `no_reset`.
    pub fn mark(&self, mark: Mark) {
        self.mark_searching(mark, Mark::LOCAL);
    }

    /// As [`Node::mark`]; packets in search have this next hop.
    pub fn mark_searching(&self, mark: Mark, next: Mark) {
        self.stand_in(mark, next, Syns::Begin(Mark::LOCAL));
    }

    /// SYNs as another node dispatches them.
    pub fn mark_syns_of(&self, slot: u16) {
        self.stand_in(Mark::LOCAL, Mark::LOCAL, Syns::Begin(Mark { slot, ..Mark::LOCAL }));
    }

    /// The same for a Service with affinity: SYNs search too, until the last hop.
    pub fn mark_seeking_client(&self, mark: Mark, next: Mark) {
        self.stand_in(mark, next, Syns::Search);
    }

    fn stand_in(&self, mark: Mark, next: Mark, syns: Syns) {
        let mac = |mark: Mark| mark.mac().map(|byte| format!("{byte:02x}")).join(":");
        let held = |mark: Mark| if mark.next_hop.needs_ttl_guard() { "ip ttl set 1" } else { "" };
        let (local, first, held_first) = (mac(Mark::LOCAL), mac(mark), held(mark));
        let (may_reset, no_reset, held) = (mac(next), mac(Mark { no_reset: true, ..next }), held(next));
        let hops = (1..=4).map(|hop| {
            let [may_reset, no_reset] = [false, true].map(|no_reset| SearchState { hop, no_reset }.ttl());
            format!("ip ttl {may_reset} counter name hop{hop}\nip ttl {no_reset} counter name no_reset{hop}\n")
        });
        let hops: String = hops.collect();
        let last = SearchState { hop: SearchState::LAST_HOP, no_reset: false }.ttl();
        let [new, last] = match syns {
            Syns::Search => [String::new(), format!("ip ttl {last} ether saddr set {local} accept")],
            Syns::Begin(mark) => {
                [format!("tcp flags & (syn | ack) == syn ether saddr set {} accept", mac(mark)), String::new()]
            }
        };
        // Every plan here is that of one and the same node.
        let began = SearchState::origin_id(ADDRESS.octets());
        let counters: String =
            (1..=4).map(|hop| format!("counter hop{hop} {{ }}\ncounter no_reset{hop} {{ }}\n")).collect();
        self.nft(&format!(
            "add table netdev xdp
             delete table netdev xdp
             table netdev xdp {{
                 {counters}
                 counter began_nowhere {{ }}
                 chain travelling {{
                     ip id & 0xffc0 != {began} counter name began_nowhere
                     {hops}
                     ip frag-off set ip frag-off & 0x7fff
                     {last}
                     ip ttl <= 16 ether saddr set {may_reset} {held} accept
                     ether saddr set {no_reset} {held} accept
                 }}
                 chain ingress {{
                     type filter hook ingress device \"eth0\" priority 0; policy accept;
                     ip daddr {{ {ADDRESS}, {ADDRESS_B} }} meta l4proto {{ tcp, udp }} th dport {{ 80, 53 }} goto ours
                     ip daddr {{ {VIP}, {OTHER_VIP} }} goto ours
                 }}
                 chain ours {{
                     ether type ip ip frag-off & 0x8000 != 0 goto travelling
                     {new}
                     ether saddr set {first} {held_first}
                 }}
             }}"
        ));
    }

    /// A program on the node.
    pub fn run(&self, program: &str, arguments: &str) {
        let mut command = Command::new(program);
        netns::enter(command.args(arguments.split(' ')), &self.name).unwrap();
        let output = command.output().unwrap();
        assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// As if XDP were not attached.
    pub fn unmark(&self) {
        self.nft("delete table netdev xdp");
    }

    /// Packets that came here with so many hops behind them, by `hop1`, `no_reset1` and so on; hops without packets are left out.
    /// And `began_nowhere`: packets that do not name the origin of their search.
    pub fn travelled(&self) -> BTreeMap<String, u64> {
        let mut counters = counters(&self.name, "netdev", "xdp");
        counters.retain(|_, packets| *packets > 0);
        counters
    }

    /// Entries of conntrack, of any kind.
    pub fn conntrack_entries(&self) -> u64 {
        let read = || Ok(std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")?);
        netns::inside(&self.name, read).unwrap().trim().parse().expect("a number")
    }

    /// Deletes all conntrack entries.
    pub fn flush_conntrack(&self) {
        netns::inside(&self.name, packet::flush_conntrack).unwrap();
    }

    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        netns::sysctl(&self.name, &[(key, value)])
    }

    /// No pod answers, and no kernel refuses.
    pub fn cut_pods_off(&self) {
        netns::ip(&self.pods, "link set eth0 down\n").unwrap();
    }

    pub fn redirects(&self, value: &str) -> Result<()> {
        netns::sysctl(&self.name, &[("ipv4/conf/all/send_redirects", value), ("ipv4/conf/eth0/send_redirects", value)])
    }

    /// ICMP redirects that the node has sent, from /proc/net/snmp.
    pub fn redirects_sent(&self) -> u64 {
        let read = || Ok(std::fs::read_to_string("/proc/thread-self/net/snmp")?);
        let text = netns::inside(&self.name, read).unwrap();
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Icmp: "));
        let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
        let mut columns = names.split(' ').zip(values.split(' '));
        let column = columns.find(|(name, _)| *name == "OutRedirects").expect("a counter of redirects");
        column.1.parse().expect("a number")
    }

    /// Commands of ip(8).
    pub fn ip(&self, batch: &str) {
        netns::ip(&self.name, batch).unwrap();
    }

    /// One transaction.
    pub fn nft(&self, text: &str) {
        run_nft(&self.name, &["-f", "-"], text).unwrap();
    }

    pub fn apply(&self, plan: &Plan) {
        self.nft(&ruleset::replace(plan));
    }

    /// Packets per named counter of a table of family ip.
    pub fn counters(&self, table: &str) -> BTreeMap<String, u64> {
        counters(&self.name, "ip", table)
    }

    pub fn guard(&self, guard: Guard) -> u64 {
        self.counters(ruleset::TABLE)[guard.label()]
    }

    /// The counters of our table that are not 0.
    pub fn guards(&self) -> BTreeMap<String, u64> {
        let mut counters = self.counters(ruleset::TABLE);
        counters.retain(|_, packets| *packets > 0);
        counters
    }

    /// Tables of family ip that a speaker of any version makes.
    pub fn tables(&self) -> BTreeSet<String> {
        let json = run_nft(&self.name, &["-j", "list", "tables", "ip"], "").unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let tables = json["nftables"].as_array().unwrap().iter().filter_map(|item| item.get("table"));
        let names = tables.map(|table| table["name"].as_str().unwrap().to_owned());
        names.filter(|name| ruleset::ALL_TABLES.contains(&name.as_str())).collect()
    }

    fn serve(&self, address: Ipv4Addr) -> Result<()> {
        let tcp = netns::inside(&self.pods, || Ok(TcpListener::bind((address, 8080))?))?;
        let udp = netns::inside(&self.pods, || Ok(UdpSocket::bind((address, 5353))?))?;
        answer_tcp(tcp);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let said = String::from_utf8_lossy(&buffer[..length]);
                let _ = udp.send_to(format!("{address} {from} {said}").as_bytes(), from);
            }
        });
        Ok(())
    }

    /// A process of the node itself, on all its addresses.
    pub fn serve_on_node(&self, port: u16) {
        answer_tcp(netns::inside(&self.name, || Ok(TcpListener::bind(("0.0.0.0", port))?)).unwrap());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let nodes = [Some(&self.a), self.b.as_ref()];
        let names = nodes.into_iter().flatten().flat_map(|node| [&node.name, &node.pods]);
        for name in names.chain([&self.client]) {
            let _ = netns::delete(name);
        }
    }
}

fn counters(namespace: &str, family: &str, table: &str) -> BTreeMap<String, u64> {
    let json = run_nft(namespace, &["-j", "list", "counters", "table", family, table], "").unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let counters = json["nftables"].as_array().unwrap().iter().filter_map(|item| item.get("counter"));
    counters.map(|c| (c["name"].as_str().unwrap().into(), c["packets"].as_u64().unwrap())).collect()
}

pub fn run_nft(namespace: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    netns::enter(&mut command, namespace)?;
    let mut child = command.spawn().context("start nft (Debian package nftables)")?;
    child.stdin.take().context("piped")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{}\n{input}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Of the node in every view here.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
pub const ADDRESS_B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 12);

/// What a node's speaker would have: both VIPs serve 80 TCP and 53 UDP, with these pods on this node.
pub fn plan(pods: &[Ipv4Addr], affinity: Affinity) -> Plan {
    let endpoint = |&address| Endpoint { address, node: Some("node".into()), conditions: Conditions::READY };
    plan_of(pods.iter().map(endpoint).collect(), affinity)
}

/// The same with any endpoints.
pub fn plan_of(endpoints: Vec<Endpoint>, affinity: Affinity) -> Plan {
    plan_with(endpoints, affinity.into())
}

/// The same with any attributes. Node b is in the view too, as `b`.
pub fn plan_with(endpoints: Vec<Endpoint>, attributes: ServiceAttributes) -> Plan {
    let name = ObjectName::new("default", "web");
    let ports = |tcp, udp| {
        let port = |name: &str, port, protocol| Port { name: name.into(), port, protocol };
        vec![port("http", tcp, Ip::Tcp), port("dns", udp, Ip::Udp)]
    };
    let slice = EndpointSlice { service: "web".into(), ports: ports(8080, 5353), endpoints };
    let vip = VirtualIp { pool: "pool".into(), services: vec![name.clone()], ..VirtualIp::default() };
    let at_node = |node: &str| VirtualIp { node: Some(node.into()), ..vip.clone() };
    let view = View::from(vec![
        Object::Node("node".into(), NodeView::at(ADDRESS)),
        Object::Node("b".into(), NodeView::at(ADDRESS_B)),
        Object::Service(name.clone(), Service { ports: ports(80, 53), attributes }),
        Object::EndpointSlice(name, slice),
        Object::VirtualIp(ADDRESS, at_node("node")),
        Object::VirtualIp(ADDRESS_B, at_node("b")),
        Object::VirtualIp(VIP, vip.clone()),
        Object::VirtualIp(OTHER_VIP, vip),
    ]);
    let peers = [(A, ADDRESS), (B, ADDRESS_B)];
    Plan::new(&view, "node", Uplink::new("eth0").unwrap()).with_peers(peers.into())
}
