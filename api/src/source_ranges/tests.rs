//! Examples of what the API server admits and refuses, and a naive reference that compares address bits one by one.

use proptest::prelude::*;

use super::*;

fn field(entries: &[&str]) -> Result<SourceRanges, RangeError> {
    of_service(&entries.iter().map(ToString::to_string).collect::<Vec<_>>(), None)
}

fn shown(ranges: &SourceRanges) -> Vec<String> {
    ranges.v4().iter().map(ToString::to_string).chain(ranges.v6().iter().map(ToString::to_string)).collect()
}

#[test]
fn without_entries_every_client_is_admitted() {
    for annotation in [None, Some(""), Some("  ")] {
        let ranges = of_service(&[], annotation).unwrap();
        assert!(!ranges.is_restricted());
        assert!(ranges.admits("203.0.113.7".parse().unwrap()) && ranges.admits("2001:db8::7".parse().unwrap()));
    }
}

#[test]
fn the_field_counts_and_the_annotation_only_where_it_is_empty() {
    let annotation = Some(" 198.51.100.0/24 , 2001:db8::/32");
    assert_eq!(shown(&of_service(&["203.0.113.0/24".into()], annotation).unwrap()), ["203.0.113.0/24"]);
    assert_eq!(shown(&of_service(&[], annotation).unwrap()), ["198.51.100.0/24", "2001:db8::/32"]);
    // The annotation does not count, so it is not judged.
    assert!(of_service(&["203.0.113.0/24".into()], Some("nonsense")).is_ok());
}

#[test]
fn entries_are_trimmed_masked_and_merged() {
    let ranges = field(&[" 10.1.2.3/8\t", "10.9.0.0/16", "192.0.2.0/25", "192.0.2.128/25", "2001:DB8::1/32"]).unwrap();
    assert_eq!(shown(&ranges), ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"]);
    assert_eq!(shown(&field(&["010.001.0.0/08"]).unwrap()), ["10.0.0.0/8"]);
    assert_eq!(shown(&field(&["0.0.0.0/0", "::/0"]).unwrap()), ["0.0.0.0/0", "::/0"]);
}

#[test]
fn a_family_without_a_range_admits_no_client() {
    let (v4, v6) = ("192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap());
    let ranges = field(&["192.0.2.0/24"]).unwrap();
    assert!(ranges.admits(v4) && !ranges.admits(v6));
    let ranges = field(&["2001:db8::/32"]).unwrap();
    assert!(!ranges.admits(v4) && ranges.admits(v6));
}

#[test]
fn what_is_no_range_is_refused_by_name() {
    let refused = [
        "",
        " ",
        "10.0.0.0",
        "10.0.0.0/",
        "/8",
        "10.0.0.0/33",
        "10.0.0.0/-1",
        "10.0.0.0/+8",
        "10.0.0.0/8/8",
        "10.0.0/8",
        "10.0.0.0.0/8",
        "256.0.0.0/8",
        "10. 0.0.0/8",
        "10.0.0.0 /8",
        "0x0a.0.0.0/8",
        "2001:db8::/129",
        "::ffff:10.0.0.0/104",
        "fe80::1%eth0/64",
        "example.org/24",
        "10.0.0.0/8,10.1.0.0/16",
        "+1.0.0.0/8",
    ];
    for value in refused {
        let error = field(&["192.0.2.0/24", value]).unwrap_err();
        assert_eq!(error, RangeError { field: FIELD, value: value.into() });
    }
    let error = of_service(&[], Some("192.0.2.0/24,")).unwrap_err();
    assert_eq!(error, RangeError { field: ANNOTATION, value: String::new() });
    let error = of_service(&[], Some("192.0.2.0/24, 10.0.0.0/40")).unwrap_err().to_string();
    assert!(
        error.starts_with("service.beta.kubernetes.io/load-balancer-source-ranges: ' 10.0.0.0/40' is no address range")
    );
}

/// Bit by bit, over the text's own numbers.
fn reference_admits(ranges: &[(Vec<u8>, u8)], client: &[u8]) -> bool {
    let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    let within = |(address, length): &(Vec<u8>, u8)| {
        address.len() == client.len() && (0..usize::from(*length)).all(|at| bit(address, at) == bit(client, at))
    };
    ranges.is_empty() || ranges.iter().any(within)
}

/// A range of either family, and a client that shares some of its leading bits.
fn range() -> impl Strategy<Value = (Vec<u8>, u8)> {
    let v4 = (proptest::collection::vec(0..4u8, 4), 0..=32u8);
    let v6 = (proptest::collection::vec(0..2u8, 16), 0..=128u8);
    prop_oneof![v4, v6]
}

fn address(bytes: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => v4.into(),
        Err(_) => <[u8; 16]>::try_from(bytes).unwrap().into(),
    }
}

proptest! {
    /// Clients are drawn near the ranges (few different bits), so that both answers occur.
    #[test]
    fn admits_what_the_reference_admits(
        ranges in proptest::collection::vec(range(), 0..6),
        clients in proptest::collection::vec(range(), 1..40),
        blanks in proptest::collection::vec("[ \t]{0,2}", 6),
        as_annotation: bool,
    ) {
        let text = |((bytes, length), blanks): (&(Vec<u8>, u8), &String)| format!("{blanks}{}/{length}{blanks}", address(bytes));
        let texts: Vec<String> = ranges.iter().zip(&blanks).map(text).collect();
        let parsed = if as_annotation { of_service(&[], Some(&texts.join(","))) } else { of_service(&texts, None) }.unwrap();
        prop_assert_eq!(parsed.is_restricted(), !ranges.is_empty());
        for (client, _) in &clients {
            prop_assert_eq!(parsed.admits(address(client)), reference_admits(&ranges, client));
        }
        for pair in parsed.v4().windows(2) {
            prop_assert!(pair[0].broadcast() < pair[1].network());
        }
    }

    /// Any text: it does not panic, and what it takes has an address and a length.
    #[test]
    fn any_text_is_parsed_or_refused(text in "[0-9a-fx:./ ,+-]{0,24}") {
        if let Ok(ranges) = of_service(std::slice::from_ref(&text), None) {
            prop_assert!(ranges.is_restricted() && ranges.v4().len() + ranges.v6().len() == 1);
        }
    }
}
