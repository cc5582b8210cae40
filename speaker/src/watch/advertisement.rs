//! L2Advertisements of the API server into those of the view.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::ResourceExt;
use sheave_api::{L2Advertisement, L2AdvertisementSpec};
use speaker_core::view::labels::{Operator, Requirement, Selector};
use speaker_core::view::{Key, L2Advertisement as View, Object, Preferred};
use tracing::warn;

/// One that cannot be read is named by the controller ([`sheave_api::AdvertisementReason::Malformed`]), and by no VirtualIP.
pub fn convert(advertisement: L2Advertisement) -> Option<(Key, Option<Object>)> {
    let name = advertisement.name_any();
    let view = view(advertisement.spec);
    if view.is_none() {
        warn!(l2advertisement = name, "a selector or the failback of the L2Advertisement cannot be read; left out");
    }
    let object = view.map(|view| Object::L2Advertisement(name.clone(), view));
    Some((Key::L2Advertisement(name), object))
}

fn view(spec: L2AdvertisementSpec) -> Option<View> {
    let failback_seconds = spec.failback().ok()?.map(|span| span.as_secs());
    let L2AdvertisementSpec {
        pools: _,
        pool_selectors: _,
        service_selectors: _,
        node_selectors,
        preferred_nodes,
        interfaces,
        excluded_interfaces,
        ignore_exclude_label,
        failback: _,
    } = spec;
    let preferred = preferred_nodes.into_iter().map(|preferred| {
        let weight = u8::try_from(preferred.weight).ok()?;
        Some(Preferred { selector: selector(preferred.selector)?, weight })
    });
    Some(View {
        nodes: node_selectors.into_iter().map(selector).collect::<Option<_>>()?,
        preferred: preferred.collect::<Option<_>>()?,
        interfaces,
        excluded_interfaces,
        ignores_exclude_label: ignore_exclude_label,
        failback_seconds,
    })
}

fn selector(selector: LabelSelector) -> Option<Selector> {
    let labels = selector.match_labels.unwrap_or_default().into_iter();
    let labels = labels.map(|(label, value)| Some(Requirement { label, operator: Operator::In([value].into()) }));
    let expressions = selector.match_expressions.unwrap_or_default().into_iter().map(requirement);
    labels.chain(expressions).collect::<Option<_>>().map(Selector)
}

fn requirement(requirement: LabelSelectorRequirement) -> Option<Requirement> {
    let LabelSelectorRequirement { key, operator, values } = requirement;
    let values: BTreeSet<String> = values.unwrap_or_default().into_iter().collect();
    let operator = match operator.as_str() {
        "In" => Operator::In(values),
        "NotIn" => Operator::NotIn(values),
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        _ => return None,
    };
    Some(Requirement { label: key, operator })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_arrives() {
        let object = serde_json::json!({
            "metadata": { "name": "a" },
            "spec": {
                "nodeSelectors": [{ "matchLabels": { "zone": "a" } }],
                "preferredNodes": [{ "selector": { "matchExpressions": [
                    { "key": "zone", "operator": "NotIn", "values": ["b"] }, { "key": "fast", "operator": "Exists" },
                ] }, "weight": 7 }],
                "interfaces": ["eth*"],
                "excludedInterfaces": ["eth9"],
                "ignoreExcludeLabel": true,
                "failback": "10m",
            },
        });
        let one = |label: &str, operator| Requirement { label: label.into(), operator };
        let preferred = vec![one("zone", Operator::NotIn(["b".into()].into())), one("fast", Operator::Exists)];
        let expected = View {
            nodes: vec![Selector(vec![one("zone", Operator::In(["a".into()].into()))])],
            preferred: vec![Preferred { selector: Selector(preferred), weight: 7 }],
            interfaces: vec!["eth*".into()],
            excluded_interfaces: vec!["eth9".into()],
            ignores_exclude_label: true,
            failback_seconds: Some(600),
        };
        let (key, view) = convert(serde_json::from_value(object).unwrap()).unwrap();
        assert_eq!(
            (key, view),
            (Key::L2Advertisement("a".into()), Some(Object::L2Advertisement("a".into(), expected)))
        );
    }
}
