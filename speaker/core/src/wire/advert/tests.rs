//! Vectors both ways, every refusal by name, and any bytes at all.

use alloc::vec;

use proptest::prelude::*;

use super::*;
use crate::time::Duration;

const CLUSTER: u64 = 0x0102_0304_0506_0708;

fn keys(id: u8) -> Keyring {
    Keyring { current: Key { id, secret: [id; 32] }, other: None }
}

fn heartbeat() -> Advert {
    Advert {
        node: NodeName::new("node-1").unwrap(),
        cluster: CLUSTER,
        epoch: 0x11,
        sequence: 0x22,
        flags: Flags { ready: true, joining: true, ..Flags::default() },
        digest: 0x33,
        challenge: 0x44,
        body: Body::Heartbeat { echoes: vec![0xaabb_ccdd] },
    }
}

fn claims() -> Advert {
    let claim = Claim { vip: Vip([192, 0, 2, 7].into()), term: Term(9), stepping_down: true };
    Advert { body: Body::Claims { part: 0, parts: 1, claims: vec![claim] }, ..heartbeat() }
}

#[rustfmt::skip]
const HEARTBEAT: [u8; 58] = [
    b'S', b'H', b'V', b'E', 1, 1, 0b1001, 5,
    1, 2, 3, 4, 5, 6, 7, 8,
    0, 0, 0, 0, 0, 0, 0, 0x11,
    0, 0, 0, 0, 0, 0, 0, 0x22,
    0, 0, 0, 0, 0, 0, 0, 0x33,
    0, 0, 0, 0x44, 6, 1, 0, 1,
    b'n', b'o', b'd', b'e', b'-', b'1',
    0xaa, 0xbb, 0xcc, 0xdd,
];

#[rustfmt::skip]
const CLAIMS_BODY: [u8; 20] = [
    0, 0, 0, 1,
    4, 1, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 9,
    192, 0, 2, 7,
];

#[test]
fn heartbeat_both_ways() {
    let bytes = heartbeat().seal(&keys(5));
    assert_eq!(bytes[..HEARTBEAT.len()], HEARTBEAT);
    assert_eq!(bytes.len(), HEARTBEAT.len() + MAC_LEN);
    assert_eq!(Advert::open(&bytes, CLUSTER, &keys(5)), Ok(heartbeat()));
}

#[test]
fn claims_both_ways() {
    let bytes = claims().seal(&keys(5));
    assert_eq!(bytes[NAME + 6..bytes.len() - MAC_LEN], CLAIMS_BODY);
    assert_eq!(Advert::open(&bytes, CLUSTER, &keys(5)), Ok(claims()));
}

/// More may follow in later versions; an address of a group is none of a node.
#[test]
fn node_both_ways() {
    let mac = [2, 0, 0, 0, 0, 7];
    let earlier = Advert { body: Body::Node { mac, pace: None }, ..heartbeat() };
    let bytes = earlier.seal(&keys(5));
    assert_eq!(bytes[NAME + 6..bytes.len() - MAC_LEN], [2, 0, 0, 0, 0, 7, 0, 0]);
    assert_eq!(Advert::open(&bytes, CLUSTER, &keys(5)), Ok(earlier));
    let pace = Some(Pace { interval: Duration::from_millis(200), dead_intervals: 5 });
    let node = Advert { body: Body::Node { mac, pace }, ..heartbeat() };
    let bytes = node.seal(&keys(5));
    assert_eq!(bytes[NAME + 6..bytes.len() - MAC_LEN], [2, 0, 0, 0, 0, 7, 0x50, 200]);
    assert_eq!(Advert::open(&bytes, CLUSTER, &keys(5)), Ok(node.clone()));
    let mut longer = bytes[..bytes.len() - MAC_LEN].to_vec();
    longer.extend_from_slice(&[1, 2, 3, 4]);
    keys(5).seal(&mut longer);
    assert_eq!(Advert::open(&longer, CLUSTER, &keys(5)), Ok(node));
    for mac in [[0; 6], [0xff; 6], [1, 0, 0, 0, 0, 7]] {
        let group = Advert { body: Body::Node { mac, pace: None }, ..heartbeat() };
        assert_eq!(Advert::open(&group.seal(&keys(5)), CLUSTER, &keys(5)), Err(Reject::Malformed));
    }
    let stated = |bytes: &[u8]| Packet::new(bytes).unwrap().stated_pace();
    assert_eq!((stated(&bytes), stated(&longer)), (pace, pace), "whoever signed them");
    assert_eq!((stated(&heartbeat().seal(&keys(5))), stated(&claims().seal(&keys(5)))), (None, None));
    // 9 ms; 1001 ms; 2 intervals; 11 intervals.
    for pace in [[0x30, 9], [0x33, 0xe9], [0x20, 50], [0xb0, 50], [0, 50], [0x30, 0]] {
        let mut bytes = bytes[..bytes.len() - MAC_LEN].to_vec();
        let end = bytes.len() - Pace::LEN;
        bytes[end..].copy_from_slice(&pace);
        keys(5).seal(&mut bytes);
        assert_eq!(Advert::open(&bytes, CLUSTER, &keys(5)), Err(Reject::BadPace), "{pace:?}");
        assert_eq!(stated(&bytes), None, "{pace:?}");
    }
}

#[test]
fn every_refusal_has_its_name() {
    let good = claims().seal(&keys(5));
    let open = |bytes: &[u8]| Advert::open(bytes, CLUSTER, &keys(5)).unwrap_err();
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    assert_eq!(open(&[]), Reject::Truncated);
    assert_eq!(open(&good[..good.len() - 1]), Reject::Truncated);
    assert_eq!(open(&[good.clone(), vec![0; MAX_DATAGRAM]].concat()), Reject::Oversized);
    assert_eq!(open(&with(0, b'X')), Reject::Malformed);
    assert_eq!(open(&with(4, 2)), Reject::WrongVersion);
    assert_eq!(open(&with(5, 4)), Reject::Malformed);
    assert_eq!(open(&with(7, 6)), Reject::UnknownKey);
    assert_eq!(open(&with(8, 0)), Reject::WrongCluster);
    for at in [6, 20, 30, 40, NAME, good.len() - 1] {
        assert_eq!(open(&with(at, good[at] ^ 1)), Reject::BadMac, "byte {at}");
    }
}

/// Signed, and still nonsense: a buggy peer must not get far.
#[test]
fn signed_nonsense_is_malformed() {
    let sealed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = claims().seal(&keys(5));
        bytes.truncate(bytes.len() - MAC_LEN);
        change(&mut bytes);
        keys(5).seal(&mut bytes);
        Advert::open(&bytes, CLUSTER, &keys(5))
    };
    assert_eq!(sealed(&|_| {}), Ok(claims()));
    let body = NAME + 6;
    assert_eq!(sealed(&|b| b[body + 1] = 1), Err(Reject::Malformed), "part 1 of 1");
    assert_eq!(sealed(&|b| b[body + 2] = 0xff), Err(Reject::Malformed), "too many parts");
    assert_eq!(sealed(&|b| b[body + 4] = 6), Err(Reject::Malformed), "family 6");
    assert_eq!(sealed(&|b| b.push(0)), Err(Reject::Malformed), "one byte more");
    assert_eq!(sealed(&|b| b[NAME] = b'_'), Err(Reject::Malformed), "not a name");
    assert_eq!(sealed(&|b| b[NAME] = 0xff), Err(Reject::Malformed), "not even text");
    assert_eq!(sealed(&|b| b[44] = 200), Err(Reject::Truncated), "name beyond the end");
}

/// While keys are rotated both are taken; afterwards the old one is unknown.
#[test]
fn rotation() {
    let both = Keyring { current: keys(6).current, other: Some(keys(5).current) };
    let old = heartbeat().seal(&keys(5));
    assert!(Advert::open(&old, CLUSTER, &both).is_ok());
    assert!(Advert::open(&heartbeat().seal(&both), CLUSTER, &keys(6)).is_ok());
    assert_eq!(Advert::open(&old, CLUSTER, &keys(6)), Err(Reject::UnknownKey));
    let impostor = Keyring { current: Key { id: 5, secret: [1; 32] }, other: None };
    assert_eq!(Advert::open(&heartbeat().seal(&impostor), CLUSTER, &both), Err(Reject::BadMac));
}

#[test]
fn the_largest_adverts_fit() {
    let name = "n".repeat(NodeName::MAX_LEN);
    let node = NodeName::new(&name).unwrap();
    let claim = Claim { vip: Vip([1, 2, 3, 4].into()), term: Term(u64::MAX), stepping_down: false };
    let count = claims_per_part(NodeName::MAX_LEN);
    let echoes = Advert { node: node.clone(), body: Body::Heartbeat { echoes: vec![7; MAX_ECHOES] }, ..heartbeat() };
    let full = Advert { node, body: Body::Claims { part: 0, parts: 1, claims: vec![claim; count] }, ..heartbeat() };
    for advert in [echoes, full] {
        let bytes = advert.seal(&keys(5));
        assert!(bytes.len() <= MAX_DATAGRAM, "{}", bytes.len());
        assert_eq!(Advert::open(&bytes, CLUSTER, &keys(5)), Ok(advert));
    }
    assert!(MAX_PARTS * count >= MAX_CLAIMS);
}

/// Part of the protocol: a change of this number is a change of version.
#[test]
fn digest_vector() {
    let claim = |last, term| Claim { vip: Vip([192, 0, 2, last].into()), term: Term(term), stepping_down: false };
    assert_eq!(digest([]), EMPTY_DIGEST);
    assert_eq!(digest([claim(1, 1), claim(2, 7)]), 10720210176343922946);
    assert_ne!(digest([claim(1, 1)]), digest([claim(1, 2)]));
}

prop_compose! {
    fn any_advert()(
        name in "[a-z0-9.-]{1,253}", epoch: u64, sequence: u64, bits in 0u8..32, digest: u64, challenge: u32,
        echoes in prop::collection::vec(any::<u32>(), 0..=MAX_ECHOES),
        claims in prop::collection::vec((any::<[u8; 4]>(), any::<u64>(), any::<bool>()), 0..=claims_per_part(NodeName::MAX_LEN)),
        part in 0..MAX_PARTS as u16, kind in 0..3, mac: [u8; 5],
        pace in prop::option::of((10u64..=1000, 3u32..=10)),
    ) -> Advert {
        let claims = claims.into_iter().map(|(a, t, stepping_down)| Claim { vip: Vip(a.into()), term: Term(t), stepping_down }).collect();
        let pace = pace.map(|(millis, dead_intervals)| Pace { interval: Duration::from_millis(millis), dead_intervals });
        let body = match kind {
            0 => Body::Heartbeat { echoes },
            1 => Body::Claims { part, parts: MAX_PARTS as u16, claims },
            _ => Body::Node { mac: [2, mac[0], mac[1], mac[2], mac[3], mac[4]], pace },
        };
        Advert {
            node: NodeName::new(&name).unwrap(), cluster: CLUSTER, epoch, sequence, flags: Flags::from_bits(bits), digest,
            challenge, body,
        }
    }
}

proptest! {
    #[test]
    fn any_advert_survives_the_wire(advert in any_advert()) {
        prop_assert_eq!(Advert::open(&advert.seal(&keys(5)), CLUSTER, &keys(5)), Ok(advert));
    }

    /// Also with a good head and a good MAC, so that the parser behind them is reached.
    #[test]
    fn any_bytes_are_taken_calmly(
        bytes in prop::collection::vec(any::<u8>(), 0..1500), head in 0usize..9, node: bool, signed: bool,
    ) {
        let mut bytes = bytes;
        let address = Advert { body: Body::Node { mac: [2, 0, 0, 0, 0, 7], pace: None }, ..heartbeat() };
        let good = if node { address } else { claims() }.seal(&keys(5));
        let length = bytes.len().min([0, 4, 5, 6, 8, 16, 46, 48, 60][head]);
        bytes[..length].copy_from_slice(&good[..length]);
        if signed {
            keys(5).seal(&mut bytes);
        }
        if let Ok(packet) = Packet::new(&bytes) {
            let _ = Advert::parse(&packet);
        }
        let _ = Advert::open(&bytes, CLUSTER, &keys(5));
    }

    #[test]
    fn one_flipped_bit_is_refused(at in 0usize..58 + MAC_LEN, bit in 0u8..8) {
        let mut bytes = heartbeat().seal(&keys(5));
        bytes[at] ^= 1 << bit;
        prop_assert!(Advert::open(&bytes, CLUSTER, &keys(5)).is_err());
    }
}

#[test]
fn only_a_node_that_is_ready_and_among_others_takes_new_flows() {
    let ready = Flags { ready: true, ..Flags::default() };
    assert!(ready.takes_flows());
    let not_yet = [Flags::default(), Flags { joining: true, ..ready }, Flags { alone: true, ..ready }];
    assert!(!not_yet.into_iter().any(Flags::takes_flows));
}
