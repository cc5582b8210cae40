//! Pure: how much of a Service is served. What is not has a name, whether it is the whole Service or a part of it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use sheave_api::{MAX_PORTS, MAX_SLICES, MAX_SOURCE_RANGES, Partly, Refusal, source_ranges};

use crate::request::Refused;
use crate::view::{Clients, Port, PortStatus, Protocol, ServiceView};

/// Why nothing of this Service can be served: it is granted no address.
pub fn refusal(service: &ServiceView) -> Option<Refused> {
    if !service.wants_ipv4 {
        return Some(named(Refusal::IPv6NotServed, "spec.ipFamilies is IPv6 only; IPv4 is served"));
    }
    if !service.ports.is_empty() && judged(service).all(|(_, refusal)| refusal.is_some()) {
        let message = format!("no port is served: {} (TCP and UDP are)", listed(service.ports.iter()));
        return Some(named(Refusal::ProtocolNotServed, message));
    }
    if let Clients::Malformed(what) = &service.clients {
        let message = format!("{what}; until it is corrected no client outside the cluster is admitted");
        return Some(named(Refusal::SourceRangesMalformed, message));
    }
    if let Clients::TooMany(count) = service.clients {
        let message = format!(
            "{count} source ranges of IPv4 after adjacent ones are joined; {MAX_SOURCE_RANGES} are allowed; until then no client \
             outside the cluster is admitted"
        );
        return Some(named(Refusal::SourceRangesTooMany, message));
    }
    None
}

/// What is not served of a Service that has an address. `partly`: what the owner of the address says. `second`: what became of its IPv6
/// address.
pub fn remarks(service: &ServiceView, partly: &BTreeSet<Partly>, second: Option<&str>) -> Vec<Refused> {
    if refusal(service).is_some() {
        return Vec::new();
    }
    let ports = |reason| {
        let mut ports =
            judged(service).filter(move |(_, refusal)| *refusal == Some(reason)).map(|(port, _)| port).peekable();
        ports.peek().is_some().then(|| listed(ports))
    };
    let mut remarks = Vec::new();
    let inside = || {
        if service.labels.contains_key(SERVICE_PROXY_NAME) {
            return String::new();
        }
        format!(
            "; every one inside is (pods, nodes), where kube-proxy serves them: it reads {} alone",
            source_ranges::FIELD
        )
    };
    match service.clients {
        Clients::NoIPv4 => {
            let inside = inside().replace(" alone", ", and of that the ranges of IPv4");
            let message = format!(
                "the source ranges have no range of IPv4: no IPv4 client outside the cluster is admitted{inside}"
            );
            remarks.push(named(Refusal::SourceRangesWithoutIPv4, message));
        }
        Clients::Annotated(_) if !inside().is_empty() => {
            let message = format!(
                "annotation {}: clients outside the cluster are admitted by its ranges{}; set the field",
                source_ranges::ANNOTATION,
                inside()
            );
            remarks.push(named(Refusal::SourceRangesOutsideOnly, message));
        }
        _ => {}
    }
    if let Some(unknown) = &service.startup_probe {
        let message = format!("{unknown}; new pods are probed");
        remarks.push(named(Refusal::StartupProbeUnknown, message));
    }
    if service.wants_ipv6 {
        let fate = second.map(|fate| format!(": {fate}")).unwrap_or_default();
        remarks
            .push(named(Refusal::IPv6NotServed, format!("spec.ipFamilies also has IPv6, which is not served{fate}")));
    } else if let Some(address) = service.addresses.as_deref().and_then(ipv6) {
        remarks.push(named(
            Refusal::IPv6NotServed,
            format!("{address} is not served: IPv6, which spec.ipFamilies has not"),
        ));
    }
    if let Some(ports) = ports(Refusal::ProtocolNotServed) {
        remarks.push(named(Refusal::ProtocolNotServed, format!("not served: {ports} (TCP and UDP are)")));
    }
    if let Some(ports) = ports(Refusal::TooManyPorts) {
        let message = format!("not served: {ports} (the first {MAX_PORTS} ports of a Service are)");
        remarks.push(named(Refusal::TooManyPorts, message));
    }
    remarks.extend(partly.iter().filter_map(|part| reported(*part)));
    remarks
}

/// What the owner's speaker finds in a Service's endpoints. Of ports it finds what is found here.
fn reported(part: Partly) -> Option<Refused> {
    let (reason, message) = match part {
        Partly::AddressConflict => (
            Refusal::AddressConflict,
            "another host of the segment announces the address as well; the log of the owner's speaker has its Ethernet address",
        ),
        Partly::FQDNNotServed => (
            Refusal::FQDNNotServed,
            "EndpointSlices that hold names (addressType FQDN) are not served; those that hold addresses are",
        ),
        Partly::NodeNotListed => (
            Refusal::NodeNotListed,
            "endpoints with a nodeName that the API server does not list, or without an IPv4 InternalIP: they are not served",
        ),
        Partly::NodeWithoutSpeaker => (
            Refusal::NodeWithoutSpeaker,
            "pods on a node that has no speaker yet (no SpeakerState has its name): they are not served until one runs there; 10 to 15 \
             minutes after the node joined two other nodes translate for them",
        ),
        Partly::EndpointAddress => (
            Refusal::EndpointAddress,
            "endpoints with an address to which nothing is sent (one of a Service, link-local, loopback, multicast): they are not served",
        ),
        Partly::TooManyEndpointSlices => {
            let message = format!(
                "the cluster has more EndpointSlices than the {MAX_SLICES} that a speaker keeps: endpoints in slices without room are \
                 not served"
            );
            return Some(named(Refusal::TooManyEndpointSlices, message));
        }
        Partly::TooManyEndpointPorts => {
            let message = format!("an EndpointSlice has more than {MAX_PORTS} ports: its first {MAX_PORTS} are served");
            return Some(named(Refusal::TooManyEndpointPorts, message));
        }
        Partly::ClientAddressLost => (
            Refusal::ClientAddressLost,
            "endpoints without a node, or on a node without a speaker: two nodes translate for each; it does not see the \
             client's address, and open connections end with the node that translates",
        ),
        Partly::TooManyPorts => return None,
    };
    Some(named(reason, message))
}

/// Whether a speaker finds it, of a VirtualIP, which several Services may share.
pub fn is_reported(reason: Refusal) -> bool {
    Partly::ALL.into_iter().filter_map(reported).any(|part| part.reason == reason)
}

/// The ports for `status.loadBalancer.ingress[].ports`: all of them, or none where nothing is to be said (KEP-1435). `without_place`: those
/// for which the speakers have none.
pub fn ports(service: &ServiceView, without_place: &BTreeSet<Port>) -> Vec<PortStatus> {
    let all = judged(service).map(|(port, refusal)| {
        let refusal = refusal.or_else(|| without_place.contains(port).then_some(Refusal::LimitReached));
        PortStatus { port: port.clone(), error: refusal.map(Refusal::port_error) }
    });
    let all: Vec<PortStatus> = all.collect();
    if all.iter().any(|status| status.error.is_some()) { all } else { Vec::new() }
}

/// The ports that speakers serve, if they have room for them.
pub fn served(service: &ServiceView) -> impl Iterator<Item = &Port> {
    judged(service).filter(|(_, refusal)| refusal.is_none()).map(|(port, _)| port)
}

/// Every port in order, and why it is not served. Of TCP and UDP the first ones are, as the speakers have it.
fn judged(service: &ServiceView) -> impl Iterator<Item = (&Port, Option<Refusal>)> {
    let mut served = 0;
    service.ports.iter().map(move |port| match port.protocol {
        Protocol::Other(_) => (port, Some(Refusal::ProtocolNotServed)),
        Protocol::Tcp | Protocol::Udp if served < MAX_PORTS => {
            served += 1;
            (port, None)
        }
        Protocol::Tcp | Protocol::Udp => (port, Some(Refusal::TooManyPorts)),
    })
}

fn named(reason: Refusal, message: impl Into<String>) -> Refused {
    Refused { reason, message: message.into() }
}

fn ipv6(list: &str) -> Option<IpAddr> {
    list.split(',').filter_map(|entry| entry.trim().parse().ok()).find(IpAddr::is_ipv6)
}

/// The first few of them, so that a message stays a sentence.
pub fn listed<'a>(ports: impl Iterator<Item = &'a Port>) -> String {
    let mut names: Vec<String> = ports.map(Port::to_string).collect();
    let more = names.len().saturating_sub(LISTED);
    names.truncate(LISTED);
    match more {
        0 => format!("port {}", names.join(", ")),
        more => format!("port {} and {more} more", names.join(", ")),
    }
}

/// Ports that a message names.
const LISTED: usize = 5;
/// A Service with this label is none of kube-proxy's: speakers translate for clients inside, and judge them.
const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::example;

    fn service(ports: &[(i32, &str)]) -> ServiceView {
        let ports = ports.iter().map(|(number, protocol)| Port::new(*number, Some(protocol))).collect();
        ServiceView { ports, ..example() }
    }

    const NOTHING: BTreeSet<Partly> = BTreeSet::new();

    fn reasons(refused: &[Refused]) -> Vec<Refusal> {
        refused.iter().map(|refused| refused.reason).collect()
    }

    #[test]
    fn an_ordinary_service_is_served_without_a_word() {
        let plain = service(&[(80, "TCP"), (53, "UDP")]);
        assert_eq!(
            (refusal(&plain), remarks(&plain, &NOTHING, None), ports(&plain, &BTreeSet::new())),
            (None, vec![], vec![])
        );
    }

    #[test]
    fn a_service_with_sctp_ports_only_is_refused() {
        let refused = refusal(&service(&[(38412, "SCTP"), (38413, "SCTP")])).unwrap();
        assert_eq!(refused.reason, Refusal::ProtocolNotServed);
        assert!(refused.message.contains("port 38412/SCTP, 38413/SCTP"), "{}", refused.message);
        assert_eq!(remarks(&service(&[(38412, "SCTP")]), &NOTHING, None), [], "said once");
    }

    #[test]
    fn a_mixed_service_lists_every_port_and_the_error_of_those_that_are_not_served() {
        let mixed = service(&[(80, "TCP"), (38412, "SCTP"), (53, "UDP")]);
        assert_eq!(refusal(&mixed), None);
        assert_eq!(reasons(&remarks(&mixed, &NOTHING, None)), [Refusal::ProtocolNotServed]);
        let errors: Vec<_> =
            ports(&mixed, &BTreeSet::new()).into_iter().map(|status| (status.port.to_string(), status.error)).collect();
        let error = Some("sheave.dev/ProtocolNotServed".to_string());
        assert_eq!(errors, [("80/TCP".into(), None), ("38412/SCTP".into(), error), ("53/UDP".into(), None)]);
    }

    #[test]
    fn many_refused_ports_make_no_long_message() {
        let many: Vec<(i32, &str)> = (1..=900).map(|number| (number, "SCTP")).collect();
        let message = refusal(&service(&many)).unwrap().message;
        assert!(message.contains("5/SCTP and 895 more") && message.len() < 200, "{message}");
    }

    #[test]
    fn ipv6_alone_is_refused_and_beside_ipv4_it_is_a_remark() {
        let only = ServiceView { wants_ipv4: false, wants_ipv6: true, ..example() };
        assert_eq!(refusal(&only).unwrap().reason, Refusal::IPv6NotServed);
        assert_eq!(remarks(&only, &NOTHING, None), []);
        for dual in [
            ServiceView { wants_ipv6: true, ..example() },
            ServiceView { addresses: Some("192.0.2.1, 2001:db8::1".into()), ..example() },
        ] {
            assert_eq!(
                (refusal(&dual), reasons(&remarks(&dual, &NOTHING, None))),
                (None, vec![Refusal::IPv6NotServed])
            );
        }
    }

    #[test]
    fn one_port_too_many_leaves_the_others_served() {
        let count = |count: i32| service(&(1..=count).map(|number| (number, "TCP")).collect::<Vec<_>>());
        assert_eq!((remarks(&count(1000), &NOTHING, None), ports(&count(1000), &BTreeSet::new())), (vec![], vec![]));
        let mut many = count(1001);
        many.ports.insert(0, Port::new(9, Some("SCTP")));
        assert_eq!(refusal(&many), None);
        assert_eq!(reasons(&remarks(&many, &NOTHING, None)), [Refusal::ProtocolNotServed, Refusal::TooManyPorts]);
        assert!(remarks(&many, &NOTHING, None)[1].message.contains("port 1001/TCP (the first 1000"));
        let (refused, served): (Vec<_>, Vec<_>) =
            ports(&many, &BTreeSet::new()).into_iter().partition(|status| status.error.is_some());
        assert_eq!((served.len(), served[999].port.number), (1000, 1000));
        assert_eq!(refused[1].error.as_deref(), Some("sheave.dev/TooManyPorts"));
    }

    #[test]
    fn malformed_source_ranges_refuse_and_ranges_without_ipv4_are_said() {
        let malformed = ServiceView { clients: Clients::Malformed("field: 'x'".into()), ..example() };
        let refused = refusal(&malformed).unwrap();
        assert_eq!(refused.reason, Refusal::SourceRangesMalformed);
        assert!(refused.message.starts_with("field: 'x'; "), "{}", refused.message);
        let many = refusal(&ServiceView { clients: Clients::TooMany(1025), ..example() }).unwrap();
        assert_eq!(many.reason, Refusal::SourceRangesTooMany);
        assert!(many.message.starts_with("1025 ") && many.message.contains("1024 are allowed"), "{}", many.message);
        let closed = ServiceView { clients: Clients::NoIPv4, ..example() };
        assert_eq!(
            (refusal(&closed), reasons(&remarks(&closed, &NOTHING, None))),
            (None, vec![Refusal::SourceRangesWithoutIPv4])
        );
        assert_eq!(remarks(&ServiceView { clients: Clients::Ranges(1), ..example() }, &NOTHING, None), []);
    }

    /// kube-proxy translates for pods and nodes, and knows the field only.
    #[test]
    fn an_annotation_that_clients_inside_are_not_judged_by_is_said() {
        let annotated = ServiceView { clients: Clients::Annotated(1), ..example() };
        let said = remarks(&annotated, &NOTHING, None);
        assert_eq!((refusal(&annotated), reasons(&said)), (None, vec![Refusal::SourceRangesOutsideOnly]));
        assert_eq!(
            said[0].message,
            "annotation service.beta.kubernetes.io/load-balancer-source-ranges: clients outside the cluster are admitted by its ranges; \
             every one inside is (pods, nodes), where kube-proxy serves them: it reads spec.loadBalancerSourceRanges alone; set the field"
        );
        let closed = ServiceView { clients: Clients::NoIPv4, ..example() };
        let message = remarks(&closed, &NOTHING, None).remove(0).message;
        assert!(message.contains("no IPv4 client outside the cluster is admitted; every one inside is"), "{message}");
        let label = [(SERVICE_PROXY_NAME.to_string(), "none".to_string())];
        let of_sheave = |clients| ServiceView { clients, labels: label.clone().into(), ..example() };
        assert_eq!(remarks(&of_sheave(Clients::Annotated(1)), &NOTHING, None), []);
        let message = remarks(&of_sheave(Clients::NoIPv4), &NOTHING, None).remove(0).message;
        assert!(message.ends_with("no IPv4 client outside the cluster is admitted"), "{message}");
    }

    #[test]
    fn an_unknown_value_of_the_startup_probe_is_a_remark() {
        let unknown = ServiceView { startup_probe: Some("x: 'no' is unknown".into()), ..example() };
        let remarks = remarks(&unknown, &NOTHING, None);
        assert_eq!((refusal(&unknown), reasons(&remarks)), (None, vec![Refusal::StartupProbeUnknown]));
        assert_eq!(remarks[0].message, "x: 'no' is unknown; new pods are probed");
    }

    #[test]
    fn what_the_owner_finds_is_said_on_the_service() {
        let said = |parts: &[Partly]| reasons(&remarks(&example(), &parts.iter().copied().collect(), None));
        for (part, reason) in [
            (Partly::AddressConflict, Refusal::AddressConflict),
            (Partly::FQDNNotServed, Refusal::FQDNNotServed),
            (Partly::NodeNotListed, Refusal::NodeNotListed),
            (Partly::NodeWithoutSpeaker, Refusal::NodeWithoutSpeaker),
            (Partly::EndpointAddress, Refusal::EndpointAddress),
            (Partly::TooManyEndpointSlices, Refusal::TooManyEndpointSlices),
            (Partly::TooManyEndpointPorts, Refusal::TooManyEndpointPorts),
            (Partly::ClientAddressLost, Refusal::ClientAddressLost),
        ] {
            assert_eq!((said(&[part]), is_reported(reason)), (vec![reason], true));
        }
        assert_eq!((said(&[Partly::TooManyPorts]), is_reported(Refusal::TooManyPorts)), (vec![], false), "found here");
        let two = said(&[Partly::ClientAddressLost, Partly::NodeWithoutSpeaker]);
        assert_eq!(two, [Refusal::NodeWithoutSpeaker, Refusal::ClientAddressLost], "what matters more is first");
    }
}
