//! Pure: how much of a Service is served. What is not has a name, whether it is the whole Service or a part of it.

use std::net::IpAddr;

use sheave_api::Refusal;

use crate::request::Refused;
use crate::view::{Port, PortStatus, Protocol, ServiceView};

/// Why nothing of this Service can be served: it is granted no address.
pub fn refusal(service: &ServiceView) -> Option<Refused> {
    if !service.wants_ipv4 {
        let message = "spec.ipFamilies is IPv6 only; IPv4 is served".to_string();
        return Some(Refused { reason: Refusal::IPv6NotServed, message });
    }
    let refused = || service.ports.iter().filter(|port| port_refusal(port).is_some());
    if !service.ports.is_empty() && refused().count() == service.ports.len() {
        let message = format!("no port is served: {} (TCP and UDP are)", listed(refused()));
        return Some(Refused { reason: Refusal::ProtocolNotServed, message });
    }
    None
}

/// What is not served of a Service that has an address.
pub fn remarks(service: &ServiceView) -> Vec<Refused> {
    if refusal(service).is_some() {
        return Vec::new();
    }
    let mut remarks = Vec::new();
    if service.wants_ipv6 {
        let message = "spec.ipFamilies also has IPv6, which is not served".to_string();
        remarks.push(Refused { reason: Refusal::IPv6NotServed, message });
    } else if let Some(address) = service.addresses.as_deref().and_then(ipv6) {
        remarks.push(Refused { reason: Refusal::IPv6NotServed, message: format!("{address} is not served: IPv6") });
    }
    let mut refused = service.ports.iter().filter(|port| port_refusal(port).is_some()).peekable();
    if refused.peek().is_some() {
        let message = format!("not served: {} (TCP and UDP are)", listed(refused));
        remarks.push(Refused { reason: Refusal::ProtocolNotServed, message });
    }
    remarks
}

/// The ports for `status.loadBalancer.ingress[].ports`: all of them, or none where nothing is to be said (KEP-1435).
pub fn ports(service: &ServiceView) -> Vec<PortStatus> {
    let statuses = service
        .ports
        .iter()
        .map(|port| PortStatus { port: port.clone(), error: port_refusal(port).map(Refusal::port_error) });
    let statuses: Vec<PortStatus> = statuses.collect();
    if statuses.iter().any(|status| status.error.is_some()) { statuses } else { Vec::new() }
}

fn port_refusal(port: &Port) -> Option<Refusal> {
    match port.protocol {
        Protocol::Tcp | Protocol::Udp => None,
        Protocol::Other(_) => Some(Refusal::ProtocolNotServed),
    }
}

fn ipv6(list: &str) -> Option<IpAddr> {
    list.split(',').filter_map(|entry| entry.trim().parse().ok()).find(IpAddr::is_ipv6)
}

/// The first few of them, so that a message stays a sentence.
fn listed<'a>(ports: impl Iterator<Item = &'a Port>) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::example;

    fn service(ports: &[(i32, &str)]) -> ServiceView {
        let ports = ports.iter().map(|(number, protocol)| Port::new(*number, Some(protocol))).collect();
        ServiceView { ports, ..example() }
    }

    fn reasons(refused: &[Refused]) -> Vec<Refusal> {
        refused.iter().map(|refused| refused.reason).collect()
    }

    #[test]
    fn an_ordinary_service_is_served_without_a_word() {
        let plain = service(&[(80, "TCP"), (53, "UDP")]);
        assert_eq!((refusal(&plain), remarks(&plain), ports(&plain)), (None, vec![], vec![]));
    }

    #[test]
    fn a_service_with_sctp_ports_only_is_refused() {
        let refused = refusal(&service(&[(38412, "SCTP"), (38413, "SCTP")])).unwrap();
        assert_eq!(refused.reason, Refusal::ProtocolNotServed);
        assert!(refused.message.contains("port 38412/SCTP, 38413/SCTP"), "{}", refused.message);
        assert_eq!(remarks(&service(&[(38412, "SCTP")])), [], "said once");
    }

    #[test]
    fn a_mixed_service_lists_every_port_and_the_error_of_those_that_are_not_served() {
        let mixed = service(&[(80, "TCP"), (38412, "SCTP"), (53, "UDP")]);
        assert_eq!(refusal(&mixed), None);
        assert_eq!(reasons(&remarks(&mixed)), [Refusal::ProtocolNotServed]);
        let errors: Vec<_> = ports(&mixed).into_iter().map(|status| (status.port.to_string(), status.error)).collect();
        let error = Some("sheave.dev/ProtocolNotServed".to_string());
        assert_eq!(errors, [("80/TCP".into(), None), ("38412/SCTP".into(), error), ("53/UDP".into(), None)]);
    }

    #[test]
    fn many_ports_make_no_long_message() {
        let many: Vec<(i32, &str)> = (1..=900).map(|number| (number, "SCTP")).collect();
        let message = refusal(&service(&many)).unwrap().message;
        assert!(message.contains("5/SCTP and 895 more") && message.len() < 200, "{message}");
    }

    #[test]
    fn ipv6_alone_is_refused_and_beside_ipv4_it_is_a_remark() {
        let only = ServiceView { wants_ipv4: false, wants_ipv6: true, ..example() };
        assert_eq!(refusal(&only).unwrap().reason, Refusal::IPv6NotServed);
        assert_eq!(remarks(&only), []);
        for dual in [
            ServiceView { wants_ipv6: true, ..example() },
            ServiceView { addresses: Some("192.0.2.1, 2001:db8::1".into()), ..example() },
        ] {
            assert_eq!((refusal(&dual), reasons(&remarks(&dual))), (None, vec![Refusal::IPv6NotServed]));
        }
    }
}
