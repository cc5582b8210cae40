use alloc::format;
use alloc::vec;

use ebpf_common::FlowTuple;

use super::ruleset::{replace, update};
use super::*;
use crate::view::endpoints::service_key;
use crate::view::example::*;
use crate::view::{Affinity, Conditions, Endpoint, Event, Protocol};

pub fn plan(endpoints: impl Into<Vec<Endpoint>>) -> Plan {
    Plan::new(&view(endpoints), "a", Uplink::new("eth0").unwrap())
}

pub fn ready(node: &str, n: u8) -> Endpoint {
    pod(node, n, Conditions::READY)
}

fn web_pods(plan: &Plan) -> Vec<(Ipv4Addr, u16)> {
    plan.services.get(&service_key(VIP, 80, Protocol::Tcp)).map_or(vec![], |local| local.pods.clone())
}

#[test]
fn only_ready_pods_of_this_node() {
    let plan = plan([ready("a", 2), ready("a", 1), ready("b", 3), pod("a", 4, UNREADY), pod("a", 5, TERMINATING)]);
    let address = |n| Ipv4Addr::new(10, 0, b'a', n);
    assert_eq!(web_pods(&plan), [(address(1), 8080), (address(2), 8080)]);
}

#[test]
fn terminating_pods_serve_clients_that_are_still_sent_here() {
    let plan = plan([pod("a", 1, TERMINATING), pod("a", 2, UNREADY), ready("b", 1)]);
    assert_eq!(web_pods(&plan), [(Ipv4Addr::new(10, 0, b'a', 1), 8080)]);
}

#[test]
fn what_a_service_publishes_serves_as_ready_pods_do() {
    let plan = plan([pod("a", 1, PUBLISHED), pod("a", 2, TERMINATING), pod("a", 3, UNREADY)]);
    let web = &plan.services[&service_key(VIP, 80, Protocol::Tcp)];
    assert_eq!((&web.pods[..], web.last_resort), (&[(Ipv4Addr::new(10, 0, b'a', 1), 8080)][..], false));
}

/// A chain has the first ones, and the port is named.
#[test]
fn one_pod_too_many_is_left_out_and_said() {
    let key = service_key(VIP, 80, Protocol::Tcp);
    let of = |count: usize, conditions| {
        let endpoint = |n: usize| {
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 0)) + u32::try_from(n).unwrap());
            Endpoint { address, node: Some("a".into()), conditions }
        };
        // One slice has 1,000 at most.
        let mut known = view((1..=500).map(endpoint).collect::<Vec<_>>());
        known.handle(Event::Apply(slice_named("web-2", (501..=count).map(endpoint).collect::<Vec<_>>())));
        let frontends = frontends(&known).0;
        let crowded = |node, no_kube_proxy| crowded(&frontends, node, no_kube_proxy).contains(&key);
        let plan = Plan::of(&known, &frontends, "a", Uplink::new("eth0").unwrap()).without_kube_proxy(&frontends);
        let pods = |pods: Option<&Vec<_>>| pods.map_or(0, Vec::len);
        let (here, inside) = (plan.services.get(&key), plan.inside.get(&key));
        let counts = (pods(here.map(|local| &local.pods)), pods(inside.map(|all| &all.pods)));
        (counts, [crowded("a", false), crowded("b", false), crowded("b", true)])
    };
    assert_eq!(of(MAX_PODS, Conditions::READY), ((MAX_PODS, MAX_PODS), [false; 3]));
    assert_eq!(of(MAX_PODS + 1, Conditions::READY), ((MAX_PODS, MAX_PODS), [true, false, true]));
    assert_eq!(of(MAX_PODS + 1, UNREADY), ((0, 0), [false; 3]), "none is left out");
}

/// Pods of the whole cluster, each once, though two nodes translate for one of them.
#[test]
fn clients_inside_are_this_nodes_where_kube_proxy_does_not_translate() {
    let outside = Endpoint { address: Ipv4Addr::new(198, 51, 100, 1), node: None, conditions: Conditions::READY };
    let known = view([ready("a", 1), ready("b", 2), pod("c", 3, UNREADY), outside.clone()]);
    let frontends = frontends(&known).0;
    let plan = Plan::of(&known, &frontends, "a", Uplink::new("eth0").unwrap());
    assert!(plan.inside.is_empty());
    let key = service_key(VIP, 80, Protocol::Tcp);
    let all = plan.clone().without_kube_proxy(&frontends);
    let pods = [Ipv4Addr::new(10, 0, b'a', 1), Ipv4Addr::new(10, 0, b'b', 2), outside.address].map(|pod| (pod, 8080));
    assert_eq!((all.inside.len(), &all.inside[&key].pods[..]), (2, &pods[..]));
    assert_eq!(all.inside[&key].via, [pods[2]].into());
    assert!(all.clone().serving(&BTreeSet::new()).inside.is_empty());
    // By updates, there and back.
    assert_eq!(update(&all, &all), None);
    for (from, to, verb) in [(&plan, &all, "add"), (&all, &plan, "delete")] {
        let text = update(from, to).unwrap();
        for line in ["element ip sheave inside { 192.0.2.1 . udp . 53", "chain ip sheave inside-tcp-192.0.2.1-80"] {
            assert!(text.contains(&format!("{verb} {line}")), "{text}");
        }
    }

    let bare = ServiceAttributes { without_kube_proxy: true, ..Default::default() };
    let mut known = known;
    known.handle(Event::Apply(service(web(), bare)));
    assert_eq!(Plan::new(&known, "a", Uplink::new("eth0").unwrap()).inside.len(), 2, "what kube-proxy leaves alone");
}

/// Its rules follow at once, so no flow waits for nft when a pod starts.
#[test]
fn pods_that_have_not_started_serve_where_no_other_does() {
    let of = |endpoints: &[Endpoint]| {
        let view = view(endpoints);
        let mut frontends = frontends(&view).0;
        let new = |pod: &&mut Pod<'_>| pod.address.octets()[3] >= 7;
        frontends.values_mut().flat_map(|frontend| &mut frontend.pods).filter(new).for_each(|pod| pod.started = false);
        let plan = Plan::of(&view, &frontends, "a", Uplink::new("eth0").unwrap());
        let web = &plan.services[&service_key(VIP, 80, Protocol::Tcp)];
        let pods: Vec<u8> = web.pods.iter().map(|(address, _)| address.octets()[3]).collect();
        (pods, web.last_resort)
    };
    assert_eq!(of(&[ready("a", 1), ready("a", 7)]), (vec![1], false));
    assert_eq!(of(&[pod("a", 1, TERMINATING), ready("a", 7)]), (vec![1], true));
    assert_eq!(of(&[pod("a", 1, UNREADY), ready("a", 7), ready("a", 8), ready("b", 1)]), (vec![7, 8], true));
}

#[test]
fn no_pod_here_no_service_here() {
    let plan = plan([ready("b", 1)]);
    assert!(plan.services.is_empty());
    assert!(plan.vips.contains(&VIP), "the guard refuses what comes all the same");
}

/// A flow from a client to the VIP's port, with the nth pod on node `a`.
pub fn flow(n: u8, proto: Protocol, pod_port: u16) -> Flow {
    let port: u16 = if proto == Protocol::Tcp { 80 } else { 53 };
    let tuple = FlowTuple {
        src: [192, 0, 2, 99],
        dst: VIP.octets(),
        src_port: [0x9c, 0x40],
        dst_port: port.to_be_bytes(),
        proto: proto.number(),
    };
    let tcp = (proto == Protocol::Tcp).then_some(TcpState::Established);
    Flow { tuple, pod: (Ipv4Addr::new(10, 0, b'a', n), pod_port), tcp, assured: true }
}

#[test]
fn tcp_stays_with_a_pod_that_exists_and_udp_with_one_that_serves() {
    let (tcp, udp) = (flow(1, Protocol::Tcp, 8080), flow(1, Protocol::Udp, 5353));
    let lost = |conditions: Option<Conditions>| {
        let endpoints: Vec<Endpoint> = conditions.map(|conditions| pod("a", 1, conditions)).into_iter().collect();
        let endpoints = Endpoints::new(&view(endpoints), "a");
        (endpoints.lost(&tcp), endpoints.lost(&udp))
    };
    assert_eq!(lost(Some(Conditions::READY)), (false, false));
    assert_eq!(lost(Some(TERMINATING)), (false, false), "it keeps what it has");
    assert_eq!(lost(Some(UNREADY)), (false, true));
    assert_eq!(lost(Some(Conditions { ready: true, serving: false, terminating: false })), (false, false));
    assert_eq!(lost(None), (true, true));
    // Another port of a pod that lives: its old connections end by themselves.
    let endpoints = Endpoints::new(&view([ready("a", 1)]), "a");
    assert!(!endpoints.lost(&flow(1, Protocol::Tcp, 9090)) && endpoints.lost(&flow(1, Protocol::Udp, 9090)));
}

#[test]
fn under_uncertainty_only_a_pod_that_is_gone_loses_its_flows() {
    let udp = flow(1, Protocol::Udp, 5353);
    let was_uncertain = |endpoints: Vec<Endpoint>| Endpoints::new(&view(endpoints), "a").uncertain(true);
    let silent = was_uncertain(vec![pod("a", 1, UNREADY)]);
    assert!(!silent.lost(&udp));
    assert!(was_uncertain(vec![]).lost(&udp) && was_uncertain(vec![ready("a", 1)]).lost(&flow(1, Protocol::Udp, 9090)));
    // When the uncertainty ends, pinned flows are judged again.
    let certain = silent.clone().uncertain(false);
    assert!(certain.lost(&udp) && certain.lost_since(&silent) && !silent.lost_since(&certain));
}

#[test]
fn flows_that_are_not_ours_to_judge() {
    // kube-proxy's, of a process of this node, to a pod elsewhere.
    let endpoints = Endpoints::new(&view([ready("b", 1)]), "a");
    let elsewhere = (Ipv4Addr::new(10, 0, b'b', 1), 8080);
    assert!(!endpoints.lost(&Flow { pod: elsewhere, ..flow(1, Protocol::Tcp, 8080) }));
    // No VIP (any more).
    let mut other = flow(1, Protocol::Tcp, 8080);
    other.tuple.dst = [192, 0, 2, 222];
    assert!(!endpoints.lost(&other) && endpoints.lost(&flow(1, Protocol::Tcp, 8080)));
    // The service is gone, its pod is not.
    let mut known = view([ready("a", 1)]);
    known.handle(Event::Delete(crate::view::Key::Service(web())));
    assert!(!Endpoints::new(&known, "a").lost(&flow(1, Protocol::Udp, 5353)));
}

#[test]
fn conntrack_is_scanned_only_when_a_pod_left() {
    let endpoints = |endpoints: Vec<Endpoint>| Endpoints::new(&view(endpoints), "a");
    let one = endpoints(vec![ready("a", 1)]);
    let two = endpoints(vec![ready("a", 1), ready("b", 2)]);
    assert!(one.lost_since(&Endpoints::default()), "at the start");
    assert!(!one.lost_since(&one) && !two.lost_since(&one));
    assert!(one.lost_since(&two));
    assert!(!endpoints(vec![pod("a", 1, TERMINATING)]).lost_since(&one));
    assert!(endpoints(vec![pod("a", 1, UNREADY)]).lost_since(&one));
}

#[test]
fn interface_names() {
    for good in ["eth0", "eth0.5", "bond-1", "wan_0", "a@b", "en:1", "abcdefghijklmno"] {
        assert_eq!(Uplink::new(good).unwrap().as_str(), good);
    }
    for bad in ["", ".", "..", "abcdefghijklmnop", "a b", "a\"b", "a\nb", "a/b", "a;b", "a*", "{a}", "é", "$x", "\\"] {
        assert!(Uplink::new(bad).is_err(), "{bad:?}");
    }
}

/// The requests to the kernel; the tests with a real nft are in `speaker/src/backend/tests.rs`, those with packets in
/// `tests/tests/backend_nft`.
#[test]
fn the_text() {
    let mut known = view([ready("a", 1), ready("a", 2)]);
    let text = replace(&Plan::new(&known, "a", Uplink::new("eth0").unwrap()));
    for line in [
        "\tset vips { type ipv4_addr; elements = { 192.0.2.1 }; }",
        "\tchain tcp-192.0.2.1-80 { meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : 10.0.97.1 . 8080, \
         1 : 10.0.97.2 . 8080 }; }",
        "elements = { 192.0.2.1 . udp . 53 : goto udp-192.0.2.1-53, 192.0.2.1 . tcp . 80 : goto tcp-192.0.2.1-80 }; }",
        "\t\tiifname \"eth0\" ip daddr @vips dnat to ip daddr",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    known.handle(Event::Apply(service(web(), Affinity::ClientIp)));
    let text = replace(&Plan::new(&known, "a", Uplink::new("eth0").unwrap()));
    let hash = affinity::service_hash(&web());
    let (set, pod) = (|n| format!("affinity-{hash:016x}-10.0.97.{n}"), |n| format!("pod-{hash:016x}-10.0.97.{n}"));
    for line in [
        format!("\tset {} {{ type ipv4_addr; size 16384; flags dynamic,timeout; }}", set(1)),
        "elements = { 192.0.2.1 . udp . 53 : 5353, 192.0.2.1 . tcp . 80 : 8080 }; }".into(),
        format!(
            "\tchain {1} {{ update @{0} {{ ip saddr timeout 10800s }}; ip saddr != @{0} counter name affinity_unrecorded; \
             meta l4proto tcp dnat to 10.0.97.1 : ip daddr . meta l4proto . th dport map @target_ports; \
             meta l4proto udp dnat to 10.0.97.1 : ip daddr . meta l4proto . th dport map @target_ports; }}",
            set(1),
            pod(1)
        ),
        format!("\tchain known-service-{hash:016x} {{ ip saddr @{} accept; ip saddr @{} accept; }}", set(1), set(2)),
        format!(
            "\tchain service-{hash:016x} {{ ip saddr @{0} goto {1}; ip saddr @{2} goto {3}; \
             jhash ip saddr mod 2 seed 0x53686561 == 0 goto {1}; goto {3}; }}",
            set(1),
            pod(1),
            set(2),
            pod(2)
        ),
        format!(
            "\tmap services {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ \
             192.0.2.1 . udp . 53 : goto service-{hash:016x}, 192.0.2.1 . tcp . 80 : goto service-{hash:016x} }}; }}"
        ),
    ] {
        assert!(text.contains(&line), "{line}\nis not in\n{text}");
    }
}

fn with_peers<const N: usize>(peers: [(u16, u8); N]) -> Plan {
    plan([]).with_peers(peers.map(|(slot, host)| (slot, Ipv4Addr::new(192, 0, 2, host))).into())
}

#[test]
fn marks_lead_to_peers() {
    let mut plan = with_peers([(2, 12), (0x103, 13)]);
    let text = replace(&plan);
    for line in [
        "\tchain peer-2 { @nh,48,8 set @nh,48,8 | 0x80 dup to 192.0.2.12 counter name second_chance drop; }",
        "elements = { 00:00:00:00:00:02 : goto peer-2, 00:00:00:00:01:03 : goto peer-259 }; }",
        "02:53:68:00:00:00 : accept, 02:53:68:10:00:00 : goto no-reset, 02:53:68:01:00:00 : goto alternate-1, \
         02:53:68:06:00:00 : goto alternate-1-in-fragments, 02:53:68:05:00:00 : goto to-dispatcher, 02:53:68:02:00:00 : goto alternate-2, 02:53:68:12:00:00 : goto alternate-2-no-reset, \
         02:53:68:03:00:00 : goto alternate-3, 02:53:68:13:00:00 : goto alternate-3-no-reset, \
         02:53:68:04:00:00 : goto to-primary, 02:53:68:14:00:00 : goto to-primary-no-reset }",
        "\t\tip ttl 1 ip ttl set 64",
        "\tchain to-peer { ether saddr & 00:00:00:00:ff:ff vmap @peers; tcp flags & (fin | syn | rst | ack) == syn accept; goto no-reset; }",
        "\tchain to-dispatcher { limit rate 20000/second burst 20000 packets goto alternate-1; accept; }",
        "\tchain alternate-1 { jump known-client; ip id set 38976 goto alternate-1-in-fragments; }",
        "\tchain alternate-2 { jump known-client; ip ttl set 15 goto to-peer; }",
        "\tchain alternate-3-no-reset { jump known-client; ip ttl set 30 goto to-peer-no-reset; }",
        // Arrives as 31: the first hop, without reset.
        "\t\tct state invalid ip ttl set 32 goto to-peer-no-reset",
        // Arrives as 12: the last hop.
        "\tchain to-primary { jump known-client; ip ttl set 13 goto to-peer; }",
        "\tchain to-primary-no-reset { jump known-client; ip ttl set 29 goto to-peer-no-reset; }",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    plan.second_chance = false;
    let text = replace(&plan);
    assert!(!text.contains("peer") && !text.contains("dup"), "{text}");
    assert!(text.contains("02:53:68:06:00:00 : accept, 02:53:68:05:00:00 : accept, 02:53:68:02:00:00 : accept, 02:53:68:12:00:00 : goto no-reset"));
}

#[test]
fn peers_come_and_go() {
    let expected = "delete element ip sheave peers { 00:00:00:00:00:01 }\n\
                    flush chain ip sheave peer-1\n\
                    delete chain ip sheave peer-1\n\
                    flush chain ip sheave peer-2\n\
                    add rule ip sheave peer-2 @nh,48,8 set @nh,48,8 | 0x80 dup to 192.0.2.22 counter name second_chance drop\n\
                    add chain ip sheave peer-3\n\
                    add rule ip sheave peer-3 @nh,48,8 set @nh,48,8 | 0x80 dup to 192.0.2.13 counter name second_chance drop\n\
                    add element ip sheave peers { 00:00:00:00:00:03 : goto peer-3 }\n";
    let (from, to) = (with_peers([(1, 11), (2, 12)]), with_peers([(2, 22), (3, 13)]));
    assert_eq!(update(&from, &to).unwrap(), expected);
    let without = |plan: &Plan| Plan { second_chance: false, ..plan.clone() };
    assert_eq!(update(&without(&from), &without(&to)), None);
    assert_eq!(update(&from, &without(&to)).unwrap(), replace(&without(&to)));
}

#[test]
fn udp_finds_its_pod_again_by_its_source() {
    let text = replace(&plan([ready("a", 1), ready("a", 2)]));
    assert!(
        text.contains("meta l4proto udp dnat ip to jhash ip saddr . udp sport mod 2 seed 0x53686561 map {"),
        "{text}"
    );
}

#[test]
fn an_update_names_only_what_differs() {
    let (one, other) = (plan([ready("a", 1)]), plan([ready("a", 2)]));
    assert_eq!(update(&one, &one), None);
    let expected = "flush chain ip sheave tcp-192.0.2.1-80\n\
                    flush chain ip sheave udp-192.0.2.1-53\n\
                    add rule ip sheave tcp-192.0.2.1-80 meta l4proto tcp dnat to 10.0.97.2:8080\n\
                    add rule ip sheave udp-192.0.2.1-53 meta l4proto udp dnat to 10.0.97.2:5353\n";
    assert_eq!(update(&one, &other).unwrap(), expected);
    let moved = Plan { uplink: Uplink::new("eth1").unwrap(), ..other };
    assert_eq!(update(&one, &moved).unwrap(), replace(&moved));
}

/// kube-proxy runs with another `--iptables-masquerade-bit`: its mark is set before its filter chains and cleared behind them, and no other.
#[test]
fn the_accept_mark_is_kube_proxys() {
    let by_default = plan([ready("a", 1)]);
    let marked = Plan { accept_mark: 1 << 5, ..by_default.clone() };
    let text = update(&by_default, &marked).expect("another mark changes the rules");
    assert_eq!(text, replace(&marked));
    assert!(
        text.contains("meta mark set meta mark | 0x20\n") && text.contains("meta mark set meta mark & 0xffffffdf\n"),
        "{text}"
    );
    assert!(!text.contains("0x4000") && replace(&by_default).contains("meta mark | 0x4000\n"));
}

#[test]
fn udp_pins_come_and_go() {
    let udp_pins = |flows: &[(u16, u8)]| {
        let one = |&(port, pod): &(u16, u8)| {
            let tuple = FlowTuple { src_port: port.to_be_bytes(), ..flow(1, Protocol::Udp, 5353).tuple };
            (tuple, (Ipv4Addr::new(10, 0, b'a', pod), 5353))
        };
        Plan { udp_pins: flows.iter().map(one).collect(), ..plan([]) }
    };
    let expected = "delete element ip sheave udp_pin { 192.0.2.99 . 1 . 192.0.2.1 . 53, 192.0.2.99 . 2 . 192.0.2.1 . 53 }\n\
                    delete element ip sheave udp_pin_targets { 192.0.2.99 . 1 . 192.0.2.1 . 53, 192.0.2.99 . 2 . 192.0.2.1 . 53 }\n\
                    add element ip sheave udp_pin { 192.0.2.99 . 2 . 192.0.2.1 . 53 }\n\
                    add element ip sheave udp_pin_targets { 192.0.2.99 . 2 . 192.0.2.1 . 53 : 10.0.97.2 . 5353 }\n";
    assert_eq!(update(&udp_pins(&[(1, 1), (2, 1), (3, 1)]), &udp_pins(&[(2, 2), (3, 1)])).unwrap(), expected);
    assert!(
        replace(&udp_pins(&[(1, 1)])).contains("elements = { 192.0.2.99 . 1 . 192.0.2.1 . 53 : 10.0.97.1 . 5353 }; }")
    );
}

#[test]
fn names_given_by_people_do_not_reach_the_text() {
    let evil = "x; } flush ruleset; #\n";
    let mut known = View::default();
    let name = crate::view::ObjectName::new(evil, evil);
    let ports: Vec<_> = ports(80, 53).into_iter().map(|port| crate::view::Port { name: evil.into(), ..port }).collect();
    let endpoints = vec![Endpoint { node: Some(evil.into()), ..ready("a", 1) }];
    let slice = crate::view::EndpointSlice { service: evil.into(), ports: ports.clone(), endpoints };
    for object in [
        crate::view::Object::Node(evil.into(), crate::view::Node::at([192, 0, 2, 250].into())),
        crate::view::Object::Service(name.clone(), crate::view::Service { ports, ..Default::default() }),
        crate::view::Object::EndpointSlice(name.clone(), slice),
        vip(VIP, [name]),
    ] {
        known.handle(Event::Apply(object));
    }
    let plan = Plan::new(&known, evil, Uplink::new("eth0").unwrap());
    assert_eq!(plan.services.len(), 2);
    assert!(!replace(&plan).contains("flush"));
    assert!(!replace(&plan).contains('#'));
}

/// A VIP that is a node's address, or that this host must not serve, has no part in the rules: they would refuse all else that goes to
/// that address.
#[test]
fn a_vip_that_is_not_served_is_not_in_the_rules() {
    let other = core::net::Ipv4Addr::new(192, 0, 2, 201);
    let mut known = view([ready("a", 1)]);
    known.handle(Event::Apply(vip(other, [web()])));
    let plan = |known: &View| Plan::new(known, "a", Uplink::new("eth0").unwrap());
    assert!(replace(&plan(&known)).contains("192.0.2.201"));
    assert!(!replace(&plan(&known).serving(&[VIP].into())).contains("192.0.2.201"));
    let crate::view::Object::Node(name, mut node) = node("b") else { panic!("a node") };
    node.aliases.insert(other);
    known.handle(Event::Apply(crate::view::Object::Node(name, node)));
    assert!(!replace(&plan(&known)).contains("192.0.2.201"));
}

/// Every node has rules for the ports of all nodes' addresses; what is sent to other ports, NodePorts among them, is not ours.
#[test]
fn ports_of_nodes_are_a_set_of_their_own() {
    let other = Ipv4Addr::new(192, 0, 2, b'b');
    let bare = view([ready("a", 1)]);
    let mut known = bare.clone();
    known.handle(Event::Apply(at_node("b", other, [web()])));
    let of = |known: &View| Plan::new(known, "a", Uplink::new("eth0").unwrap()).serving(&[VIP].into());
    let plan = of(&known);
    let key = service_key(other, 80, Protocol::Tcp);
    assert_eq!((plan.vips.len(), plan.node_ports.len(), plan.services.len()), (1, 2, 4));
    assert!(plan.has(&key) && !plan.has(&service_key(other, 81, Protocol::Tcp)));
    let text = replace(&plan);
    let ports = "elements = { 192.0.2.98 . tcp . 80, 192.0.2.98 . udp . 53 }";
    assert!(
        text.contains(&format!("set node_ports {{ type ipv4_addr . inet_proto . inet_service; {ports}; }}")),
        "{text}"
    );
    assert!(text.contains("set vips { type ipv4_addr; elements = { 192.0.2.1 }; }"), "{text}");
    // A pod that leaves has its grace period there as well.
    for (from, to, verb) in [(&of(&bare), &plan, "add"), (&plan, &of(&bare), "delete")] {
        let text = update(from, to).unwrap();
        for line in ["node_addresses { 192.0.2.98 }", "node_ports { 192.0.2.98 . tcp . 80, 192.0.2.98 . udp . 53 }"] {
            assert!(text.contains(&format!("{verb} element ip sheave {line}\n")), "{text}");
        }
    }

    let endpoints = Endpoints::new(&known, "a");
    let to = |port: u16| {
        let tuple =
            FlowTuple { dst: other.octets(), dst_port: port.to_be_bytes(), ..flow(1, Protocol::Tcp, 8080).tuple };
        Flow { tuple, pod: (Ipv4Addr::new(10, 0, b'a', 9), 8080), ..flow(1, Protocol::Tcp, 8080) }
    };
    assert!(endpoints.lost(&to(80)) && !endpoints.lost(&to(30_080)), "its pod is in no slice");
    assert_eq!(endpoints.destinations().addresses(), [VIP, other].into());
    assert!(endpoints.lost_since(&Endpoints::new(&bare, "a")));
}
