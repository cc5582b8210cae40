//! Real maps in a BPF file system that only the test's thread sees; the kernel removes both with the thread.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::sync::Arc;

use aya::maps::ArrayOfMaps;
use aya::maps::IterableMap as _;
use ebpf_common::{MAX_SERVICES, MAX_SOURCE_RANGES, RING_WORDS, RingHead, Row};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use speaker_core::forwarding::diff::{Layout, diff};
use speaker_core::forwarding::{Restricted, Ring, Service, Table};
use speaker_core::view::{ObjectName, Prefix, ServiceAttributes};

use super::*;
use crate::dataplane::loader;

pub fn with_maps(test: impl FnOnce(&Pins) + Send + 'static) {
    let body = || {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace needs CAP_SYS_ADMIN");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
        mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).expect("a BPF file system");
        let pins = Pins::new(Path::new("/sys/fs/bpf/sheave"));
        let _loaded = loader::load(&pins).expect("the packet path");
        test(&pins);
    };
    std::thread::spawn(body).join().unwrap();
}

/// From now on the kernel takes no entry of this map from a program.
pub fn freeze(pins: &Pins, name: &str) {
    /// linux/bpf.h, `enum bpf_cmd`.
    const BPF_MAP_FREEZE: libc::c_long = 22;
    let map = pinned(pins, name).unwrap();
    let attributes = map.fd().as_fd().as_raw_fd() as u32;
    // SAFETY: the command reads these four bytes: the map's file descriptor.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_FREEZE, &raw const attributes, size_of::<u32>()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

impl LeaseMaps {
    /// With which term the kernel has this VIP as owned.
    pub fn term(&self, vip: Ipv4Addr) -> Option<u64> {
        self.own.get(&vip.octets(), 0).ok().map(|own| own.term)
    }
}

fn key(number: u32) -> ServiceKey {
    ServiceKey { addr: [192, 0, 2, (number >> 16) as u8], port: (number as u16).to_be_bytes(), proto: 6, pad: 0 }
}

/// So many service ports; `ring` gives the ring of each: number n has n + 1 rows.
fn table(service_ports: u32, ring: impl Fn(u32) -> u32) -> Table {
    let make = |number: u32| {
        let (rows, nodes) = (vec![0; number as usize + 1], vec!["n".into()]);
        Arc::new(Ring { rows: rows.into(), nodes, digest: number.into(), ..Ring::default() })
    };
    let rings: BTreeMap<u32, Arc<Ring>> =
        (0..service_ports).map(&ring).collect::<BTreeSet<_>>().into_iter().map(|n| (n, make(n))).collect();
    let service = |number: u32| {
        let ring = rings[&ring(number)].clone();
        (
            key(number),
            Service {
                attributes: ServiceAttributes::default(),
                no_new_flows: false,
                excluded_take: false,
                ring,
                alternates: None,
            },
        )
    };
    let nodes = [("n".into(), Ipv4Addr::new(192, 0, 2, 101))].into();
    Table { nodes, services: (0..service_ports).map(service).collect(), ..Table::default() }
}

/// As dataplane sync does it; what was left out, by name.
fn follow(maps: &mut ForwardingMaps, layout: &mut Layout, have: &mut MapState, table: &Table) -> Vec<&'static str> {
    let (want, exhausted) = layout.want(table, have, &BTreeMap::new(), "n", &BTreeSet::new());
    let ops = diff(have, &want);
    maps.execute(&ops, |op| have.apply(op)).unwrap();
    assert_eq!(*have, want);
    exhausted.iter().map(|error| error.what).collect()
}

/// What a packet to this service port finds.
fn rows(pins: &Pins, maps: &ForwardingMaps, number: u32) -> (u32, Row) {
    let value = maps.services.get(&key(number), 0).unwrap();
    let rings: ArrayOfMaps<_, ebpf_object::Ring> =
        open(pins, map::RINGS, Map::ArrayOfMaps).unwrap().try_into().unwrap();
    let ring = rings.get(&value.ring, 0).unwrap();
    let word = |word: u32| ring.get(&(word / RING_WORDS as u32), 0).unwrap()[word as usize % RING_WORDS];
    let head = RingHead(word(0));
    (head.rows(), Row(word(head.row_at(0, word(head.number_at(0))))))
}

/// With the limit of file descriptors that a service has: all rings of a change at once do not fit.
#[test]
fn more_rings_than_file_descriptors_are_put_in_batches() {
    with_maps(|pins| {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 1024, hard).unwrap();
        let mut maps = ForwardingMaps::open(pins).unwrap();
        let (mut layout, mut have) = (Layout::default(), MapState::default());
        assert!(follow(&mut maps, &mut layout, &mut have, &table(1200, |number| number)).is_empty());
        let row = Row::new(1, [0; 3]);
        assert_eq!([0, 511, 512, 1199].map(|number| rows(pins, &maps, number)), [1, 512, 513, 1200].map(|n| (n, row)));

        // A speaker that starts finds which slots there are, not what they hold, and goes on with them.
        let mut restored = maps.restore().unwrap();
        assert_eq!(restored.services, have.services);
        let mut layout = Layout::restore(&restored);
        follow(&mut maps, &mut layout, &mut restored, &table(1200, |number| number));
        assert_eq!(restored, have);

        // All the same: one slot, and the others are given back.
        follow(&mut maps, &mut layout, &mut have, &table(1200, |_| 7));
        assert_eq!((have.rings.len(), rows(pins, &maps, 0), rows(pins, &maps, 1199)), (1, (8, row), (8, row)));
        follow(&mut maps, &mut layout, &mut have, &Table::default());
        assert_eq!(maps.restore().unwrap(), MapState::default());
    });
}

#[test]
fn a_full_map_of_service_ports_names_what_is_left_out_and_serves_the_rest() {
    with_maps(|pins| {
        let mut maps = ForwardingMaps::open(pins).unwrap();
        let (mut layout, mut have) = (Layout::default(), MapState::default());
        let all = table(MAX_SERVICES + 1, |number| number % 7);
        assert_eq!(follow(&mut maps, &mut layout, &mut have, &all), ["service_port"]);
        assert_eq!((have.services.len(), have.rings.len()), (MAX_SERVICES as usize, 7));
        assert_eq!(rows(pins, &maps, MAX_SERVICES - 1).0, (MAX_SERVICES - 1) % 7 + 1);
        // One goes: the new one has to wait until the map has room, and has it the next time.
        let mut last = all.clone();
        last.services.pop_first();
        assert_eq!(follow(&mut maps, &mut layout, &mut have, &last), ["service_port"]);
        assert!(follow(&mut maps, &mut layout, &mut have, &last).is_empty());
        assert_eq!(rows(pins, &maps, MAX_SERVICES).0, MAX_SERVICES % 7 + 1);
    });
}

/// Each of these service ports is a Service of its own, with so many ranges: 10.<number>.<range>/24, as many bits as the map can tell.
fn with_ranges(table: Table, ranges: u32) -> Table {
    let list = |number: u32| -> Vec<Prefix> {
        let network = |range: u32| Ipv4Addr::from(number << 18 | range << 8);
        (0..ranges).map(|range| Prefix { network: network(range), length: 24 }).collect()
    };
    let restricted = table.services.keys().zip(0..).map(|(key, number)| {
        let restricted = Restricted { ranges: list(number).into(), ports: [*key].into() };
        (ObjectName::new("default", format!("service-{number}")), restricted)
    });
    Table { restricted: restricted.collect(), ..table }
}

/// By the kernel's own count, which leaves out the nodes between two entries: of them there are fewer than entries.
fn memory(map: &MapData) -> u64 {
    let info = std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", map.fd().as_fd().as_raw_fd())).unwrap();
    let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:")).unwrap();
    bytes.trim().parse().unwrap()
}

/// The figures of docs/services.md are what this prints with `--nocapture`.
#[test]
fn a_thousand_services_with_ten_ranges_fit_and_a_restarted_speaker_goes_on_with_them() {
    with_maps(|pins| {
        let mut maps = ForwardingMaps::open(pins).unwrap();
        let (mut layout, mut have) = (Layout::default(), MapState::default());
        let all = with_ranges(table(1000, |_| 7), 10);
        let began = std::time::Instant::now();
        assert!(follow(&mut maps, &mut layout, &mut have, &all).is_empty());
        assert_eq!((have.ranges.len(), layout.restricted().len()), (10_000, 1000));
        let bytes = memory(maps.source_ranges.map());
        println!("10,000 ranges in {:?}, {bytes} bytes", began.elapsed());
        assert!(bytes < 1 << 20, "{bytes}");
        let slots = |layout: &Layout| layout.restricted();
        let before = slots(&layout);

        let mut restored = maps.restore().unwrap();
        assert_eq!((&restored.ranges, &restored.services), (&have.ranges, &have.services));
        let mut layout = Layout::restore(&restored);
        assert!(follow(&mut maps, &mut layout, &mut restored, &all).is_empty());
        assert_eq!((restored, slots(&layout)), (have.clone(), before));

        // Without ranges nothing of them stays.
        follow(&mut maps, &mut layout, &mut have, &table(1000, |_| 7));
        assert!(maps.restore().unwrap().ranges.is_empty() && have.services.values().all(|value| value.flags == 0));
    });
}

#[test]
fn more_ranges_than_there_is_room_for_are_named_and_their_service_admits_no_client() {
    with_maps(|pins| {
        let mut maps = ForwardingMaps::open(pins).unwrap();
        let (mut layout, mut have) = (Layout::default(), MapState::default());
        const EACH: u32 = 1024;
        let fit = MAX_SOURCE_RANGES / EACH;
        let all = with_ranges(table(fit + 1, |_| 7), EACH);
        assert_eq!(follow(&mut maps, &mut layout, &mut have, &all), ["source_range"]);
        assert_eq!(maps.restore().unwrap().ranges.len(), MAX_SOURCE_RANGES as usize);
        let of = |slot: u16| have.ranges.iter().filter(|range| range.slot == slot).count();
        let mut sizes: Vec<usize> = have.services.values().map(|value| of(value.ranges_slot())).collect();
        sizes.sort_unstable();
        assert_eq!((sizes[0], sizes[1], sizes.len()), (0, EACH as usize, fit as usize + 1));
        println!("{MAX_SOURCE_RANGES} ranges, {} bytes", memory(maps.source_ranges.map()));
    });
}

/// As an upgrade finds them: the maps of the same layout, without those that came later.
#[test]
fn pins_of_a_version_without_later_maps_are_taken_over() {
    with_maps(|pins| {
        let (mut layout, mut have) = (Layout::default(), MapState::default());
        let plain = table(20, |number| number);
        follow(&mut ForwardingMaps::open(pins).unwrap(), &mut layout, &mut have, &plain);
        for name in [map::NODE_ADDRESSES, map::SOURCE_RANGES, map::DENIED, map::FRAGMENTS, map::SERVICE_COUNTERS] {
            std::fs::remove_file(pins.map(name)).unwrap();
        }
        assert!(ForwardingMaps::open(pins).is_err());
        let _next = loader::load(pins).expect("the maps that are missing are made");
        let mut maps = ForwardingMaps::open(pins).unwrap();
        let mut restored = maps.restore().unwrap();
        assert_eq!((&restored.services, restored.ranges.len()), (&have.services, 0));
        let mut layout = Layout::restore(&restored);
        assert!(follow(&mut maps, &mut layout, &mut restored, &with_ranges(plain, 3)).is_empty());
        assert_eq!((restored.ranges.len(), restored.services.len()), (60, 20));
        assert_eq!(Counters::open(pins).unwrap().denied(1).unwrap(), 0);
        assert_eq!(Counters::open(pins).unwrap().service(1).unwrap(), Default::default());
        assert!(pins.map(map::FRAGMENTS).exists());
    });
}
