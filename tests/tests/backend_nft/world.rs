//! Three namespaces: client - node - pods, and what can be done in them. Gone with the value, also on a panic.
//!
//! ```text
//! client eth0 192.0.2.5 --- eth0 192.0.2.11 node pods0 10.99.0.1 --- eth0 10.99.0.2, 10.99.0.3 pods
//! ```
//! The client reaches the VIPs by a route through the node: that is what a dispatcher's MAC rewrite amounts to.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sheave_tests::lab::netns;
use socket2::{Domain, Protocol, Socket, Type};
use speaker_core::backend::{Plan, Uplink, ruleset};
use speaker_core::view::{
    Affinity, Conditions, Endpoint, EndpointSlice, Node, Object, ObjectName, Port, Protocol as Ip, Service, View,
    VirtualIp,
};

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 5);
pub const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
pub const OTHER_VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 201);
pub const PODS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 2), Ipv4Addr::new(10, 99, 0, 3)];
pub const PATIENCE: Duration = Duration::from_secs(2);

pub struct World {
    client: String,
    node: String,
    pods: String,
}

impl World {
    /// Pods answer on 8080 TCP and 5353 UDP; nothing translates yet.
    pub fn new(test: &str) -> Self {
        let name = |part: &str| format!("backend-{}-{test}-{part}", std::process::id());
        let world = Self { client: name("client"), node: name("node"), pods: name("pods") };
        world.build().expect("three namespaces");
        for address in PODS {
            world.serve(address).expect("pods that listen");
        }
        world
    }

    fn build(&self) -> Result<()> {
        let Self { client, node, pods } = self;
        for name in [client, node, pods] {
            netns::create(name)?;
        }
        netns::ip(node, &format!("link add eth0 type veth peer name eth0 netns {client}\n"))?;
        netns::ip(node, &format!("link add pods0 type veth peer name eth0 netns {pods}\n"))?;
        netns::ip(client, "addr add 192.0.2.5/24 dev eth0\nlink set eth0 up\n")?;
        netns::ip(client, &format!("route add {VIP} via 192.0.2.11\nroute add {OTHER_VIP} via 192.0.2.11\n"))?;
        netns::ip(node, "addr add 192.0.2.11/24 dev eth0\nlink set eth0 up\n")?;
        netns::ip(node, "addr add 10.99.0.1/24 dev pods0\nlink set pods0 up\n")?;
        netns::ip(pods, "addr add 10.99.0.2/24 dev eth0\naddr add 10.99.0.3/24 dev eth0\nlink set eth0 up\n")?;
        netns::ip(pods, "route add default via 10.99.0.1\n")?;
        netns::sysctl(node, &[("ipv4/ip_forward", "1"), ("netfilter/nf_conntrack_tcp_loose", "1")])?;
        self.redirects("0")
    }

    pub fn redirects(&self, value: &str) -> Result<()> {
        netns::sysctl(&self.node, &[("ipv4/conf/all/send_redirects", value), ("ipv4/conf/eth0/send_redirects", value)])
    }

    /// ICMP redirects that the node has sent, from /proc/net/snmp.
    pub fn redirects_sent(&self) -> u64 {
        let read = || Ok(std::fs::read_to_string("/proc/thread-self/net/snmp")?);
        let text = netns::inside(&self.node, read).unwrap();
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Icmp: "));
        let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
        let mut columns = names.split(' ').zip(values.split(' '));
        let column = columns.find(|(name, _)| *name == "OutRedirects").expect("a counter of redirects");
        column.1.parse().expect("a number")
    }

    /// Commands of ip(8) on the node.
    pub fn node_ip(&self, batch: &str) {
        netns::ip(&self.node, batch).unwrap();
    }

    /// One transaction on the node.
    pub fn nft(&self, text: &str) {
        self.run_nft(&["-f", "-"], text).unwrap();
    }

    pub fn apply(&self, plan: &Plan) {
        self.nft(&ruleset::replace(plan));
    }

    /// Packets per named counter of a table.
    pub fn counters(&self, table: &str) -> BTreeMap<String, u64> {
        let json = self.run_nft(&["-j", "list", "counters", "table", "ip", table], "").unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let counters = json["nftables"].as_array().unwrap().iter().filter_map(|item| item.get("counter"));
        counters.map(|c| (c["name"].as_str().unwrap().into(), c["packets"].as_u64().unwrap())).collect()
    }

    fn run_nft(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new("nft");
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        netns::enter(&mut command, &self.node)?;
        let mut child = command.spawn().context("start nft (Debian package nftables)")?;
        child.stdin.take().context("piped")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("{}\n{input}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn serve(&self, address: Ipv4Addr) -> Result<()> {
        let tcp = netns::inside(&self.pods, || Ok(TcpListener::bind((address, 8080))?))?;
        let udp = netns::inside(&self.pods, || Ok(UdpSocket::bind((address, 5353))?))?;
        answer_tcp(tcp);
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("{from} {}", String::from_utf8_lossy(&buffer[..length])).as_bytes(), from);
            }
        });
        Ok(())
    }

    /// A process of the node itself, on all its addresses.
    pub fn serve_on_node(&self, port: u16) {
        answer_tcp(netns::inside(&self.node, || Ok(TcpListener::bind(("0.0.0.0", port))?)).unwrap());
    }

    pub fn connect(&self, vip: Ipv4Addr, port: u16) -> std::io::Result<Connection> {
        self.connect_from(0, vip, port)
    }

    /// From a given client port, which may be in use towards somebody else.
    pub fn connect_from(&self, from: u16, vip: Ipv4Addr, port: u16) -> std::io::Result<Connection> {
        let connect = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddrV4::new(CLIENT, from).into())?;
            Ok(socket.connect_timeout(&SocketAddrV4::new(vip, port).into(), PATIENCE).map(|()| socket))
        };
        Connection::greet(netns::inside(&self.client, connect).expect("a client socket")?.into())
    }

    pub fn client_udp(&self) -> UdpSocket {
        let socket = netns::inside(&self.client, || Ok(UdpSocket::bind((CLIENT, 0))?)).unwrap();
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
}

impl Drop for World {
    fn drop(&mut self) {
        for name in [&self.client, &self.node, &self.pods] {
            let _ = netns::delete(name);
        }
    }
}

/// An open connection; the pod's first line says who it is and whom it sees.
pub struct Connection {
    stream: TcpStream,
    pub pod: SocketAddr,
    pub seen: SocketAddr,
}

impl Connection {
    fn greet(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut line = String::new();
        BufReader::with_capacity(1, &stream).read_line(&mut line)?;
        let mut addresses = line.split_whitespace().map(|word| word.parse().expect("an address"));
        let (pod, seen) = (addresses.next().expect("pod"), addresses.next().expect("client"));
        Ok(Self { stream, pod, seen })
    }

    pub fn local(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    /// Whether a byte still comes back.
    pub fn is_alive(&mut self) -> bool {
        let mut byte = [0];
        self.stream.write_all(b"x").and_then(|()| self.stream.read_exact(&mut byte)).is_ok() && byte == *b"x"
    }
}

/// Names itself and its peer, then echoes.
fn answer_tcp(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || -> std::io::Result<()> {
                let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
                (&stream).write_all(format!("{local} {peer}\n").as_bytes())?;
                std::io::copy(&mut &stream, &mut &stream).map(drop)
            });
        }
    });
}

/// What the node's speaker would have: both VIPs serve 80 TCP and 53 UDP, with these pods on this node.
pub fn plan(pods: &[Ipv4Addr], affinity: Affinity) -> Plan {
    let name = ObjectName::new("default", "web");
    let ports = |tcp, udp| {
        let port = |name: &str, port, protocol| Port { name: name.into(), port, protocol };
        vec![port("http", tcp, Ip::Tcp), port("dns", udp, Ip::Udp)]
    };
    let endpoint = |&address| Endpoint { address, node: Some("node".into()), conditions: Conditions::READY };
    let endpoints = pods.iter().map(endpoint).collect();
    let slice = EndpointSlice { service: "web".into(), ports: ports(8080, 5353), endpoints };
    let vip = VirtualIp { pool: "pool".into(), services: vec![name.clone()] };
    let view = View::from(vec![
        Object::Node("node".into(), Node { address: Ipv4Addr::new(192, 0, 2, 11), ready: true, excluded: false }),
        Object::Service(name.clone(), Service { ports: ports(80, 53), affinity }),
        Object::EndpointSlice(name, slice),
        Object::VirtualIp(VIP, vip.clone()),
        Object::VirtualIp(OTHER_VIP, vip),
    ]);
    Plan::new(&view, "node", Uplink::new("eth0").unwrap())
}
