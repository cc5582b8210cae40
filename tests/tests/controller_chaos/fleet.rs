//! Three replicas, each behind a relay of its own, and what happens to the one that leads.

use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use sheave_tests::lab::Lab;
use sheave_tests::scenario::api::{Api, text};
use sheave_tests::sim::random::Random;

use super::relay::Relay;
use super::replica::{self, Replica};

const REPLICAS: usize = 3;
/// The shortest: a leader changes within two seconds.
const FLAGS: [&str; 2] = ["--lease-seconds", "2"];
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/sheave-system/leases/sheave-controller";

pub struct Fleet {
    places: Vec<Place>,
    folder: PathBuf,
    api: Api,
    faults: Faults,
}

/// Where a replica runs; its successor runs there, too.
struct Place {
    relay: Relay,
    kubeconfig: PathBuf,
    replica: Replica,
    name: String,
    /// The fault that it has, and when that ends.
    ends: Option<(Fault, Instant)>,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Stopped,
    Cut,
}

#[derive(Clone, Copy, Default)]
pub struct Faults {
    killed: u64,
    stopped: u64,
    cut: u64,
    /// No replica led at that moment.
    nobody: u64,
}

impl Display for Faults {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { killed, stopped, cut, nobody } = self;
        write!(
            f,
            "leader killed {killed} times, stopped {stopped}, cut from the API {cut} (at {nobody} moments nobody led)"
        )
    }
}

impl Fleet {
    pub fn start(lab: &Lab, folder: &Path) -> Result<Self> {
        let token = lab.kubectl(&["-n", replica::NAMESPACE, "create", "token", "sheave-controller"])?;
        let server = lab.kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
        let server: SocketAddr = server.trim().trim_start_matches("https://").parse().context(server.clone())?;
        let place = |number: usize| -> Result<Place> {
            let relay = Relay::start(server)?;
            let kubeconfig =
                replica::account(lab, folder, &format!("place-{number}"), "sheave-controller", token.trim())?;
            let file = format!("--kubeconfig={}", kubeconfig.display());
            lab.kubectl(&[&file, "config", "set", "clusters.lab.server", &format!("https://{}", relay.address)])?;
            let name = format!("place-{number}-0");
            let replica = Replica::start(&name, &kubeconfig, folder, &FLAGS)?;
            Ok(Place { relay, kubeconfig, replica, name, ends: None })
        };
        let places = (0..REPLICAS).map(place).collect::<Result<_>>()?;
        Ok(Self { places, folder: folder.to_path_buf(), api: Api::open(lab)?, faults: Faults::default() })
    }

    /// Something happens to the leader every seven seconds on average.
    pub fn trouble(&mut self, random: &mut Random, until: Instant) -> Result<()> {
        let mut next = Instant::now();
        for kind in random.below(3).. {
            next += random.duration(Duration::from_secs(2)..Duration::from_secs(12));
            if next >= until {
                break;
            }
            self.pass(next)?;
            self.fault(kind % 3, random)?;
        }
        self.pass(until)
    }

    /// Lets time pass, as the history wants it; faults end in it when they are over.
    fn pass(&mut self, until: Instant) -> Result<()> {
        loop {
            let ends = self.places.iter().filter_map(|place| place.ends.map(|(_, at)| at)).min();
            let at = ends.map_or(until, |at| at.min(until));
            sleep(at.saturating_duration_since(Instant::now()));
            for place in &mut self.places {
                place.end_fault(at)?;
            }
            if at == until {
                return Ok(());
            }
        }
    }

    fn fault(&mut self, kind: usize, random: &mut Random) -> Result<()> {
        let ends = Instant::now() + random.duration(Duration::from_secs(1)..Duration::from_secs(10));
        let holder = self.holder()?;
        let Some(place) = self.places.iter_mut().find(|place| place.name == holder) else {
            self.faults.nobody += 1;
            return Ok(());
        };
        // Its fault of before is not over, and another one has not taken the lead yet.
        if place.ends.is_some() {
            self.faults.nobody += 1;
            return Ok(());
        }
        match kind {
            0 => {
                self.faults.killed += 1;
                place.restart(&self.folder)?;
            }
            1 => {
                self.faults.stopped += 1;
                place.replica.signal(Signal::SIGSTOP)?;
                place.ends = Some((Fault::Stopped, ends));
            }
            _ => {
                self.faults.cut += 1;
                place.relay.cut(true);
                place.ends = Some((Fault::Cut, ends));
            }
        }
        Ok(())
    }

    /// The replica that the Lease names, a random word behind its name; empty if none.
    fn holder(&self) -> Result<String> {
        let lease = self.api.find(LEASE)?.unwrap_or_default();
        let identity = text(&lease, "/spec/holderIdentity");
        Ok(identity.rsplit_once('_').map_or("", |(name, _)| name).to_owned())
    }

    pub fn heal(&mut self) -> Result<()> {
        for place in &mut self.places {
            if let Some((_, at)) = place.ends {
                place.end_fault(at)?;
            }
        }
        Ok(())
    }

    pub fn changes_of_leader(&self, api: &Api) -> Result<u64> {
        let lease = api.get(LEASE)?;
        lease["spec"]["leaseTransitions"].as_u64().context("leaseTransitions")
    }

    pub fn faults(&self) -> Faults {
        self.faults
    }

    /// The end of each log.
    pub fn tails(&self) -> String {
        let tail = |place: &Place| {
            let log = place.replica.log();
            let lines: Vec<&str> = log.lines().rev().take(15).collect();
            format!("{}:\n{}", place.name, lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        self.places.iter().map(tail).collect::<Vec<_>>().join("\n")
    }
}

impl Place {
    fn end_fault(&mut self, now: Instant) -> Result<()> {
        match self.ends.take_if(|(_, at)| *at <= now) {
            Some((Fault::Stopped, _)) => self.replica.signal(Signal::SIGCONT),
            Some((Fault::Cut, _)) => {
                self.relay.cut(false);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// kill -9, and the next one at once.
    fn restart(&mut self, folder: &Path) -> Result<()> {
        let (place, number) = self.name.rsplit_once('-').context("a number")?;
        let name = format!("{place}-{}", number.parse::<u32>()? + 1);
        self.replica.signal(Signal::SIGKILL)?;
        self.replica = Replica::start(&name, &self.kubeconfig, folder, &FLAGS)?;
        self.name = name;
        Ok(())
    }
}
