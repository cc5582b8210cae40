//! `make bench-ranges`: what source ranges cost a node's nftables: time and memory of nft's own runs.
//!
//! The rules of the speaker, and the real nft in a network namespace of this process. What they cost a packet: `make bench-xdp`. How to
//! read it: bench/README.md.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use sheave_bench::nft::{apply, begin, machine, nft};
use speaker_core::attributes::{Prefix, ServiceAttributes, SourceRanges};
use speaker_core::backend::{Plan, Uplink, ruleset};
use speaker_core::view::{
    Conditions, Endpoint, EndpointSlice, Event, Node, Object, ObjectName, Port, Protocol, Service, View, VirtualIp,
};

/// A world of Services on one node.
struct World {
    services: u16,
    ports: u16,
    ranges: u32,
}

const WORLDS: [World; 4] = [
    World { services: 1000, ports: 1, ranges: 10 },
    World { services: 1, ports: 1000, ranges: 1024 },
    World { services: 64, ports: 100, ranges: 1024 },
    World { services: 4095, ports: 1, ranges: 10 },
];

fn main() -> Result<()> {
    begin()?;
    println!("{HEAD}");
    for world in &WORLDS {
        println!("{}", world.line()?);
    }
    println!("\n{}", machine()?);
    Ok(())
}

const HEAD: &str = "\
| Services x ports x ranges | lines of rules | all ranges at once | one list changes | listed by an audit | built anew |
|---|---|---|---|---|---|";

impl World {
    fn line(&self) -> Result<String> {
        let Self { services, ports, ranges } = self;
        let (open, restricted, changed) = (self.plan(None), self.plan(Some(0)), self.plan(Some(1)));
        apply(&ruleset::replace(&open))?.done()?;
        let update = |from, to| ruleset::update(from, to).context("nothing to change");
        let all = update(&open, &restricted)?;
        let mut line = format!("| {services} x {ports} x {ranges} | {} |", all.lines().count());
        // Without an earlier one the others say nothing.
        let runs = [(all, true), (update(&restricted, &changed)?, true), (String::new(), false)];
        for (text, applies) in runs.into_iter().chain([(ruleset::replace(&changed), true)]) {
            let run = if applies { apply(&text)? } else { nft(&["-s", "list", "table", "ip", ruleset::TABLE], "")? };
            write!(line, " {} |", run.describe())?;
            if run.done().is_err() {
                break;
            }
        }
        Ok(line)
    }

    /// `shift`: of the first Service's ranges; `None`: no Service has any.
    fn plan(&self, shift: Option<u32>) -> Plan {
        let mut view = View::default();
        view.handle(Event::Apply(Object::Node(NODE.into(), Node::at(Ipv4Addr::new(192, 0, 2, 1)))));
        for service in 0..self.services {
            let name = ObjectName::new("default", format!("service-{service:05}"));
            let port = |number: u16| Port { name: number.to_string(), port: number, protocol: Protocol::Tcp };
            let ports: Vec<Port> = (1..=self.ports).map(port).collect();
            let moved = shift.map(|shift| if service == 0 { shift } else { 0 });
            let source_ranges = moved.map(|moved| self.list(service, moved));
            let attributes = ServiceAttributes { source_ranges, ..ServiceAttributes::default() };
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 1)) + u32::from(service));
            let endpoint = Endpoint { address, node: Some(NODE.into()), conditions: Conditions::READY };
            let slice = EndpointSlice { service: name.name.clone(), ports: ports.clone(), endpoints: vec![endpoint] };
            let vip = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + u32::from(service));
            let virtual_ip = VirtualIp { pool: "pool".into(), services: vec![name.clone()], ..VirtualIp::default() };
            for object in [
                Object::Service(name.clone(), Service { ports, attributes }),
                Object::EndpointSlice(name, slice),
                Object::VirtualIp(vip, virtual_ip),
            ] {
                view.handle(Event::Apply(object));
            }
        }
        Plan::new(&view, NODE, Uplink::new("eth0").expect("a name"))
    }

    /// Single addresses, none beside another: nothing can be joined.
    fn list(&self, service: u16, shift: u32) -> SourceRanges {
        let first = 0x0b00_0000 + u32::from(service) * 4 * self.ranges + shift;
        let range = |n: u32| Prefix { network: (first + 2 * n).into(), length: 32 };
        (0..self.ranges).map(range).collect::<Vec<_>>().into()
    }
}

const NODE: &str = "node-1";
