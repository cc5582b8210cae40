//! One loop that makes the kernel say what the view says. It takes what it is told, makes the table, and hands it to workers whose completions are
//! events: the nft program (`backend/worker.rs`), the maps (`writer.rs`), conntrack (`flows.rs`), the disk (`saver.rs`). It waits for none
//! of them: reports, rows of lost nodes and the sign of life go on. Rules are in force before the maps of this node send packets to them.
//! Restores from pinned maps and from disk, waits for a full view and for the others' word, adds before it removes.

mod addresses;
mod converge;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use ebpf_common::{Config, MAX_NODES, ServiceKey, ServiceValue};
use speaker_core::backend::{Lingering, Plan, Spared, Uplink};
use speaker_core::election::Eligible;
use speaker_core::forwarding::diff::{Layout, MapState};
use speaker_core::forwarding::{Availability, Planner, Table};
use speaker_core::holdings::exchange::{self, Exchange};
use speaker_core::holdings::holder::Holder;
use speaker_core::name::{NodeName, Vip};
use speaker_core::standing::Standing;
use speaker_core::view::View;
use speaker_core::view::endpoints::Reason;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{debug, info, warn};

use super::arrivals::Arrivals;
use super::attachment::{Attachment, LOOK};
use super::flows::{self, Look};
use super::inbox::{HostAddresses, Inbox, Message};
use super::maps::ForwardingMaps;
use super::talk::Talk;
use super::writer::MapWriter;
use crate::backend::Backend;
use crate::backend::worker::{InForce, Rules};
use crate::backoff::Backoff;
use crate::io::udp::MulticastSocket;
use crate::io::{Mac, clock};
use crate::metrics::Metrics;
use crate::saver::Saver;
use crate::shared::{Shared, turned};

/// Says that the loop turns; and what hangs on time alone.
const TURN: Duration = Duration::from_secs(1);

/// Addresses remembered before the first view says which of them are nodes.
const MAX_MACS: usize = 4 * MAX_NODES as usize;

/// What the election is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    /// VIPs that the packet path can carry, and who may own them.
    pub desired: BTreeMap<Vip, Eligible>,
    /// They are of a view from disk.
    pub saved_view: bool,
    /// The packet path is attached.
    pub ready: bool,
    /// VIPs that are not served because of what they are.
    pub barred: BTreeMap<Ipv4Addr, Reason>,
}

/// What the thread is made of.
pub struct Sync {
    pub node: String,
    pub node_ip: Ipv4Addr,
    pub uplink: Uplink,
    pub mac: Mac,
    pub hash_key: [u64; 2],
    pub udp_silent: bool,
    pub attachment: Attachment,
    pub planner: Planner,
    pub saver: Saver,
    /// Awaited if the node has booted since the last speaker.
    pub arrivals: Arrivals,
    pub shared: Arc<Shared>,
    pub metrics: Arc<Metrics>,
    /// Called after a change, when the packet path is as the view says.
    pub on_synced: Box<dyn Fn(Synced) + Send>,
    /// Called when it comes to be in doubt, or not any more, whether this node still hears the API server.
    pub on_doubt: Box<dyn Fn(bool) + Send>,
}

/// What the workers work with.
pub struct Tools {
    pub holder: Holder,
    pub flows: flows::Source,
    pub maps: ForwardingMaps,
    pub backend: Backend,
}

/// What the loop is told.
pub struct Inputs {
    /// The whole view; sent only once a full one is known.
    pub view: watch::Receiver<Option<Arc<View>>>,
    pub inbox: Inbox,
    /// Where nodes tell each other what they hold.
    pub exchange: Exchange,
    pub holdings: MulticastSocket,
}

/// Runs until every sender is gone.
pub async fn run(sync: Sync, tools: Tools, inputs: Inputs) -> Result<()> {
    let Inputs { mut view, mut inbox, exchange, holdings } = inputs;
    let talk = Talk::new(exchange, holdings, sync.metrics.clone()).context("the socket of the holdings")?;
    let mut state = State::restore(sync, tools, talk)?;
    let [mut turn, mut look] = [TURN, LOOK].map(interval);
    for ticks in [&mut turn, &mut look] {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    loop {
        tokio::select! {
            changed = view.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let view = view.borrow_and_update().clone();
                state.see(view)?;
            }
            messages = inbox.recv() => {
                let Some(messages) = messages else { return Ok(()) };
                for message in messages {
                    state.take(message)?;
                }
            }
            due = state.talk.due() => { due.context("the socket of the holdings")?; state.exchange(None)?; }
            () = batch_due(&state.sync.planner) => state.dirty = true,
            done = state.look.done() => state.looked(done?)?,
            rules = state.rules.changed() => state.in_force(rules.context("the nft worker has ended")?)?,
            written = state.writer.written() => state.written(written.context("the map writer has ended")?)?,
            () = state.sync.arrivals.next() => {}
            _ = look.tick() => state.keep_attached(),
            _ = turn.tick() => state.dirty |= state.sync.planner.unsettled() || state.lingering.is_due(clock::now()),
            () = sleep_until(state.retry.unwrap_or_else(Instant::now)), if state.retry.is_some() => {}
        }
        turned(&state.sync.shared.dataplane_turned, clock::now());
        state.converge()?;
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
    rules: Rules,
    /// What the rules do now.
    in_force: InForce,
    writer: MapWriter,
    layout: Layout,
    have: MapState,
    config: Config,
    view: Option<Arc<View>>,
    viewed: Option<Instant>,
    standing: Standing,
    macs: BTreeMap<Ipv4Addr, Mac>,
    signed_macs: BTreeMap<Ipv4Addr, Mac>,
    host: HostAddresses,
    planned: Planned,
    /// As it was written last.
    table: Arc<Table>,
    /// The same as far as rules are in force for it: what the maps say.
    shown: Arc<Table>,
    /// The view from which it was made is one from disk.
    saved_view: bool,
    /// What is being written.
    writing: Option<Writing>,
    look: Look,
    /// What the disk holds or will hold: the generation of the history, and who was present.
    saved: Option<(u64, BTreeSet<String>)>,
    differing: BTreeSet<NodeName>,
    spared: Spared,
    lingering: Lingering,
    told: Option<Synced>,
    started: bool,
    /// The table is to be made again.
    dirty: bool,
    /// The maps are to be compared with the table again.
    follow: bool,
    /// When writes that were refused are tried again.
    retry: Option<Instant>,
    backoff: Backoff,
    refused: usize,
}

/// The newest table.
#[derive(Default)]
struct Planned {
    table: Arc<Table>,
    /// Service ports with pods on this node.
    services: BTreeSet<ServiceKey>,
    available: Availability,
    /// It was made from a view from disk.
    saved_view: bool,
    /// Until the nft worker has it.
    plan: Option<Plan>,
}

/// What the maps say once the writer is done.
struct Writing {
    want: MapState,
    config: Config,
    table: Arc<Table>,
    shown: Arc<Table>,
    saved_view: bool,
    since: Instant,
}

impl State {
    fn restore(mut sync: Sync, tools: Tools, talk: Talk) -> Result<Self> {
        let Tools { holder, flows, maps, backend } = tools;
        let have = maps.restore().context("read the pinned maps")?;
        info!(
            vips = have.vips.len(),
            services = have.services.len(),
            nodes = have.nodes.len(),
            "restored from pinned maps"
        );
        // Whoever has just started cannot know whether it was missed.
        sync.planner.was_away(&sync.node);
        let macs = have.nodes.values().map(|node| (Ipv4Addr::from(node.addr), Mac(node.mac)));
        let in_force = left_in_force(&have);
        let (metrics, shared) = (sync.metrics.clone(), sync.shared.clone());
        let config = maps.config()?;
        Ok(Self {
            layout: Layout::restore(&have),
            macs: macs.filter(|(_, mac)| *mac != Mac::default()).collect(),
            signed_macs: BTreeMap::new(),
            have,
            rules: Rules::start(backend, in_force.clone(), metrics, shared).context("start the nft worker")?,
            in_force,
            config,
            writer: MapWriter::start(maps).context("start the map writer")?,
            view: None,
            viewed: None,
            standing: Standing::default(),
            host: HostAddresses::default(),
            planned: Planned::default(),
            table: Arc::default(),
            shown: Arc::default(),
            saved_view: false,
            writing: None,
            look: Look::new(flows, holder, clock::now()),
            saved: None,
            differing: BTreeSet::new(),
            spared: Spared::default(),
            lingering: Lingering::default(),
            told: None,
            started: false,
            dirty: false,
            follow: false,
            retry: None,
            backoff: Backoff::default(),
            refused: 0,
            sync,
            talk,
        })
    }

    fn see(&mut self, view: Option<Arc<View>>) -> Result<()> {
        let Some(view) = view else { return Ok(()) };
        let others = view.nodes().keys().filter(|name| **name != self.sync.node);
        let others = others.filter_map(|name| NodeName::new(name)).collect();
        self.follow_addresses(&view);
        self.spared.doubt.see_node(view.nodes().get(&self.sync.node), clock::now());
        self.view = Some(view);
        self.viewed.get_or_insert_with(Instant::now);
        self.dirty = true;
        self.exchange(Some(exchange::Event::Nodes(others)))
    }

    fn take(&mut self, message: Message) -> Result<()> {
        match message {
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
            Message::Incarnations(epochs) => self.exchange(Some(exchange::Event::Incarnations(epochs)))?,
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
}

/// The rules of an earlier speaker, by what it wrote to the maps when they were in force.
fn left_in_force(have: &MapState) -> InForce {
    let served = have.services.iter().filter(|(_, value)| value.flags & ServiceValue::SERVED_HERE != 0);
    let peers = have.nodes.iter().filter_map(|(slot, node)| Some((u16::try_from(*slot).ok()?, node.addr.into())));
    InForce { services: served.map(|(key, _)| *key).collect(), peers: peers.collect(), viewed: None, failing: false }
}

#[cfg(test)]
mod tests;
