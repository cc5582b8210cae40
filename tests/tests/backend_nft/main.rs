//! The backend's nftables table with real packets: which pod gets them, who answers, what survives a change.
//!
//! Needs root and nft. Beside the table stands a stand-in for kube-proxy wherever its absence could hide a mistake; the real
//! one is in the lab's tests.

mod affinity;
mod affinity_ports;
mod firewalls;
mod fragments;
mod half_closed;
mod host_rules;
mod inside;
mod node_address;
mod packet;
mod packet_path;
mod path_mtu;
mod second_chance;
mod source_ranges;
mod timeouts;
mod via;
mod world;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use pnet_packet::tcp::TcpFlags;
use socket2::Protocol;
use speaker_core::backend::ruleset::ACCEPT_MARK;
use speaker_core::backend::{Guard, Plan, ruleset};
use speaker_core::view::Affinity;

use packet::{Reply, icmp_echo, receive, tcp_segment};
use world::{CLIENT, OTHER_VIP, PATIENCE, PODS, VIP, World, plan};

fn both() -> Plan {
    plan(&PODS, Affinity::None)
}

fn only(pod: usize) -> Plan {
    plan(&PODS[pod..=pod], Affinity::None)
}

fn nobody() -> Plan {
    plan(&[], Affinity::None)
}

/// What kube-proxy in nftables mode would do with a LoadBalancer address: mark for masquerade, translate, refuse in forward.
const PROXY: &str = "
table ip proxy {
    counter nat { }
    counter masqueraded { }
    counter refused { }
    chain nat-prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        ip daddr { 192.0.2.200, 192.0.2.201 } counter name nat meta mark set meta mark | 0x4000
        ip daddr { 192.0.2.200, 192.0.2.201 } tcp dport 80 dnat to 10.99.1.3:8080
    }
    chain nat-postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        meta mark & 0x4000 != 0 counter name masqueraded masquerade
    }
    chain filter-forward {
        type filter hook forward priority -110; policy accept;
        ct state new ip daddr { 192.0.2.200, 192.0.2.201 } counter name refused reject
        ct state invalid counter name refused drop
    }
}
";

fn assert_proxy_untouched(world: &World) {
    let counters = world.a.counters("proxy");
    assert!(counters.values().all(|&packets| packets == 0), "{counters:?}");
}

#[test]
fn a_pod_sees_the_client_and_the_client_sees_the_vip() {
    let world = World::new("path");
    world.a.nft(PROXY);
    world.a.apply(&only(0));
    let mut connection = world.connect(VIP, 80).unwrap();
    assert_eq!(connection.pod, SocketAddr::from((PODS[0], 8080)));
    assert_eq!(connection.seen, connection.local());
    assert!(connection.is_alive());

    let udp = world.client_udp();
    udp.send_to(b"hello", (VIP, 53)).unwrap();
    let mut buffer = [0; 64];
    let (length, from) = udp.recv_from(&mut buffer).unwrap();
    assert_eq!(from, SocketAddr::from((VIP, 53)));
    assert_eq!(buffer[..length], *format!("{} {} hello", PODS[0], udp.local_addr().unwrap()).as_bytes());
    assert_proxy_untouched(&world);

    // The stand-in is not there for show: without our table the same packets are its.
    world.a.nft("delete table ip sheave");
    let connection = world.connect(VIP, 80).unwrap();
    assert_ne!(connection.seen.ip(), CLIENT);
    assert!(world.a.counters("proxy").into_iter().all(|(name, packets)| name == "refused" || packets > 0));
}

/// iptables as Docker and ufw leave it, with what kube-proxy in iptables mode adds: real iptables, of either kind.
const FORWARD_DROP: &[&str] = &[
    "-P FORWARD DROP",
    "-N KUBE-FORWARD",
    "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
    "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
    "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-I FORWARD 1 -j KUBE-FORWARD",
    "-t nat -N KUBE-POSTROUTING",
    "-t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
    "-t nat -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
    "-t nat -A KUBE-POSTROUTING -j MASQUERADE",
    "-t nat -A POSTROUTING -j KUBE-POSTROUTING",
];

#[test]
fn a_forward_policy_that_drops_is_passed_as_kube_proxy_passes_it() {
    // kube-proxy's default, and another `--iptables-masquerade-bit`.
    for (test, iptables, mark) in [
        ("drop-nft", "iptables-nft", 0x4000),
        ("drop-legacy", "iptables-legacy", 0x4000),
        ("drop-bit-5", "iptables-nft", 0x20),
    ] {
        let world = World::new(test);
        let its = format!("{mark:#x}");
        FORWARD_DROP.iter().for_each(|rule| world.a.run(iptables, &rule.replace("0x4000", &its)));
        if mark != ACCEPT_MARK {
            world.a.apply(&only(0));
            assert_eq!(
                world.connect(VIP, 80).err().map(|error| error.kind()),
                Some(ErrorKind::TimedOut),
                "another mark"
            );
        }
        world.a.apply(&Plan { accept_mark: mark, ..only(0) });
        let mut connection = world.connect(VIP, 80).unwrap();
        assert_eq!(connection.seen, connection.local(), "the mark does not masquerade ({iptables})");
        assert!(connection.is_alive());
        let udp = world.client_udp();
        udp.send_to(b"hello", (VIP, 53)).unwrap();
        let (length, from) = udp.recv_from(&mut [0; 64]).unwrap();
        assert_eq!((length > 0, from), (true, SocketAddr::from((VIP, 53))));

        // The policy is not there for show: what is not a VIP's is dropped, and so is a VIP's without the mark.
        world.a.nft("flush chain ip sheave forward");
        assert_eq!(world.connect(VIP, 80).err().map(|error| error.kind()), Some(ErrorKind::TimedOut));
        assert!(connection.is_alive(), "{iptables}");
    }
}

#[test]
fn an_unserved_port_is_refused_at_once() {
    let world = World::new("refused");
    world.a.nft(PROXY);
    for (plan, tcp_port, udp_port) in [(both(), 81, 54), (nobody(), 80, 53)] {
        world.a.apply(&plan);
        let started = Instant::now();
        let refused = world.connect(VIP, tcp_port).err().map(|error| error.kind());
        assert_eq!(refused, Some(ErrorKind::ConnectionRefused));
        assert_eq!(world.a.guard(Guard::Reset), 1);

        let udp = world.client_udp();
        udp.connect((VIP, udp_port)).unwrap();
        udp.send(b"hello").unwrap();
        assert_eq!(udp.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(world.a.guard(Guard::Unreachable), 1);
        assert!(started.elapsed() < PATIENCE / 2, "refused, but late: {:?}", started.elapsed());
    }
    assert_proxy_untouched(&world);
}

/// A node's table comes a moment after another one's: the client's next SYN finds it.
#[test]
fn a_syn_that_another_node_dispatched_is_not_refused_but_repeated() {
    let world = World::new("behind");
    let tcp = world.client_raw(Protocol::TCP);
    let send = |port, flags| {
        let segment = tcp_segment(port, (VIP, 80), flags, true);
        tcp.send_to(&segment, &SocketAddr::from((VIP, 0)).into()).unwrap();
        receive(&tcp, VIP)
    };
    world.a.apply(&nobody());
    world.a.mark_syns_of(7);
    assert_eq!(send(40001, TcpFlags::SYN), None);
    assert_eq!((world.a.guard(Guard::Behind), world.a.guard(Guard::Reset)), (1, 0));
    assert_eq!(world.a.conntrack_entries(), 0);
    // Whatever else no rule is for is refused as ever.
    assert_eq!(send(40002, TcpFlags::ACK), Some(Reply::Tcp { from: 80, to: 40002, flags: TcpFlags::RST }));
    assert_eq!((world.a.guard(Guard::Behind), world.a.guard(Guard::Reset)), (1, 1));
    world.a.apply(&only(0));
    let answer = Reply::Tcp { from: 80, to: 40001, flags: TcpFlags::SYN | TcpFlags::ACK };
    assert_eq!(send(40001, TcpFlags::SYN), Some(answer));
}

#[test]
fn udp_silent_answers_nothing() {
    let world = World::new("silent");
    world.a.apply(&Plan { udp_silent: true, ..nobody() });
    let udp = world.client_udp();
    udp.connect((VIP, 53)).unwrap();
    udp.send(b"hello").unwrap();
    assert_eq!(udp.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!((world.a.guard(Guard::Silent), world.a.guard(Guard::Unreachable)), (1, 0));
    let refused = world.connect(VIP, 80).err().map(|error| error.kind());
    assert_eq!(refused, Some(ErrorKind::ConnectionRefused));
}

#[test]
fn refusals_are_real_tcp_resets_and_redirects_are_off() {
    let world = World::new("reset");
    world.a.apply(&nobody());
    let tcp = world.client_raw(Protocol::TCP);
    let syn = tcp_segment(40001, (VIP, 80), TcpFlags::SYN, true);
    // With redirects on the kernel sends the client elsewhere before the guard sees the packet: hence sysctl.rs.
    for (setting, sent) in [("0", 0), ("1", 1)] {
        world.a.redirects(setting).unwrap();
        tcp.send_to(&syn, &SocketAddr::from((VIP, 0)).into()).unwrap();
        assert_eq!(receive(&tcp, VIP), Some(Reply::Tcp { from: 80, to: 40001, flags: TcpFlags::RST | TcpFlags::ACK }));
        assert_eq!(world.a.redirects_sent(), sent);
    }
}

#[test]
fn a_connection_that_no_node_knows_is_reset_by_the_vip() {
    let world = World::new("midflow");
    world.a.nft(PROXY);
    let tcp = world.client_raw(Protocol::TCP);
    // Whether there is a pod here or not: conntrack would pick the connection up (nf_conntrack_tcp_loose); no pod may get it.
    for (plan, port) in [(only(0), 40001), (nobody(), 40002)] {
        world.a.apply(&plan);
        let ack = tcp_segment(port, (VIP, 80), TcpFlags::ACK, true);
        tcp.send_to(&ack, &SocketAddr::from((VIP, 0)).into()).unwrap();
        assert_eq!(receive(&tcp, VIP), Some(Reply::Tcp { from: 80, to: port, flags: TcpFlags::RST }));
        assert_eq!(world.a.guard(Guard::Reset), 1);
        assert_eq!(world.a.conntrack_entries(), 0);
    }
    assert_proxy_untouched(&world);
}

#[test]
fn what_conntrack_cannot_place_and_other_protocols_are_dropped() {
    let world = World::new("dropped");
    world.a.nft(PROXY);
    world.a.apply(&both());
    let (tcp, icmp) = (world.client_raw(Protocol::TCP), world.client_raw(Protocol::ICMPV4));
    let damaged = tcp_segment(40001, (VIP, 80), TcpFlags::SYN, false);
    tcp.send_to(&damaged, &SocketAddr::from((VIP, 0)).into()).unwrap();
    assert_eq!(receive(&tcp, VIP), None);
    icmp.send_to(&icmp_echo(), &SocketAddr::from((VIP, 0)).into()).unwrap();
    assert_eq!(receive(&icmp, VIP), None);
    assert_eq!((world.a.guard(Guard::Invalid), world.a.guard(Guard::Other)), (1, 1));
    assert_proxy_untouched(&world);
}

#[test]
fn the_nodes_own_sockets_are_out_of_reach() {
    let world = World::new("local");
    world.a.apply(&both());
    world.a.serve_on_node(22);
    world.a.ip(&format!("addr add {VIP}/32 dev lo\n"));
    let refused = world.connect(VIP, 22).err().map(|error| error.kind());
    assert_eq!(refused, Some(ErrorKind::ConnectionRefused));
    assert_eq!(world.a.guard(Guard::Reset), 1);
    assert!(world.connect(VIP, 80).unwrap().is_alive());
    // Not addressed to a VIP: none of our business.
    assert!(world.connect([192, 0, 2, 11].into(), 22).unwrap().is_alive());
}

#[test]
fn open_connections_survive_every_change() {
    let world = World::new("survive");
    world.a.nft(PROXY);
    world.a.apply(&only(0));
    let mut old = world.connect(VIP, 80).unwrap();
    let change = |from: &Plan, to: &Plan| world.a.nft(&ruleset::update(from, to).expect("a difference"));

    change(&only(0), &only(1));
    assert!(old.is_alive(), "after an update");
    let mut new = world.connect(VIP, 80).unwrap();
    assert_eq!([old.pod.ip(), new.pod.ip()], PODS.map(IpAddr::from));
    world.a.apply(&only(1));
    assert!(old.is_alive() && new.is_alive(), "after a rebuild");
    change(&only(1), &nobody());
    assert!(old.is_alive() && new.is_alive(), "after the service left this node");
    assert!(world.connect(VIP, 80).is_err());
    change(&nobody(), &Plan { vips: BTreeSet::new(), ..nobody() });
    assert!(old.is_alive() && new.is_alive(), "after the VIP was taken away");
    world.a.nft("delete table ip sheave");
    assert!(old.is_alive() && new.is_alive(), "without a table");
    world.a.apply(&both());
    assert!(old.is_alive() && new.is_alive(), "with a table again");
    assert_proxy_untouched(&world);
}

/// As on a node without kube-proxy, or after a third party has flushed its rules.
#[test]
fn open_connections_do_not_need_another_nat_chain_while_our_table_is_missing() {
    let world = World::new("hook");
    world.a.apply(&both());
    let mut connection = world.connect(VIP, 80).unwrap();
    world.a.nft(&format!("delete table ip {}", ruleset::TABLE));
    assert!(connection.is_alive());
    world.a.nft(&format!("delete table ip {}", ruleset::CONNTRACK_HOOK_TABLE));
    assert!(!connection.is_alive(), "no rule needs conntrack");
}

/// As a speaker does that finds the tables of an earlier version: one transaction, in which the old hook goes and the new one comes.
#[test]
fn an_upgrade_replaces_the_old_hook_table_and_keeps_connections() {
    let world = World::new("upgrade");
    world.a.apply(&both());
    let old = ruleset::replace(&both())
        .replace(ruleset::CONNTRACK_HOOK_TABLE, ruleset::OLD_CONNTRACK_HOOK_TABLE)
        .replace("chain postrouting {\n\t\ttype nat", "chain keep {\n\t\ttype nat");
    world.a.nft(&format!("{}{old}", ruleset::delete()));
    let mut connection = world.connect(VIP, 80).unwrap();
    world.a.apply(&both());
    assert!(connection.is_alive());
    assert_eq!(world.a.tables(), [ruleset::CONNTRACK_HOOK_TABLE, ruleset::TABLE].map(String::from).into());
    world.a.nft(&ruleset::delete());
    assert!(world.a.tables().is_empty(), "{:?}", world.a.tables());
}

#[test]
fn connections_spread_over_pods_and_clients_stick_with_affinity() {
    let world = World::new("spread");
    let reached = || -> BTreeSet<_> { (0..24).map(|_| world.connect(VIP, 80).unwrap().pod.ip()).collect() };
    world.a.apply(&both());
    assert_eq!(reached().len(), 2);
    world.a.apply(&plan(&PODS, Affinity::ClientIp));
    let pod = reached();
    assert_eq!(pod.len(), 1);
    world.a.apply(&plan(&PODS, Affinity::ClientIp));
    assert_eq!(reached(), pod, "after a rebuild");
}

/// Conntrack must give one of the two another source port towards the pod.
#[test]
fn one_client_port_reaches_one_pod_through_two_vips() {
    let world = World::new("clash");
    world.a.apply(&only(0));
    let mut first = world.connect_from(40001, VIP, 80).unwrap();
    let mut second = world.connect_from(40001, OTHER_VIP, 80).unwrap();
    assert!(first.is_alive() && second.is_alive());
    assert_eq!(first.local(), second.local());
    assert_ne!(first.seen, second.seen);
    assert_eq!(second.seen.ip(), CLIENT);
}
