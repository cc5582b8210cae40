//! Why a node cannot own an address, by what stands in the API: the rules of the speakers (docs/pools.md), told by name.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::api::ListParams;
use kube::core::{Selector, SelectorExt};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use sheave_api::kubernetes::EXCLUDE_LABEL;
use sheave_api::{Announce, L2Advertisement, Placement, PlacementMode, SpeakerState, VirtualIP};
use speaker_core::view::is_like;

use crate::local;

/// What decides which nodes may own addresses.
pub struct Cluster {
    nodes: BTreeMap<String, Node>,
    speakers: BTreeMap<String, SpeakerState>,
    advertisements: BTreeMap<String, L2Advertisement>,
    /// By node.
    drained: BTreeMap<String, Placement>,
}

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The pool says `announce: None`.
    NotAnnounced,
    /// By these L2Advertisements.
    NotSelected(Vec<String>),
    Excluded,
    Cordoned,
    /// By whom.
    Drained(String),
    NoSpeaker,
    /// The reason of its condition Ready.
    NotReady(String),
    /// The host speaker serves its node.
    StandsBy(&'static str),
}

impl Obstacle {
    /// An administrator said so of this kind of addresses and nodes; the others may pass at any time.
    pub fn lasts(&self) -> bool {
        matches!(self, Self::NotAnnounced | Self::NotSelected(_) | Self::Excluded)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnnounced => f.write_str("the address is announced by no node (announce: None of its pool)"),
            Self::NotSelected(names) => {
                write!(f, "no L2Advertisement of the address selects it ({})", names.join(", "))
            }
            Self::Excluded => write!(f, "it has the label {EXCLUDE_LABEL}"),
            Self::Cordoned => f.write_str("it is cordoned (kubectl uncordon)"),
            Self::Drained(who) => write!(f, "it is drained {who} (sheave drain --undo)"),
            Self::NoSpeaker => f.write_str("no speaker has reported from it (it has no SpeakerState)"),
            Self::NotReady(reason) => write!(f, "its speaker is not ready ({reason})"),
            Self::StandsBy(reason) => {
                write!(f, "the API server endpoint's speaker serves the node, and no Services ({reason})")
            }
        }
    }
}

pub fn list(obstacles: &[Obstacle]) -> String {
    obstacles.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Who made a Placement, when, and why.
pub fn who(placement: &Placement) -> String {
    let by = placement.spec.by.as_deref().unwrap_or("unknown");
    let since = placement.creation_timestamp().map(|Time(at)| format!(" since {at}")).unwrap_or_default();
    let reason = placement.spec.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("by {by}{since}{reason}")
}

impl Cluster {
    pub async fn read(client: &Client) -> Result<Self> {
        let placements: BTreeMap<String, Placement> = all(client, "Placements").await?;
        let drains = placements.into_values().filter(|one| one.spec.mode == PlacementMode::Drain);
        Ok(Self {
            nodes: all(client, "Nodes").await?,
            speakers: all(client, "SpeakerStates").await?,
            advertisements: all(client, "L2Advertisements").await?,
            drained: drains.map(|one| (one.spec.node.clone(), one)).collect(),
        })
    }

    pub fn known(&self, node: &str) -> Result<()> {
        if !self.nodes.contains_key(node) {
            let names: Vec<&str> = self.names().take(MOST_NAMES).collect();
            let more = if self.nodes.len() > MOST_NAMES { ", ..." } else { "" };
            bail!("no Node has the name '{node}'; there are: {}{more}", names.join(", "))
        }
        Ok(())
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    pub fn drained(&self, node: &str) -> Option<&Placement> {
        self.drained.get(node)
    }

    /// None: it can own the address. A cordoned or drained node can while no other node can; that is an obstacle here.
    pub fn obstacles(&self, name: &str, vip: &VirtualIP) -> Vec<Obstacle> {
        let Some(node) = self.nodes.get(name) else { return vec![Obstacle::NoSpeaker] };
        let names = &vip.spec.l2_advertisements;
        let advertisements: Vec<&L2Advertisement> =
            names.iter().filter_map(|one| self.advertisements.get(one)).collect();
        let selecting: Vec<&L2Advertisement> =
            advertisements.iter().copied().filter(|one| self.selects(one, name, node)).collect();
        let excluded = |node: &Node| node.labels().contains_key(EXCLUDE_LABEL);
        let ignored = selecting.iter().any(|one| one.spec.ignore_exclude_label) || self.nodes.values().all(excluded);
        let speaker = self.speakers.get(name);
        let there = speaker.and_then(|speaker| speaker.status.as_ref()?.drained.as_ref());
        let cordoned = node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
        let obstacles = [
            (vip.spec.announce == Some(Announce::None)).then_some(Obstacle::NotAnnounced),
            (!advertisements.is_empty() && selecting.is_empty()).then(|| Obstacle::NotSelected(names.clone())),
            (excluded(node) && !ignored).then_some(Obstacle::Excluded),
            cordoned.then_some(Obstacle::Cordoned),
            self.drained(name).map(|drained| Obstacle::Drained(who(drained))),
            there.map(|drained| Obstacle::Drained(local::who(drained))),
            speaker.map_or(Some(Obstacle::NoSpeaker), not_ready),
        ];
        obstacles.into_iter().flatten().collect()
    }

    fn selects(&self, advertisement: &L2Advertisement, name: &str, node: &Node) -> bool {
        let spec = &advertisement.spec;
        let matches = |selector: &LabelSelector| {
            Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(node.labels()))
        };
        let selected = spec.node_selectors.is_empty() || spec.node_selectors.iter().any(matches);
        let uplinks = self.speakers.get(name).and_then(|speaker| speaker.status.as_ref());
        let uplink = uplinks.and_then(|status| status.uplinks.first()).map(|uplink| uplink.name.as_str());
        let like = |patterns: &[String]| patterns.iter().any(|one| uplink.is_some_and(|uplink| is_like(uplink, one)));
        let any = spec.interfaces.is_empty() && spec.excluded_interfaces.is_empty();
        let taken = (spec.interfaces.is_empty() || like(&spec.interfaces)) && !like(&spec.excluded_interfaces);
        selected && (any || uplink.is_some() && taken)
    }
}

fn not_ready(speaker: &SpeakerState) -> Option<Obstacle> {
    let conditions = speaker.status.as_ref().map(|status| &status.conditions[..]).unwrap_or_default();
    if let Some(reason) = speaker.stands_by() {
        return Some(Obstacle::StandsBy(reason));
    }
    match conditions.iter().find(|condition| condition.type_ == "Ready") {
        Some(ready) if ready.status == "True" => None,
        Some(ready) => Some(Obstacle::NotReady(ready.reason.clone())),
        None => Some(Obstacle::NotReady("it has no condition Ready".into())),
    }
}

async fn all<K>(client: &Client, kind: &str) -> Result<BTreeMap<String, K>>
where
    K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned,
{
    let listed = Api::<K>::all(client.clone()).list(&ListParams::default()).await;
    let listed = listed.with_context(|| format!("list {kind}"))?;
    Ok(listed.into_iter().map(|object| (object.name_any(), object)).collect())
}

/// Of nodes, in an error.
const MOST_NAMES: usize = 8;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object<K: DeserializeOwned>(name: &str, mut object: Value) -> (String, K) {
        object["metadata"]["name"] = name.into();
        (name.into(), serde_json::from_value(object).unwrap())
    }

    fn speaker(name: &str, ready: &str, reason: &str) -> (String, SpeakerState) {
        let condition = json!({ "type": "Ready", "status": ready, "reason": reason, "message": "",
            "lastTransitionTime": "2026-11-27T00:00:00Z" });
        object(name, json!({ "spec": {}, "status": { "conditions": [condition], "uplinks": [{ "name": "eth0" }] } }))
    }

    fn cluster() -> Cluster {
        let labels = |labels: Value| json!({ "metadata": { "labels": labels } });
        Cluster {
            nodes: [
                object("good", labels(json!({ "zone": "a" }))),
                object("excluded", labels(json!({ "zone": "a", EXCLUDE_LABEL: "" }))),
                object("cordoned", json!({ "spec": { "unschedulable": true } })),
                object("mute", json!({})),
                object("sick", json!({})),
            ]
            .into(),
            speakers: [
                speaker("good", "True", "Ready"),
                speaker("excluded", "True", "Ready"),
                speaker("cordoned", "True", "Ready"),
                speaker("sick", "False", "NotJoined"),
            ]
            .into(),
            advertisements: [
                object("zone", json!({ "spec": { "nodeSelectors": [{ "matchLabels": { "zone": "a" } }] } })),
                object("ignoring", json!({ "spec": { "ignoreExcludeLabel": true, "interfaces": ["eth?"] } })),
                object("other", json!({ "spec": { "excludedInterfaces": ["eth0"] } })),
            ]
            .into(),
            drained: [object(
                "sick",
                json!({ "spec": { "mode": "Drain", "node": "sick", "by": "me", "reason": "disk" } }),
            )]
            .into(),
        }
    }

    fn vip(advertisements: &[&str], announce: Option<&str>) -> VirtualIP {
        let spec = json!({ "address": "192.0.2.1", "pool": "p", "services": [], "l2Advertisements": advertisements, "announce": announce });
        object("192.0.2.1", json!({ "spec": spec })).1
    }

    #[test]
    fn every_obstacle_has_its_name() {
        let cluster = cluster();
        let said = |node: &str, vip: &VirtualIP| list(&cluster.obstacles(node, vip));
        let any = vip(&[], None);
        assert_eq!(said("good", &any), "");
        assert!(said("excluded", &any).contains(EXCLUDE_LABEL));
        assert!(said("cordoned", &any).contains("cordoned"));
        assert!(said("mute", &any).contains("no speaker has reported"));
        let sick = said("sick", &any);
        assert!(sick.contains("drained by me: disk") && sick.contains("not ready (NotJoined)"), "{sick}");
        assert_eq!(cluster.obstacles("good", &vip(&[], Some("None"))), [Obstacle::NotAnnounced]);
        assert_eq!(said("good", &vip(&["zone"], None)), "");
        let zone = cluster.obstacles("cordoned", &vip(&["zone"], None));
        assert_eq!(zone, [Obstacle::NotSelected(vec!["zone".into()]), Obstacle::Cordoned]);
        assert!(zone[0].lasts() && !zone[1].lasts());
    }

    #[test]
    fn l2_advertisements_count_as_they_do_for_speakers() {
        let cluster = cluster();
        let of = |node: &str, names: &[&str]| cluster.obstacles(node, &vip(names, None));
        assert_eq!(of("excluded", &["zone", "ignoring"]), []);
        assert_eq!(of("excluded", &["zone"]), [Obstacle::Excluded]);
        assert_eq!(of("good", &["other"]), [Obstacle::NotSelected(vec!["other".into()])]);
        assert_eq!(of("good", &["gone"]), [], "as if it were not named");
        assert!(
            of("mute", &["ignoring"]).contains(&Obstacle::NotSelected(vec!["ignoring".into()])),
            "no uplink is known"
        );
    }

    #[test]
    fn an_unknown_node_is_named_beside_those_that_are_known() {
        let error = cluster().known("goodd").unwrap_err().to_string();
        assert_eq!(error, "no Node has the name 'goodd'; there are: cordoned, excluded, good, mute, sick");
        assert!(cluster().known("good").is_ok());
    }
}
