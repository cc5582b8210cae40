//! Nodes with different paces: each is judged by its own.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::super::*;
use super::harness::*;
use crate::time::Duration;
use crate::wire::advert::{Advert, Body, Reject};
use crate::wire::pace::Pace;

/// Dead after 64 ms.
const FAST: Pace = Pace { interval: Duration::from_millis(20), dead_intervals: 3 };
/// Dead after 1,040 ms.
const STEADY: Pace = Pace { interval: Duration::from_millis(200), dead_intervals: 5 };
/// Dead after 3.2 s: the longest interval that is allowed.
const SLOWEST: Pace = Pace { interval: Duration::from_millis(1000), dead_intervals: 3 };

fn downs(cluster: &Cluster) -> Vec<String> {
    cluster.logged(|action| matches!(action, Action::PeerDown { .. }))
}

/// I6, with every mixture of two and three.
#[test]
fn nothing_moves_and_no_peer_is_down() {
    for paces in [
        &[FAST, SLOWEST][..],
        &[FAST, STEADY],
        &[FAST, FAST, SLOWEST],
        &[FAST, SLOWEST, SLOWEST],
        &[FAST, STEADY, SLOWEST],
        &[STEADY, STEADY, FAST, SLOWEST, FAST],
    ] {
        let mut cluster = Cluster::paced(paces, 12);
        cluster.run(ms(20_000));
        assert_eq!(cluster.logged(|action| !matches!(action, Action::Address { .. })), nothing(), "{paces:?}");
        assert!(cluster.nodes.iter().all(|node| node.election.peers(cluster.now).all(|peer| peer.receives_us)));
    }
}

/// Each VIP of a dead owner is claimed when its own dead interval is over: not before its lease is (I2), and no later than its pace says
/// (I5), whatever the pace of those that notice.
#[test]
fn an_owner_is_dead_by_its_own_pace() {
    for (paces, dies) in [
        ([FAST, STEADY, SLOWEST], 0),
        ([FAST, STEADY, SLOWEST], 1),
        ([FAST, STEADY, SLOWEST], 2),
        ([SLOWEST, SLOWEST, FAST], 2),
        ([FAST, FAST, SLOWEST], 2),
        ([FAST, FAST, SLOWEST], 1),
    ] {
        let mut cluster = Cluster::paced(&paces, 30);
        let held: Vec<Vip> = cluster.nodes[dies].own.keys().copied().collect();
        assert!(!held.is_empty());
        // Not in step with a heartbeat.
        cluster.run(ms(7));
        cluster.crash(dies);
        let (lease, began) = (cluster.nodes[dies].lease, cluster.now);
        let others = cluster.others(dies);
        let mut first = None;
        let took = cluster.run_until(ms(5000), |c| {
            held.iter().all(|vip| others.iter().any(|node| c.nodes[*node].own.contains_key(vip)))
        });
        for (at, node, action) in &cluster.log {
            if matches!(action, Action::Acquire { .. }) && *node != dies {
                first.get_or_insert(Instant::from_millis(*at));
            }
        }
        let first = first.expect("claimed");
        assert!(first.as_nanos() / 1_000_000 + 1 >= lease.as_nanos() / 1_000_000, "{paces:?} {dies}: I2");
        let most = paces[dies].dead() + paces.iter().map(|pace| pace.skew()).max().unwrap() * 2 + ms(5);
        assert!(took <= most, "{paces:?} {dies}: {took:?} of {most:?}");
        assert!(cluster.now.since(began) >= paces[dies].dead() * 3 / 5, "{paces:?} {dies}: {took:?}");
        let wrong: Vec<_> =
            downs(&cluster).into_iter().filter(|down| !down.contains(&format!("node-{dies}"))).collect();
        assert_eq!(wrong, nothing(), "{paces:?} {dies}");
    }
}

/// A rolling restart from one profile to another and back: no node that runs is taken for dead, and no VIP has two owners that
/// receive each other for longer than the slower one's interval (I3).
#[test]
fn a_rolling_restart_changes_the_pace() {
    let mut cluster = Cluster::paced(&[FAST, FAST, FAST], 12);
    let mut epoch = 200;
    for pace in [STEADY, FAST, SLOWEST, FAST] {
        for node in 0..3 {
            cluster.log.clear();
            cluster.event(node, Event::Leave);
            cluster.run_until(ms(6000), |c| !c.logged(|action| matches!(action, Action::HandedOver { .. })).is_empty());
            cluster.crash(node);
            let released = cluster.now;
            cluster.run(ms(30));
            epoch += 1;
            cluster.restart_at(node, epoch, pace);
            cluster.run(ms(6000));
            let of_others: Vec<_> =
                downs(&cluster).into_iter().filter(|down| !down.contains(&format!("node: node-{node}"))).collect();
            assert_eq!(of_others, nothing(), "{pace:?} {node} {released:?} {:#?}", cluster.log);
            assert!((1..=12).all(|last| cluster.holders(vip(last)).len() == 1), "{pace:?} {node}");
        }
    }
}

/// As after a clock that was set back and a lost disk: the speaker before it, which was slow, is not dead for its peers yet when they
/// receive the new one, at once or after it was cut off. No VIP has two owners that receive each other for longer than I3 allows.
#[test]
fn a_lower_epoch_is_heard_before_a_slow_predecessor_is_dead() {
    let all = [[FAST, FAST, SLOWEST], [SLOWEST, FAST, SLOWEST], [STEADY, STEADY, SLOWEST]];
    for (paces, next) in all.into_iter().flat_map(|paces| [FAST, STEADY, SLOWEST].map(|next| (paces, next))) {
        for cut_off in [0, 700, 1500, 2500] {
            let mut cluster = Cluster::paced(&paces, 12);
            cluster.crash(2);
            cluster.run(ms(170));
            if cut_off > 0 {
                cluster.isolate(2);
            }
            cluster.restart_at(2, 5, next);
            cluster.run(ms(cut_off));
            cluster.cut.clear();
            let slower = [paces[0], paces[1], next].map(|pace| pace.interval).into_iter().max().unwrap();
            let mut since = [cluster.now; 12];
            for _ in 0..8000 {
                cluster.run(ms(1));
                for last in 1..=12 {
                    let known = &mut since[usize::from(last) - 1];
                    if cluster.owners_alive(vip(last)) < 2 {
                        *known = cluster.now;
                    }
                    let took = cluster.now.since(*known);
                    assert!(took <= slower + ms(5), "{paces:?} {next:?} {cut_off} {last}: {took:?} {:#?}", cluster.log);
                }
            }
            assert!(cluster.nodes.iter().all(|node| node.election.phase() == Phase::Member));
            assert!(holdings(&cluster, 12).iter().all(|held| held.len() == 1), "{paces:?} {next:?} {cut_off}");
        }
    }
}

/// It does not join before its own dead interval is over, although that is longer than the join timeout, and not before a peer that it
/// has heard could be heard again.
#[test]
fn a_slow_node_listens_for_its_dead_interval() {
    let mut cluster = Cluster::paced(&[FAST, FAST, SLOWEST], 12);
    cluster.crash(2);
    cluster.run(ms(4000));
    cluster.isolate(2);
    cluster.restart_at(2, 300, SLOWEST);
    cluster.run(ms(3190));
    assert_eq!(cluster.nodes[2].election.phase(), Phase::Joining);
    cluster.run(ms(1010));
    assert_eq!(cluster.nodes[2].election.phase(), Phase::Member);
}

/// A speaker of an earlier version sends none: it is judged as this node is.
#[test]
fn a_peer_without_a_pace_is_judged_by_this_node() {
    let mut cluster = Cluster::settled(2, 4);
    cluster.event(0, Event::OwnMac([2, 0, 0, 0, 0, 1]));
    cluster.run(ms(1));
    let sent = cluster.sent.iter().rfind(|sent| sent.1 == 0).unwrap().2.clone();
    let mut earlier = Advert::open(&sent, 1, &keyring()).unwrap();
    assert!(matches!(earlier.body, Body::Node { pace: Some(_), .. }), "{earlier:?}");
    (earlier.sequence, earlier.body) = (earlier.sequence + 1, Body::Node { mac: [2, 0, 0, 0, 0, 1], pace: None });
    cluster.crash(0);
    cluster.event(1, Event::Datagram(earlier.seal(&keyring())));
    let took = cluster.run_until(ms(300), |c| !downs(c).is_empty());
    assert!((ms(158)..=ms(165)).contains(&took), "{took:?}");
}

/// It goes before the first heartbeat, and twice again at once: one that is lost makes no death.
#[test]
fn the_pace_comes_before_the_first_heartbeat() {
    let mut cluster = Cluster::paced(&[FAST, FAST], 2);
    cluster.crash(1);
    cluster.run(ms(200));
    cluster.sent.clear();
    cluster.restart_at(1, 300, SLOWEST);
    cluster.run(ms(2500));
    let of = |datagram: &[u8]| Advert::open(datagram, 1, &keyring()).unwrap().body;
    let bodies: Vec<Body> = cluster.sent.iter().filter(|sent| sent.1 == 1).map(|sent| of(&sent.2)).collect();
    let states = |body: &Body| matches!(body, Body::Node { pace: Some(pace), .. } if *pace == SLOWEST);
    let first = |of: &dyn Fn(&Body) -> bool| bodies.iter().position(of).expect("sent");
    assert!(first(&states) < first(&|body| matches!(body, Body::Heartbeat { .. })), "{bodies:?}");
    assert!(bodies.iter().filter(|body| states(body)).count() >= 3, "{bodies:?}");
    assert_eq!(downs(&cluster).len(), 1, "its death, and none since: {:?}", cluster.log);
}

/// Nobody who lacks the key changes how a node is judged, and a pace beyond what is allowed has a name.
#[test]
fn a_pace_is_signed_and_bounded() {
    let mut cluster = Cluster::paced(&[FAST, FAST], 2);
    let sent = cluster.sent.iter().rfind(|sent| sent.1 == 0).unwrap().2.clone();
    let mut advert = Advert::open(&sent, 1, &keyring()).unwrap();
    (advert.sequence, advert.body) =
        (advert.sequence + 1000, Body::Node { mac: [2, 0, 0, 0, 0, 0], pace: Some(SLOWEST) });
    let mut forged = advert.seal(&keyring());
    let last = forged.len() - 1;
    forged[last] ^= 1;
    cluster.event(1, Event::Datagram(forged));
    assert_eq!(cluster.rejected(1), [Reject::BadMac]);
    cluster.log.clear();
    // As a peer with the key would send it that keeps to no bounds.
    let mut bytes = advert.seal(&keyring());
    bytes.truncate(bytes.len() - 32);
    let end = bytes.len() - Pace::LEN;
    bytes[end..].copy_from_slice(&[0x3f, 0xff]);
    keyring().seal(&mut bytes);
    cluster.event(1, Event::Datagram(bytes));
    assert_eq!(cluster.rejected(1), [Reject::BadPace]);
    let peer = cluster.nodes[1].election.peers(cluster.now).next().unwrap();
    assert!(peer.alive);
    cluster.crash(0);
    let took = cluster.run_until(ms(300), |c| !downs(c).is_empty());
    assert!(took <= ms(70), "{took:?}");
}

/// The VIPs of each node, by their last byte.
fn holdings(cluster: &Cluster, vips: u8) -> Vec<Vec<usize>> {
    (1..=vips).map(|last| cluster.holders(vip(last))).collect()
}

/// Two or more fast peers silent together are dead in their own time, although slow ones need not have transmitted since: that they answer
/// shows that it is not this node that is cut off. With one fast peer it is the same. Nothing else is released, and no node is alone.
#[test]
fn a_fast_node_whose_fast_peers_fall_silent_keeps_what_it_has() {
    for (paces, dead) in [
        (&[FAST, FAST, SLOWEST, SLOWEST][..], &[1][..]),
        (&[FAST, FAST, SLOWEST], &[1]),
        (&[FAST, FAST, FAST, SLOWEST], &[1, 2]),
        (&[FAST, FAST, STEADY, SLOWEST], &[1]),
    ] {
        // In any phase of the slow ones.
        for after in (0..1000).step_by(111) {
            let mut cluster = Cluster::paced(paces, 12);
            cluster.run(ms(after));
            dead.iter().for_each(|node| cluster.crash(*node));
            let began = cluster.now;
            cluster.run_until(ms(3000), |c| (1..=12).all(|last| c.owners_alive(vip(last)) == 1));
            // R3a: the answer of a slow one is a sound, and starts their silence anew.
            let most = FAST.dead() + FAST.overdue() + SLOWEST.skew() + ms(5);
            assert!(cluster.now.since(began) <= most, "{paces:?} {after}: {:?}", cluster.now.since(began));
            assert_eq!(cluster.released(), nothing(), "{paces:?} {after}");
            cluster.run(ms(4000));
            assert_eq!(cluster.released(), nothing(), "{paces:?} {after}");
            assert_eq!(cluster.logged(|action| matches!(action, Action::Phase(_))), nothing(), "{paces:?} {after}");
            let wrong = downs(&cluster)
                .into_iter()
                .find(|down| !dead.iter().any(|node| down.contains(&format!("node: node-{node},"))));
            assert_eq!(wrong, None, "{paces:?} {after}");
        }
    }
}

/// No slow peer answers it: it is alone although they are not overdue, keeps what it has, and takes nothing from those it meets again.
#[test]
fn a_node_that_is_cut_off_takes_nothing() {
    for paces in [
        &[FAST, FAST, FAST, SLOWEST][..],
        &[FAST, FAST, SLOWEST, SLOWEST],
        &[FAST, STEADY, SLOWEST],
        &[STEADY, FAST, FAST, SLOWEST],
        &[SLOWEST, FAST, FAST, FAST],
    ] {
        for (lost, time) in (0..paces.len()).flat_map(|node| [50, 100, 300, 900, 1500, 6000].map(|time| (node, time))) {
            let mut cluster = Cluster::paced(paces, 12);
            cluster.isolate(lost);
            cluster.run(ms(time));
            assert!(
                !cluster.released().iter().any(|line| line.starts_with(&format!("{lost} "))),
                "{paces:?} {lost} {time}"
            );
            let others = |c: &Cluster| {
                let of = |held: Vec<usize>| held.into_iter().filter(|node| *node != lost).collect::<Vec<_>>();
                holdings(c, 12).into_iter().map(of).collect::<Vec<_>>()
            };
            let before = others(&cluster);
            cluster.cut.clear();
            cluster.run(ms(6000));
            for (before, after) in before.iter().zip(others(&cluster)) {
                assert!(before.iter().all(|node| after.contains(node)), "{paces:?} {lost} {time}: {:#?}", cluster.log);
            }
            assert!(holdings(&cluster, 12).iter().all(|held| held.len() == 1), "{paces:?} {lost} {time}");
        }
    }
}

/// R6: a slow node that is asked bears witness for a fast one in time, and again and again.
#[test]
fn one_way_loss_between_fast_nodes_moves_nothing_while_a_slow_one_receives_both() {
    let mut cluster = Cluster::paced(&[FAST, FAST, SLOWEST], 12);
    let before = holdings(&cluster, 12);
    cluster.cut.insert((1, 0));
    cluster.run(ms(5000));
    assert_eq!((holdings(&cluster, 12), downs(&cluster)), (before.clone(), nothing()), "{:#?}", cluster.log);
    // It is dead in its own time all the same.
    cluster.crash(1);
    let took = cluster.run_until(ms(500), |c| downs(c).len() == 2);
    assert!(took <= FAST.dead() * 2 + ms(5), "{took:?}");
}

/// A speaker of an earlier version ignores the two bytes, and this one takes its zeros: whatever order an upgrade takes, no peer is dead.
#[test]
fn an_upgrade_in_any_order_makes_no_peer_dead() {
    for earlier in [[true, false, false], [true, true, false], [false, true, true]] {
        let mut cluster = Cluster::settled(3, 12);
        (0..3).filter(|node| earlier[*node]).for_each(|node| cluster.make_earlier(node));
        (0..3).for_each(|node| cluster.event(node, Event::OwnMac([2, 0, 0, 0, 0, node as u8])));
        cluster.run(ms(5000));
        assert_eq!(cluster.logged(|action| !matches!(action, Action::Address { .. })), nothing(), "{earlier:?}");
    }
}
