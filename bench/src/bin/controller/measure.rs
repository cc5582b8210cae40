//! The order of one measurement: what the API server does by itself, then the controller with it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use sheave_tests::lab::Lab;
use sheave_tests::scenario::Figures;

use super::cluster::{Cluster, LEDGER, SERVICES};
use super::program::{self, Program, Usage};
use super::requests::{Requests, settled};
use super::services::Services;
use super::subject::{Installed, Subject};
use super::watch::{State, Watch};

pub struct Settings {
    pub count: usize,
    pub rest: Duration,
}

/// What the API server does for the writers while no controller is there, per second.
#[derive(Clone, Debug, Serialize)]
pub struct Rates {
    pub created: f64,
    pub patched: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// By the writers, while the controller works.
    pub created_per_second: f64,
    pub creation_s: f64,
    /// From the end of the creation until every Service has an address.
    pub all_after_s: f64,
    /// Of the controller, from the first Service until all had addresses.
    pub writes: u64,
    pub requests_per_service: f64,
    /// Not about one Service: of pools, say.
    pub other_requests: u64,
    /// How often it was still writing when it should have been done.
    pub restless: usize,
    pub events_per_service: f64,
    pub requests: BTreeMap<String, u64>,
    /// Processor seconds meanwhile.
    pub processor_s: BTreeMap<String, f64>,
    /// Created until a watch shows the address.
    pub one_more_ms: Figures,
    /// Deleted until a watch shows that the grant is gone.
    pub withdrawn_ms: Figures,
    pub resident_mb: f64,
    pub peak_mb: f64,
    pub rest_percent: f64,
    /// Started until a Service that was created meanwhile has its address.
    pub restart_s: f64,
    pub moved: usize,
    /// Services and entries of the ledger that the restart wrote.
    pub written: usize,
    pub all_deleted_s: f64,
}

/// The caller is a thread in the lab's network.
pub async fn all(lab: &Lab, subject: Subject, installed: Installed, settings: &Settings) -> Result<(Rates, Measured)> {
    let cluster = Cluster::open(lab).await?;
    let services = Services::new(settings.count, subject.class(), subject.sharing());
    let rates = rates(&cluster, &services).await.context("the API server's own rates")?;
    eprintln!(
        "{subject:?}: the API server alone: {:.0} Services created per second, {:.0} statuses patched per second",
        rates.created, rates.patched
    );
    services.create_slices(&cluster).await?;
    let seen = cluster.watch(SERVICES).await?;
    let ledger = if subject.has_ledger() { Some(cluster.watch(LEDGER).await?) } else { None };
    let (rest, restless) = (settings.rest, AtomicUsize::new(0));
    let bench = Bench { lab, cluster, services, installed, seen, ledger, rest, restless };
    Ok((rates, bench.run().await?))
}

/// As much as the controller will have to do with.
async fn rates(cluster: &Cluster, services: &Services) -> Result<Rates> {
    let alone = services.of_no_controller();
    let per_second = |took: Duration| alone.count as f64 / took.as_secs_f64();
    let created = per_second(alone.create(cluster).await?);
    let patched = per_second(alone.patch_statuses(cluster).await?);
    alone.delete(cluster).await?;
    Ok(Rates { created, patched })
}

struct Bench<'a> {
    lab: &'a Lab,
    cluster: Cluster,
    services: Services,
    installed: Installed,
    seen: Watch,
    ledger: Option<Watch>,
    rest: Duration,
    restless: AtomicUsize,
}

impl Bench<'_> {
    async fn run(&self) -> Result<Measured> {
        let mut controller = self.installed.start(self.lab)?;
        // What follows is not to contain the start.
        self.addressed("first")
            .await
            .with_context(|| format!("the controller's first Service; {:?}", controller.alive()))?;
        self.withdrawn("first").await?;

        let mass = self.mass(&controller).await.context("all Services")?;
        controller.alive()?;
        let Usage { resident_mb, .. } = controller.usage()?;
        let (one_more_ms, withdrawn_ms) = self.one_more().await.context("one more")?;
        let rest_percent = self.at_rest(&controller).await?;
        let peak_mb = controller.usage()?.peak_mb;
        let (controller, restart) = self.restart(controller).await.context("restart")?;
        let all_deleted_s = self.delete_all().await.context("delete all")?;
        drop(controller);
        let Mass { creation, all_after, writes, requests, processor } = mass;
        let count = self.services.count as f64;
        let of_controller = requests.of_controller();
        Ok(Measured {
            created_per_second: count / creation.as_secs_f64(),
            creation_s: creation.as_secs_f64(),
            all_after_s: all_after.as_secs_f64(),
            writes,
            requests_per_service: of_controller.of_services() as f64 / count,
            other_requests: of_controller.total() - of_controller.of_services(),
            restless: self.restless.load(Ordering::Relaxed),
            events_per_service: of_controller.of("events") as f64 / count,
            requests: of_controller.0,
            processor_s: processor,
            one_more_ms,
            withdrawn_ms,
            resident_mb,
            peak_mb,
            rest_percent,
            restart_s: restart.took.as_secs_f64(),
            moved: restart.moved,
            written: restart.written,
            all_deleted_s,
        })
    }

    async fn settled(&self) -> Result<Requests> {
        let (requests, rests) = settled(self.lab).await?;
        self.restless.fetch_add(usize::from(!rests), Ordering::Relaxed);
        Ok(requests)
    }

    async fn mass(&self, controller: &Program) -> Result<Mass> {
        let count = self.services.count;
        let before = Requests::read(self.lab)?;
        let (times, used) = (program::processor_times(self.lab)?, controller.usage()?.seconds);
        let creation = self.services.create(&self.cluster).await?;
        let created = Instant::now();
        let shown = |state: &State| (state.shown >= count).then_some(());
        let all = self.seen.until("all Services to have an address", ALL_WITHIN, shown).await;
        all.with_context(|| format!("{} of {count} have one", self.seen.now(|state| state.shown)))?;
        let all_after = created.elapsed();
        let mut processor = program::processor_times(self.lab)?;
        processor.iter_mut().for_each(|(name, seconds)| *seconds -= times.get(name).copied().unwrap_or_default());
        processor.insert("the controller".into(), controller.usage()?.seconds - used);
        let writes = Requests::read(self.lab)?.since(&before).of_controller().total();
        eprintln!("created in {creation:.1?}, all have addresses {all_after:.1?} later");
        self.check()?;
        Ok(Mass { creation, all_after, writes, requests: self.settled().await?.since(&before), processor })
    }

    /// Services that show one address are those that may share it, and there is one for each key.
    fn check(&self) -> Result<()> {
        let addresses = self.shown();
        let mut groups: HashMap<&str, usize> = HashMap::new();
        addresses.values().for_each(|address| *groups.entry(address).or_default() += 1);
        let (expected, most) = (self.services.addresses(), self.services.count.div_ceil(self.services.addresses()));
        ensure!(groups.len() == expected, "{} addresses for {expected} keys", groups.len());
        ensure!(groups.values().all(|services| *services <= most), "more than {most} Services share an address");
        if let Some(ledger) = &self.ledger {
            let granted = ledger.now(|state| state.objects.len());
            ensure!(granted == expected, "the ledger has {granted} entries of {expected}");
        }
        Ok(())
    }

    async fn one_more(&self) -> Result<(Figures, Figures)> {
        let (mut shown, mut withdrawn) = (vec![], vec![]);
        for round in 0..ROUNDS {
            let name = format!("more-{round}");
            shown.push(self.addressed(&name).await?.as_secs_f64() * 1e3);
            withdrawn.push(self.withdrawn(&name).await?.as_secs_f64() * 1e3);
        }
        Ok((Figures::of(shown).context("no rounds")?, Figures::of(withdrawn).context("no rounds")?))
    }

    /// Creates a Service: acknowledged until a watch shows its address.
    async fn addressed(&self, name: &str) -> Result<Duration> {
        let created = self.cluster.create(SERVICES, self.services.alone(name)).await?;
        let since = |state: &State| state.objects.get(name)?.address.as_ref().map(|(_, since)| *since);
        let since = self.seen.until(&format!("{name} to have an address"), ONE_WITHIN, since).await?;
        Ok(since.saturating_duration_since(created))
    }

    /// Deletes a Service: asked for until a watch shows that its grant is gone, or, without a ledger, the Service.
    async fn withdrawn(&self, name: &str) -> Result<Duration> {
        let address = self.seen.now(|state| state.objects.get(name)?.address.clone()).context("an address")?.0;
        let asked = self.cluster.delete(SERVICES, name).await?;
        let (watch, object) = match &self.ledger {
            Some(ledger) => (ledger, address.as_str()),
            None => (&self.seen, name),
        };
        let gone = |state: &State| state.gone.get(object).filter(|at| **at >= asked).copied();
        let gone = watch.until(&format!("{object} to be gone"), ONE_WITHIN, gone).await?;
        self.seen
            .until("the Service to be gone", ONE_WITHIN, |s| (!s.objects.contains_key(name)).then_some(()))
            .await?;
        Ok(gone - asked)
    }

    /// Time must pass: that it has nothing to do is the absence of events.
    async fn at_rest(&self, controller: &Program) -> Result<f64> {
        self.settled().await?;
        let (before, began) = (controller.usage()?.seconds, Instant::now());
        tokio::time::sleep(self.rest).await;
        Ok((controller.usage()?.seconds - before) / began.elapsed().as_secs_f64() * 100.0)
    }

    async fn restart(&self, controller: Program) -> Result<(Program, Restart)> {
        let (shown, versions) = (self.shown(), self.versions());
        controller.terminate().await?;
        self.cluster.create(SERVICES, self.services.alone("meanwhile")).await?;
        let began = Instant::now();
        let controller = self.installed.start(self.lab)?;
        let since = |state: &State| state.objects.get("meanwhile")?.address.as_ref().map(|(_, since)| *since);
        let since = self.seen.until("the controller to serve again", ALL_WITHIN, since).await?;
        self.settled().await?;
        let (shown_now, versions_now) = (self.shown(), self.versions());
        let moved = shown.iter().filter(|(name, address)| shown_now.get(*name) != Some(address)).count();
        let written = versions.iter().filter(|(name, version)| versions_now.get(*name) != Some(version)).count();
        self.withdrawn("meanwhile").await?;
        Ok((controller, Restart { took: since - began, moved, written }))
    }

    async fn delete_all(&self) -> Result<f64> {
        let began = Instant::now();
        self.services.delete(&self.cluster).await?;
        for watch in [Some(&self.seen), self.ledger.as_ref()].into_iter().flatten() {
            let empty = |state: &State| state.objects.is_empty().then_some(());
            watch.until("everything to be gone", ALL_WITHIN, empty).await?;
        }
        Ok(began.elapsed().as_secs_f64())
    }

    /// Addresses by Service.
    fn shown(&self) -> HashMap<String, String> {
        self.seen.now(|state| {
            let shown = state.objects.iter().filter_map(|(name, seen)| Some((name.clone(), seen.address.clone()?.0)));
            shown.collect()
        })
    }

    /// Of every Service and every entry of the ledger.
    fn versions(&self) -> HashMap<String, String> {
        let versions = |watch: &Watch| {
            watch.now(|state| {
                let all = state.objects.iter().map(|(name, seen)| (name.clone(), seen.version.clone()));
                all.collect::<Vec<_>>()
            })
        };
        [Some(&self.seen), self.ledger.as_ref()].into_iter().flatten().flat_map(versions).collect()
    }
}

struct Mass {
    creation: Duration,
    all_after: Duration,
    writes: u64,
    requests: Requests,
    processor: BTreeMap<String, f64>,
}

struct Restart {
    took: Duration,
    moved: usize,
    written: usize,
}

const ROUNDS: usize = 20;
const ALL_WITHIN: Duration = Duration::from_secs(900);
const ONE_WITHIN: Duration = Duration::from_secs(60);
