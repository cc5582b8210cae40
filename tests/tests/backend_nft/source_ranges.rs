//! Source ranges at the backend: new flows are judged once more, before kube-proxy's chains and before a pod is chosen.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};

use speaker_core::attributes::{Prefix, SourceRanges};
use speaker_core::backend::{Guard, Plan, ruleset};
use speaker_core::view::Affinity;

use crate::world::{CLIENT, OTHER_VIP, PODS, VIP, World, plan};
use crate::{PROXY, assert_proxy_untouched};

/// Both service ports of the VIP admit these alone; the other VIP's admit every client.
fn restricted(ranges: &[(Ipv4Addr, u8)]) -> Plan {
    let list: Vec<Prefix> = ranges.iter().map(|&(network, length)| Prefix { network, length }).collect();
    let list = SourceRanges::from(list);
    let mut plan = plan(&PODS, Affinity::None);
    for (key, local) in &mut plan.services {
        if Ipv4Addr::from(key.addr) == VIP {
            local.attributes.source_ranges = Some(list.clone());
        }
    }
    plan
}

fn open() -> Plan {
    plan(&PODS, Affinity::None)
}

/// The client's neighbours, without itself (192.0.2.5).
const BESIDE: [(Ipv4Addr, u8); 3] =
    [(Ipv4Addr::new(192, 0, 2, 4), 32), (Ipv4Addr::new(192, 0, 2, 6), 31), (Ipv4Addr::new(198, 51, 100, 0), 24)];
const SEGMENT: (Ipv4Addr, u8) = (Ipv4Addr::new(192, 0, 2, 0), 24);

fn assert_denied(world: &World) {
    let before = world.a.guard(Guard::Source);
    let error = world.connect(VIP, 80).err().map(|error| error.kind());
    assert_eq!(error, Some(ErrorKind::TimedOut), "dropped, not refused");
    let tcp = world.a.guard(Guard::Source);
    assert!(tcp > before);
    let udp = world.client_udp();
    udp.send_to(b"hello", (VIP, 53)).unwrap();
    assert_eq!(udp.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(world.a.guard(Guard::Source), tcp + 1);
    // Not this Service's business.
    assert!(world.connect(OTHER_VIP, 80).unwrap().is_alive());
    assert_eq!(world.a.guard(Guard::Source), tcp + 1);
}

fn assert_admitted(world: &World) {
    let denied = world.a.guard(Guard::Source);
    let mut connection = world.connect(VIP, 80).unwrap();
    assert!(connection.is_alive() && connection.seen.ip() == IpAddr::from(CLIENT));
    let udp = world.client_udp();
    udp.send_to(b"hello", (VIP, 53)).unwrap();
    assert!(udp.recv(&mut [0; 64]).is_ok());
    assert_eq!(world.a.guard(Guard::Source), denied);
}

#[test]
fn clients_outside_the_source_ranges_are_dropped_and_counted() {
    let world = World::new("ranges");
    world.a.nft(PROXY);
    world.a.apply(&restricted(&BESIDE));
    assert_denied(&world);
    assert_eq!(world.a.conntrack_entries(), 1, "of the connection to the other VIP alone");
    world.a.apply(&restricted(&[SEGMENT]));
    assert_admitted(&world);
    // A family without a range, or ranges that cannot be read: no client is admitted.
    world.a.apply(&restricted(&[]));
    assert_denied(&world);
    assert_proxy_untouched(&world);
}

/// By updates, as a speaker makes them. Lists that overlap follow each other: the kernel refuses a set that has both at once.
#[test]
fn source_ranges_change_in_place_and_an_open_connection_stays_until_its_dispatcher_resets_it() {
    let world = World::new("rechange");
    let all = [(Ipv4Addr::UNSPECIFIED, 0)];
    let host = [(CLIENT, 32)];
    let plans =
        [open(), restricted(&BESIDE), restricted(&[SEGMENT]), restricted(&host), restricted(&all), restricted(&[])];
    let admits = [true, false, true, true, true, false];
    world.a.apply(&plans[0]);
    let mut old = world.connect(VIP, 80).unwrap();
    let mut now = 0;
    for next in [1, 2, 3, 2, 4, 3, 5, 4, 1, 0, 5, 0] {
        world.a.nft(&ruleset::update(&plans[now], &plans[next]).expect("a difference"));
        if admits[next] {
            assert_admitted(&world)
        } else {
            assert_denied(&world)
        }
        now = next;
    }
    assert!(old.is_alive(), "only new flows are judged here");
}
