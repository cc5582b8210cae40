//! Pure: whether hosts of the segment use addresses that Services may get. Speakers probe them on request (AddressProbe): those next in
//! line ahead of time, so that a grant costs no time, and one that is asked for before it is granted.
//!
//! Read: [`view`] (the objects) → [`reach`] (which speaker is asked) → [`results`] (what an answer means) → here (what is waited for, and how
//! long) → [`request`] (which addresses are asked for now). Silence of a speaker keeps no Service from an address: after
//! [`Config::wait`] it is granted unprobed, and the pool says so (`NotProbed`). An answer never takes back what is granted.

mod about;
pub mod reach;
mod request;
mod results;
#[cfg(test)]
mod tests;
pub mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use sheave_api::{ProbeVerdict, Refusal};

use crate::cache::Cache;
use crate::guards::GuardSet;
use crate::view::ServiceKey;
pub use about::About;
use reach::{Choice, Segments};
use results::Results;
pub use view::{ProbeView, ProbeWrite};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Addresses next in line are probed again after so long.
    pub again: Duration,
    /// How long a speaker has for its answer, and so a Service waits for it.
    pub wait: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config { again: Duration::from_secs(60), wait: Duration::from_millis(250) }
    }
}

/// All that is known of the use of addresses, and what is asked.
#[derive(Debug, Default)]
pub struct Probes {
    config: Config,
    pub objects: Cache<String, ProbeView>,
    segments: Segments,
    choice: Choice,
    results: Results,
    /// Addresses that Services wait for.
    wanted: BTreeMap<Ipv4Addr, Wanted>,
    /// Requests without an answer, by node, the oldest first.
    under_way: BTreeMap<String, Vec<Asked>>,
    /// When addresses next in line are to be probed again, by node.
    due: BTreeMap<String, Instant>,
    /// The last request, by node.
    asked: BTreeMap<String, Instant>,
    /// Addresses that hosts use, with the sentence about each.
    used: BTreeMap<Ipv4Addr, String>,
    /// Services that wait for an answer.
    waiting: BTreeSet<ServiceKey>,
    changes: Changes,
    swept: Option<Instant>,
    /// Grants without a probe although a speaker could have been asked.
    not_probed: u64,
    unanswered: u64,
}

/// What has changed since it was asked for last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Services that wait are to be planned.
    pub answers: bool,
    /// Other addresses are in use by hosts.
    pub used: bool,
    /// What pools say of probes.
    pub pools: bool,
    /// There may be something to ask for.
    pub look: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    New,
    Asked(Instant),
    /// There was no answer in time.
    Unanswered(Instant),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    round: i64,
    at: Instant,
    addresses: Vec<Ipv4Addr>,
}

/// Whether addresses may be granted now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// No host uses them, or no node is on their segments.
    Open,
    /// About some of them no speaker has answered in time.
    NotProbed,
    /// Answers are awaited; with the nodes whose speakers are to be asked, unless they are.
    Wait(BTreeSet<String>),
}

impl Probes {
    pub fn new(config: Config) -> Self {
        Probes { config, ..Probes::default() }
    }

    /// Takes an object. An answer counts if it came while we watched: of what was found before we know not when.
    pub fn observe(&mut self, view: ProbeView) {
        let (node, uid) = (view.node.clone(), view.uid.clone());
        let known = self.objects.get(&node).map(|known| (known.uid.clone(), known.observed));
        if !self.objects.apply(node.clone(), &uid, view.version, view.clone()) {
            return;
        }
        let Some((_, before)) = known.filter(|(known, _)| *known == uid) else { return };
        if view.observed <= before {
            return;
        }
        let under_way = self.under_way.entry(node.clone()).or_default();
        let asked = under_way.iter().find(|asked| asked.round == view.observed).map(|asked| asked.at);
        under_way.retain(|asked| asked.round > view.observed);
        self.results.add(&view, asked);
        view.results.iter().for_each(|(address, _)| _ = self.wanted.remove(address));
        self.changes.pools |= self.choice.answered(&node, &self.segments);
        (self.changes.answers, self.changes.look) = (true, true);
    }

    /// What speakers report of their segments.
    pub fn set_segments(&mut self, segments: Segments) {
        if self.segments != segments {
            self.segments = segments;
            (self.changes.look, self.changes.answers, self.changes.pools) = (true, true, true);
            self.find_used();
        }
    }

    /// Another leader decides, or this one begins to: nothing is waited for.
    pub fn lead(&mut self) {
        self.wanted.clear();
        self.under_way.clear();
        self.waiting.clear();
        self.due.clear();
        self.changes.look = true;
    }

    /// Pools or grants have changed: others are next in line.
    pub fn look(&mut self) {
        self.changes.look = true;
    }

    /// Time passes.
    pub fn tick(&mut self, now: Instant) {
        if self.results.tick(now) {
            self.find_used();
        }
        let late = |asked: &Vec<Asked>| asked.first().is_some_and(|first| first.at + self.config.wait <= now);
        let silent = self.under_way.iter().filter(|(_, asked)| late(asked));
        let silent: Vec<String> = silent.map(|(node, _)| node.clone()).collect();
        for wanted in self.wanted.values_mut() {
            if let Wanted::Asked(at) = *wanted
                && at + self.config.wait <= now
            {
                *wanted = Wanted::Unanswered(now);
                self.changes.answers = true;
            }
        }
        silent.iter().for_each(|node| self.fell_silent(node, now));
        if self.due.values().any(|at| *at <= now) {
            self.due.retain(|_, at| *at > now);
            self.changes.look = true;
        }
        if self.swept.is_none_or(|at| at + SWEEP <= now) {
            self.swept = Some(now);
            self.sweep(now);
        }
    }

    /// When `tick` has something to end.
    pub fn next_deadline(&self) -> Option<Instant> {
        let asked = self.under_way.values().filter_map(|asked| asked.first()).map(|first| first.at);
        let wanted = self.wanted.values().filter_map(|wanted| match wanted {
            Wanted::Asked(at) => Some(*at),
            Wanted::New | Wanted::Unanswered(_) => None,
        });
        asked.chain(wanted).min().map(|at| at + self.config.wait)
    }

    /// Whether other addresses are in use by hosts than at the last call.
    pub fn take_used(&mut self) -> bool {
        std::mem::take(&mut self.changes.used)
    }

    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Services that are to be planned now that there are answers, or none in time.
    pub fn take_waiting(&mut self) -> BTreeSet<ServiceKey> {
        std::mem::take(&mut self.waiting)
    }

    /// Whether the addresses may be granted to this Service, all of them. If not, those of which nothing is known are asked for, and the
    /// Service waits.
    pub fn gate(&mut self, addresses: &[Ipv4Addr], service: &ServiceKey, now: Instant) -> Gate {
        let (mut waits, mut nodes, mut unprobed) = (false, BTreeSet::new(), 0);
        for address in addresses {
            match self.gate_of(*address, now) {
                Gate::Open => {}
                Gate::NotProbed => unprobed += 1,
                Gate::Wait(asked) => {
                    waits = true;
                    nodes.extend(asked);
                }
            }
        }
        if waits {
            self.waiting.insert(service.clone());
            return Gate::Wait(nodes);
        }
        for address in addresses {
            self.wanted.remove(address);
        }
        self.not_probed += unprobed;
        if unprobed == 0 { Gate::Open } else { Gate::NotProbed }
    }

    /// The same of one. That nobody has answered stays known until nothing is waited for.
    fn gate_of(&mut self, address: Ipv4Addr, now: Instant) -> Gate {
        let Some(subnet) = self.segments.subnet(address) else { return Gate::Open };
        if self.is_fresh(address, now) {
            return Gate::Open;
        }
        let unanswered = matches!(self.wanted.get(&address), Some(Wanted::Unanswered(_)));
        let node = self.choice.of(subnet, &self.segments, now).filter(|_| !unanswered);
        let Some(node) = node else { return Gate::NotProbed };
        // It may be asked for already, as one of those in line.
        let asked = self.under_way.get(&node).into_iter().flatten().find(|asked| asked.addresses.contains(&address));
        let wanted = asked.map_or(Wanted::New, |asked| Wanted::Asked(asked.at));
        let is_new = *self.wanted.entry(address).or_insert(wanted) == Wanted::New;
        Gate::Wait(is_new.then_some(node).into_iter().collect())
    }

    /// The write of a request is over, and it does not stand there.
    pub fn not_written(&mut self, write: &ProbeWrite, conflict: bool, now: Instant) {
        if conflict {
            self.under_way.entry(write.node.clone()).or_default().retain(|asked| asked.round != write.round);
            self.ask_again(&write.addresses);
            self.changes.look = true;
        } else {
            self.fell_silent(&write.node, now);
        }
    }

    /// Guards addresses that hosts use.
    pub fn guard(&self, set: &mut GuardSet) {
        for (address, what) in &self.used {
            set.add_address(*address, Refusal::AnsweredByHost, what.as_str());
        }
    }

    fn is_fresh(&self, address: Ipv4Addr, now: Instant) -> bool {
        self.results.probed(address).is_some_and(|at| at + self.holds() > now)
    }

    /// Some time passes between the request and its answer: until then the old one holds.
    fn holds(&self) -> Duration {
        self.config.again * 5 / 4
    }

    fn fell_silent(&mut self, node: &str, now: Instant) {
        let asked = self.under_way.remove(node).unwrap_or_default();
        self.choice.fell_silent(node, &self.segments, now);
        self.unanswered += 1;
        asked.iter().for_each(|asked| self.ask_again(&asked.addresses));
        (self.changes.answers, self.changes.pools, self.changes.look) = (true, true, true);
    }

    /// Another speaker is asked.
    fn ask_again(&mut self, addresses: &[Ipv4Addr]) {
        for address in addresses {
            if let Some(wanted @ Wanted::Asked(_)) = self.wanted.get_mut(address) {
                *wanted = Wanted::New;
            }
        }
    }

    fn sweep(&mut self, now: Instant) {
        let (short, long, used) = (self.holds(), self.config.again * EXPIRES, &self.used);
        if self.results.drop_old(now, |address| if used.contains_key(&address) { long } else { short }) {
            self.find_used();
        }
        let old = |wanted: &Wanted| matches!(wanted, Wanted::Unanswered(at) if *at + SWEEP <= now);
        self.wanted.retain(|_, wanted| !old(wanted));
        self.changes.look |= self.choice.end_pauses(&self.segments, now) || !self.wanted.is_empty();
    }

    fn find_used(&mut self) {
        let answers = self.results.answers(&self.segments);
        let hosts = answers.filter(|(_, answer)| answer.verdict == ProbeVerdict::AnsweredByHost);
        let sentence = |mac: &str, node: &str| {
            format!("in use by the host {mac}, which has answered an ARP probe of the speaker of node {node}")
        };
        let used = hosts.map(|(address, answer)| (address, sentence(answer.mac, answer.node))).collect();
        self.changes.pools = true;
        if self.used != used {
            self.used = used;
            self.changes.used = true;
        }
    }
}

/// Between two searches for what is over.
const SWEEP: Duration = Duration::from_secs(1);
/// A host's answer holds so many times as long as its probe should be repeated: where no speaker answers any more, addresses come back.
const EXPIRES: u32 = 10;
