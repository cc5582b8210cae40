//! The leading controller is killed, stopped, or cut from the API server, again and again at random, while Services change: no address is
//! granted twice, and what is left at the end is true.
//!
//! A minute of it by default; `$CHAOS_SECONDS`, `$CHAOS_SERVICES` and `$CHAOS_SEED` ask for more (`make chaos`: ten minutes, 2,000 Services).
//! Read: [`fleet`] (the replicas and what happens to them) → [`writers`] (what happens to Services) → [`history`] (every revision of the
//! store, judged) → [`end`] (what must be true when all is calm).

mod end;
mod fleet;
mod history;
mod relay;
#[path = "../controller_api/replica.rs"]
#[allow(dead_code, reason = "controller_api uses the rest")]
mod replica;
mod writers;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sheave_tests::lab::{Lab, LabConfig, alone, quiet, wait_for};
use sheave_tests::scenario::api::Api;
use sheave_tests::sim::random::Random;

use fleet::Fleet;
use history::History;

/// Where the Services live.
const NAMESPACE: &str = "chaos";
const SERVICES: &str = "/api/v1/namespaces/chaos/services";
const LEDGER: &str = "/apis/sheave.dev/v1alpha1/virtualips";
const POOLS: &str = "/apis/sheave.dev/v1alpha1/addresspools";

struct Settings {
    span: Duration,
    services: usize,
    seed: u64,
}

impl Settings {
    fn from_env() -> Result<Self> {
        let number = |name: &str, default: u64| match std::env::var(name) {
            Ok(text) => text.parse().with_context(|| format!("{name}={text:?} is no number")),
            Err(_) => Ok(default),
        };
        Ok(Self {
            span: Duration::from_secs(number("CHAOS_SECONDS", 60)?),
            services: number("CHAOS_SERVICES", 400)? as usize,
            seed: number("CHAOS_SEED", 1)?,
        })
    }
}

#[test]
fn no_address_is_granted_twice_whatever_becomes_of_leaders() -> Result<()> {
    let settings = Settings::from_env()?;
    let name = "chaos".into();
    let config = LabConfig { name, nodes: 1, sheave: false, progress: quiet, ..LabConfig::default() };
    alone(config, |lab, folder| run(lab, folder, &settings))
}

fn run(lab: &Lab, folder: &Path, settings: &Settings) -> Result<()> {
    let Settings { span, services, seed } = *settings;
    eprintln!("seed {seed}: {services} Services, {} s", span.as_secs());
    sheave_tests::lab::manifests::install(lab)?;
    let api = Api::open(lab)?;
    api.create("/api/v1/namespaces", &json!({ "metadata": { "name": NAMESPACE } }))?;
    let pools = pools(services);
    for (name, addresses) in &pools {
        let metadata = json!({ "name": name });
        let pool = json!({
            "apiVersion": "sheave.dev/v1alpha1", "kind": "AddressPool", "metadata": metadata, "spec": { "addresses": [addresses] },
        });
        api.create(POOLS, &pool)?;
    }
    let mut fleet = Fleet::start(lab, folder)?;
    let history = History::start(lab)?;
    let mut random = Random::new(seed);
    let until = Instant::now() + span;
    let changes = std::thread::scope(|scope| -> Result<usize> {
        let writers: Vec<_> = (0..writers::WRITERS)
            .map(|number| {
                let (api, random) = (api.clone(), Random::new(random.word()));
                scope.spawn(move || writers::write(&api, number, services, random, until))
            })
            .collect();
        let faults = fleet.trouble(&mut random, until);
        let changes =
            writers.into_iter().map(|writer| writer.join().expect("a writer panicked")).sum::<Result<usize>>()?;
        faults.map(|()| changes)
    })?;
    fleet.heal()?;
    let calm = Instant::now();
    end::wait_true(&api).with_context(|| fleet.tails())?;
    eprintln!("all true {:?} after the last fault ended", calm.elapsed());
    let leaders = fleet.changes_of_leader(&api)?;
    eprintln!("{changes} changes of Services, {}; {leaders} changes of leader", fleet.faults());
    // Most faults end a leader's term: every seven seconds one, and some are too short.
    let least = span.as_secs() / 15;
    ensure!(leaders >= least, "{leaders} changes of leader, at least {least} are wanted");

    writers::delete_all(&api)?;
    wait_for("nothing to be left of deleted Services", Duration::from_secs(120), || {
        Ok((api.list(LEDGER)?.is_empty() && api.list(SERVICES)?.is_empty()).then_some(()))
    })?;
    let report = history.end(&api)?;
    eprintln!("{report}");
    ensure!(report.violations.is_empty(), "{}", report.violations.join("\n"));
    Ok(())
}

/// Two pools. Of all Services two in five want an address at a time, and three in ten find one: some wait for one all the time.
fn pools(services: usize) -> [(&'static str, String); 2] {
    let half = u32::try_from(writers::half(services)).expect("few Services");
    let range = |first: u32| {
        let address = |number: u32| std::net::Ipv4Addr::from(number);
        format!("{}-{}", address(first), address(first + half - 1))
    };
    [("east", range(writers::EAST)), ("west", range(writers::WEST))]
}
