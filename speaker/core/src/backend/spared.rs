//! UDP flows that conntrack may be told to forget although their pod serves.
//!
//! When Kubernetes has not heard this node, kube-proxy here learns that the node's pods do not serve and deletes the conntrack entries of
//! their UDP flows, also of those to a VIP (`CleanStaleEntries`, pkg/proxy/conntrack, since 1.32). The next datagram would be that of a
//! new flow, for any pod on any node. So while there is [`Doubt`] our own table says whose each flow is, and its next datagram makes the
//! same entry again.

use alloc::collections::BTreeMap;
use core::net::Ipv4Addr;

use ebpf_common::FlowTuple;

use super::{Doubt, Endpoints, Flow, Plan};
use crate::time::{Duration, Instant};

/// UDP flows, and the pod's address and port of each.
pub type Targets = BTreeMap<FlowTuple, (Ipv4Addr, u16)>;

#[derive(Debug, Default)]
pub struct Spared {
    pub doubt: Doubt,
    flows: BTreeMap<FlowTuple, Seen>,
    /// Of the last plan.
    doubted: bool,
}

#[derive(Debug)]
struct Seen {
    flow: Flow,
    at: Instant,
}

/// What a look at conntrack changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// The table has to learn something.
    pub any: bool,
    /// Flows beyond [`Spared::MAX`].
    pub left_out: usize,
}

impl Spared {
    /// Flows that the table is told of.
    pub const MAX: usize = 16_384;
    /// As long as conntrack remembers a UDP flow that is silent (`nf_conntrack_udp_timeout_stream`).
    const SILENCE: Duration = Duration::from_secs(120);

    /// Flows as conntrack had them, judged by the present view.
    pub fn looked<'a>(
        &mut self,
        flows: impl IntoIterator<Item = &'a Flow>,
        endpoints: &Endpoints,
        now: Instant,
    ) -> News {
        let mut news = News::default();
        if !self.doubt.holds(now) {
            return news;
        }
        // A question and its answer, as of DNS, need no sparing.
        let to_spare =
            flows.into_iter().filter(|flow| flow.tcp.is_none() && flow.assured && endpoints.serves_here(flow));
        for &flow in to_spare {
            if self.flows.len() >= Self::MAX && !self.flows.contains_key(&flow.tuple) {
                news.left_out += 1;
                continue;
            }
            let before = self.flows.insert(flow.tuple, Seen { flow, at: now });
            news.any |= before.is_none_or(|before| before.flow.pod != flow.pod);
        }
        news
    }

    /// Completes a plan: by what its flows are judged, and which are spared.
    pub fn complete(&mut self, plan: Plan, now: Instant) -> Plan {
        self.doubted = self.doubt.holds(now);
        let endpoints = plan.endpoints.doubted(self.doubted);
        let stays = |seen: &Seen| now.since(seen.at) < Self::SILENCE && endpoints.serves_here(&seen.flow);
        self.flows.retain(|_, seen| self.doubted && stays(seen));
        Plan { spared: self.targets(), endpoints, ..plan }
    }

    /// Whether time alone has changed what [`Spared::complete`] would say.
    pub fn is_due(&self, now: Instant) -> bool {
        self.doubt.holds(now) != self.doubted || self.flows.values().any(|seen| now.since(seen.at) >= Self::SILENCE)
    }

    /// Flows of this node that the look of this time did not find in conntrack.
    pub fn missed(&self, look: Instant) -> impl Iterator<Item = FlowTuple> {
        self.flows.iter().filter(move |(_, seen)| seen.at != look).map(|(tuple, _)| *tuple)
    }

    fn targets(&self) -> Targets {
        self.flows.iter().map(|(tuple, seen)| (*tuple, seen.flow.pod)).collect()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::super::tests::{flow, plan, ready};
    use super::*;
    use crate::view::Protocol;
    use crate::view::example::{UNREADY, pod};

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    fn from_port(port: u16) -> Flow {
        let mut flow = flow(1, Protocol::Udp, 5353);
        flow.tuple.src_port = port.to_be_bytes();
        flow
    }

    #[test]
    fn while_there_is_doubt_flows_of_this_nodes_pods_are_kept_in_the_table() {
        let mut spared = Spared::default();
        let serving = || plan([ready("a", 1), ready("b", 2)]);
        let silent = || plan([pod("a", 1, UNREADY), ready("b", 2)]);
        let endpoints = serving().endpoints;
        let udp = from_port(40_000);
        let news = News { any: true, left_out: 0 };
        assert_eq!(spared.looked(&[udp], &endpoints, at(0)), News::default(), "nobody doubts");

        spared.doubt.see_view(true, at(1));
        assert!(spared.is_due(at(1)), "flows are judged otherwise from now on");
        let elsewhere = Flow { pod: (Ipv4Addr::new(10, 0, b'b', 2), 5353), ..from_port(1) };
        let other_vip = Flow { tuple: FlowTuple { dst: [192, 0, 2, 222], ..udp.tuple }, ..udp };
        let none = [Flow { assured: false, ..from_port(2) }, flow(1, Protocol::Tcp, 8080), elsewhere, other_vip];
        assert_eq!(spared.looked(&none, &endpoints, at(1)), News::default());
        assert_eq!(spared.looked(&[udp], &endpoints, at(1)), news);
        assert_eq!(spared.looked(&[udp], &endpoints, at(2)), News::default());
        let complete = spared.complete(silent(), at(3));
        assert_eq!(complete.spared, [(udp.tuple, udp.pod)].into());
        assert!(!complete.endpoints.lost(&udp));
        assert!(!spared.is_due(at(3)));
        assert_eq!(spared.missed(at(2)).count(), 0);

        // Conntrack does not have it any more, the table does; until its pod is gone from the view.
        assert_eq!(spared.looked(&[], &endpoints, at(4)), News::default());
        assert!(spared.missed(at(4)).eq([udp.tuple]), "it is still this node's");
        assert_eq!(spared.complete(silent(), at(4)).spared.len(), 1);
        assert!(spared.complete(plan([ready("b", 2)]), at(5)).spared.is_empty());
    }

    #[test]
    fn without_doubt_or_a_sign_of_life_they_are_not_kept() {
        let mut spared = Spared::default();
        let (udp, serving) = (from_port(40_000), || plan([ready("a", 1)]));
        spared.doubt.see_view(true, at(0));
        spared.looked(&[udp], &serving().endpoints, at(0));
        assert_eq!(spared.complete(serving(), at(0)).spared.len(), 1);
        assert!(!spared.is_due(at(119)) && spared.is_due(at(120)));
        assert!(spared.complete(serving(), at(120)).spared.is_empty());

        spared.looked(&[udp], &serving().endpoints, at(121));
        spared.doubt.see_view(false, at(122));
        assert_eq!(spared.complete(serving(), at(122)).spared.len(), 1);
        assert!(!spared.is_due(at(151)) && spared.is_due(at(152)));
        let complete = spared.complete(plan([pod("a", 1, UNREADY)]), at(152));
        assert!(complete.spared.is_empty() && complete.endpoints.lost(&udp));
        assert!(!spared.is_due(at(1000)));
    }

    #[test]
    fn there_is_a_limit() {
        let mut spared = Spared::default();
        spared.doubt.see_view(true, at(0));
        let endpoints = plan([ready("a", 1)]).endpoints;
        let flows: Vec<Flow> = (0..=Spared::MAX).map(|port| from_port(port as u16)).collect();
        assert_eq!(spared.looked(&flows, &endpoints, at(0)), News { any: true, left_out: 1 });
        assert_eq!(spared.looked(&flows, &endpoints, at(1)), News { any: false, left_out: 1 });
        assert_eq!(spared.complete(plan([ready("a", 1)]), at(1)).spared.len(), Spared::MAX);
    }
}
