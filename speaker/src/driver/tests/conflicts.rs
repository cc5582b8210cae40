//! Two owners of one address on one cable: nodes of two clusters, each with its packet path, or a node and a host.

use std::path::Path;

use ebpf_common::{ABI_VERSION, Config, Verdict};
use speaker_core::election::Action;
use speaker_core::forwarding::diff::MapOp;
use speaker_core::wire::advert::Reject;

use super::*;
use crate::dataplane::ForwardingMaps;
use crate::dataplane::loader::{self, Loaded};
use crate::io::tests::ip;

/// One node, its kernel, and which end of the cable it has.
struct Side {
    driven: Driven,
    lease: LeaseMaps,
    counters: Counters,
    _loaded: Loaded,
}

impl Side {
    fn new(driven: Driven, pins: &Pins, device: &str, last: u8) -> Self {
        let mut loaded = loader::load(pins).expect("the packet path");
        loaded.attach(device).expect("native XDP on a veth");
        let mut maps = ForwardingMaps::open(pins).unwrap();
        maps.execute(&[MapOp::SetVip { addr: VIP.octets() }], |_| {}).unwrap();
        let config = Config { mac: mac(last).0, self_slot: 1, abi: ABI_VERSION, ..Config::default() };
        maps.set_config(config).unwrap();
        let (lease, counters) = (LeaseMaps::open(pins).unwrap(), Counters::open(pins).unwrap());
        Self { driven, lease, counters, _loaded: loaded }
    }

    fn owns(&self) -> bool {
        let own = self.lease.term(VIP).is_some();
        assert_eq!(own, self.driven.owns());
        own
    }

    /// Requests for the VIP that its packet path has answered.
    fn answered(&self) -> u64 {
        let counted = self.counters.read().unwrap();
        counted.into_iter().filter(|(verdict, _)| *verdict == Verdict::ArpAnswered).map(|(_, frames)| frames).sum()
    }

    /// An advert of the other cluster arrives.
    fn meets(&mut self, cluster: u64) {
        self.driven.driven.state.incoming.cluster = Some(cluster);
        self.driven.driven.state.act(Action::Rejected { reason: Reject::WrongCluster }, clock::now());
    }

    fn is_told_to_yield(&mut self) -> bool {
        self.driven.noticed().iter().any(yields)
    }
}

fn yields(notice: &Notice) -> bool {
    matches!(notice, Notice::Yielded { vip: VIP, .. })
}

/// Turns of those that live until it is so.
fn turn(sides: &mut [Side], what: &str, mut done: impl FnMut(&[Side]) -> bool) {
    let end = clock::now() + PATIENCE;
    while !done(sides) {
        assert!(clock::now() < end, "not within {PATIENCE:?}: {what}");
        sides.iter_mut().for_each(|side| side.driven.driven.step().unwrap());
    }
}

/// Hosts of the segment would take it for the VIP's owner.
fn announces_to_all(frame: &[u8], from: Mac) -> bool {
    let is_arp = frame.len() >= 42 && frame[12..14] == [0x08, 0x06];
    is_arp && frame[..6] == Mac::BROADCAST.0 && frame[6..12] == from.0 && frame[28..32] == VIP.octets()
}

fn owners(sides: &[Side]) -> Vec<bool> {
    sides.iter().map(Side::owns).collect()
}

/// Both have owned the address for long when the cable is plugged in. One yields, both name it; the one that stays answers the other's probes,
/// and when it is gone the other comes back.
#[test]
fn of_two_clusters_one_yields_within_a_second_and_comes_back() {
    driven(|first, pins| {
        let other = Pins::new(Path::new("/sys/fs/bpf/other"));
        let _maps = loader::load(&other).expect("the packet path");
        let second = Driven::at("far", 2, 6, &other);
        let mut sides = vec![Side::new(first, pins, "node", 1), Side::new(second, &other, "far", 2)];
        ip("link set far down\n");
        turn(&mut sides, "both own it", |sides| owners(sides) == [true, true]);
        let settled = clock::now() + conflict::SETTLED;
        turn(&mut sides, "both have for long", |_| clock::now() > settled);
        assert_eq!(owners(&sides), [true, true], "they cannot know");

        ip("link set far up\n");
        let met = clock::now();
        let frames = std::iter::from_fn(|| sides[0].driven.far.receive());
        drop(frames.collect::<Vec<_>>());
        for (side, other) in sides.iter_mut().zip([6, 5]) {
            side.meets(other);
        }
        turn(&mut sides, "one of them yields", |sides| owners(sides) != [true, true]);
        let both_answered = clock::now().since(met);
        assert!(both_answered < Duration::from_secs(1), "both answered for {both_answered:?}");
        println!("two clusters answered for one address for {both_answered:?}");
        turn(&mut sides, "both name it", |sides| sides.iter().all(|side| side.driven.health.in_conflict(VIP)));
        let kept = owners(&sides);
        assert_eq!(kept, [true, false], "the lower cluster number stays");
        let frames = std::iter::from_fn(|| sides[0].driven.far.receive());
        let misled: Vec<_> = frames.filter(|frame| announces_to_all(frame, mac(2))).collect();
        assert!(misled.is_empty(), "the one that yields has announced it: {misled:x?}");
        assert!(sides.iter().all(|side| side.driven.metrics.address_conflicts.get() == 1));
        assert!(sides[1].is_told_to_yield() && !sides[0].is_told_to_yield());

        let answered = sides[0].answered();
        turn(&mut sides, "the owner answers probes", |sides| sides[0].answered() >= answered + 5);
        assert_eq!((owners(&sides), sides[1].answered()), (vec![true, false], 0));

        // It turns no more: its lease ends.
        let gone = sides.remove(0);
        turn(&mut sides, "the other comes back", |sides| owners(sides) == [true]);
        assert!(!sides[0].driven.health.in_conflict(VIP) && sides[0].driven.metrics.address_conflicts.get() == 0);
        assert!(matches!(sides[0].driven.noticed()[..], [Notice::Acquired { vip: VIP, .. }, ..]));
        drop(gone);
    });
}

/// The pool of a second cluster contains an address that the first has given out: what was there first stays.
#[test]
fn a_new_owner_yields_to_the_one_that_was_there() {
    driven(|second, pins| {
        let other = Pins::new(Path::new("/sys/fs/bpf/other"));
        let _maps = loader::load(&other).expect("the packet path");
        // The higher cluster number: that it was there first outranks it.
        let mut sides = vec![Side::new(Driven::at("far", 2, 6, &other), &other, "far", 2)];
        turn(&mut sides, "the first owns it", |sides| owners(sides) == [true]);
        let settled = clock::now() + conflict::SETTLED;
        turn(&mut sides, "it has for long", |_| clock::now() > settled);
        sides.push(Side::new(second, pins, "node", 1));
        turn(&mut sides, "the second yields", |sides| sides[1].driven.health.in_conflict(VIP));
        turn(&mut sides, "the first names it", |sides| sides[0].driven.health.in_conflict(VIP));
        assert_eq!(owners(&sides), [true, false]);
        let still = clock::now() + Duration::from_secs(2);
        turn(&mut sides, "it stays so", |sides| {
            assert_eq!(owners(sides), [true, false]);
            clock::now() > still
        });
    });
}

/// A host that was off comes up with the address as its own, and asks for its router: the conflict is named, the owner stays, and says so.
#[test]
fn a_host_with_the_address_is_named_and_the_owner_stays() {
    driven(|mut driven, _| {
        driven.until("it owns the VIP", |driven| driven.owns());
        let quiet = clock::now() + Duration::from_millis(1200);
        driven.until("it has announced it", |_| clock::now() > quiet);
        driven.announced();
        driven.far.send(&arp(mac(7), 1, VIP, Mac::BROADCAST));
        let sent = clock::now();
        driven.until("it is named", |driven| driven.health.in_conflict(VIP));
        assert!(clock::now().since(sent) < Duration::from_secs(2));
        driven.until("the VIP is announced again", |driven| driven.announced() > 0);
        assert!(driven.owns() && driven.metrics.address_conflicts.get() == 1);
        assert!(!driven.noticed().iter().any(yields));
    });
}

/// It is asked as nobody asks who announces: a proxy is silent then (Linux's), a host that has the address is not.
#[test]
fn an_answer_to_an_announcement_is_a_conflict_only_with_one_to_a_probe() {
    driven(|mut driven, _| {
        driven.until("it owns the VIP", |driven| driven.owns());
        let replied = |to: Ipv4Addr| {
            let mut frame = arp(mac(7), 2, VIP, mac(1));
            frame[38..42].copy_from_slice(&to.octets());
            frame
        };
        let is_probe = |frame: &Vec<u8>| {
            frame.len() >= 42
                && frame[12..14] == [0x08, 0x06]
                && frame[28..32] == [0; 4]
                && frame[38..42] == VIP.octets()
        };
        driven.far.send(&replied(VIP));
        driven.until("the VIP is probed", |driven| {
            std::iter::from_fn(|| driven.far.receive()).any(|frame| is_probe(&frame))
        });
        let later = clock::now() + Duration::from_millis(200);
        driven.until("nobody has answered", |_| clock::now() > later);
        assert!(!driven.health.in_conflict(VIP) && driven.metrics.address_conflicts.get() == 0);
        driven.far.send(&replied(Ipv4Addr::UNSPECIFIED));
        driven.until("the host is named", |driven| driven.health.in_conflict(VIP));
        assert!(driven.owns());
    });
}
