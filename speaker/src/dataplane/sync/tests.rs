//! The loop with real maps, the real nft and its own socket, in network and mount namespaces that only a test's threads are in.

mod addresses;
mod pods;
mod ranges;

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{SocketAddrV4, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use speaker_core::attributes;
use speaker_core::backend::Place;
use speaker_core::forwarding::QUIET;
use speaker_core::forwarding::previous::PreviousRings;
use speaker_core::startup::{Starts, Target};
use speaker_core::view::endpoints::service_key;
use speaker_core::view::{
    Conditions, Endpoint, EndpointSlice, Event, Node, Object, ObjectName, Port, Prefix, Protocol, Service,
    ServiceAttributes, VirtualIp,
};
use speaker_core::wire::report::{Datagram, Key, Keyring};

use super::super::inbox::{self, Outbox};
use super::super::loader::{self, Pins};
use super::super::maps::Counters;
use super::*;
use crate::backend::nft::Nft;
use crate::health::Cause;
use crate::io::udp::RECEIVE_BUFFER;
use crate::state::StateDir;

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLUSTER: u64 = 7;

fn address(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 10 + node)
}

fn node_name(node: u8) -> String {
    format!("n{node}")
}

fn keys() -> Keyring {
    Keyring { current: Key { id: 1, secret: [1; 32] }, other: None }
}

/// Three nodes; each service port with a pod on each of these nodes.
fn view(services: &[(u16, &[u8])]) -> View {
    // No pod of these listens.
    view_of(services, attributes::StartupProbe::Off)
}

fn view_of(services: &[(u16, &[u8])], startup_probe: attributes::StartupProbe) -> View {
    let node = |n| Object::Node(node_name(n), Node::at(address(n)));
    let mut objects: Vec<Object> = (1..=3).map(node).collect();
    let mut names = Vec::new();
    for (port, nodes) in services {
        let name = ObjectName::new("default", format!("port-{port}"));
        let ports = vec![Port { name: "http".into(), port: *port, protocol: Protocol::Tcp }];
        let endpoint = |n: &u8| Endpoint {
            address: Ipv4Addr::new(10, 0, *n, (*port % 250) as u8),
            node: Some(node_name(*n)),
            conditions: Conditions::READY,
        };
        let endpoints = nodes.iter().map(endpoint).collect();
        let slice = EndpointSlice { service: name.name.clone(), ports: ports.clone(), endpoints };
        let attributes = ServiceAttributes { startup_probe, ..ServiceAttributes::default() };
        objects.push(Object::Service(name.clone(), Service { ports, attributes }));
        objects.push(Object::EndpointSlice(name.clone(), slice));
        names.push(name);
    }
    objects.push(Object::VirtualIp(VIP, VirtualIp { pool: "pool".into(), services: names, ..VirtualIp::default() }));
    View::from(objects)
}

fn down(nodes: &[u8]) -> Message {
    let down = nodes.iter().filter_map(|n| NodeName::new(&node_name(*n))).collect();
    Message::Unavailable { down, silent: BTreeSet::new(), unknown: BTreeSet::new() }
}

/// A node whose speaker's dataplane runs, and what a test sees of it.
struct World {
    dir: PathBuf,
    pins: Pins,
    view: watch::Sender<Option<Arc<View>>>,
    outbox: Outbox,
    health: Arc<HealthFlags>,
    metrics: Arc<Metrics>,
    /// On the other end of the uplink.
    segment: MulticastSocket,
    synced: Arc<Mutex<Option<Synced>>>,
}

/// Runs the test in namespaces of its own; threads and programs that it starts are in them too.
fn in_namespaces(test: impl FnOnce(&Path) + Send + 'static) {
    static WORLDS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = WORLDS.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("sheave-sync-{}-{number}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let mounted = dir.clone();
    let result = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("namespaces need CAP_SYS_ADMIN");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), &mounted, Some("tmpfs"), MsFlags::empty(), Some("size=4m")).unwrap();
        fs::create_dir_all(mounted.join("bpf")).unwrap();
        mount(Some("bpf"), &mounted.join("bpf"), Some("bpf"), MsFlags::empty(), none).unwrap();
        test(&mounted);
    })
    .join();
    fs::remove_dir(&dir).unwrap();
    result.unwrap();
}

fn ip(arguments: &str) {
    assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "{arguments}");
}

/// Stands in front of nft: waits while the file `hold` is locked, refuses while there is a file `refuse`, and notes each attempt.
fn wrapper(dir: &Path) -> PathBuf {
    let program = dir.join("nft");
    let dir = dir.display();
    let script = format!(
        "#!/bin/sh\necho >>{dir}/attempts\n[ -e {dir}/refuse ] && {{ echo refused by the test >&2; exit 1; }}\n\
         exec flock {dir}/hold nft \"$@\"\n"
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    File::create(program.with_file_name("hold")).unwrap();
    program
}

/// The kernel's flows, after a wait while the file `hold-conntrack` is locked; its begin and its end are noted.
fn held_conntrack(dir: &Path) -> conntrack_scan::Source {
    let (kernel, dir) = (conntrack_scan::conntrack(), dir.to_path_buf());
    File::create(dir.join("hold-conntrack")).unwrap();
    Arc::new(move |vips, change| {
        let note = |what| writeln!(fs::OpenOptions::new().create(true).append(true).open(dir.join(what))?);
        note("scans-begun")?;
        let hold = Flock::lock(File::open(dir.join("hold-conntrack"))?, FlockArg::LockShared);
        let flows = kernel(vips, change);
        drop(hold.map_err(|(_, error)| error)?);
        note("scans-done")?;
        flows
    })
}

impl World {
    fn start(dir: &Path) -> Self {
        ip("link add eth0 type veth peer name peer0");
        for device in ["eth0", "peer0"] {
            fs::write(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "0").unwrap();
            fs::write(format!("/proc/sys/net/ipv4/conf/{device}/accept_local"), "1").unwrap();
        }
        fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0").unwrap();
        ip("addr add 192.0.2.11/24 dev eth0");
        ip("addr add 198.51.100.1/24 dev peer0");
        ["lo", "eth0", "peer0"].iter().for_each(|device| ip(&format!("link set {device} up")));
        let index = |device: &str| nix::net::if_::if_nametoindex(device).unwrap();
        let group = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 254), 7481);
        let segment = MulticastSocket::open("peer0", index("peer0"), group).unwrap();
        let report_udp = MulticastSocket::open("eth0", index("eth0"), group).unwrap();

        let pins = Pins::new(&dir.join("bpf/sheave"));
        let loaded = loader::load(&pins).unwrap();
        let metrics = Arc::new(Metrics::new(Counters::open(&pins).unwrap()).unwrap());
        let health = Arc::new(HealthFlags::default());
        let (outbox, inbox) = inbox::channel(metrics.clone());
        let (view_sender, view) = watch::channel(None);
        let synced = Arc::new(Mutex::new(None));
        let last_synced = synced.clone();
        let hour = Duration::from_secs(3600);
        let sync = Sync {
            node: node_name(1),
            node_ip: address(1),
            uplink: Uplink::new("eth0").unwrap(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            hash_key: [1, 2],
            udp_silent: false,
            return_window: Duration::ZERO,
            advert_ports: BTreeSet::new(),
            cluster: 1,
            attachment: Attachment::new(loaded, "eth0", index("eth0")),
            planner: Planner::new([1, 2], PreviousRings::new(hour)),
            saver: Saver::start(StateDir::open(&dir.join("state")), metrics.clone()).unwrap(),
            startup_probe: StartupProbe::Off,
            members: None,
            health: health.clone(),
            metrics: metrics.clone(),
            on_synced: Box::new(move |synced| *last_synced.lock().unwrap() = Some(synced)),
            on_lagging: Box::new(|_| {}),
        };
        let tools = Tools {
            reporter: Reporter::new(&node_name(1), [1, 2], hour),
            flows: held_conntrack(dir),
            clients: conntrack_scan::nftables(Place::Alone.table()),
            maps: ForwardingMaps::open(&pins).unwrap(),
            backend: Backend::new(Nft::new(wrapper(dir))),
            // It would run nft beside the plans that are counted here.
            arp_guard: None,
        };
        let exchange = exchange::Config {
            node: NodeName::new(&node_name(1)).unwrap(),
            cluster: CLUSTER,
            epoch: 1,
            keys: keys(),
            interval: Duration::from_secs(1),
            differ: Duration::from_secs(5),
            pods: BTreeMap::new(),
        };
        let exchange = Exchange::new(exchange, clock::now());
        let inputs = Inputs { view, inbox, exchange, report_udp };
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(run(sync, tools, inputs)).unwrap();
        });
        for n in [2, 3] {
            outbox.send(Message::Neighbour { ip: address(n), mac: Mac([2, 0, 0, 0, 0, n]) }).unwrap();
        }
        Self { dir: dir.into(), pins, view: view_sender, outbox, health, metrics, segment, synced }
    }

    fn show(&self, services: &[(u16, &[u8])]) {
        self.view.send(Some(Arc::new(view(services)))).unwrap();
    }

    /// Holds every transaction (`hold`), or every scan of conntrack (`hold-conntrack`), until the value is dropped.
    fn hold(&self, what: &str) -> Flock<File> {
        Flock::lock(File::open(self.dir.join(what)).unwrap(), FlockArg::LockExclusive).unwrap()
    }

    /// Of runs of nft (`attempts`), or of scans of conntrack (`scans-begun`, `scans-done`).
    fn count(&self, what: &str) -> usize {
        fs::read_to_string(self.dir.join(what)).unwrap_or_default().lines().count()
    }

    /// The nodes that rows of a service port name, by the maps in the kernel, and whether it is served here; `None`: it is not there.
    fn rows(&self, port: u16) -> Option<(Vec<Ipv4Addr>, bool)> {
        let maps = ForwardingMaps::open(&self.pins).unwrap().restore().unwrap();
        let value = maps.services.get(&service_key(VIP, port, Protocol::Tcp))?;
        let rows = ForwardingMaps::rows(&self.pins, value.ring).unwrap();
        let slots: BTreeSet<u16> = rows.iter().map(|row| row.primary()).collect();
        let nodes = slots.into_iter().filter_map(|slot| Some(maps.nodes.get(&u32::from(slot))?.addr.into()));
        let mut nodes: Vec<Ipv4Addr> = nodes.collect();
        nodes.sort_unstable();
        Some((nodes, value.flags & ServiceValue::SERVED_HERE != 0))
    }

    fn serves(&self, port: u16, nodes: &[u8], here: bool) -> bool {
        self.rows(port) == Some((nodes.iter().map(|n| address(*n)).collect(), here))
    }

    /// Everything but what belongs to other threads.
    fn faults(&self) -> Vec<&'static str> {
        let others = ["no_carrier", "joining", "election_stalled"];
        let reasons = self.health.not_ready().into_iter().map(Cause::label);
        reasons.filter(|reason| !others.contains(reason)).collect()
    }

    /// The next report that this node sends.
    fn report(&self) -> Datagram {
        let mut buffer = [0; RECEIVE_BUFFER];
        let mut report = None;
        until("a report is sent", Duration::from_secs(3), || {
            let received = self.segment.receive(&mut buffer).unwrap();
            report = received.and_then(|received| Datagram::open(received.bytes, CLUSTER, &keys()).ok());
            report.is_some()
        });
        report.unwrap()
    }

    /// The new pods of this node, as it reports them next.
    fn starts(&self) -> Starts {
        let mut starts = None;
        until("new pods are reported", SOON, || {
            starts = self.report().starts;
            starts.is_some()
        });
        starts.unwrap()
    }

    /// Takes every report that waits, then the next one.
    fn newest_report(&self) -> Datagram {
        let mut buffer = [0; RECEIVE_BUFFER];
        while self.segment.receive(&mut buffer).unwrap().is_some() {}
        self.report()
    }
}

fn until(what: &str, patience: Duration, mut happened: impl FnMut() -> bool) -> Duration {
    let began = std::time::Instant::now();
    while !happened() {
        assert!(began.elapsed() < patience, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    began.elapsed()
}

/// At a start, on a busy machine.
const START: Duration = Duration::from_secs(20);
/// The usual time on a busy machine; a hold lasts longer.
const SOON: Duration = Duration::from_secs(3);

#[test]
fn while_nft_hangs_rows_of_a_lost_node_move_and_reports_go_on() {
    in_namespaces(|dir| {
        let world = World::start(dir);
        world.show(&[(80, &[1, 2, 3]), (81, &[2, 3]), (82, &[2, 3])]);
        until("the start", START, || world.faults().is_empty() && world.serves(80, &[1, 2, 3], true));
        let mut viewed = 0;
        until("the view is followed", SOON, || {
            viewed = world.newest_report().view;
            viewed != 0
        });
        let hold = world.hold("hold");
        // Port 81 gets its first pod here, port 90 is new, port 82 goes: only what depends on rules waits.
        world.show(&[(80, &[1, 2, 3]), (81, &[1, 2, 3]), (90, &[1, 2]), (91, &[2])]);
        until("a removed port goes, a new one elsewhere comes", SOON, || {
            world.rows(82).is_none() && world.serves(91, &[2], false)
        });
        assert!(world.serves(81, &[2, 3], false) && world.rows(90).is_none(), "its rules are not in force");
        world.outbox.send(down(&[3])).unwrap();
        let took = until("rows of the lost node move", SOON, || world.serves(80, &[1, 2], true));
        println!("rows moved after {took:.0?} while nft was held");
        assert!(world.serves(81, &[1, 2], false), "the rows as they were name the lost node");
        let before = world.newest_report();
        let after = world.report();
        assert!(after.sequence > before.sequence);
        assert_eq!(after.view, viewed, "the rules do not follow the new view yet");

        until("it has a name", Duration::from_secs(10), || world.faults() == ["nft_failing"]);
        assert_eq!(world.health.not_alive(), [Cause::ElectionStalled]);
        assert_eq!(world.metrics.nft_errors.with_label_values(&["slow"]).get(), 1);
        until("a new port does not wait for ever", SOON, || world.serves(90, &[1, 2], false));
        drop(hold);
        until("the rules are in force", SOON, || world.serves(90, &[1, 2], true) && world.serves(81, &[1, 2], true));
        until("the fault is over", SOON, || world.faults().is_empty());
        until("the view is followed", SOON, || world.newest_report().view != viewed);
    });
}

#[test]
fn while_conntrack_is_not_read_rows_of_a_lost_node_move_and_reports_go_on() {
    in_namespaces(|dir| {
        let world = World::start(dir);
        world.show(&[(80, &[1, 2, 3])]);
        until("the start", START, || world.faults().is_empty() && world.serves(80, &[1, 2, 3], true));
        let hold = world.hold("hold-conntrack");
        // After a change of the table conntrack is read at once.
        world.show(&[(80, &[1, 2, 3]), (81, &[2, 3])]);
        until("the table is another", SOON, || world.serves(81, &[2, 3], false));
        until("a scan has begun", SOON, || world.count("scans-begun") > world.count("scans-done"));
        let scans = world.count("scans-begun");
        world.outbox.send(down(&[3])).unwrap();
        let took = until("rows of the lost node move", SOON, || world.serves(80, &[1, 2], true));
        println!("rows moved after {took:.0?} while conntrack was held");
        let before = world.newest_report();
        assert!(world.report().sequence > before.sequence);
        assert_eq!((world.faults(), world.count("scans-begun")), (vec![], scans), "one scan at a time");
        drop(hold);
        until("conntrack is read again", SOON, || world.count("scans-done") > scans);
    });
}

#[test]
fn a_refused_transaction_keeps_its_own_change_back_and_nothing_else() {
    in_namespaces(|dir| {
        let world = World::start(dir);
        world.show(&[(80, &[1, 2, 3]), (81, &[2, 3])]);
        until("the start", START, || world.faults().is_empty() && world.serves(80, &[1, 2, 3], true));
        fs::write(dir.join("refuse"), "").unwrap();
        world.show(&[(80, &[1, 2, 3]), (81, &[1, 2, 3]), (82, &[3])]);
        until("it has a name", SOON, || world.faults() == ["nft_failing"]);
        assert!(world.metrics.nft_errors.with_label_values(&["refused"]).get() >= 1);
        assert_eq!(world.metrics.nft_failing.get(), 1);
        until("a port without pods here comes", SOON, || world.serves(82, &[3], false));
        assert!(world.serves(81, &[2, 3], false), "its rules are not in force");
        let before = world.count("attempts");
        world.show(&[(80, &[1, 2]), (81, &[1, 2, 3])]);
        until("other changes arrive", SOON, || world.serves(80, &[1, 2], true) && world.rows(82).is_none());
        assert!(world.serves(81, &[2, 3], false));
        // An election receives VIPs whatever nft does.
        assert!(world.synced.lock().unwrap().as_ref().is_some_and(|synced| synced.ready && synced.desired.len() == 1));
        // What does not happen has no end to wait for: 3 s are two or three attempts of up to four runs of nft.
        std::thread::sleep(Duration::from_secs(3));
        let attempts = world.count("attempts") - before;
        println!("{attempts} runs of nft in 3 s");
        assert!((1..=16).contains(&attempts), "{attempts}");
        fs::remove_file(dir.join("refuse")).unwrap();
        until("it is repeated", 2 * SOON, || world.faults().is_empty() && world.serves(81, &[1, 2, 3], true));
        assert_eq!(world.metrics.nft_failing.get(), 0);
    });
}

#[test]
fn a_disk_that_hangs_costs_persistence_alone() {
    in_namespaces(|dir| {
        let state = dir.join("state");
        fs::create_dir_all(&state).unwrap();
        // Opening a pipe to write waits for a reader: a disk that hangs.
        nix::unistd::mkfifo(&state.join("forwarding.new"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let world = World::start(dir);
        world.show(&[(80, &[1, 2, 3])]);
        until("the start", START, || world.faults().is_empty() && world.serves(80, &[1, 2, 3], true));
        world.outbox.send(down(&[3])).unwrap();
        until("rows move", SOON, || world.serves(80, &[1, 2], true));
        assert!(!state.join("forwarding.json").exists());
        let pipe = File::open(state.join("forwarding.new")).unwrap();
        // A pipe cannot be synchronised.
        until("the failure has a name", SOON, || world.metrics.state_unsaved.get() == 1);
        assert!(pipe.as_raw_fd() > 0 && world.metrics.state_errors.with_label_values(&["forwarding"]).get() >= 1);
        fs::remove_file(state.join("forwarding.new")).unwrap();
        until("it is repeated", 2 * SOON, || state.join("forwarding.json").exists());
        until("the failure is over", SOON, || world.metrics.state_unsaved.get() == 0);
        assert!(world.faults().is_empty());
    });
}

/// Every change would otherwise be a write: a view of a large cluster has tens of megabytes.
#[test]
fn a_view_is_saved_at_most_once_a_second_and_the_last_one_is() {
    in_namespaces(|dir| {
        let pins = Pins::new(&dir.join("bpf/sheave"));
        let _loaded = loader::load(&pins).unwrap();
        let metrics = Arc::new(Metrics::new(Counters::open(&pins).unwrap()).unwrap());
        let disk = StateDir::open(&dir.join("state"));
        let saver = Saver::start(disk.clone(), metrics).unwrap();
        let mut seen = BTreeSet::new();
        for port in 1..=2000 {
            saver.view(Arc::new(view(&[(port, &[1])])));
            seen.extend(disk.load_view().map(|view| view.services().keys().next().unwrap().name.clone()));
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(seen.len() <= 6, "{seen:?}");
        saver.view(Arc::new(view(&[(3000, &[1])])));
        let began = std::time::Instant::now();
        assert!(saver.flush(SOON) && began.elapsed() < Duration::from_millis(900), "an orderly end does not wait");
        assert_eq!(disk.load_view(), Some(view(&[(3000, &[1])])));
    });
}

/// A plan would wait behind it.
#[test]
fn an_audit_that_hangs_has_a_name() {
    in_namespaces(|dir| {
        let world = World::start(dir);
        world.show(&[(80, &[1, 2])]);
        until("the start", START, || world.faults().is_empty() && world.serves(80, &[1, 2], true));
        let hold = world.hold("hold");
        assert!(Command::new("nft").args(["add", "table", "ip", "foreign"]).status().unwrap().success());
        // Another audit is due within 5 s, and has a name 5 s later.
        until("it has a name", Duration::from_secs(13), || world.faults() == ["nft_failing"]);
        drop(hold);
        until("the fault is over", SOON, || world.faults().is_empty());
    });
}
