//! What MetalLB's documentation says of assigning addresses (usage, advanced pool configuration), with its own values where it has
//! some; written anew. Where we differ, the case says so.

use super::*;

struct Case {
    /// What the documentation says.
    says: &'static str,
    pools: Vec<PoolView>,
    /// Services in the order in which they come, and what they get.
    services: Vec<(Request, Result<&'static str, Refusal>)>,
}

fn view(name: &str, entries: &[&str], spec: serde_json::Value) -> PoolView {
    let mut view = pool(name, entries);
    let mut json = serde_json::to_value(&view.spec).unwrap();
    json.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    view.spec = serde_json::from_value(json).unwrap();
    view
}

fn from(uid: &str, namespace: &str, labels: &[(&str, &str)]) -> Request {
    let labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    Request { service: ServiceRef { namespace: namespace.into(), ..service(uid) }, labels, ..request(uid) }
}

fn in_pool(request: Request, pool: &str) -> Request {
    Request { pool: Some(pool.into()), ..request }
}

fn asking(request: Request, address: &str) -> Request {
    Request { address: Some(address.parse().unwrap()), ..request }
}

fn sharing(uid: &str, key: &str, port: i32) -> Request {
    let key = SharingKey { key: key.into(), namespace: None };
    let ports = [Port::new(port, None)].into();
    Request { sharing: Some(Sharing { key, ports }), ..request(uid) }
}

fn automatic() -> Vec<Case> {
    let expensive = || view("expensive", &["42.176.25.64/30"], serde_json::json!({ "autoAssign": false }));
    vec![
        Case {
            says: "autoAssign: false keeps expensive addresses for those that ask, also when the cheap ones are gone",
            pools: vec![view("cheap", &["192.168.10.0/32"], serde_json::json!({})), expensive()],
            services: vec![
                (request("1"), Ok("192.168.10.0")),
                (request("2"), Err(Refusal::PoolExhausted)),
                (in_pool(request("3"), "expensive"), Ok("42.176.25.64")),
                (asking(request("4"), "42.176.25.66"), Ok("42.176.25.66")),
            ],
        },
        Case {
            says: "a requested address that is not owned, or in use, is not assigned; nor is another one in its stead",
            pools: vec![view("p", &["192.168.10.0/30"], serde_json::json!({}))],
            services: vec![
                (asking(request("1"), "192.168.11.1"), Err(Refusal::AddressNotInPool)),
                (asking(request("2"), "192.168.10.1"), Ok("192.168.10.1")),
                (asking(request("3"), "192.168.10.1"), Err(Refusal::AddressInUse)),
                (in_pool(request("4"), "q"), Err(Refusal::UnknownPool)),
            ],
        },
        Case {
            says: "avoidBuggyIPs leaves out .0 and .255",
            pools: vec![view("p", &["192.168.20.254-192.168.21.1"], serde_json::json!({ "avoidBuggyIPs": true }))],
            services: vec![
                (request("1"), Ok("192.168.20.254")),
                (asking(request("2"), "192.168.20.255"), Err(Refusal::AddressNotInPool)),
                (request("3"), Ok("192.168.21.1")),
                (request("4"), Err(Refusal::PoolExhausted)),
            ],
        },
    ]
}

/// "In order to support dual-stack Services, a pool must have both families": here they may also be of different pools.
fn dual() -> Vec<Case> {
    let dual = |name| view(name, &["fc00:f853:0ccd:e797::/127", "192.168.10.0/32"], serde_json::json!({}));
    let v4 = || view("a-four", &["192.168.10.0/31"], serde_json::json!({}));
    let v6 = || view("b-six", &["fc00:f853:0ccd:e797::/124"], serde_json::json!({ "namespaces": ["namespace-a"] }));
    vec![
        Case {
            says: "a pool may have both families, and each Service gets those that it has",
            pools: vec![dual("dual")],
            services: vec![
                (request("1"), Ok("192.168.10.0")),
                (second(request("1")), Ok("fc00:f853:ccd:e797::")),
                (request("2"), Err(Refusal::PoolExhausted)),
                (second(request("3")), Ok("fc00:f853:ccd:e797::1")),
                (second(request("4")), Err(Refusal::PoolExhausted)),
            ],
        },
        Case {
            says: "loadBalancerIPs names one address of each family, in any order",
            pools: vec![dual("dual")],
            services: vec![
                (asking(second(request("1")), "fc00:f853:ccd:e797::1"), Ok("fc00:f853:ccd:e797::1")),
                (asking(request("1"), "192.168.10.0"), Ok("192.168.10.0")),
                (asking(second(request("2")), "fc00:f853:ccd:e797::1"), Err(Refusal::AddressInUse)),
                (asking(second(request("3")), "fc00:f853:ccd:e797::2"), Err(Refusal::AddressNotInPool)),
            ],
        },
        Case {
            says: "MetalLB refuses where no pool has both; we give each family by the order of the pools that have it",
            pools: vec![v6(), v4()],
            services: vec![
                (from("1", "namespace-a", &[]), Ok("192.168.10.0")),
                (second(from("1", "namespace-a", &[])), Ok("fc00:f853:ccd:e797::")),
                (from("2", "default", &[]), Ok("192.168.10.1")),
                (second(from("2", "default", &[])), Err(Refusal::ServiceNotSelected)),
                (in_pool(second(from("3", "namespace-a", &[])), "a-four"), Err(Refusal::PoolExhausted)),
            ],
        },
        Case {
            says: "avoidBuggyIPs is about IPv4",
            pools: vec![view("p", &["2001:db8::/127", "192.168.1.0/32"], serde_json::json!({ "avoidBuggyIPs": true }))],
            services: vec![(second(request("1")), Ok("2001:db8::")), (request("1"), Err(Refusal::PoolExhausted))],
        },
        Case {
            says: "Services with one sharing key share the addresses of either family",
            pools: vec![dual("dual")],
            services: vec![
                (sharing("1", "true", 80), Ok("192.168.10.0")),
                (second(sharing("1", "true", 80)), Ok("fc00:f853:ccd:e797::")),
                (sharing("2", "true", 443), Ok("192.168.10.0")),
                (second(sharing("2", "true", 443)), Ok("fc00:f853:ccd:e797::")),
                (sharing("3", "true", 80), Err(Refusal::PoolExhausted)),
                (second(sharing("3", "true", 80)), Ok("fc00:f853:ccd:e797::1")),
            ],
        },
    ]
}

/// The same for IPv6.
fn second(request: Request) -> Request {
    Request { family: Family::V6, ..request }
}

fn pinned() -> Vec<Case> {
    let sample = || {
        let spec = serde_json::json!({
            "priority": 50, "namespaces": ["namespace-a", "namespace-b"],
            "namespaceSelectors": [{ "matchLabels": { "foo": "bar" } }],
            "serviceSelectors": [{ "matchExpressions": [{ "key": "app", "operator": "In", "values": ["bar"] }] }],
        });
        view("sample", &["192.168.20.0/29"], spec)
    };
    let app = [("app", "bar")];
    let namespaces =
        |priority: serde_json::Value| serde_json::json!({ "priority": priority, "namespaces": ["namespace-a"] });
    vec![
        Case {
            says: "pinned to Services that match, in namespace-a, namespace-b or any namespace with the label foo: bar",
            pools: vec![sample()],
            services: vec![
                (from("1", "namespace-a", &app), Ok("192.168.20.0")),
                (from("2", "namespace-b", &app), Ok("192.168.20.1")),
                (from("3", "labeled", &app), Ok("192.168.20.2")),
                (from("4", "namespace-a", &[("app", "foo")]), Err(Refusal::ServiceNotSelected)),
                (from("5", "default", &app), Err(Refusal::ServiceNotSelected)),
            ],
        },
        Case {
            says: "a Service that chooses a pool or an address that does not match it stays pending",
            pools: vec![sample(), view("open", &["192.168.30.0/32"], serde_json::json!({}))],
            services: vec![
                (in_pool(from("1", "default", &app), "sample"), Err(Refusal::ServiceNotSelected)),
                (asking(from("2", "default", &app), "192.168.20.1"), Err(Refusal::ServiceNotSelected)),
                (from("3", "default", &app), Ok("192.168.30.0")),
            ],
        },
        Case {
            says: "the lowest number first, pools without one last, and pinned pools before the others; of equal ones MetalLB \
                   picks at random, we by name",
            pools: vec![
                view("a-open", &["192.168.1.0/32"], serde_json::json!({})),
                view("b-unset", &["192.168.2.0/32"], namespaces(serde_json::Value::Null)),
                view("c-50", &["192.168.3.0/32"], namespaces(50.into())),
                view("d-50", &["192.168.4.0/32"], namespaces(50.into())),
                view("e-1", &["192.168.5.0/32"], namespaces(1.into())),
            ],
            services: ["192.168.5.0", "192.168.3.0", "192.168.4.0", "192.168.2.0", "192.168.1.0"]
                .into_iter()
                .zip(["1", "2", "3", "4", "5"])
                .map(|(address, uid)| (from(uid, "namespace-a", &[]), Ok(address)))
                .collect(),
        },
    ]
}

fn shared() -> Vec<Case> {
    let two = || vec![view("p", &["192.168.10.0/31"], serde_json::json!({}))];
    vec![
        Case {
            says: "the same sharing key and other ports: one address",
            pools: two(),
            services: vec![
                (sharing("1", "true", 80), Ok("192.168.10.0")),
                (sharing("2", "true", 443), Ok("192.168.10.0")),
                (sharing("3", "true", 80), Ok("192.168.10.1")),
                (sharing("4", "true", 81), Ok("192.168.10.0")),
            ],
        },
        Case {
            says: "to be sure, request the address; a Service with another key, or none, does not get it",
            pools: two(),
            services: vec![
                (asking(sharing("1", "dns", 53), "192.168.10.1"), Ok("192.168.10.1")),
                (asking(sharing("2", "dns", 54), "192.168.10.1"), Ok("192.168.10.1")),
                (asking(sharing("3", "web", 80), "192.168.10.1"), Err(Refusal::AddressInUse)),
                (asking(request("4"), "192.168.10.1"), Err(Refusal::AddressInUse)),
                (request("5"), Ok("192.168.10.0")),
            ],
        },
    ]
}

#[test]
fn addresses_are_assigned_as_documented_and_stay_after_a_restart_in_any_order() {
    for Case { says, pools, services } in [automatic(), pinned(), shared(), dual()].into_iter().flatten() {
        let started = || {
            let mut allocator = with_pools(&pools);
            allocator.set_namespace("labeled", Some([("foo".to_string(), "bar".to_string())].into()));
            allocator
        };
        let mut allocator = started();
        for (request, expected) in &services {
            let got = settle(&mut allocator, request).map(|address| address.to_string());
            assert_eq!(got, expected.map(str::to_string), "{says}: {request:?}");
        }
        // The ledger is read backwards; then the Services come in the reverse order. Those that were refused get nothing of others.
        let mut after = started();
        for request in services.iter().rev().map(|(request, _)| request) {
            after.set_sharing(&request.service.uid, request.sharing.clone());
        }
        let ledger: Vec<_> = allocator.taken.iter().map(|(address, taken)| (*address, taken.clone())).collect();
        for (address, taken) in ledger.into_iter().rev() {
            let services = taken.holders.into_iter().rev().map(|holder| holder.service).collect();
            after.granted(address, taken.pool, services);
        }
        for (request, expected) in services.iter().rev() {
            let got = settle(&mut after, request).map(|address| address.to_string());
            assert_eq!(got, expected.map(str::to_string), "{says}: after a restart: {request:?}");
        }
    }
}
