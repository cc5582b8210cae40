//! Rule sets that hosts have beside ours, with real packets: firewalld's, ufw's, and a table that drops.

use std::io::ErrorKind;
use std::net::SocketAddr;

use ebpf_common::Mark;

use super::world::{PODS, VIP, World};
use super::{FORWARD_DROP, only};

/// What firewalld (nftables backend, zone public, no forwarding between zones) loads for IPv4, without its empty chains.
const FIREWALLD: &str = "
table inet firewalld {
    chain mangle_PREROUTING { type filter hook prerouting priority -140; policy accept; }
    chain nat_PREROUTING { type nat hook prerouting priority -90; policy accept; }
    chain nat_POSTROUTING { type nat hook postrouting priority 110; policy accept; }
    chain filter_PREROUTING {
        type filter hook prerouting priority 10; policy accept;
        icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
        meta nfproto ipv6 fib saddr . mark . iif oif missing drop
    }
    chain filter_INPUT {
        type filter hook input priority 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname lo accept
        ct state invalid drop
        tcp dport 22 ct state new accept
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD {
        type filter hook forward priority 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname lo accept
        ct state invalid drop
        reject with icmpx admin-prohibited
    }
}
";

/// What ufw adds to the policy: `ufw default deny routed`.
const UFW: &[&str] = &[
    "-P INPUT DROP",
    "-N ufw-before-forward",
    "-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-A ufw-before-forward -p icmp --icmp-type echo-request -j ACCEPT",
    "-A FORWARD -j ufw-before-forward",
    "-N ufw-before-input",
    "-A ufw-before-input -i lo -j ACCEPT",
    "-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-A ufw-before-input -m conntrack --ctstate INVALID -j DROP",
    "-A INPUT -j ufw-before-input",
];

/// TCP and UDP reach the pod, which sees the client.
pub fn assert_served(world: &World) {
    let mut connection = world.connect(VIP, 80).unwrap();
    assert_eq!((connection.pod, connection.seen), (SocketAddr::from((PODS[0], 8080)), connection.local()));
    assert!(connection.is_alive());
    let udp = world.client_udp();
    udp.send_to(b"hello", (VIP, 53)).unwrap();
    let (length, from) = udp.recv_from(&mut [0; 64]).unwrap();
    assert_eq!((length > 0, from), (true, SocketAddr::from((VIP, 53))));
}

pub fn assert_dropped(world: &World) {
    assert_eq!(world.connect(VIP, 80).err().map(|error| error.kind()), Some(ErrorKind::TimedOut));
}

#[test]
fn firewalld_lets_pass_what_is_translated() {
    let world = World::new("firewalld");
    world.a.nft(FIREWALLD);
    world.a.apply(&only(0));
    assert_served(&world);
    // It is not there for show.
    world.a.nft("flush chain inet firewalld filter_FORWARD\nadd rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited");
    assert!(world.connect(VIP, 80).is_err());
}

#[test]
fn ufw_is_passed_beside_kube_proxy_in_iptables_mode_alone() {
    let world = World::new("ufw");
    FORWARD_DROP.iter().chain(UFW).for_each(|rule| world.a.run("iptables-nft", rule));
    world.a.apply(&only(0));
    assert_served(&world);
    // Without kube-proxy's rule nothing accepts: what a SpeakerState then names (forward_policy_drop).
    world.a.run("iptables-nft", "-F KUBE-FORWARD");
    assert_dropped(&world);
}

/// A transaction that removes everything of everybody: what the speaker then does is `ruleset::replace`.
#[test]
fn a_table_that_drops_is_not_overruled_and_a_flush_is_repaired() {
    let world = World::new("somebody");
    world.a.nft(
        "add table inet somebody\nadd chain inet somebody f { type filter hook forward priority 5; policy drop; }",
    );
    world.a.apply(&only(0));
    assert_dropped(&world);
    world.a.nft("flush ruleset");
    world.a.mark(Mark::LOCAL);
    world.a.apply(&only(0));
    assert_served(&world);
}
