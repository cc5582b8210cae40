//! One loop that makes the kernel follow the view. It takes views and messages, makes the table, and hands it to workers whose
//! completions are events: the nft program (`backend/worker.rs`), the maps (`writer.rs`), conntrack (`conntrack_scan.rs`), the
//! disk (`saver.rs`). It waits for none of them: reports, rows of lost nodes and the sign of life go on. Rules are in force
//! before the maps of this node send packets to them. Restores from pinned maps and from disk, waits for a full view and for the
//! reports of the others, adds before it removes.

mod addresses;
mod converge;
mod members;
mod starts;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use ebpf_common::{Config, MAX_NODES, ServiceKey, ServiceValue};
use speaker_core::backend::{Plan, RemovalGrace, UdpPins, Uplink, lag};
use speaker_core::election::Eligible;
use speaker_core::eligibility::{self, Unowned};
use speaker_core::forwarding::diff::{Layout, MapState};
use speaker_core::forwarding::{Planner, Table, TrafficStates};
use speaker_core::name::{NodeName, Vip};
use speaker_core::reports::exchange::{self, Exchange};
use speaker_core::reports::reporter::Reporter;
use speaker_core::traffic_state::PeerSignals;
use speaker_core::view::endpoints::Reason;
use speaker_core::view::{ObjectName, View};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{debug, info, warn};

use super::attachment::{Attachment, CHECK};
use super::conntrack_scan::{self, ConntrackScan};
use super::inbox::{HostAddresses, Inbox, Message};
use super::maps::ForwardingMaps;
use super::report_socket::ReportSocket;
use super::startup_probe::StartupProbe;
use super::writer::MapWriter;
use crate::backend::Backend;
use crate::backend::arp_guard::ArpGuard;
use crate::backend::worker::{InForce, Rules};
use crate::backoff::Backoff;
use crate::health::{HealthFlags, turned};
use crate::io::udp::MulticastSocket;
use crate::io::{Mac, clock};
use crate::metrics::Metrics;
use crate::saver::Saver;
pub use members::Members;
use starts::NewPods;

/// A turn for the liveness of the loop, and for what depends on time alone.
const TURN: Duration = Duration::from_secs(1);

/// Addresses kept before the first view names the nodes.
const MAX_MACS: usize = 4 * MAX_NODES as usize;

/// What the election receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    /// VIPs that the packet path can carry, and which nodes may own them.
    pub desired: BTreeMap<Vip, Eligible>,
    /// They are of a view from disk.
    pub saved_view: bool,
    /// The packet path is attached.
    pub ready: bool,
    /// VIPs that are not served because of what they are.
    pub barred: BTreeMap<Ipv4Addr, Reason>,
    /// VIPs that are served, and that no node is to own.
    pub unowned: BTreeMap<Ipv4Addr, Unowned>,
}

/// What the thread is made of.
pub struct Sync {
    pub node: String,
    pub node_ip: Ipv4Addr,
    pub uplink: Uplink,
    pub mac: Mac,
    pub hash_key: [u64; 2],
    pub udp_silent: bool,
    /// How long the flows of a lost node wait for it.
    pub return_window: Duration,
    /// Those of adverts and flow reports: closed to all but nodes.
    pub advert_ports: BTreeSet<u16>,
    /// The cluster's id.
    pub cluster: u64,
    pub attachment: Attachment,
    pub planner: Planner,
    pub saver: Saver,
    /// Awaited if the node has booted since the last speaker.
    pub startup_probe: StartupProbe,
    /// The members of the API server endpoint; `None`: this speaker has none.
    pub members: Option<Members>,
    pub health: Arc<HealthFlags>,
    pub metrics: Arc<Metrics>,
    /// Called after a change, when the packet path follows the view.
    pub on_synced: Box<dyn Fn(Synced) + Send>,
    /// Called when the view begins to lag, or no longer does.
    pub on_lagging: Box<dyn Fn(bool) + Send>,
}

/// What the workers work with.
pub struct Tools {
    pub reporter: Reporter,
    pub flows: conntrack_scan::Source,
    pub clients: conntrack_scan::ClientSource,
    pub maps: ForwardingMaps,
    pub backend: Backend,
    /// `None`: forged ARP frames reach the kernel's neighbour table.
    pub arp_guard: Option<ArpGuard>,
}

/// What the loop receives.
pub struct Inputs {
    /// The whole view; sent only once a full one is known.
    pub view: watch::Receiver<Option<Arc<View>>>,
    pub inbox: Inbox,
    /// The socket of the flow reports.
    pub exchange: Exchange,
    pub report_udp: MulticastSocket,
}

/// Runs until every sender is gone.
pub async fn run(sync: Sync, tools: Tools, inputs: Inputs) -> Result<()> {
    let Inputs { mut view, mut inbox, exchange, report_udp } = inputs;
    let report_socket = ReportSocket::new(exchange, report_udp, sync.metrics.clone()).context("the report socket")?;
    let mut state = State::restore(sync, tools, report_socket)?;
    let [mut turn, mut check] = [TURN, CHECK].map(interval);
    for ticks in [&mut turn, &mut check] {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    loop {
        tokio::select! {
            changed = view.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let view = view.borrow_and_update().clone();
                state.on_view(view)?;
            }
            messages = inbox.recv() => {
                let Some(messages) = messages else { return Ok(()) };
                for message in messages {
                    state.on_message(message)?;
                }
            }
            due = state.report_socket.due() => { due.context("the report socket")?; state.exchange(None)?; }
            // Additions that were held back get rows.
            () = until(state.sync.planner.next_deadline()) => state.dirty = true,
            // A lost node is waited for no longer.
            () = until(state.signals.next_deadline()) => {}
            done = state.scan.done() => state.on_scan(done?)?,
            rules = state.rules.changed() => state.in_force(rules.context("the nft worker has ended")?)?,
            written = state.writer.written() => state.written(written.context("the map writer has ended")?)?,
            () = state.sync.startup_probe.next() => {}
            answered = state.new_pods.next() => state.on_probed(answered),
            woken = members::next(&mut state.sync.members) => state.on_member(woken),
            _ = check.tick() => state.check_attachment(),
            _ = turn.tick() => state.on_turn(),
            () = sleep_until(state.retry.unwrap_or_else(Instant::now)), if state.retry.is_some() => {}
        }
        turned(&state.sync.health.dataplane_turned, clock::now());
        state.turn_new_pods()?;
        state.turn_members()?;
        state.converge()?;
    }
}

async fn until(due: Option<speaker_core::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep(due.since(clock::now())).await,
        None => std::future::pending().await,
    }
}

struct State {
    sync: Sync,
    report_socket: ReportSocket,
    rules: Rules,
    /// What the rules do now.
    in_force: InForce,
    writer: MapWriter,
    layout: Layout,
    have: MapState,
    config: Config,
    view: Option<Arc<View>>,
    viewed: Option<Instant>,
    signals: PeerSignals,
    macs: BTreeMap<Ipv4Addr, Mac>,
    signed_macs: BTreeMap<Ipv4Addr, Mac>,
    arp_guard: Option<ArpGuard>,
    host: HostAddresses,
    planned: Planned,
    /// As it was written last.
    table: Arc<Table>,
    /// The same as far as rules are in force for it: the content of the maps.
    shown: Arc<Table>,
    /// The view from which it was made is one from disk.
    saved_view: bool,
    /// What is being written.
    writing: Option<Writing>,
    scan: ConntrackScan,
    /// What the disk has or will have: the generation of the previous rings, and the ready nodes.
    saved: Option<(u64, BTreeSet<String>)>,
    differing: BTreeSet<NodeName>,
    udp_pins: UdpPins,
    removal_grace: RemovalGrace,
    new_pods: NewPods,
    notified: Option<Synced>,
    started: bool,
    /// The table is to be made again.
    dirty: bool,
    /// The maps are to be compared with the table again.
    follow: bool,
    /// When writes that were refused are tried again.
    retry: Option<Instant>,
    backoff: Backoff,
    refused: usize,
    /// Services with source ranges that the maps have no slot for, as they were logged.
    beyond_restricted: BTreeSet<ObjectName>,
    /// Service ports with more pods than their rules have.
    crowded: BTreeSet<ServiceKey>,
}

/// The newest table.
#[derive(Default)]
struct Planned {
    table: Arc<Table>,
    /// Service ports with pods on this node, and these.
    services: lag::Pods,
    /// Those among them whose pods on this node all end or have not started ([`speaker_core::backend::LocalPods::last_resort`]).
    ending: BTreeSet<ServiceKey>,
    traffic_states: TrafficStates,
    /// The node translates for all its own clients.
    no_kube_proxy: bool,
    /// It was made from a view from disk.
    saved_view: bool,
    /// Until the nft worker has it.
    plan: Option<Plan>,
}

/// The content of the maps once the writer is done.
struct Writing {
    want: MapState,
    config: Config,
    table: Arc<Table>,
    shown: Arc<Table>,
    saved_view: bool,
    /// Something was left out: what this write removes may make room for it.
    left_out: bool,
    since: Instant,
}

impl State {
    fn restore(mut sync: Sync, tools: Tools, report_socket: ReportSocket) -> Result<Self> {
        let Tools { reporter, flows, clients, maps, backend, arp_guard } = tools;
        let have = maps.restore().context("read the pinned maps")?;
        info!(
            vips = have.vips.len(),
            services = have.services.len(),
            nodes = have.nodes.len(),
            "state restored from pinned maps"
        );
        // A speaker that has just started cannot know whether it was missed.
        sync.planner.was_away(&sync.node);
        sync.attachment.read_first();
        sync.health.set_of_host_speaker(sync.attachment.of_first().clone());
        let macs = have.nodes.values().map(|node| (Ipv4Addr::from(node.addr), Mac(node.mac)));
        let in_force = left_in_force(&have);
        let (metrics, health) = (sync.metrics.clone(), sync.health.clone());
        let config = maps.config()?;
        Ok(Self {
            layout: Layout::restore(&have),
            macs: macs.filter(|(_, mac)| *mac != Mac::default()).collect(),
            signed_macs: BTreeMap::new(),
            arp_guard,
            have,
            rules: Rules::start(backend, in_force.clone(), metrics, health).context("start the nft worker")?,
            in_force,
            config,
            writer: MapWriter::start(maps).context("start the map writer")?,
            view: None,
            viewed: None,
            signals: PeerSignals::new(sync.return_window),
            host: HostAddresses::default(),
            planned: Planned::default(),
            table: Arc::default(),
            shown: Arc::default(),
            saved_view: false,
            writing: None,
            scan: ConntrackScan::new(flows, clients, reporter, clock::now()),
            saved: None,
            differing: BTreeSet::new(),
            udp_pins: UdpPins::default(),
            removal_grace: RemovalGrace::default(),
            new_pods: NewPods::new(&sync.node),
            notified: None,
            started: false,
            dirty: false,
            follow: false,
            retry: None,
            backoff: Backoff::default(),
            refused: 0,
            beyond_restricted: BTreeSet::new(),
            crowded: BTreeSet::new(),
            sync,
            report_socket,
        })
    }

    fn on_view(&mut self, view: Option<Arc<View>>) -> Result<()> {
        let Some(view) = view else { return Ok(()) };
        let others = view.nodes().iter().filter(|(name, _)| **name != self.sync.node);
        let others: BTreeMap<NodeName, Ipv4Addr> =
            others.filter_map(|(name, node)| Some((NodeName::new(name)?, node.address))).collect();
        let (names, addresses) = (others.keys().cloned().collect(), reached(&view, others));
        self.report_socket.set_addresses(addresses);
        self.follow_addresses(&view);
        self.udp_pins.uncertainty.set_node(view.nodes().get(&self.sync.node), clock::now());
        let prefers_pods = eligibility::prefers_pods(&view);
        self.view = Some(view);
        self.viewed.get_or_insert_with(Instant::now);
        self.dirty = true;
        self.guard_arp();
        // Where pods are counts at once, however far the maps are behind.
        if prefers_pods {
            self.notify_election();
        }
        self.exchange(Some(exchange::Event::Nodes(names)))
    }

    fn on_message(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Unavailable { down, silent, unknown } => self.signals.set(down, silent, unknown, clock::now()),
            Message::WasAway => {
                self.sync.planner.was_away(&self.sync.node);
                self.dirty = true;
                self.exchange(Some(exchange::Event::Rejoin))?;
            }
            Message::SignedMac { ip, mac } => self.set_signed_mac(ip, mac),
            Message::Neighbour { ip, mac } if self.signed_macs.get(&ip).is_some_and(|signed| *signed != mac) => {}
            Message::Neighbour { ip, mac } => {
                let concerns =
                    self.view.as_ref().is_some_and(|view| view.nodes().values().any(|node| node.address == ip));
                if self.macs.len() < MAX_MACS && self.macs.insert(ip, mac) != Some(mac) {
                    self.dirty |= concerns;
                }
                // The map holds nodes only; before the first view any address may be one.
                if self.view.is_some() && !concerns {
                    self.macs.remove(&ip);
                }
            }
            Message::Incarnations(epochs) => self.exchange(Some(exchange::Event::Incarnations(epochs)))?,
            Message::Unicast(nodes) => self.exchange(Some(exchange::Event::Unicast(nodes)))?,
            Message::Keys(keys) => self.exchange(Some(exchange::Event::Keys(keys)))?,
            Message::OwnMac(mac) => self.set_own_mac(mac),
            Message::HostAddresses(host) => {
                self.dirty |= self.host != host;
                self.host = host;
            }
        }
        Ok(())
    }

    /// Gives the report machine a turn, and carries out its actions.
    fn exchange(&mut self, event: Option<exchange::Event>) -> Result<()> {
        use exchange::Action;
        for action in self.report_socket.turn(event).context("the report socket")? {
            match action {
                Action::Changed(node) => {
                    debug!(%node, "flow report of the node changed");
                    self.dirty = true;
                }
                Action::Starts { node, starts } => {
                    self.new_pods.startup.reported(node.as_str(), starts, clock::now());
                }
                Action::Health { node, report } => self.on_member_report(&node, report),
                Action::Totals { node, totals } => self.on_member_totals(&node, totals),
                Action::Rejected(reason) => {
                    self.sync.metrics.count_rejected(reason.label(), "flow report");
                }
                Action::Differs { node, since } => {
                    let seconds = clock::now().since(since).as_secs();
                    warn!(%node, seconds, "forwarding table digest mismatch with peer; one of the two views lags");
                    self.differing.insert(node);
                }
                Action::Agrees(node) => {
                    info!(%node, "forwarding table digest matches peer again");
                    self.differing.remove(&node);
                }
                Action::Stale(node) => {
                    warn!(%node, "view of the node is stale; node gets no new flows");
                    self.signals.set_stale(node, true);
                }
                Action::UpToDate(node) => {
                    info!(%node, "view of the node is up to date again");
                    self.signals.set_stale(node, false);
                }
                Action::Unicast(node, begins) => info!(%node, begins, "flow reports go to the node by unicast too"),
                Action::Missing(node) => {
                    warn!(%node, "reports_missing: the node's adverts arrive, but none of its flow reports; check for a filter on UDP 7481");
                }
                Action::NotMissing(node) => {
                    info!(%node, "flow reports of the node arrive, or its adverts do not either")
                }
                // Sent already.
                Action::Send(_) | Action::SendTo(..) => {}
            }
        }
        let (by_unicast, missing) = self.report_socket.exchange.ways();
        self.sync.metrics.reports_by_unicast.set(by_unicast as i64);
        self.sync.metrics.reports_missing.set(missing as i64);
        self.sync.health.reports_missing.store(missing > 0, Ordering::Relaxed);
        self.sync.metrics.table_differs.set(self.differing.len() as i64);
        self.sync.metrics.nodes_stale.set(self.signals.stale() as i64);
        let now = clock::now();
        let lagging = self.report_socket.exchange.is_lagging(now);
        if self.udp_pins.uncertainty.set_lagging(lagging, now) {
            (self.sync.on_lagging)(lagging);
        }
        self.new_pods.startup.set_lagging(lagging, now);
        Ok(())
    }
}

/// Where reports may go by unicast.
fn reached(view: &View, mut others: BTreeMap<NodeName, Ipv4Addr>) -> BTreeMap<NodeName, Ipv4Addr> {
    let has_speaker =
        |name: &NodeName| view.nodes().get(name.as_str()).is_some_and(|node| !view.lacks_speaker(name.as_str(), node));
    others.retain(|name, _| has_speaker(name));
    others
}

/// The rules of an earlier speaker, by what it wrote to the maps when they were in force.
fn left_in_force(have: &MapState) -> InForce {
    let served = have.services.iter().filter(|(_, value)| value.flags & ServiceValue::SERVED_HERE != 0);
    let peers = have.nodes.iter().filter_map(|(slot, node)| Some((u16::try_from(*slot).ok()?, node.addr.into())));
    let services = served.map(|(key, _)| (*key, Box::default())).collect();
    InForce { services: Arc::new(services), peers: peers.collect(), ..InForce::default() }
}

#[cfg(test)]
mod tests;
