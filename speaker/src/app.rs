//! Builds everything once and in order, connects the three flows, and drains.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, setrlimit};
use sheave_api::NoOwner;
use speaker_core::announce::{self, Announcer};
use speaker_core::backend::Uplink;
use speaker_core::election::{self, Election, LoseReason, Owner};
use speaker_core::forwarding::Planner;
use speaker_core::forwarding::history::History;
use speaker_core::holdings::exchange::{self, Exchange};
use speaker_core::holdings::holder::Holder;
use speaker_core::liveness::{self, Liveness};
use speaker_core::name::NodeName;
use speaker_core::presence::{self, Presence};
use speaker_core::resolve::{self, Resolver};
use speaker_core::rotation::{self, Rotation};
use speaker_core::unicast::{self, Unicast};
use speaker_core::unverified::Unverified;
use speaker_core::view::endpoints::{Reason, api_servers, digests, frontends};
use speaker_core::view::{Change, Event, Kind, View};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::admin::Admin;
use crate::apiserver::ApiServer;
use crate::args::{PathArgs, RunArgs, UdpUnserved};
use crate::backend::Backend;
use crate::backend::nft::Nft;
use crate::backend::sysctl::Sysctls;
use crate::dataplane::arrivals::Arrivals;
use crate::dataplane::attachment::Attachment;
use crate::dataplane::inbox;
use crate::dataplane::loader::{self, Pins};
use crate::dataplane::sync::{self, Inputs, Sync, Synced, Tools};
use crate::dataplane::{Counters, ForwardingMaps, LeaseMaps};
use crate::departed::{self, Departed};
use crate::driver::{self, Commands, Driver, Report};
use crate::host::Host;
use crate::io::arp::ArpSocket;
use crate::io::netlink::{self, Netlink};
use crate::io::udp::{self, MulticastSocket};
use crate::io::{self, clock};
use crate::keys::source::Update;
use crate::keys::{self, Found, Keys};
use crate::listeners::Listeners;
use crate::mailbox;
use crate::metrics::Metrics;
use crate::saver::Saver;
use crate::shared::Shared;
use crate::state::{Epoch, Remembered, StateDir};
use crate::status::{self, Ownership};

/// Without an API server the last known view is used after this time.
const VIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two words of a node about the flows that it holds.
const HOLDINGS_INTERVAL: Duration = Duration::from_secs(1);
/// Tables of two nodes that differ for longer are an alarm.
const TABLES_DIFFER: Duration = Duration::from_secs(5);
/// 7472 is MetalLB's, which may run beside us during a move.
const ADMIN_PORT: u16 = 7473;
/// The last state may take so long to get to the disk when this speaker ends.
const FLUSH: Duration = Duration::from_millis(500);
/// Events that wait between the watches and the view.
const MAX_EVENTS: usize = 1024;

pub fn run(args: RunArgs) -> Result<()> {
    runtime()?.block_on(run_async(args))
}

/// One thread each: a long fill of rings must not delay a watch event.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")
}

async fn run_async(args: RunArgs) -> Result<()> {
    let node = NodeName::new(&args.node_name).with_context(|| {
        format!("--node-name {:?}: letters, digits, - and . are allowed, at most 253", args.node_name)
    })?;
    let disk = StateDir::open(&args.paths.state_dir);
    let Epoch { number: epoch, is_saved } = disk.next_boot_epoch();
    let listeners = Listeners::bind(args.node_ip, ADMIN_PORT, args.admin_listen).await?;
    let kube = kube::Config::infer().await.context("configure the Kubernetes client")?;
    let writer = status::client(kube.clone()).context("Kubernetes client")?;
    raise_memlock();
    let pins = Pins::new(&args.paths.pin_dir);
    let booted = pins.are_new();
    let loaded = loader::load(&pins)?;
    let shared = Arc::new(Shared::new(clock::now()));
    let metrics = Arc::new(Metrics::new(Counters::open(&pins)?)?);
    metrics.state_errors.with_label_values(&["boot_epoch"]).inc_by(u64::from(!is_saved));
    let saver = Saver::start(disk.clone(), metrics.clone()).context("start the disk thread")?;
    let (commands, inbox) = Commands::channel()?;
    let (sync_sender, sync_inbox) = inbox::channel(metrics.clone());
    let (host, node_address) = Host::new(args.node_ip, commands.clone(), sync_sender.clone(), metrics.clone());
    let admin = Admin { shared: shared.clone(), metrics: metrics.clone() };
    let server = tokio::spawn(listeners.serve(admin, node_address));

    // What the speakers of a cluster share.
    let last_view = disk.load_view();
    let (servers, known) = watch::channel(last_view.as_ref().map(api_servers).unwrap_or_default());
    let api_server = ApiServer::new(kube, known);
    let (updates, mut secret) = mpsc::channel(keys::source::MAX_UPDATES);
    let keys = Keys::load(&disk);
    tokio::spawn(keys::source::run(api_server.clone(), args.namespace.clone(), keys.is_some(), updates));
    let keys = match keys {
        Some(keys) => keys,
        None => match keys::source::first(&disk, &mut secret, &shared).await? {
            Some(keys) => keys,
            None => return Ok(()),
        },
    };
    let identity = keys.identity();

    // (iii) Where packets go.
    let net = Netlink::open()?;
    let uplink = net.uplink(args.interface.as_deref(), args.node_ip).await?;
    info!(%node, interface = uplink.name, mac = %uplink.mac, carrier = uplink.carrier, epoch, "starting");
    if let Err(error) = sysctls(&args.paths).disable_redirects(&uplink.name) {
        warn!(%error, "ICMP redirects are still on");
    }
    if let Err(error) = sysctls(&args.paths).require_tcp_loose() {
        warn!(%error, "clients of flows that are lost may hear nothing");
    }
    // One for each VIP of the view.
    let (updates, updates_receiver) = mailbox::channel(usize::MAX);
    let (view_sender, view) = watch::channel(None);
    let (doubt_sender, in_doubt) = watch::channel(false);
    let remembered = disk.load_forwarding();
    let window = args.drain_window();
    let sync = Sync {
        node: args.node_name.clone(),
        node_ip: args.node_ip,
        uplink: Uplink::new(&uplink.name)?,
        mac: uplink.mac,
        hash_key: identity.flow_key(),
        udp_silent: args.udp_unserved == UdpUnserved::Silent,
        attachment: Attachment::new(loaded, &uplink.name, uplink.index),
        planner: Planner::new(identity.flow_key(), history(remembered.as_ref(), window)),
        holder: Holder::new(&args.node_name, identity.flow_key(), window),
        saver: saver.clone(),
        arrivals: if booted { Arrivals::awaited() } else { Arrivals::NotAwaited },
        shared: shared.clone(),
        metrics: metrics.clone(),
        on_synced: on_synced(commands.clone(), updates.clone()),
        on_doubt: Box::new(move |doubt| _ = doubt_sender.send_replace(doubt)),
    };

    let tools = Tools { maps: ForwardingMaps::open(&pins)?, backend: Backend::new(Nft::new(&args.paths.nft)) };

    let now = clock::now();
    let dead = args.interval() * (args.dead_intervals + 1);
    let rotation = Rotation::new(rotation::Config::new(dead), keys.signing(), Some(keys.ring()), now);
    let ring = rotation.ring();
    let exchange = exchange::Config {
        node: node.clone(),
        cluster: identity.cluster_id(),
        epoch,
        keys: ring.clone(),
        interval: HOLDINGS_INTERVAL,
        differ: TABLES_DIFFER,
        pods: last_view.as_ref().map(|view| digests(view, &frontends(view).0).pods).unwrap_or_default(),
    };
    let exchange = Exchange::new(exchange, now);
    let group = SocketAddrV4::new(args.heartbeat_group, args.holdings_port);
    let holdings = adverts_socket("holdings", &uplink, group, &metrics)?;

    // (ii) Who owns a VIP.
    let (reports_sender, reports) = driver::Reports::channel();
    let seed = io::random::seed().context("random seed")?;
    let mut config = election::Config::new(node.clone(), identity.cluster_id(), epoch, ring, seed)
        .at_pace(args.interval(), args.dead_intervals);
    config.leave_timeout = Duration::from_millis(args.handover_timeout_ms);
    config.check().context("--heartbeat-interval-ms, --dead-intervals")?;
    let jitter = io::random::seed().context("random seed")?;
    let liveness = liveness::Config { interval: config.interval, dead: config.dead(), ..liveness::Config::new(jitter) };
    let group = SocketAddrV4::new(args.heartbeat_group, args.heartbeat_port);
    let now = clock::now();
    let election = Election::new(config, now);
    let driver = Driver {
        liveness: Liveness::new(liveness),
        presence: Presence::new(presence::Config::default(), present(remembered.as_ref().filter(|_| !booted))),
        resolver: Resolver::new(resolve::Config::new(jitter)),
        unicast: Unicast::new(unicast::Config::default()),
        rotation,
        unverified: Unverified::new(keys.is_confirmed(), now),
        announcer: Announcer::new(announce::Config::default()),
        udp: adverts_socket("heartbeat", &uplink, group, &metrics)?,
        arp: ArpSocket::open(uplink.index, uplink.mac).context("ARP socket: capability NET_RAW is needed")?,
        lease: LeaseMaps::open(&pins)?,
        inbox,
        own_ip: Some(args.node_ip),
        sync: sync_sender.clone(),
        reports: reports_sender,
        shared: shared.clone(),
        metrics: metrics.clone(),
    };
    shared.begin(now);

    let inputs = Inputs { view, inbox: sync_inbox, exchange, holdings };
    let mut ends = Ends::default();
    ends.spawn("dataplane", move || runtime()?.block_on(sync::run(sync, tools, inputs)))?;
    ends.spawn("election", move || driver::run(election, driver))?;
    commands.send(crate::driver::Command::OwnMac(uplink.mac))?;
    commands.send(crate::driver::Command::Carrier(uplink.carrier))?;
    let mut changes = net.watch(uplink.index);

    // (i) What is to be served.
    let (events_sender, events) = mpsc::channel(MAX_EVENTS);
    tokio::spawn(crate::watch::run(api_server, events_sender, in_doubt));
    tokio::spawn(status::run(writer, args.node_name.clone(), updates_receiver));
    let serving = Serving {
        node,
        host,
        saver,
        departed: Departed::new(window),
        keys,
        secret,
        last_view,
        servers,
        commands,
        view: view_sender,
        shared,
        metrics,
        updates,
        reports,
        events,
    };
    serving.run(&mut changes, ends, server).await
}

/// The former rings; if there are none that can be used, the other nodes tell what they hold.
fn history(remembered: Option<&Remembered>, window: Duration) -> History {
    let Some(remembered) = remembered else { return History::new(window) };
    History::restore(&remembered.history, window, &clock::boot_id(), clock::now()).unwrap_or_else(|error| {
        warn!(%error, "former rings not taken from disk");
        History::new(window)
    })
}

/// Who was there when the speaker before this one ended. Not after a boot: others may have booted meanwhile, and to ask a node that
/// has kube-proxy's rules before it has ours costs the flow.
fn present(remembered: Option<&Remembered>) -> BTreeSet<NodeName> {
    let names = remembered.into_iter().flat_map(|remembered| &remembered.present);
    names.filter_map(|name| NodeName::new(name)).collect()
}

/// The main loop's ends of all channels.
struct Serving {
    node: NodeName,
    host: Host,
    saver: Saver,
    departed: Departed,
    keys: Keys,
    secret: mpsc::Receiver<Update>,
    /// The view of the speaker before this one, until there is another.
    last_view: Option<View>,
    /// Where API servers are, for those who look for one.
    servers: watch::Sender<Vec<SocketAddrV4>>,
    commands: Commands,
    /// The dataplane goes by the newest.
    view: watch::Sender<Option<Arc<View>>>,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    updates: mailbox::Sender<Ipv4Addr, Ownership>,
    reports: mailbox::Receiver<driver::Subject, Report>,
    events: mpsc::Receiver<Event>,
}

impl Serving {
    async fn run(
        mut self,
        changes: &mut mpsc::Receiver<netlink::Change>,
        mut ends: Ends,
        mut server: tokio::task::JoinHandle<Result<()>>,
    ) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        let mut views = Views::new();
        let fallback = tokio::time::sleep(VIEW_TIMEOUT);
        tokio::pin!(fallback);
        let mut departed = tokio::time::interval(departed::LOOK);
        let mut leaving = false;
        loop {
            tokio::select! {
                Some(event) = self.events.recv() => {
                    views.take(event, &self.metrics);
                    while let Ok(event) = self.events.try_recv() {
                        views.take(event, &self.metrics);
                    }
                    self.publish(&mut views)?;
                }
                _ = departed.tick(), if views.published => {
                    views.changed |= self.departed.expire(&mut views.view, self.node.as_str(), clock::now());
                    self.publish(&mut views)?;
                }
                () = &mut fallback, if !views.published => {
                    self.fall_back(&mut views)?;
                    fallback.as_mut().reset(tokio::time::Instant::now() + VIEW_TIMEOUT);
                }
                change = changes.recv() => {
                    let Some(change) = change else { bail!("links and addresses are not watched any more") };
                    self.host.on_change(change)?;
                }
                Some(reports) = self.reports.recv() => {
                    for report in reports.into_values() {
                        if let Report::HandedOver { all_taken } = report {
                            let is_saved = self.saver.flush(FLUSH);
                            info!(all_taken, is_saved, "handed over");
                            return Ok(());
                        }
                        self.heed(report)?;
                    }
                }
                Some(update) = self.secret.recv() => match update {
                    Update::Found(found) => self.take_secret(*found)?,
                    // It was logged; the keys that this node has go on.
                    Update::Problem(_) => {}
                },
                _ = terminate.recv(), if !leaving => { leaving = true; self.leave()?; }
                _ = interrupt.recv(), if !leaving => { leaving = true; self.leave()?; }
                ended = &mut server => return ended.context("admin server")?,
                ended = ends.receiver.recv() => bail!("{}", ended.unwrap_or_else(|| "all threads ended".into())),
            }
        }
    }

    fn heed(&mut self, report: Report) -> Result<()> {
        match report {
            Report::Keys(ring) => self.keys.set_ring(&ring),
            Report::IdentityConfirmed => self.keys.confirm(),
            Report::HeldBack => self.keys.held_back()?,
            report => self.write_status(report),
        }
        Ok(())
    }

    fn take_secret(&mut self, found: Found) -> Result<()> {
        let secret = self.keys.take(found, self.shared.held_back.load(Ordering::Relaxed))?;
        let differs = self.keys.identity_differs();
        self.shared.identity_differs.store(differs, Ordering::Relaxed);
        self.metrics.keys_identity_differs.set(i64::from(differs));
        self.commands.send(driver::Command::Keys(secret))
    }

    fn leave(&self) -> Result<()> {
        info!("stopping: handing over");
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
        self.servers.send_replace(api_servers(&views.view));
        let first = !std::mem::replace(&mut views.published, true);
        if first {
            info!(nodes = views.view.nodes().len(), vips = views.view.vips().len(), "full view");
        }
        let view = Arc::new(views.view.clone());
        self.saver.view(view.clone());
        self.send_view(view)
    }

    /// The API server has not answered: what was true when it last did is the best there is.
    fn fall_back(&mut self, views: &mut Views) -> Result<()> {
        match self.last_view.take() {
            Some(view) => {
                warn!(
                    nodes = view.nodes().len(),
                    vips = view.vips().len(),
                    "no API server: serving the last known view"
                );
                views.published = true;
                self.send_view(Arc::new(view))
            }
            None => {
                warn!("no API server and no last known view: waiting");
                Ok(())
            }
        }
    }

    fn send_view(&mut self, view: Arc<View>) -> Result<()> {
        self.host.on_view(view.nodes().get(self.node.as_str()).map(|node| node.address))?;
        let others = view.nodes().iter().filter_map(|(name, node)| Some((NodeName::new(name)?, node.address)));
        let nodes: BTreeMap<NodeName, Ipv4Addr> = others.filter(|(name, _)| *name != self.node).collect();
        let departed = nodes.keys().filter(|name| !view.is_member(name.as_str())).cloned().collect();
        self.commands.send(driver::Command::Nodes { nodes, departed })?;
        self.view.send(Some(view)).context("the dataplane thread has ended")
    }

    fn write_status(&self, report: Report) {
        let update = match report {
            Report::Acquired { vip, term } => {
                Some((vip, Ownership::Owned { term: term.0, since: k8s_openapi::jiff::Timestamp::now() }))
            }
            Report::OwnerChanged { vip, owner: None, why } => {
                Some((vip, Ownership::Unowned(why.map_or(NoOwner::HandingOver, no_owner))))
            }
            Report::OwnerChanged { vip, owner: Some(Owner { node, term }), .. } => {
                info!(%vip, owner = %node, %term, "owner");
                let (owner, since) = (node.as_str().to_owned(), k8s_openapi::jiff::Timestamp::now());
                (node != self.node).then_some((vip, Ownership::Elsewhere { owner, term: term.0, since }))
            }
            Report::HandedOver { .. } | Report::Keys(_) | Report::HeldBack | Report::IdentityConfirmed => None,
        };
        if let Some((vip, ownership)) = update {
            // The writer ends only with the process.
            let _ = self.updates.send(vip, ownership);
        }
    }
}

/// The view, and which kinds have been listed.
struct Views {
    view: View,
    unlisted: BTreeSet<Kind>,
    changed: bool,
    published: bool,
}

impl Views {
    fn new() -> Self {
        Self { view: View::default(), unlisted: crate::watch::unlisted(), changed: true, published: false }
    }

    fn take(&mut self, event: Event, metrics: &Metrics) {
        if let Event::Relisted(kind, _) = &event {
            self.unlisted.remove(kind);
        }
        match self.view.handle(event) {
            Change::None => {}
            Change::Changed => self.changed = true,
            Change::Refused(limit) => {
                self.changed = true;
                warn!(limit = limit.label(), allowed = limit.value(), "object left out: limit reached");
                metrics.limits_reached.with_label_values(&[limit.label()]).inc();
            }
        }
    }

    fn complete(&self) -> bool {
        self.unlisted.is_empty()
    }
}

/// Tells when a thread ends: none may while the process runs.
struct Ends {
    sender: mpsc::Sender<String>,
    receiver: mpsc::Receiver<String>,
}

impl Default for Ends {
    fn default() -> Self {
        // The first end is the process's; others have no room and need none.
        let (sender, receiver) = mpsc::channel(1);
        Self { sender, receiver }
    }
}

impl Ends {
    fn spawn(&mut self, name: &'static str, body: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
        let sender = self.sender.clone();
        let named = thread::Builder::new().name(name.into());
        named
            .spawn(move || {
                let end = match body() {
                    Ok(()) => format!("the {name} thread ended"),
                    Err(error) => format!("the {name} thread ended: {error:#}"),
                };
                // Full or closed: the process is ending.
                let _ = sender.try_send(end);
            })
            .with_context(|| format!("start the {name} thread"))?;
        Ok(())
    }
}

const fn no_owner(reason: LoseReason) -> NoOwner {
    match reason {
        LoseReason::Conflict | LoseReason::HandedOver => NoOwner::HandingOver,
        LoseReason::NoSuccessor => NoOwner::NoEligibleNode,
        LoseReason::Undesired => NoOwner::NotServed,
        LoseReason::Frozen => NoOwner::NodeFrozen,
        LoseReason::NoCarrier => NoOwner::NoCarrier,
        LoseReason::NoQuorum => NoOwner::NoQuorum,
        LoseReason::MapWriteFailed => NoOwner::MapWriteFailed,
    }
}

/// `statuses`: where it is written that a VIP must not be served.
fn on_synced(commands: Commands, statuses: mailbox::Sender<Ipv4Addr, Ownership>) -> Box<dyn Fn(Synced) + Send> {
    Box::new(move |Synced { desired, ready, barred }| {
        for (vip, reason) in barred {
            let reason = match reason {
                Reason::AddressOfNode => NoOwner::AddressOfNode,
                Reason::AddressOfHost => NoOwner::AddressOfHost,
                Reason::AddressOfGateway => NoOwner::AddressOfGateway,
                _ => continue,
            };
            // The writer ends only with the process.
            let _ = statuses.send(vip, Ownership::Refused(reason));
        }
        let told = commands
            .send(driver::Command::Desired(desired))
            .and_then(|()| commands.send(driver::Command::Ready(ready)));
        if let Err(error) = told {
            warn!(%error, "the election was not told");
        }
    })
}

/// What the kernel does not queue it drops: less room than wanted is logged once, drops are counted.
fn adverts_socket(
    what: &'static str,
    uplink: &netlink::Uplink,
    group: SocketAddrV4,
    metrics: &Metrics,
) -> Result<MulticastSocket> {
    let socket = MulticastSocket::open(&uplink.name, uplink.index, group)
        .with_context(|| format!("{what} socket {group} on {}", uplink.name))?;
    if socket.queue() < udp::QUEUE {
        let (given, wanted) = (socket.queue(), udp::QUEUE);
        warn!(
            socket = what,
            given, wanted, "receive buffer smaller than wanted: raise net.core.rmem_max or allow NET_ADMIN"
        );
    }
    metrics.watch_drops(what, socket.drops());
    Ok(socket)
}

pub fn sysctls(paths: &PathArgs) -> Sysctls {
    Sysctls::new(&paths.sysctl_dir, paths.state_dir.join("sysctl.json"))
}

/// Kernels before 5.11 charge maps to RLIMIT_MEMLOCK; later ones ignore it, so a refusal matters only there.
fn raise_memlock() {
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, u64::MAX, u64::MAX) {
        tracing::debug!(%error, "RLIMIT_MEMLOCK stays");
    }
}
