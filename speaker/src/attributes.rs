//! Reads the attributes of a Service from the Kubernetes object.

use k8s_openapi::api::core::v1::Service;
use speaker_core::attributes::{Affinity, ServiceAttributes};

pub fn of(service: &Service) -> ServiceAttributes {
    let spec = service.spec.as_ref();
    let affinity = match spec.and_then(|spec| spec.session_affinity.as_deref()) {
        Some("ClientIP") => Affinity::ClientIp,
        _ => Affinity::None,
    };
    ServiceAttributes { affinity }
}
