//! Which clients a Service admits, as far as its condition says it. The speakers enforce it.

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use sheave_api::{MAX_SOURCE_RANGES, source_ranges};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    All,
    /// Those of the ranges, of which so many are IPv4.
    Ranges(usize),
    /// The same, by the annotation.
    Annotated(usize),
    /// There are ranges, and none of IPv4.
    NoIPv4,
    /// So many of IPv4, more than the speakers take: they admit no client.
    TooMany(usize),
    /// Field or annotation, the entry that is no range, and what is allowed.
    Malformed(String),
}

impl Clients {
    pub fn of(service: &Service) -> Self {
        let ranges = service.spec.as_ref().and_then(|spec| spec.load_balancer_source_ranges.as_deref());
        let annotation = service.annotations().get(source_ranges::ANNOTATION);
        match source_ranges::of_service(ranges.unwrap_or_default(), annotation.map(String::as_str)) {
            Ok(ranges) if !ranges.is_restricted() => Clients::All,
            Ok(ranges) if ranges.v4().is_empty() => Clients::NoIPv4,
            Ok(ranges) if ranges.v4().len() > MAX_SOURCE_RANGES => Clients::TooMany(ranges.v4().len()),
            Ok(all) if ranges.is_none_or(<[_]>::is_empty) => Clients::Annotated(all.v4().len()),
            Ok(all) => Clients::Ranges(all.v4().len()),
            Err(error) => Clients::Malformed(error.to_string()),
        }
    }

    /// How many ranges of IPv4 the speakers keep of its list, if it has one.
    pub fn ranges(&self) -> Option<usize> {
        match self {
            Clients::All => None,
            Clients::Ranges(count) | Clients::Annotated(count) => Some(*count),
            Clients::NoIPv4 | Clients::TooMany(_) | Clients::Malformed(_) => Some(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(ranges: &[&str], annotation: Option<&str>) -> Clients {
        let annotations = annotation.map(|value| serde_json::json!({ source_ranges::ANNOTATION: value }));
        let service = serde_json::json!({
            "metadata": {"name": "a", "namespace": "b", "annotations": annotations},
            "spec": {"type": "LoadBalancer", "loadBalancerSourceRanges": ranges},
        });
        Clients::of(&serde_json::from_value(service).unwrap())
    }

    #[test]
    fn field_and_annotation_are_read_and_a_mistake_is_no_open_service() {
        assert_eq!(clients(&[], None), Clients::All);
        assert_eq!(clients(&["192.0.2.0/24", "2001:db8::/32"], None), Clients::Ranges(1));
        assert_eq!(clients(&["2001:db8::/32"], None), Clients::NoIPv4);
        assert_eq!(clients(&[], Some("2001:db8::/32")), Clients::NoIPv4);
        assert_eq!(clients(&[], Some("2001:db8::/32, 192.0.2.0/24")), Clients::Annotated(1));
        assert_eq!(clients(&["192.0.2.0/24"], Some("nonsense")), Clients::Ranges(1), "the field counts");
        let many: Vec<String> = (0..=1024).map(|n| format!("10.{}.{}.0/25", n / 256, n % 256)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(clients(&many, None), Clients::TooMany(1025));
        assert_eq!(clients(&[&many[..1024], &["10.0.0.0/26", "2001:db8::/32"]].concat(), None), Clients::Ranges(1024));
        let Clients::Malformed(message) = clients(&[], Some("192.0.2.0/24,nonsense")) else { panic!("not refused") };
        assert!(message.contains("service.beta.kubernetes.io/load-balancer-source-ranges: 'nonsense'"), "{message}");
    }
}
