//! The clients of a scenario while it goes on: for each address connections that are held, new ones being opened, and UDP flows.

use std::collections::BTreeMap;
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::causes::explain;
use super::judge::{Side, greet_all, judge, last_served, living, lost_by, unanswered};
use super::today::Today;
use super::witness::Witness;
use super::{Setup, Survival};
use crate::lab::{ClientKind, Fault, Lab};
use crate::scenario::deploy::Scene;
use crate::scenario::settle::{forget_neighbours, wait_holder};
use crate::traffic::clock::{milliseconds, now_ns};
use crate::traffic::report::{ConnectReport, HoldReport, ProbeReport};
use crate::traffic::{self, Running};

/// How clients behave in a scenario.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Connections that end are replaced: for scenarios in which every pod ends at some time.
    pub reopen: bool,
    /// Whether new connections are opened all the time: not where no pod can answer for a while.
    pub new_connections: bool,
    /// Whether there are UDP flows: not where they leave pods that live, because these do not serve for a while.
    pub udp: bool,
    pub interval_ms: u64,
    /// Flags of the speakers that the scenario is about.
    pub flags: &'static [&'static str],
    /// Whether the causes of failed new connections are recorded ([`super::causes`]).
    pub witness: bool,
}

impl Options {
    pub const DEFAULT: Self = Self {
        reopen: false,
        new_connections: true,
        udp: true,
        interval_ms: RECORD_INTERVAL_MS,
        flags: &[],
        witness: false,
    };
    pub const REOPEN: Self = Self { reopen: true, ..Self::DEFAULT };
}

impl Default for Options {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// From the first connection to the verdict.
pub struct Watch<'a> {
    pub scene: &'a Scene,
    sheave: Clients,
    today: Option<(Clients, Today)>,
    witness: Option<Witness>,
    first_fault_ns: Option<u64>,
    dropped_before: u64,
    figures: BTreeMap<String, f64>,
    story: Vec<String>,
}

impl<'a> Watch<'a> {
    /// Returns when all connections are open. Both addresses are at the same node then.
    pub fn start(scene: &'a Scene, setup: &Setup, options: Options) -> Result<Self> {
        let today = match setup.compare {
            true => Some(Today::start(scene, &wait_holder(scene, &scene.nodes)?)?),
            false => None,
        };
        forget_neighbours(scene)?;
        let witness = options.witness.then(|| Witness::start(scene)).transpose()?;
        // One after the other: they choose their source ports by the clock.
        let sheave = Clients::start(&scene.lab, [&scene.tcp(), &scene.udp()], setup.connections, options)?;
        let today = match today {
            Some(today) => {
                let to = [today.tcp(), today.udp()];
                Some((
                    Clients::start(&scene.lab, to.each_ref().map(String::as_str), setup.connections, options)?,
                    today,
                ))
            }
            None => None,
        };
        sleep(BEFORE);
        let dropped_before = Lab::machine_dropped()?;
        let (figures, story) = (BTreeMap::new(), Vec::new());
        Ok(Self { scene, sheave, today, witness, first_fault_ns: None, dropped_before, figures, story })
    }

    /// A fault without notice happens now: new connections may fail for a moment.
    pub fn fault(&mut self, what: &str) -> Result<()> {
        let now = now_ns();
        self.sheave.mark(now)?;
        if let Some((clients, _)) = &mut self.today {
            clients.mark(now)?;
        }
        self.first_fault_ns.get_or_insert(now);
        self.note(what);
        Ok(())
    }

    /// Something is ordered that all parts have time to prepare for. The first thing that happens is always marked, so that
    /// pauses are counted from there.
    pub fn order(&mut self, what: &str) -> Result<()> {
        if self.first_fault_ns.is_none() {
            return self.fault(what);
        }
        self.note(what);
        Ok(())
    }

    /// Unannounced, these nodes lose power: all cables first. The other address leaves them as soon as Sheave's does.
    pub fn power_off(&mut self, nodes: &[&String]) -> Result<()> {
        let names: Vec<_> = nodes.iter().map(|node| node.as_str()).collect();
        self.leaving(&names)?;
        self.fault(&format!("{} without power", names.join(" and ")))?;
        if nodes.len() > 1 {
            nodes.iter().try_for_each(|node| self.scene.lab.fault(Fault::Cut { node: (*node).clone() }))?;
        }
        nodes.iter().try_for_each(|node| self.scene.lab.fault(Fault::PowerOff { node: (*node).clone() }))
    }

    /// Nodes are going to lose the address if they have it: today's path follows Sheave's.
    pub fn leaving(&mut self, nodes: &[&str]) -> Result<()> {
        let scene = self.scene;
        self.today.as_mut().map_or(Ok(()), |(_, today)| today.leaving(scene, nodes))
    }

    /// For the causes of failed new connections: from now on this condition lasts on the node.
    pub fn begins(&mut self, node: &str, what: &'static str) {
        self.witness.iter_mut().for_each(|witness| witness.begins(node, what));
    }

    pub fn ends(&mut self, node: &str, what: &'static str) {
        self.witness.iter_mut().for_each(|witness| witness.ends(node, what));
    }

    pub fn figure(&mut self, name: &str, value: f64) {
        self.figures.insert(name.to_owned(), value);
    }

    pub fn note(&mut self, what: &str) {
        let seconds = self.first_fault_ns.map_or(0.0, |first| milliseconds(first, now_ns()) / 1e3);
        self.story.push(format!("{seconds:6.1} s: {what}"));
    }

    /// Watches for a while longer, then gets the clients' reports, then the pods' greetings.
    pub fn finish(mut self) -> Result<Survival> {
        sleep(AFTER);
        self.note("the report");
        let dropped = Lab::machine_dropped()?.saturating_sub(self.dropped_before);
        if dropped > 0 {
            self.figure("packets that the machine dropped", dropped as f64);
        }
        let Self { scene, sheave, today, witness, mut figures, story, first_fault_ns, .. } = self;
        // At the same time: a connection that is silent is waited for.
        let (sheave, today) = thread::scope(|scope| {
            let today = today.map(|(clients, today)| (scope.spawn(move || clients.report()), today));
            let sheave = sheave.report()?;
            let joined = today.map(|(reports, today)| match reports.join() {
                Ok(reports) => Ok((reports?, today)),
                Err(_) => Err(anyhow!("the report of today's path panicked")),
            });
            anyhow::Ok((sheave, joined.transpose()?))
        })?;
        let greetings = greet_all(scene)?;
        let first = first_fault_ns.unwrap_or_default();
        let late = greetings.iter().flat_map(|pod| &pod.late).filter(|late| late.until_ns > first);
        let late = late.map(|late| late.ms).fold(0.0, f64::max);
        figures.insert("longest that a pod did not run, ms".to_owned(), late);
        let living = living(&greetings);
        let last_served = last_served(today.iter().map(|(reports, _)| reports).chain([&sheave]));
        let today = match today {
            Some((reports, today)) => {
                Some(Side { moved_to: today.finish()?, ..judge(&reports, &living, &last_served) })
            }
            None => None,
        };
        let mut judged = judge(&sheave, &living, &last_served);
        if let (Some(witness), Some(new)) = (witness, &sheave.connecting) {
            let seen = witness.finish()?;
            judged.new_failed_causes = Some(explain(unanswered(new), &seen, first));
            judged.lost_by = lost_by(&sheave.held, &living, &last_served, &seen);
        }
        Ok(Survival { sheave: judged, today, figures, story, trouble: None })
    }
}

struct Clients {
    held: Running<HoldReport>,
    connecting: Option<Running<ConnectReport>>,
    probing: Option<Running<ProbeReport>>,
}

/// Their reports.
pub struct Reports {
    pub held: HoldReport,
    pub connecting: Option<ConnectReport>,
    pub probed: Option<ProbeReport>,
}

impl Clients {
    fn start(lab: &Lab, [to, udp]: [&str; 2], connections: u16, options: Options) -> Result<Self> {
        let (connections, interval) = (connections.to_string(), options.interval_ms.to_string());
        let mut hold = vec!["hold", "--to", to, "--connections", &connections, "--interval-ms", &interval];
        hold.extend(options.reopen.then_some("--reopen"));
        let probe = ["probe", "--udp", "--to", udp, "--flows", UDP_FLOWS, "--interval-ms", UDP_INTERVAL_MS];
        let connect = ["connect", "--to", to, "--interval-ms", CONNECT_INTERVAL_MS];
        Ok(Self {
            held: traffic::start(lab, ClientKind::Segment, &hold)?,
            connecting: options
                .new_connections
                .then(|| traffic::start(lab, ClientKind::Segment, &connect))
                .transpose()?,
            probing: options.udp.then(|| traffic::start(lab, ClientKind::Segment, &probe)).transpose()?,
        })
    }

    fn mark(&mut self, at_ns: u64) -> Result<()> {
        self.held.mark_at(at_ns)?;
        self.probing.as_mut().map_or(Ok(()), |running| running.mark_at(at_ns))?;
        self.connecting.as_mut().map_or(Ok(()), |running| running.mark_at(at_ns))
    }

    fn report(self) -> Result<Reports> {
        // New connections first: they would go on failing or not while the others report.
        let connecting = self.connecting.map(Running::report).transpose()?;
        let held = self.held.report()?;
        Ok(Reports { held, connecting, probed: self.probing.map(Running::report).transpose()? })
    }
}

/// Between two records on one connection: twice 200 of them make 8 000 packets a second at the clients, each way.
const RECORD_INTERVAL_MS: u64 = 50;
const CONNECT_INTERVAL_MS: &str = "20";
const UDP_FLOWS: &str = "50";
const UDP_INTERVAL_MS: &str = "200";
const BEFORE: Duration = Duration::from_millis(300);
const AFTER: Duration = Duration::from_millis(2000);
