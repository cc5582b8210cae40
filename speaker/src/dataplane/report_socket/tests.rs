//! Real packets: two nodes, each in a network namespace, on a cable whose ends lose what a switch or a firewall would.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;

use ebpf_common::ServiceKey;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns, unshare};
use speaker_core::reports::exchange::Config;
use speaker_core::reports::{Report, Rows};
use speaker_core::time::Instant;
use speaker_core::wire::report::{Key, Keyring};

use super::*;
use crate::io::tests::ip;

const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 254), 7481);
const SOON: Duration = Duration::from_secs(5);

fn name(node: u8) -> NodeName {
    NodeName::new(&format!("n{node}")).unwrap()
}

fn address(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, node)
}

/// The kernel removes it once the file is closed.
fn namespace() -> File {
    let open = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs CAP_SYS_ADMIN");
        File::open("/proc/thread-self/ns/net").unwrap()
    };
    thread::spawn(open).join().unwrap()
}

fn inside<T: Send + 'static>(namespace: &File, act: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = namespace.try_clone().unwrap();
    let act = move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        act()
    };
    thread::spawn(act).join().unwrap()
}

/// Nodes 1 and 2, which know each other.
struct Segment {
    namespaces: [File; 2],
    ends: [ReportSocket; 2],
    /// Their adverts arrive.
    adverts: bool,
    told: Instant,
    log: Vec<(u8, Action)>,
}

impl Segment {
    fn new() -> Self {
        let namespaces = [namespace(), namespace()];
        let other = format!("/proc/{}/fd/{}", std::process::id(), namespaces[1].as_raw_fd());
        inside(&namespaces[0], move || ip(&format!("link add eth0 type veth peer name eth0 netns {other}\n")));
        let ends = [1, 2].map(|node| {
            let socket = inside(&namespaces[usize::from(node) - 1], move || {
                ip(&format!("address add {}/24 dev eth0\nlink set eth0 up\n", address(node)));
                MulticastSocket::open("eth0", if_nametoindex("eth0").unwrap(), GROUP).unwrap()
            });
            let config = Config {
                node: name(node),
                cluster: 1,
                epoch: 1,
                keys: Keyring { current: Key { id: 1, secret: [1; 32] }, other: None },
                interval: Duration::from_secs(1),
                differ: Duration::from_secs(5),
                pods: BTreeMap::new(),
            };
            let exchange = Exchange::new(config, clock::now());
            let mut end = ReportSocket::new(exchange, socket, Arc::new(Metrics::new(None).unwrap())).unwrap();
            let other = 3 - node;
            end.turn(Some(Event::Nodes([name(other)].into()))).unwrap();
            end.set_addresses([(name(other), address(other))].into());
            end
        });
        Self { namespaces, ends, adverts: false, told: Instant::ZERO, log: Vec::new() }
    }

    /// What arrives at either end and matches is lost; `None`: nothing is.
    fn lose(&self, what: Option<&'static str>) {
        for namespace in &self.namespaces {
            inside(namespace, move || {
                let mut rules = "add table ip lost\ndelete table ip lost\n".to_owned();
                if let Some(what) = what {
                    rules += &format!(
                        "add table ip lost\nadd chain ip lost packets {{ type filter hook prerouting priority -400; }}\n\
                         add rule ip lost packets {what} drop\n"
                    );
                }
                assert!(Command::new("nft").arg(rules).status().unwrap().success());
            });
        }
    }

    fn event(&mut self, node: u8, event: Event) {
        self.log.extend(self.ends[usize::from(node) - 1].turn(Some(event)).unwrap().into_iter().map(|one| (node, one)));
    }

    /// The election sends its adverts to the other node by unicast.
    fn elections(&mut self, by_unicast: bool) {
        for node in [1, 2] {
            let others = by_unicast.then(|| name(3 - node));
            self.event(node, Event::Unicast(others.into_iter().collect::<BTreeSet<_>>()));
        }
    }

    async fn until(&mut self, what: &str, patience: Duration, happened: impl Fn(&Self) -> bool) -> Duration {
        let began = clock::now();
        while !happened(self) {
            let now = clock::now();
            assert!(now.since(began) < patience, "not within {patience:?}: {what}; {:?}", self.log);
            if self.adverts && now.since(self.told) >= Duration::from_secs(1) {
                self.told = now;
                for node in [1, 2] {
                    self.event(node, Event::Incarnations([(name(3 - node), 1)].into()));
                }
            }
            let [one, two] = &self.ends;
            tokio::select! {
                due = one.due() => due.unwrap(),
                due = two.due() => due.unwrap(),
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
            for (node, end) in [1, 2].into_iter().zip(&mut self.ends) {
                self.log.extend(end.turn(None).unwrap().into_iter().map(|one| (node, one)));
            }
        }
        clock::now().since(began)
    }

    /// Node 1 has flows in these rows, and node 2 is to know it.
    async fn report(&mut self, report: &Arc<Report>, patience: Duration) -> Duration {
        self.event(1, Event::Local(report.clone()));
        self.until("the report arrives", patience, |segment| {
            let reports = segment.ends[1].exchange.reports();
            reports.get("n1").is_some_and(|reported| reported.report == *report)
        })
        .await
    }

    fn ways(&self) -> [(usize, usize); 2] {
        [0, 1].map(|end| self.ends[end].exchange.ways())
    }
}

/// 164 kB: 120 datagrams.
fn report(digest: u64) -> Arc<Report> {
    let rows = Arc::new(Rows::new(65488, (digest as u32 % 2..65488).step_by(2)));
    let key = |port: u16| ServiceKey { addr: [192, 0, 2, 100], port: port.to_be_bytes(), proto: 6, pad: 0 };
    let services = (80..100).map(|port| (key(port), rows.clone())).collect();
    Arc::new(Report { digest, partial: false, services })
}

fn run(test: impl AsyncFnOnce(Segment)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { test(Segment::new()).await });
}

#[test]
fn reports_follow_the_election_s_way_where_the_segment_loses_multicast() {
    run(async |mut segment| {
        let took = segment.report(&report(1), SOON).await;
        println!("by multicast after {took:.0?}");
        segment.lose(Some("ip daddr 224.0.0.0/4"));
        segment.elections(true);
        let took = segment.report(&report(2), SOON).await;
        println!("by unicast after {took:.0?}");
        segment.until("both say so", SOON, |segment| segment.ways() == [(1, 0); 2]).await;
        segment.lose(None);
        segment.elections(false);
        segment.report(&report(3), SOON).await;
        segment.until("unicast ends", SOON, |segment| segment.ways() == [(0, 0); 2]).await;
    });
}

/// The election notices nothing: its adverts arrive.
#[test]
fn reports_find_a_way_where_only_their_multicast_is_lost() {
    run(async |mut segment| {
        segment.adverts = true;
        segment.report(&report(1), SOON).await;
        segment.lose(Some("ip daddr 224.0.0.254 udp dport 7481"));
        let took = segment.report(&report(2), 2 * SOON).await;
        println!("by unicast after {took:.0?}");
        assert_eq!(segment.ways(), [(1, 0); 2]);
    });
}

#[test]
fn reports_that_are_lost_altogether_are_named_until_one_arrives() {
    run(async |mut segment| {
        segment.adverts = true;
        segment.report(&report(1), SOON).await;
        segment.lose(Some("udp dport 7481"));
        segment.until("both are named", 4 * SOON, |segment| segment.ways() == [(1, 1); 2]).await;
        for node in [1, 2] {
            assert!(segment.log.contains(&(node, Action::Missing(name(3 - node)))), "{:?}", segment.log);
        }
        segment.lose(None);
        segment.report(&report(2), SOON).await;
        segment.until("none is missing", SOON, |segment| segment.ways().map(|(_, missing)| missing) == [0; 2]).await;
    });
}
