//! View -> members of a ring: pods per node that take part, and which of these nodes get no rows.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use super::maglev::Members;
use crate::view::View;
use crate::view::endpoints::Pod;

/// The traffic that a node may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficState {
    /// Rows of its own.
    NewFlows,
    /// Packets of flows that it has: it may be an alternate.
    ExistingOnly,
    None,
}

/// The traffic states of all nodes; a node that is in neither set takes new flows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficStates {
    /// [`TrafficState::None`]: the kernel does not answer, or it does but no program of ours has answered since (a silent speaker alone
    /// is another state).
    pub no_flows: BTreeSet<String>,
    /// [`TrafficState::ExistingOnly`]: the kernel answers, but the speaker is silent or its view stale. Its flows live.
    pub existing_only: BTreeSet<String>,
    /// Those of `no_flows` that answered until lately, with our program: their links may be back in a moment, and their flows live.
    pub lost: BTreeSet<String>,
}

impl TrafficStates {
    pub fn of(&self, node: &str) -> TrafficState {
        match (self.no_flows.contains(node), self.existing_only.contains(node)) {
            (true, _) => TrafficState::None,
            (false, true) => TrafficState::ExistingOnly,
            (false, false) => TrafficState::NewFlows,
        }
    }

    pub fn takes_new_flows(&self, node: &str) -> bool {
        self.of(node) == TrafficState::NewFlows
    }

    /// The node may be searched for flows.
    pub fn keeps_flows(&self, node: &str) -> bool {
        self.of(node) != TrafficState::None
    }
}

/// Nodes that keep what they have and take no new flows: by their traffic state, or because their object was deleted.
pub(super) fn existing_only(view: &View, traffic_states: &TrafficStates) -> BTreeSet<String> {
    let closed = |name: &&String| !traffic_states.takes_new_flows(name) || !view.is_member(name);
    view.nodes().keys().filter(closed).cloned().collect()
}

/// Nodes with the exclude label. Whether it is heeded is a question of the service port: [`Chosen::excluded_take`].
pub(super) fn excluded(view: &View) -> BTreeSet<String> {
    view.nodes().iter().filter(|(_, node)| node.excluded).map(|(name, _)| name.clone()).collect()
}

/// Which pods take part in a ring, and whether the service port takes new flows.
///
/// The first of these that there is:
/// 1. ready pods that have started; if there are none, pods that serve while they terminate (KEP-1669). On nodes that take new flows.
/// 2. The same on nodes that keep existing flows only: their kernels go on translating.
/// 3. Ready pods that have not started ([`crate::startup`]), on nodes as in 1., then as in 2.: their own resets are the answer.
/// 4. Any other pod whose node's kernel answers. The service port takes no new flows: no pod is ready, so SYNs are refused, but open flows
///    live on. (All pods may fail one probe at the same moment, or the API server may not have received the status of their nodes.)
/// 5. No node answers. The ring is kept as it is, the nodes may be back in a moment.
///
/// The pods of a lost node stay members, so that the loss moves no row but the node's own. That must hold as well when the API server,
/// 40 s later, calls them unready: so where a lost node has no ready pod its unready ones count.
///
/// A node with the exclude label is treated as lost, so that the label as well moves no row but the node's own; unless no
/// other node has a ready pod: then the label is ignored. `ignores_label`: it is in any case, because an L2Advertisement of the VIP says so.
///
/// The pods of a node whose object was deleted take no part.
pub(super) fn members(pods: &[Pod<'_>], ignores_label: bool, view: &View, traffic_states: &TrafficStates) -> Chosen {
    let pods: Vec<Pod<'_>> = pods.iter().filter(|pod| view.is_member(pod.node)).copied().collect();
    let is_excluded = |pod: &Pod<'_>| !ignores_label && view.nodes().get(pod.node).is_some_and(|node| node.excluded);
    let takes_new_flows = |pod: &Pod<'_>| traffic_states.takes_new_flows(pod.node);
    let heeded = pods.iter().any(|pod| has_started(pod) && takes_new_flows(pod) && !is_excluded(pod));
    let is_wanted = |pod: &Pod<'_>| takes_new_flows(pod) && !(heeded && is_excluded(pod));
    let answers = |pod: &Pod<'_>| traffic_states.keeps_flows(pod.node);

    let mut no_new_flows = false;
    let mut has_rows: Rule<'_> = &is_wanted;
    let mut counts = BTreeMap::new();
    let accepting: [fn(&Pod<'_>) -> bool; 2] = [has_started, is_last_resort];
    let tiers: [(Rule<'_>, &[_]); 4] =
        [(&is_wanted, &accepting), (&answers, &accepting), (&is_wanted, &[is_ready]), (&answers, &[is_ready])];
    for (rule, choices) in tiers {
        has_rows = rule;
        counts = first(&pods, rule, choices);
        if !counts.is_empty() {
            break;
        }
    }
    if counts.is_empty() {
        counts = count(pods.iter().filter(|pod| answers(pod)));
        no_new_flows = !counts.is_empty();
    }
    if counts.is_empty() {
        counts = first(&pods, &|_| true, &[has_started, is_last_resort, is_ready]);
    } else {
        let stays = |pod: &Pod<'_>| is_ready(pod) || !pod.conditions.terminating;
        let lost = |pod: &&Pod<'_>| !has_rows(pod) && !takes_new_flows(pod) && stays(pod);
        counts.extend(count(pods.iter().filter(lost)));
        counts.extend(count(pods.iter().filter(|pod| !has_rows(pod) && has_started(pod))));
    }
    let rowless: BTreeSet<&str> = pods.iter().filter(|pod| !has_rows(pod)).map(|pod| pod.node).collect();
    let members = counts.into_iter().map(|(node, pods)| (String::from(node), pods, rowless.contains(node)));
    Chosen { members: Members::new(members), no_new_flows, excluded_take: ignores_label || !heeded }
}

/// For a service without pods: its last ones, without new flows. They may live (its selector was changed, or their labels), and with them
/// their open flows; nodes refuse the packets of pods that ended. `None` if no node of them is left.
pub(super) fn last(last: &Members, view: &View, traffic_states: &TrafficStates) -> Option<Chosen> {
    let known = || last.iter().filter(|(node, _)| view.is_member(node));
    let answers = |node: &str| traffic_states.keeps_flows(node);
    let none_answers = !known().any(|(node, _)| answers(node));
    let members = known().map(|(node, member)| (node.into(), member.pods, !none_answers && !answers(node)));
    let members = Members::new(members);
    (members.pods() > 0).then_some(Chosen { members, no_new_flows: true, excluded_take: false })
}

pub(super) struct Chosen {
    pub members: Members,
    /// No pod is ready: open flows only.
    pub no_new_flows: bool,
    /// The exclude label is not heeded: an L2Advertisement says so, or no other node has a pod that takes new flows.
    pub excluded_take: bool,
}

/// Also while it terminates, as in kube-proxy: the API calls a pod that terminates ready only where the Service has
/// publishNotReadyAddresses.
pub(crate) fn is_ready(pod: &Pod<'_>) -> bool {
    pod.conditions.ready
}

pub(crate) fn has_started(pod: &Pod<'_>) -> bool {
    is_ready(pod) && pod.started
}

pub(crate) fn is_last_resort(pod: &Pod<'_>) -> bool {
    pod.conditions.serving && pod.conditions.terminating
}

/// Which pods may have rows.
type Rule<'a> = &'a dyn Fn(&Pod<'_>) -> bool;

/// By node, the pods of the first choice that has any.
fn first<'a>(pods: &[Pod<'a>], has_rows: Rule<'_>, choices: &[fn(&Pod<'_>) -> bool]) -> BTreeMap<&'a str, u32> {
    let chosen = choices.iter().map(|takes| count(pods.iter().filter(|pod| has_rows(pod) && takes(pod))));
    chosen.into_iter().find(|counts| !counts.is_empty()).unwrap_or_default()
}

fn count<'a, 'b: 'a>(pods: impl Iterator<Item = &'a Pod<'b>>) -> BTreeMap<&'b str, u32> {
    let mut counts = BTreeMap::new();
    for pod in pods {
        *counts.entry(pod.node).or_insert(0) += 1;
    }
    counts
}
