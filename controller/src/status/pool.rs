//! Pure: what a pool's status says.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sheave_api::status::{
    CONDITION_CONFLICT, CONDITION_MALFORMED, CONDITION_NOT_PROBED, CONDITION_PROXY_ARP, CONDITION_READY,
};
use sheave_api::{Excluded, PoolReason};

use crate::allocator::Usage;
use crate::allocator::pool::Pool;
use crate::probes::About;
use crate::status::Finding;
use crate::view::PoolView;

/// A change of a pool's status, as a merge patch.
pub fn pool_status(
    view: &PoolView,
    pool: &Pool,
    usage: Usage,
    excluded_by: &[Excluded],
    about: &About,
    now: Timestamp,
) -> Option<Value> {
    let findings = findings(pool, about);
    let Usage { total, used, free, excluded, outside, available: [v4, v6] } = usage;
    let status = &view.status;
    let same_counts = (status.total, status.used, status.free, status.excluded, status.outside)
        == (total, used, free, excluded, outside);
    let same_counts = same_counts && (status.available_ipv4, status.available_ipv6) == (v4, v6);
    let same_counts = same_counts && status.excluded_by == excluded_by;
    if same_counts && findings.iter().all(|finding| finding.is_written(&status.conditions, view.generation)) {
        return None;
    }
    let conditions: Vec<Value> =
        findings.iter().map(|finding| finding.condition(&status.conditions, view.generation, now)).collect();
    Some(json!({ "status": {
        "total": total,
        "used": used,
        "free": free,
        "availableIPv4": v4,
        "availableIPv6": v6,
        "excluded": excluded,
        "excludedBy": excluded_by,
        "outside": outside,
        "conditions": conditions,
    }}))
}

fn findings<'a>(pool: &'a Pool, about: &'a About) -> [Finding<'a>; 5] {
    let malformed = pool.reason == PoolReason::Malformed;
    let named = |is: bool, reason| if is { reason } else { PoolReason::Valid }.as_str();
    [
        Finding {
            type_: CONDITION_READY,
            status: pool.is_ready(),
            reason: pool.reason.as_str(),
            message: &pool.message,
        },
        Finding {
            type_: CONDITION_CONFLICT,
            status: pool.conflict.is_some(),
            reason: named(pool.conflict.is_some(), PoolReason::Overlapping),
            message: pool.conflict.as_deref().unwrap_or("shares addresses with no other pool that grants some"),
        },
        Finding {
            type_: CONDITION_MALFORMED,
            status: malformed,
            reason: named(malformed, PoolReason::Malformed),
            message: if malformed { &pool.message } else { "every entry can be read" },
        },
        Finding {
            type_: CONDITION_NOT_PROBED,
            status: about.not_probed.is_some(),
            reason: named(about.not_probed.is_some(), PoolReason::NotProbed),
            message: about
                .not_probed
                .as_deref()
                .unwrap_or("addresses on a node's segment are probed before they are granted"),
        },
        Finding {
            type_: CONDITION_PROXY_ARP,
            status: about.proxy.is_some(),
            reason: named(about.proxy.is_some(), PoolReason::ProxyArp),
            message: about.proxy.as_deref().unwrap_or("no proxy has answered a probe"),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocator::Allocator;
    use crate::view::example_pool;

    /// Written once; a pool with IPv6 has more addresses than the counts can say.
    #[test]
    fn conditions_and_counts_are_written_once_and_saturate() {
        let mut view = example_pool("p", &["2001:db8::/32", "192.0.2.0/30"]);
        let mut allocator = Allocator::default();
        allocator.set_pools([&view].into_iter());
        let status = |view: &PoolView| {
            let pool = allocator.pool("p").unwrap();
            let about = About { not_probed: Some("no speaker".into()), proxy: None };
            pool_status(view, pool, allocator.usage("p"), &allocator.excluded_by("p"), &about, Timestamp::UNIX_EPOCH)
        };
        let written = status(&view).unwrap()["status"].take();
        assert_eq!((&written["total"], &written["free"]), (&json!(i64::MAX), &json!(i64::MAX)));
        assert_eq!((&written["availableIPv4"], &written["availableIPv6"]), (&json!(4), &json!(i64::MAX)));
        view.status = serde_json::from_value(written).unwrap();
        let said: Vec<String> =
            view.status.conditions.iter().map(|c| format!("{} {} {}", c.type_, c.status, c.reason)).collect();
        assert_eq!(
            said,
            [
                "Ready True Valid",
                "Conflict False Valid",
                "Malformed False Valid",
                "NotProbed True NotProbed",
                "ProxyArp False Valid",
            ]
        );
        assert_eq!(status(&view), None);
        assert!(status(&PoolView { generation: 2, ..view }).is_some());
    }
}
