//! UDP flows whose conntrack entries kube-proxy may delete although their pod serves.
//!
//! While the API server does not receive this node's status, kube-proxy here reads that the node's pods do not serve and deletes
//! the conntrack entries of their UDP flows, also of those to a VIP (`CleanStaleEntries`, pkg/proxy/conntrack, since 1.32). The
//! next datagram would begin a new flow, to any pod on any node. So under [`Uncertainty`] our own table pins each flow to its
//! pod, and its next datagram makes the same entry again.

use alloc::collections::BTreeMap;
use core::net::Ipv4Addr;

use ebpf_common::FlowTuple;

use super::{Endpoints, Flow, Plan, Uncertainty};
use crate::time::{Duration, Instant};

/// UDP flows, and the pod's address and port of each.
pub type Targets = BTreeMap<FlowTuple, (Ipv4Addr, u16)>;

#[derive(Debug, Default)]
pub struct UdpPins {
    pub uncertainty: Uncertainty,
    flows: BTreeMap<FlowTuple, Seen>,
    /// Of the last plan.
    was_uncertain: bool,
}

#[derive(Debug)]
struct Seen {
    flow: Flow,
    at: Instant,
}

/// What a scan of conntrack changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PinChanges {
    /// The nftables table has to change.
    pub any: bool,
    /// Flows beyond [`UdpPins::MAX`].
    pub left_out: usize,
}

impl UdpPins {
    /// Flows that the table pins at most.
    pub const MAX: usize = 16_384;
    /// The lifetime of the conntrack entry of a silent UDP flow (`nf_conntrack_udp_timeout_stream`).
    const SILENCE: Duration = Duration::from_secs(120);

    /// Flows as conntrack had them, judged by the present view.
    pub fn on_scan<'a>(
        &mut self,
        flows: impl IntoIterator<Item = &'a Flow>,
        endpoints: &Endpoints,
        now: Instant,
    ) -> PinChanges {
        let mut changes = PinChanges::default();
        if !self.uncertainty.holds(now) {
            return changes;
        }
        // One request and its response, as in DNS, needs no pin.
        let to_pin = flows.into_iter().filter(|flow| flow.tcp.is_none() && flow.assured && endpoints.serves_here(flow));
        for &flow in to_pin {
            if self.flows.len() >= Self::MAX && !self.flows.contains_key(&flow.tuple) {
                changes.left_out += 1;
                continue;
            }
            let before = self.flows.insert(flow.tuple, Seen { flow, at: now });
            changes.any |= before.is_none_or(|before| before.flow.pod != flow.pod);
        }
        changes
    }

    /// Completes a plan: how its flows are judged, and which are pinned.
    pub fn complete(&mut self, plan: Plan, now: Instant) -> Plan {
        self.was_uncertain = self.uncertainty.holds(now);
        let endpoints = plan.endpoints.uncertain(self.was_uncertain);
        let stays = |seen: &Seen| now.since(seen.at) < Self::SILENCE && endpoints.serves_here(&seen.flow);
        self.flows.retain(|_, seen| self.was_uncertain && stays(seen));
        Plan { udp_pins: self.targets(), endpoints, ..plan }
    }

    /// Whether time alone has changed the result of [`UdpPins::complete`].
    pub fn is_due(&self, now: Instant) -> bool {
        self.uncertainty.holds(now) != self.was_uncertain
            || self.flows.values().any(|seen| now.since(seen.at) >= Self::SILENCE)
    }

    /// Flows of this node that the look of this time did not find in conntrack.
    pub fn missed(&self, scan: Instant) -> impl Iterator<Item = FlowTuple> {
        self.flows.iter().filter(move |(_, seen)| seen.at != scan).map(|(tuple, _)| *tuple)
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
    fn under_uncertainty_flows_of_this_nodes_pods_are_pinned() {
        let mut udp_pins = UdpPins::default();
        let serving = || plan([ready("a", 1), ready("b", 2)]);
        let silent = || plan([pod("a", 1, UNREADY), ready("b", 2)]);
        let endpoints = serving().endpoints;
        let udp = from_port(40_000);
        let changes = PinChanges { any: true, left_out: 0 };
        assert_eq!(udp_pins.on_scan(&[udp], &endpoints, at(0)), PinChanges::default(), "no uncertainty");

        udp_pins.uncertainty.set_lagging(true, at(1));
        assert!(udp_pins.is_due(at(1)), "flows are judged otherwise from now on");
        let elsewhere = Flow { pod: (Ipv4Addr::new(10, 0, b'b', 2), 5353), ..from_port(1) };
        let other_vip = Flow { tuple: FlowTuple { dst: [192, 0, 2, 222], ..udp.tuple }, ..udp };
        let none = [Flow { assured: false, ..from_port(2) }, flow(1, Protocol::Tcp, 8080), elsewhere, other_vip];
        assert_eq!(udp_pins.on_scan(&none, &endpoints, at(1)), PinChanges::default());
        assert_eq!(udp_pins.on_scan(&[udp], &endpoints, at(1)), changes);
        assert_eq!(udp_pins.on_scan(&[udp], &endpoints, at(2)), PinChanges::default());
        let complete = udp_pins.complete(silent(), at(3));
        assert_eq!(complete.udp_pins, [(udp.tuple, udp.pod)].into());
        assert!(!complete.endpoints.lost(&udp));
        assert!(!udp_pins.is_due(at(3)));
        assert_eq!(udp_pins.missed(at(2)).count(), 0);

        // Conntrack does not have it any more, the table does; until its pod is gone from the view.
        assert_eq!(udp_pins.on_scan(&[], &endpoints, at(4)), PinChanges::default());
        assert!(udp_pins.missed(at(4)).eq([udp.tuple]), "it is still this node's");
        assert_eq!(udp_pins.complete(silent(), at(4)).udp_pins.len(), 1);
        assert!(udp_pins.complete(plan([ready("b", 2)]), at(5)).udp_pins.is_empty());
    }

    #[test]
    fn without_uncertainty_or_traffic_flows_are_not_pinned() {
        let mut udp_pins = UdpPins::default();
        let (udp, serving) = (from_port(40_000), || plan([ready("a", 1)]));
        udp_pins.uncertainty.set_lagging(true, at(0));
        udp_pins.on_scan(&[udp], &serving().endpoints, at(0));
        assert_eq!(udp_pins.complete(serving(), at(0)).udp_pins.len(), 1);
        assert!(!udp_pins.is_due(at(119)) && udp_pins.is_due(at(120)));
        assert!(udp_pins.complete(serving(), at(120)).udp_pins.is_empty());

        udp_pins.on_scan(&[udp], &serving().endpoints, at(121));
        udp_pins.uncertainty.set_lagging(false, at(122));
        assert_eq!(udp_pins.complete(serving(), at(122)).udp_pins.len(), 1);
        assert!(!udp_pins.is_due(at(151)) && udp_pins.is_due(at(152)));
        let complete = udp_pins.complete(plan([pod("a", 1, UNREADY)]), at(152));
        assert!(complete.udp_pins.is_empty() && complete.endpoints.lost(&udp));
        assert!(!udp_pins.is_due(at(1000)));
    }

    #[test]
    fn there_is_a_limit() {
        let mut udp_pins = UdpPins::default();
        udp_pins.uncertainty.set_lagging(true, at(0));
        let endpoints = plan([ready("a", 1)]).endpoints;
        let flows: Vec<Flow> = (0..=UdpPins::MAX).map(|port| from_port(port as u16)).collect();
        assert_eq!(udp_pins.on_scan(&flows, &endpoints, at(0)), PinChanges { any: true, left_out: 1 });
        assert_eq!(udp_pins.on_scan(&flows, &endpoints, at(1)), PinChanges { any: false, left_out: 1 });
        assert_eq!(udp_pins.complete(plan([ready("a", 1)]), at(1)).udp_pins.len(), UdpPins::MAX);
    }
}
