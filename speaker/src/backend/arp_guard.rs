//! ARP frames that claim a node's address for another MAC address than the node states under its signature: kept from the kernel's
//! neighbour table, by which second-chance copies are sent (nft `dup to`).
//!
//! Not by permanent neighbour entries: those of a speaker that died, or was removed without its uninstaller, would keep a node out of
//! reach for good once its MAC address changes. The elements here end after [`LIFETIME`] unless a speaker renews them, and ARP counts
//! again. XDP, and the speakers' own ARP sockets, see all frames: what contradicts is counted there.
//!
//! A node's new address reaches the neighbour table by its advert: the frames that announced it came before the filter knew of it. When this
//! node's own address changes its kernel forgets all neighbours (`neigh_changeaddr`), and theirs drop its ARP requests until they have its
//! advert, which may have to go by unicast: so it learns them again from here.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::nft::Nft;
use crate::io::Mac;
use crate::io::netlink::{Neighbours, Uplink};
use crate::metrics::Metrics;

/// The loop's end of a thread of its own: a renewal waits for no plan, and no plan for it.
#[derive(Debug)]
pub struct ArpGuard(watch::Sender<Signed>);

/// The MAC addresses of nodes whose adverts arrive, and this node's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signed {
    pub own: Mac,
    pub others: BTreeMap<Ipv4Addr, Mac>,
}

impl ArpGuard {
    /// On this device. The thread ends with this value.
    pub fn start(nft: Nft, uplink: &Uplink, metrics: Arc<Metrics>) -> Result<Self> {
        let (sender, signed) = watch::channel(Signed::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let neighbours = Neighbours::open(uplink.index)?;
        drop(entered);
        let keeper = Keeper { nft, uplink: uplink.name.clone(), neighbours, metrics, renewal: RENEWAL, failing: false };
        thread::Builder::new().name("arp-guard".into()).spawn(move || runtime.block_on(keeper.run(signed)))?;
        Ok(Self(sender))
    }

    pub fn set(&self, signed: Signed) {
        self.0.send_if_modified(|known| std::mem::replace(known, signed.clone()) != signed);
    }
}

struct Keeper {
    nft: Nft,
    uplink: String,
    neighbours: Neighbours,
    metrics: Arc<Metrics>,
    renewal: Duration,
    failing: bool,
}

impl Keeper {
    async fn run(mut self, mut signed: watch::Receiver<Signed>) {
        let mut known = Signed::default();
        loop {
            match timeout(self.renewal, signed.changed()).await {
                Ok(Err(_)) => return,
                Ok(Ok(())) => {}
                // Nothing is there to be renewed, and nothing failed.
                Err(_) if known.others.is_empty() && !self.failing => continue,
                Err(_) => {}
            }
            let now = signed.borrow_and_update().clone();
            let mut outcome = Ok(());
            if now.own != known.own {
                // Before nft, which takes long: adverts wait for it.
                for (ip, mac) in &now.others {
                    outcome = outcome.and(self.neighbours.set(*ip, *mac).await);
                }
            }
            let text = ruleset(self.nft.place.arp_table(), &self.uplink, &now.others, LIFETIME);
            outcome = outcome.and(self.nft.apply(&text).await.map_err(anyhow::Error::from));
            for (ip, mac) in now.others.iter().filter(|(ip, mac)| known.others.get(*ip) != Some(*mac)) {
                outcome = outcome.and(self.neighbours.set(*ip, *mac).await);
            }
            if outcome.is_ok() {
                known = now;
            }
            self.report(outcome);
            // The addresses of a cluster come one by one.
            sleep(PACE).await;
        }
    }

    /// One log line for failures in a row. A kernel may lack the family (`CONFIG_NF_TABLES_ARP`).
    fn report(&mut self, outcome: Result<()>) {
        match outcome {
            Err(error) => {
                self.metrics.nft_errors.with_label_values(&["arp_guard"]).inc();
                if !std::mem::replace(&mut self.failing, true) {
                    warn!(
                        error = format!("{error:#}"),
                        "arp_guard: forged ARP frames reach the kernel's neighbour table"
                    );
                }
            }
            Ok(()) if std::mem::take(&mut self.failing) => info!("arp_guard: forged ARP frames are kept out again"),
            Ok(()) => {}
        }
    }
}

/// One transaction: the table anew, with its elements' whole lifetime.
fn ruleset(table: &str, uplink: &str, signed: &BTreeMap<Ipv4Addr, Mac>, lifetime: Duration) -> String {
    let mut text = format!("add table arp {table}\ndelete table arp {table}\n");
    if signed.is_empty() {
        return text;
    }
    let list = |element: &dyn Fn(&Ipv4Addr, &Mac) -> String| -> String {
        signed.iter().map(|(ip, mac)| element(ip, mac)).collect::<Vec<_>>().join(", ")
    };
    // An address whose pair is gone would lose all its frames.
    let sets = [
        ("nodes", "ipv4_addr", lifetime, list(&|ip, _| ip.to_string())),
        ("signed", "ipv4_addr . ether_addr", 2 * lifetime, list(&|ip, mac| format!("{ip} . {mac}"))),
    ];
    // Writing to a String cannot fail.
    let _ = writeln!(text, "table arp {table} {{");
    for (name, kind, lifetime, elements) in sets {
        let _ = writeln!(
            text,
            "\tset {name} {{\n\t\ttype {kind}\n\t\ttimeout {}ms\n\t\telements = {{ {elements} }}\n\t}}",
            lifetime.as_millis()
        );
    }
    let _ = writeln!(
        text,
        "\tchain input {{\n\t\ttype filter hook input priority 0; policy accept;\n\
         \t\tiifname \"{uplink}\" arp saddr ip @nodes arp saddr ip . arp saddr ether != @signed drop\n\t}}\n}}"
    );
    text
}

/// Without a speaker that renews them.
const LIFETIME: Duration = Duration::from_secs(120);
/// Each one makes the backend list its tables again.
const RENEWAL: Duration = Duration::from_secs(50);
const PACE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;
    use std::time::Instant;

    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::io::arp::ArpSocket;

    const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 12);
    const TRUE: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const FORGED: Mac = Mac([2, 0, 0, 0, 0, 0x66]);

    fn ip(arguments: &str) -> String {
        let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{arguments}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Where the kernel of eth0 sends packets to the peer.
    fn neighbour() -> String {
        let shown = ip(&format!("neigh show {PEER} dev eth0"));
        shown.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).unwrap_or_default().to_owned()
    }

    /// Gratuitous ARP of this address from the other end of eth0, until it has an effect; true if it had one.
    fn claims(mac: Mac, patience: Duration) -> bool {
        let socket = ArpSocket::open(nix::net::if_::if_nametoindex("peer0").unwrap(), mac).unwrap();
        let began = Instant::now();
        while neighbour() != mac.to_string() {
            if began.elapsed() > patience {
                return false;
            }
            socket.announce(PEER, None).unwrap();
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// A file in nft's place for the first time, as a busy machine would refuse it.
    #[test]
    fn a_transaction_that_failed_is_repeated() {
        thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs CAP_SYS_ADMIN");
            ip("link add eth0 type veth peer name peer0");
            ["eth0", "peer0"].iter().for_each(|device| drop(ip(&format!("link set {device} up"))));
            let dir = std::env::temp_dir().join(format!("sheave-arp-guard-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            let (program, tried) = (dir.join("nft"), dir.join("tried"));
            let script = format!("#!/bin/sh\n[ -e {0} ] && exec nft \"$@\"\n>{0}\nexit 1\n", tried.display());
            fs::write(&program, script).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let neighbours = Neighbours::open(nix::net::if_::if_nametoindex("eth0").unwrap()).unwrap();
                let metrics = Arc::new(Metrics::new(None).unwrap());
                let (uplink, renewal) = ("eth0".into(), Duration::from_millis(100));
                let nft = Nft::new(&program);
                let keeper = Keeper { nft, uplink, neighbours, metrics: metrics.clone(), renewal, failing: false };
                let (_sender, mut signed) = watch::channel(peer_signed(Mac::default()));
                signed.mark_changed();
                let written = async {
                    while Nft::new("nft").arp_tables().await.unwrap().is_empty() {
                        sleep(Duration::from_millis(10)).await;
                    }
                };
                tokio::select! {
                    () = keeper.run(signed) => panic!("its sender is there"),
                    written = timeout(Duration::from_secs(10), written) => written.expect("it is repeated"),
                }
                assert_eq!(metrics.nft_errors.with_label_values(&["arp_guard"]).get(), 1);
            });
            fs::remove_dir_all(&dir).unwrap();
        })
        .join()
        .unwrap();
    }

    fn peer_signed(own: Mac) -> Signed {
        Signed { own, others: BTreeMap::from([(PEER, TRUE)]) }
    }

    /// Nobody answers ARP here, as peers do not while they have the former address under its signature.
    #[test]
    fn a_node_whose_own_address_changes_knows_the_others_still() {
        thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs CAP_SYS_ADMIN");
            ip("link add eth0 type veth peer name peer0");
            ip("addr add 192.0.2.11/24 dev eth0");
            ["eth0", "peer0"].iter().for_each(|device| drop(ip(&format!("link set {device} up"))));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let neighbours = Neighbours::open(nix::net::if_::if_nametoindex("eth0").unwrap()).unwrap();
                let metrics = Arc::new(Metrics::new(None).unwrap());
                let (nft, uplink) = (Nft::new("nft"), "eth0".into());
                let keeper = Keeper { nft, uplink, neighbours, metrics, renewal: RENEWAL, failing: false };
                let [before, after] = [Mac([2, 0, 0, 0, 0, 0x11]), Mac([6, 0, 0, 0, 0, 0x11])];
                let (sender, signed) = watch::channel(Signed::default());
                let known = async || {
                    while neighbour() != TRUE.to_string() {
                        sleep(Duration::from_millis(5)).await;
                    }
                };
                let story = async {
                    sender.send_replace(peer_signed(before));
                    known().await;
                    ip(&format!("link set eth0 address {after}"));
                    assert_eq!(neighbour(), "", "the kernel forgets all");
                    sender.send_replace(peer_signed(after));
                    known().await;
                };
                tokio::select! {
                    () = keeper.run(signed) => panic!("its sender is there"),
                    told = timeout(Duration::from_secs(10), story) => told.expect("it learns them again"),
                }
            });
        })
        .join()
        .unwrap();
    }

    /// The kernel's own neighbour table, with forged frames on the wire.
    #[test]
    fn forged_frames_do_not_move_a_node_whose_address_is_signed() {
        thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs CAP_SYS_ADMIN");
            ip("link add eth0 type veth peer name peer0");
            // Else frames within a second of a change have no effect in any case.
            fs::write("/proc/sys/net/ipv4/neigh/eth0/locktime", "0").unwrap();
            ip("addr add 192.0.2.11/24 dev eth0");
            ["eth0", "peer0"].iter().for_each(|device| drop(ip(&format!("link set {device} up"))));
            ip(&format!("neigh replace {PEER} lladdr {TRUE} dev eth0 nud reachable"));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let nft = Nft::new("nft");
            let set = |mac: Mac| {
                let _entered = runtime.enter();
                let neighbours = Neighbours::open(nix::net::if_::if_nametoindex("eth0").unwrap()).unwrap();
                runtime.block_on(neighbours.set(PEER, mac)).unwrap();
                neighbour()
            };
            let apply = |signed: &[(Ipv4Addr, Mac)], lifetime| {
                let signed = signed.iter().copied().collect();
                runtime.block_on(nft.apply(&ruleset(nft.place.arp_table(), "eth0", &signed, lifetime))).unwrap();
            };
            let (soon, still) = (Duration::from_secs(5), Duration::from_millis(300));
            assert!(claims(FORGED, soon) && claims(TRUE, soon), "without the guard any frame counts");

            apply(&[(PEER, TRUE)], LIFETIME);
            assert!(!claims(FORGED, still));
            assert_eq!(neighbour(), TRUE.to_string());
            // The node has another address now, and states it.
            let new = Mac([2, 0, 0, 0, 0, 3]);
            apply(&[(PEER, new)], LIFETIME);
            assert_eq!(set(new), new.to_string(), "before any frame of it");
            assert!(!claims(TRUE, still) && !claims(FORGED, still));
            apply(&[(PEER, TRUE)], LIFETIME);
            assert!(claims(TRUE, soon));
            // Another node's address is none of this: its frames count.
            apply(&[(Ipv4Addr::new(192, 0, 2, 13), new)], LIFETIME);
            assert!(claims(FORGED, soon) && claims(TRUE, soon));
            // No speaker renews it: nothing stays that could keep the node out of reach.
            apply(&[(PEER, TRUE)], Duration::from_millis(500));
            assert!(claims(FORGED, soon));
            apply(&[], LIFETIME);
            assert!(runtime.block_on(nft.arp_tables()).unwrap().is_empty());
            runtime.block_on(nft.delete()).unwrap();
        })
        .join()
        .unwrap();
    }
}
