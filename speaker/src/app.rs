//! Builds everything once and in order, connects the three flows, and drains.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, setrlimit};
use sheave_api::NoOwner;
use speaker_core::announce::{self, Announcer};
use speaker_core::backend::Uplink;
use speaker_core::election::{self, Election};
use speaker_core::forwarding::Planner;
use speaker_core::forwarding::previous::PreviousRings;
use speaker_core::liveness::{self, Liveness};
use speaker_core::name::NodeName;
use speaker_core::readiness::{self, Readiness};
use speaker_core::reports::exchange::{self, Exchange};
use speaker_core::reports::reporter::Reporter;
use speaker_core::resolve::{self, Resolver};
use speaker_core::rotation::{self, Rotation};
use speaker_core::unicast::{self, Unicast};
use speaker_core::unverified::Unverified;
use speaker_core::view::endpoints::{Reason, api_servers, digests, frontends};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::admin::Admin;
use crate::apiserver::ApiServer;
use crate::args::{PathArgs, RunArgs, UdpUnserved};
use crate::backend::Backend;
use crate::backend::nft::Nft;
use crate::backend::sysctl::Sysctls;
use crate::dataplane::attachment::Attachment;
use crate::dataplane::conntrack_scan;
use crate::dataplane::inbox;
use crate::dataplane::loader::{self, Pins};
use crate::dataplane::startup_probe::StartupProbe;
use crate::dataplane::sync::{self, Inputs, Sync, Synced, Tools};
use crate::dataplane::{Counters, ForwardingMaps, LeaseMaps};
use crate::departed::Departed;
use crate::driver::{self, Commands, Driver};
use crate::health::HealthFlags;
use crate::host::Host;
use crate::io::arp::ArpSocket;
use crate::io::netlink::{self, Netlink};
use crate::io::udp::{self, MulticastSocket};
use crate::io::{self, clock};
use crate::keys::{self, Keys};
use crate::listeners::Listeners;
use crate::mailbox;
use crate::metrics::Metrics;
use crate::saver::Saver;
use crate::serving::Serving;
use crate::speaker_state::{self, Survey};
use crate::state::{Epoch, PersistedState, StateDir};
use crate::status::{self, Ownership};
use crate::thread_exits::ThreadExits;

/// Between two report summaries of a node.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Tables of two nodes that differ for longer are an alarm.
const TABLES_DIFFER: Duration = Duration::from_secs(5);
/// 7472 is MetalLB's, which may run beside us during a move.
const ADMIN_PORT: u16 = 7473;
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
    let health = Arc::new(HealthFlags::new(clock::now()));
    let metrics = Arc::new(Metrics::new(Counters::open(&pins)?)?);
    metrics.state_errors.with_label_values(&["boot_epoch"]).inc_by(u64::from(!is_saved));
    let saver = Saver::start(disk.clone(), metrics.clone()).context("start the disk thread")?;
    let (commands, inbox) = Commands::channel()?;
    let (sync_sender, sync_inbox) = inbox::channel(metrics.clone());
    let (host, node_address) =
        Host::new(args.node_ip, commands.clone(), sync_sender.clone(), sysctls(&args.paths), metrics.clone());
    let admin = Admin { health: health.clone(), metrics: metrics.clone() };
    let server = tokio::spawn(listeners.serve(admin, node_address));

    // What the speakers of a cluster share.
    let last_view = disk.load_view();
    let (servers, known) = watch::channel(last_view.as_ref().map(api_servers).unwrap_or_default());
    let api_server = ApiServer::new(kube, known);
    let (updates, mut secret) = mpsc::channel(keys::source::MAX_UPDATES);
    let survey = Survey::new(args.interface.clone(), args.node_ip);
    let (name, flags) = (args.node_name.clone(), health.clone());
    tokio::spawn(speaker_state::run(api_server.clone(), name, survey, flags, metrics.clone()));
    let keys = Keys::load(&disk);
    tokio::spawn(keys::source::run(api_server.clone(), args.namespace.clone(), keys.is_some(), updates));
    let keys = match keys {
        Some(keys) => keys,
        None => match keys::source::first(&disk, &mut secret, &health).await? {
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
        warn!(%error, "ICMP redirects not disabled; clients may receive redirects for VIPs");
    }
    if let Err(error) = sysctls(&args.paths).require_tcp_loose() {
        warn!(%error, "nf_conntrack_tcp_loose not enabled; clients of lost flows may get no reset");
    }
    // One for each VIP of the view.
    let (updates, updates_receiver) = mailbox::channel(usize::MAX);
    let (view_sender, view) = watch::channel(None);
    let (lagging_sender, lagging) = watch::channel(false);
    let persisted = disk.load_forwarding();
    let window = args.drain_window();
    let sync = Sync {
        node: args.node_name.clone(),
        node_ip: args.node_ip,
        uplink: Uplink::new(&uplink.name)?,
        mac: uplink.mac,
        hash_key: identity.flow_key(),
        udp_silent: args.udp_unserved == UdpUnserved::Silent,
        attachment: Attachment::new(loaded, &uplink.name, uplink.index),
        planner: Planner::new(identity.flow_key(), previous_rings(persisted.as_ref(), window)),
        saver: saver.clone(),
        startup_probe: if booted { StartupProbe::running() } else { StartupProbe::Off },
        health: health.clone(),
        metrics: metrics.clone(),
        on_synced: on_synced(commands.clone(), updates.clone()),
        on_lagging: Box::new(move |lagging| _ = lagging_sender.send_replace(lagging)),
    };

    let tools = Tools {
        reporter: Reporter::new(&args.node_name, identity.flow_key(), window),
        flows: conntrack_scan::conntrack(),
        clients: conntrack_scan::nftables(),
        maps: ForwardingMaps::open(&pins)?,
        backend: Backend::new(Nft::new(&args.paths.nft)),
    };

    let now = clock::now();
    let dead = args.interval() * (args.dead_intervals + 1);
    let rotation = Rotation::new(rotation::Config::new(dead), keys.signing(), Some(keys.ring()), now);
    let ring = rotation.ring();
    let exchange = exchange::Config {
        node: node.clone(),
        cluster: identity.cluster_id(),
        epoch,
        keys: ring.clone(),
        interval: REPORT_INTERVAL,
        differ: TABLES_DIFFER,
        pods: last_view.as_ref().map(|view| digests(view, &frontends(view).0).pods).unwrap_or_default(),
    };
    let exchange = Exchange::new(exchange, now);
    let group = SocketAddrV4::new(args.heartbeat_group, args.report_port);
    let report_udp = adverts_socket("reports", &uplink, group, &metrics)?;

    // (ii) Who owns a VIP.
    let (notices_sender, notices) = driver::Notices::channel();
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
        readiness: Readiness::new(readiness::Config::default(), ready(persisted.as_ref().filter(|_| !booted))),
        resolver: Resolver::new(resolve::Config::new(jitter)),
        unicast: Unicast::new(unicast::Config::default()),
        rotation,
        unverified: Unverified::new(node.clone(), keys.is_confirmed(), now),
        announcer: Announcer::new(announce::Config::default()),
        udp: adverts_socket("heartbeat", &uplink, group, &metrics)?,
        arp: ArpSocket::open(uplink.index, uplink.mac).context("ARP socket: capability NET_RAW is needed")?,
        lease: LeaseMaps::open(&pins)?,
        inbox,
        own_ip: Some(args.node_ip),
        sync: sync_sender.clone(),
        notices: notices_sender,
        health: health.clone(),
        metrics: metrics.clone(),
    };
    health.begin(now);

    let views = view.clone();
    let inputs = Inputs { view, inbox: sync_inbox, exchange, report_udp };
    let mut exits = ThreadExits::default();
    exits.spawn("dataplane", move || runtime()?.block_on(sync::run(sync, tools, inputs)))?;
    exits.spawn("election", move || driver::run(election, driver))?;
    commands.send(crate::driver::Command::OwnMac(uplink.mac))?;
    commands.send(crate::driver::Command::Carrier(uplink.carrier))?;
    let mut changes = net.watch(uplink.index);

    // (i) What is to be served.
    let (events_sender, events) = mpsc::channel(MAX_EVENTS);
    tokio::spawn(crate::watch::run(api_server, events_sender, lagging, jitter));
    tokio::spawn(status::run(writer, args.node_name.clone(), updates_receiver, views));
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
        health,
        metrics,
        updates,
        notices,
        events,
    };
    serving.run(&mut changes, exits, server).await
}

/// The previous rings; without usable ones the reports of the other nodes fill in.
fn previous_rings(persisted: Option<&PersistedState>, window: Duration) -> PreviousRings {
    let Some(persisted) = persisted else { return PreviousRings::new(window) };
    PreviousRings::restore(&persisted.previous_rings, window, &clock::boot_id(), clock::now()).unwrap_or_else(|error| {
        warn!(%error, "previous rings not restored from disk; continuing with the reports of other nodes");
        PreviousRings::new(window)
    })
}

/// The nodes that were ready when the speaker before this one ended. Not after a boot: others may have booted meanwhile, and a
/// search that visits a node with kube-proxy's rules but not ours costs the flow.
fn ready(persisted: Option<&PersistedState>) -> BTreeSet<NodeName> {
    let names = persisted.into_iter().flat_map(|persisted| &persisted.ready);
    names.filter_map(|name| NodeName::new(name)).collect()
}

/// `statuses`: where it is written that a VIP must not be served.
fn on_synced(commands: Commands, statuses: mailbox::Sender<Ipv4Addr, Ownership>) -> Box<dyn Fn(Synced) + Send> {
    Box::new(move |Synced { desired, saved_view, ready, barred }| {
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
        let sent = commands
            .send(driver::Command::Desired { desired, saved_view })
            .and_then(|()| commands.send(driver::Command::Ready(ready)));
        if let Err(error) = sent {
            warn!(%error, "command to the election failed");
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
            given, wanted, "receive buffer smaller than requested; raise net.core.rmem_max or grant NET_ADMIN"
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
        tracing::debug!(%error, "RLIMIT_MEMLOCK not raised");
    }
}
