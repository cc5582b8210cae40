//! Links, clocks and machines that fail: cuts, one-way losses, freezes, restarts.

use super::*;

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

/// Policy quorum: the side with half or fewer serves nothing.
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

/// R6: one node does not receive the owner, another does: no VIP moves.
#[test]
fn one_way_loss_with_a_witness() {
    let mut cluster = Cluster::settled(3, 1);
    let owner = cluster.owner(vip(1));
    let one_way = cluster.others(owner)[0];
    cluster.cut.insert((owner, one_way));
    cluster.run(ms(3000));
    assert_eq!(cluster.owner(vip(1)), owner);
    assert_eq!(cluster.acquired(), nothing());
    assert_eq!(cluster.nodes[one_way].election.owner(vip(1)).unwrap().node, name(owner));
}

/// R6, the other side of it: the owner dies while only a witness receives it. The takeover is not lost.
#[test]
fn one_way_loss_then_death() {
    let mut cluster = Cluster::settled(3, 1);
    let owner = cluster.owner(vip(1));
    let one_way = cluster.others(owner)[0];
    cluster.cut.insert((owner, one_way));
    cluster.run(ms(1000));
    cluster.crash(owner);
    cluster.run_until(ms(260), |c| c.others(owner).iter().any(|node| c.nodes[*node].own.contains_key(&vip(1))));
    cluster.run(ms(1000));
    assert_eq!(cluster.acquired().len(), 1);
}

/// R7: two nodes, the owner is not received but receives. The other claims and will never yield, so the owner does.
#[test]
fn one_way_loss_of_two() {
    let mut cluster = Cluster::settled(2, 1);
    let owner = cluster.owner(vip(1));
    let one_way = 1 - owner;
    cluster.cut.insert((owner, one_way));
    cluster.run(ms(600));
    assert_eq!(cluster.owner(vip(1)), one_way);
    cluster.log.clear();
    cluster.run(ms(3000));
    assert_eq!(cluster.acquired(), nothing(), "and it stays so");
    cluster.cut.clear();
    cluster.run(ms(3000));
    assert_eq!(cluster.owner(vip(1)), one_way);
}

/// A node that starts and that no peer receives still receives the owner: it cannot separate it from a recording, and leaves it
/// alone.
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

/// R3a: a node is cut off until just after the first of its peers would be down, and the second is the first to be received
/// again. The first was not dead.
#[test]
fn the_end_of_a_group_silence_expires_no_incarnation() {
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
    let members = [name(0), name(1), name(2), name(3)];
    assert!(held.keys().any(|vip| rank::rank(*vip, &name(0), members.iter().filter(|n| **n != name(1))) == 0));
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

/// R1: a restart faster than the dead interval: no node claims while the lease of the old incarnation may run.
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
fn frozen_before_the_first_advert() {
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

/// R9: frozen for less than the dead interval, without effect: it goes on.
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

/// R9: alone and frozen: no node took the VIP, so it is taken again after listening.
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

/// A claim list is lost, with its repetitions: the digest shows it, and the peer requests it.
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

/// R9: late by its own work, it reads what is pending before its next heartbeat, and yields to the node that took over. It is not
/// frozen, and keeps what no peer has claimed.
#[test]
fn late_by_own_work() {
    let mut cluster = Cluster::settled(3, 6);
    let owner = cluster.owner(vip(1));
    let held = cluster.nodes[owner].own.len();
    cluster.freeze(owner);
    cluster.run(ms(400));
    cluster.log.clear();
    // Nothing is sent before what is pending has been read.
    let sent = cluster.sent.len();
    cluster.event(owner, Event::Beat);
    assert_eq!(cluster.sent.len(), sent);
    cluster.resume_from_work(owner);
    cluster.run(ms(1000));
    assert!((1..=6).all(|last| cluster.holders(vip(last)).len() == 1), "{:?}", cluster.log);
    assert_eq!(cluster.released().len(), held);
    assert!(cluster.released().iter().all(|line| line.contains("Conflict")), "{:?}", cluster.released());
}

/// A heartbeat that is due goes out before pending datagrams are read, and renews the lease.
#[test]
fn a_due_heartbeat_goes_first() {
    let mut cluster = Cluster::settled(3, 1);
    let due = cluster.nodes[0].election.next_beat();
    cluster.now = due;
    let (sent, lease) = (cluster.sent.len(), cluster.nodes[0].lease);
    cluster.event(0, Event::Beat);
    assert!(cluster.sent.len() > sent && cluster.nodes[0].lease > lease);
    let sent = cluster.sent.len();
    cluster.event(0, Event::Beat);
    assert_eq!(cluster.sent.len(), sent, "once an interval");
}

/// The kernel refuses the winner's entry: the VIP goes to the next node, and the first does not claim it again at once.
#[test]
fn a_refused_entry_is_handed_on() {
    let mut cluster = Cluster::settled(3, 1);
    let owner = cluster.owner(vip(1));
    cluster.event(owner, Event::NotAcquired(vip(1)));
    assert_eq!(cluster.released(), [format!("{owner} Release {{ vip: 192.0.2.1, reason: MapWriteFailed }}")]);
    cluster.run_until(ms(300), |c| c.others(owner).iter().any(|node| c.nodes[*node].own.contains_key(&vip(1))));
    cluster.run(ms(1000));
    assert_ne!(cluster.owner(vip(1)), owner);
}

/// The same without another node: tried again after a while.
#[test]
fn a_refused_entry_without_another_node_is_tried_again() {
    let mut cluster = Cluster::settled(1, 1);
    cluster.event(0, Event::NotAcquired(vip(1)));
    cluster.run(ms(5_000));
    assert_eq!(cluster.acquired(), nothing());
    cluster.run(ms(6_000));
    assert_eq!(cluster.holders(vip(1)), [0]);
}

/// The kernel refuses the lease: all VIPs go to the others at once, and come back no sooner than it takes the lease again.
#[test]
fn a_refused_lease_releases_everything() {
    let mut cluster = Cluster::settled(3, 6);
    let owner = cluster.owner(vip(1));
    let held = cluster.nodes[owner].own.len();
    cluster.event(owner, Event::NotRenewed);
    assert_eq!(cluster.released().len(), held);
    assert!(cluster.released().iter().all(|line| line.contains("MapWriteFailed")), "{:?}", cluster.released());
    cluster.run_until(ms(300), |c| {
        (1..=6).all(|last| c.others(owner).iter().any(|o| c.nodes[*o].own.contains_key(&vip(last))))
    });
    cluster.log.clear();
    for other in cluster.others(owner) {
        cluster.crash(other);
    }
    // Refused again with each heartbeat.
    for _ in 0..100 {
        cluster.run(ms(50));
        cluster.event(owner, Event::NotRenewed);
    }
    cluster.run(ms(9_900));
    assert_eq!(cluster.acquired(), nothing());
    cluster.run(ms(200));
    assert!((1..=6).all(|last| cluster.holders(vip(last)) == [owner]), "{:?}", cluster.log);
}

/// A node that leaves the view no longer counts, although it goes on transmitting: its VIPs have another owner at once.
#[test]
fn a_deleted_node_is_out_at_once() {
    let mut cluster = Cluster::settled(3, 6);
    let gone = cluster.owner(vip(1));
    let others = cluster.others(gone);
    for other in &others {
        let peers = others.iter().filter(|peer| *peer != other).map(|peer| name(*peer)).collect();
        cluster.event(*other, Event::Nodes(peers));
    }
    let held: Vec<u8> = (1..=6).filter(|last| cluster.nodes[gone].own.contains_key(&vip(*last))).collect();
    cluster.run_until(ms(20), |c| {
        held.iter().all(|last| others.iter().any(|o| c.nodes[*o].own.contains_key(&vip(*last))))
    });
    assert_eq!(cluster.acquired().len(), held.len());
    cluster.run(ms(200));
    assert!(cluster.rejected(others[0]).iter().all(|reason| *reason == Reject::UnknownNode));
    assert!(!cluster.rejected(others[0]).is_empty());
}

/// Recordings of a node that has left the view delay no claim.
#[test]
fn recordings_of_a_deleted_node_delay_nothing() {
    let mut cluster = Cluster::settled(3, 1);
    let gone = cluster.owner(vip(1));
    let [heir, witness] = cluster.others(gone)[..] else { panic!("three nodes") };
    cluster.run(ms(1000));
    let recording: Vec<_> =
        cluster.sent.iter().filter(|(_, from, _)| *from == gone).map(|sent| sent.2.clone()).collect();
    cluster.crash(gone);
    // Restarted since: they know of no current incarnation of the node that is gone.
    for (node, other) in [(heir, witness), (witness, heir)] {
        cluster.restart(node, 200);
        cluster.event(node, Event::Nodes([name(other)].into()));
    }
    for (at, datagram) in recording.iter().take(60).enumerate() {
        cluster.deliver(heir, datagram.clone(), ms(at as u64 * 50));
        cluster.deliver(witness, datagram.clone(), ms(at as u64 * 50));
    }
    cluster.run_until(ms(700), |c| !c.holders(vip(1)).is_empty());
}

/// A node is powered off, its object stays, and the others have restarted since: its recorded adverts, of more incarnations than are kept,
/// again and again in any order, keep its VIP without an owner no longer than they take to be played once.
#[test]
fn recordings_of_many_incarnations_do_not_delay_for_ever() {
    let mut cluster = Cluster::settled(3, 1);
    let gone = cluster.owner(vip(1));
    let others = cluster.others(gone);
    for epoch in 1..=6 {
        others.iter().for_each(|other| cluster.crash(*other));
        cluster.run(ms(1500));
        assert_eq!(cluster.owner(vip(1)), gone);
        cluster.restart(gone, 100 + epoch);
    }
    cluster.run(ms(1500));
    cluster.crash(gone);
    let mut recorded: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    for (.., datagram) in cluster.sent.iter().filter(|(_, from, _)| *from == gone) {
        let advert = Advert::open(datagram, 1, &keyring()).unwrap();
        if matches!(&advert.body, Body::Claims { claims, .. } if !claims.is_empty()) {
            recorded.entry(advert.epoch).or_default().push(datagram.clone());
        }
    }
    assert_eq!(recorded.len(), 7);
    for seed in 0..10 {
        let mut random = Random(seed);
        others.iter().for_each(|other| cluster.queue_without(*other));
        for other in &others {
            cluster.restart(*other, 200 + seed);
        }
        for round in 0..200 {
            let mut order: Vec<_> = recorded.values().map(|claims| (random.next(), claims)).collect();
            order.sort_unstable();
            for (at, (pick, claims)) in order.into_iter().enumerate() {
                let datagram = &claims[pick as usize % claims.len()];
                others
                    .iter()
                    .for_each(|other| cluster.deliver(*other, datagram.clone(), ms(140 * round + 20 * at as u64)));
            }
        }
        cluster.log.clear();
        cluster.run_until(ms(3_000), |c| others.iter().any(|other| c.nodes[*other].own.contains_key(&vip(1))));
        cluster.run(ms(1_000));
        assert_eq!(cluster.holders(vip(1)).len(), 1, "seed {seed}: {:?}", cluster.log);
        others.iter().for_each(|other| cluster.crash(*other));
        cluster.run(ms(1_000));
    }
}
