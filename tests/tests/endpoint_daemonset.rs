//! The DaemonSet on a whole cluster whose nodes serve the endpoint of its API servers: installed, upgraded and deleted, its keys and the
//! endpoint's rotated, the host speakers restarted, under clients of the endpoint and of a Service. `make endpoint-daemonset`: CI has the
//! parts of it without a cluster (speaker/tests/endpoint/beside.rs).
//!
//! Needs root, what the lab needs (tests/src/lab/needs.rs) and `make images`.

use anyhow::{Context, Result, ensure};
use sheave_tests::endpoint::daemonset::{self, Happened};
use sheave_tests::endpoint::judge::{self, Promise};
use sheave_tests::endpoint::{Clients, faults, kubelets};
use sheave_tests::lab::ha::{self, Ha};
use sheave_tests::lab::{Balancer, Distribution, Lab, alone, down_on_interrupt, image, quiet};
use sheave_tests::scenario::survive::watch::Options;
use sheave_tests::scenario::{InTime, Scene, deploy, settle};

const NAME: &str = "endpointds";
const WATCHES: usize = 30;
const PODS_PER_NODE: usize = 2;

#[test]
fn the_daemonset_comes_and_goes_beside_the_endpoint() -> Result<()> {
    down_on_interrupt(NAME)?;
    let speaker = image::static_binary("sheave-speaker");
    let speaker = std::fs::canonicalize(&speaker).with_context(|| format!("{}: make images", speaker.display()))?;
    alone(ha::config(NAME, Balancer::Sheave(speaker, Distribution::Kubeadm), quiet), |lab, _| {
        let ha = Ha::of(lab)?;
        start_cluster(&ha)?;
        let clients = Clients::start(&ha, WATCHES)?;
        let mut steps = Steps { ha, clients, failed: Vec::new() };
        let scene = steps.installed(lab)?;
        steps.changed(&scene)?;
        steps.keys_rotated(&scene)?;
        steps.tokens_renewed(&scene)?;
        steps.deleted(&scene)?;
        ensure!(steps.failed.is_empty(), "{} promises are broken:\n{}", steps.failed.len(), steps.failed.join("\n"));
        Ok(())
    })
}

/// As an administrator does: the endpoint first, then the cluster behind it, whose nodes know it by the endpoint alone.
fn start_cluster(ha: &Ha) -> Result<()> {
    faults::start_all(ha)?;
    kubelets::start(ha)?;
    ha.start_controllers()?;
    ha.lab.wait_ready()
}

struct Steps {
    ha: Ha,
    clients: Clients,
    failed: Vec<String>,
}

impl Steps {
    /// On two nodes it serves beside the host speaker; on the third it stands by, until that one is upgraded.
    fn installed(&mut self, lab: &Lab) -> Result<Scene> {
        let Self { ha, clients, .. } = &*self;
        let nodes = ha.nodes();
        let last = nodes.last().context("a node")?;
        daemonset::take_place(ha, last)?;
        let happened = daemonset::under_clients(ha, clients, || {
            lab.install_sheave()?;
            daemonset::wait_ready_reasons(ha, |node| if node == last { "HostSpeaker" } else { "ok" })
        })?;
        let scene = deploy::apply(lab, PODS_PER_NODE)?;
        settle::wait_reached(&scene).context("two of three speakers serve")?;
        let owner = scene.owner()?.context("an owner")?.node;
        ensure!(owner != *last, "{last} serves nothing, and owns {}", scene.vip);
        let begins = daemonset::under_clients(ha, clients, || {
            daemonset::restart_host_speaker(ha, last)?;
            daemonset::wait_ready_reasons(ha, |_| "ok")
        })?;
        settle(&scene)?;
        daemonset::check_separate(ha, &scene)?;
        self.check("installed, Ready on every node, by HostSpeaker on one", &happened, judge::apart);
        self.check("a host speaker is upgraded, and the pod beside it begins to serve", &begins, judge::handed_over);
        Ok(scene)
    }

    fn changed(&mut self, scene: &Scene) -> Result<()> {
        let restarted = self.both(scene, |watch| {
            watch.order("kubectl rollout restart")?;
            daemonset::restart(scene)
        })?;
        self.check("the DaemonSet is restarted", &restarted, judge::apart);
        let upgraded = self.both(scene, |watch| {
            watch.order("another image")?;
            daemonset::upgrade(scene)
        })?;
        self.check("the DaemonSet is upgraded", &upgraded, judge::apart);
        let ha = self.ha.clone();
        let restarted = self.both(scene, |watch| {
            watch.order("the host speakers are restarted")?;
            daemonset::restart_host_speakers(&ha)
        })?;
        self.check("the host speakers are restarted", &restarted, judge::handed_over);
        settle(scene)
    }

    fn keys_rotated(&mut self, scene: &Scene) -> Result<()> {
        let before = daemonset::refused_for_keys(scene)?;
        let owner = scene.owner()?.context("an owner")?;
        let happened = self.both(scene, |watch| {
            watch.order("the Secret's key is rotated")?;
            daemonset::rotate_key_of_services(scene)
        })?;
        self.check("the Secret's key is rotated", &happened, judge::apart);
        let ha = self.ha.clone();
        let happened = self.both(scene, |watch| {
            watch.order("the endpoint's key is rotated")?;
            daemonset::rotate_key_of_endpoint(&ha)
        })?;
        self.check("the endpoint's key is rotated", &happened, judge::apart);
        let after = daemonset::refused_for_keys(scene)?;
        ensure!(before == after, "adverts were refused, of Services and of the endpoint: {before:?}, then {after:?}");
        let now = scene.owner()?.context("an owner")?;
        ensure!(
            (&owner.node, owner.term) == (&now.node, now.term),
            "the Service's address moved: {owner:?}, then {now:?}"
        );
        Ok(())
    }

    /// None leaves its pod: each speaker goes on with its own.
    fn tokens_renewed(&mut self, scene: &Scene) -> Result<()> {
        let ha = self.ha.clone();
        let happened = self.both(scene, |watch| {
            watch.order("the kubelets are restarted")?;
            daemonset::renew_tokens(&ha)
        })?;
        self.check("the pods' tokens are renewed", &happened, judge::apart);
        settle(scene)
    }

    fn deleted(&mut self, scene: &Scene) -> Result<()> {
        // No node answers ARP for the Service then (README): who has an open connection goes on.
        let options = Options { new_connections: false, udp: false, ..Options::DEFAULT };
        let happened = daemonset::under_all_clients(&self.ha, &self.clients, scene, options, |watch| {
            watch.order("the DaemonSet is deleted")?;
            daemonset::delete(scene)
        })?;
        self.check("the DaemonSet is deleted", &happened, judge::apart);
        let mut wrong = Vec::new();
        let happened = daemonset::under_clients(&self.ha, &self.clients, || {
            wrong = daemonset::uninstall(scene)?;
            Ok(())
        })?;
        self.check("the DaemonSet is uninstalled", &happened, judge::apart);
        ensure!(wrong.is_empty(), "after uninstall: {wrong:#?}");
        Ok(())
    }

    fn both(
        &self,
        scene: &Scene,
        work: impl FnOnce(&mut sheave_tests::scenario::survive::watch::Watch<'_>) -> Result<()>,
    ) -> Result<Happened> {
        daemonset::under_all_clients(&self.ha, &self.clients, scene, Options::DEFAULT, work)
    }

    fn check(&mut self, step: &str, happened: &Happened, promised: fn(&Happened) -> Vec<Promise>) {
        println!("{step}, in {:.1} s:", happened.seconds);
        for Promise { name, outcome, seen } in promised(happened) {
            println!("  {outcome:?}  {name}: {seen}");
            if outcome == InTime::Broken {
                self.failed.push(format!("{step}: {name}: {seen}"));
            }
        }
    }
}
