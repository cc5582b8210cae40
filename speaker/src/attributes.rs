//! Reads the attributes of a Service from the Kubernetes object.

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use sheave_api::{source_ranges, startup_probe};
use speaker_core::attributes::{
    Affinity, AffinityTimeout, Prefix, ServiceAttributes, SourceRanges, StartupProbe, TrafficPolicy,
};
use tracing::warn;

pub fn of(service: &Service) -> ServiceAttributes {
    let spec = service.spec.as_ref();
    let affinity = match spec.and_then(|spec| spec.session_affinity.as_deref()) {
        Some("ClientIP") => Affinity::ClientIp,
        _ => Affinity::None,
    };
    let affinity_timeout = match affinity {
        Affinity::None => AffinityTimeout::DEFAULT,
        Affinity::ClientIp => affinity_timeout(service),
    };
    let traffic_policy = match spec.and_then(|spec| spec.external_traffic_policy.as_deref()) {
        Some("Local") => TrafficPolicy::Local,
        _ => TrafficPolicy::Cluster,
    };
    ServiceAttributes {
        affinity,
        affinity_timeout,
        source_ranges: source_ranges(service),
        traffic_policy,
        without_kube_proxy: is_without_kube_proxy(service),
        startup_probe: startup_probe(service),
    }
}

/// kube-proxy leaves Services with this label alone, and addresses whose status has ipMode Proxy (KEP-1860).
fn is_without_kube_proxy(service: &Service) -> bool {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let mut ingress = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default().iter();
    service.labels().contains_key(OTHER_PROXY) || ingress.any(|entry| entry.ip_mode.as_deref() == Some("Proxy"))
}

const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";

/// The API server admits no other value than ours; what comes all the same counts as the default.
fn affinity_timeout(service: &Service) -> AffinityTimeout {
    let config = service.spec.as_ref().and_then(|spec| spec.session_affinity_config.as_ref());
    let Some(seconds) = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds) else {
        return AffinityTimeout::DEFAULT;
    };
    AffinityTimeout::new(seconds.into()).unwrap_or_else(|error| {
        let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
        let default = AffinityTimeout::DEFAULT.seconds();
        warn!(%namespace, name, %error, default, "affinity timeout of the Service refused; the default counts");
        AffinityTimeout::DEFAULT
    })
}

/// Ranges that cannot be read admit no client: a mistake never opens a Service. The controller refuses it by name.
fn source_ranges(service: &Service) -> Option<SourceRanges> {
    let field = service.spec.as_ref().and_then(|spec| spec.load_balancer_source_ranges.as_deref()).unwrap_or_default();
    let annotation = service.annotations().get(source_ranges::ANNOTATION);
    let ranges = match source_ranges::of_service(field, annotation.map(String::as_str)) {
        Ok(ranges) if !ranges.is_restricted() => return None,
        Ok(ranges) => {
            ranges.v4().iter().map(|net| Prefix { network: net.network(), length: net.prefix_len() }).collect()
        }
        Err(error) => {
            let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
            warn!(%namespace, name, %error, "source ranges of the Service unreadable; it admits no client");
            Vec::new()
        }
    };
    Some(ranges.into())
}

/// A value that is unknown never takes the probe away. The controller refuses it by name.
fn startup_probe(service: &Service) -> StartupProbe {
    match startup_probe::is_on(service.annotations().get(startup_probe::ANNOTATION).map(String::as_str)) {
        Ok(true) => StartupProbe::On,
        Ok(false) => StartupProbe::Off,
        Err(error) => {
            let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
            warn!(%namespace, name, %error, "annotation of the Service refused; its new pods are probed");
            StartupProbe::On
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::{ClientIPConfig, ServiceSpec, SessionAffinityConfig};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn ranges(field: &[&str], annotation: Option<&str>) -> Option<Vec<String>> {
        let annotations = annotation.map(|text| BTreeMap::from([(source_ranges::ANNOTATION.into(), text.into())]));
        let field = (!field.is_empty()).then(|| field.iter().map(ToString::to_string).collect());
        let spec = ServiceSpec { load_balancer_source_ranges: field, ..ServiceSpec::default() };
        let metadata = ObjectMeta { annotations, ..ObjectMeta::default() };
        let of = of(&Service { metadata, spec: Some(spec), ..Service::default() });
        of.source_ranges.map(|ranges| ranges.iter().map(ToString::to_string).collect())
    }

    /// Today's file is read by this version, and of a Service without ranges an earlier version reads what it always read.
    #[test]
    fn on_disk_a_service_without_ranges_is_as_it_always_was() {
        let earlier = r#"{"ports":[],"affinity":"ClientIp"}"#;
        let mut service: speaker_core::view::Service = serde_json::from_str(earlier).unwrap();
        assert_eq!(service.attributes, Affinity::ClientIp.into());
        assert_eq!(serde_json::to_string(&service).unwrap(), earlier);
        let prefix = Prefix { network: [10, 0, 0, 0].into(), length: 8 };
        service.attributes.traffic_policy = TrafficPolicy::Local;
        for ranges in [vec![], vec![prefix]] {
            service.attributes.source_ranges = Some(ranges.into());
            let text = serde_json::to_string(&service).unwrap();
            assert_eq!(serde_json::from_str::<speaker_core::view::Service>(&text).unwrap(), service, "{text}");
        }
    }

    #[test]
    fn what_kube_proxy_leaves_alone() {
        let of = |object: serde_json::Value| of(&serde_json::from_value::<Service>(object).unwrap()).without_kube_proxy;
        let status =
            |mode: &str| serde_json::json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": mode}]}});
        assert!(of(serde_json::json!({"metadata": {"labels": {OTHER_PROXY: "none"}}})));
        assert!(of(serde_json::json!({"metadata": {}, "status": status("Proxy")})));
        assert!(!of(serde_json::json!({"metadata": {"labels": {"app": "web"}}, "status": status("VIP")})));
    }

    fn with_affinity(affinity: &str, timeout_seconds: Option<i32>) -> ServiceAttributes {
        let client_ip = Some(ClientIPConfig { timeout_seconds });
        let spec = ServiceSpec {
            session_affinity: Some(affinity.into()),
            session_affinity_config: Some(SessionAffinityConfig { client_ip }),
            ..ServiceSpec::default()
        };
        of(&Service { spec: Some(spec), ..Service::default() })
    }

    #[test]
    fn affinity_timeout_of_a_service() {
        let seconds = |timeout| with_affinity("ClientIP", timeout).affinity_timeout.seconds();
        assert_eq!(
            [None, Some(1), Some(86_400), Some(0), Some(86_401)].map(seconds),
            [10_800, 1, 86_400, 10_800, 10_800]
        );
        assert_eq!(with_affinity("None", Some(60)), ServiceAttributes::default());
    }

    #[test]
    fn on_disk_a_timeout_stands_beside_the_affinity() {
        let mut service =
            speaker_core::view::Service { ports: vec![], attributes: with_affinity("ClientIP", Some(60)) };
        let text = serde_json::to_string(&service).unwrap();
        assert_eq!(text, r#"{"ports":[],"affinity":"ClientIp","affinity_timeout":60}"#);
        assert_eq!(serde_json::from_str::<speaker_core::view::Service>(&text).unwrap(), service);
        service.attributes = with_affinity("ClientIP", Some(10_800));
        assert_eq!(serde_json::to_string(&service).unwrap(), r#"{"ports":[],"affinity":"ClientIp"}"#);
        assert!(serde_json::from_str::<speaker_core::view::Service>(&text.replace("60", "0")).is_err());
    }

    #[test]
    fn startup_probe_of_a_service() {
        let of = |value: Option<&str>| {
            let annotations = value.map(|value| BTreeMap::from([(startup_probe::ANNOTATION.into(), value.into())]));
            let metadata = ObjectMeta { annotations, ..ObjectMeta::default() };
            of(&Service { metadata, ..Service::default() })
        };
        let [none, on, off, unknown] = [None, Some("on"), Some("off"), Some("no")].map(of);
        assert_eq!((&none, &on, &unknown), (&ServiceAttributes::default(), &none, &none));
        assert_eq!(off, ServiceAttributes { startup_probe: StartupProbe::Off, ..none });
        // An earlier version reads it, and compares the same digest.
        assert_eq!(off.digest(), on.digest());
        let service = speaker_core::view::Service { ports: vec![], attributes: off };
        let text = serde_json::to_string(&service).unwrap();
        assert_eq!(text, r#"{"ports":[],"affinity":"None","startup_probe":"Off"}"#);
        assert_eq!(serde_json::from_str::<speaker_core::view::Service>(&text).unwrap(), service);
    }

    #[test]
    fn source_ranges_of_a_service() {
        let list = |ranges: &[&str]| Some(ranges.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(ranges(&[], None), None);
        assert_eq!(ranges(&[], Some(" ")), None);
        assert_eq!(ranges(&["10.1.2.3/8"], Some("192.0.2.0/24")), list(&["10.0.0.0/8"]));
        assert_eq!(ranges(&[], Some("192.0.2.0/24, 10.0.0.0/8")), list(&["10.0.0.0/8", "192.0.2.0/24"]));
        // A family without a range admits no client, nor does what cannot be read.
        assert_eq!(ranges(&["2001:db8::/32"], None), list(&[]));
        assert_eq!(ranges(&["192.0.2.0/24", "everyone"], None), list(&[]));
    }
}
