use super::*;
use crate::{
    AddressPool, AddressPoolSpec, L2Advertisement, L2AdvertisementSpec, Placement, PlacementSpec, VirtualIP,
    VirtualIPSpec,
};

const GOOD: [&str; 18] = [
    "192.0.2.0/28",
    "192.0.2.5/24",
    "10.0.0.0/8",
    "192.0.2.7/32",
    "1.0.0.0/8",
    "223.255.255.255/32",
    "192.0.2.10-192.0.2.20",
    "192.0.2.10-192.0.2.10",
    "192.0.2.255-192.0.3.0",
    "192.0.2.10",
    "192.0.2.10 - 192.0.2.20",
    " 192.0.2.0/24 ",
    "2001:db8::10",
    "2001:db8::/64",
    "2001:db8::1-2001:db8::2",
    "fd00::/120",
    "fd00::1 - fd00::ffff",
    "2001:DB8::/32",
];
const SYNTAX: [&str; 14] = [
    "",
    "x",
    "192.0.2.0/33",
    "192.0.2.0/",
    "192.0.2.01-192.0.2.20",
    "192.0.2.300-192.0.3.1",
    "192.0.2.10-192.0.2.20-192.0.2.30",
    "192.0.2.10-20",
    "192.0.2.10-2001:db8::1",
    "2001:db8::/129",
    "2001:db8::1::2",
    "::ffff:192.0.2.1",
    "192.0.2.1 192.0.2.2",
    "-",
];
const ORDER: [&str; 3] = ["192.0.2.20-192.0.2.10", "192.0.3.0-192.0.2.255", "192.0.2.20 - 192.0.2.10"];
const UNUSABLE: [&str; 17] = [
    "0.0.0.0/0",
    "0.0.0.0/8",
    "0.0.0.1",
    "10.0.0.0/7",
    "127.0.0.0/8",
    "127.0.0.1",
    "224.0.0.0/24",
    "255.255.255.255",
    "223.0.0.0-224.0.0.0",
    "126.0.0.0-128.0.0.0",
    "0.1.0.0-1.0.0.0",
    "::1",
    "fe80::/64",
    "ff02::1",
    "2001::/31",
    "64:ff9b::/96",
    "3fff::1-fd00::1",
];

/// The result of the API server's rules; empty = accepted.
fn cel(spec: AddressPoolSpec) -> String {
    match kube::core::cel::validate_cel(&AddressPool::new("p", spec)) {
        Ok(()) => String::new(),
        Err(errors) => format!("{errors:?}"),
    }
}

/// As an entry and as an exclusion.
fn cel_of_entry(entry: &str) -> [String; 2] {
    let (addresses, entry) = (vec!["198.51.100.0/30".into()], entry.to_string());
    let excluded =
        AddressPoolSpec { addresses: addresses.clone(), exclusions: vec![entry.clone()], ..Default::default() };
    [AddressPoolSpec { addresses: [addresses, vec![entry]].concat(), ..Default::default() }, excluded].map(cel)
}

#[test]
fn good_entries_pass_in_rust_and_in_cel() {
    for entry in GOOD {
        assert!(entry.parse::<AddressRange>().is_ok(), "{entry}");
        assert_eq!(cel_of_entry(entry), ["", ""], "{entry}");
    }
}

#[test]
fn bad_entries_are_refused_in_both_with_the_same_sentence() {
    for entry in SYNTAX.into_iter().chain(ORDER).chain(UNUSABLE) {
        let refused = entry.parse::<AddressRange>().expect_err(entry);
        match refused {
            MalformedRange::Syntax(_) => assert!(SYNTAX.contains(&entry), "{entry}"),
            MalformedRange::Order(_) => assert!(ORDER.contains(&entry), "{entry}"),
            MalformedRange::Unusable(_) => assert!(UNUSABLE.contains(&entry), "{entry}"),
        }
        for said in cel_of_entry(entry) {
            assert!(said.contains(&refused.to_string()), "{entry}: CEL said {said}");
        }
    }
}

/// CEL has no order of IPv6 addresses.
#[test]
fn an_ipv6_range_that_ends_before_it_starts_is_found_in_rust() {
    let refused = "2001:db8::2-2001:db8::1".parse::<AddressRange>();
    assert_eq!(refused, Err(MalformedRange::Order("2001:db8::2-2001:db8::1".into())));
}

/// The API server's Go parser refuses these; the CEL library of the tests does not.
#[test]
fn prefix_lengths_are_plain_decimal() {
    for entry in ["192.0.2.0/08", "192.0.2.0/+8", "2001:db8::/064", "::ffff:192.0.2.0/120"] {
        assert_eq!(entry.parse::<AddressRange>(), Err(MalformedRange::Syntax(entry.to_string())));
    }
}

#[test]
fn a_range_is_counted_exactly_and_has_one_family() {
    let range = |entry: &str| entry.parse::<AddressRange>().unwrap();
    assert_eq!((range("10.0.0.0/8").count(), range("192.0.2.9").count()), (1 << 24, 1));
    assert_eq!(range("2001:db8::/32").count(), 1 << 96);
    let all = range("192.0.2.254 - 192.0.3.1");
    assert_eq!((all.count(), all.to_string()), (4, "192.0.2.254-192.0.3.1".to_string()));
    assert!(all.contains("192.0.3.0".parse().unwrap()) && !all.contains("192.0.3.2".parse().unwrap()));
    assert!(!range("2001:db8::/64").contains("192.0.2.1".parse().unwrap()));
}

#[test]
fn a_requirement_has_the_values_that_its_operator_takes() {
    let pool = |operator: &str, values: &[&str]| {
        let selector =
            serde_json::json!({ "matchExpressions": [{ "key": "app", "operator": operator, "values": values }] });
        let spec = serde_json::json!({ "addresses": ["192.0.2.1"], "serviceSelectors": [selector] });
        cel(serde_json::from_value(spec).unwrap())
    };
    assert_eq!((pool("In", &["a"]), pool("Exists", &[])), (String::new(), String::new()));
    assert!(pool("NotIn", &[]).contains("operator 'NotIn' of key 'app' takes 1 to 64 values"));
    assert!(pool("Exists", &["a"]).contains("operator 'Exists' of key 'app' takes no values"));
}

#[test]
fn an_l2_advertisement_names_interfaces_and_a_time() {
    let said = |spec: serde_json::Value| {
        let spec = serde_json::from_value(spec).unwrap();
        match kube::core::cel::validate_cel(&L2Advertisement::new("a", spec)) {
            Ok(()) => String::new(),
            Err(errors) => format!("{errors:?}"),
        }
    };
    for field in ["interfaces", "excludedInterfaces"] {
        for good in ["eth0", "e*", "?", "enp3s0f1.100", "fifteen-letters"] {
            assert_eq!(said(serde_json::json!({ field: [good] })), "", "{good}");
        }
        for bad in ["", "!eth0", "a/b", "eth 0", "sixteen-letters-"] {
            let error = said(serde_json::json!({ field: ["eth0", bad] }));
            assert!(error.contains(&format!("'{bad}' is neither the name of an interface nor a pattern")), "{error}");
        }
    }
    // What CEL admits and what is read are the same.
    for text in
        ["Never", "1s", "86400s", "1440m", "24h", "0s", "01s", "86401s", "1441m", "25h", "10", "never", "1d", ""]
    {
        let spec = L2AdvertisementSpec { failback: Some(text.into()), ..L2AdvertisementSpec::default() };
        let error = said(serde_json::json!({ "failback": text }));
        assert_eq!(error.is_empty(), spec.failback().is_ok() && !text.starts_with('0'), "{text}: {error}");
        assert!(error.is_empty() || error.contains(&format!("'{text}' is neither Never nor a time")), "{error}");
    }
}

#[test]
fn a_placement_has_what_its_mode_needs_and_is_named_by_it() {
    let said = |name: Option<&str>, spec: serde_json::Value| {
        let spec: PlacementSpec = serde_json::from_value(spec).unwrap();
        let name = name.map_or_else(|| spec.name(), String::from);
        match kube::core::cel::validate_cel(&Placement::new(&name, spec)) {
            Ok(()) => String::new(),
            Err(errors) => format!("{errors:?}"),
        }
    };
    let good = serde_json::json!([
        { "mode": "Drain", "node": "a", "by": "me", "reason": "disk" },
        { "mode": "Prefer", "node": "a", "address": "192.0.2.1" },
        { "mode": "Move", "node": "a", "address": "192.0.2.1", "owner": "b", "term": 7 },
    ]);
    for spec in good.as_array().unwrap() {
        assert_eq!(said(None, spec.clone()), "", "{spec}");
        let name = PlacementSpec::name(&serde_json::from_value(spec.clone()).unwrap());
        let error = said(Some("x"), spec.clone());
        assert!(error.contains(&format!("the name 'x' must be '{name}'")), "{error}");
    }
    let bad = serde_json::json!([
        [{ "mode": "Drain", "node": "a", "address": "192.0.2.1" }, "'192.0.2.1' is not allowed with spec.mode Drain"],
        [{ "mode": "Prefer", "node": "a" }, "spec.address: required with spec.mode Prefer"],
        [{ "mode": "Prefer", "node": "a", "address": "192.0.2.256" }, "'192.0.2.256' is not an IPv4 address"],
        [{ "mode": "Prefer", "node": "a", "address": "2001:db8::1" }, "'2001:db8::1' is not an IPv4 address"],
        [{ "mode": "Move", "node": "a", "address": "192.0.2.1", "owner": "b" }, "required with spec.mode Move"],
        [{ "mode": "Move", "node": "a", "address": "192.0.2.1", "term": 7 }, "required with spec.mode Move"],
        [{ "mode": "Prefer", "node": "a", "address": "192.0.2.1", "term": 7 }, "allowed with spec.mode Move alone, not with Prefer"],
        [{ "mode": "Move", "node": "a", "address": "192.0.2.1", "owner": "a", "term": 7 }, "'a' is spec.owner as well"],
    ]);
    for case in bad.as_array().unwrap() {
        let error = said(None, case[0].clone());
        assert!(error.contains(case[1].as_str().unwrap()), "{}: {error}", case[0]);
    }
}

#[test]
fn a_virtual_ip_is_named_like_its_address_and_keeps_it() {
    let vip = |name: &str, address: &str| {
        VirtualIP::new(name, VirtualIPSpec { address: address.into(), pool: "p".into(), ..VirtualIPSpec::default() })
    };
    assert!(kube::core::cel::validate_cel(&vip("192.0.2.1", "192.0.2.1")).is_ok());
    assert!(kube::core::cel::validate_cel(&vip("192.0.2.1", "192.0.2.2")).is_err());
    let moved = kube::core::cel::validate_cel_update(&vip("192.0.2.1", "192.0.2.2"), &vip("192.0.2.1", "192.0.2.1"));
    assert!(moved.is_err());
}
