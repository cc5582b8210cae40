//! `make bench-ranges`, second table: 1,000 Services with 10 source ranges each, all served on this node; one list changes, or many at once,
//! until the packet path and the rules of the node have it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use speaker_core::time::Instant;

use crate::dataplane::loader::{self, Pins};
use crate::nft::Nft;
use crate::node::{Node, Pass};
use crate::world::{self, Kind};
use crate::{Cluster, cpu_time, ms, namespaces, runtime, settle};

pub fn measure() -> Result<()> {
    let pins = Pins::new(&namespaces()?);
    runtime()?.block_on(async {
        let loaded = loader::load(&pins)?;
        let nft = Nft::new("nft");
        let mut cluster = Cluster::new(Kind::Ranged, SERVICES);
        let (mut node, _) = Node::start(&pins, None, Instant::from_millis(1_000_000))?;
        node.pass(&cluster.view, Some(&nft)).await?;
        settle(&mut node, &cluster, &nft).await?;
        ensure!(node.have.services.len() == SERVICES, "{} service ports", node.have.services.len());
        println!("{HEAD}");
        for lists in LISTS {
            let mut changes = Vec::new();
            for round in 1..=ROUNDS {
                changes.push(change(&mut node, &mut cluster, &nft, lists, round).await?);
            }
            println!("{}", line(lists, &mut changes).context("no change")?);
        }
        drop(loaded);
        Ok(())
    })
}

/// In one pass, as when all of them came before the loop was there for the first.
async fn change(node: &mut Node, cluster: &mut Cluster, nft: &Nft, lists: usize, round: u32) -> Result<Pass> {
    let (began, cpu) = (std::time::Instant::now(), cpu_time());
    for service in 0..lists {
        cluster.change(world::restricted(Kind::Ranged, service, round));
    }
    let view = Pass::step("view", began.elapsed(), cpu_time() - cpu);
    Ok(view.and(node.pass(&cluster.view, Some(nft)).await?))
}

fn line(lists: usize, changes: &mut [Pass]) -> Option<String> {
    let whole = |pass: &Pass| -> Duration { pass.total() + pass.nft };
    changes.sort_by_key(whole);
    let (median, slowest) = (changes.get(changes.len() / 2)?, changes.last()?);
    Some(format!(
        "| {lists} of {SERVICES} | {:.0} | {:.0} | {:.0} | {:.0} | {} |",
        ms(whole(median)),
        ms(whole(slowest)),
        ms(median.cpu),
        ms(median.nft),
        median.ops
    ))
}

const HEAD: &str = "\
| lists that change at once | in force, ms (median of 9) | slowest, ms | without nft, of a processor, ms | nft, ms | map writes |
|---|---|---|---|---|---|";
const SERVICES: usize = 1000;
const LISTS: [usize; 3] = [1, 100, 1000];
const ROUNDS: u32 = 9;
