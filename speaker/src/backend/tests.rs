//! The real nft in a network namespace that only the test's thread is in; the kernel removes it with the thread.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use ebpf_common::{FlowTuple, ServiceKey};
use nix::sched::{CloneFlags, unshare};
use speaker_core::backend::{Adverts, Flow, Senders, TcpState, UdpPins, Uplink};
use speaker_core::startup::Target;
use speaker_core::view::endpoints::service_key;
use speaker_core::view::{
    Affinity, Conditions, Endpoint, EndpointSlice, Event, Node, Object, ObjectName, Port, Prefix, Protocol, Service,
    SourceRanges, View, VirtualIp,
};

use super::netfilter::{Netfilter, nested, plain};
use super::*;

mod affinity;
mod clients;
mod flows;
mod ranges;
mod refused;
mod third_party;

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
        Object::Service(name.clone(), Service { ports: ports.clone(), attributes: Affinity::ClientIp.into() }),
        Object::EndpointSlice(name.clone(), EndpointSlice { service: "web".into(), ports, endpoints }),
        Object::VirtualIp(VIP, VirtualIp { pool: "pool".into(), services: vec![name], ..VirtualIp::default() }),
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
            let ranges = (0..pods % 4).map(|n| (Ipv4Addr::new(10, n * pods, 0, 0), 8 + pods)).collect();
            Plan { udp_pins, ..restricted(plan(pods), (pods != 3).then_some(ranges)).with_peers(peers) }
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

/// All service ports have these source ranges.
fn restricted(mut plan: Plan, ranges: Option<Vec<(Ipv4Addr, u8)>>) -> Plan {
    let prefix = |(network, length)| Prefix { network, length };
    let ranges: Option<SourceRanges> = ranges.map(|list| list.into_iter().map(prefix).collect::<Vec<_>>().into());
    for local in plan.services.values_mut() {
        local.attributes.source_ranges.clone_from(&ranges);
    }
    plan
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
fn counters_have_the_names_of_the_guards() {
    in_namespace(|| async {
        let mut backend = Backend::new(Nft::new("nft"));
        backend.sync(plan(1)).await.unwrap();
        let kernel = packets(ruleset::TABLE).unwrap();
        let mut labels: Vec<&str> = Guard::ALL.iter().map(|guard| guard.label()).collect();
        labels.sort_unstable();
        assert_eq!(kernel.keys().collect::<Vec<_>>(), labels);
        assert!(backend.counters().unwrap().values().all(|counter| counter.packets == 0));
    });
}

/// Of a table's counters, as the speaker reads them.
fn packets(table: &str) -> std::io::Result<BTreeMap<String, u64>> {
    Ok(counters::read(table)?.into_iter().map(|(name, count)| (name, count.packets)).collect())
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
            assert_eq!(packets(table).unwrap(), listed_by_nft(table).0, "{table}");
        }
        assert_eq!(packets("one").unwrap().len(), 1000);
        assert_eq!(packets("none").unwrap(), BTreeMap::new());
        nft.apply("flush ruleset").await.unwrap();
        let many: String = (0..5000).map(|n| format!("counter c{n} {{ }}\n")).collect();
        nft.apply(&format!("table ip one {{\n{many}}}\n")).await.unwrap();
        assert!(packets("one").unwrap_err().to_string().contains("more than 4096"));
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
                assert_eq!(packets(ruleset::TABLE).unwrap(), listed);
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
        wanted.starting = [Target { address: POD, port: 80 }].into();
        wanted.services.insert(added, plan(1).services.into_values().next().unwrap());
        assert_eq!(backend.sync(wanted.clone()).await.unwrap_err().label(), "timeout");
        let in_force = &backend.in_force().unwrap().services;
        assert!(!in_force.contains_key(&gone) && !in_force.contains_key(&added) && in_force.len() == 1);
        assert!(backend.in_force().unwrap().starting.is_empty());
        assert!(backend.is_suspect() && !backend.audit().await.unwrap());
        backend.nft = Nft::new("nft");
        assert_eq!(backend.sync(wanted).await.unwrap(), Outcome::Replaced);
        assert!(backend.in_force().unwrap().services.contains_key(&added));
        assert_eq!(backend.in_force().unwrap().starting.len(), 1);
    });
}

/// Nothing in the table differs.
#[test]
fn new_pods_that_the_rules_have_are_in_force_without_a_transaction() {
    in_namespace(|| async {
        let mut backend = Backend::new(Nft::new("nft"));
        backend.sync(plan(1)).await.unwrap();
        let starting = [Target { address: POD, port: 80 }].into();
        let wanted = Plan { starting, ..plan(1) };
        assert_eq!(backend.sync(wanted.clone()).await.unwrap(), Outcome::Unchanged);
        assert_eq!(backend.in_force().unwrap().starting, wanted.starting);
    });
}

/// Packets: the e2e step `forged heartbeats`.
#[test]
fn ports_of_adverts_are_closed_to_all_but_nodes() {
    in_namespace(|| async {
        let of = |addresses: &[u8], macs: &[u8]| Senders {
            addresses: addresses.iter().map(|last| Ipv4Addr::new(192, 0, 2, *last)).collect(),
            macs: macs.iter().map(|last| [2, 0, 0, 0, 0, *last]).collect(),
        };
        let with = |senders| Plan { adverts: Adverts { ports: [7480, 7481].into(), cluster: 7, senders }, ..plan(1) };
        let mut backend = Backend::new(Nft::new("nft"));
        backend.sync(plan(1)).await.unwrap();
        assert!(!Nft::new("nft").listing().await.unwrap().unwrap().contains("7480"));
        let mut expected = Outcome::Replaced;
        for senders in [None, Some(of(&[11, 12], &[1])), Some(of(&[12, 13], &[])), Some(of(&[12, 13], &[2])), None] {
            let wanted = with(senders.clone());
            assert_eq!(backend.sync(wanted.clone()).await.unwrap(), std::mem::replace(&mut expected, Outcome::Updated));
            let updated = Nft::new("nft").listing().await.unwrap().unwrap();
            assert!(updated.contains("udp dport { 7480, 7481 } goto senders"), "{updated}");
            assert_eq!(updated.contains("ip saddr @nodes accept"), senders.is_some(), "{updated}");
            if let Some(Senders { addresses, macs }) = &senders {
                addresses.iter().for_each(|address| assert!(updated.contains(&address.to_string()), "{updated}"));
                macs.iter().for_each(|mac| assert!(updated.contains(&format!("02:00:00:00:00:{:02x}", mac[5]))));
            }
            // Step by step and in one step to the same table.
            let mut anew = Backend::new(Nft::new("nft"));
            anew.sync(wanted).await.unwrap();
            assert_eq!(Nft::new("nft").listing().await.unwrap().unwrap(), updated);
        }
    });
}

const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

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

/// For a while the whole table is refused, as when another program owns it: that is no kernel without `dup`, and without the second
/// chance open flows would end.
#[test]
fn a_refused_table_does_not_cost_the_second_chance() {
    in_namespace(|| async {
        assert!(!Nft::new("nft").lacks_dup().await.unwrap(), "this kernel has it");
        let refused = std::env::temp_dir().join(format!("sheave-nft-refused-{}", std::process::id()));
        let wrapper = Wrapper::new(
            "refuses-once",
            &format!(
                "text=$(cat)\ncase \"$text\" in *sheave-probe*) ;; *) [ -e {0} ] || {{ touch {0}; echo 'Operation not permitted' >&2; \
                 exit 1; }};; esac\nprintf '%s\\n' \"$text\" | exec nft \"$@\"",
                refused.display()
            ),
        );
        for applied_before in [false, true] {
            let _ = std::fs::remove_file(&refused);
            let mut backend = Backend::new(Nft::new(&wrapper.0));
            let with_peers = |pods| plan(pods).with_peers([(2, Ipv4Addr::new(192, 0, 2, 12))].into());
            if applied_before {
                backend.nft = Nft::new("nft");
                backend.sync(with_peers(1)).await.unwrap();
                backend.nft = Nft::new(&wrapper.0);
                // The refused update is followed by the whole table, which is accepted.
                assert_eq!(backend.sync(with_peers(2)).await.unwrap(), Outcome::Replaced);
            } else {
                // What is no service port is accepted, and then the service ports are.
                assert_eq!(backend.sync(with_peers(2)).await.unwrap(), Outcome::Replaced);
            }
            assert!(backend.second_chance(), "{applied_before}");
            assert!(Nft::new("nft").listing().await.unwrap().unwrap().contains("dup to"), "{applied_before}");
        }
        std::fs::remove_file(&refused).unwrap();
    });
}
