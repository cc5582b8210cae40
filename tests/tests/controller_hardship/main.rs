//! The controller and an API server that is in trouble: overloaded, closing watches, without the history that a watch asks for, slow, late, or
//! put back to an earlier state. What makes the trouble is the API server's own configuration, signals to processes that the lab has started,
//! and connections that the kernel ends; where a single request is meant, a proxy of the test between a replica and its API server.
//!
//! Two API servers on one etcd: the tests ask the first one, the replicas that suffer the second. Read: [`ground`] → the chapters.

mod closed;
#[path = "../controller_chaos/end.rs"]
mod end;
mod expired;
mod ground;
#[path = "../controller_chaos/history.rs"]
mod history;
mod late;
mod overload;
mod proxy;
mod refused;
#[path = "../controller_api/replica.rs"]
#[allow(dead_code, reason = "controller_api uses the rest")]
mod replica;
mod restored;
mod slow;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use sheave_tests::lab::{Lab, LabConfig, alone, quiet};

use ground::Ground;

const NAMESPACE: &str = "hardship";
const SERVICES: &str = "/api/v1/namespaces/hardship/services";
const LEDGER: &str = "/apis/sheave.dev/v1alpha1/virtualips";
const POOLS: &str = "/apis/sheave.dev/v1alpha1/addresspools";

#[test]
fn trouble_of_the_api_server_grants_nothing_twice_and_loses_nothing() -> Result<()> {
    let name = "hardship".into();
    let config = LabConfig { name, nodes: 0, api_servers: 2, sheave: false, progress: quiet, ..LabConfig::default() };
    alone(config, story)
}

type Chapter = fn(&Ground) -> Result<()>;

/// All chapters, or those that `$HARDSHIPS` names.
fn story(lab: &Lab, folder: &Path) -> Result<()> {
    let ground = Ground::prepare(lab, folder)?;
    let chapters: [(&str, Chapter); 7] = [
        ("overload", overload::chapter),
        ("refused", refused::chapter),
        ("closed", closed::chapter),
        ("expired", expired::chapter),
        ("slow", slow::chapter),
        ("late", late::chapter),
        ("restored", restored::chapter),
    ];
    let only = std::env::var("HARDSHIPS").ok();
    let wanted = |name: &str| only.as_deref().is_none_or(|list| list.split(',').any(|one| one == name));
    for (name, chapter) in chapters.into_iter().filter(|(name, _)| wanted(name)) {
        let since = Instant::now();
        chapter(&ground).context(name)?;
        eprintln!("{name} ({:.1} s)", since.elapsed().as_secs_f64());
    }
    Ok(())
}
