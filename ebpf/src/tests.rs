//! The path on the host: any bytes at all, and the invariants that hold for every frame. The table of verdicts runs in
//! tests/tests/xdp_verdicts/, on the kernel and here alike.

mod fragments;
mod node_address;
mod second_chance;
mod traffic;

use ebpf_common::{Config, Fate, Lease, MARK_PREFIX, Node, Row, ServiceKey, ServiceValue, Verdict};
use proptest::prelude::*;

use crate::host::{HostFrame, HostTables};
use crate::walk;

const SELF: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const VIP: [u8; 4] = [192, 0, 2, 10];

/// One VIP; port 0x0050 has a ring with both nodes, everything else is unserved.
fn tables() -> HostTables {
    let mut tables = HostTables {
        config: Config { hash_key: [1, 2], mac: SELF, self_slot: 1, ..Config::default() },
        lease: Lease { until_ns: 10, mute_until_ns: 20 },
        now_ns: 5,
        ..HostTables::default()
    };
    tables.vips.insert(VIP);
    tables.own.insert(VIP);
    tables.rings.insert(1, vec![Row::new(1, [0; 3]), Row::new(2, [0; 3])]);
    for proto in [6, 17] {
        tables
            .services
            .insert(ServiceKey { addr: VIP, port: [0, 80], proto, pad: 0 }, ServiceValue { ring: 1, flags: 0 });
    }
    tables.nodes.insert(2, Node { addr: [192, 0, 2, 2], mac: PEER, flags: 0 });
    tables
}

/// Headers that lead into the path, then anything.
fn towards_the_vip() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![8 => Just(0x45u8), 2 => 0x40..=0x4fu8];
    let proto = prop_oneof![Just(1u8), Just(6), Just(17), any::<u8>()];
    let port = prop_oneof![Just(80u16), any::<u16>()];
    let tail = proptest::collection::vec(any::<u8>(), 0..120);
    (first, proto, port, any::<u8>(), tail, 0..200u16).prop_map(|(first, proto, port, ttl, mut tail, less)| {
        if let Some(at) = tail.get_mut(2..4) {
            at.copy_from_slice(&port.to_be_bytes());
        }
        let total = (20 + tail.len() as u16).saturating_sub(less.saturating_sub(180));
        let mut frame = [&SELF[..], &[2, 0, 0, 0, 0, 9], &[8, 0, first, 0], &total.to_be_bytes()].concat();
        frame.extend([0, 0, 0x40, 0, ttl, proto, 0, 0, 198, 51, 100, 7]);
        frame.extend(VIP);
        frame.extend(tail);
        frame
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn any_bytes_end_in_a_verdict_and_only_sent_frames_change(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        invariants(&bytes)?;
    }

    #[test]
    fn any_bytes_behind_our_headers_too(bytes in towards_the_vip()) {
        let verdict = invariants(&bytes)?;
        prop_assert!(!matches!(verdict, Verdict::NotOurs | Verdict::NotOurMac | Verdict::NotReady), "{verdict:?}");
    }
}

fn invariants(bytes: &[u8]) -> Result<Verdict, TestCaseError> {
    let mut frame = HostFrame(bytes.to_vec());
    let verdict = walk(&mut frame, &tables());
    if verdict.fate() == Fate::Tx {
        prop_assert_eq!(&frame.0[6..12], &SELF, "a frame that we send carries our address");
        prop_assert!(frame.0.len() <= bytes.len(), "no answer is longer than its question");
    } else if verdict.fate() == Fate::Pass && frame.0.get(6..9) == Some(&MARK_PREFIX) {
        let mut marked = bytes.to_vec();
        marked[6..12].copy_from_slice(&frame.0[6..12]);
        prop_assert_eq!(&frame.0, &marked, "to the stack nothing but the mark is new");
    } else {
        prop_assert_eq!(&frame.0[..], bytes);
    }
    Ok(verdict)
}

#[test]
fn the_lease_ends_at_its_nanosecond() {
    let mut tables = tables();
    let request = [
        &[0xff; 6][..],
        &[2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &[2, 0, 0, 0, 0, 9, 198, 51, 100, 7],
        &[0; 6],
        &VIP,
    ]
    .concat();
    for (now, want) in [
        (9, Verdict::ArpAnswered),
        (10, Verdict::ArpLeaseOver),
        (19, Verdict::ArpLeaseOver),
        (20, Verdict::ArpMuteOver),
    ] {
        tables.now_ns = now;
        assert_eq!(walk(&mut HostFrame(request.clone()), &tables), want, "at {now}");
    }
}
