//! The loop: the next event, the reaction of all nodes, the checkers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use speaker_core::election::{Action, Config, Event, PartitionPolicy};
use speaker_core::name::{NodeName, Term, Vip};
use speaker_core::wire::pace::Pace;

use super::checkers::{GAP_MAX, Watcher, in_order};
use super::clock::Clock;
use super::faults::{Epoch, Fault, Planned, Profile, first_fault, plan};
use super::network::{Network, Weather};
use super::node::{Effect, Node, State, config, desired, name};
use super::paces::{self, Paces};
use super::random::Random;
use super::{Report, Violation};

#[derive(Debug)]
pub struct Cluster {
    profile: Profile,
    paces: Paces,
    random: Random,
    config: Config,
    /// Of each node's speaker.
    pace: Vec<Option<Pace>>,
    now: Duration,
    nodes: Vec<Node>,
    network: Network,
    plan: VecDeque<Planned>,
    vips: usize,
    desired: usize,
    /// What an attacker has recorded.
    recording: VecDeque<Vec<u8>>,
    /// VIPs whose owner was killed: since when, and for how long its silence is not death.
    orphans: BTreeMap<Vip, (Duration, Duration)>,
    watcher: Watcher,
    report: Report,
    terms: BTreeMap<Vip, Term>,
    /// What a fault has brought to light at once.
    broken: Option<String>,
    trace: VecDeque<String>,
    verbose: bool,
}

const RECORDING_MAX: usize = 500;
const TRACE_MAX: usize = 60;
/// After the last fault everything must be in order this soon (I4), and then stay so.
const SETTLE_MAX: Duration = Duration::from_millis(3000);
const STAY: Duration = Duration::from_secs(3);
/// A datagram is under way for 120 ms at most, and waits in the socket of a node that sleeps.
const ECHO_MAX: Duration = Duration::from_millis(2000);
/// The scheduler wakes a node this late at most; later is a freeze, and a fault.
const LATE_MAX: Duration = Duration::from_millis(2);

impl Cluster {
    pub fn new(seed: u64, profile: Profile, paces: Paces) -> Self {
        let mut random = Random::new(seed);
        let mut config = config(random.word());
        let least = if matches!(profile, Profile::Calm | Profile::Chaos) { 2 } else { 3 };
        let count = least + random.below(6 - least);
        let vips = 1 + random.below(6);
        if random.chance(200) {
            config.partition = PartitionPolicy::Quorum { members: (0..count).map(name).collect() };
        }
        let pace = paces.draw(count, &mut random);
        // An interval may have passed already since its last heartbeat. Not two at a time.
        let stall_max = |pace: &Option<Pace>| {
            let config = paces::at(&config, *pace);
            (config.dead() - config.interval - Duration::from_millis(5)).min(Duration::from_millis(400))
        };
        let stalls_max: Vec<Duration> = pace.iter().map(stall_max).collect();
        let plan = plan(profile, vips, &stalls_max, paces.extra(), &mut random).into();
        let nodes =
            (0..count).map(|node| Node::new(node, Clock::new(&mut random), &config, 1000, Duration::ZERO)).collect();
        let report = Report { seed, nodes: count, vips, ..Report::default() };
        let verbose = std::env::var_os("SHEAVE_SIM_VERBOSE").is_some();
        Self {
            profile,
            paces,
            random,
            config,
            pace,
            now: Duration::ZERO,
            nodes,
            network: Network::new(),
            plan,
            vips,
            desired: vips,
            recording: VecDeque::new(),
            orphans: BTreeMap::new(),
            watcher: Watcher::default(),
            report,
            terms: BTreeMap::new(),
            broken: None,
            trace: VecDeque::new(),
            verbose,
        }
    }

    pub fn run(mut self) -> Result<Report, Box<Violation>> {
        self.play().map_err(|what| {
            let trace = self.trace.iter().cloned().collect();
            let (seed, profile, paces, at) = (self.report.seed, self.profile, self.paces, self.now);
            Box::new(Violation { seed, profile, paces, at, what, trace })
        })?;
        Ok(self.report)
    }

    fn play(&mut self) -> Result<(), String> {
        // Not in step: else all heartbeats come at the same time for ever.
        for node in 0..self.nodes.len() {
            let pause = self.random.duration(Duration::ZERO..Duration::from_millis(50));
            self.advance_to(self.now + pause)?;
            self.restart(node, Epoch::Higher);
        }
        let extra = self.paces.extra();
        self.advance_to(first_fault(extra))?;
        in_order(self.now, &self.nodes, self.vips, self.desired).map_err(|what| format!("before any fault: {what}"))?;
        let before = self.report.moves;
        self.watcher.gap_max = match self.profile {
            // A stall between lease and dead interval costs the answers in between (R9).
            Profile::Chaos | Profile::Stalls => None,
            Profile::Crashes | Profile::CutOffs => Some(GAP_MAX + extra * 3 / 2),
            Profile::Calm | Profile::HandOvers | Profile::OneWays => Some(Duration::ZERO),
        };
        let mut cut_off = None;
        while let Some(planned) = self.plan.pop_front() {
            self.advance_to(planned.at)?;
            self.report.faults += 1;
            let healed =
                cut_off.take().filter(|_| planned.fault == Fault::Heal).map(|node| (node, self.held_without(node)));
            if let Fault::CutOff(node) = planned.fault {
                cut_off = Some(node);
            }
            self.strike(planned.fault);
            if let Some((node, held)) = healed.filter(|_| self.profile == Profile::CutOffs) {
                self.advance_to(self.now + Duration::from_secs(2) + 2 * extra)?;
                let lost: Vec<Vip> = held.difference(&self.held_without(node)).copied().collect();
                if !lost.is_empty() {
                    return Err(format!("node-{node} was cut off and took {lost:?} from the others at the heal (I7)"));
                }
            }
        }
        self.end_faults();
        self.settle()?;
        if matches!(self.profile, Profile::Calm | Profile::OneWays | Profile::Stalls) && self.report.moves > before {
            return Err("a VIP moved without need (I6)".into());
        }
        Ok(())
    }

    /// What the others hold while this node is cut off.
    fn held_without(&self, node: usize) -> BTreeSet<Vip> {
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != node);
        others.flat_map(|(_, other)| other.own.keys().filter(|vip| other.holds(**vip, self.now)).copied()).collect()
    }

    fn settle(&mut self) -> Result<(), String> {
        let (end, settle_max) = (self.now, SETTLE_MAX + 2 * self.paces.extra());
        while let Err(what) = in_order(self.now, &self.nodes, self.vips, self.desired) {
            self.report.settled_after = self.now - end;
            if self.report.settled_after > settle_max {
                return Err(format!("{:?} after the last fault: {what} (I4)", self.report.settled_after));
            }
            self.advance_to(self.now + Duration::from_millis(10))?;
        }
        let moves = self.report.moves;
        // What was under way may still move something; after that nothing does.
        self.advance_to(end + settle_max)?;
        let still = self.report.moves;
        self.advance_to(self.now + STAY + self.paces.extra())?;
        in_order(self.now, &self.nodes, self.vips, self.desired)
            .map_err(|what| format!("settled, then not: {what} (I4)"))?;
        if self.report.moves > still {
            return Err(format!("settled, then {} moves without a fault (I6)", self.report.moves - moves));
        }
        Ok(())
    }

    fn advance_to(&mut self, end: Duration) -> Result<(), String> {
        loop {
            let wake = self.nodes.iter().filter_map(Node::deadline).min();
            let lease = self.nodes.iter().map(Node::lease_ends).filter(|at| *at > self.now).min();
            let next = [wake, lease, self.network.next()].into_iter().flatten().min();
            let Some(next) = next.filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            while let Some(delivery) = self.network.take(self.now) {
                let effects = self.nodes[delivery.to].arrive(delivery.datagram, self.now);
                self.apply(delivery.to, effects);
            }
            for node in 0..self.nodes.len() {
                if self.nodes[node].deadline().is_some_and(|at| at <= self.now) && !self.oversleeps(node) {
                    let effects = self.nodes[node].handle(Event::Tick, self.now);
                    self.apply(node, effects);
                }
            }
            self.watcher.observe(self.now, &self.nodes, self.vips, &self.network, &mut self.report)?;
            if let Some(what) = self.broken.take() {
                return Err(what);
            }
        }
        self.now = self.now.max(end);
        Ok(())
    }

    /// A scheduler is a little late at times: time passes, and what comes meanwhile is delivered first.
    fn oversleeps(&mut self, node: usize) -> bool {
        let due = self.nodes[node].deadline().unwrap_or(self.now);
        if self.now - due < LATE_MAX && self.random.chance(300) {
            self.now += self.random.duration(Duration::from_micros(10)..LATE_MAX / 2);
            return true;
        }
        false
    }

    fn apply(&mut self, from: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(datagram) => self.send(from, &datagram),
                Effect::Acquired(vip, term) => {
                    self.report.moves += 1;
                    if let Some((since, dead)) = self.orphans.remove(&vip) {
                        let took = self.now - since;
                        self.report.longest_takeover = self.report.longest_takeover.max(took);
                        self.report.longest_overtime = self.report.longest_overtime.max(took.saturating_sub(dead));
                    }
                    self.won(from, vip, term);
                    self.note(|| format!("node-{from} acquires {vip} term {term}"));
                }
                Effect::Released(vip) => {
                    self.report.moves += 1;
                    self.note(|| format!("node-{from} releases {vip}"));
                }
                Effect::Other(Action::PeerUp { node }) => {
                    self.raised(&node);
                    self.note(|| format!("node-{from} PeerUp {node}"));
                }
                Effect::Other(Action::PeerDown { node, .. }) => {
                    self.note(|| format!("node-{from} PeerDown {node}"));
                    self.taken_for_dead(from, &node);
                }
                Effect::Other(Action::Received { .. } | Action::Rejected { .. } | Action::Announce { .. }) => {}
                Effect::Other(Action::OwnerChanged { .. }) if !self.verbose => {}
                Effect::Other(action) => self.note(|| format!("node-{from} {action:?}")),
            }
        }
    }

    /// Without faults that split the cluster every win has a higher term than the one before.
    fn won(&mut self, node: usize, vip: Vip, term: Term) {
        let before = self.terms.insert(vip, term).unwrap_or_default();
        if term <= before && matches!(self.profile, Profile::Crashes | Profile::HandOvers) {
            self.broken = Some(format!("node-{node} wins {vip} with {term:?} after {before:?}"));
        }
    }

    /// I8: only the living are up, and they sent something not long ago.
    fn raised(&mut self, name: &NodeName) {
        let silent = self.nodes.iter().find(|node| node.name == *name && node.state != State::Running);
        if let Some(since) = silent.map(|node| self.now - node.stopped_at).filter(|since| *since > ECHO_MAX) {
            self.broken = Some(format!("{name} is up, but has sent nothing for {since:?} (I8)"));
        }
    }

    /// A node that runs, and of which everything has arrived for longer than any silence is borne, is not dead. Where nothing but crashes
    /// and hand-overs happens no node that runs is.
    fn taken_for_dead(&mut self, by: usize, name: &NodeName) {
        let Some(node) = self.nodes.iter().position(|node| node.name == *name) else { return };
        let runs = |node: usize| self.nodes[node].state == State::Running && self.nodes[node].carrier;
        let good = matches!(self.profile, Profile::Calm | Profile::Crashes | Profile::HandOvers | Profile::Stalls);
        let longest = 2 * (self.config.dead() + self.paces.extra());
        let whole = self.network.whole_since(by, node).is_some_and(|since| self.now > since + longest);
        if runs(node) && runs(by) && (good || whole) {
            self.broken = Some(format!("node-{by} takes {name} for dead, which runs"));
        }
    }

    fn send(&mut self, from: usize, datagram: &[u8]) {
        self.report.datagrams += 1;
        if !self.nodes[from].carrier {
            return;
        }
        if self.recording.len() == RECORDING_MAX {
            let forgotten = self.random.below(RECORDING_MAX);
            self.recording.remove(forgotten);
        }
        self.recording.push_back(datagram.to_vec());
        for to in (0..self.nodes.len()).filter(|to| *to != from) {
            self.network.send(self.now, (from, to), datagram, &mut self.random);
        }
    }

    fn strike(&mut self, fault: Fault) {
        self.note(|| format!("fault: {fault:?}"));
        match fault {
            Fault::Partition(bits) => self.partition(bits),
            Fault::CutOff(node) => self.partition(1 << node),
            Fault::OneWay(from, to) => self.network.cut(self.now, (from, to)),
            Fault::Heal => {
                self.network.heal(self.now);
                self.network.change_weather(self.now, Weather::fair(), self.nodes.len());
            }
            Fault::Weather { loss_per_mille, duplicate_per_mille, delay_ms } => {
                let delay = Duration::from_micros(50)..Duration::from_millis(delay_ms + 1);
                let weather = Weather { loss_per_mille, duplicate_per_mille, delay };
                self.network.change_weather(self.now, weather, self.nodes.len());
            }
            Fault::Crash(node) => {
                let since = (self.now, self.nodes[node].config.dead());
                self.orphans.extend(self.nodes[node].own.keys().map(|vip| (*vip, since)));
                self.nodes[node].crash(self.now);
                self.broke(node);
            }
            Fault::Restart(node, epoch) => self.restart(node, epoch),
            Fault::Freeze(node, middle) => self.freeze(node, middle),
            Fault::Thaw(node) => self.thaw(node),
            Fault::Carrier(node, up) => self.carrier(node, up),
            Fault::Ready(node, ready) => self.ready(node, ready),
            Fault::Drain(node, drained) => {
                self.nodes[node].drained = drained;
                self.event(node, Event::Drained(drained));
            }
            Fault::Leave(node) => self.event(node, Event::Leave),
            Fault::Desire(count) => {
                self.desired = count;
                (0..self.nodes.len()).for_each(|node| self.event(node, Event::Desired(desired(count))));
            }
            Fault::Replay(to) => self.inject(to, |_, _| {}),
            Fault::Forge(to) => self.inject(to, |datagram, random| {
                let at = random.below(datagram.len());
                datagram[at] ^= 1 << random.below(8);
            }),
        }
    }

    fn partition(&mut self, bits: u64) {
        for a in 0..self.nodes.len() {
            for b in (0..self.nodes.len()).filter(|b| (bits >> a) & 1 != (bits >> b) & 1) {
                self.network.cut(self.now, (a, b));
            }
        }
    }

    fn freeze(&mut self, node: usize, middle: bool) {
        if self.nodes[node].state == State::Running {
            self.nodes[node].freeze_in_the_middle = middle;
            if !middle {
                self.nodes[node].fall_asleep(self.now);
            }
            self.broke(node);
        }
    }

    fn thaw(&mut self, node: usize) {
        self.nodes[node].freeze_in_the_middle = false;
        if self.nodes[node].state == State::Frozen {
            self.broke(node);
            let slept = self.now - self.nodes[node].stopped_at;
            let effects = self.nodes[node].thaw(self.now);
            self.apply(node, effects);
            self.event(node, Event::Drained(self.nodes[node].drained));
            self.event(node, Event::Desired(desired(self.desired)));
            self.event(node, Event::Ready(self.nodes[node].ready));
            let held = self.nodes[node].own.len();
            // The millisecond is the drift.
            let sleep_max = self.nodes[node].config.dead() + Duration::from_millis(1);
            if slept > sleep_max && held > 0 {
                self.broken = Some(format!("node-{node} slept for {slept:?} and holds {held} VIPs when it wakes (R9)"));
            }
        }
    }

    fn carrier(&mut self, node: usize, up: bool) {
        if self.nodes[node].carrier != up {
            self.nodes[node].carrier = up;
            self.broke(node);
            self.event(node, Event::Carrier(up));
        }
    }

    fn ready(&mut self, node: usize, ready: bool) {
        self.nodes[node].ready = ready;
        self.event(node, Event::Ready(ready));
    }

    /// Whether or not the old speaker is still there.
    fn restart(&mut self, node: usize, epoch: Epoch) {
        let last = self.nodes[node].last_epoch;
        let mut epoch = match epoch {
            Epoch::Higher => last + 1 + self.random.word() % 1000,
            Epoch::Lower => self.random.word() % last.max(2),
        };
        while !self.nodes[node].epochs.insert(epoch) {
            epoch += 1;
        }
        if self.now > first_fault(self.paces.extra()) {
            self.pace[node] = self.paces.at_restart(self.pace[node], &mut self.random);
        }
        self.nodes[node].restart(&paces::at(&self.config, self.pace[node]), epoch, self.now);
        self.broke(node);
        self.start(node);
    }

    /// A daemon's messages to a new speaker.
    fn start(&mut self, node: usize) {
        if !self.nodes[node].carrier {
            self.event(node, Event::Carrier(false));
        }
        // With its first datagram it states its pace.
        if self.paces == Paces::Mixed {
            self.event(node, Event::OwnMac([2, 0, 0, 0, 0, node as u8]));
        }
        self.event(node, Event::Drained(self.nodes[node].drained));
        self.event(node, Event::Desired(desired(self.desired)));
        self.ready(node, true);
    }

    fn event(&mut self, node: usize, event: Event) {
        if self.nodes[node].state == State::Running {
            let effects = self.nodes[node].handle(event, self.now);
            self.apply(node, effects);
        }
    }

    fn inject(&mut self, to: usize, change: impl Fn(&mut Vec<u8>, &mut Random)) {
        if self.recording.is_empty() {
            return;
        }
        let first = self.random.below(self.recording.len());
        for datagram in self.recording.clone().into_iter().skip(first).take(20) {
            let mut datagram = datagram;
            change(&mut datagram, &mut self.random);
            let at = self.now + self.random.duration(Duration::ZERO..Duration::from_millis(500));
            self.network.inject(at, to, datagram);
        }
    }

    /// All is well again: links, weather, nodes.
    fn end_faults(&mut self) {
        self.note(|| "end of faults".into());
        self.strike(Fault::Heal);
        for node in 0..self.nodes.len() {
            self.thaw(node);
            self.carrier(node, true);
            if self.nodes[node].state == State::Crashed || self.nodes[node].election.phase().label() == "leaving" {
                self.restart(node, Epoch::Higher);
            }
            self.event(node, Event::Desired(desired(self.desired)));
            self.ready(node, true);
        }
    }

    fn broke(&mut self, node: usize) {
        self.network.broke(self.now, node, self.nodes.len());
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        let line = format!("{:>10.3} {}", self.now.as_secs_f64() * 1e3, line());
        if self.verbose {
            eprintln!("{line}");
        }
        if self.trace.len() == TRACE_MAX {
            self.trace.pop_front();
        }
        self.trace.push_back(line);
    }
}
