//! Two replicas: which one leads, and what happens when one ends.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sheave_tests::lab::wait_for;

use super::objects::{Objects, SOON};
use super::replica::{NAMESPACE, Replica};
use super::secret;

/// Two replicas.
pub struct Pair {
    pub kubeconfig: PathBuf,
    /// Of replicas that are started from now on.
    pub flags: Vec<&'static str>,
    folder: PathBuf,
    replicas: Vec<Replica>,
    started: usize,
}

impl Pair {
    pub fn start(kubeconfig: PathBuf, folder: &Path) -> Result<Self> {
        let (flags, replicas) = (vec![], vec![]);
        let mut pair = Pair { kubeconfig, flags, folder: folder.to_path_buf(), replicas, started: 0 };
        pair.fill()?;
        Ok(pair)
    }

    /// Two again, one of which leads.
    pub fn fill(&mut self) -> Result<()> {
        while self.replicas.len() < 2 {
            self.started += 1;
            let name = format!("replica-{}", self.started);
            self.replicas.push(Replica::start(&name, &self.kubeconfig, &self.folder, &self.flags)?);
        }
        self.position().map(drop)
    }

    /// All end, and others take their place.
    pub fn replace(&mut self, flags: &[&'static str]) -> Result<()> {
        self.stop()?;
        self.flags = flags.to_vec();
        self.fill()
    }

    pub fn all(&self) -> &[Replica] {
        &self.replicas
    }

    /// All end in order: whoever starts next leads at once.
    pub fn stop(&mut self) -> Result<()> {
        for replica in &self.replicas {
            replica.signal(Signal::SIGTERM)?;
        }
        self.replicas.drain(..).try_for_each(|replica| replica.terminate().map(drop))
    }

    pub fn leader(&self) -> Result<&Replica> {
        Ok(&self.replicas[self.position()?])
    }

    /// Waits until the leader counts so many: with Services under way its metrics are up to a second behind what it has written.
    pub fn wait_metric(&self, name: &str, labels: &str, value: f64) -> Result<()> {
        let name = format!("sheave_controller_{name}{labels}");
        wait_for(&format!("{name} {value}"), SOON, || Ok((self.leader()?.metric(&name)? == value).then_some(())))
    }

    /// Takes the leader out.
    fn take_leader(&mut self) -> Result<Replica> {
        let leader = self.position()?;
        Ok(self.replicas.remove(leader))
    }

    /// Exactly one of the two leads.
    fn position(&self) -> Result<usize> {
        wait_for("one leader", SOON, || {
            let leads: Vec<bool> = self.replicas.iter().map(Replica::leads).collect::<Result<_>>()?;
            ensure!(leads != [true, true], "two leaders");
            Ok(leads.iter().position(|leads| *leads))
        })
    }

    /// The Secret goes while no controller runs, as with its Namespace: what must not change follows from the cluster.
    pub fn forgets_the_keys(&mut self, objects: &Objects) -> Result<()> {
        let before = secret(objects)?.context("the Secret")?;
        self.stop()?;
        objects.0.kubectl(&["-n", NAMESPACE, "delete", "secret", "sheave-keys", "--wait=true"])?;
        self.fill()?;
        let again = wait_for("new keys", Duration::from_secs(15), || secret(objects))?;
        for entry in ["cluster-id", "flow-hash"] {
            ensure!(again["data"][entry] == before["data"][entry], "{entry} changed");
        }
        ensure!(again["data"]["current"] != before["data"]["current"], "the signing key is random");
        let log = self.replicas.iter().map(Replica::log).collect::<String>();
        for key in [&before["data"]["current"], &again["data"]["current"], &again["data"]["flow-hash"]] {
            ensure!(!log.contains(key.as_str().context("an entry")?), "a key is in the log");
        }
        Ok(())
    }

    /// kill -9: nothing moves, and the other one takes over.
    pub fn killed(&mut self, objects: &Objects) -> Result<()> {
        let (ledger, shown) = (objects.ledger()?, [objects.shown("two")?, objects.shown("three")?]);
        self.take_leader()?.kill()?;
        let killed = Instant::now();
        // What happens without a leader is done by the next one.
        objects.delete("service", "three")?;
        objects.service("four", "", "")?;
        wait_for("the other replica to lead", Duration::from_secs(15), || Ok(self.replicas[0].leads()?.then_some(())))?;
        eprintln!("kill -9 of the leader: the other one leads after {:?}", killed.elapsed());
        objects.wait_shown("four", "192.168.77.200")?;
        ensure!(objects.shown("two")? == shown[0] && shown[1].is_some());
        ensure!(objects.ledger()?["192.168.77.201"] == ledger["192.168.77.201"], "the entry was written anew");
        self.fill()
    }

    /// SIGTERM: the other one has the lead at once.
    pub fn terminated(&mut self, objects: &Objects) -> Result<()> {
        let ledger = objects.ledger()?;
        let leader = self.take_leader()?;
        let began = Instant::now();
        let took = leader.terminate()?;
        wait_for("the other replica to lead", Duration::from_secs(2), || Ok(self.replicas[0].leads()?.then_some(())))?;
        eprintln!("SIGTERM: ended after {took:?}, the other one leads after {:?}", began.elapsed());
        ensure!(objects.ledger()? == ledger);
        self.fill()
    }

    pub fn in_bounds(&mut self) -> Result<()> {
        let leader = self.take_leader()?;
        for kind in ["Forbidden", "Invalid"] {
            let count = leader.metric(&format!("sheave_controller_write_errors_total{{kind=\"{kind}\"}}"))?;
            ensure!(count == 0.0, "{count} writes were {kind}:\n{}", leader.log());
        }
        ensure!(leader.metric("sheave_controller_events_dropped_total")? == 0.0, "{}", leader.log());
        let memory = leader.memory()?;
        eprintln!("memory of the leader: {memory} kB");
        ensure!(memory < 40 * 1024, "{memory} kB");
        Ok(())
    }
}
