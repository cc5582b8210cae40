//! Pure: what the status of an L2Advertisement says.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sheave_api::AdvertisementReason;
use sheave_api::status::CONDITION_READY;

use super::{AdvertisementView, Advertisements};
use crate::status::Finding;

/// A change of the status, as a merge patch. `addresses`: so many grants name it.
pub fn status(
    view: &AdvertisementView,
    all: &Advertisements,
    addresses: i64,
    is_pool: impl Fn(&str) -> bool,
    now: Timestamp,
) -> Option<Value> {
    let (reason, message) = finding(view, all, is_pool);
    let valid = reason == AdvertisementReason::Valid;
    let ready = Finding { type_: CONDITION_READY, status: valid, reason: reason.as_str(), message: &message };
    let known = &view.status.conditions;
    if ready.is_written(known, view.generation) && view.status.addresses == addresses {
        return None;
    }
    let conditions = [ready.condition(known, view.generation, now)];
    Some(json!({ "status": { "addresses": addresses, "conditions": conditions } }))
}

fn finding(
    view: &AdvertisementView,
    all: &Advertisements,
    is_pool: impl Fn(&str) -> bool,
) -> (AdvertisementReason, String) {
    if let Some(unusable) = all.unusable(&view.name) {
        return unusable;
    }
    let unknown: Vec<String> =
        view.spec.pools.iter().filter(|pool| !is_pool(pool)).map(|pool| format!("'{pool}'")).collect();
    if unknown.is_empty() {
        return (AdvertisementReason::Valid, "it is followed as it is written".into());
    }
    let message = format!("spec.pools: no AddressPool has the name {}; the rest is followed", unknown.join(", "));
    (AdvertisementReason::UnknownPool, message)
}
