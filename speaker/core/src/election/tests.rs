//! Scenarios with explicit times, one per rule of docs/election.md and then some.

mod chosen;
mod faults;
mod harness;
mod paces;
mod placed;
mod properties;
mod saved_view;
mod with_pods;

use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::{format, vec};

use harness::*;

use super::*;
use crate::rank;
use crate::time::Duration;
use crate::wire::advert::{Body, Flags, Key, Keyring};

/// All nodes start at once: the VIPs are spread by rank, and none moves afterwards.
#[test]
fn all_start_at_once() {
    let mut cluster = Cluster::new(3, 30);
    cluster.run(ms(1000));
    let owners: Vec<usize> = (1..=30).map(|last| cluster.owner(vip(last))).collect();
    for node in 0..3 {
        let count = owners.iter().filter(|owner| **owner == node).count();
        assert!((4..=16).contains(&count), "{owners:?}");
    }
    assert_eq!(cluster.acquired().len(), 30, "each was claimed once");
    cluster.log.clear();
    cluster.run(ms(5000));
    assert_eq!(cluster.log, [], "then nothing happens");
}

/// One node alone serves after it has listened.
#[test]
fn one_node_alone() {
    let mut cluster = Cluster::new(1, 2);
    let took = cluster.run_until(ms(500), |c| c.holders(vip(1)) == [0]);
    assert!((ms(160)..ms(220)).contains(&took), "{took:?}");
}

/// R3: the owner dies; the next in rank has the VIP within the dead interval and one interval, and never before the lease of
/// the dead one is over.
#[test]
fn owner_dies() {
    let mut cluster = Cluster::settled(3, 1);
    let owner = cluster.owner(vip(1));
    cluster.crash(owner);
    let lease = cluster.nodes[owner].lease;
    let dies = cluster.now;
    cluster.run_until(ms(300), |c| c.others(owner).iter().any(|node| c.nodes[*node].own.contains_key(&vip(1))));
    assert!(cluster.now > lease, "I2");
    assert!(cluster.now.since(dies) <= ms(170), "{:?}", cluster.now.since(dies));
    cluster.run(ms(1000));
    assert_eq!(cluster.acquired().len(), 1, "one successor: {:?}", cluster.log);
}

/// R2: thirty VIPs cost one heartbeat an interval, and a claim list a second.
#[test]
fn heartbeats_do_not_grow_with_vips() {
    let mut cluster = Cluster::settled(3, 30);
    cluster.sent.clear();
    cluster.run(ms(10_000));
    let from = cluster.sent.iter().filter(|(_, node, _)| *node == 0).count();
    assert!((205..=215).contains(&from), "{from} datagrams in 10 s");
}

/// R4: a node that leaves keeps each VIP until its successor has claimed: there is no moment without an owner.
#[test]
fn graceful_leave() {
    let mut cluster = Cluster::settled(3, 10);
    let held = cluster.nodes[0].own.len();
    assert!(held > 0);
    cluster.event(0, Event::Leave);
    let step = Duration::from_micros(50);
    for _ in 0..400 {
        assert!((1..=10).all(|last| !cluster.holders(vip(last)).is_empty()), "{:?}", cluster.log);
        cluster.run(step);
    }
    assert_eq!(cluster.logged(|a| matches!(a, Action::HandedOver { .. })), ["0 HandedOver { all_taken: true }"]);
    assert_eq!(cluster.acquired().len(), held, "{:?}", cluster.log);
    assert!(cluster.released().iter().all(|line| line.contains("HandedOver")));
}

/// No peer is there to take over: leave at once, and report it.
#[test]
fn the_last_one_leaves() {
    let mut cluster = Cluster::settled(1, 1);
    cluster.event(0, Event::Leave);
    assert_eq!(cluster.released(), ["0 Release { vip: 192.0.2.1, reason: NoSuccessor }"]);
    assert_eq!(cluster.logged(|a| matches!(a, Action::HandedOver { .. })), ["0 HandedOver { all_taken: false }"]);
}

/// R4: a dataplane that fails hands over like a node that leaves; a node that may not hold a VIP any more hands over that one.
#[test]
fn not_ready_and_not_eligible_hand_over() {
    let mut cluster = Cluster::settled(3, 2);
    let owner = cluster.owner(vip(1));
    cluster.event(owner, Event::Ready(false));
    cluster.run(ms(20));
    let next = cluster.owner(vip(1));
    assert_ne!(next, owner);
    let others = cluster.others(next).into_iter().map(name).collect();
    cluster.desired.insert(vip(1), Eligible::only(others));
    for node in 0..3 {
        cluster.event(node, Event::Desired(cluster.desired.clone()));
    }
    cluster.run(ms(30));
    assert!(![owner, next].contains(&cluster.owner(vip(1))));
    assert_eq!(cluster.acquired().iter().filter(|line| line.contains("192.0.2.1,")).count(), 2);
}

/// R4: an owner that may not hold the VIP any more holds it while no other could, and hands it over to the first node that can.
#[test]
fn not_eligible_without_a_successor_goes_on() {
    let mut cluster = Cluster::settled(3, 1);
    let owner = cluster.owner(vip(1));
    let others = cluster.others(owner);
    for other in &others {
        cluster.event(*other, Event::Ready(false));
    }
    cluster.run(ms(100));
    cluster.desired.insert(vip(1), Eligible::only(others.iter().copied().map(name).collect()));
    for node in 0..3 {
        cluster.event(node, Event::Desired(cluster.desired.clone()));
    }
    cluster.run(ms(10_000));
    assert_eq!(cluster.holders(vip(1)), [owner], "{:?}", cluster.log);
    cluster.event(others[0], Event::Ready(true));
    cluster.run(ms(150));
    assert_eq!(cluster.holders(vip(1)), [others[0]], "{:?}", cluster.log);
    assert_eq!(cluster.released().len(), 1, "{:?}", cluster.log);
    assert!(cluster.released()[0].contains("HandedOver"), "{:?}", cluster.log);
}

/// R4: a cordoned owner hands over to a first choice; it is chosen again when no first choice is left.
#[test]
fn second_choices_hold_only_what_no_first_choice_can() {
    let mut cluster = Cluster::settled(3, 6);
    let nodes = |nodes: &[usize]| Arc::new(nodes.iter().map(|node| name(*node)).collect::<BTreeSet<_>>());
    let eligible = Eligible::Preferred { nodes: nodes(&[0]), others: nodes(&[1, 2]) };
    cluster.desired = (1..=6).map(|last| (vip(last), eligible.clone())).collect();
    for node in 0..3 {
        cluster.event(node, Event::Desired(cluster.desired.clone()));
    }
    cluster.run(ms(200));
    assert!((1..=6).all(|last| cluster.owner(vip(last)) == 0), "{:?}", cluster.log);
    cluster.crash(0);
    cluster.run(ms(400));
    assert!((1..=6).all(|last| cluster.owner(vip(last)) > 0), "{:?}", cluster.log);
    assert!([1, 2].iter().all(|node| !cluster.nodes[*node].own.is_empty()), "spread by rank");
    cluster.restart(0, 200);
    cluster.run(ms(1000));
    assert!((1..=6).all(|last| cluster.owner(vip(last)) == 0), "{:?}", cluster.log);
}

/// A new Service: the first in rank claims at once.
#[test]
fn a_new_vip_is_claimed_at_once() {
    let mut cluster = Cluster::settled(3, 1);
    cluster.desire(&[1, 2], &[0, 1, 2]);
    cluster.run(ms(1));
    cluster.owner(vip(2));
    cluster.desire(&[1], &[0, 1, 2]);
    cluster.run(ms(1));
    assert_eq!(cluster.holders(vip(2)), []);
    cluster.run(ms(1000));
    assert_eq!(cluster.acquired().len(), 1);
}

/// The first in rank does not receive the new VIP: the next one claims after a dead interval.
#[test]
fn a_new_vip_unknown_to_the_first() {
    let mut cluster = Cluster::settled(3, 0);
    let first = (0..3).find(|node| rank::rank(vip(9), &name(*node), &[name(0), name(1), name(2)]) == 0).unwrap();
    let others = cluster.others(first);
    cluster.desire(&[9], &others);
    let took = cluster.run_until(ms(300), |c| !c.holders(vip(9)).is_empty());
    assert!((ms(160)..ms(190)).contains(&took), "{took:?}");
    cluster.run(ms(1));
    cluster.desire(&[9], &[first]);
    cluster.run(ms(1000));
    assert_eq!(cluster.acquired().len(), 1);
}

/// Nothing from outside has an effect, and each refusal is counted by its name.
#[test]
fn forged_replayed_truncated_oversized() {
    let mut cluster = Cluster::settled(3, 2);
    let (_, from, good) = cluster.sent.last().unwrap().clone();
    let to = cluster.others(from)[0];
    let mut forged = good.clone();
    forged[6] ^= 1;
    let mut foreign = good.clone();
    foreign[8] ^= 1;
    cluster.run(ms(10));
    let own = cluster.sent.iter().rfind(|(_, node, _)| *node == to).unwrap().2.clone();
    for bytes in [forged, good[..40].to_vec(), vec![0; 1500], vec![0; 200], foreign, good, own] {
        cluster.event(to, Event::Datagram(bytes));
    }
    let expected = ["bad_mac", "truncated", "oversized", "malformed", "wrong_cluster", "replayed", "own_echo"];
    assert_eq!(cluster.rejected(to).iter().map(|reason| reason.label()).collect::<Vec<_>>(), expected);
    assert_eq!(cluster.log.len(), expected.len());
}

/// A recording of a dead owner does not keep a freshly restarted cluster from its VIPs, and takes none.
#[test]
fn recording_replayed_to_a_restarted_node() {
    let mut cluster = Cluster::settled(2, 1);
    cluster.run(ms(1000));
    let recording: Vec<_> = cluster.sent.iter().filter(|(_, from, _)| *from == 0).map(|sent| sent.2.clone()).collect();
    cluster.crash(0);
    cluster.crash(1);
    cluster.run(ms(1000));
    cluster.log.clear();
    cluster.restart(1, 200);
    for (i, datagram) in recording.iter().take(20).enumerate() {
        cluster.deliver(1, datagram.clone(), ms(i as u64 * 50));
    }
    cluster.run(ms(3000));
    assert_eq!(cluster.logged(|a| matches!(a, Action::PeerUp { .. })), nothing());
    assert_eq!(cluster.owner(vip(1)), 1);
    cluster.log.clear();
    for datagram in &recording {
        cluster.deliver(1, datagram.clone(), Duration::ZERO);
    }
    cluster.run(ms(1000));
    assert_eq!(cluster.owner(vip(1)), 1);
    assert!(cluster.log.iter().all(|(_, _, action)| matches!(action, Action::Rejected { reason: Reject::Replayed })));
}

/// 600 VIPs in several datagrams; their owner dies.
#[test]
fn many_vips() {
    let mut cluster = Cluster::new(3, 0);
    let vips = |range: core::ops::Range<u32>| range.map(|i| Vip((0x0a00_0000 + i).into()));
    cluster.desired = vips(0..600).map(|vip| (vip, Eligible::All)).collect();
    for node in 0..3 {
        cluster.event(node, Event::Desired(cluster.desired.clone()));
    }
    cluster.run(ms(1000));
    assert!(vips(0..600).all(|vip| cluster.holders(vip).len() == 1));
    cluster.crash(0);
    cluster.run(ms(400));
    assert!(vips(0..600).all(|vip| cluster.holders(vip).len() == 1));
    assert!([1, 2].iter().all(|node| cluster.nodes[*node].own.len() > 200), "spread over those who are left");
}

/// The next key is distributed, made current, and the old one removed, node by node: without any effect.
#[test]
fn keys_rotate() {
    let mut cluster = Cluster::settled(3, 3);
    let old = keyring().current;
    let new = Key { id: 2, secret: [8; 32] };
    let steps = [
        Keyring { current: old.clone(), other: Some(new.clone()) },
        Keyring { current: new.clone(), other: Some(old) },
        Keyring { current: new, other: None },
    ];
    for keys in steps {
        for node in 0..3 {
            cluster.event(node, Event::Keys(keys.clone()));
            cluster.run(ms(300));
        }
    }
    assert_eq!(cluster.log, []);
}

/// Peers receive each other's MAC addresses under the signature: at once when one changes, and when a peer restarts. An
/// unverified incarnation is ignored.
#[test]
fn mac_addresses_travel_signed() {
    let mut cluster = Cluster::settled(3, 1);
    cluster.event(0, Event::OwnMac([2, 0, 0, 0, 0, 1]));
    cluster.run(ms(1));
    let addresses = |c: &Cluster| c.logged(|action| matches!(action, Action::Address { .. }));
    let address = |node: usize, last: u8| format!("{node} Address {{ node: node-0, mac: [2, 0, 0, 0, 0, {last}] }}");
    assert_eq!(addresses(&cluster), [address(1, 1), address(2, 1)]);
    cluster.run(ms(50));
    cluster.log.clear();
    cluster.event(0, Event::OwnMac([2, 0, 0, 0, 0, 2]));
    cluster.run(ms(1));
    assert_eq!(addresses(&cluster), [address(1, 2), address(2, 2)]);
    cluster.crash(1);
    cluster.restart(1, 200);
    cluster.log.clear();
    cluster.run(ms(300));
    assert!(addresses(&cluster).contains(&address(1, 2)), "{:?}", cluster.log);
    // A recording of another run of that node.
    let mut forged = Advert::open(&cluster.sent.iter().rfind(|sent| sent.1 == 0).unwrap().2, 1, &keyring()).unwrap();
    (forged.epoch, forged.sequence, forged.body) = (500, 1, Body::Node { mac: [2, 0, 0, 0, 0, 9], pace: None });
    cluster.log.clear();
    cluster.event(2, Event::Datagram(forged.seal(&keyring())));
    assert_eq!(addresses(&cluster), nothing());
}

/// A heartbeat can name 256 peers; the 257th is refused until one of them is down.
#[test]
fn too_many_peers() {
    let mut cluster = Cluster::settled(1, 1);
    let advert = |node: usize, sequence| Advert {
        node: name(node),
        cluster: 1,
        epoch: 1,
        sequence,
        flags: Flags { ready: true, ..Flags::default() },
        digest: 0,
        challenge: node as u32,
        body: Body::Heartbeat { echoes: vec![] },
    };
    for node in 1..=257 {
        cluster.event(0, Event::Datagram(advert(node, 1).seal(&keyring())));
    }
    assert_eq!(cluster.rejected(0), [Reject::TooManyPeers]);
    cluster.run(ms(200));
    cluster.event(0, Event::Datagram(advert(257, 2).seal(&keyring())));
    assert_eq!(cluster.rejected(0).len(), 1);
    // Nodes that the view has no place for, under the same name, and also while a saved view excludes nobody.
    cluster.log.clear();
    cluster.event(0, Event::BeyondLimit([name(300)].into()));
    for members in [false, true] {
        if members {
            cluster.event(0, Event::Nodes([name(1)].into()));
        }
        cluster.event(0, Event::Datagram(advert(300, 1).seal(&keyring())));
        cluster.event(0, Event::Datagram(advert(301, 1 + u64::from(members)).seal(&keyring())));
    }
    assert_eq!(cluster.rejected(0), [Reject::TooManyPeers, Reject::TooManyPeers, Reject::UnknownNode]);
}

#[test]
fn times_that_do_not_fit_are_refused() {
    let with = |change: fn(&mut Config)| {
        let mut config = config(0, 1);
        change(&mut config);
        config.check()
    };
    assert_eq!(with(|_| {}), Ok(()));
    for millis in [1, 10, 50, 1000] {
        assert_eq!(config(0, 1).at_pace(ms(millis), 3).check(), Ok(()));
    }
    let (default, paced) = (config(0, 1), config(0, 1).at_pace(ms(50), 3));
    assert_eq!((default.lease, default.rank_skew), (paced.lease, paced.rank_skew));
    assert_eq!(with(|c| c.interval = Duration::ZERO), Err(ConfigError::IntervalTooShort));
    assert_eq!(with(|c| c.dead_intervals = 2), Err(ConfigError::DeadTooShort));
    assert_eq!(with(|c| c.lease = ms(150)), Err(ConfigError::LeaseOutOfRange));
    assert_eq!(with(|c| c.lease = ms(50)), Err(ConfigError::LeaseOutOfRange));
    assert_eq!(with(|c| c.rank_skew = ms(25)), Err(ConfigError::SkewTooLong));
}
