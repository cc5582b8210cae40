//! Builds everything once and in order, connects the three flows, and drains.
//!
//! Read: `ground` (what the flows share) → `forwarding` (where packets go) → `election` (who owns a VIP). What is to be served comes from
//! a source, and status goes to a sink: [`crate::source`].

mod election;
mod forwarding;
mod ground;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use speaker_core::backend::Place;
use speaker_core::rotation::{self, Rotation};
use tokio::sync::watch;
use tracing::info;

use crate::admin::{self, Admin};
use crate::args::{EndpointArgs, PathArgs, RunArgs};
use crate::backend::sysctl::Sysctls;
use crate::dataplane::loader::Pins;
use crate::dataplane::{inbox, sync};
use crate::departed::Departed;
use crate::driver::{self, Command, Commands, Notices};
use crate::endpoint::{self, serve};
use crate::host::Host;
use crate::host_speaker::{self, Locks, Tenure, Turn};
use crate::io;
use crate::io::clock;
use crate::io::netlink::Netlink;
use crate::mailbox;
use crate::serving::Serving;
use crate::source::{self, Desired, Plugs};
use crate::stand_by;
use crate::status::lost::Elected;
use crate::thread_exits::ThreadExits;

pub use ground::{Ground, Start};

/// Writes to disk may take so long after the last loop has ended.
const LAST_WRITES: Duration = Duration::from_millis(500);

/// Why a speaker has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// It is to begin anew: whose turn it is has changed.
    Anew,
}

pub fn run(args: RunArgs) -> Result<Ended> {
    let locks = Locks::beside(&args.paths.local_socket);
    to_the_end(async {
        let place = match locks.turn().await? {
            Turn::Serve(held) => {
                held.until_the_process_ends();
                Place::Alone
            }
            Turn::Beside if !Pins::new(&args.paths.pin_dir).have_next() => return stand_by::run(args, locks).await,
            Turn::Beside => {
                locks.services().await?.until_the_process_ends();
                info!("serving beside the host speaker, behind its packet path");
                Place::Second
            }
        };
        run_async(args, Desired::Kubernetes, place, Some(Tenure::new(locks, place)), None).await
    })
}

pub fn run_endpoint(args: EndpointArgs) -> Result<()> {
    let opened = endpoint::open(&args.config)?;
    let (name, address) = (opened.seat.member.name.clone(), opened.address());
    let page = args.status_listen;
    let args = args.run_args(name, address, opened.seat.interface.clone(), &opened.endpoint);
    let locks = Locks::beside(&args.paths.local_socket);
    to_the_end(async {
        locks.claim().await?.until_the_process_ends();
        run_async(args, Desired::File(Box::new(opened)), Place::First, None, Some(page)).await.map(drop)
    })
}

/// What still blocks then, such as a write to a disk that hangs, keeps no speaker from ending.
fn to_the_end<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = runtime()?;
    let ended = runtime.block_on(work);
    runtime.shutdown_timeout(LAST_WRITES);
    ended
}

/// One thread each: a long fill of rings must not delay a watch event.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")
}

/// `tenure`: it ends with that. `page`: where the status of an endpoint is served.
async fn run_async(
    args: RunArgs,
    desired: Desired,
    place: Place,
    tenure: Option<Tenure>,
    page: Option<SocketAddr>,
) -> Result<Ended> {
    let start = Start::new(args)?;
    let probes = admin::bind("--probe-listen", start.args.probe_listen).await?;
    let scrapes = admin::bind("--metrics-listen", start.args.metrics_listen).await?;
    let scrapes = sheave_admin::metrics::Server::new(scrapes, "sheave-speaker").context("--metrics-listen")?;
    let page = match page {
        Some(address) => Some(serve::bind(address).await?),
        None => None,
    };
    let last_view = start.disk.load_view();
    let plugs = source::plug_in(desired, &start, last_view.as_ref()).await?;
    let Plugs { source, sink, servers, reviewer, members, clerk } = plugs;
    let (ground, loaded) = Ground::lay(start, place)?;
    let Ground { args, health, metrics, .. } = &ground;
    let (commands, inbox) = Commands::channel()?;
    let (to_sync, sync_inbox) = inbox::channel(metrics.clone());
    let host = Host::new(args.node_ip, commands.clone(), to_sync.clone(), sysctls(&args.paths), metrics.clone());
    let (office, member_drained) = ground.open_office(clerk, page);
    let admin = Admin { health: health.clone(), metrics: metrics.clone(), office: office.clone() };
    let server = tokio::spawn(admin::serve(probes, scrapes, reviewer, admin));
    ground.open_local_socket(office);
    let (view_sender, view) = watch::channel(None);
    let keys = tokio::select! {
        keys = source.keys(&ground, view.clone()) => keys?,
        // It has nothing to hand over yet.
        () = host_speaker::ends(tenure.as_ref()) => return Ok(Ended::Anew),
    };
    let Some((keys, secret)) = keys else { return Ok(Ended::Stopped) };

    // (iii) Where packets go.
    let net = Netlink::open()?;
    let uplink = net.uplink(args.interface.as_deref(), args.node_ip).await?;
    info!(node = %ground.node, interface = uplink.name, mac = %uplink.mac, carrier = uplink.carrier, epoch = ground.epoch, "starting");
    ground.set_sysctls(&uplink);
    // One for each VIP of the view.
    let (updates, updates_receiver) = mailbox::channel(usize::MAX);
    let (lagging_sender, lagging) = watch::channel(false);
    let parts = forwarding::Parts { ground: &ground, uplink: &uplink, identity: keys.identity() };
    let elected = Arc::<Elected>::default();
    let on_synced = forwarding::on_synced(commands.clone(), updates.clone(), elected.clone());
    let sync = parts.sync(loaded, members, on_synced, lagging_sender)?;
    let tools = parts.tools()?;
    let rotation = Rotation::new(rotation::Config::new(args.dead()), keys.signing(), Some(keys.ring()), clock::now());
    let exchange = parts.exchange(rotation.ring(), last_view.as_ref());
    let inputs = sync::Inputs { view: view.clone(), inbox: sync_inbox, exchange, report_udp: parts.report_socket()? };

    // (ii) Who owns a VIP.
    let (notices_sender, notices) = Notices::channel();
    let jitter = io::random::seed().context("random seed")?;
    let parts = election::Parts { ground: &ground, uplink: &uplink, keys: &keys, jitter };
    let (election, driver) = parts.build(rotation, inbox, to_sync, notices_sender)?;
    health.begin(clock::now());
    let mut exits = ThreadExits::default();
    exits.spawn("dataplane", move || runtime()?.block_on(sync::run(sync, tools, inputs)))?;
    exits.spawn("election", move || driver::run(election, driver))?;
    commands.send(Command::OwnMac(uplink.mac))?;
    commands.send(Command::Carrier(uplink.carrier))?;
    let mut changes = net.watch(uplink.index);

    // (i) What is to be served.
    let events = source.start(&ground, lagging, jitter);
    sink.start(&ground, updates_receiver, view, elected.clone());
    let departed = match ground.disk.load_departures() {
        Some(saved) => Departed::restore(args.drain_window(), &saved, &clock::boot_id(), clock::now()),
        None => Departed::new(args.drain_window()),
    };
    let Ground { node, saver, drains, health, metrics, .. } = ground;
    let serving = Serving {
        node,
        tenure,
        host,
        saver,
        departed,
        drains: drains.subscribe(),
        member_drained,
        keys,
        secret,
        last_view,
        servers,
        commands,
        view: view_sender,
        health,
        metrics,
        updates,
        elected,
        notices,
        events,
    };
    serving.run(&mut changes, exits, server).await
}

pub fn sysctls(paths: &PathArgs) -> Sysctls {
    Sysctls::new(&paths.sysctl_dir, paths.state_dir.join("sysctl.json"))
}
