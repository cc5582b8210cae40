//! One node: what its kernel holds, and the speaker that fills it. The kernel outlives the speaker.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ebpf_common::{Config as XdpConfig, FlowTuple, Row, ServiceKey, ServiceValue, row_of};
use sheave_ebpf::parse::Content;
use sheave_ebpf::second_chance::{self, Origin, Step};
use sheave_ebpf::service;

use crate::forwarding::members::{has_started, is_last_resort, is_ready};
use crate::forwarding::previous::{PreviousRings, SavedRings};
use crate::forwarding::{Planner, Table, TrafficStates};
use crate::machine::Machine;
use crate::name::NodeName;
use crate::reports::exchange::{Action, Config, Event, Exchange};
use crate::reports::reporter::Reporter;
use crate::startup::{Answer, Startup, Target};
use crate::time::{Duration, Instant};
use crate::traffic_state::PeerSignals;
use crate::view::View;
use crate::view::endpoints::{Digests, Frontend, Pod, frontends};
use crate::wire::seal::{Key, Keyring};

pub const HASH_KEY: [u64; 2] = [3, 4];
pub const WINDOW: Duration = Duration::from_secs(24 * 3600);
const RETURN_WINDOW: Duration = Duration::from_millis(2500);
const BOOT: &str = "boot";

pub fn name(node: usize) -> String {
    format!("n{node}")
}

/// What lives in the kernel of a node.
#[derive(Default)]
pub struct Kernel {
    pub table: Option<Table>,
    /// The pods of this node in its nftables table, by service port: those that get new flows.
    pub backends: BTreeMap<ServiceKey, Vec<core::net::Ipv4Addr>>,
    /// Service ports among them whose pods all end or have not started, and whose ring does not name this node.
    passed_on: BTreeSet<ServiceKey>,
    /// Conntrack: flow and the pod it goes to.
    pub flows: BTreeMap<Flow, core::net::Ipv4Addr>,
    /// Clients of services with affinity, and the pod of each.
    pub clients: BTreeMap<[u8; 4], core::net::Ipv4Addr>,
}

/// A flow as a key of maps.
pub type Flow = ([u8; 4], [u8; 4], [u8; 2], [u8; 2], u8);

pub fn tuple((src, dst, src_port, dst_port, proto): Flow) -> FlowTuple {
    FlowTuple { src, dst, src_port, dst_port, proto }
}

pub fn key_of(flow: Flow) -> ServiceKey {
    ServiceKey { addr: flow.1, port: flow.3, proto: flow.4, pad: 0 }
}

impl Kernel {
    /// The row of a flow in the maps: slots are numbers of nodes, from 1.
    fn row(&self, flow: Flow) -> Option<(ServiceValue, Row)> {
        let service = self.table.as_ref()?.services.get(&key_of(flow))?;
        let hashed = service.attributes.hashed(tuple(flow));
        let row = row_of(hashed.hash(&HASH_KEY), service.ring.rows.len() as u32)?;
        let slot = |name: &str| name[1..].parse::<u16>().map_or(0, |number| number + 1);
        let mut alternates = [0; 3];
        for (place, name) in alternates.iter_mut().zip(service.alternates.iter().flat_map(|all| all.of(row))) {
            *place = slot(name);
        }
        let key = key_of(flow);
        let served = !self.passed_on.contains(&key) && self.backends.get(&key).is_some_and(|pods| !pods.is_empty());
        let served = if served { ServiceValue::SERVED_HERE } else { 0 };
        let flags =
            service.attributes.flags() | served | if service.no_new_flows { ServiceValue::NO_NEW_FLOWS } else { 0 };
        Some((ServiceValue { ring: 0, flags }, Row::new(slot(service.ring.primary(row)?), alternates)))
    }

    /// Whether this node's row of the flow has that node.
    pub fn row_has(&self, flow: Flow, slot: u16) -> bool {
        self.row(flow).is_some_and(|(_, row)| row.nodes().contains(&slot))
    }

    pub fn primary(&self, flow: Flow) -> Option<usize> {
        Some(usize::from(self.row(flow)?.1.primary()) - 1)
    }

    /// What XDP does with a packet; `None`: it refuses it.
    pub fn xdp(
        &self,
        own: usize,
        flow: Flow,
        origin: Origin,
        search_origin: u16,
        content: &Content,
    ) -> Option<(Step, u16)> {
        let taken = |flags| service::is_asked(flags, content, origin) || service::takes(flags, content);
        let (service, row) = self.row(flow).filter(|(flags, _)| taken(*flags))?;
        let config = XdpConfig { self_slot: own as u32 + 1, ..XdpConfig::default() };
        Some((second_chance::next(&config, service, row, origin, search_origin, content), row.primary()))
    }
}

pub struct Speaker {
    node: usize,
    planner: Planner,
    exchange: Exchange,
    reporter: Reporter,
    startup: Startup,
    /// New pods in the rules.
    starting: BTreeSet<Target>,
    view: Option<Arc<View>>,
    signals: PeerSignals,
    traffic_states: TrafficStates,
    /// Peers whose speaker has been ready since they were down or new.
    heard_at: BTreeMap<usize, Instant>,
    /// Peers whose speaker has not.
    unknown: BTreeSet<usize>,
    pub ready: bool,
    pub digest: u64,
    dirty: bool,
    planned: Instant,
    announced: Instant,
    pub cut_off: bool,
    /// Nodes that answered when it looked last.
    answering: usize,
}

/// What a speaker sees of another node.
#[derive(Clone, Copy)]
pub struct Sight {
    pub answers: bool,
    /// There is a program of ours.
    pub program: bool,
    pub ready: bool,
}

impl Speaker {
    /// `saved`: its previous rings, from the disk. `last`: the table that the kernel has; none if this is the first speaker since
    /// the node booted, which has to learn the readiness of the others anew.
    pub fn new(
        node: usize,
        epoch: u64,
        saved: Option<&SavedRings>,
        last: Option<&Table>,
        nodes: usize,
        now: Instant,
    ) -> Self {
        let booted = last.is_none();
        let previous_rings = match saved {
            Some(saved) => PreviousRings::restore(saved, WINDOW, BOOT, now).expect("what was saved can be read"),
            None => PreviousRings::new(WINDOW),
        };
        let mut planner = Planner::new(HASH_KEY, previous_rings);
        planner.was_away(&name(node));
        let config = Config {
            node: node_name(node),
            cluster: 1,
            epoch,
            keys: Keyring { current: Key { id: 1, secret: [1; 32] }, other: None },
            interval: Duration::from_secs(1),
            differ: Duration::from_secs(5),
            pods: last.map(|table| table.viewed.pods.clone()).unwrap_or_default(),
        };
        let mut exchange = Exchange::new(config, now);
        let others = (0..nodes).filter(|other| *other != node).map(node_name).collect();
        exchange.handle(Event::Nodes(others), now, &mut Vec::new());
        Self {
            node,
            planner,
            exchange,
            reporter: Reporter::new(&name(node), HASH_KEY, WINDOW),
            startup: Startup::new(&name(node)),
            starting: BTreeSet::new(),
            view: None,
            signals: PeerSignals::new(RETURN_WINDOW),
            traffic_states: TrafficStates::default(),
            heard_at: (0..nodes).filter(|_| !booted).map(|node| (node, now)).collect(),
            unknown: (0..nodes).filter(|_| booted).collect(),
            ready: false,
            digest: 0,
            dirty: true,
            planned: Instant::ZERO,
            announced: Instant::ZERO,
            cut_off: false,
            answering: 0,
        }
    }

    pub fn receive(&mut self, datagram: &[u8], now: Instant) {
        let mut actions = Vec::new();
        self.exchange.handle(Event::Datagram { bytes: datagram.to_vec(), multicast: true }, now, &mut actions);
        self.take(actions, now);
    }

    fn take(&mut self, actions: Vec<Action>, now: Instant) -> Vec<Vec<u8>> {
        let mut sent = Vec::new();
        for action in actions {
            match action {
                Action::Send(bytes) => sent.push(bytes),
                Action::Changed(_) => self.dirty = true,
                Action::Starts { node, starts } => self.startup.reported(node.as_str(), starts, now),
                Action::Rejected(reject) => panic!("{reject} on n{}", self.node),
                Action::Stale(node) => self.signals.set_stale(node, true),
                Action::UpToDate(node) => self.signals.set_stale(node, false),
                Action::SendTo(..) => panic!("multicast reaches every node"),
                Action::Health { .. } | Action::Totals { .. } | Action::Differs { .. } | Action::Agrees(_) => {}
                Action::Unicast(..) | Action::Missing(_) | Action::NotMissing(_) => {}
            }
        }
        sent
    }

    /// `view`: `None` if the API server is not reached. Returns what the node sends.
    pub fn turn(
        &mut self,
        view: Option<&Arc<View>>,
        sights: &[Sight],
        kernel: &mut Kernel,
        listens: &dyn Fn(Target) -> bool,
        now: Instant,
    ) -> Vec<Vec<u8>> {
        let mut sent = Vec::new();
        let mut actions = Vec::new();
        self.on_signs(sights, now, &mut actions);
        sent.extend(self.take(actions, now));
        if let Some(view) = view.filter(|view| self.view.as_ref() != Some(view)) {
            self.view = Some((*view).clone());
            self.dirty = true;
        }
        if self.exchange.next_deadline().is_some_and(|due| due <= now) {
            let mut actions = Vec::new();
            self.exchange.handle(Event::Tick, now, &mut actions);
            sent.extend(self.take(actions, now));
        }
        sent.extend(self.probe(listens, now));
        if !self.exchange.all_reported(now) || self.cut_off {
            return sent;
        }
        self.signals.tick(now);
        let traffic_states = self.signals.traffic_states(|node, since| self.exchange.has_reported(node, since));
        self.dirty |= self.traffic_states != traffic_states;
        self.traffic_states = traffic_states;
        let again = self.planner.awaits_reports() && now.since(self.planned) >= Duration::from_secs(1);
        let due = self.planner.next_deadline().is_some_and(|due| due <= now);
        if let Some(view) = self.view.clone().filter(|_| self.dirty || again || due) {
            let mut actions = Vec::new();
            let viewed = self.plan(&view, kernel, now);
            self.exchange.handle(Event::Applied(viewed), now, &mut actions);
            sent.extend(self.take(actions, now));
        }
        if let Some(table) = &kernel.table
            && self.ready
            && (now.since(self.announced) >= Duration::from_secs(1) || table.digest != self.digest)
        {
            (self.announced, self.digest) = (now, table.digest);
            let flows: Vec<FlowTuple> = kernel.flows.keys().map(|flow| tuple(*flow)).collect();
            let clients = known_clients(kernel, table);
            let announced = self.reporter.announce_with(table, flows, clients, self.exchange.differs(now), now);
            assert_eq!(announced.expired, 0);
            let mut actions = Vec::new();
            self.exchange.handle(Event::Local(announced.report), now, &mut actions);
            sent.extend(self.take(actions, now));
        }
        sent
    }

    /// A pod answers at once.
    fn probe(&mut self, listens: &dyn Fn(Target) -> bool, now: Instant) -> Vec<Vec<u8>> {
        self.startup.in_rules(&self.starting, now);
        for probe in self.startup.turn(now) {
            let answer = if listens(probe.target) { Answer::Accepted } else { Answer::Refused };
            self.startup.answered(probe, answer, now);
        }
        self.dirty |= self.startup.is_due();
        let mut actions = Vec::new();
        self.exchange.handle(Event::Starts(self.startup.starts().0), now, &mut actions);
        self.take(actions, now)
    }

    /// Liveness and readiness, in short.
    fn on_signs(&mut self, sights: &[Sight], now: Instant, actions: &mut Vec<Action>) {
        let others = || sights.iter().enumerate().filter(|(other, _)| *other != self.node);
        let answering = others().filter(|(_, sight)| sight.answers).count();
        // All fell silent at once.
        let alone = answering == 0 && (self.cut_off || self.answering > 1);
        self.answering = answering;
        if alone {
            // At once: its first heartbeats after the cut must not state that it is ready.
            (self.cut_off, self.ready) = (true, false);
            return;
        }
        if core::mem::take(&mut self.cut_off) {
            self.ready = false;
            self.planner.was_away(&name(self.node));
            self.exchange.handle(Event::Rejoin, now, actions);
        }
        for (other, sight) in sights.iter().enumerate() {
            if !sight.answers {
                self.heard_at.remove(&other);
                self.unknown.insert(other);
            } else if sight.ready {
                self.heard_at.insert(other, now);
                self.unknown.remove(&other);
            } else if sight.program {
                self.unknown.remove(&other);
            }
        }
        self.heard_at.retain(|_, seen| now.since(*seen) <= Duration::from_secs(30));
        let others = || sights.iter().enumerate().filter(|(other, _)| *other != self.node);
        let names = |of: &dyn Fn(usize, &Sight) -> bool| -> BTreeSet<NodeName> {
            others().filter(|(other, sight)| of(*other, sight)).map(|(other, _)| node_name(other)).collect()
        };
        let down = names(&|_, sight| !sight.answers);
        let silent = names(&|other, _| !self.heard_at.contains_key(&other) && !self.unknown.contains(&other));
        let unknown = names(&|other, _| self.unknown.contains(&other));
        self.signals.set(down, silent, unknown, now);
    }

    /// The digests of the view.
    fn plan(&mut self, view: &View, kernel: &mut Kernel, now: Instant) -> Digests {
        let mut frontends = frontends(view);
        self.startup.follow(&mut frontends.0, false, now);
        if self.exchange.differs(now) {
            self.planner.tables_differ(now);
        }
        let reports = self.exchange.reports();
        let table = self.planner.table_of(view, &frontends, &self.traffic_states, &reports, now);
        let own = name(self.node);
        let none_started =
            |frontend: &Frontend<'_>| !frontend.pods.iter().any(|pod| pod.node == own && has_started(pod));
        let last_resort: Vec<ServiceKey> =
            frontends.0.iter().filter(|(_, frontend)| none_started(frontend)).map(|(key, _)| *key).collect();
        // In force at once, and told with the next turn.
        self.starting = self.startup.admit(&mut frontends.0);
        kernel.backends.clear();
        let mut known = BTreeSet::new();
        for (key, frontend) in &frontends.0 {
            let here = || frontend.pods.iter().filter(|pod| pod.node == own);
            known.extend(here().filter(|pod| pod.conditions.serving).map(|pod| pod.address));
            let tiers: [fn(&Pod<'_>) -> bool; 3] = [has_started, is_last_resort, is_ready];
            let of = |tier: fn(&Pod<'_>) -> bool| -> Vec<_> {
                here().filter(|pod| tier(pod)).map(|pod| pod.address).collect()
            };
            let pods = tiers.into_iter().map(of).find(|pods| !pods.is_empty()).unwrap_or_default();
            kernel.backends.insert(*key, pods);
        }
        // Entries to endpoints that are gone go with them.
        kernel.flows.retain(|_, pod| known.contains(pod));
        // The set of a pod goes with it.
        kernel.clients.retain(|_, pod| kernel.backends.values().flatten().any(|serving| serving == pod));
        let named = |key: &ServiceKey| table.services.get(key).is_some_and(|service| service.ring.nodes.contains(&own));
        kernel.passed_on = last_resort.into_iter().filter(|key| !named(key)).collect();
        (self.dirty, self.planned, self.ready) = (false, now, true);
        let viewed = table.viewed.clone();
        kernel.table = Some(table);
        viewed
    }

    pub fn save(&self, now: Instant) -> SavedRings {
        self.planner.previous_rings().save(BOOT, now)
    }
}

/// Of each service port with affinity.
fn known_clients(kernel: &Kernel, table: &Table) -> Vec<FlowTuple> {
    let ports = table.services.iter().filter(|(_, service)| service.attributes.keeps_clients());
    let ports = ports.map(|(key, _)| tuple(([0; 4], key.addr, [0; 2], key.port, key.proto)));
    ports.flat_map(|port| kernel.clients.keys().map(move |client| FlowTuple { src: *client, ..port })).collect()
}

pub fn node_name(node: usize) -> NodeName {
    NodeName::new(&name(node)).expect("a name")
}
