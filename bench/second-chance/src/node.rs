//! A world with one of the choices at work in it, and what is done to it.

use std::fmt;

use anyhow::Result;

use crate::traffic::{Action, Flows, Generator, Kind, Program};
use crate::world::{DUP, NAT, NAT_MARK, Sent, World};

#[derive(Clone, Copy, Debug)]
pub enum Choice {
    Dup,
    NatMark,
    /// With room for so many flows.
    Map(u32),
}

impl fmt::Display for Choice {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dup => to.write_str("(a) chain + dup"),
            Self::NatMark => to.write_str("(b) nat chain + mark + route"),
            Self::Map(size) => write!(to, "(c) map of {size} flows"),
        }
    }
}

pub struct Node {
    pub world: World,
    pub generator: Generator,
    client: Program,
}

impl Node {
    pub fn new(choice: Choice) -> Result<Self> {
        let (rules, client, known_flows) = match choice {
            Choice::Dup => (DUP, Program::Generate(Action::Pass), 1),
            Choice::NatMark => (NAT_MARK, Program::Generate(Action::Pass), 1),
            Choice::Map(size) => (NAT, Program::KnownFlows, size),
        };
        Self::with("node", rules, client, known_flows)
    }

    pub fn with(name: &str, rules: &str, client: Program, known_flows: u32) -> Result<Self> {
        let world = World::new(name, rules)?;
        let mut generator = Generator::load(known_flows)?;
        generator.attach(&world.node, "up0", "pass")?;
        generator.attach(&world.node, "pod0", "pass")?;
        if matches!(client, Program::KnownFlows | Program::Generate(Action::Tx)) {
            // Without a program at the far end of a veth, frames that XDP sends are lost.
            generator.attach(world.far_end(), "up9", "discard")?;
        }
        Ok(Self { world, generator, client })
    }

    /// From the wire (answers: from the pod); CPU nanoseconds per packet.
    pub fn send(&mut self, kind: Kind, flows: Flows, packets: u32) -> Result<f64> {
        let program = if kind == Kind::SynAck { Program::Generate(Action::Pass) } else { self.client };
        self.generator.inject(&self.world, program, kind, flows, packets)
    }

    /// From flows that the node has not seen before.
    pub fn send_strange(&mut self, kind: Kind, packets: u32) -> Result<f64> {
        let flows = self.generator.strangers();
        self.send(kind, flows, packets)
    }

    /// Handshakes with the pod here; conntrack then calls them assured.
    pub fn open(&mut self, flows: Flows) -> Result<()> {
        for kind in [Kind::Syn, Kind::SynAck, Kind::Ack] {
            self.send(kind, flows, flows.count as u32)?;
        }
        Ok(())
    }

    /// One mid-flow packet of each: where it goes.
    pub fn ask(&mut self, flows: Flows) -> Result<Sent> {
        let before = self.world.sent()?;
        self.send(Kind::Ack, flows, flows.count as u32)?;
        self.world.sent_since(before)
    }
}
