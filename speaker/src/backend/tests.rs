//! The real nft in a network namespace that only the test's thread is in; the kernel removes it with the thread.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use ebpf_common::FlowTuple;
use nix::sched::{CloneFlags, unshare};
use speaker_core::backend::{Flow, TcpState, UdpPins, Uplink};
use speaker_core::view::endpoints::service_key;
use speaker_core::view::{
    Affinity, Conditions, Endpoint, EndpointSlice, Event, Node, Object, ObjectName, Port, Protocol, Service, View,
    VirtualIp,
};

use super::netfilter::{Netfilter, nested, plain};
use super::*;

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Runs the test alone in a namespace. Children of the runtime are forked by this thread and so live there too.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs CAP_SYS_ADMIN");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    })
    .join()
    .unwrap();
}

/// One service on ports 80 TCP and 53 UDP with so many pods on node `n1`.
fn plan(pods: u8) -> Plan {
    plan_of(pods, Conditions::READY)
}

/// The same with pods like these.
fn plan_of(pods: u8, conditions: Conditions) -> Plan {
    let name = ObjectName::new("default", "web");
    let ports: Vec<Port> = [("http", 80, Protocol::Tcp), ("dns", 53, Protocol::Udp)]
        .map(|(name, port, protocol)| Port { name: name.into(), port, protocol })
        .into();
    let endpoint = |i| Endpoint { address: Ipv4Addr::new(10, 0, 0, i), node: Some("n1".into()), conditions };
    let endpoints = (1..=pods).map(endpoint).collect();
    let mut view = View::default();
    let address = Ipv4Addr::new(192, 0, 2, 11);
    for object in [
        Object::Node("n1".into(), Node::at(address)),
        Object::Service(name.clone(), Service { ports: ports.clone(), affinity: Affinity::ClientIp }),
        Object::EndpointSlice(name.clone(), EndpointSlice { service: "web".into(), ports, endpoints }),
        Object::VirtualIp(VIP, VirtualIp { pool: "pool".into(), services: vec![name] }),
    ] {
        view.handle(Event::Apply(object));
    }
    Plan::new(&view, "n1", Uplink::new("eth0").unwrap())
}

fn udp_flow(port: u16) -> FlowTuple {
    let src_port = port.to_be_bytes();
    FlowTuple { src: [192, 0, 2, 9], dst: VIP.octets(), src_port, dst_port: 53_u16.to_be_bytes(), proto: 17 }
}

#[test]
fn updates_end_where_a_replacement_ends() {
    in_namespace(|| async {
        let nft = Nft::new("nft");
        let mut backend = Backend::new(nft.clone());
        assert_eq!(backend.sync(plan(0)).await.unwrap(), Outcome::Replaced);
        let plan = |pods: u8| {
            let peers = (1..=pods).map(|slot| (u16::from(slot), Ipv4Addr::new(192, 0, 2, slot + pods % 2))).collect();
            let target = (Ipv4Addr::new(10, 0, 0, 1 + pods % 2), 53);
            let udp_pins = (1..=pods).map(|port| (udp_flow(port.into()), target)).collect();
            Plan { udp_pins, ..plan(pods).with_peers(peers) }
        };
        for pods in [1, 3, 2, 0, 5] {
            assert_eq!(backend.sync(plan(pods)).await.unwrap(), Outcome::Updated);
            assert_eq!(backend.sync(plan(pods)).await.unwrap(), Outcome::Unchanged);
            let updated = sorted(&nft.listing().await.unwrap().unwrap());
            nft.apply(&ruleset::replace(&plan(pods))).await.unwrap();
            assert_eq!(updated, sorted(&nft.listing().await.unwrap().unwrap()), "{pods} pods");
        }
        assert_eq!(plan(5).services[&service_key(VIP, 80, Protocol::Tcp)].pods.len(), 5);
    });
}

/// The figures of bench/README.md, Conntrack, are what this prints with `--nocapture`.
#[test]
fn as_many_udp_pins_as_there_may_be_are_written_and_audited() {
    in_namespace(|| async {
        let mut backend = Backend::new(Nft::new("nft"));
        backend.sync(plan(1)).await.unwrap();
        let udp_pins = |n: usize| {
            let flows = (0..n).map(|port| (udp_flow(port as u16), (POD, 53))).collect();
            Plan { udp_pins: flows, ..plan(1) }
        };
        let most = UdpPins::MAX;
        for (what, flows) in [("all", most), ("one less", most - 1), ("none", 0)] {
            let started = Instant::now();
            assert_eq!(backend.sync(udp_pins(flows)).await.unwrap(), Outcome::Updated);
            let written = started.elapsed();
            assert!(!backend.audit().await.unwrap(), "{what}");
            println!("{what}: written {written:.0?}, audited {:.0?}", started.elapsed() - written);
        }
    });
}

/// A listing names chains in order of their making; that order means nothing.
fn sorted(listing: &str) -> Vec<String> {
    let mut lines: Vec<String> = listing.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn a_third_party_change_is_noticed_and_repaired() {
    in_namespace(|| async {
        let nft = Nft::new("nft");
        let mut backend = Backend::new(nft.clone());
        assert!(!backend.audit().await.unwrap(), "nothing to audit yet");
        backend.sync(plan(2)).await.unwrap();
        assert!(!backend.audit().await.unwrap() && !backend.audit().await.unwrap());
        let generation = netfilter::generation().unwrap();
        nft.apply("add table ip foreign").await.unwrap();
        assert_ne!(netfilter::generation().unwrap(), generation);
        assert!(!backend.audit().await.unwrap(), "a third party's table is not ours");
        let whole = nft.listing().await.unwrap();
        let attacks = [
            "delete table ip sheave",
            "flush chain ip sheave prerouting",
            "delete table ip sheave-conntrack-hook",
            "flush ruleset",
        ];
        for attack in attacks {
            nft.apply(attack).await.unwrap();
            assert!(backend.audit().await.unwrap(), "{attack}");
            assert_eq!(nft.listing().await.unwrap(), whole);
            assert!(!backend.audit().await.unwrap());
        }
        // Between a change and its first audit.
        backend.sync(plan(3)).await.unwrap();
        nft.delete().await.unwrap();
        assert!(backend.audit().await.unwrap());
        // A change that meets a missing table builds it anew.
        nft.delete().await.unwrap();
        assert_eq!(backend.sync(plan(1)).await.unwrap(), Outcome::Replaced);
        // What an earlier version left goes too, and is found until then.
        nft.apply("add table ip sheave-keep").await.unwrap();
        assert_eq!(nft.tables().await.unwrap(), ruleset::ALL_TABLES);
        nft.delete().await.unwrap();
        nft.delete().await.unwrap();
        assert_eq!(nft.listing().await.unwrap(), None);
        assert!(nft.tables().await.unwrap().is_empty());
        assert!(counters::packets(ruleset::TABLE).unwrap().is_empty());
    });
}

#[test]
fn counters_have_the_names_of_the_guards() {
    in_namespace(|| async {
        let mut backend = Backend::new(Nft::new("nft"));
        backend.sync(plan(1)).await.unwrap();
        let kernel = counters::packets(ruleset::TABLE).unwrap();
        let mut labels: Vec<&str> = Guard::ALL.iter().map(|guard| guard.label()).collect();
        labels.sort_unstable();
        assert_eq!(kernel.keys().collect::<Vec<_>>(), labels);
        assert!(backend.counters().unwrap().values().all(|counter| counter.packets == 0));
    });
}

/// What nft lists of a table's counters, and the most memory that it took, in kB.
#[expect(clippy::zombie_processes, reason = "wait4 waits for it and returns what it used")]
fn listed_by_nft(table: &str) -> (BTreeMap<String, u64>, i64) {
    let mut nft = std::process::Command::new("nft");
    let mut nft = nft.args(["-j", "list", "counters", "table", "ip", table]);
    nft = nft.stdout(std::process::Stdio::piped());
    let mut child = nft.spawn().unwrap();
    let listing: serde_json::Value = serde_json::from_reader(child.stdout.take().unwrap()).unwrap();
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: our own child, which nothing else waits for; the kernel fills in the usage.
    let usage = unsafe {
        assert!(libc::wait4(child.id() as i32, std::ptr::null_mut(), 0, usage.as_mut_ptr()) > 0);
        usage.assume_init()
    };
    let counters = listing["nftables"].as_array().unwrap().iter().filter_map(|item| item.get("counter"));
    let packets = |counter: &serde_json::Value| {
        (counter["name"].as_str().unwrap().to_owned(), counter["packets"].as_u64().unwrap())
    };
    (counters.map(packets).collect(), usage.ru_maxrss)
}

#[test]
fn counters_are_those_that_nft_lists_of_this_table_alone() {
    in_namespace(|| async {
        let nft = Nft::new("nft");
        // More than one answer of the kernel holds; a quota is an object of another type; the same names in other tables.
        let names = (0..1000_u64).map(|n| format!("counter c{n} {{ packets {} bytes {n} }}\n", n * n * 1_000_000_u64));
        let names: String = names.collect();
        let other = "counter c1 { packets 9 bytes 9 }\n";
        let text = format!(
            "table ip one {{\n{names} quota q {{ over 5 bytes; }}\n}}\ntable ip two {{\n{other}}}\ntable ip6 one {{\n{other}}}\n"
        );
        nft.apply(&text).await.unwrap();
        for table in ["one", "two"] {
            assert_eq!(counters::packets(table).unwrap(), listed_by_nft(table).0, "{table}");
        }
        assert_eq!(counters::packets("one").unwrap().len(), 1000);
        assert_eq!(counters::packets("none").unwrap(), BTreeMap::new());
        nft.apply("flush ruleset").await.unwrap();
        let many: String = (0..5000).map(|n| format!("counter c{n} {{ }}\n")).collect();
        nft.apply(&format!("table ip one {{\n{many}}}\n")).await.unwrap();
        assert!(counters::packets("one").unwrap_err().to_string().contains("more than 4096"));
    });
}

/// So many Services of two pods each, as kube-proxy in nftables mode writes them (pkg/proxy/nftables).
fn kube_proxy(services: usize) -> String {
    let mut text =
        String::from("table ip kube-proxy {\n chain mark-for-masquerade { meta mark set mark or 0x4000; }\n");
    let (mut ips, mut elements) = (Vec::new(), Vec::new());
    for n in 0..services {
        let ip = Ipv4Addr::from_bits(0x0a60_0000 + n as u32);
        let name = format!("{n:08X}-default/service-{n}/tcp/http");
        let mut goto = Vec::new();
        for pod in 0..2 {
            let address = Ipv4Addr::from_bits(0x0a00_0000 + 2 * n as u32 + pod);
            let chain = format!("endpoint-{name}__{address}/8080");
            text += &format!(
                " chain {chain} {{ ip saddr {address} jump mark-for-masquerade; meta l4proto tcp dnat to {address}:8080; }}\n"
            );
            goto.push(format!("{pod} : goto {chain}"));
        }
        text += &format!(
            " chain service-{name} {{ ip daddr {ip} tcp dport 80 ip saddr != 10.0.0.0/8 jump mark-for-masquerade; \
             numgen random mod 2 vmap {{ {} }}; }}\n",
            goto.join(", ")
        );
        ips.push(ip.to_string());
        elements.push(format!("{ip} . tcp . 80 : goto service-{name}"));
    }
    text += &format!(" set cluster-ips {{ type ipv4_addr; elements = {{ {} }}; }}\n", ips.join(", "));
    let kind = "type ipv4_addr . inet_proto . inet_service : verdict";
    text + &format!(" map service-ips {{ {kind}; elements = {{ {} }}; }}\n}}\n", elements.join(", "))
}

/// `SHEAVE_FOREIGN_SERVICES=5000,10000` with `--nocapture` prints the figures of bench/README.md.
#[test]
fn counters_cost_the_same_whatever_else_is_in_the_ruleset() {
    let sizes = std::env::var("SHEAVE_FOREIGN_SERVICES").unwrap_or_else(|_| "500".into());
    in_namespace(move || async move {
        let nft = Nft::new("nft");
        let mut backend = Backend::new(nft.clone());
        backend.sync(plan(2)).await.unwrap();
        for services in sizes.split(',').map(|size| size.parse::<usize>().unwrap()) {
            nft.apply("table ip kube-proxy { }; delete table ip kube-proxy").await.unwrap();
            nft.apply(&kube_proxy(services)).await.unwrap();
            let began = Instant::now();
            let (listed, memory) = listed_by_nft(ruleset::TABLE);
            let by_nft = began.elapsed();
            // The shortest of three: on a busy machine any one may wait for a processor.
            let read = || {
                let began = Instant::now();
                assert_eq!(counters::packets(ruleset::TABLE).unwrap(), listed);
                began.elapsed()
            };
            let by_netlink = [(); 3].map(|()| read()).into_iter().min().unwrap();
            println!("{services} foreign Services: nft {by_nft:.0?}, {memory} kB; netlink {by_netlink:.1?}");
            assert!(
                by_netlink < Duration::from_millis(50) && 5 * by_netlink < by_nft,
                "{by_netlink:?}, nft: {by_nft:?}"
            );
        }
    });
}

#[test]
fn a_refused_transaction_changes_nothing_and_returns_the_cause() {
    in_namespace(|| async {
        let mut backend = Backend::new(Nft::new("nft"));
        backend.sync(plan(1)).await.unwrap();
        let before = backend.nft.listing().await.unwrap();
        let error = backend.nft.apply("delete table ip sheave\nadd rule ip sheave nowhere drop\n").await.unwrap_err();
        assert_eq!(error.label(), "refused");
        assert!(error.to_string().contains(nft::NO_SUCH), "{error}");
        assert_eq!(backend.nft.listing().await.unwrap(), before);
    });
}

/// A program in front of nft, gone with this value.
struct Wrapper(std::path::PathBuf);

impl Wrapper {
    fn new(name: &str, script: &str) -> Self {
        let program = std::env::temp_dir().join(format!("sheave-nft-{name}-{}", std::process::id()));
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self(program)
    }
}

impl Drop for Wrapper {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

#[test]
fn a_service_port_that_is_refused_stays_as_it_was_and_the_rest_changes() {
    in_namespace(|| async {
        let script = "text=$(cat)\ncase \"$text\" in *10.0.0.99*) echo 'this pod is refused' >&2; exit 1;; esac\n\
                      printf '%s' \"$text\" | exec nft \"$@\"";
        let wrapper = Wrapper::new("refusing", script);
        let mut backend = Backend::new(Nft::new(&wrapper.0));
        backend.sync(plan(1)).await.unwrap();
        let mut wanted = plan(1).with_peers([(2, Ipv4Addr::new(192, 0, 2, 12))].into());
        let [http, dns] = [(80, Protocol::Tcp), (53, Protocol::Udp)].map(|(port, proto)| service_key(VIP, port, proto));
        wanted.services.get_mut(&dns).unwrap().pods = vec![(Ipv4Addr::new(10, 0, 0, 99), 53)];
        for _ in 0..2 {
            let error = backend.sync(wanted.clone()).await.unwrap_err();
            assert!(error.to_string().contains("this pod is refused"), "{error}");
            let in_force = backend.in_force().unwrap();
            assert_eq!((&in_force.services, &in_force.peers), (&plan(1).services, &wanted.peers));
            assert!(Nft::new("nft").listing().await.unwrap().unwrap().contains("dup to 192.0.2.12"));
        }
        // A new one that is refused is not there, and a removed one goes.
        let mut new = wanted.clone();
        let refused = new.services.remove(&dns).unwrap();
        new.services.insert(service_key(VIP, 54, Protocol::Udp), refused);
        backend.sync(new).await.unwrap_err();
        assert!(backend.in_force().unwrap().services.keys().eq([&http]));
        assert!(backend.sync(plan(2)).await.is_ok() && !backend.is_suspect());
        assert!(!backend.audit().await.unwrap());
    });
}

/// The program hangs behind a transaction that the kernel has taken.
#[test]
fn after_a_timeout_only_what_both_plans_have_is_in_force() {
    in_namespace(|| async {
        let mut backend = Backend::new(Nft::new("nft"));
        backend.sync(plan(2)).await.unwrap();
        let wrapper = Wrapper::new("hanging", "nft \"$@\"\nexec sleep 1000");
        backend.nft = Nft::new(&wrapper.0).with_timeout(Duration::from_millis(500));
        let mut wanted = plan(2);
        let (gone, _) = wanted.services.pop_first().unwrap();
        let added = service_key(VIP, 8080, Protocol::Tcp);
        wanted.services.insert(added, plan(1).services.into_values().next().unwrap());
        assert_eq!(backend.sync(wanted.clone()).await.unwrap_err().label(), "timeout");
        let in_force = &backend.in_force().unwrap().services;
        assert!(!in_force.contains_key(&gone) && !in_force.contains_key(&added) && in_force.len() == 1);
        assert!(backend.is_suspect() && !backend.audit().await.unwrap());
        backend.nft = Nft::new("nft");
        assert_eq!(backend.sync(wanted).await.unwrap(), Outcome::Replaced);
        assert!(backend.in_force().unwrap().services.contains_key(&added));
    });
}

/// Pod 10.0.0.1 is the namespace itself. Translates in output what goes to the VIP: the stand-in for our own chain in
/// prerouting, which what a node sends itself does not pass.
async fn pod_in_this_namespace() {
    ["link set lo up", "addr add 10.0.0.1/32 dev lo", "route add 192.0.2.1/32 dev lo"].into_iter().for_each(ip);
    translate("10.0.0.1").await;
}

fn ip(arguments: &str) {
    assert!(std::process::Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "{arguments}");
}

async fn until(happened: impl Fn() -> bool) {
    let waiting = async {
        while !happened() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("it did not happen");
}

async fn translate(target: &str) {
    let text = format!(
        "add table ip test
         add chain ip test output {{ type nat hook output priority -110; }}
         flush chain ip test output
         add rule ip test output ip daddr 192.0.2.1 meta l4proto {{ tcp, udp }} dnat to {target}"
    );
    Nft::new("nft").apply(&text).await.unwrap();
}

const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

fn vips() -> BTreeSet<Ipv4Addr> {
    [VIP].into()
}

#[test]
fn a_udp_flow_leaves_its_pod_when_it_is_deleted_and_not_before() {
    in_namespace(|| async {
        pod_in_this_namespace().await;
        let pods = [53, 54].map(|port| UdpSocket::bind((POD, port)).unwrap());
        pods.iter().for_each(|pod| pod.set_read_timeout(Some(Duration::from_millis(200))).unwrap());
        let (client, bystander) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let reaches = |pod: usize| {
            client.send_to(b"x", (VIP, 53)).unwrap();
            pods[pod].recv(&mut [0; 8]).is_ok()
        };
        assert!(reaches(0));
        bystander.send_to(b"x", (VIP, 53)).unwrap();
        translate("10.0.0.1:54").await;
        assert!(pods[0].recv(&mut [0; 8]).is_ok() && reaches(0), "conntrack holds on to the first pod");

        let forget = |port: u16| conntrack::forget(&vips(), |flow| flow.pod == (POD, port)).unwrap();
        assert_eq!(forget(54), 0);
        assert!(reaches(0), "flows to other pods are left alone");
        assert_eq!(forget(53), 2);
        assert!(reaches(1));
        assert_eq!(forget(53), 0);
    });
}

#[test]
fn flows_are_read_as_the_client_sends_them() {
    in_namespace(|| async {
        pod_in_this_namespace().await;
        let pod = TcpListener::bind((POD, 80)).unwrap();
        let client = TcpStream::connect((VIP, 80)).unwrap();
        let (served, _) = pod.accept().unwrap();
        // Not to a VIP: not read.
        let _other = TcpStream::connect((POD, 80)).unwrap();
        let udp = UdpSocket::bind((POD, 0)).unwrap();
        udp.send_to(b"x", (VIP, 53)).unwrap();

        let flows = || {
            let mut flows = conntrack::flows(&vips()).unwrap();
            flows.sort_by_key(|flow| flow.tuple.proto);
            flows
        };
        let tuple = |from: std::net::SocketAddr, port: u16, proto| FlowTuple {
            src: POD.octets(),
            dst: VIP.octets(),
            src_port: from.port().to_be_bytes(),
            dst_port: port.to_be_bytes(),
            proto,
        };
        let open = TcpState::Established;
        let from = client.local_addr().unwrap();
        let tcp = Flow { tuple: tuple(from, 80, 6), pod: (POD, 80), tcp: Some(open), assured: true };
        let from = udp.local_addr().unwrap();
        let datagram = Flow { tuple: tuple(from, 53, 17), pod: (POD, 53), tcp: None, assured: false };
        assert_eq!(flows(), [tcp, datagram]);

        assert_eq!(conntrack::forget_closed(&vips()).unwrap(), 0);
        drop(served);
        drop(client);
        let closed = [Flow { tcp: Some(TcpState::TimeWait), ..tcp }, datagram];
        let patience = Instant::now() + Duration::from_secs(2);
        while flows() != closed && Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(flows(), closed);
        assert_eq!(conntrack::forget_closed(&vips()).unwrap(), 1);
        assert_eq!(flows(), [datagram]);
    });
}

#[test]
fn flows_whose_pod_is_gone_are_forgotten_and_no_others() {
    in_namespace(|| async {
        pod_in_this_namespace().await;
        let pod = TcpListener::bind((POD, 80)).unwrap();
        let _client = TcpStream::connect((VIP, 80)).unwrap();
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        udp.send_to(b"x", (VIP, 53)).unwrap();
        let entries = || conntrack::flows(&vips()).unwrap().len();
        let wait = |ms| tokio::time::sleep(Duration::from_millis(ms));

        let mut backend = Backend::new(Nft::new("nft"));
        backend.sync(plan(1)).await.unwrap();
        wait(400).await;
        assert_eq!((entries(), backend.flows_forgotten()), (2, 0));
        // An endpoint that moves from one slice to another is in neither for a moment.
        backend.sync(plan(0)).await.unwrap();
        wait(50).await;
        backend.sync(plan(1)).await.unwrap();
        wait(400).await;
        assert_eq!((entries(), backend.flows_forgotten()), (2, 0));
        // The pod is no longer listed, but it lives: UDP does as well with another, the connection does not.
        backend.sync(plan(0)).await.unwrap();
        until(|| backend.flows_in_removal_grace() == 1).await;
        assert_eq!((entries(), backend.flows_forgotten()), (1, 1));
        // Listed or not, and whether it listens or not: a host has the address.
        drop(pod);
        wait(1000).await;
        assert_eq!((entries(), backend.flows_in_removal_grace()), (1, 1));
        ip("addr del 10.0.0.1/32 dev lo");
        until(|| backend.flows_forgotten() == 2).await;
        assert_eq!((entries(), backend.flows_in_removal_grace()), (0, 0));

        // A new speaker looks for what an earlier one left.
        ip("addr add 10.0.0.1/32 dev lo");
        udp.send_to(b"x", (VIP, 53)).unwrap();
        let mut backend = Backend::new(Nft::new("nft"));
        backend.sync(plan(0)).await.unwrap();
        wait(400).await;
        assert_eq!((entries(), backend.flows_forgotten()), (0, 1));
    });
}

/// A node that was cut off from the API server and reaches it again: its pods are called unready for some seconds.
#[test]
fn udp_flows_stay_while_the_node_status_is_uncertain() {
    in_namespace(|| async {
        pod_in_this_namespace().await;
        let udp = UdpSocket::bind((POD, 0)).unwrap();
        udp.send_to(b"x", (VIP, 53)).unwrap();
        // What must not happen is given the time in which it would (200 ms, and a dump): there is nothing to wait for.
        let wait = |ms| tokio::time::sleep(Duration::from_millis(ms));
        let mut backend = Backend::new(Nft::new("nft"));
        backend.sync(plan(1)).await.unwrap();
        wait(400).await;

        let unready = || plan_of(1, Conditions { ready: false, serving: false, terminating: false });
        let plan = unready();
        let was_uncertain = Plan { endpoints: plan.endpoints.clone().uncertain(true), ..plan };
        // The uncertainty may begin a moment later than the pods are called unready.
        backend.sync(unready()).await.unwrap();
        wait(50).await;
        backend.sync(was_uncertain).await.unwrap();
        wait(400).await;
        assert_eq!((conntrack::flows(&vips()).unwrap().len(), backend.flows_forgotten()), (1, 0));

        // The uncertainty has ended.
        backend.sync(unready()).await.unwrap();
        until(|| backend.flows_forgotten() > 0).await;
        assert!(conntrack::flows(&vips()).unwrap().is_empty());
    });
}

/// Within so many milliseconds a third-party change of our table is reported.
async fn reports_change(backend: &mut Backend, milliseconds: u64) -> bool {
    tokio::time::timeout(Duration::from_millis(milliseconds), backend.changed()).await.is_ok()
}

#[test]
fn third_party_changes_of_our_table_are_reported_at_once_and_nothing_else() {
    in_namespace(|| async {
        let nft = Nft::new("nft");
        let mut backend = Backend::new(nft.clone());
        assert!(!reports_change(&mut backend, 1).await);
        for pods in [1, 2, 0, 3] {
            backend.sync(plan(pods)).await.unwrap();
        }
        nft.apply("add table ip other; add table ip6 sheave; add chain ip other c; delete table ip other")
            .await
            .unwrap();
        assert!(!reports_change(&mut backend, 300).await, "our own changes, and those of other tables");
        for attack in ["delete table ip sheave", "flush chain ip sheave flow_lookup", "flush ruleset"] {
            // While nothing is known to compare with, and after that.
            for audited in [false, true] {
                backend.sync(plan(0)).await.unwrap();
                backend.sync(plan(1)).await.unwrap();
                assert!(!audited || !backend.audit().await.unwrap());
                tokio::time::sleep(PACE).await;
                let started = Instant::now();
                nft.apply(attack).await.unwrap();
                assert!(reports_change(&mut backend, 100).await, "{attack}");
                assert!(backend.audit().await.unwrap(), "{attack}");
                assert!(started.elapsed() < Duration::from_millis(200), "{attack}: {:?}", started.elapsed());
                assert!(!reports_change(&mut backend, 250).await, "the repair is our own change");
            }
        }
        // A third party that does not stop is answered at a pace.
        let mut reported = 0;
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            nft.apply("add rule ip sheave flow_lookup drop").await.unwrap();
            reported += u32::from(reports_change(&mut backend, 10).await);
        }
        assert!((1..=6).contains(&reported), "{reported}");
        assert!(backend.audit().await.unwrap());
    });
}

#[test]
fn a_kernel_that_cannot_hand_packets_on_gets_the_rest() {
    in_namespace(|| async {
        // Stands in for nft on such a kernel.
        let program = std::env::temp_dir().join(format!("sheave-nft-without-dup-{}", std::process::id()));
        let script = "#!/bin/sh\ntext=$(cat)\ncase \"$text\" in *dup\\ to*) echo 'Operation not supported' >&2; exit 1;; esac\n\
                      printf '%s' \"$text\" | exec nft \"$@\"\n";
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let with_peers = |pods| plan(pods).with_peers([(2, Ipv4Addr::new(192, 0, 2, 12))].into());
        let mut backend = Backend::new(Nft::new(&program));
        assert_eq!(backend.sync(with_peers(1)).await.unwrap(), Outcome::Replaced);
        assert!(!backend.second_chance());
        assert_eq!(backend.sync(with_peers(1)).await.unwrap(), Outcome::Unchanged);
        assert_eq!(backend.sync(with_peers(2)).await.unwrap(), Outcome::Updated);
        assert!(!backend.audit().await.unwrap());
        std::fs::remove_file(&program).unwrap();

        let mut backend = Backend::new(Nft::new("nft"));
        backend.sync(with_peers(1)).await.unwrap();
        assert!(backend.second_chance());
    });
}

/// An open TCP flow to port 80 of the VIP, as if it had been translated: IPCTNL_MSG_CT_NEW.
fn insert(netfilter: &Netfilter, (address, port): (Ipv4Addr, u16), vip: Ipv4Addr) {
    let tuple = |from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)| {
        let addresses = [plain(1, &from.0.octets()), plain(2, &to.0.octets())].concat();
        let ports = [plain(1, &[6]), plain(2, &from.1.to_be_bytes()), plain(3, &to.1.to_be_bytes())].concat();
        [nested(1, &addresses), nested(2, &ports)].concat()
    };
    let entry = [
        nested(1, &tuple((address, port), (vip, 80))),
        nested(2, &tuple((vip, 80), (address, port))),
        // CTA_NAT_DST, CTA_TIMEOUT, CTA_PROTOINFO.
        nested(13, &plain(1, &POD.octets())),
        plain(7, &600_u32.to_be_bytes()),
        nested(4, &nested(1, &plain(1, &[3]))),
    ];
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_ACK;
    netfilter.request(0x0100, flags, &entry.concat(), &mut |_| {}).unwrap();
}

/// The figures of bench/README.md, Conntrack, are what this prints with `--nocapture`.
#[test]
fn a_table_of_100_000_entries_is_read_and_cleared_in_time() {
    in_namespace(|| async {
        Nft::new("nft").apply("table ip nat { chain c { type nat hook prerouting priority -100; }; }").await.unwrap();
        let netfilter = Netfilter::open().unwrap();
        let other = Ipv4Addr::new(198, 51, 100, 1);
        for n in 0..100_000_u32 {
            let client = (Ipv4Addr::from_bits(0x0b00_0000 + n / 10_000), 1024 + (n % 10_000) as u16);
            insert(&netfilter, client, if n < 10_000 { VIP } else { other });
        }
        let timed = |what: &str, expected: usize, work: &dyn Fn() -> std::io::Result<usize>| {
            let started = Instant::now();
            assert_eq!(work().unwrap(), expected, "{what}");
            println!("{what}: {:.0?}", started.elapsed());
            assert!(started.elapsed() < Duration::from_secs(4), "{what}: {:?}", started.elapsed());
        };
        let read = |vips: BTreeSet<Ipv4Addr>| conntrack::flows(&vips).map(|flows| flows.len());
        let unused = |n: u8| (1..=n).map(|n| Ipv4Addr::new(203, 0, 113, n));
        timed("none, of one VIP", 0, &|| read(unused(1).collect()));
        timed("10,000, of one VIP", 10_000, &|| read(vips()));
        timed("10,000, of four VIPs", 10_000, &|| read(unused(3).chain([VIP]).collect()));
        timed("10,000, of a hundred VIPs", 10_000, &|| read(unused(99).chain([VIP]).collect()));
        timed("100,000, of two VIPs", 100_000, &|| read([VIP, other].into()));
        timed("10,000 forgotten", 10_000, &|| conntrack::forget(&vips(), |_| true));
        assert_eq!(read(vips()).unwrap(), 0);
        assert_eq!(read([other].into()).unwrap(), 90_000);
    });
}
