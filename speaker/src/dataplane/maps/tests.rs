//! Real maps in a BPF file system that only the test's thread sees; the kernel removes both with the thread.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use aya::maps::ArrayOfMaps;
use ebpf_common::{MAX_SERVICES, RING_WORDS, RingHead, Row};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use speaker_core::forwarding::diff::{Layout, diff};
use speaker_core::forwarding::{Ring, Service, Table};
use speaker_core::view::ServiceAttributes;

use super::*;
use crate::dataplane::loader;

fn with_maps(test: impl FnOnce(&Pins) + Send + 'static) {
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

fn key(number: u32) -> ServiceKey {
    ServiceKey { addr: [192, 0, 2, (number >> 16) as u8], port: (number as u16).to_be_bytes(), proto: 6, pad: 0 }
}

/// So many service ports; `ring` gives the ring of each: number n has n + 1 rows.
fn table(service_ports: u32, ring: impl Fn(u32) -> u32) -> Table {
    let make = |number: u32| {
        let (rows, nodes) = (vec![0; number as usize + 1], vec!["n".into()]);
        Arc::new(Ring { rows, nodes, digest: number.into(), ..Ring::default() })
    };
    let rings: BTreeMap<u32, Arc<Ring>> =
        (0..service_ports).map(&ring).collect::<BTreeSet<_>>().into_iter().map(|n| (n, make(n))).collect();
    let service = |number: u32| {
        let ring = rings[&ring(number)].clone();
        (key(number), Service { attributes: ServiceAttributes::default(), no_new_flows: false, ring, alternates: None })
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
