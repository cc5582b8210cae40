//! The real nft in a network namespace that only the test's thread is in; the kernel removes it with the thread.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use speaker_core::backend::Uplink;
use speaker_core::view::endpoints::service_key;
use speaker_core::view::{
    Affinity, Conditions, Endpoint, EndpointSlice, Event, Node, Object, ObjectName, Port, Protocol, Service, View,
    VirtualIp,
};

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
    let name = ObjectName::new("default", "web");
    let ports: Vec<Port> = [("http", 80, Protocol::Tcp), ("dns", 53, Protocol::Udp)]
        .map(|(name, port, protocol)| Port { name: name.into(), port, protocol })
        .into();
    let endpoint =
        |i| Endpoint { address: Ipv4Addr::new(10, 0, 0, i), node: Some("n1".into()), conditions: Conditions::READY };
    let endpoints = (1..=pods).map(endpoint).collect();
    let mut view = View::default();
    for object in [
        Object::Node("n1".into(), Node { address: Ipv4Addr::new(192, 0, 2, 11), ready: true, excluded: false }),
        Object::Service(name.clone(), Service { ports: ports.clone(), affinity: Affinity::ClientIp }),
        Object::EndpointSlice(name.clone(), EndpointSlice { service: "web".into(), ports, endpoints }),
        Object::VirtualIp(VIP, VirtualIp { pool: "pool".into(), services: vec![name] }),
    ] {
        view.handle(Event::Apply(object));
    }
    Plan::new(&view, "n1", Uplink::new("eth0").unwrap())
}

#[test]
fn updates_end_where_a_replacement_ends() {
    in_namespace(|| async {
        let nft = Nft::new("nft");
        let mut backend = Backend::new(nft.clone());
        assert_eq!(backend.sync(plan(0)).await.unwrap(), Outcome::Replaced);
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

/// A listing names chains in order of their making; that order means nothing.
fn sorted(listing: &str) -> Vec<String> {
    let mut lines: Vec<String> = listing.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn a_foreign_hand_is_noticed_and_put_right() {
    in_namespace(|| async {
        let nft = Nft::new("nft");
        let mut backend = Backend::new(nft.clone());
        assert!(!backend.audit().await.unwrap(), "nothing to audit yet");
        backend.sync(plan(2)).await.unwrap();
        assert!(!backend.audit().await.unwrap() && !backend.audit().await.unwrap());
        let generation = netfilter::generation().unwrap();
        nft.apply("add table ip foreign").await.unwrap();
        assert_ne!(netfilter::generation().unwrap(), generation);
        assert!(!backend.audit().await.unwrap(), "somebody else's table is not ours");
        let whole = nft.listing().await.unwrap();
        for attack in ["delete table ip sheave", "flush chain ip sheave prerouting", "flush ruleset"] {
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
        nft.delete().await.unwrap();
        nft.delete().await.unwrap();
        assert_eq!(nft.listing().await.unwrap(), None);
        assert!(nft.read_counters().await.unwrap().is_empty());
    });
}

#[test]
fn counters_have_the_names_of_the_guards() {
    in_namespace(|| async {
        let mut backend = Backend::new(Nft::new("nft"));
        backend.sync(plan(1)).await.unwrap();
        let kernel = backend.nft.read_counters().await.unwrap();
        let mut labels: Vec<&str> = Guard::ALL.iter().map(|guard| guard.label()).collect();
        labels.sort_unstable();
        assert_eq!(kernel.keys().collect::<Vec<_>>(), labels);
        assert!(backend.counters().await.unwrap().values().all(|counter| counter.packets == 0));
    });
}

#[test]
fn a_refused_transaction_changes_nothing_and_says_why() {
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

/// The chain stands in for our own in prerouting: what a node sends itself passes output only.
fn translate_to(port: u16) -> String {
    format!(
        "add table ip test
         add chain ip test output {{ type nat hook output priority -110; }}
         flush chain ip test output
         add rule ip test output ip daddr 192.0.2.1 udp dport 53 dnat to 127.0.0.1:{port}"
    )
}

#[test]
fn a_udp_flow_leaves_its_pod_when_told_and_not_before() {
    in_namespace(|| async {
        let batch = "ip link set lo up && ip route add 192.0.2.1/32 dev lo";
        assert!(std::process::Command::new("sh").args(["-c", batch]).status().unwrap().success());
        let nft = Nft::new("nft");
        let pods = [5353, 5354].map(|port| UdpSocket::bind(("127.0.0.1", port)).unwrap());
        pods.iter().for_each(|pod| pod.set_read_timeout(Some(Duration::from_millis(200))).unwrap());
        let (client, bystander) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let reaches = |pod: usize| {
            client.send_to(b"x", (VIP, 53)).unwrap();
            pods[pod].recv(&mut [0; 8]).is_ok()
        };
        nft.apply(&translate_to(5353)).await.unwrap();
        assert!(reaches(0));
        bystander.send_to(b"x", (VIP, 53)).unwrap();
        nft.apply(&translate_to(5354)).await.unwrap();
        assert!(pods[0].recv(&mut [0; 8]).is_ok() && reaches(0), "conntrack holds on to the first pod");

        let stale = |port| StaleFlow { vip: (VIP, 53), pod: (Ipv4Addr::LOCALHOST, port) };
        assert_eq!(conntrack::forget(&[stale(5354), stale(1)]).unwrap(), 0);
        assert!(reaches(0), "flows to other pods are left alone");
        assert_eq!(conntrack::forget(&[stale(5353)]).unwrap(), 2);
        assert!(reaches(1));
        assert_eq!(conntrack::forget(&[stale(5353)]).unwrap(), 0);
    });
}
