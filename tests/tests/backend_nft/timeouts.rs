//! Idle and half-closed connections, with conntrack's timeouts cut to seconds. An entry that has timed out is gone: the next segment is of
//! a flow that no node knows.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::Duration;

use speaker_core::backend::Guard;
use speaker_core::view::Affinity;

use crate::world::{Node, PODS, PODS_B, VIP, World, plan};

const ESTABLISHED: &str = "netfilter/nf_conntrack_tcp_timeout_established";
const CLOSE_WAIT: &str = "netfilter/nf_conntrack_tcp_timeout_close_wait";
const FIN_WAIT: &str = "netfilter/nf_conntrack_tcp_timeout_fin_wait";

/// Longer than the shortened timeout. Time must pass: the end of an entry is no event, the kernel ignores it from then on and counts it
/// until its garbage collection comes by.
fn be_idle() {
    std::thread::sleep(Duration::from_millis(3200));
}

#[test]
fn an_idle_connection_lives_as_long_as_its_entry_and_is_then_reset_at_its_next_segment() {
    // Of several pods none takes up what is another one's: also with one entry gone and loose pickup on.
    for (test, world) in [("idle", World::new("idle")), ("idle-pair", World::pair("idle-pair"))] {
        world.a.sysctl(ESTABLISHED, "2").unwrap();
        world.a.apply(&plan(&PODS, Affinity::None));
        if let Some(b) = &world.b {
            b.apply(&plan(&PODS_B, Affinity::None));
        }
        let mut connection = world.connect(VIP, 80).unwrap();
        assert!(PODS.map(IpAddr::from).contains(&connection.pod.ip()));
        for _ in 0..4 {
            // Each segment renews it: less than the timeout must pass, and more than it in all.
            std::thread::sleep(Duration::from_millis(700));
            assert!(connection.is_alive(), "{test}: it is not idle");
        }
        be_idle();
        assert_eq!(connection.fate(), Some(ErrorKind::ConnectionReset), "{test}");
        let resets = |node: &Node| node.guard(Guard::Reset);
        assert_eq!(resets(&world.a) + world.b.as_ref().map_or(0, resets), 1, "{test}: by our guard, once");
        assert!(world.connect(VIP, 80).unwrap().is_alive(), "{test}");
    }
}

#[test]
fn a_half_closed_connection_ends_in_order_while_its_entry_lives() {
    let world = World::new("half");
    world.a.sysctl(CLOSE_WAIT, "60").unwrap();
    world.a.apply(&plan(&PODS, Affinity::None));
    let mut connection = world.connect(VIP, 80).unwrap();
    connection.half_close();
    // The pod echoes what came before the end, then ends too.
    assert_eq!(connection.read().unwrap(), 0);
    assert_eq!(world.a.guard(Guard::Reset), 0);
}

/// kube-proxy sets 1 h for half-closed connections, the kernel 60 s: what comes later meets a reset, not another pod.
#[test]
fn a_half_closed_connection_whose_entry_is_gone_is_reset() {
    let world = World::new("half-gone");
    world.a.sysctl(ESTABLISHED, "2").unwrap();
    world.a.sysctl(CLOSE_WAIT, "1").unwrap();
    world.a.sysctl(FIN_WAIT, "1").unwrap();
    world.a.apply(&plan(&PODS, Affinity::None));
    let mut connection = world.connect(VIP, 80).unwrap();
    be_idle();
    connection.half_close();
    assert_eq!(connection.read().map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    assert!(world.connect(VIP, 80).unwrap().is_alive());
}
