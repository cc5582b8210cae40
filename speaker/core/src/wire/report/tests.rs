use alloc::vec;

use proptest::prelude::*;

use super::*;
use crate::health::totals::Total;
use crate::view::Protocol;
use crate::view::endpoints::service_key;

const CLUSTER: u64 = 0x0102_0304_0506_0708;

fn keys(id: u8) -> Keyring {
    Keyring { current: Key { id, secret: [id; 32] }, other: None }
}

fn datagram() -> Datagram {
    Datagram {
        node: NodeName::new("n1").unwrap(),
        cluster: CLUSTER,
        epoch: 2,
        sequence: 3,
        requests: true,
        partial: false,
        asks: false,
        version: 4,
        digest: 5,
        view: 7,
        age_millis: 6,
        parts: 2,
        piece: Some(Piece { part: 1, bytes: vec![0xaa, 0xbb] }),
        starts: None,
        health: None,
        totals: None,
    }
}

fn target(last: u8, port: u16) -> Target {
    Target { address: [10, 0, 0, last].into(), port }
}

#[test]
fn starts_vector() {
    let starts = Starts::from([(target(1, 8080), false), (target(1, 8081), true), (target(2, 80), false)]);
    let reported = Datagram { piece: None, starts: Some(starts), ..datagram() };
    let sealed = reported.seal(&keys(5));
    let content = b"\x0a\0\0\x01\x1f\x90\0\x0a\0\0\x01\x1f\x91\x01\x0a\0\0\x02\0\x50\0";
    assert_eq!((sealed[5], &sealed[NAME + 2..sealed.len() - MAC_LEN]), (3, &content[..]));
    assert_eq!(Datagram::open(&sealed, CLUSTER, &keys(5)), Ok(reported));
    let none = Datagram { piece: None, starts: Some(Starts::new()), ..datagram() };
    assert_eq!(Datagram::open(&none.seal(&keys(5)), CLUSTER, &keys(5)), Ok(none), "none is not a summary");
}

#[test]
fn starts_are_in_order_and_whole_and_as_many_as_fit() {
    for bad in [
        &b"\x0a\0\0\x01\x1f\x90"[..],
        b"\x0a\0\0\x01\x1f\x90\x02",
        b"\x0a\0\0\x01\x1f\x90\0\x0a\0\0\x01\x1f\x90\x01",
        b"\x0a\0\0\x02\x1f\x90\0\x0a\0\0\x01\x1f\x90\x01",
    ] {
        assert_eq!(decode_starts(bad), Err(Reject::Malformed), "{bad:?}");
    }
    let starts: Starts = (0..MAX_STARTS as u16).map(|port| (target(1, port), port % 2 == 0)).collect();
    let node = NodeName::new(&"n".repeat(NodeName::MAX_LEN)).unwrap();
    let full = Datagram { node, piece: None, starts: Some(starts), ..datagram() };
    let sealed = full.seal(&keys(5));
    assert!(sealed.len() <= MAX_DATAGRAM && MAX_STARTS >= 100, "{} bytes, {MAX_STARTS} pods", sealed.len());
    assert_eq!(Datagram::open(&sealed, CLUSTER, &keys(5)), Ok(full));
}

#[test]
fn health_vector() {
    let targets = [(target(1, 6443), true), (target(1, 9345), false)].into();
    let report = Report { reaches: true, targets, ..Report::default() };
    let reported = Datagram { piece: None, health: Some(report), ..datagram() };
    let sealed = reported.seal(&keys(5));
    let content = b"\x01\x0a\0\0\x01\x19\x2b\x01\x0a\0\0\x01\x24\x81\0";
    assert_eq!((sealed[5], &sealed[NAME + 2..sealed.len() - MAC_LEN]), (4, &content[..]));
    assert_eq!(Datagram::open(&sealed, CLUSTER, &keys(5)), Ok(reported));
    let given_up = Report { given_up: true, ..Report::default() };
    let none = Datagram { piece: None, health: Some(given_up), ..datagram() };
    assert_eq!(Datagram::open(&none.seal(&keys(5)), CLUSTER, &keys(5)), Ok(none));
    for (bad, reject) in [(&b""[..], Reject::Truncated), (b"\x20", Reject::Malformed), (b"\x01\x0a", Reject::Malformed)]
    {
        assert_eq!(decode_health(bad), Err(reject), "{bad:?}");
    }
}

#[test]
fn totals_are_a_kind_of_their_own_and_as_many_as_fit() {
    let total = Total { connections: 1, bytes: 2, resets: 3 };
    let totals: Totals = (0..MAX_TOTALS as u16).map(|port| ((port, [192, 0, 2, 11].into()), total)).collect();
    let node = NodeName::new(&"n".repeat(NodeName::MAX_LEN)).unwrap();
    let full = Datagram { node, piece: None, totals: Some(totals), ..datagram() };
    let sealed = full.seal(&keys(5));
    assert!(sealed[5] == 5 && sealed.len() <= MAX_DATAGRAM && MAX_TOTALS >= 30, "{} bytes", sealed.len());
    assert_eq!(Datagram::open(&sealed, CLUSTER, &keys(5)), Ok(full));
    let none = Datagram { piece: None, totals: Some(Totals::new()), ..datagram() };
    assert_eq!(Datagram::open(&none.seal(&keys(5)), CLUSTER, &keys(5)), Ok(none), "none is not a summary");
}

fn key(port: u16) -> ServiceKey {
    service_key([192, 0, 2, 1].into(), port, Protocol::Tcp)
}

fn services(rows: &[(u16, Rows)]) -> Services {
    rows.iter().map(|(port, rows)| (key(*port), Arc::new(rows.clone()))).collect()
}

/// The format, byte by byte, without the MAC.
#[test]
fn vector() {
    let expected: &[&[u8]] = &[
        b"SHVH\x01\x02\x01\x05\x01\x02\x03\x04\x05\x06\x07\x08",
        b"\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x07",
        b"\0\0\0\x06\0\x01\0\x02\x02\0\0\0n1\xaa\xbb",
    ];
    let sealed = datagram().seal(&keys(5));
    assert_eq!(sealed[..sealed.len() - MAC_LEN], expected.concat());
    assert_eq!(Datagram::open(&sealed, CLUSTER, &keys(5)), Ok(datagram()));
    let reported = Datagram { piece: None, requests: false, partial: true, asks: true, ..datagram() };
    assert_eq!(Datagram::open(&reported.seal(&keys(5)), CLUSTER, &keys(5)), Ok(reported));
}

#[test]
fn list_vector() {
    let (list, partial) = encode(&services(&[(80, Rows::new(4093, [1, 258])), (81, Rows::new(20, 0..9))]));
    let expected: &[&[u8]] = &[
        b"\xc0\0\x02\x01\0\x50\x06\x01\x0f\xfd\0\x04\0\x01\x01\x02",
        b"\xc0\0\x02\x01\0\x51\x06\x02\0\x14\0\x03\xff\x01\0",
    ];
    assert_eq!((list, partial), (expected.concat(), false));
}

#[test]
fn what_is_wrong_has_a_name() {
    let open = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = datagram().seal(&keys(5));
        bytes.truncate(bytes.len() - MAC_LEN);
        change(&mut bytes);
        keys(5).seal(&mut bytes);
        Datagram::open(&bytes, CLUSTER, &keys(5)).map(|_| ())
    };
    assert_eq!(open(&|_| {}), Ok(()));
    assert_eq!(open(&|b| b.truncate(20)), Err(Reject::Truncated));
    assert_eq!(open(&|b| b.resize(1400, 0)), Err(Reject::Oversized));
    assert_eq!(open(&|b| b[0] = b'X'), Err(Reject::Malformed));
    assert_eq!(open(&|b| b[4] = 2), Err(Reject::WrongVersion));
    assert_eq!(open(&|b| b[5] = 3), Err(Reject::Malformed), "no such kind");
    assert_eq!(open(&|b| b[5] = 1), Err(Reject::Malformed), "a word with a piece");
    assert_eq!(open(&|b| b[7] = 6), Err(Reject::UnknownKey));
    assert_eq!(open(&|b| b[8] = 9), Err(Reject::WrongCluster));
    assert_eq!(open(&|b| b[61] = 2), Err(Reject::Malformed), "part 2 of 2");
    assert_eq!(open(&|b| b[62] = 0xff), Err(Reject::Malformed), "too many parts");
    assert_eq!(open(&|b| b[64] = 200), Err(Reject::Truncated), "name beyond the end");
    assert_eq!(open(&|b| b[68] = b'_'), Err(Reject::Malformed), "not a name");
    assert_eq!(open(&|b| b.truncate(70)), Err(Reject::Malformed), "a part without a piece");
    let mut forged = datagram().seal(&keys(5));
    forged[30] ^= 1;
    assert_eq!(Datagram::open(&forged, CLUSTER, &keys(5)), Err(Reject::BadMac));
}

#[test]
fn lists_that_lie_are_refused() {
    let section = |port: u16, form: u8, of: u16, content: &[u8]| {
        let mut bytes = vec![192, 0, 2, 1];
        bytes.extend_from_slice(&port.to_be_bytes());
        bytes.extend_from_slice(&[6, form]);
        bytes.extend_from_slice(&of.to_be_bytes());
        bytes.extend_from_slice(&(content.len() as u16).to_be_bytes());
        bytes.extend_from_slice(content);
        bytes
    };
    let good = section(80, FORM_LIST, 4093, &[0, 1]);
    assert_eq!(decode(&good), Ok(services(&[(80, Rows::new(4093, [1]))])));
    assert_eq!(decode(&good[..good.len() - 1]), Err(Reject::Truncated));
    assert_eq!(decode(&good[..5]), Err(Reject::Truncated));
    let malformed = [
        section(80, FORM_LIST, 4093, &[]),
        section(80, FORM_LIST, 4093, &[0, 1, 0]),
        section(80, FORM_LIST, 4093, &[0, 1, 0, 1]),
        section(80, FORM_LIST, 1, &[0, 1]),
        section(80, FORM_LIST, 0xffff, &[0, 1]),
        section(80, FORM_BITS, 20, &[1, 0]),
        section(80, FORM_BITS, 20, &[0, 0, 0x10]),
        section(80, FORM_BITS, 20, &[0, 0, 0]),
        section(80, 3, 20, &[1, 0, 0]),
        [good.clone(), good.clone()].concat(),
        [section(81, FORM_LIST, 4093, &[0, 1]), good].concat(),
    ];
    for list in malformed {
        assert_eq!(decode(&list), Err(Reject::Malformed), "{list:x?}");
    }
}

#[test]
fn the_largest_fit() {
    let node = NodeName::new(&"n".repeat(NodeName::MAX_LEN)).unwrap();
    let bytes = vec![7; piece_len(NodeName::MAX_LEN)];
    let piece = Some(Piece { part: MAX_PARTS as u16 - 1, bytes });
    let full = Datagram { node, parts: MAX_PARTS as u16, piece, ..datagram() };
    let sealed = full.seal(&keys(5));
    assert_eq!((sealed.len(), Datagram::open(&sealed, CLUSTER, &keys(5))), (MAX_DATAGRAM, Ok(full)));
    let many: Vec<_> = (0..200).map(|port| (port, Rows::new(MAX_ROWS, (0..MAX_ROWS).step_by(2)))).collect();
    let (list, partial) = encode(&services(&many));
    assert!(partial && list.len() <= MAX_LIST);
    assert_eq!(decode(&list).unwrap().len(), MAX_LIST / (SECTION + MAX_ROWS.div_ceil(8) as usize));
}

proptest! {
    #[test]
    fn any_holdings_survive_the_wire(
        all in prop::collection::btree_map(any::<u16>(), prop::collection::btree_set(0u32..4093, 1..600), 0..5),
    ) {
        let rows: Vec<_> = all.into_iter().map(|(port, rows)| (port, Rows::new(4093, rows))).collect();
        let (list, partial) = encode(&services(&rows));
        prop_assert!(!partial);
        prop_assert_eq!(decode(&list), Ok(services(&rows)));
    }

    #[test]
    fn any_bytes_are_taken_calmly(bytes in prop::collection::vec(any::<u8>(), 0..1500), head in 0usize..6, signed: bool) {
        let mut bytes = bytes;
        let _ = decode(&bytes);
        let good = datagram().seal(&keys(5));
        let length = bytes.len().min([0, 4, 8, 16, 56, 62][head]);
        bytes[..length].copy_from_slice(&good[..length]);
        if signed {
            keys(5).seal(&mut bytes);
        }
        let _ = Datagram::open(&bytes, CLUSTER, &keys(5));
    }
}
