//! Which L2Advertisements select an address, and what their status says.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sheave_api::{AdvertisementReason, MAX_L2_ADVERTISEMENTS};

use super::*;
use crate::view::example_pool;

pub fn advertisement(name: &str, spec: Value) -> AdvertisementView {
    AdvertisementView {
        name: name.into(),
        uid: format!("uid of {name}"),
        version: 1,
        created: 0,
        generation: 1,
        spec: serde_json::from_value(spec).unwrap(),
        status: L2AdvertisementStatus::default(),
    }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn pool(name: &str, pairs: &[(&str, &str)]) -> PoolView {
    PoolView { labels: labels(pairs), ..example_pool(name, &["192.0.2.0/28"]) }
}

#[test]
fn pools_are_selected_by_name_or_by_label() {
    let all = [
        advertisement("every", json!({})),
        advertisement("label", json!({ "poolSelectors": [{ "matchLabels": { "zone": "a" } }] })),
        advertisement(
            "name",
            json!({ "pools": ["p"], "poolSelectors": [{ "matchExpressions": [{ "key": "x", "operator": "Exists" }] }] }),
        ),
    ];
    let all = Advertisements::new(all.iter());
    let of = |pool: &PoolView| all.of(&pool.name, Some(pool), &[]).advertisements;
    assert_eq!(of(&pool("p", &[])), ["every", "name"]);
    assert_eq!(of(&pool("q", &[("zone", "a")])), ["every", "label"]);
    assert_eq!(of(&pool("q", &[("x", "")])), ["every", "name"]);
    assert_eq!(all.of("p", None, &[]).advertisements, ["every", "name"], "a pool that is gone is known by its name");
    assert_eq!(Advertisements::default().of("p", None, &[]), Announced::default());
}

/// An address that several Services share is selected if one of them is.
#[test]
fn services_are_selected_by_their_labels_beside_the_pool() {
    let spec = json!({ "pools": ["p"], "serviceSelectors": [{ "matchLabels": { "app": "a" } }, { "matchLabels": { "app": "b" } }] });
    let all = Advertisements::new([advertisement("some", spec)].iter());
    let selected = |pool: &str, services: &[&Labels]| !all.of(pool, None, services).advertisements.is_empty();
    let [a, b, c] = ["a", "b", "c"].map(|app| labels(&[("app", app)]));
    assert!(selected("p", &[&a]) && selected("p", &[&c, &b]));
    assert!(!selected("p", &[&c]) && !selected("q", &[&a]) && !selected("p", &[]));
}

#[test]
fn the_oldest_are_followed_and_what_is_not_says_so() {
    let views: Vec<AdvertisementView> = (0..=MAX_L2_ADVERTISEMENTS)
        .map(|n| AdvertisementView { created: -(n as i64), ..advertisement(&format!("a{n:02}"), json!({})) })
        .collect();
    let all = Advertisements::new(views.iter());
    let followed = all.of("p", None, &[]).advertisements;
    assert_eq!(followed.len(), MAX_L2_ADVERTISEMENTS);
    assert!(!followed.contains(&"a00".to_string()), "the youngest");
    let reason = all.unusable("a00").unwrap().0;
    assert_eq!(reason, AdvertisementReason::TooManyAdvertisements);
    let odd = json!({ "poolSelectors": [{ "matchExpressions": [{ "key": "x", "operator": "Like" }] }] });
    let all = Advertisements::new([advertisement("odd", odd)].iter());
    let (reason, message) = all.unusable("odd").unwrap();
    assert_eq!(reason, AdvertisementReason::Malformed);
    assert!(message.starts_with("spec.poolSelectors: ") && message.contains("Exists"), "{message}");
    assert_eq!(all.of("p", None, &[]), Announced::default());
}

#[test]
fn the_status_is_written_once_and_names_unknown_pools() {
    let view = advertisement("a", json!({ "pools": ["p", "gone"] }));
    let all = Advertisements::new([view.clone()].iter());
    let of = |view: &AdvertisementView, known: &[&str]| {
        status(view, &all, 2, |pool| known.contains(&pool), Timestamp::UNIX_EPOCH)
    };
    let mut written = of(&view, &["p"]).unwrap();
    let said = written["status"]["conditions"][0].clone();
    assert_eq!((&said["status"], &said["reason"]), (&json!("False"), &json!("UnknownPool")));
    let message = "spec.pools: no AddressPool has the name 'gone'; the rest is followed";
    assert_eq!((&said["message"], &written["status"]["addresses"]), (&json!(message), &json!(2)));
    let view = AdvertisementView { status: serde_json::from_value(written["status"].take()).unwrap(), ..view };
    assert_eq!(of(&view, &["p"]), None);
    let ready = of(&view, &["p", "gone"]).unwrap();
    assert_eq!(ready["status"]["conditions"][0]["reason"], "Valid");
    assert!(of(&AdvertisementView { generation: 2, ..view }, &["p"]).is_some());
}
