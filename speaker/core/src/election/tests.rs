//! Scenarios with explicit times, one per rule of docs/election.md and then some.

mod harness;
mod properties;

use alloc::{format, vec};

use harness::*;

use super::*;
use crate::rank;
use crate::time::Duration;
use crate::wire::advert::{Body, Flags, Key, Keyring};

/// All nodes start at once: the VIPs are spread by rank, and nobody moves afterwards.
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

/// Nobody is there to take over: go at once, and say so.
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
    cluster.desired.insert(vip(1), Eligible::Only(others));
    for node in 0..3 {
        cluster.event(node, Event::Desired(cluster.desired.clone()));
    }
    cluster.run(ms(30));
    assert!(![owner, next].contains(&cluster.owner(vip(1))));
    assert_eq!(cluster.acquired().iter().filter(|line| line.contains("192.0.2.1,")).count(), 2);
}

/// R8, R5: the owner is cut off from two others. They take over; at the heal they keep it, whatever the terms.
#[test]
fn cut_off_and_heal() {
    let mut cluster = Cluster::settled(3, 1);
    let owner = cluster.owner(vip(1));
    cluster.isolate(owner);
    cluster.run(ms(1000));
    assert_eq!(cluster.nodes[owner].election.phase(), Phase::Isolated);
    let holders = cluster.holders(vip(1));
    assert_eq!(holders.len(), 2, "each side serves (policy availability)");
    let successor = *holders.iter().find(|node| **node != owner).unwrap();
    cluster.cut.clear();
    cluster.log.clear();
    cluster.run_until(ms(60), |c| c.holders(vip(1)) == [successor]);
    cluster.run(ms(2000));
    assert_eq!(cluster.acquired(), nothing());
    assert_eq!(cluster.released(), [format!("{owner} Release {{ vip: 192.0.2.1, reason: Conflict }}")]);
    assert_eq!(cluster.nodes[owner].election.phase(), Phase::Member);
}

/// A backup is cut off: it claims for its side, and lets go at the heal although its term is the higher one.
#[test]
fn what_was_won_alone_is_lost_at_the_heal() {
    let mut cluster = Cluster::settled(3, 1);
    let owner = cluster.owner(vip(1));
    let backup = cluster.others(owner)[0];
    cluster.isolate(backup);
    cluster.run(ms(1000));
    assert_eq!(cluster.holders(vip(1)).len(), 2);
    assert!(cluster.nodes[backup].own[&vip(1)] > cluster.nodes[owner].own[&vip(1)]);
    cluster.cut.clear();
    cluster.run_until(ms(60), |c| c.holders(vip(1)) == [owner]);
    cluster.run(ms(2000));
    assert_eq!(cluster.owner(vip(1)), owner);
}

/// Policy quorum: the side with fewer than half serves nothing.
#[test]
fn quorum() {
    let mut cluster = Cluster::new(3, 3);
    for node in 0..3 {
        let members = (0..3).map(name).collect();
        let config = Config { partition: PartitionPolicy::Quorum { members }, ..config(node, 100) };
        cluster.nodes[node].election = Election::new(config, cluster.now);
        cluster.event(node, Event::Desired(cluster.desired.clone()));
        cluster.event(node, Event::Ready(true));
    }
    cluster.run(ms(1000));
    assert!((1..=3).all(|last| cluster.holders(vip(last)).len() == 1));
    cluster.isolate(0);
    cluster.run(ms(1000));
    assert_eq!(cluster.nodes[0].own.len(), 0);
    assert!((1..=3).all(|last| cluster.holders(vip(last)).len() == 1));
    cluster.cut_both(1, 2);
    cluster.run(ms(1000));
    assert!((1..=3).all(|last| cluster.holders(vip(last)).is_empty()));
    cluster.cut.clear();
    cluster.run(ms(2000));
    assert!((1..=3).all(|last| cluster.holders(vip(last)).len() == 1));
}

/// R6: the owner is not heard by one node, but by another: nobody moves.
#[test]
fn one_way_loss_with_a_witness() {
    let mut cluster = Cluster::settled(3, 1);
    let owner = cluster.owner(vip(1));
    let deaf = cluster.others(owner)[0];
    cluster.cut.insert((owner, deaf));
    cluster.run(ms(3000));
    assert_eq!(cluster.owner(vip(1)), owner);
    assert_eq!(cluster.acquired(), nothing());
    assert_eq!(cluster.nodes[deaf].election.owner(vip(1)).unwrap().node, name(owner));
}

/// R6, the other side of it: the owner dies while only a witness hears it. The takeover is not lost.
#[test]
fn one_way_loss_then_death() {
    let mut cluster = Cluster::settled(3, 1);
    let owner = cluster.owner(vip(1));
    let deaf = cluster.others(owner)[0];
    cluster.cut.insert((owner, deaf));
    cluster.run(ms(1000));
    cluster.crash(owner);
    cluster.run_until(ms(260), |c| c.others(owner).iter().any(|node| c.nodes[*node].own.contains_key(&vip(1))));
    cluster.run(ms(1000));
    assert_eq!(cluster.acquired().len(), 1);
}

/// R7: two nodes, the owner is not heard but hears. The other claims and will never yield, so the owner does.
#[test]
fn one_way_loss_of_two() {
    let mut cluster = Cluster::settled(2, 1);
    let owner = cluster.owner(vip(1));
    let deaf = 1 - owner;
    cluster.cut.insert((owner, deaf));
    cluster.run(ms(600));
    assert_eq!(cluster.owner(vip(1)), deaf);
    cluster.log.clear();
    cluster.run(ms(3000));
    assert_eq!(cluster.acquired(), nothing(), "and it stays so");
    cluster.cut.clear();
    cluster.run(ms(3000));
    assert_eq!(cluster.owner(vip(1)), deaf);
}

/// A node that starts and is heard by nobody hears the owner all the same: it cannot tell it from a recording, and leaves it alone.
#[test]
fn one_way_loss_at_start() {
    let mut cluster = Cluster::settled(2, 1);
    let owner = cluster.owner(vip(1));
    let other = 1 - owner;
    cluster.crash(other);
    cluster.run(ms(1000));
    cluster.cut.insert((other, owner));
    cluster.restart(other, 200);
    cluster.run(ms(5000));
    assert_eq!(cluster.owner(vip(1)), owner);
    cluster.crash(owner);
    cluster.run_until(ms(260), |c| c.nodes[other].own.contains_key(&vip(1)));
}

/// R3a: a node is cut off until just after the first of its peers would be down, and the second is the first to be heard again.
/// The first was not dead.
#[test]
fn who_comes_back_from_a_hush_does_not_bury_the_others() {
    let mut cluster = Cluster::settled(4, 40);
    let to_phase = |cluster: &mut Cluster, phase: u64| {
        let at = cluster.now.as_nanos() / 1_000_000 % 50;
        cluster.run(ms((50 + phase - at) % 50));
    };
    for (node, phase) in [(1, 0), (2, 15), (3, 30)] {
        to_phase(&mut cluster, phase);
        cluster.restart(node, 200);
        cluster.run(ms(1000));
    }
    let held = cluster.nodes[1].own.clone();
    let everybody = [name(0), name(1), name(2), name(3)];
    assert!(held.keys().any(|vip| rank::rank(*vip, &name(0), everybody.iter().filter(|n| **n != name(1))) == 0));
    to_phase(&mut cluster, 31);
    cluster.isolate(0);
    cluster.run(ms(132));
    cluster.cut.clear();
    cluster.run(ms(2000));
    assert_eq!(cluster.nodes[1].own.keys().filter(|vip| held.contains_key(*vip)).count(), held.len());
}

/// Two nodes, the owner dies and returns: no preemption.
#[test]
fn two_nodes_no_preemption() {
    let mut cluster = Cluster::settled(2, 4);
    let owner = cluster.owner(vip(1));
    cluster.crash(owner);
    cluster.run(ms(1000));
    let other = 1 - owner;
    assert_eq!(cluster.nodes[other].own.len(), 4);
    cluster.restart(owner, 200);
    cluster.run(ms(3000));
    assert!((1..=4).all(|last| cluster.owner(vip(last)) == other));
}

/// Duplicated and reordered adverts: each counts once, the old ones change nothing.
#[test]
fn duplicated_and_reordered() {
    let mut cluster = Cluster::settled(3, 3);
    cluster.sent.clear();
    cluster.run(ms(500));
    let sent = cluster.sent.clone();
    for (_, from, datagram) in sent.iter().rev() {
        for to in cluster.others(*from) {
            cluster.deliver(to, datagram.clone(), Duration::ZERO);
        }
    }
    cluster.run(ms(1000));
    assert_eq!(cluster.log.len(), sent.len() * 2, "only rejections");
    assert!((0..3).all(|node| cluster.rejected(node).iter().all(|reason| *reason == Reject::Replayed)));
}

/// The speaker restarts with a lower epoch, as after a wall clock that was set back and a lost disk: refused while the old
/// incarnation may live, taken afterwards.
#[test]
fn restart_with_a_lower_epoch() {
    let mut cluster = Cluster::settled(3, 3);
    cluster.crash(0);
    cluster.restart(0, 5);
    cluster.run(ms(100));
    assert!(cluster.rejected(1).contains(&Reject::StaleEpoch));
    cluster.run(ms(2000));
    let peer = |c: &Cluster| c.nodes[1].election.status(c.now).peers.into_iter().find(|p| p.node == name(0)).unwrap();
    assert_eq!((peer(&cluster).epoch, peer(&cluster).alive), (5, true));
    assert_eq!(cluster.nodes[0].election.phase(), Phase::Member);
    assert!((1..=3).all(|last| cluster.holders(vip(last)).len() == 1));
}

/// R1: a restart faster than the dead interval: nobody claims while the lease of the old incarnation may run.
#[test]
fn quick_restart() {
    let mut cluster = Cluster::settled(3, 1);
    // The first in rank is back and would claim at once.
    let first = cluster.owner(vip(1));
    cluster.crash(first);
    cluster.run(ms(1000));
    cluster.restart(first, 200);
    cluster.run(ms(1000));
    cluster.log.clear();
    let owner = cluster.owner(vip(1));
    let lease = cluster.nodes[owner].lease;
    cluster.crash(owner);
    cluster.run(ms(5));
    cluster.restart(owner, 200);
    cluster.run_until(ms(400), |c| !c.acquired().is_empty());
    assert!(cluster.now > lease);
    cluster.run(ms(1000));
    assert_eq!(cluster.acquired().len(), 1);
    assert_eq!(cluster.owner(vip(1)), first);
}

/// R9: frozen between its start and its first heartbeat, it does not wake as a member.
#[test]
fn frozen_before_the_first_word() {
    let mut cluster = Cluster::settled(2, 1);
    let owner = cluster.owner(vip(1));
    cluster.isolate(owner);
    cluster.crash(1 - owner);
    cluster.restart(1 - owner, 200);
    cluster.freeze(1 - owner);
    cluster.queue_without(1 - owner);
    cluster.run(ms(500));
    cluster.cut.clear();
    cluster.thaw(1 - owner);
    cluster.run(ms(1000));
    assert_eq!(cluster.acquired(), nothing());
}

/// R9: a frozen owner is woken: it has lost its VIPs, its queue is full of the past, and it claims nothing others have.
#[test]
fn frozen_and_resumed() {
    let mut cluster = Cluster::settled(3, 6);
    let owner = cluster.owner(vip(1));
    let held = cluster.nodes[owner].own.len();
    cluster.freeze(owner);
    cluster.run(ms(2000));
    assert!((1..=6).all(|last| cluster.holders(vip(last)).len() == 1));
    cluster.log.clear();
    cluster.thaw(owner);
    cluster.run(ms(3000));
    assert_eq!(cluster.acquired(), nothing());
    assert_eq!(cluster.released().len(), held);
    assert!(cluster.released().iter().all(|line| line.contains("Frozen")));
    assert!(cluster.logged(|a| matches!(a, Action::PeerDown { .. })).is_empty());
}

/// R9: frozen for less than the dead interval, nobody noticed: it goes on.
#[test]
fn a_short_stall_costs_nothing() {
    let mut cluster = Cluster::settled(3, 6);
    let owner = cluster.owner(vip(1));
    cluster.freeze(owner);
    cluster.run(ms(85));
    cluster.thaw(owner);
    cluster.run(ms(1000));
    assert_eq!(cluster.released(), nothing());
    assert_eq!(cluster.acquired(), nothing());
}

/// R9: alone and frozen: nobody took the VIP, so it is taken again after listening.
#[test]
fn frozen_alone() {
    let mut cluster = Cluster::settled(1, 1);
    cluster.freeze(0);
    cluster.run(ms(2000));
    cluster.thaw(0);
    let took = cluster.run_until(ms(300), |c| c.holders(vip(1)) == [0]);
    assert!(took >= ms(160));
}

/// The link goes down and comes back: let go at once, listen before claiming.
#[test]
fn carrier() {
    let mut cluster = Cluster::settled(3, 3);
    let owner = cluster.owner(vip(1));
    cluster.isolate(owner);
    cluster.event(owner, Event::Carrier(false));
    assert_eq!(cluster.nodes[owner].own.len(), 0);
    cluster.run(ms(1000));
    assert_eq!(cluster.nodes[owner].election.phase(), Phase::Isolated);
    assert_eq!(cluster.nodes[owner].own.len(), 0);
    cluster.log.clear();
    cluster.cut.clear();
    cluster.event(owner, Event::Carrier(true));
    assert_eq!(cluster.nodes[owner].election.phase(), Phase::Joining);
    cluster.run(ms(2000));
    assert_eq!(cluster.acquired(), nothing());
}

/// A claim list is lost, with its repetitions: the digest shows it, and it is asked for.
#[test]
fn lost_claim_list() {
    let mut cluster = Cluster::settled(3, 2);
    let before = cluster.nodes[0].own.len() + cluster.nodes[1].own.len() + cluster.nodes[2].own.len();
    assert_eq!(before, 2);
    let claims = |datagram: &[u8]| datagram[5] == 2;
    let last = cluster.sent.len();
    cluster.desire(&[1, 2, 3], &[0, 1, 2]);
    let owner = (0..3).find(|node| cluster.nodes[*node].own.contains_key(&vip(3))).unwrap();
    assert!(cluster.sent[last..].iter().any(|(_, from, datagram)| *from == owner && claims(datagram)));
    // Everything of the first 120 ms that is a claim list is lost on the way to one node.
    let other = cluster.others(owner)[0];
    cluster.cut.insert((owner, other));
    cluster.queue_without(other);
    cluster.run(ms(120));
    cluster.cut.clear();
    cluster.run_until(ms(120), |c| c.nodes[other].election.owner(vip(3)).is_some_and(|o| o.node == name(owner)));
    assert_eq!(cluster.acquired().len(), 1);
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

/// The first in rank does not hear of the new VIP: the next one claims after a dead interval.
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
    cluster.desired = vips(0..600).map(|vip| (vip, Eligible::Everybody)).collect();
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

/// The next key is distributed, made current, and the old one removed, node by node: nobody notices.
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
        body: Body::Heartbeat { heard: vec![] },
    };
    for node in 1..=257 {
        cluster.event(0, Event::Datagram(advert(node, 1).seal(&keyring())));
    }
    assert_eq!(cluster.rejected(0), [Reject::TooManyPeers]);
    cluster.run(ms(200));
    cluster.event(0, Event::Datagram(advert(257, 2).seal(&keyring())));
    assert_eq!(cluster.rejected(0).len(), 1);
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
