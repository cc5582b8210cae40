//! Which pool a Service may have an address from, and which is tried first.

use super::*;

fn selector(json: serde_json::Value) -> LabelSelector {
    serde_json::from_value(json).unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn with(view: PoolView, change: impl FnOnce(&mut AddressPoolSpec)) -> PoolView {
    let mut view = view;
    change(&mut view.spec);
    view
}

/// Pools with one address each, which is named by its last octet.
fn one(name: &str, last: u8, change: impl FnOnce(&mut AddressPoolSpec)) -> PoolView {
    with(pool(name, &[&format!("192.0.2.{last}")]), change)
}

#[test]
fn pools_are_tried_by_priority_then_those_that_select_then_by_name() {
    let mut allocator = with_pools(&[
        one("a", 1, |_| {}),
        one("b", 2, |spec| spec.namespaces = vec!["default".into()]),
        one("c", 3, |spec| spec.priority = Some(20)),
        one("d", 4, |spec| spec.priority = Some(10)),
        one("e", 5, |spec| spec.priority = Some(10)),
        one("f", 6, |spec| (spec.priority, spec.namespaces) = (Some(20), vec!["default".into()])),
        one("g", 7, |spec| (spec.priority, spec.auto_assign) = (Some(1), false)),
        one("h", 8, |spec| (spec.priority, spec.namespaces) = (Some(1), vec!["other".into()])),
    ]);
    let got: Vec<_> = (0..7).map(|uid| settle(&mut allocator, &request(&uid.to_string()))).collect();
    assert_eq!(got[..6], [4, 5, 6, 3, 2, 1].map(|last| Ok(ip(last))));
    assert_eq!(got[6], Err(Refusal::PoolExhausted));
}

/// The namespace is named or matches one selector, and the Service matches one selector; an empty list restricts nothing.
#[test]
fn a_pool_selects_namespaces_and_services() {
    let blue = selector(serde_json::json!({ "matchLabels": { "team": "blue" } }));
    let public = selector(serde_json::json!({ "matchExpressions": [
        { "key": "zone", "operator": "In", "values": ["public", "edge"] }, { "key": "legacy", "operator": "DoesNotExist" },
    ]}));
    let not_green = selector(serde_json::json!({
        "matchExpressions": [{ "key": "team", "operator": "NotIn", "values": ["green"] }]
    }));
    type Case<'a> = (&'a str, AddressPoolSpec, &'a str, Labels, bool);
    let spec = |change: &dyn Fn(&mut AddressPoolSpec)| with(pool("p", &["192.0.2.0/30"]), change).spec;
    let by_both = spec(&|spec| {
        (spec.namespaces, spec.namespace_selectors) = (vec!["default".into()], vec![blue.clone()]);
    });
    let by_service = spec(&|spec| spec.service_selectors = vec![public.clone(), blue.clone()]);
    let by_all = spec(&|spec| {
        (spec.namespace_selectors, spec.service_selectors) = (vec![blue.clone()], vec![public.clone()]);
    });
    let by_absence = spec(&|spec| spec.namespace_selectors = vec![not_green.clone()]);
    let by_anything = spec(&|spec| spec.namespace_selectors = vec![LabelSelector::default()]);
    let cases: [Case<'_>; 12] = [
        ("named", by_both.clone(), "default", labels(&[]), true),
        ("matches", by_both.clone(), "sky", labels(&[]), true),
        ("neither", by_both, "lawn", labels(&[]), false),
        ("one of two selectors", by_service.clone(), "lawn", labels(&[("team", "blue")]), true),
        ("the other", by_service.clone(), "lawn", labels(&[("zone", "edge")]), true),
        ("all requirements of one", by_service.clone(), "lawn", labels(&[("zone", "edge"), ("legacy", "")]), false),
        ("no label", by_service, "lawn", labels(&[]), false),
        ("namespace and Service", by_all.clone(), "sky", labels(&[("zone", "public")]), true),
        ("the Service alone", by_all, "lawn", labels(&[("zone", "public")]), false),
        ("an absent label is not in the list", by_absence.clone(), "default", labels(&[]), true),
        ("a label that is", by_absence, "lawn", labels(&[]), false),
        ("an empty selector", by_anything, "default", labels(&[]), true),
    ];
    for (what, spec, namespace, service_labels, selected) in cases {
        let mut allocator = with_pools(&[PoolView { spec, ..pool("p", &[]) }]);
        allocator.set_namespace("default", Some(labels(&[])));
        allocator.set_namespace("sky", Some(labels(&[("team", "blue")])));
        allocator.set_namespace("lawn", Some(labels(&[("team", "green")])));
        let mut request = Request { labels: service_labels, ..request("1") };
        request.service.namespace = namespace.into();
        let expected = if selected { Ok(ip(0)) } else { Err(Refusal::ServiceNotSelected) };
        assert_eq!(settle(&mut allocator, &request), expected, "{what}");
        // Asking for the pool, or for an address, opens neither.
        let expected = |last| if selected { Ok(ip(last)) } else { Err(Refusal::ServiceNotSelected) };
        let named = Request { pool: Some("p".into()), ..request.clone() };
        assert_eq!(settle(&mut allocator, &named), expected(0), "{what}");
        let wished = Request { address: Some(ip(2)), ..request };
        assert_eq!(settle(&mut allocator, &wished), expected(2), "{what}");
    }
}

#[test]
fn a_refusal_names_every_pool_and_what_it_does_not_select() {
    let other = selector(serde_json::json!({ "matchLabels": { "app": "x" } }));
    let allocator = with_pools(&[
        one("a", 1, |spec| spec.namespaces = vec!["other".into()]),
        one("b", 2, |spec| spec.service_selectors = vec![other]),
        one("c", 3, |spec| spec.disabled = true),
    ]);
    let Decision::Refuse(refused) = allocator.decide(&request("1")) else { panic!() };
    let expected = "pool 'a' does not select namespace 'default'; pool 'b' does not select the Service's labels";
    assert_eq!((refused.reason, refused.message.as_str()), (Refusal::ServiceNotSelected, expected));
}

#[test]
fn selectors_that_match_no_more_leave_the_address() {
    let mut view = pool("p", &["192.0.2.0/30"]);
    view.spec.namespace_selectors = vec![selector(serde_json::json!({ "matchLabels": { "open": "yes" } }))];
    let mut allocator = with_pools(std::slice::from_ref(&view));
    assert_eq!(settle(&mut allocator, &request("1")), Err(Refusal::ServiceNotSelected), "an unknown namespace");
    assert!(allocator.set_namespace("default", Some(labels(&[("open", "yes")]))), "Services may be waiting");
    assert!(!allocator.set_namespace("default", Some(labels(&[("open", "yes")]))), "nothing new");
    assert_eq!(settle(&mut allocator, &request("1")), Ok(ip(0)));
    assert!(allocator.set_namespace("default", None));
    let kept = Decision::Keep { address: ip(0), remark: None };
    assert_eq!(allocator.decide(&request("1")), kept);
    assert_eq!(settle(&mut allocator, &request("2")), Err(Refusal::ServiceNotSelected));
    view.spec.namespace_selectors.clear();
    view.spec.service_selectors = vec![selector(serde_json::json!({ "matchLabels": { "app": "x" } }))];
    allocator.set_pools([view].iter());
    assert_eq!(allocator.decide(&request("1")), kept);
}

#[test]
fn a_disabled_pool_keeps_its_grants_and_gives_none() {
    let mut allocator = with_pools(&[pool("p", &["192.0.2.0/30"])]);
    settle(&mut allocator, &request("1")).unwrap();
    let drained = with(pool("p", &["192.0.2.0/30"]), |spec| spec.disabled = true);
    allocator.set_pools([&drained].into_iter());
    assert_eq!(allocator.decide(&request("1")), Decision::Keep { address: ip(0), remark: None });
    for asks in [
        request("2"),
        Request { address: Some(ip(1)), ..request("2") },
        Request { pool: Some("p".into()), ..request("2") },
        Request { adopt: Some(ip(1)), ..request("2") },
    ] {
        assert_eq!(settle(&mut allocator, &asks), Err(Refusal::PoolDisabled), "{asks:?}");
    }
    assert_eq!(allocator.usage("p"), usage(4, 1, 0, 0, 0));
    allocator.set_pools([drained, pool("q", &["192.0.2.8"])].iter());
    assert_eq!(settle(&mut allocator, &request("2")), Ok(ip(8)), "another pool is not drained");
}

#[test]
fn exclusions_are_given_to_nobody_and_take_nothing_back() {
    let mut allocator = with_pools(&[pool("p", &["192.0.2.0/30"])]);
    settle(&mut allocator, &request("1")).unwrap();
    let excluded = with(pool("p", &["192.0.2.0/30"]), |spec| spec.exclusions = vec!["192.0.2.0 - 192.0.2.1".into()]);
    allocator.set_pools([excluded].iter());
    let Decision::Keep { address, remark: Some(remark) } = allocator.decide(&request("1")) else { panic!() };
    assert_eq!((address, remark.reason), (ip(0), Refusal::AddressNotInPool));
    assert_eq!(
        settle(&mut allocator, &Request { address: Some(ip(1)), ..request("2") }),
        Err(Refusal::AddressNotInPool)
    );
    assert_eq!(settle(&mut allocator, &request("2")), Ok(ip(2)));
    assert_eq!(allocator.usage("p"), usage(4, 2, 1, 2, 1));
}
