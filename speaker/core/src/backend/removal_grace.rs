//! Endpoint removal grace: new TCP connections for pods that were ready a moment ago and that the view no longer lists.
//!
//! When a Service's selector or a pod's label changes, an endpoint disappears without a terminating condition. Other nodes
//! receive the change earlier or later, and send SYNs here meanwhile. So where no other pod is left on this node, the last ones
//! serve for a grace period. (A pod that is deleted terminates first: see [`Plan::new`]. UDP flows leave such pods at once, and
//! must not come back.)

use alloc::collections::BTreeMap;

use ebpf_common::ServiceKey;

use super::{LocalPods, Plan};
use crate::time::{Duration, Instant};
use crate::view::Protocol;

#[derive(Debug, Default)]
pub struct RemovalGrace(BTreeMap<ServiceKey, Seen>);

/// Ready pods of a service port, as the view had them last.
#[derive(Debug)]
struct Seen {
    pods: LocalPods,
    /// Since then it has none.
    unnamed: Option<Instant>,
}

impl RemovalGrace {
    /// The grace period. SYNs from a node that receives the change later are refused.
    pub const TIME: Duration = Duration::from_secs(1);

    /// Adds pods in their grace period to a plan.
    pub fn complete(&mut self, plan: Plan, now: Instant) -> Plan {
        let is_tcp = |key: &ServiceKey| key.proto == Protocol::Tcp.number();
        for (key, pods) in plan.services.iter().filter(|(key, pods)| is_tcp(key) && !pods.last_resort) {
            self.0.insert(*key, Seen { pods: pods.clone(), unnamed: None });
        }
        self.0.retain(|key, seen| {
            if plan.services.get(key) == Some(&seen.pods) {
                return true;
            }
            // A pod that is still listed but not ready, or terminating, gets no grace period.
            seen.pods.pods.retain(|pod| !plan.endpoints.names(key, pod));
            let since = *seen.unnamed.get_or_insert(now);
            let here = !plan.services.contains_key(key) && plan.has(key);
            here && !seen.pods.pods.is_empty() && now.since(since) < Self::TIME
        });
        let removal_grace = self.0.iter().filter(|(_, seen)| seen.unnamed.is_some());
        let mut services = plan.services;
        services.extend(removal_grace.map(|(key, seen)| (*key, seen.pods.clone())));
        Plan { services, ..plan }
    }

    /// Whether time alone has changed the result of [`RemovalGrace::complete`].
    pub fn is_due(&self, now: Instant) -> bool {
        let over = |seen: &Seen| seen.unnamed.is_some_and(|since| now.since(since) >= Self::TIME);
        self.0.values().any(over)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;
    use core::net::Ipv4Addr;

    use super::super::tests::{plan, ready};
    use super::*;
    use crate::view::Endpoint;
    use crate::view::endpoints::service_key;
    use crate::view::example::{TERMINATING, UNREADY, VIP, pod};

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn served(removal_grace: &mut RemovalGrace, endpoints: Vec<Endpoint>, millis: u64) -> [Vec<Ipv4Addr>; 2] {
        let plan = removal_grace.complete(plan(endpoints), at(millis));
        [(80, Protocol::Tcp), (53, Protocol::Udp)].map(|(port, protocol)| {
            let local = plan.services.get(&service_key(VIP, port, protocol));
            local.into_iter().flat_map(|local| &local.pods).map(|(address, _)| *address).collect()
        })
    }

    fn no_pods() -> [Vec<Ipv4Addr>; 2] {
        [vec![], vec![]]
    }

    const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, b'a', 1);
    const SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, b'a', 2);

    #[test]
    fn ready_pods_that_are_no_longer_listed_serve_tcp_a_moment_longer() {
        let mut removal_grace = RemovalGrace::default();
        assert_eq!(served(&mut removal_grace, [ready("a", 1)].into(), 0), [vec![FIRST], vec![FIRST]]);
        assert_eq!(served(&mut removal_grace, [ready("b", 1)].into(), 5000), [vec![FIRST], vec![]]);
        assert!(!removal_grace.is_due(at(5999)) && removal_grace.is_due(at(6000)));
        assert_eq!(served(&mut removal_grace, [ready("b", 1)].into(), 5999), [vec![FIRST], vec![]]);
        assert_eq!(served(&mut removal_grace, [ready("b", 1)].into(), 6000), no_pods());
        assert!(!removal_grace.is_due(at(100_000)));
    }

    #[test]
    fn another_pod_here_serves_alone() {
        let mut removal_grace = RemovalGrace::default();
        served(&mut removal_grace, [ready("a", 1)].into(), 0);
        assert_eq!(served(&mut removal_grace, [ready("a", 2)].into(), 10), [vec![SECOND], vec![SECOND]]);
        served(&mut removal_grace, [ready("b", 1)].into(), 20);
        assert_eq!(served(&mut removal_grace, [ready("a", 1)].into(), 30), [vec![FIRST], vec![FIRST]], "it is back");
        assert!(!removal_grace.is_due(at(100_000)));
    }

    #[test]
    fn terminated_or_unready_pods_have_no_grace() {
        for before in [TERMINATING, UNREADY] {
            let mut removal_grace = RemovalGrace::default();
            served(&mut removal_grace, [ready("a", 1)].into(), 0);
            let named = served(&mut removal_grace, [pod("a", 1, before), ready("b", 1)].into(), 10);
            assert_eq!(named[0].len(), usize::from(before == TERMINATING));
            assert_eq!(served(&mut removal_grace, [ready("b", 1)].into(), 20), no_pods(), "{before:?}");
        }
    }

    #[test]
    fn not_behind_an_address_that_is_gone() {
        let mut removal_grace = RemovalGrace::default();
        removal_grace.complete(plan([ready("a", 1)]), at(0));
        let none = Plan { vips: [].into(), services: [].into(), ..plan([]) };
        assert!(removal_grace.complete(none, at(10)).services.is_empty());
    }
}
