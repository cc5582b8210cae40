//! Pure: which subnets the nodes stand in, by what their speakers report, and which one is meant.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use kube::ResourceExt;
use sheave_api::SpeakerState;

use super::range::Span;
use super::unable::Unable;

/// A subnet with nodes in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub subnet: Ipv4Net,
    /// Nodes whose speakers have reported it, those that are ready in front.
    pub speakers: Vec<String>,
    pub gateways: BTreeSet<Ipv4Addr>,
}

/// Longest prefix of a subnet that has room for a pool; /31 and /32 are no segments.
const LONGEST: u8 = 29;

/// Nodes, those that are not ready behind, and gateways.
type Seen = (BTreeSet<(bool, String)>, BTreeSet<Ipv4Addr>);

/// By subnet. Ones that are only a host's own (link local) are none.
pub fn segments(states: &[SpeakerState]) -> BTreeMap<Ipv4Net, Segment> {
    let mut found: BTreeMap<Ipv4Net, Seen> = BTreeMap::new();
    for state in states {
        let status = state.status.as_ref();
        let conditions = status.map(|status| &status.conditions[..]).unwrap_or_default();
        let ready = conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True");
        for uplink in status.map(|status| &status.uplinks[..]).unwrap_or_default() {
            let gateways: BTreeSet<Ipv4Addr> = uplink.gateways.iter().filter_map(|text| text.parse().ok()).collect();
            for subnet in uplink.subnets.iter().filter_map(|text| text.parse::<Ipv4Net>().ok()) {
                let subnet = subnet.trunc();
                if subnet.prefix_len() <= LONGEST && !subnet.addr().is_link_local() {
                    let (speakers, known) = found.entry(subnet).or_default();
                    speakers.insert((!ready, state.name_any()));
                    known.extend(gateways.iter().filter(|gateway| subnet.contains(*gateway)));
                }
            }
        }
    }
    let segment = |(subnet, (speakers, gateways)): (Ipv4Net, Seen)| {
        let speakers = speakers.into_iter().map(|(_, name)| name).collect();
        (subnet, Segment { subnet, speakers, gateways })
    };
    found.into_iter().map(segment).collect()
}

/// The one that was named, or that the range lies in, or the only one.
pub fn choose(states: &[SpeakerState], named: Option<Ipv4Net>, range: Option<Span>) -> Result<Segment, Unable> {
    if states.is_empty() {
        return Err(Unable::NoSpeaker);
    }
    let segments = segments(states);
    let list = || segments.values().map(|one| format!("{} ({})", one.subnet, some(&one.speakers))).collect::<Vec<_>>();
    if segments.is_empty() {
        return Err(Unable::NoSubnet);
    }
    let within = |segment: &&Segment| {
        let named = named.is_none_or(|named| named.trunc() == segment.subnet);
        named && range.is_none_or(|range| segment.subnet.contains(&range.first) && segment.subnet.contains(&range.last))
    };
    let chosen: Vec<&Segment> = segments.values().filter(within).collect();
    match (&chosen[..], named, range) {
        ([one], ..) => Ok((*one).clone()),
        // One lies in the other: the smaller one is what the range is on.
        ([.., last], _, Some(_)) => Ok((*last).clone()),
        ([], Some(named), None) => Err(Unable::UnknownSubnet { subnet: named.to_string(), known: list() }),
        ([], _, Some(range)) => Err(Unable::RangeOutsideSubnets { range, known: list() }),
        _ => Err(Unable::SeveralSubnets { known: list() }),
    }
}

fn some(names: &[String]) -> String {
    let more = if names.len() > MOST_NAMES { ", ..." } else { "" };
    format!("{}{more}", names.iter().take(MOST_NAMES).map(String::as_str).collect::<Vec<_>>().join(", "))
}

/// Of nodes, in an error.
const MOST_NAMES: usize = 4;

#[cfg(test)]
pub mod tests {
    use serde_json::json;

    use super::*;

    pub fn state(name: &str, ready: &str, subnets: &[&str], gateway: &str) -> SpeakerState {
        let condition = json!({ "type": "Ready", "status": ready, "reason": "x", "message": "",
            "lastTransitionTime": "2026-11-27T00:00:00Z" });
        let uplink = json!({ "name": "eth0", "subnets": subnets, "gateways": [gateway], "addresses": [] });
        serde_json::from_value(json!({
            "metadata": { "name": name }, "spec": {},
            "status": { "conditions": [condition], "uplinks": [uplink] },
        }))
        .unwrap()
    }

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn nodes_of_a_subnet_are_one_segment_and_ready_speakers_are_asked_first() {
        let states = [
            state("a", "False", &["192.0.2.0/24"], "192.0.2.254"),
            state("b", "True", &["192.0.2.0/24", "169.254.0.0/16", "198.51.100.4/31"], "203.0.113.1"),
        ];
        let expected = Segment {
            subnet: net("192.0.2.0/24"),
            speakers: vec!["b".into(), "a".into()],
            gateways: [Ipv4Addr::new(192, 0, 2, 254)].into(),
        };
        assert_eq!(segments(&states), [(expected.subnet, expected.clone())].into());
        assert_eq!(choose(&states, None, None).unwrap(), expected);
        assert_eq!(choose(&states, Some(net("192.0.2.7/24")), None).unwrap(), expected, "written as an address of it");
    }

    #[test]
    fn what_cannot_be_chosen_has_a_name() {
        let told = |states: &[SpeakerState], named: Option<&str>, range: Option<&str>| {
            let range = range.map(|range| range.parse().unwrap());
            choose(states, named.map(net), range).unwrap_err().to_string()
        };
        assert!(told(&[], None, None).starts_with("NoSpeaker: "));
        assert!(told(&[state("a", "True", &[], "192.0.2.1")], None, None).starts_with("NoSubnet: "));
        let two = [
            state("a", "True", &["192.0.2.0/24"], "192.0.2.254"),
            state("b", "True", &["198.51.100.0/24"], "198.51.100.1"),
        ];
        let several = told(&two, None, None);
        assert!(
            several.starts_with("SeveralSubnets: ") && several.contains("192.0.2.0/24 (a), 198.51.100.0/24 (b)"),
            "{several}"
        );
        let unknown = told(&two, Some("203.0.113.0/24"), None);
        assert!(
            unknown.starts_with("UnknownSubnet: 203.0.113.0/24") && unknown.contains("198.51.100.0/24 (b)"),
            "{unknown}"
        );
        let outside = told(&two, None, Some("203.0.113.1-203.0.113.9"));
        assert!(outside.starts_with("RangeOutsideSubnets: 203.0.113.1-203.0.113.9"), "{outside}");
        assert!(told(&two, None, Some("192.0.2.250-198.51.100.3")).starts_with("RangeOutsideSubnets: "));
        let range = "198.51.100.8-198.51.100.9".parse().unwrap();
        assert_eq!(choose(&two, None, Some(range)).unwrap().speakers, ["b"], "the subnet of the range");
        assert!(told(&two, Some("192.0.2.0/24"), Some("198.51.100.8/31")).starts_with("RangeOutsideSubnets: "));
    }
}
