//! The main loop: watches, notices of the election and netlink events in; views, commands and statuses out.

mod ownership;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sheave_api::local::LocalDrain;
use speaker_core::election::Owner;
use speaker_core::name::NodeName;
use speaker_core::view::endpoints::api_servers;
use speaker_core::view::{Change, Event, Kind, Limit, View};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::app::Ended;
use crate::departed::{self, Departed};
use crate::driver::{self, Commands, Notice};
use crate::health::HealthFlags;
use crate::host::Host;
use crate::host_speaker::{self, Tenure};
use crate::io::{clock, netlink};
use crate::keys::source::Update;
use crate::keys::{Found, Keys};
use crate::mailbox;
use crate::metrics::Metrics;
use crate::saver::Saver;
use crate::status::Ownership;
use crate::status::lost::Elected;
use crate::thread_exits::ThreadExits;

/// Without an API server the last known view is used after this time.
const VIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// The last state may take so long to get to the disk when this speaker ends.
const FLUSH: Duration = Duration::from_millis(500);

/// The main loop's ends of all channels.
pub struct Serving {
    pub node: NodeName,
    /// It ends with that.
    pub tenure: Option<Tenure>,
    pub host: Host,
    pub saver: Saver,
    pub departed: Departed,
    /// Whether this node was drained on the node itself.
    pub drains: watch::Receiver<Option<LocalDrain>>,
    /// Whether this node is a member of an endpoint that is drained.
    pub member_drained: watch::Receiver<bool>,
    pub keys: Keys,
    pub secret: mpsc::Receiver<Update>,
    /// The view of the speaker before this one, until there is another from an API server.
    pub last_view: Option<View>,
    /// Addresses of API servers, for the fallback.
    pub servers: watch::Sender<Vec<SocketAddrV4>>,
    pub commands: Commands,
    /// The dataplane goes by the newest.
    pub view: watch::Sender<Option<Arc<View>>>,
    pub health: Arc<HealthFlags>,
    pub metrics: Arc<Metrics>,
    pub updates: mailbox::Sender<Ipv4Addr, Ownership>,
    pub elected: Arc<Elected>,
    pub notices: mailbox::Receiver<driver::Subject, Notice>,
    pub events: mpsc::Receiver<Event>,
}

impl Serving {
    pub async fn run(
        mut self,
        changes: &mut mpsc::Receiver<netlink::Change>,
        mut exits: ThreadExits,
        mut server: tokio::task::JoinHandle<Result<()>>,
    ) -> Result<Ended> {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        let mut views = Views::new(self.last_view.as_ref());
        let fallback = tokio::time::sleep(VIEW_TIMEOUT);
        tokio::pin!(fallback);
        let mut departed = tokio::time::interval(departed::CHECK);
        let mut leaving = false;
        let mut ended = Ended::Stopped;
        let tenure = self.tenure.take();
        let turn_over = host_speaker::ends(tenure.as_ref());
        tokio::pin!(turn_over);
        self.set_drained(None)?;
        loop {
            tokio::select! {
                Some(event) = self.events.recv() => {
                    views.take(event, &self.metrics);
                    while let Ok(event) = self.events.try_recv() {
                        views.take(event, &self.metrics);
                    }
                    self.publish(&mut views)?;
                }
                Ok(()) = self.member_drained.changed() => {
                    let view = self.view.borrow().clone();
                    self.set_drained(view.as_deref())?;
                }
                Ok(()) = self.drains.changed() => {
                    let view = self.view.borrow().clone();
                    self.set_drained(view.as_deref())?;
                }
                _ = departed.tick(), if views.published => self.expire_departed(&mut views)?,
                () = &mut fallback, if !views.published => {
                    self.fall_back(&mut views)?;
                    fallback.as_mut().reset(tokio::time::Instant::now() + VIEW_TIMEOUT);
                }
                change = changes.recv() => {
                    let Some(change) = change else { bail!("links and addresses are not watched any more") };
                    self.host.on_change(change)?;
                }
                Some(notices) = self.notices.recv() => {
                    for notice in notices.into_values() {
                        if let Notice::HandedOver { all_taken } = notice {
                            // A disk that hangs keeps no speaker from ending.
                            let _ = tokio::time::timeout(FLUSH, self.keys.flush()).await;
                            let is_saved = self.saver.flush(FLUSH);
                            info!(all_taken, is_saved, "VIPs handed over");
                            return Ok(ended);
                        }
                        self.on_notice(notice).await?;
                    }
                }
                Some(update) = self.secret.recv() => match update {
                    Update::Found(found) => self.take_secret(*found).await?,
                    // It was logged; the keys that this node has go on.
                    Update::Problem(_) => {}
                },
                saved = self.keys.saved() => {
                    if let Some(secret) = saved {
                        self.commands.send(driver::Command::Keys(secret))?;
                    }
                }
                () = &mut turn_over, if !leaving => {
                    ended = Ended::Anew;
                    info!("HostSpeaker: the API server endpoint's speaker begins on this node, or was removed; this one begins anew");
                    self.leave(&mut leaving)?;
                }
                _ = terminate.recv() => {
                    ended = Ended::Stopped;
                    self.leave(&mut leaving)?;
                }
                _ = interrupt.recv() => {
                    ended = Ended::Stopped;
                    self.leave(&mut leaving)?;
                }
                served = &mut server => return served.context("admin server")?.map(|()| Ended::Stopped),
                first = exits.first() => bail!("{first}"),
            }
        }
    }

    async fn on_notice(&mut self, notice: Notice) -> Result<()> {
        match notice {
            Notice::Keys(ring) => self.keys.set_ring(&ring),
            Notice::IdentityConfirmed => self.keys.confirm(),
            Notice::HeldBack => self.keys.held_back().await?,
            notice => self.write_status(notice),
        }
        Ok(())
    }

    async fn take_secret(&mut self, found: Found) -> Result<()> {
        let secret = self.keys.take(found, self.health.held_back.load(Ordering::Relaxed)).await?;
        let differs = self.keys.identity_differs();
        self.health.identity_differs.store(differs, Ordering::Relaxed);
        self.metrics.keys_identity_differs.set(i64::from(differs));
        secret.map_or(Ok(()), |secret| self.commands.send(driver::Command::Keys(secret)))
    }

    /// By a Placement, or on the node itself, or as a member of the endpoint.
    fn set_drained(&mut self, view: Option<&View>) -> Result<()> {
        let here = self.drains.borrow_and_update().is_some() || *self.member_drained.borrow_and_update();
        let placed = view.is_some_and(|view| view.is_drained(self.node.as_str()));
        self.metrics.drained.set(i64::from(here || placed));
        self.commands.send(driver::Command::Drained(here || placed))
    }

    /// Once.
    fn leave(&self, leaving: &mut bool) -> Result<()> {
        if std::mem::replace(leaving, true) {
            return Ok(());
        }
        info!("stopping; handing over VIPs");
        self.commands.send(driver::Command::Leave)
    }

    fn publish(&mut self, views: &mut Views) -> Result<()> {
        if !views.complete() || !std::mem::take(&mut views.changed) {
            return Ok(());
        }
        if let Some(last) = self.last_view.take() {
            views.view.carry_departed(&last);
        }
        self.departed.expire(&mut views.view, self.node.as_str(), clock::now());
        self.save_departures();
        self.servers.send_replace(api_servers(&views.view));
        let first = !std::mem::replace(&mut views.published, true);
        if first {
            info!(nodes = views.view.nodes().len(), vips = views.view.vips().len(), "full view received");
        }
        let view = Arc::new(views.view.clone());
        self.saver.view(view.clone());
        self.send_view(view)
    }

    /// The API server has not answered: what was true when it last did is the best there is.
    fn fall_back(&mut self, views: &mut Views) -> Result<()> {
        if views.unlisted.iter().all(|kind| crate::watch::NEWER.contains(kind)) {
            warn!(kinds = ?views.unlisted, "not listed (are definitions and rights installed?); those of the last known view count");
            views.unlisted.clear();
            return self.publish(views);
        }
        // It is kept: it has the nodes whose flows live although the API server has them no more.
        match self.last_view.clone() {
            Some(mut view) => {
                self.departed.expire(&mut view, self.node.as_str(), clock::now());
                warn!(
                    nodes = view.nodes().len(),
                    vips = view.vips().len(),
                    "API server unreachable; serving the last known view"
                );
                views.published = true;
                self.send_view(Arc::new(view))
            }
            None => {
                warn!("API server unreachable and no last known view; waiting");
                Ok(())
            }
        }
    }

    /// Until a full view is there, in the last known one.
    fn expire_departed(&mut self, views: &mut Views) -> Result<()> {
        let (node, now) = (self.node.as_str(), clock::now());
        if views.complete() {
            views.changed |= self.departed.expire(&mut views.view, node, now);
            self.publish(views)?;
        } else if let Some(last) = &mut self.last_view
            && self.departed.expire(last, node, now)
        {
            let view = Arc::new(last.clone());
            self.send_view(view)?;
        }
        self.save_departures();
        Ok(())
    }

    fn save_departures(&mut self) {
        if let Some(departures) = self.departed.unsaved(&clock::boot_id(), clock::now()) {
            self.saver.departures(departures);
        }
    }

    fn send_view(&mut self, view: Arc<View>) -> Result<()> {
        self.name_beyond_limit(&view);
        self.set_drained(Some(&view))?;
        self.host.on_view(view.nodes().get(self.node.as_str()).map(|node| node.address))?;
        // A node without a speaker is neither asked for signs of life nor missed.
        let speaking = view.nodes().iter().filter(|(name, node)| !view.lacks_speaker(name, node));
        let others = speaking.filter_map(|(name, node)| Some((NodeName::new(name)?, node.address)));
        let nodes: BTreeMap<NodeName, Ipv4Addr> = others.filter(|(name, _)| *name != self.node).collect();
        let departed = nodes.keys().filter(|name| !view.is_member(name.as_str())).cloned().collect();
        let beyond_limit = view.beyond_limit().iter().filter_map(|name| NodeName::new(name)).collect();
        let this_one = view.beyond_limit().contains(self.node.as_str());
        self.health.beyond_limit.store(this_one, Ordering::Relaxed);
        let saved = view.is_saved();
        self.commands.send(driver::Command::Nodes { nodes, departed, beyond_limit, this_one, saved })?;
        self.view.send(Some(view)).context("the dataplane thread has ended")
    }

    /// When it begins, and with each node more.
    fn name_beyond_limit(&self, view: &View) {
        let known = self.view.borrow().as_ref().map(|known| known.beyond_limit().clone()).unwrap_or_default();
        let beyond = view.beyond_limit();
        if !beyond.is_subset(&known) {
            let (limit, nodes) = (Limit::Speakers, beyond.iter().take(NAMED).collect::<Vec<_>>());
            warn!(
                limit = limit.label(),
                allowed = limit.value(),
                beyond = beyond.len(),
                ?nodes,
                "too_many_peers: these nodes own no VIP, and others serve their pods"
            );
            self.metrics.limits_reached.with_label_values(&[limit.label()]).inc();
        }
    }

    fn write_status(&self, notice: Notice) {
        match &notice {
            Notice::Acquired { vip, .. } => self.elected.set_owned(*vip, true),
            Notice::OwnerChanged { vip, owner, .. } => self.elected.set_owned(*vip, owner.is_some()),
            _ => {}
        }
        if let Notice::OwnerChanged { vip, owner: Some(Owner { node, term }), .. } = &notice {
            info!(%vip, owner = %node, %term, "VIP owner changed");
        }
        let barred = |vip| self.elected.barred(vip);
        let update = ownership::of(notice, &self.node, self.view.borrow().as_deref(), barred);
        if let Some((vip, ownership)) = update {
            // The writer ends only with the process.
            let _ = self.updates.send(vip, ownership);
        }
    }
}

/// Nodes that a line of the log names.
const NAMED: usize = 16;

/// The view, and which kinds have been listed.
struct Views {
    view: View,
    unlisted: BTreeSet<Kind>,
    changed: bool,
    published: bool,
}

impl Views {
    /// SpeakerStates are not waited for ([`crate::watch::unlisted`]), and L2Advertisements and Placements not for ever: until they are
    /// listed, those of the last view count.
    fn new(last: Option<&View>) -> Self {
        let view = last.map(View::without_wait).unwrap_or_default();
        Self { view, unlisted: crate::watch::unlisted(), changed: true, published: false }
    }

    fn take(&mut self, event: Event, metrics: &Metrics) {
        if let Event::Relisted(kind, _) = &event {
            self.unlisted.remove(kind);
        }
        let object = match &event {
            Event::Apply(object) => Some(object.key()),
            Event::Delete(_) | Event::Relisted(..) => None,
        };
        let change = self.view.handle(event);
        metrics.reached.stand("view", self.view.limits_reached().map(Limit::label));
        match change {
            Change::None => {}
            Change::Changed => self.changed = true,
            Change::Refused(limit) => {
                self.changed = true;
                warn!(
                    limit = limit.label(),
                    allowed = limit.value(),
                    ?object,
                    "limit reached; what exceeds it is left out"
                );
                metrics.limits_reached.with_label_values(&[limit.label()]).inc();
            }
        }
    }

    fn complete(&self) -> bool {
        self.unlisted.is_empty()
    }
}
