//! Two clusters whose pools overlap, each with an API server, a controller and speakers of its own, on one segment.

use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use sheave_tests::lab::{self, Lab, LabConfig, image, plan};
use sheave_tests::scenario::clusters::{self, Answered, Pair};
use sheave_tests::scenario::{self, leftovers};

#[test]
fn of_two_clusters_one_answers_for_an_address() -> Result<()> {
    lab::all_down_on_interrupt(&NAMES)?;
    let began = Instant::now();
    // Both labs pack what has changed since.
    let _ = image::pack_all(&plan::kubernetes_bin().join("pause"));
    let [one, other] = std::thread::scope(|scope| {
        let start = |name: &str, first_node| {
            let config = LabConfig { name: name.to_owned(), nodes: 2, first_node, ..LabConfig::default() };
            scope.spawn(move || Lab::temporary(config))
        };
        // All are started before one is waited for.
        let labs = [start(NAMES[0], 1), start(NAMES[1], 3)];
        labs.map(|lab| lab.join().unwrap_or_else(|_| Err(anyhow!("the start panicked"))))
    });
    let (one, other) = (one?, other?);
    let pair = Pair::new([scenario::deploy(&one, 1)?, scenario::deploy(&other, 1)?])?;
    eprintln!("both labs are up after {} s; number {} keeps", began.elapsed().as_secs(), pair.keeps + 1);

    let met = clusters::meet(&pair).context("both own the same addresses when they meet")?;
    eprintln!("met: {met:#?}");
    one_after_the_other(&met.addresses, pair.keeps)?;
    ensure!(met.kept.0 == met.kept.1, "open connections to the cluster that keeps the address have ended: {met:#?}");

    let asked = clusters::ask(&pair).context("one asks for an address of the other")?;
    eprintln!("asked: {asked:#?}");
    ensure!(asked.refusal.starts_with("AnsweredByHost"), "{asked:#?}");
    for (reasons, answered) in &asked.at_once {
        ensure!(answered.by_both_ms < SECOND_MS && answered.last.is_some(), "{reasons:?} {answered:#?}");
    }

    let freed = clusters::free(&pair).context("the addresses are freed")?;
    eprintln!("freed: {freed:#?}");
    one_after_the_other(&freed.addresses, 1 - pair.keeps)?;
    eprintln!("{} s", began.elapsed().as_secs());

    drop((pair, one, other));
    let left: Vec<_> = NAMES.iter().map(|name| leftovers(name)).collect::<Result<Vec<_>>>()?.concat();
    ensure!(left.is_empty(), "left behind: {left:#?}");
    Ok(())
}

fn one_after_the_other(addresses: &[Answered], last: usize) -> Result<()> {
    let fits = |one: &Answered| one.by_both_ms < SECOND_MS && one.last == Some(last);
    ensure!(addresses.iter().all(fits), "not one after the other, and cluster {} last: {addresses:#?}", last + 1);
    Ok(())
}

const NAMES: [&str; 2] = ["e2eone", "e2etwo"];
const SECOND_MS: f64 = 1000.0;
