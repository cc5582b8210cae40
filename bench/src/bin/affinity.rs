//! `make bench-affinity`: what session affinity costs a node's nftables: time and memory of nft's own runs, with affinity and without.
//!
//! The rules of the speaker, and the real nft in a network namespace of this process. How to read it: bench/README.md.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use sheave_bench::nft::{Run, apply, begin, machine, nft};
use speaker_core::backend::{Plan, Uplink, ruleset};
use speaker_core::view::{
    Affinity, Conditions, Endpoint, EndpointSlice, Event, Node, Object, ObjectName, Port, Protocol, Service, View,
    VirtualIp,
};

/// Services with so many ports each, and so many pods each on this node.
#[derive(Clone, Copy)]
struct World {
    services: u16,
    ports: u16,
    pods: u8,
}

/// One port more is the most that a Service may have.
const WORLDS: [World; 4] = [
    World { services: 1, ports: 100, pods: 30 },
    World { services: 1, ports: 999, pods: 10 },
    World { services: 1, ports: 999, pods: 30 },
    World { services: 1000, ports: 1, pods: 2 },
];

fn main() -> Result<()> {
    begin()?;
    println!("{HEAD}");
    for world in WORLDS {
        for affinity in [Affinity::None, Affinity::ClientIp] {
            println!("{}", world.line(affinity)?);
        }
    }
    println!("\n{}", machine()?);
    Ok(())
}

const HEAD: &str = "\
| Services x ports x pods | affinity | lines of rules | built anew | listed by an audit | one port more | one pod more | one pod less |
|---|---|---|---|---|---|---|---|";

impl World {
    fn line(self, affinity: Affinity) -> Result<String> {
        let Self { services, ports, pods } = self;
        let plan = |ports, pods| Self { services, ports, pods }.plan(affinity);
        let (full, port, pod) = (plan(ports, pods), plan(ports + 1, pods), plan(ports, pods + 1));
        let text = ruleset::replace(&full);
        let mut runs = vec![apply(&text)?];
        let listed = nft(&["-s", "list", "table", "ip", ruleset::TABLE], "")?;
        runs.push(listed);
        let changes = [(&full, &port), (&port, &full), (&full, &pod), (&pod, &full)];
        for (i, (from, to)) in changes.into_iter().enumerate() {
            let run = apply(&ruleset::update(from, to).context("nothing to change")?)?;
            // Back to where the next change begins.
            if i != 1 {
                runs.push(run);
            }
        }
        let with = if affinity == Affinity::ClientIp { "yes" } else { "no" };
        let runs: Vec<String> = runs.iter().map(Run::describe).collect();
        let lines = text.lines().count();
        Ok(format!("| {services} x {ports} x {pods} | {with} | {lines} | {} |", runs.join(" | ")))
    }

    /// The first Service has these ports and pods; the others one port and two pods at most.
    fn plan(self, affinity: Affinity) -> Plan {
        let mut view = View::default();
        view.handle(Event::Apply(Object::Node(NODE.into(), Node::at(Ipv4Addr::new(192, 0, 2, 1)))));
        for service in 0..self.services {
            let most = |n: u16, first: u16| if service == 0 { n } else { n.min(first) };
            let name = ObjectName::new("default", format!("service-{service:05}"));
            let ports = |more: u16| -> Vec<Port> {
                let port = |n: u16| Port { name: n.to_string(), port: more + n, protocol: Protocol::Tcp };
                (1..=most(self.ports, 1)).map(port).collect()
            };
            let address = |n: u16| Ipv4Addr::from(0x0a00_0000 + 256 * u32::from(service) + u32::from(n));
            let endpoint = |n| Endpoint { address: address(n), node: Some(NODE.into()), conditions: Conditions::READY };
            let endpoints = (1..=most(self.pods.into(), 2)).map(endpoint).collect();
            let slice = EndpointSlice { service: name.name.clone(), ports: ports(8000), endpoints };
            let vip = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + u32::from(service));
            let virtual_ip = VirtualIp { pool: "pool".into(), services: vec![name.clone()], ..VirtualIp::default() };
            for object in [
                Object::Service(name.clone(), Service { ports: ports(0), attributes: affinity.into() }),
                Object::EndpointSlice(name, slice),
                Object::VirtualIp(vip, virtual_ip),
            ] {
                view.handle(Event::Apply(object));
            }
        }
        Plan::new(&view, NODE, Uplink::new("eth0").expect("a name"))
    }
}

const NODE: &str = "node-1";
