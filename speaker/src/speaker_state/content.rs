//! Pure: what a SpeakerState says, by what was found.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use sheave_api::local::LocalDrain;
use sheave_api::speakerstate::most;
use sheave_api::{SpeakerStateStatus, UplinkState};

use super::survey::HostFacts;
use crate::health::{Cause, Check};

/// Everything that is found on a node at one moment.
pub struct Facts<'a> {
    pub host: &'a HostFacts,
    /// VIPs of the host speaker beside this one.
    pub of_host_speaker: BTreeSet<Ipv4Addr>,
    /// The packet path is attached to the uplink.
    pub attached: bool,
    pub not_ready: Vec<Cause>,
    /// What does not make the node unready.
    pub notes: Vec<Cause>,
    pub limits: Vec<String>,
    pub drained: Option<LocalDrain>,
    /// Services with policy Local and pods here, at this node's address.
    pub local_services: Vec<String>,
}

/// `known`: the conditions as they stand in the API; one that stays True or False keeps its time.
pub fn status(facts: &Facts, known: &[Condition], now: Timestamp) -> SpeakerStateStatus {
    let host = facts.host;
    let entry = if facts.attached { ENTRY_XDP_NATIVE } else { ENTRY_NONE };
    SpeakerStateStatus {
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        kernel: host.kernel.clone(),
        entry: Some(entry.to_owned()),
        service_proxy: host.service_proxy.clone(),
        cni: host.cni.map(str::to_owned),
        uplinks: host.uplink.iter().map(|uplink| with_addresses(uplink, &facts.of_host_speaker)).collect(),
        drained: facts.drained.clone(),
        listening: host.listening.clone(),
        local_services: facts.local_services.clone(),
        limits_reached: facts.limits.iter().take(most::ENTRIES).cloned().collect(),
        conditions: conditions(facts).into_iter().map(|condition| condition.since(known, now)).collect(),
    }
}

/// The controller gives out none of an uplink's addresses.
fn with_addresses(uplink: &UplinkState, others: &BTreeSet<Ipv4Addr>) -> UplinkState {
    let own = &uplink.addresses;
    let others = others.iter().map(Ipv4Addr::to_string).filter(|other| !own.contains(other));
    UplinkState { addresses: own.iter().cloned().chain(others).take(most::ENTRIES).collect(), ..uplink.clone() }
}

/// A condition without its time.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    kind: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

/// `Ready` first, then each check.
fn conditions(facts: &Facts) -> Vec<Finding> {
    let causes = |check: Check| {
        let all = facts.not_ready.iter().chain(&facts.notes);
        all.copied().filter(|cause| cause.check() == check).collect::<Vec<_>>()
    };
    let host = &facts.host.dropping;
    let no_keys = facts.not_ready.iter().copied().find(|cause| matches!(cause, Cause::Keys(_)));
    let stands_by = facts.not_ready.iter().chain(&facts.notes).copied().find(|cause| cause.stands_by());
    let ready = match stands_by {
        Some(cause) if facts.not_ready.is_empty() => Finding { status: "True", ..finding("Ready", &[cause]) },
        _ => finding("Ready", &facts.not_ready),
    };
    let checks = Check::ALL.into_iter().map(|check| match no_keys {
        _ if check == Check::ForwardingAllowed => forwarding(host),
        _ if let Some(cause) = stands_by => Finding {
            kind: check.as_str(),
            status: "Unknown",
            reason: cause.label(),
            message: "not looked at: this speaker serves nothing".to_owned(),
        },
        // Nothing has begun that could be in order or not.
        Some(cause) if cause.check() != check => Finding {
            kind: check.as_str(),
            status: "Unknown",
            reason: cause.label(),
            message: "not known before the speaker has keys".to_owned(),
        },
        _ => finding(check.as_str(), &causes(check)),
    });
    std::iter::once(ready).chain(checks).collect()
}

/// A chain's own rules may accept our packets: that is not known.
fn forwarding(dropping: &[String]) -> Finding {
    let kind = Check::ForwardingAllowed.as_str();
    if dropping.is_empty() {
        return finding(kind, &[]);
    }
    let cause = Cause::ForwardPolicyDrop;
    let mut named = dropping.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    if let Some(more @ 1..) = dropping.len().checked_sub(NAMED) {
        named.push_str(&format!("; and {more} more"));
    }
    let message = format!("{}: {}: {named}", cause.label(), cause.meaning());
    Finding { kind, status: "Unknown", reason: cause.label(), message }
}

/// The first cause gives the reason, and the message has all.
fn finding(kind: &'static str, causes: &[Cause]) -> Finding {
    let Some(first) = causes.first() else {
        return Finding { kind, status: "True", reason: OK, message: String::new() };
    };
    let mut lines: Vec<String> = Vec::new();
    for cause in causes {
        let line = format!("{}: {}", cause.label(), cause.meaning());
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    Finding { kind, status: "False", reason: first.label(), message: lines.join("; ") }
}

impl Finding {
    fn since(self, known: &[Condition], now: Timestamp) -> Condition {
        let before = known.iter().find(|before| before.type_ == self.kind && before.status == self.status);
        // Kubernetes keeps whole seconds.
        let now = || Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
        Condition {
            type_: self.kind.to_owned(),
            status: self.status.to_owned(),
            reason: self.reason.to_owned(),
            message: self.message,
            last_transition_time: before.map_or_else(now, |before| before.last_transition_time.clone()),
            observed_generation: None,
        }
    }
}

/// Chains that a message names. A name of nftables has at most 255 bytes.
const NAMED: usize = 8;
/// As `/readyz` says it.
const OK: &str = "ok";
/// The loader asks for the driver's hook and takes no other.
const ENTRY_XDP_NATIVE: &str = "xdp-native";
const ENTRY_NONE: &str = "none";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::source::Problem;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn host() -> HostFacts {
        HostFacts {
            kernel: Some("6.12.1".into()),
            uplink: Some(UplinkState { name: "eth0".into(), ..UplinkState::default() }),
            service_proxy: Some("nftables".into()),
            accept_mark: None,
            cni: Some("flannel"),
            dropping: vec![],
            listening: None,
        }
    }

    fn facts<'a>(host: &'a HostFacts, not_ready: &[Cause], notes: &[Cause]) -> Facts<'a> {
        let attached = !not_ready.contains(&Cause::NotAttached);
        let (not_ready, notes) = (not_ready.to_vec(), notes.to_vec());
        let (of_host_speaker, limits, local_services) = Default::default();
        Facts { host, of_host_speaker, attached, not_ready, notes, limits, drained: None, local_services }
    }

    fn condition<'a>(status: &'a SpeakerStateStatus, kind: &str) -> (&'a str, &'a str, &'a str) {
        let found = status.conditions.iter().find(|condition| condition.type_ == kind).expect("each is listed");
        (&found.status, &found.reason, &found.message)
    }

    #[test]
    fn a_node_in_order_says_so_of_each_check() {
        let host = host();
        let status = status(&facts(&host, &[], &[]), &[], at("2026-11-27T00:00:00.9Z"));
        assert_eq!(status.entry.as_deref(), Some("xdp-native"));
        assert_eq!((status.service_proxy.as_deref(), status.cni.as_deref()), (Some("nftables"), Some("flannel")));
        let kinds: Vec<&str> = status.conditions.iter().map(|condition| condition.type_.as_str()).collect();
        let checks = Check::ALL.map(Check::as_str);
        assert_eq!(kinds, [&["Ready"][..], &checks[..]].concat());
        assert!(status.conditions.iter().all(|condition| condition.status == "True" && condition.reason == "ok"));
        let time = serde_json::to_value(&status.conditions[0].last_transition_time).unwrap();
        assert_eq!(time, "2026-11-27T00:00:00Z", "whole seconds, as the API server keeps them");
    }

    #[test]
    fn a_cause_is_the_reason_of_its_check_and_of_readiness() {
        let host = host();
        let causes = [Cause::NftFailing, Cause::NotAttached];
        let status = status(&facts(&host, &causes, &[]), &[], at("2026-11-27T00:00:00Z"));
        assert_eq!(status.entry.as_deref(), Some("none"));
        let (ready, reason, message) = condition(&status, "Ready");
        assert_eq!((ready, reason), ("False", "nft_failing"));
        assert!(message.contains("nft_failing: ") && message.contains("; not_attached: "), "{message}");
        assert_eq!(condition(&status, "ViewApplied").1, "nft_failing");
        let (attached, reason, message) = condition(&status, "PacketPathAttached");
        assert_eq!((attached, reason), ("False", "not_attached"));
        assert!(!message.contains("nft_failing"), "{message}");
        assert_eq!(condition(&status, "LinkUp").0, "True");
    }

    #[test]
    fn a_drain_on_the_node_is_shown_as_it_was_made() {
        let (host, since) = (host(), Time(at("2026-11-27T00:00:00Z")));
        let drained = Some(LocalDrain { by: "root".into(), reason: Some("disk".into()), since });
        let facts = Facts { drained: drained.clone(), ..facts(&host, &[], &[]) };
        let status = status(&facts, &[], at("2026-11-27T00:00:01Z"));
        assert_eq!(status.drained, drained);
        assert_eq!(condition(&status, "Ready").0, "True", "it may own VIPs, the last of all");
    }

    /// They move between the members' nodes: each names them all.
    #[test]
    fn the_host_speakers_vips_are_addresses_of_the_uplink() {
        let mut host = host();
        let addresses = |vips: &[&str]| vips.iter().map(|vip| vip.to_string()).collect::<Vec<_>>();
        host.uplink.as_mut().unwrap().addresses = addresses(&["192.0.2.1", "192.0.2.100"]);
        let of_host_speaker = [100, 101].map(|last| Ipv4Addr::new(192, 0, 2, last)).into();
        let facts = Facts { of_host_speaker, ..facts(&host, &[], &[]) };
        let status = status(&facts, &[], at("2026-11-27T00:00:00Z"));
        assert_eq!(status.uplinks[0].addresses, addresses(&["192.0.2.1", "192.0.2.100", "192.0.2.101"]));
    }

    #[test]
    fn a_note_leaves_the_node_ready() {
        let host = host();
        let notes = [Cause::PeersUnverified, Cause::ConntrackFull, Cause::ConntrackNearlyFull];
        let status = status(&facts(&host, &[], &notes), &[], at("2026-11-27T00:00:00Z"));
        assert_eq!(condition(&status, "Ready").0, "True");
        assert_eq!(
            (condition(&status, "PeersReached").0, condition(&status, "PeersReached").1),
            ("False", "peers_unverified")
        );
        assert_eq!(condition(&status, "ConntrackHasRoom").1, "conntrack_full");
    }

    /// Not a node that looks in order because nothing has begun.
    #[test]
    fn before_there_are_keys_nothing_else_is_known() {
        let host = HostFacts::default();
        let status = status(&facts(&host, &[Cause::Keys(Problem::Missing)], &[]), &[], at("2026-11-27T00:00:00Z"));
        assert_eq!((condition(&status, "Ready").0, condition(&status, "Ready").1), ("False", "keys_missing"));
        assert_eq!(condition(&status, "KeysValid").0, "False");
        assert_eq!((condition(&status, "LinkUp").0, condition(&status, "LinkUp").1), ("Unknown", "keys_missing"));
        assert_eq!((status.kernel, status.uplinks.len()), (None, 0), "what could not be read is left out");
    }

    /// Nothing of it is known here, and none of it is out of order.
    #[test]
    fn beside_a_host_speaker_it_is_ready_by_that_reason_while_that_one_runs() {
        let host = host();
        let beside = Facts { attached: false, ..facts(&host, &[], &[Cause::HostSpeaker]) };
        let ready = status(&beside, &[], at("2026-11-27T00:00:00Z"));
        assert_eq!(ready.entry.as_deref(), Some("none"));
        assert_eq!((condition(&ready, "Ready").0, condition(&ready, "Ready").1), ("True", "HostSpeaker"));
        let attached = condition(&ready, "PacketPathAttached");
        assert_eq!((attached.0, attached.1), ("Unknown", "HostSpeaker"));
        assert_eq!(condition(&ready, "ForwardingAllowed").0, "True", "looked at all the same");
        let stopped = Facts { not_ready: vec![Cause::HostSpeakerStopped], ..beside };
        let stopped = status(&stopped, &ready.conditions, at("2026-11-27T00:01:00Z"));
        assert_eq!((condition(&stopped, "Ready").0, condition(&stopped, "Ready").1), ("False", "HostSpeakerStopped"));
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let host = host();
        let first = status(&facts(&host, &[Cause::Joining, Cause::NotSynced], &[]), &[], at("2026-11-27T00:00:00Z"));
        let again = status(
            &facts(&host, &[Cause::Joining, Cause::NotSynced], &[]),
            &first.conditions,
            at("2026-11-27T00:00:07Z"),
        );
        assert_eq!(again, first, "nothing to write");
        let other = status(&facts(&host, &[Cause::NotSynced], &[]), &first.conditions, at("2026-11-27T00:00:08Z"));
        assert_eq!(other.conditions[0].reason, "not_synced");
        assert_eq!(other.conditions[0].last_transition_time, first.conditions[0].last_transition_time);
        let ready = status(&facts(&host, &[], &[]), &other.conditions, at("2026-11-27T00:00:09Z"));
        assert_eq!(ready.conditions[0].last_transition_time.0, at("2026-11-27T00:00:09Z"));
    }

    #[test]
    fn a_chain_that_drops_is_named_and_the_node_stays_ready() {
        let chain = "chain f of table inet somebody (hook forward, priority 5, handle 1)";
        let host = HostFacts { dropping: vec![chain.into()], ..host() };
        let status = status(&facts(&host, &[], &[]), &[], at("2026-11-27T00:00:00Z"));
        let (allowed, reason, message) = condition(&status, "ForwardingAllowed");
        assert_eq!((allowed, reason), ("Unknown", "forward_policy_drop"));
        assert!(message.ends_with(chain), "{message}");
        assert_eq!(condition(&status, "Ready").0, "True");
    }

    /// The API server refuses longer ones, and with them the whole status.
    #[test]
    fn with_all_causes_at_once_it_is_within_the_limits() {
        let host = HostFacts { dropping: vec!["x".repeat(600); 100], ..host() };
        let mut facts = facts(&host, &[Cause::NotAttached, Cause::NotSynced], &[Cause::ConntrackFull]);
        facts.limits = (0..100).map(|number| format!("limit_{number}")).collect();
        let status = status(&facts, &[], at("2026-11-27T00:00:00Z"));
        assert_eq!(status.limits_reached.len(), most::ENTRIES);
        assert!(status.conditions.len() <= 16);
        let is_reason = |c: char| c.is_ascii_alphanumeric() || c == '_';
        assert!(
            status.conditions.iter().all(|one| one.reason.chars().all(is_reason) && one.message.len() <= most::MESSAGE)
        );
    }
}
