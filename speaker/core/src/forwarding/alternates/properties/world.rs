//! A cluster: nodes, the API server's truth, clients and their flows, and what goes wrong.

mod truth;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use ebpf_common::{ALTERNATES, MAX_ROWS, NextHop, SearchState, ServiceKey, row_of};
use sheave_ebpf::parse::{Content, Tcp};
use sheave_ebpf::second_chance::{Origin, Step};

use super::faults::Op;
use super::node::*;
use super::random::Random;
use super::sums::Sums;
use crate::forwarding::previous::SavedRings;
use crate::startup::Target;
use crate::time::{Duration, Instant};
use crate::view::{
    Conditions, Endpoint, EndpointSlice, Node, Object, ObjectName, Port, Protocol, Service, View, VirtualIp,
};

/// Of a ring of up to 40 pods, and of one of more.
const ROWS: [u32; 2] = [4093, MAX_ROWS];
const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const TURN: Duration = Duration::from_millis(250);
pub const TERMINATING: Conditions = Conditions { ready: false, serving: true, terminating: true };
pub const UNREADY: Conditions = Conditions { ready: false, serving: false, terminating: false };

pub struct World {
    pub now: Instant,
    pub random: Random,
    pub machines: Vec<Machine>,
    /// Nodes whose heartbeats stated, a turn ago, that they are ready.
    received_ready: Vec<usize>,
    pub services: Vec<Vec<Pod>>,
    next_pod: u32,
    view: Arc<View>,
    /// The client's side of each flow: which pod it talks to.
    pub flows: BTreeMap<Flow, FlowState>,
    /// Tuples that clients may use: few rows, so that several nodes get flows of one.
    pool: Vec<Flow>,
    next_tuple: usize,
    ended: Vec<Flow>,
    pub disturbed: Instant,
    /// When each node last had flows of a row, of rings of either size.
    held: BTreeMap<Place, BTreeMap<usize, Instant>>,
    /// Counts what must not be, instead of failing.
    pub count_losses: bool,
    /// New pods listen a while after they are ready, or never; of its own, so that other courses stay what they are.
    pub slow_starts: Option<Random>,
    pub plan: BTreeMap<Instant, Vec<Op>>,
    pub sums: Sums,
}

/// One node as a machine: things that can fail apart.
#[derive(Default)]
pub struct Machine {
    pub kernel: Option<Kernel>,
    pub speaker: Option<Speaker>,
    disk: Option<SavedRings>,
    epoch: u64,
    pub excluded: bool,
    pub cut: bool,
    pub late: bool,
    /// Its datagrams are lost.
    pub reports_lost: bool,
    /// When it was last cut off: what was sent to it in the moment in which it is back is lost.
    pub was_cut: Instant,
}

#[derive(Clone)]
pub struct Pod {
    pub address: Ipv4Addr,
    pub node: usize,
    pub conditions: Conditions,
    /// From when on it is ready, without a break.
    ready_since: Instant,
    /// From when on it accepts connections; `None`: never.
    pub listens: Option<Instant>,
}

impl Pod {
    pub fn set_conditions(&mut self, conditions: Conditions, now: Instant) {
        if conditions == Conditions::READY && self.conditions != conditions {
            self.ready_since = now;
        }
        self.conditions = conditions;
    }
}

#[derive(Clone, Copy)]
pub struct FlowState {
    pub node: usize,
    pub pod: Ipv4Addr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Known {
        node: usize,
        hops: usize,
    },
    /// No node knows it: a reset, or a new flow.
    Refused {
        node: usize,
        hops: usize,
    },
    Vanished,
}

/// A row: the service port, how many rows its ring has, and which it is.
type Place = (ServiceKey, u32, Option<u32>);

fn place(flow: Flow, rows: u32) -> Place {
    (key_of(flow), rows, row_of(tuple(flow).hash(&HASH_KEY), rows))
}

fn port(service: usize) -> u16 {
    80 + service as u16
}

impl World {
    pub fn new(seed: u64, nodes: usize, services: usize) -> Self {
        let now = Instant::from_millis(1_000_000);
        let mut world = Self {
            now,
            random: Random(seed.wrapping_mul(1 << 32)),
            received_ready: Vec::new(),
            machines: (0..nodes).map(|_| Machine::new()).collect(),
            services: vec![Vec::new(); services],
            next_pod: 1,
            view: Arc::default(),
            flows: BTreeMap::new(),
            pool: Vec::new(),
            next_tuple: 0,
            ended: Vec::new(),
            disturbed: now,
            held: BTreeMap::new(),
            count_losses: false,
            slow_starts: None,
            plan: BTreeMap::new(),
            sums: Sums::default(),
        };
        for service in 0..services {
            for _ in 0..1 + world.random.below(2 * nodes) {
                world.add_pod(service);
            }
        }
        world.publish();
        world.fill_pool(8);
        for node in 0..nodes {
            world.start_speaker(node);
        }
        world.pass(Duration::from_secs(3));
        world
    }

    /// So many rows of each service: the fewer, the more nodes get flows of the same row.
    pub fn fill_pool(&mut self, rows: usize) {
        self.pool.clear();
        let rows: BTreeSet<u32> = (0..rows).map(|_| self.random.below(ROWS[0] as usize) as u32).collect();
        let mut client = self.random.below(1 << 30) as u32;
        while self.pool.len() < 400 {
            client += 1;
            for service in 0..self.services.len() {
                let flow = (client.to_be_bytes(), VIP.octets(), [4, 1], port(service).to_be_bytes(), 6);
                if row_of(tuple(flow).hash(&HASH_KEY), ROWS[0]).is_some_and(|row| rows.contains(&row)) {
                    self.pool.push(flow);
                }
            }
        }
    }

    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += TURN;
            let due: Vec<Op> = self.plan.range(..=self.now).flat_map(|(_, ops)| ops.clone()).collect();
            self.plan = self.plan.split_off(&(self.now + Duration::from_nanos(1)));
            for op in due {
                self.happen(op);
            }
            self.turn_speakers();
            self.turn_clients();
        }
    }

    pub fn later(&mut self, after: Duration, op: Op) {
        self.plan.entry(self.now + after).or_default().push(op);
    }

    fn turn_speakers(&mut self) {
        let nodes = self.machines.len();
        self.received_ready = self.serving();
        let mut sent = Vec::new();
        // A heartbeat reaches all in the same moment.
        let sights = |node| -> Vec<Sight> { (0..nodes).map(|other| self.sight(node, other)).collect() };
        let sights: Vec<_> = (0..nodes).map(sights).collect();
        let pods: BTreeMap<Ipv4Addr, Option<Instant>> =
            self.services.iter().flatten().map(|pod| (pod.address, pod.listens)).collect();
        let listens = |target: Target| pods.get(&target.address).is_some_and(|at| at.is_some_and(|at| at <= self.now));
        for (node, sights) in sights.into_iter().enumerate() {
            let machine = &mut self.machines[node];
            let view = (!machine.late && !machine.cut).then_some(&self.view);
            if let (Some(speaker), Some(kernel)) = (&mut machine.speaker, &mut machine.kernel) {
                let datagrams = speaker.turn(view, &sights, kernel, &listens, self.now);
                machine.disk = Some(speaker.save(self.now));
                if !machine.reports_lost && !machine.cut {
                    sent.push((node, datagrams));
                }
            }
        }
        for (from, datagrams) in sent {
            for (to, machine) in self.machines.iter_mut().enumerate().filter(|(_, machine)| !machine.cut) {
                if let Some(speaker) = machine.speaker.as_mut().filter(|_| to != from) {
                    datagrams.iter().for_each(|datagram| speaker.receive(datagram, self.now));
                }
            }
        }
    }

    fn sight(&self, from: usize, to: usize) -> Sight {
        let machine = &self.machines[to];
        let answers = from == to || machine.kernel.is_some() && !machine.cut && !self.machines[from].cut;
        let program = answers && machine.kernel.as_ref().is_some_and(|kernel| kernel.table.is_some());
        Sight { answers, program, ready: answers && machine.speaker.as_ref().is_some_and(|speaker| speaker.ready) }
    }

    /// Nodes that clients' packets come to: a ready speaker answers for the VIP, and the others have received that it is ready.
    fn entries(&self) -> Vec<usize> {
        self.serving().into_iter().filter(|node| self.received_ready.contains(node)).collect()
    }

    fn serving(&self) -> Vec<usize> {
        let is_entry =
            |machine: &Machine| !machine.cut && machine.speaker.as_ref().is_some_and(|speaker| speaker.ready);
        (0..self.machines.len()).filter(|node| is_entry(&self.machines[*node])).collect()
    }

    fn turn_clients(&mut self) {
        let now = self.now;
        self.machines.iter_mut().filter(|machine| machine.cut).for_each(|machine| machine.was_cut = now);
        self.end_flows();
        self.note_holders();
        if self.is_disturbed() {
            self.disturbed = self.now;
        }
        let entries = self.entries();
        if entries.is_empty() {
            return;
        }
        for _ in 0..2 {
            let entry = entries[self.random.below(entries.len())];
            self.open(entry);
        }
        let flows: Vec<(Flow, FlowState)> = self.flows.iter().map(|(flow, state)| (*flow, *state)).collect();
        let calm = self.is_calm();
        let in_reach = |(_, state): &(Flow, FlowState)| self.now.since(self.machines[state.node].was_cut) > TURN;
        let (flows, away): (Vec<_>, Vec<_>) = flows.into_iter().partition(in_reach);
        for (flow, entry) in away.iter().flat_map(|(flow, _)| entries.iter().map(move |entry| (*flow, *entry))) {
            match self.walk(entry, flow, &MID_FLOW) {
                Outcome::Refused { .. } => self.sums.cut_refused += 1,
                Outcome::Vanished | Outcome::Known { .. } => self.sums.unanswered += 1,
            }
        }
        for (flow, state) in flows {
            for &entry in &entries {
                let outcome = self.walk(entry, flow, &MID_FLOW);
                self.judge(flow, state, entry, outcome, calm);
            }
        }
        for flow in self.ended.clone() {
            for &entry in &entries {
                match self.walk(entry, flow, &MID_FLOW) {
                    Outcome::Refused { hops, .. } => self.sums.refused[hops] += 1,
                    Outcome::Known { node, .. } if self.machines[node].speaker.is_none() => {}
                    // All pods are on a lost node: the ring is kept, for it may be back in a moment.
                    Outcome::Vanished if !calm || self.machines.iter().any(|machine| machine.kernel.is_none()) => {}
                    outcome => {
                        assert!(!calm || !self.agree(), "{outcome:?} of a flow that has ended {}", self.describe(flow))
                    }
                }
            }
        }
    }

    fn judge(&mut self, flow: Flow, state: FlowState, entry: usize, outcome: Outcome, calm: bool) {
        match outcome {
            Outcome::Known { node, hops } => {
                assert_eq!(node, state.node, "a flow has one node");
                let sums = if calm { &mut self.sums.calm } else { &mut self.sums.busy };
                sums[hops] += 1;
            }
            _ if self.others(entry, flow) > ALTERNATES => self.sums.overflow += 1,
            _ if !calm => self.sums.busy_lost += 1,
            _ if self.is_leaderless() => self.sums.leaderless += 1,
            _ if !self.agree() => self.sums.differing += 1,
            _ if self.count_losses => self.sums.calm_lost += 1,
            _ => panic!("{outcome:?} at {}: from n{entry} to n{}\n{}", self.now, state.node, self.describe(flow)),
        }
    }

    /// Nodes that have flows of this row, or had until a moment ago (reports last a little longer), and are not its primary.
    fn others(&self, entry: usize, flow: Flow) -> usize {
        let kernel = self.machines[entry].kernel.as_ref();
        let primary = kernel.and_then(|kernel| kernel.primary(flow));
        let ring = kernel.and_then(|kernel| Some(&kernel.table.as_ref()?.services.get(&key_of(flow))?.ring));
        let rows = ring.map_or(0, |ring| ring.rows.len() as u32);
        let recent = |at: Instant| self.now.since(at) <= REPORTED_FOR;
        let nodes = self.held.get(&place(flow, rows)).into_iter().flatten();
        nodes.filter(|(node, at)| Some(**node) != primary && recent(**at)).count()
    }

    fn note_holders(&mut self) {
        for (flow, state) in &self.flows {
            for rows in ROWS {
                self.held.entry(place(*flow, rows)).or_default().insert(state.node, self.now);
            }
        }
    }

    fn is_leaderless(&self) -> bool {
        self.machines.iter().any(|machine| machine.kernel.is_some() && machine.speaker.is_none())
    }

    /// All nodes that answer for the VIP have the same table.
    fn agree(&self) -> bool {
        let digest = |node: usize| self.machines[node].kernel.as_ref()?.table.as_ref().map(|table| table.digest);
        let entries = self.entries();
        entries.iter().all(|node| digest(*node) == digest(entries[0]))
    }

    fn describe(&self, flow: Flow) -> alloc::string::String {
        use core::fmt::Write;
        let mut out = alloc::string::String::new();
        for (number, machine) in self.machines.iter().enumerate() {
            let Some(table) = machine.kernel.as_ref().and_then(|kernel| kernel.table.as_ref()) else { continue };
            let Some(service) = table.services.get(&key_of(flow)) else { continue };
            let row = row_of(tuple(flow).hash(&HASH_KEY), service.ring.rows.len() as u32).unwrap_or(0);
            let others: Vec<&str> = service.alternates.iter().flat_map(|all| all.of(row)).collect();
            let speaker = machine.speaker.is_some();
            let _ = writeln!(out, "n{number}: speaker {speaker} row {row}: {:?} {others:?}", service.ring.primary(row));
        }
        out
    }

    /// All views are up to date, all nodes have reported and received the reports.
    fn is_calm(&self) -> bool {
        self.now.since(self.disturbed) >= CALM
    }

    fn open(&mut self, entry: usize) {
        let flow = self.pool[self.next_tuple % self.pool.len()];
        self.next_tuple += 1;
        if self.flows.contains_key(&flow) {
            return;
        }
        self.ended.retain(|ended| *ended != flow);
        for machine in &mut self.machines {
            // Client ports are used again long after their conntrack entries expired.
            machine.kernel.iter_mut().for_each(|kernel| {
                kernel.flows.remove(&flow);
            });
        }
        let Outcome::Refused { node, .. } = self.walk(entry, flow, &SYN) else { return self.not_opened(flow) };
        let Some(kernel) = &mut self.machines[node].kernel else { return };
        let pods = kernel.backends.get(&key_of(flow)).cloned().unwrap_or_default();
        let lives = |address: &Ipv4Addr| self.services.iter().flatten().any(|pod| pod.address == *address);
        let alive: Vec<Ipv4Addr> = pods.into_iter().filter(lives).collect();
        if alive.is_empty() {
            return self.not_opened(flow);
        }
        let pod = alive[self.random.below(alive.len())];
        self.judge_start(flow, pod);
        let Some(kernel) = &mut self.machines[node].kernel else { return };
        kernel.flows.insert(flow, pod);
        self.flows.insert(flow, FlowState { node, pod });
        self.sums.opened += 1;
    }

    /// A new flow for a pod that does not listen, though another is ready and has listened for a while, on a node whose speaker runs.
    fn judge_start(&mut self, flow: Flow, pod: Ipv4Addr) {
        let pods = &self.services[usize::from(u16::from_be_bytes(flow.3) - port(0))];
        let since = |pod: &Pod, ago: Duration| pod.listens.is_some_and(|at| at + ago <= self.now);
        if pods.iter().any(|one| one.address == pod && since(one, Duration::ZERO)) {
            return;
        }
        let serving = self.serving();
        let accepts = |one: &&Pod| {
            one.conditions == Conditions::READY
                && since(one, CALM)
                && one.ready_since + CALM <= self.now
                && serving.contains(&one.node)
                && !self.machines[one.node].excluded
        };
        if pods.iter().any(|one| accepts(&one)) {
            self.sums.refused_starts += 1;
            assert!(!self.is_calm(), "{pod} does not listen, at {}", self.now);
        } else {
            self.sums.starts_alone += 1;
        }
    }

    fn not_opened(&mut self, flow: Flow) {
        let service = usize::from(u16::from_be_bytes(flow.3) - port(0));
        let runs = |pod: &Pod| self.machines[pod.node].kernel.is_some() && !self.machines[pod.node].cut;
        if self.services[service].iter().any(|pod| pod.conditions == Conditions::READY && runs(pod)) {
            self.sums.unopened += 1;
            self.sums.calm_unopened += u64::from(self.is_calm() && self.agree() && !self.is_leaderless());
        }
    }
}

/// `reporter::TRIM`, and a report.
const REPORTED_FOR: Duration = Duration::from_secs(12);
const CALM: Duration = Duration::from_secs(3);
const SYN: Content = Content::Tcp(Tcp { flags: Tcp::SYN });
const MID_FLOW: Content = Content::Tcp(Tcp { flags: Tcp::ACK });

/// Packets.
impl World {
    /// The way of a packet, by the packet path and by what the kernel's chains make of its marks.
    pub fn walk(&self, entry: usize, flow: Flow, content: &Content) -> Outcome {
        let (mut at, mut origin, mut hops, mut search_origin) = (entry, Origin::Client, 0, 0);
        loop {
            let machine = &self.machines[at];
            let Some(kernel) = machine.kernel.as_ref().filter(|_| !machine.cut) else { return Outcome::Vanished };
            let from = at as u16 + 1;
            let (slot, next) = match kernel.xdp(at, flow, origin, search_origin, content) {
                None => return Outcome::Refused { node: at, hops },
                Some((Step::Dispatch, primary)) => (primary, Origin::Dispatcher { from }),
                Some((Step::ForwardSyn { hop }, primary)) => {
                    (primary, Origin::Search { from, state: SearchState { hop, no_reset: false } })
                }
                Some((Step::PassToStack(_), _)) if kernel.flows.contains_key(&flow) => {
                    return Outcome::Known { node: at, hops };
                }
                Some((Step::PassToStack(mark), _)) => {
                    if mark.next_hop == NextHop::Local {
                        return Outcome::Refused { node: at, hops };
                    }
                    if hops == 0 {
                        search_origin = from;
                    }
                    hops += 1;
                    (
                        mark.slot,
                        Origin::Search { from, state: SearchState { hop: mark.next_hop.hop(), no_reset: false } },
                    )
                }
            };
            (at, origin) = (usize::from(slot) - 1, next);
        }
    }

    fn end_flows(&mut self) {
        let pods: BTreeSet<Ipv4Addr> = self.services.iter().flatten().map(|pod| pod.address).collect();
        let flows: Vec<(Flow, FlowState)> = self.flows.iter().map(|(flow, state)| (*flow, *state)).collect();
        for (flow, state) in flows {
            let closes = self.random.below(400) == 0;
            let kernel = &mut self.machines[state.node].kernel;
            let known = kernel.as_ref().is_some_and(|kernel| kernel.flows.contains_key(&flow));
            if !closes && known && pods.contains(&state.pod) {
                continue;
            }
            assert!(closes || !known || !pods.contains(&state.pod));
            if closes && let Some(kernel) = kernel {
                kernel.flows.remove(&flow);
            }
            self.flows.remove(&flow);
            self.ended.push(flow);
        }
        let excess = self.ended.len().saturating_sub(10);
        self.ended.drain(..excess);
    }
}
