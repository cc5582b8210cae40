//! What a Service asks for, from all places where it can be said. Places that say nothing are no places; two that say different things
//! are ambiguous: whichever were chosen, somebody would be surprised.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use sheave_api::{ADDRESS_ANNOTATIONS, POOL_ANNOTATIONS, excerpt};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    pub pool: Option<String>,
    pub addresses: Option<String>,
    /// The first two places that differ, with what they say.
    pub ambiguous: Option<String>,
}

impl Wishes {
    pub fn of(service: &Service) -> Self {
        let annotated = |name: &&'static str| service.annotations().get(*name).map(|value| (*name, value.as_str()));
        let field = service.spec.as_ref().and_then(|spec| spec.load_balancer_ip.as_deref());
        let field = field.map(|value| ("spec.loadBalancerIP", value));
        let (pool, pools_differ) = agreed(POOL_ANNOTATIONS.iter().filter_map(annotated), one_name);
        let addresses = ADDRESS_ANNOTATIONS.iter().filter_map(annotated).chain(field);
        let (addresses, addresses_differ) = agreed(addresses, entries);
        Wishes { pool, addresses, ambiguous: addresses_differ.or(pools_differ) }
    }
}

/// What the first place says that says anything, and another one that differs.
fn agreed<'a>(
    places: impl Iterator<Item = (&'static str, &'a str)>,
    meaning: fn(&str) -> BTreeSet<String>,
) -> (Option<String>, Option<String>) {
    let mut places =
        places.map(|(name, value)| (name, value, meaning(value))).filter(|(_, _, meant)| !meant.is_empty());
    let Some((first, value, meant)) = places.next() else { return (None, None) };
    let other = places.find(|(_, _, other)| *other != meant);
    let differs =
        other.map(|(name, other, _)| format!("{first} is '{}' and {name} is '{}'", excerpt(value), excerpt(other)));
    (Some(value.trim().to_string()), differs)
}

fn one_name(value: &str) -> BTreeSet<String> {
    let name = value.trim();
    (!name.is_empty()).then(|| name.to_string()).into_iter().collect()
}

/// Addresses in any order and notation; what is none stays as it is written.
fn entries(value: &str) -> BTreeSet<String> {
    let entries = value.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| entry.parse::<std::net::IpAddr>().map_or(entry.to_string(), |address| address.to_string()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(annotations: &[(&str, &str)], field: Option<&str>) -> Wishes {
        let annotations: serde_json::Map<_, _> =
            annotations.iter().map(|(name, value)| ((*name).to_string(), (*value).into())).collect();
        let service = serde_json::json!({
            "metadata": {"name": "a", "namespace": "b", "annotations": annotations},
            "spec": {"type": "LoadBalancer", "loadBalancerIP": field},
        });
        Wishes::of(&serde_json::from_value(service).unwrap())
    }

    const OURS: &str = "sheave.dev/loadBalancerIPs";
    const THEIRS: &str = "metallb.universe.tf/loadBalancerIPs";

    /// C6 of November 2026, and templates that render nothing.
    #[test]
    fn an_empty_value_asks_for_nothing() {
        for empty in ["", " ", ",", " , "] {
            assert_eq!(wishes(&[(OURS, empty)], Some(empty)), Wishes::default(), "{empty:?}");
        }
        assert_eq!(wishes(&[("sheave.dev/address-pool", " ")], None).pool, None);
        let one = wishes(&[(OURS, ""), (THEIRS, "192.0.2.9")], Some(""));
        assert_eq!((one.addresses.as_deref(), one.ambiguous), (Some("192.0.2.9"), None));
    }

    #[test]
    fn places_that_say_the_same_are_fine() {
        let all = [
            (OURS, "192.0.2.1,2001:db8::1"),
            (THEIRS, " 2001:DB8:0::1 , 192.0.2.1"),
            ("metallb.io/address-pool", "p"),
            ("sheave.dev/address-pool", "p "),
        ];
        let same = wishes(&all, None);
        assert_eq!((same.addresses.as_deref(), same.pool.as_deref()), (Some("192.0.2.1,2001:db8::1"), Some("p")));
        assert_eq!(same.ambiguous, None);
        assert_eq!(wishes(&[("kube-vip.io/loadbalancerIPs", "192.0.2.1")], Some("192.0.2.1")).ambiguous, None);
    }

    #[test]
    fn places_that_differ_are_named_with_what_they_say() {
        let said = wishes(&[(OURS, "192.0.2.1"), (THEIRS, "192.0.2.2")], None).ambiguous.unwrap();
        assert_eq!(said, format!("{OURS} is '192.0.2.1' and {THEIRS} is '192.0.2.2'"));
        let said = wishes(&[(OURS, "192.0.2.1")], Some("192.0.2.8")).ambiguous.unwrap();
        assert!(said.ends_with("and spec.loadBalancerIP is '192.0.2.8'"), "{said}");
        let long = wishes(&[(OURS, &"x".repeat(100_000)), (THEIRS, &"y".repeat(100_000))], None).ambiguous.unwrap();
        assert!(long.len() < 300 && long.contains("x…'") && long.ends_with("y…'"), "{long}");
        let pools = [("sheave.dev/address-pool", "a"), ("metallb.io/address-pool", "b")];
        assert!(wishes(&pools, None).ambiguous.unwrap().contains("metallb.io/address-pool is 'b'"));
    }
}
