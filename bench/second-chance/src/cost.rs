//! What a packet costs, in turn with what it would cost otherwise: medians over the rounds of one run.

use anyhow::{Result, ensure};

use crate::node::Node;
use crate::traffic::{Action, Flows, Generator, Kind, Program};
use crate::world::{DROP, DUP, DUP_RAW, NAT, NAT_MARK, PLAIN, shipped};

/// The packet's way through a node, all of it on one CPU: generator, receive, rules, transmit over a veth, drop at its far end.
pub fn stack() -> Result<()> {
    const PASS: Program = Program::Generate(Action::Pass);
    let mut nothing = Node::with("none", PLAIN, Program::Generate(Action::Drop), 1)?;
    let mut dropped = Node::with("drop", DROP, PASS, 1)?;
    let mut plain = Node::with("plain", PLAIN, PASS, 1)?;
    let mut nat = Node::with("nat", NAT, PASS, 1)?;
    let mut dup = Node::with("dup", DUP, PASS, 1)?;
    let mut raw = Node::with("raw", DUP_RAW, PASS, 1)?;
    let mut mark = Node::with("mark", NAT_MARK, PASS, 1)?;
    let mut whole = Node::with("shipped", &shipped()?, PASS, 1)?;
    let mut tx = Node::with("tx", PLAIN, Program::Generate(Action::Tx), 1)?;
    let mut map = Node::with("map", NAT, Program::KnownFlows, 65_536)?;
    whole.open(OWN)?;
    ensure!(whole.ask(OWN)?.to_pod == OWN.count, "a speaker's rules do not forward");
    ensure!(whole.ask(FOREIGN)?.to_uplink == FOREIGN.count, "a speaker's rules do not forward to the alternate");
    let names = [
        "packet generator alone",
        "dropped in prerouting",
        "forwarded, no conntrack",
        "own flow: nat alone",
        "own flow: with (a)",
        "own flow: with (b)",
        "own flow: with (c)",
        "own flow: (a) as shipped",
        "own flow: (a) as shipped, held",
        "handed on: bare XDP_TX",
        "handed on: (c) map, XDP_TX",
        "handed on: (a) dup",
        "the same dup, without conntrack",
        "handed on: (b) first packet of its flow",
        "handed on: (b) further packets",
        "handed on: (a) as shipped",
    ];
    let mut times = vec![Vec::new(); names.len()];
    for _ in 0..ROUNDS {
        for node in [&mut nat, &mut dup, &mut mark, &mut map, &mut whole] {
            node.world.flush()?;
            node.open(OWN)?;
        }
        let round = [
            nothing.send_strange(Kind::Ack, PACKETS)?,
            dropped.send_strange(Kind::Ack, PACKETS)?,
            plain.send_strange(Kind::Ack, PACKETS)?,
            nat.send(Kind::Ack, OWN, PACKETS)?,
            dup.send(Kind::Ack, OWN, PACKETS)?,
            mark.send(Kind::Ack, OWN, PACKETS)?,
            map.send(Kind::Ack, OWN, PACKETS)?,
            whole.send(Kind::Ack, OWN, PACKETS)?,
            whole.send(Kind::Held, OWN, PACKETS)?,
            tx.send_strange(Kind::Ack, PACKETS)?,
            map.send_strange(Kind::Ack, PACKETS)?,
            dup.send_strange(Kind::Ack, PACKETS)?,
            raw.send_strange(Kind::Ack, PACKETS)?,
            mark.send_strange(Kind::Ack, PACKETS)?,
            {
                mark.send(Kind::Ack, FOREIGN, FOREIGN.count as u32)?;
                mark.send(Kind::Ack, FOREIGN, PACKETS)?
            },
            whole.send_strange(Kind::Held, PACKETS)?,
        ];
        times.iter_mut().zip(round).for_each(|(times, time)| times.push(time));
    }
    let medians: Vec<_> = times.into_iter().map(median).collect();
    println!("through a node, ns of CPU per packet ({ROUNDS} rounds of {PACKETS} packets)");
    println!("  {:<42} {:>6} {:>12} {:>14}", "", "ns", "less gen.", "of forwarding");
    for (name, ns) in names.iter().zip(&medians) {
        let net = ns - medians[0];
        println!("  {name:<42} {ns:>6.0} {net:>12.0} {:>14.2}", net / (medians[2] - medians[0]));
    }
    Ok(())
}

/// The program alone: what the map adds to it.
pub fn program() -> Result<()> {
    println!("\n(c) in XDP alone, ns per packet, less those of a program that only makes it ({ROUNDS} rounds)");
    println!("  {:<34} {:>9} {:>9} {:>9}", "flows", 1, 1_000, 100_000);
    let sizes = [1, 1_000, 100_000];
    let mut known = sizes.map(|_| Vec::new());
    let mut unknown = sizes.map(|_| Vec::new());
    let mut again = sizes.map(|_| Vec::new());
    let (mut fresh, mut evicting) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (index, count) in sizes.into_iter().enumerate() {
            let flows = Flows { seed: 1, count };
            let packets = PACKETS.max(2 * count as u32);
            let mut generator = Generator::load(1 << 20)?;
            // The strangers walk over no more memory than the known.
            let strange = Flows { seed: 1 << 50, count };
            let pass = generator.run(Program::Generate(Action::Pass), Kind::Ack, flows, packets)?;
            let insert = generator.run(Program::KnownFlows, Kind::Syn, flows, count as u32)?;
            if count == 100_000 {
                fresh.push(insert - pass);
            }
            known[index].push(generator.run(Program::KnownFlows, Kind::Ack, flows, packets)? - pass);
            unknown[index].push(generator.run(Program::KnownFlows, Kind::Ack, strange, packets)? - pass);
            again[index].push(generator.run(Program::KnownFlows, Kind::Syn, flows, packets)? - pass);
        }
        let mut small = Generator::load(1 << 16)?;
        let flood = small.strangers();
        let pass = small.run(Program::Generate(Action::Pass), Kind::Syn, flood, 100_000)?;
        small.run(Program::KnownFlows, Kind::Syn, flood, 100_000)?;
        let flood = small.strangers();
        evicting.push(small.run(Program::KnownFlows, Kind::Syn, flood, 100_000)? - pass);
    }
    for (name, row) in [
        ("mid-flow, known: look-up", known),
        ("mid-flow, unknown: look-up, XDP_TX", unknown),
        ("SYN of a flow that is there", again),
    ] {
        let [one, thousand, many] = row.map(median);
        println!("  {name:<34} {one:>9.1} {thousand:>9.1} {many:>9.1}");
    }
    println!("  {:<34} {:>29.1}", "SYN, new", median(fresh));
    println!("  {:<34} {:>29.1}", "SYN, new, full map of 65536", median(evicting));
    for size in [1 << 16, 1 << 20] {
        println!(
            "  memory of a map of {size:>7} flows {:>24.1} MB",
            Generator::load(size)?.flow_map_bytes()? as f64 / 1e6
        );
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

const ROUNDS: usize = 11;
const PACKETS: u32 = 20_000;
/// Flows of this node and of the alternate.
const OWN: Flows = Flows { seed: 1, count: 1_000 };
const FOREIGN: Flows = Flows { seed: 1 << 51, count: 1_000 };
