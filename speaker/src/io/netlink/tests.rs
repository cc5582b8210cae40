//! The real kernel's rtnetlink, in a namespace as in io/tests.rs.

use std::os::fd::{FromRawFd, IntoRawFd};

use nix::net::if_::if_nametoindex;
use rtnetlink::sys::Socket;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use super::*;
use crate::io::tests::{in_namespace, ip};

const PATIENCE: Duration = Duration::from_secs(5);

fn watching(test: impl AsyncFnOnce(Netlink, u32) + Send + 'static) {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { test(Netlink::open().unwrap(), if_nametoindex("node").unwrap()).await });
    });
}

/// Changes up to the one that is `wanted`.
async fn until(changes: &mut Receiver<Change>, wanted: impl Fn(&Change) -> bool) -> Vec<Change> {
    let mut seen = Vec::new();
    let found = timeout(PATIENCE, async {
        loop {
            let change = changes.recv().await.expect("the watcher goes on");
            seen.push(change.clone());
            if wanted(&change) {
                return;
            }
        }
    });
    let found = found.await;
    assert!(found.is_ok(), "not in {seen:?}");
    seen
}

fn addresses(list: &[&str]) -> BTreeSet<Ipv4Addr> {
    list.iter().map(|address| address.parse().unwrap()).collect()
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

#[test]
fn everything_as_it_is_then_every_change() {
    watching(async |net, ifindex| {
        ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev node\nroute add default via 192.0.2.3\n");
        let found = net.uplink(None, Ipv4Addr::new(192, 0, 2, 1)).await.unwrap();
        assert_eq!((found.name.as_str(), found.index, found.mac), ("node", ifindex, mac(1)));
        let mut changes = net.watch(ifindex);
        let neighbour = Change::Neighbour { ip: Ipv4Addr::new(192, 0, 2, 2), mac: mac(2) };
        let seen = until(&mut changes, |change| *change == neighbour).await;
        for expected in [
            Change::Link { carrier: true, mac: mac(1) },
            Change::Addresses(addresses(&["127.0.0.1", "192.0.2.1"])),
            Change::UplinkAddress(Some(Ipv4Addr::new(192, 0, 2, 1))),
            Change::Gateways(addresses(&["192.0.2.3"])),
        ] {
            assert!(seen.contains(&expected), "{expected:?} in {seen:?}");
        }
        ip("link set node address 02:00:00:00:00:99\n");
        until(&mut changes, |change| *change == Change::Link { carrier: true, mac: mac(0x99) }).await;
        ip("link set far down\n");
        until(&mut changes, |change| matches!(change, Change::Link { carrier: false, .. })).await;
        ip("link del node\n");
        until(&mut changes, |change| *change == Change::LinkGone).await;
    });
}

/// What a DHCP client does when the server gives it another address.
#[test]
fn addresses_and_gateways_follow() {
    watching(async |net, ifindex| {
        let mut changes = net.watch(ifindex);
        until(&mut changes, |change| *change == Change::Gateways(BTreeSet::new())).await;
        // Another address of the device is no address of the node; another device's gateway is not the uplink's.
        ip("addr add 192.0.2.5/24 dev node\nroute add default via 192.0.2.3 dev node\n\
            addr add 198.51.100.1/24 dev far\nroute add default via 198.51.100.2 dev far metric 9\n");
        let seen = until(&mut changes, |change| *change == Change::Gateways(addresses(&["192.0.2.3"]))).await;
        assert!(!seen.iter().any(|change| matches!(change, Change::UplinkAddress(_))), "{seen:?}");
        ip("addr flush dev node\naddr add 192.0.2.77/24 dev node\nroute add default via 192.0.2.4\n");
        let seen = until(&mut changes, |change| *change == Change::Gateways(addresses(&["192.0.2.4"]))).await;
        let own = addresses(&["127.0.0.1", "192.0.2.77", "198.51.100.1"]);
        assert!(seen.contains(&Change::Addresses(own)), "{seen:?}");
        assert!(seen.contains(&Change::UplinkAddress(Some(Ipv4Addr::new(192, 0, 2, 77)))), "{seen:?}");
        // The kernel reports the link only, not its routes.
        ip("link set node down\n");
        until(&mut changes, |change| *change == Change::Gateways(BTreeSet::new())).await;
    });
}

/// kube-proxy in IPVS mode has every VIP on a device of its own.
#[test]
fn addresses_of_ipvs_are_not_the_hosts() {
    watching(async |net, ifindex| {
        ip("link add kube-ipvs0 type veth peer name other\naddr add 192.0.2.200/32 dev kube-ipvs0\n");
        let mut changes = net.watch(ifindex);
        let own = addresses(&["127.0.0.1", "192.0.2.1"]);
        until(&mut changes, |change| *change == Change::Addresses(own.clone())).await;
        until(&mut changes, |change| *change == Change::VipsAreLocal(true)).await;
        ip("addr del 192.0.2.200/32 dev kube-ipvs0\n");
        until(&mut changes, |change| *change == Change::VipsAreLocal(false)).await;
    });
}

#[test]
fn a_port_that_leaves_its_bridge_is_not_gone() {
    watching(async |net, ifindex| {
        let mut changes = net.watch(ifindex);
        until(&mut changes, |change| matches!(change, Change::Gateways(_))).await;
        ip(
            "link add switch0 type bridge\nlink set node master switch0\nlink set node nomaster\nlink set node address 02:00:00:00:00:99\n",
        );
        let seen =
            until(&mut changes, |change| matches!(change, Change::Link { mac: now, .. } if *now == mac(0x99))).await;
        assert!(!seen.contains(&Change::LinkGone), "{seen:?}");
    });
}

/// While the speaker does not read, the kernel's queue overflows; the last state is known all the same.
#[test]
fn an_overrun_reads_everything_again() {
    watching(async |net, ifindex| {
        net.subscription.socket().set_rx_buf_sz(2048_i32).unwrap();
        let mut changes = net.watch(ifindex);
        until(&mut changes, |change| matches!(change, Change::Gateways(_))).await;
        // This thread is the watcher's: it reads nothing before the batch has ended.
        let flap = "link set node down\nlink set node up\n";
        ip(&format!(
            "{}link set node address 02:00:00:00:00:99\naddr add 192.0.2.77/24 dev node\n\
             neigh add 192.0.2.2 lladdr 02:00:00:00:00:22 dev node\nroute add default via 192.0.2.3\n",
            flap.repeat(50)
        ));
        until(&mut changes, |change| *change == Change::Reread(Lost::Overrun)).await;
        let neighbour = Change::Neighbour { ip: Ipv4Addr::new(192, 0, 2, 2), mac: mac(0x22) };
        let seen = until(&mut changes, |change| *change == neighbour).await;
        for expected in [
            Change::Link { carrier: true, mac: mac(0x99) },
            Change::Addresses(addresses(&["127.0.0.1", "192.0.2.1", "192.0.2.77"])),
            Change::Gateways(addresses(&["192.0.2.3"])),
        ] {
            assert!(seen.contains(&expected), "{expected:?} in {seen:?}");
        }
    });
}

/// The last change of the uplink among those that come until now. Two marks: what was read together with the first may be older.
async fn last_link(changes: &mut Receiver<Change>, mark: u8) -> Option<Change> {
    let mut seen = Vec::new();
    for last in [mark, mark + 1] {
        let ip_of_mark = Ipv4Addr::new(192, 0, 2, last);
        ip(&format!("neigh replace {ip_of_mark} lladdr 02:00:00:00:00:{last:02x} dev node\n"));
        seen.extend(until(changes, |change| *change == Change::Neighbour { ip: ip_of_mark, mac: mac(last) }).await);
    }
    seen.into_iter().rfind(|change| matches!(change, Change::Link { .. }))
}

/// The kernel reports the overrun first; what it had queued before is older than what is read then, and what came later is not queued.
#[test]
fn what_was_queued_before_an_overrun_does_not_replace_what_was_read_after_it() {
    watching(async |net, ifindex| {
        net.subscription.socket().set_rx_buf_sz(64_i32 << 10).unwrap();
        let mut changes = net.watch(ifindex);
        until(&mut changes, |change| matches!(change, Change::Gateways(_))).await;
        // All that fits into the queue reports the link down, with its first address.
        let (more, less) = ("link set node mtu 1400\n", "link set node mtu 1401\n");
        ip(&format!("link set node down\n{}", [more, less].concat().repeat(200)));
        ip("link set node address 02:00:00:00:00:99\nlink set node up\n");
        until(&mut changes, |change| *change == Change::Reread(Lost::Overrun)).await;
        let last = last_link(&mut changes, 0x50).await;
        assert_eq!(last, Some(Change::Link { carrier: true, mac: mac(0x99) }));
    });
}

/// Overrun again and again while the watcher reads: whatever it missed, the last state is the true one.
#[test]
fn a_link_that_flaps_in_a_storm_of_neighbours_is_known_in_the_end() {
    watching(async |net, ifindex| {
        net.subscription.socket().set_rx_buf_sz(4096_i32).unwrap();
        let mut changes = net.watch(ifindex);
        until(&mut changes, |change| matches!(change, Change::Gateways(_))).await;
        let mut overruns = 0;
        for round in 0..8_u8 {
            let (up, address) = (round % 2 == 0, 0x80 + round);
            let storm: String = (1..200)
                .map(|host| {
                    let flap = if host % 10 == 0 { "link set node down\nlink set node up\n" } else { "" };
                    format!("neigh replace 198.51.100.{host} lladdr 02:00:00:00:01:{host:02x} dev node\n{flap}")
                })
                .collect();
            let end = if up { "link set far up\n" } else { "link set far down\n" };
            let batch = format!("{storm}link set node address 02:00:00:00:00:{address:02x}\n{end}");
            // A thread is in the namespace of the one that starts it.
            let storm = tokio::task::spawn_blocking(move || ip(&batch));
            let mut seen = Vec::new();
            while !storm.is_finished() {
                tokio::select! {
                    change = changes.recv() => seen.push(change.expect("the watcher goes on")),
                    () = tokio::time::sleep(Duration::from_millis(1)) => {}
                }
            }
            storm.await.unwrap();
            overruns += seen.iter().filter(|change| **change == Change::Reread(Lost::Overrun)).count();
            let seen_last = seen.into_iter().rfind(|change| matches!(change, Change::Link { .. }));
            let last = last_link(&mut changes, 0x10 + 2 * round).await.or(seen_last);
            assert_eq!(last, Some(Change::Link { carrier: up, mac: mac(address) }), "round {round}");
        }
        assert!(overruns > 0, "the storm fits into the queue");
    });
}

#[test]
fn a_socket_that_closes_is_opened_again() {
    watching(async |mut net, ifindex| {
        let (ours, theirs) = socket2::Socket::pair(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None).unwrap();
        // SAFETY: the descriptor is given away.
        let stand_in = unsafe { Socket::from_raw_fd(ours.into_raw_fd()) };
        net.subscription = Subscription::of(stand_in).unwrap();
        let mut changes = net.watch(ifindex);
        until(&mut changes, |change| matches!(change, Change::Gateways(_))).await;
        drop(theirs);
        ip("link set node address 02:00:00:00:00:99\n");
        until(&mut changes, |change| *change == Change::Reread(Lost::Closed)).await;
        until(&mut changes, |change| *change == Change::Link { carrier: true, mac: mac(0x99) }).await;
        ip("link set node address 02:00:00:00:00:98\n");
        until(&mut changes, |change| *change == Change::Link { carrier: true, mac: mac(0x98) }).await;
    });
}
