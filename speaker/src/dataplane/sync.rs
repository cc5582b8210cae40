//! One thread that makes the kernel say what the view says: nftables first (where packets end), then the maps (which send
//! them there), then the program. Restores from pinned maps and from disk, waits for a full view and for the others' word, adds
//! before it removes.

mod addresses;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use ebpf_common::{ABI_VERSION, Config, MAX_NODES, ServiceKey};
use speaker_core::backend::{Lingering, Plan, Spared, Uplink};
use speaker_core::election::Eligible;
use speaker_core::eligibility;
use speaker_core::forwarding::diff::{Layout, MapState, diff};
use speaker_core::forwarding::{Availability, Planner, Table};
use speaker_core::holdings::exchange::{self, Exchange};
use speaker_core::holdings::holder::Holder;
use speaker_core::name::{NodeName, Vip};
use speaker_core::standing::Standing;
use speaker_core::view::View;
use speaker_core::view::endpoints::frontends;
use speaker_core::wire::advert::Keyring;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{debug, error, info, warn};

use super::arrivals::{Arrivals, Target};
use super::attachment::{Attachment, LOOK};
use super::flows::Look;
use super::maps::ForwardingMaps;
use super::talk::Talk;
use crate::backend::{Backend, Outcome};
use crate::io::udp::MulticastSocket;
use crate::io::{Mac, clock, memory};
use crate::metrics::Metrics;
use crate::shared::{Shared, turned};
use crate::state::{Remembered, StateDir};

/// After a failed change.
const RETRY: Duration = Duration::from_millis(200);
/// Looks whether somebody else changed what is ours, should the kernel not have said so.
const AUDIT: Duration = Duration::from_secs(5);
/// Says that the loop turns; and what hangs on time alone.
const TURN: Duration = Duration::from_secs(1);
/// How long after the first full view the other nodes have to speak, before this one goes on without their word.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long after it the pods of a node that has booted have to give a sign of life, or to be called unready.
const PODS_PATIENCE: Duration = Duration::from_secs(10);

/// Writes of a change that leaves much memory free.
const LARGE: usize = 256;

/// Addresses remembered before the first view says which of them are nodes.
const MAX_MACS: usize = 4 * MAX_NODES as usize;

#[derive(Debug)]
pub enum Message {
    /// The whole view; sent only once a full one is known.
    View(Arc<View>),
    /// Nodes that get no rows.
    Unavailable {
        /// Their kernels give no sign of life.
        down: BTreeSet<NodeName>,
        /// Their speakers have been silent for long.
        absent: BTreeSet<NodeName>,
        /// No speaker has been ready there since they were new or down.
        blank: BTreeSet<NodeName>,
    },
    /// This node was cut off: others have served its rows meanwhile.
    WasAway,
    Neighbour {
        ip: Ipv4Addr,
        mac: Mac,
    },
    /// A node's MAC address under its signature, or no longer: it outranks what the kernel's neighbour table says.
    SignedMac {
        ip: Ipv4Addr,
        mac: Option<Mac>,
    },
    /// The uplink's own address changed.
    OwnMac(Mac),
    /// What this host is itself, and how it leaves the segment.
    HostAddresses(HostAddresses),
    /// Reports are signed and verified with these from now on.
    Keys(Keyring),
}

/// Addresses that no VIP may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostAddresses {
    /// Of this host, on any device.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Of default routes over the uplink.
    pub gateways: BTreeSet<Ipv4Addr>,
}

/// What the election is told.
#[derive(Debug)]
pub struct Synced {
    /// VIPs that the packet path can carry, and who may own them.
    pub desired: BTreeMap<Vip, Eligible>,
    /// The packet path is attached.
    pub ready: bool,
}

/// What the thread is made of.
pub struct Sync {
    pub node: String,
    pub node_ip: Ipv4Addr,
    pub uplink: Uplink,
    pub mac: Mac,
    pub hash_key: [u64; 2],
    pub udp_silent: bool,
    pub maps: ForwardingMaps,
    pub attachment: Attachment,
    pub backend: Backend,
    pub planner: Planner,
    pub holder: Holder,
    pub disk: StateDir,
    /// Awaited if the node has booted since the last speaker.
    pub arrivals: Arrivals,
    pub shared: Arc<Shared>,
    pub metrics: Arc<Metrics>,
    /// Called after every change, when the packet path is as the view says.
    pub on_synced: Box<dyn Fn(Synced) + Send>,
    /// Called when it comes to be in doubt, or not any more, whether this node still hears the API server.
    pub on_doubt: Box<dyn Fn(bool) + Send>,
}

/// Runs until every sender is gone. `exchange`, `holdings`: where nodes tell each other what they hold.
pub async fn run(
    sync: Sync,
    exchange: Exchange,
    holdings: MulticastSocket,
    mut messages: UnboundedReceiver<Message>,
) -> Result<()> {
    let talk = Talk::new(exchange, holdings, sync.metrics.clone()).context("the socket of the holdings")?;
    let mut state = State::restore(sync, talk)?;
    let [mut audit, mut turn, mut look] = [AUDIT, TURN, LOOK].map(interval);
    for ticks in [&mut audit, &mut turn, &mut look] {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let mut retry = Instant::now();
    loop {
        tokio::select! {
            message = messages.recv() => {
                let Some(message) = message else { return Ok(()) };
                state.take(message)?;
                // Everything that waits is one change.
                while let Ok(message) = messages.try_recv() {
                    state.take(message)?;
                }
            }
            due = state.talk.due() => { due.context("the socket of the holdings")?; state.exchange(None)?; }
            () = batch_due(&state.sync.planner) => state.dirty = true,
            looked = state.look.done() => state.looked(looked)?,
            () = state.sync.backend.changed() => state.audit().await,
            () = state.sync.arrivals.next() => {}
            _ = look.tick() => state.keep_attached(),
            _ = audit.tick() => { state.audit().await; state.count().await; }
            _ = turn.tick() => state.dirty |= state.sync.planner.unsettled() || state.lingering.is_due(clock::now()),
            () = sleep_until(retry), if state.failed => {}
        }
        turned(&state.sync.shared.dataplane_turned, clock::now());
        match state.converge().await {
            Ok(false) => {}
            Ok(true) => state.in_force()?,
            Err(error) => {
                state.sync.metrics.sync_errors.inc();
                state.failed = true;
                retry = Instant::now() + RETRY;
                error!(error = format!("{error:#}"), "packet path not changed, trying again");
            }
        }
    }
}

/// When additions that were held back get rows.
async fn batch_due(planner: &Planner) {
    match planner.next_deadline() {
        Some(due) => tokio::time::sleep(due.since(clock::now())).await,
        None => std::future::pending().await,
    }
}

struct State {
    sync: Sync,
    talk: Talk,
    layout: Layout,
    have: MapState,
    config: Config,
    view: Option<Arc<View>>,
    viewed: Option<Instant>,
    standing: Standing,
    macs: BTreeMap<Ipv4Addr, Mac>,
    signed_macs: BTreeMap<Ipv4Addr, Mac>,
    host: HostAddresses,
    /// As it was made last.
    table: Table,
    look: Look,
    /// What the disk holds: the generation of the history, and who was present.
    saved: Option<(u64, BTreeSet<String>)>,
    differing: BTreeSet<NodeName>,
    /// As of the table that was made last.
    available: Availability,
    spared: Spared,
    lingering: Lingering,
    started: bool,
    dirty: bool,
    failed: bool,
    refused: usize,
}

impl State {
    fn restore(mut sync: Sync, talk: Talk) -> Result<Self> {
        let have = sync.maps.restore().context("read the pinned maps")?;
        info!(
            vips = have.vips.len(),
            services = have.services.len(),
            nodes = have.nodes.len(),
            "restored from pinned maps"
        );
        // Whoever has just started cannot know whether it was missed.
        sync.planner.was_away(&sync.node);
        let macs = have.nodes.values().map(|node| (Ipv4Addr::from(node.addr), Mac(node.mac)));
        Ok(Self {
            layout: Layout::restore(&have),
            macs: macs.filter(|(_, mac)| *mac != Mac::default()).collect(),
            signed_macs: BTreeMap::new(),
            have,
            config: sync.maps.config()?,
            view: None,
            viewed: None,
            standing: Standing::default(),
            host: HostAddresses::default(),
            table: Table::default(),
            look: Look::new(clock::now()),
            saved: None,
            differing: BTreeSet::new(),
            available: Availability::default(),
            spared: Spared::default(),
            lingering: Lingering::default(),
            started: false,
            dirty: false,
            failed: false,
            refused: 0,
            sync,
            talk,
        })
    }

    fn take(&mut self, message: Message) -> Result<()> {
        match message {
            Message::View(view) => {
                let others = view.nodes().keys().filter(|name| **name != self.sync.node);
                let others = others.filter_map(|name| NodeName::new(name)).collect();
                self.follow_addresses(&view);
                self.spared.doubt.see_node(view.nodes().get(&self.sync.node), clock::now());
                self.view = Some(view);
                self.viewed.get_or_insert_with(Instant::now);
                self.dirty = true;
                self.exchange(Some(exchange::Event::Nodes(others)))?;
            }
            Message::Unavailable { down, absent, blank } => self.standing.set(down, absent, blank, clock::now()),
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
                // The map holds nodes only; before the first view anybody may be one.
                if self.view.is_some() && !concerns {
                    self.macs.remove(&ip);
                }
            }
            Message::Keys(keys) => self.exchange(Some(exchange::Event::Keys(keys)))?,
            Message::OwnMac(mac) => self.set_own_mac(mac),
            Message::HostAddresses(host) => {
                self.dirty |= self.host != host;
                self.host = host;
            }
        }
        Ok(())
    }

    /// Lets the machine of the holdings go on, and does what follows.
    fn exchange(&mut self, event: Option<exchange::Event>) -> Result<()> {
        use exchange::Action;
        for action in self.talk.turn(event).context("the socket of the holdings")? {
            match action {
                Action::Changed(node) => {
                    debug!(%node, "holds other rows than before");
                    self.dirty = true;
                }
                Action::Rejected(reason) => {
                    self.sync.metrics.adverts_rejected.with_label_values(&[reason.label()]).inc();
                }
                Action::Differs { node, since } => {
                    let seconds = clock::now().since(since).as_secs();
                    warn!(%node, seconds, "its table differs from ours: one of us does not hear the API server");
                    self.differing.insert(node);
                }
                Action::Agrees(node) => {
                    info!(%node, "its table agrees with ours again");
                    self.differing.remove(&node);
                }
                Action::Stale(node) => {
                    warn!(%node, "goes by an old view of the cluster: no new flows for it");
                    self.standing.set_stale(node, true);
                }
                Action::Fresh(node) => {
                    info!(%node, "goes by the present view of the cluster again");
                    self.standing.set_stale(node, false);
                }
                // Sent already.
                Action::Send(_) => {}
            }
        }
        self.sync.metrics.table_differs.set(self.differing.len() as i64);
        self.sync.metrics.nodes_stale.set(self.standing.stale() as i64);
        let now = clock::now();
        let in_doubt = self.talk.exchange.in_doubt(now);
        if self.spared.doubt.see_view(in_doubt, now) {
            (self.sync.on_doubt)(in_doubt);
        }
        Ok(())
    }

    /// Whether anything was done.
    async fn converge(&mut self) -> Result<bool> {
        let now = clock::now();
        self.begin_look();
        let Some(view) = self.view.clone().filter(|view| self.may_start(view)) else { return Ok(false) };
        let available = self.available();
        if !self.dirty && !self.failed && available == self.available {
            return Ok(false);
        }
        if self.talk.exchange.differs(now) {
            self.sync.planner.tables_differ(now);
        }
        let words = self.talk.exchange.words();
        let frontends = frontends(&view);
        let table = self.sync.planner.table_of(&view, &frontends, &available, &words, now);
        self.report(&table);
        let plan = Plan::of(&view, &frontends.0, &self.sync.node, self.sync.uplink.clone());
        drop(frontends);
        let writes = self.apply(&view, &table, plan).await?;
        if self.table.digest != table.digest {
            self.look.changed(now);
        }
        let alternates = table.services.values().filter_map(|service| service.alternates.as_ref());
        self.sync.metrics.row_alternates_overflow.set(alternates.map(|all| i64::from(all.overflow)).sum());
        self.table = table;
        self.available = available;
        self.dirty = false;
        self.failed = false;
        self.remember(&view);
        self.exchange(Some(exchange::Event::View(self.table.viewed.clone())))?;
        if writes >= LARGE {
            memory::give_back();
        }
        debug!(writes, took = ?clock::now().since(now), availability = ?self.available, "packet path as the view says");
        Ok(true)
    }

    /// The maps say what the view says. An uplink that cannot be attached to at the start ends the process, which says why.
    fn in_force(&mut self) -> Result<()> {
        if !std::mem::replace(&mut self.started, true) {
            self.sync.attachment.begin()?;
            self.sync.arrivals = Arrivals::NotAwaited;
        }
        self.sync.metrics.syncs.inc();
        self.sync.shared.synced.store(true, Ordering::Relaxed);
        self.tell();
        Ok(())
    }

    /// The first table moves rows in one step from what the kernel has to what is true now, so it waits until this node knows who is
    /// there and what they hold. Meanwhile the kernel goes on as it was left.
    fn may_start(&mut self, view: &View) -> bool {
        let Some(viewed) = self.viewed else { return false };
        if self.started {
            return true;
        }
        let all_heard = self.all_up(view) && self.talk.exchange.learned(clock::now());
        // Asked in any case: they need their time.
        let services = Plan::new(view, &self.sync.node, self.sync.uplink.clone()).services;
        let targets = services.into_iter().flat_map(|(key, local)| {
            let tcp = i32::from(key.proto) == libc::IPPROTO_TCP;
            local.pods.into_iter().map(move |(address, port)| Target { address, port, tcp })
        });
        let missing = self.sync.arrivals.missing(targets);
        let waited = viewed.elapsed();
        let may_start = (all_heard || waited >= PATIENCE) && (missing.is_empty() || waited >= PODS_PATIENCE);
        if may_start && !missing.is_empty() {
            warn!(pods = ?missing, "no sign of life from these since the boot: new flows go to them all the same");
        }
        may_start
    }

    fn available(&self) -> Availability {
        self.standing.available(|node, since| self.talk.exchange.has_spoken(node, since))
    }

    fn all_up(&self, view: &View) -> bool {
        let available = self.available();
        view.members().all(|(node, _)| available.is_up(node))
    }

    /// nftables first, then the maps.
    async fn apply(&mut self, view: &View, table: &Table, plan: Plan) -> Result<usize> {
        let now = clock::now();
        let plan = self.lingering.complete(plan, now);
        let served: BTreeSet<ServiceKey> = plan.services.keys().copied().collect();
        let want = self.want(view, table, &served);
        let peers = self.peers(table);
        let plan = Plan { udp_silent: self.sync.udp_silent, ..plan.with_peers(peers) };
        let plan = self.spared.complete(plan, now);
        self.sync.metrics.flows_spared.set(plan.spared.len() as i64);
        let outcome = self.sync.backend.sync(plan).await.context("change the nftables table")?;
        if outcome != Outcome::Unchanged {
            debug!(?outcome, "nftables");
        }
        self.apply_config()?;
        let ops = diff(&self.have, &want);
        self.sync.maps.execute(&ops, |op| self.have.apply(op))?;
        // The same contents, and the rings shared with the planner instead of held twice.
        self.have = want;
        Ok(ops.len())
    }

    fn want(&mut self, view: &View, table: &Table, served: &BTreeSet<ServiceKey>) -> MapState {
        let nodes = view.nodes().iter();
        let mut macs: BTreeMap<String, [u8; 6]> =
            nodes.filter_map(|(name, node)| Some((name.clone(), self.macs.get(&node.address)?.0))).collect();
        macs.insert(self.sync.node.clone(), self.sync.mac.0);
        let (want, exhausted) = self.layout.want(table, &self.have, &macs, &self.sync.node, served);
        for error in exhausted {
            warn!(%error, "left out");
            self.sync.metrics.limits_reached.with_label_values(&[error.what]).inc();
        }
        want
    }

    /// Who a packet can be handed to, by the slot in its mark.
    fn peers(&self, table: &Table) -> BTreeMap<u16, Ipv4Addr> {
        let others = table.nodes.values().filter(|address| **address != self.sync.node_ip);
        others.filter_map(|address| Some((u16::try_from(self.layout.node_slot(*address)?).ok()?, *address))).collect()
    }

    fn apply_config(&mut self) -> Result<()> {
        let config = Config {
            hash_key: self.sync.hash_key,
            mac: self.sync.mac.0,
            flags: if self.sync.udp_silent { Config::UDP_SILENT } else { 0 },
            // Not in the view yet: 0, every VIP packet passes up the stack.
            self_slot: self.layout.node_slot(self.sync.node_ip).unwrap_or(0),
            abi: ABI_VERSION,
        };
        if config != self.config {
            self.sync.maps.set_config(config)?;
            self.config = config;
        }
        Ok(())
    }

    /// For the speaker after this one.
    fn remember(&mut self, view: &View) {
        let is_present = |node: &&String| NodeName::new(node).is_some_and(|node| self.standing.is_present(&node));
        let present: BTreeSet<String> = view.nodes().keys().filter(is_present).cloned().collect();
        let history = self.sync.planner.history();
        let state = (history.generation(), present);
        if self.saved.as_ref() == Some(&state) {
            return;
        }
        let history = history.save(&clock::boot_id(), clock::now());
        match self.sync.disk.save_forwarding(&Remembered { history, present: state.1.clone() }) {
            Ok(()) => self.saved = Some(state),
            Err(error) => warn!(error = format!("{error:#}"), "former rings not saved"),
        }
    }

    /// Tells the election what it may do.
    fn tell(&self) {
        let attached = self.sync.attachment.is_attached();
        self.sync.shared.attached.store(attached, Ordering::Relaxed);
        let Some(view) = &self.view else { return };
        let eligible = eligibility::candidates(view);
        // An owner whose packet path is detached is not ready, and hands over; of its carrier the election hears by itself.
        let desired = eligibility::ownable(&self.table).map(|vip| (Vip(vip), eligible.clone())).collect();
        // A node whose object was deleted hands over, and serves the flows that it has.
        let member = view.is_member(&self.sync.node);
        (self.sync.on_synced)(Synced { desired, ready: attached && member });
    }

    fn report(&mut self, table: &Table) {
        if table.refused.len() != self.refused {
            for refusal in &table.refused {
                warn!(vip = %refusal.vip, reason = refusal.reason.label(), "left out of the table");
            }
            self.refused = table.refused.len();
        }
    }
}
