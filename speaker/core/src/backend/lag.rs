//! Rules that follow late: which pods they still lead flows to, and whose flows that takes.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use core::net::Ipv4Addr;

use ebpf_common::ServiceKey;

use super::Plan;
use crate::startup::Target;
use crate::view::Protocol;

/// The pods of this node in the rules of each service port.
pub type Pods = BTreeMap<ServiceKey, Box<[Pod]>>;
type Pod = (Ipv4Addr, u16);

/// Of a plan.
pub fn pods(plan: &Plan) -> Pods {
    plan.services.iter().map(|(key, local)| (*key, local.pods.as_slice().into())).collect()
}

/// Pods of TCP ports that the rules are to have, where the rules in force name others as well: these are gone, and get as many new flows as
/// each pod that lives. `known`: what the rules in force name; no pods: rules of an earlier speaker, of which only that they are there is
/// known. They may name any, and count if the newest rules fail.
pub fn behind(wanted: &Pods, known: &Pods, failing: bool) -> BTreeSet<Target> {
    let lags = |key: &ServiceKey, wanted: &[Pod]| match known.get(key) {
        _ if key.proto != Protocol::Tcp.number() => false,
        Some(rules) if rules.is_empty() => failing,
        Some(rules) => **rules != *wanted && rules.iter().any(|pod| !wanted.contains(pod)),
        None => false,
    };
    let pods = wanted.iter().filter(|(key, wanted)| lags(key, wanted)).flat_map(|(_, pods)| pods);
    pods.map(|(address, port)| Target { address: *address, port: *port }).collect()
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn key(port: u16, proto: Protocol) -> ServiceKey {
        ServiceKey { addr: [192, 0, 2, 1], port: port.to_be_bytes(), proto: proto.number(), pad: 0 }
    }

    fn pods(of: &[(u16, Protocol, &[u8])]) -> Pods {
        let pod = |last: &u8| (Ipv4Addr::new(10, 0, 0, *last), 80);
        of.iter().map(|(port, proto, pods)| (key(*port, *proto), pods.iter().map(pod).collect())).collect()
    }

    fn last(targets: &BTreeSet<Target>) -> Vec<u8> {
        targets.iter().map(|target| target.address.octets()[3]).collect()
    }

    #[test]
    fn pods_that_live_lag_where_the_rules_name_one_that_is_gone() {
        use Protocol::{Tcp, Udp};
        let wanted = pods(&[(1, Tcp, &[1, 2]), (2, Tcp, &[3, 4]), (3, Udp, &[5]), (4, Tcp, &[6]), (5, Tcp, &[7])]);
        // One gone; one to come; UDP, which has no start; nothing known; no rules yet.
        let known = pods(&[(1, Tcp, &[1, 9]), (2, Tcp, &[3]), (3, Udp, &[5, 9]), (4, Tcp, &[])]);
        assert_eq!(last(&behind(&wanted, &known, false)), [1, 2]);
        assert_eq!(last(&behind(&wanted, &known, true)), [1, 2, 6], "of an earlier speaker's rules nothing is known");
        assert!(behind(&wanted, &wanted, true).is_empty());
    }
}
