//! Pure: the status of a Service whose ports are at addresses of nodes. It has no finalizer: ports are taken back without it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use sheave_api::status::{REASON_ALLOCATED, REASON_CORRECTED, REASON_RELEASED};

use super::{ConditionChange, FinalizerChange, IngressChange, Note, StatusWrite, no_finalizer, warning, write};
use crate::coverage;
use crate::request::Refused;
use crate::view::{ConditionView, Ingress, ServiceView};

/// `addresses`: at which the ledger names it, and that it is to show; `nodes`: of so many nodes. `refused`: why not of others.
/// `pooled`: the ledger still has an address from a pool for it, which the finalizer waits for.
pub fn at_nodes(
    service: &ServiceView,
    addresses: &[Ipv4Addr],
    nodes: usize,
    refused: Option<&Refused>,
    pooled: bool,
) -> Option<StatusWrite> {
    let parts = coverage::remarks(service, &BTreeSet::new(), None);
    let remarks: Vec<&Refused> = refused.into_iter().chain(&parts).collect();
    let granted = match addresses {
        [] => format!(
            "ports at {nodes} nodes; shown is none: not Ready, or without a ready pod (externalTrafficPolicy Local)"
        ),
        _ => {
            let mut named: Vec<String> = addresses.iter().take(NAMED).map(Ipv4Addr::to_string).collect();
            if addresses.len() > NAMED {
                named.push(format!("and {} more", addresses.len() - NAMED));
            }
            format!("ports at {nodes} nodes: {}", named.join(", "))
        }
    };
    let messages = remarks.iter().map(|remark| remark.message.as_str());
    let sentences: Vec<&str> = std::iter::once(granted.as_str()).chain(messages).chain([HOST_PORTS]).collect();
    let condition = ConditionView {
        allocated: true,
        reason: remarks.first().map_or(REASON_ALLOCATED, |remark| remark.reason.as_str()).to_string(),
        message: sentences.join("; "),
    };
    // One without a place at one address has one at others: the condition says it.
    let ports = coverage::ports(service, &BTreeSet::new());
    let wanted: Vec<Ingress> = addresses.iter().map(|address| Ingress::Vip(*address, ports.clone())).collect();
    let ingress = match addresses {
        _ if service.ingress == wanted => IngressChange::Leave,
        [] => IngressChange::Clear,
        _ => IngressChange::Set(addresses.to_vec(), ports),
    };
    let mut notes = Vec::new();
    if service.condition.as_ref() != Some(&condition) {
        if remarks.is_empty() || service.condition.as_ref().is_none_or(|before| !before.allocated) {
            notes.push(Note { warning: false, reason: REASON_ALLOCATED, message: granted });
        }
        notes.extend(remarks.iter().map(|remark| warning(remark)));
    } else if ingress != IngressChange::Leave {
        let message = "a third party changed the status; it shows the nodes' addresses again".to_string();
        notes.push(Note { warning: true, reason: REASON_CORRECTED, message });
    }
    let finalizer = if pooled { FinalizerChange::Leave } else { no_finalizer(service) };
    write(service, ingress, condition, finalizer, notes)
}

/// The Service is no longer ours, and shows these of the nodes' addresses.
pub fn withdrawn_from_nodes(service: &ServiceView, shown: &[Ipv4Addr]) -> Option<StatusWrite> {
    let ingress = if shown.is_empty() { IngressChange::Leave } else { IngressChange::Clear };
    let finalizer = no_finalizer(service);
    if service.condition.is_none() && ingress == IngressChange::Leave && finalizer == FinalizerChange::Leave {
        return None;
    }
    let message = "its ports are not at nodes' addresses any more".to_string();
    let note = Note { warning: false, reason: REASON_RELEASED, message };
    Some(StatusWrite {
        service: service.key.clone(),
        uid: service.uid.clone(),
        version: service.version,
        ingress,
        condition: if service.condition.is_some() { ConditionChange::Remove } else { ConditionChange::Leave },
        finalizer,
        notes: if service.deleting { vec![] } else { vec![note] },
    })
}

/// They are in no list of sockets, and the controller may not read pods.
const HOST_PORTS: &str = "host ports of pods are not seen: the Service comes before one with the same number";
/// Addresses that a message names.
const NAMED: usize = 8;
