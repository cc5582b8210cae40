//! What becomes of flows: under floods, with conntrack full, after replacements.

use std::fs;

use anyhow::Result;

use crate::node::{Choice, Node};
use crate::traffic::{Action, Flows, Generator, Kind, Program};
use crate::world::{DUP, NAT_MARK};

/// SYNs from 1,000,000 random sources, while 10,000 flows are silent and 10,000 send a packet every 100,000 SYNs.
pub fn syn_flood() -> Result<()> {
    println!("\nSYN flood, 1,000,000 sources: still known of 10,000 idle, 10,000 talking, 1,000 half-open flows");
    println!(
        "  {:<30} {:>11} {:>7} {:>8} {:>9} {:>10} {:>9} {:>8}",
        "", "SYNs each", "idle", "talking", "half-open", "SYNs taken", "entries", "ns/SYN"
    );
    for choice in CHOICES {
        for each in [1, 2] {
            let mut node = Node::new(choice)?;
            node.open(IDLE)?;
            node.open(TALKING)?;
            node.send(Kind::Syn, HALF, HALF.count as u32)?;
            node.send(Kind::SynAck, HALF, HALF.count as u32)?;
            let (mut taken, mut ns, mut talking) = (0, 0.0, 0);
            for burst in 0..100 {
                let before = node.world.sent()?;
                let sources = Flows { count: 10_000, ..node.generator.strangers() };
                ns += node.send(Kind::Syn, sources, each * 10_000)? / 100.0;
                taken += node.world.sent_since(before)?.to_pod;
                if burst % 10 == 9 {
                    talking = node.ask(TALKING)?.to_pod;
                }
            }
            let (idle, half) = (node.ask(IDLE)?.to_pod, node.ask(HALF)?.to_pod);
            let entries = node.world.conntrack_count()?;
            let choice = choice.to_string();
            println!("  {choice:<30} {each:>11} {idle:>7} {talking:>8} {half:>9} {taken:>10} {entries:>9} {ns:>8.0}");
        }
    }
    Ok(())
}

/// Mid-flow packets from random sources.
pub fn ack_flood() -> Result<()> {
    println!("\nACK flood, 1,000,000 packets of unknown flows, 10,000 flows known before");
    println!(
        "  {:<30} {:>9} {:>9} {:>9} {:>9} {:>7} {:>11} {:>15}",
        "", "handed on", "entries", "ns, first", "ns, last", "known", "SYNs then", "same ports' SYN"
    );
    for choice in CHOICES {
        let mut node = Node::new(choice)?;
        node.open(IDLE)?;
        let before = node.world.sent()?;
        let handed: Vec<f64> = (0..10).map(|_| node.send_strange(Kind::Ack, CHUNK)).collect::<Result<_>>()?;
        let sent = node.world.sent_since(before)?;
        let entries = node.world.conntrack_count()?;
        let known = node.ask(IDLE)?.to_pod;
        let before = node.world.sent()?;
        node.send_strange(Kind::Syn, 10_000)?;
        let new = node.world.sent_since(before)?.to_pod;
        // A client whose packets were forwarded opens a new connection from the same port: this node takes it.
        let reused = Flows { seed: 1 << 52, count: 1_000 };
        node.send(Kind::Ack, reused, 1_000)?;
        let before = node.world.sent()?;
        node.send(Kind::Syn, reused, 1_000)?;
        let reused = node.world.sent_since(before)?.to_pod;
        println!(
            "  {:<30} {:>9} {entries:>9} {:>9.0} {:>9.0} {known:>7} {:>11} {:>15}",
            choice.to_string(),
            sent.to_uplink,
            handed[0],
            handed[9],
            format!("{new}/10000"),
            format!("{reused}/1000")
        );
    }
    Ok(())
}

/// The table is full: of flows that conntrack may evict (a SYN flood), or of such that it may not.
pub fn table_full() -> Result<()> {
    let max: u64 = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max")?.trim().parse()?;
    println!("\nconntrack full ({max} entries); then 10,000 packets each of");
    println!("  {:<30} {:<14} {:>12} {:>22} {:>12}", "", "full of", "known flows", "unknown: handed on", "SYNs taken");
    for choice in [Choice::Dup, Choice::NatMark, Choice::Map(1 << 20)] {
        for full_of in [SYNS, ALL_BUT_FIVE, ASSURED] {
            let mut node = Node::new(choice)?;
            node.open(IDLE)?;
            match full_of {
                SYNS => _ = node.send_strange(Kind::Syn, max as u32)?,
                ALL_BUT_FIVE => fill(&mut node, max - 5)?,
                _ => fill(&mut node, max)?,
            }
            let known = node.ask(IDLE)?.to_pod;
            let before = node.world.sent()?;
            node.send_strange(Kind::Ack, 10_000)?;
            let handed = node.world.sent_since(before)?.to_uplink;
            let before = node.world.sent()?;
            node.send_strange(Kind::Syn, 10_000)?;
            let new = node.world.sent_since(before)?.to_pod;
            println!("  {:<30} {full_of:<14} {known:>12} {handed:>22} {new:>12}", choice.to_string());
        }
    }
    Ok(())
}

/// Opens flows until not one more is taken. (Handshakes near the end evict each other, so a few places stay free at first.)
fn fill(node: &mut Node, max: u64) -> Result<()> {
    loop {
        let free = max.saturating_sub(node.world.conntrack_count()?);
        if free == 0 {
            return Ok(());
        }
        let flows = Flows { count: free, ..node.generator.strangers() };
        node.open(flows)?;
    }
}

/// Of 10,000 flows: known after each of these.
pub fn replacement() -> Result<()> {
    println!("\nreplacement: of 10,000 flows known");
    for (choice, rules) in [(Choice::Dup, DUP), (Choice::NatMark, NAT_MARK)] {
        let mut node = Node::new(choice)?;
        node.open(IDLE)?;
        node.world.apply(&format!("delete table ip bench\n{rules}"))?;
        println!("  {:<30} table replaced in one transaction {:>12}", choice.to_string(), node.ask(IDLE)?.to_pod);
        node.world.apply("delete table ip bench")?;
        node.world.apply(rules)?;
        println!("  {:<30} table deleted, then made anew {:>16}", choice.to_string(), node.ask(IDLE)?.to_pod);
    }
    let choice = Choice::Map(1 << 16);
    let mut node = Node::new(choice)?;
    node.open(IDLE)?;
    println!("  {:<30} nothing replaced {:>29}", choice.to_string(), node.ask(IDLE)?.to_pod);
    node.generator = Generator::load(1 << 16)?;
    node.generator.attach(&node.world.node, "up0", "pass")?;
    node.generator.attach(&node.world.node, "pod0", "pass")?;
    node.generator.attach(node.world.far_end(), "up9", "discard")?;
    println!("  {:<30} map of another schema (a new one) {:>12}", choice.to_string(), node.ask(IDLE)?.to_pod);
    let unseen = Flows { seed: 1 << 53, count: 10_000 };
    for (kind, program) in [(Kind::Syn, Action::Pass), (Kind::SynAck, Action::Pass)] {
        node.generator.inject(&node.world, Program::Generate(program), kind, unseen, 10_000)?;
    }
    println!("  {:<30} opened while XDP was detached {:>16}", choice.to_string(), node.ask(unseen)?.to_pod);
    Ok(())
}

const CHOICES: [Choice; 4] = [Choice::Dup, Choice::NatMark, Choice::Map(1 << 16), Choice::Map(1 << 20)];
const SYNS: &str = "SYNs";
const ALL_BUT_FIVE: &str = "assured, but 5";
const ASSURED: &str = "assured flows";
const CHUNK: u32 = 100_000;
const IDLE: Flows = Flows { seed: 1, count: 10_000 };
const TALKING: Flows = Flows { seed: 1 << 54, count: 10_000 };
const HALF: Flows = Flows { seed: 1 << 55, count: 1_000 };
