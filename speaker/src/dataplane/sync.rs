//! One thread that makes the kernel say what the view says: nftables first (where packets end), then the maps (which send
//! them there). Restores from pinned maps, waits for a full view, adds before it removes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use ebpf_common::{ABI_VERSION, Config, MAX_NODES};
use speaker_core::backend::{Plan, Uplink};
use speaker_core::eligibility::{self, Dataplane};
use speaker_core::forwarding::diff::{Layout, MapState, diff};
use speaker_core::forwarding::history::History;
use speaker_core::forwarding::{Availability, Planner, Table};
use speaker_core::holdings::Words;
use speaker_core::view::View;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{debug, error, info, warn};

use super::maps::ForwardingMaps;
use crate::backend::{Backend, Outcome};
use crate::io::{Mac, clock};
use crate::metrics::Metrics;
use crate::shared::{Shared, turned};

/// After a failed change.
const RETRY: Duration = Duration::from_millis(200);
/// Looks whether somebody else changed what is ours. Costs one run of nft each.
const AUDIT: Duration = Duration::from_secs(5);
/// For how long former primaries may be asked for flows.
const DRAIN_WINDOW: Duration = Duration::from_secs(24 * 3600);
/// Says that the loop turns.
const TURN: Duration = Duration::from_secs(1);

/// Addresses remembered before the first view says which of them are nodes.
const MAX_MACS: usize = 4 * MAX_NODES as usize;

#[derive(Debug)]
pub enum Message {
    /// The whole view; sent only once a full one is known.
    View(Arc<View>),
    /// Nodes that get no rows.
    Unavailable {
        /// Their kernels give no sign of life.
        down: BTreeSet<String>,
        /// Their speakers have not said that they are ready.
        absent: BTreeSet<String>,
    },
    /// This node was cut off: others have served its rows meanwhile.
    WasAway,
    Neighbour {
        ip: Ipv4Addr,
        mac: Mac,
    },
    /// The uplink's own address changed.
    OwnMac(Mac),
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
    pub backend: Backend,
    pub shared: Arc<Shared>,
    pub metrics: Arc<Metrics>,
    /// Called with the VIPs that this node could own, after the packet path can carry them.
    pub on_synced: Box<dyn Fn(BTreeSet<Ipv4Addr>) + Send>,
}

/// Runs until every sender is gone.
pub async fn run(sync: Sync, mut messages: UnboundedReceiver<Message>) -> Result<()> {
    let mut state = State::restore(sync)?;
    let mut audit = interval(AUDIT);
    let mut turn = interval(TURN);
    audit.set_missed_tick_behavior(MissedTickBehavior::Delay);
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut retry = Instant::now();
    loop {
        tokio::select! {
            message = messages.recv() => {
                let Some(message) = message else { return Ok(()) };
                state.take(message);
                // Everything that waits is one change.
                while let Ok(message) = messages.try_recv() {
                    state.take(message);
                }
            }
            _ = audit.tick() => state.audit().await,
            _ = turn.tick() => {}
            () = sleep_until(retry), if state.failed => {}
        }
        turned(&state.sync.shared.dataplane_turned, clock::now());
        if let Err(error) = state.converge().await {
            state.sync.metrics.sync_errors.inc();
            state.failed = true;
            retry = Instant::now() + RETRY;
            error!(error = format!("{error:#}"), "packet path not changed, trying again");
        }
    }
}

struct State {
    sync: Sync,
    planner: Planner,
    layout: Layout,
    have: MapState,
    config: Config,
    view: Option<Arc<View>>,
    down: BTreeSet<String>,
    absent: BTreeSet<String>,
    macs: BTreeMap<Ipv4Addr, Mac>,
    dirty: bool,
    failed: bool,
    refused: usize,
}

impl State {
    fn restore(sync: Sync) -> Result<Self> {
        let have = sync.maps.restore().context("read the pinned maps")?;
        info!(
            vips = have.vips.len(),
            services = have.services.len(),
            nodes = have.nodes.len(),
            "restored from pinned maps"
        );
        let macs = have.nodes.values().map(|node| (Ipv4Addr::from(node.addr), Mac(node.mac)));
        Ok(Self {
            planner: Planner::new(sync.hash_key, History::new(DRAIN_WINDOW)),
            layout: Layout::restore(&have),
            macs: macs.filter(|(_, mac)| *mac != Mac::default()).collect(),
            have,
            config: sync.maps.config()?,
            view: None,
            down: BTreeSet::new(),
            absent: BTreeSet::new(),
            dirty: false,
            failed: false,
            refused: 0,
            sync,
        })
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::View(view) => {
                self.view = Some(view);
                self.dirty = true;
            }
            Message::Unavailable { down, absent } => {
                self.dirty |= self.down != down || self.absent != absent;
                (self.down, self.absent) = (down, absent);
            }
            Message::WasAway => {}
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
            Message::OwnMac(mac) => {
                self.dirty |= self.sync.mac != mac;
                self.sync.mac = mac;
            }
        }
    }

    async fn audit(&mut self) {
        match self.sync.backend.audit().await {
            Ok(false) => {}
            Ok(true) => {
                warn!("somebody else changed our nftables table: put right");
                self.sync.metrics.repairs.inc();
            }
            Err(error) => warn!(cause = error.label(), %error, "the nftables table was not checked"),
        }
        match self.sync.backend.counters().await {
            Ok(counters) => {
                self.sync.metrics.set_guard(counters.iter().map(|(name, counter)| (*name, counter.packets)))
            }
            Err(error) => debug!(%error, "the guard's counters were not read"),
        }
    }

    async fn converge(&mut self) -> Result<()> {
        let Some(view) = self.view.clone() else { return Ok(()) };
        if !self.dirty && !self.failed {
            return Ok(());
        }
        let started = clock::now();
        let availability = Availability { down: self.down.clone(), absent: self.absent.clone() };
        let table = self.planner.table(&view, &availability, &Words::new(), started);
        self.report(&table);
        self.apply_plan(&view).await?;
        let writes = self.apply_maps(&view, &table)?;
        self.dirty = false;
        self.failed = false;
        self.sync.metrics.syncs.inc();
        self.sync.shared.synced.store(true, Ordering::Relaxed);
        (self.sync.on_synced)(self.ownable(&table));
        debug!(writes, took = ?clock::now().since(started), down = ?self.down, "packet path as the view says");
        Ok(())
    }

    async fn apply_plan(&mut self, view: &View) -> Result<()> {
        let plan = Plan::new(view, &self.sync.node, self.sync.uplink.clone());
        let outcome = self.sync.backend.sync(plan).await.context("change the nftables table")?;
        if outcome != Outcome::Unchanged {
            debug!(?outcome, "nftables");
        }
        Ok(())
    }

    fn apply_maps(&mut self, view: &View, table: &Table) -> Result<usize> {
        let nodes = view.nodes().iter();
        let mut macs: BTreeMap<String, [u8; 6]> =
            nodes.filter_map(|(name, node)| Some((name.clone(), self.macs.get(&node.address)?.0))).collect();
        macs.insert(self.sync.node.clone(), self.sync.mac.0);
        let (want, exhausted) = self.layout.want(table, &self.have, &macs, &self.sync.node, &BTreeSet::new());
        for error in exhausted {
            warn!(%error, "left out");
            self.sync.metrics.limits_reached.with_label_values(&[error.what]).inc();
        }
        self.apply_config()?;
        let ops = diff(&self.have, &want);
        self.sync.maps.execute(&ops, |op| self.have.apply(op))?;
        // The same contents, and the rings shared with the planner instead of held twice.
        self.have = want;
        Ok(ops.len())
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

    fn ownable(&self, table: &Table) -> BTreeSet<Ipv4Addr> {
        let shared = &self.sync.shared;
        let dataplane = Dataplane {
            attached: shared.attached.load(Ordering::Relaxed),
            synced: true,
            // Carrier is the election's own input: it acts on a loss at once and without this detour.
            carrier: true,
        };
        let may_hold = |vip: &&Ipv4Addr| match eligibility::may_hold(table, **vip, dataplane) {
            Ok(()) => true,
            Err(reason) => {
                debug!(%vip, reason = reason.label(), "not eligible");
                false
            }
        };
        table.vips.iter().filter(may_hold).copied().collect()
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
