//! Pure: what a pool's status says.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sheave_api::PoolReason;
use sheave_api::status::CONDITION_READY;

use crate::allocator::Usage;
use crate::allocator::pool::Pool;
use crate::view::PoolView;

/// A change of a pool's status, as a merge patch.
pub fn pool_status(view: &PoolView, pool: &Pool, usage: Usage, now: Timestamp) -> Option<Value> {
    let ready = if pool.reason == PoolReason::Valid { "True" } else { "False" };
    let known = view.status.conditions.iter().find(|c| c.type_ == CONDITION_READY);
    let same_condition = known.is_some_and(|c| {
        c.status == ready
            && c.reason == pool.reason.as_str()
            && c.message == pool.message
            && c.observed_generation == Some(view.generation)
    });
    let counts = (view.status.assigned, view.status.available, view.status.outside);
    if same_condition && counts == (usage.assigned, usage.available, usage.outside) {
        return None;
    }
    let since = known.filter(|c| c.status == ready).map_or(now, |c| c.last_transition_time.0);
    Some(json!({ "status": {
        "assigned": usage.assigned,
        "available": usage.available,
        "outside": usage.outside,
        "conditions": [{
            "type": CONDITION_READY,
            "status": ready,
            "reason": pool.reason.as_str(),
            "message": pool.message,
            "observedGeneration": view.generation,
            "lastTransitionTime": since.strftime("%FT%TZ").to_string(),
        }],
    }}))
}
