//! Pure: decision → the status of a Service or a pool, and the patch that leads to it. Nothing if it is so already, so that
//! repeating a decision writes nothing.

mod at_nodes;
mod finding;
mod pool;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sheave_api::CLEANUP_FINALIZER;
use sheave_api::status::{
    CONDITION_ALLOCATED, REASON_ALLOCATED, REASON_CORRECTED, REASON_GRANTING, REASON_RELEASED, REASON_RELEASING,
    REASON_RENAMED,
};

use crate::coverage;
use crate::request::Refused;
use crate::view::{ConditionView, Ingress, Port, PortStatus, ServiceKey, ServiceView};

pub use at_nodes::{at_nodes, withdrawn_from_nodes};
pub use finding::Finding;
pub use pool::pool_status;

/// A change of a Service's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusWrite {
    pub service: ServiceKey,
    pub uid: String,
    pub version: u64,
    pub ingress: IngressChange,
    pub condition: ConditionChange,
    pub finalizer: FinalizerChange,
    /// What is new to the user.
    pub notes: Vec<Note>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IngressChange {
    Leave,
    /// These in their order, with the same ports each. Of IPv4: none of IPv6 is served.
    Set(Vec<Ipv4Addr>, Vec<PortStatus>),
    Clear,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConditionChange {
    Leave,
    Set {
        condition: ConditionView,
        /// Whether True became False or the reverse, which sets the time of the transition.
        flips: bool,
    },
    Remove,
}

/// A change of the Service's finalizer, in the same patch as the condition that says whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinalizerChange {
    Leave,
    Add,
    Remove,
}

/// An Event on a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

/// The Service is to have these addresses: before the ledger says so its deletion waits for us.
pub fn granting(service: &ServiceView, grants: &[(IpAddr, String)]) -> StatusWrite {
    let verb = if grants.len() == 1 { "is" } else { "are" };
    let shown = service.condition.clone().filter(|condition| condition.allocated);
    let condition = shown.unwrap_or_else(|| ConditionView {
        allocated: false,
        reason: REASON_GRANTING.to_string(),
        message: format!("{} {verb} being granted", from_pools(grants)),
    });
    StatusWrite {
        service: service.key.clone(),
        uid: service.uid.clone(),
        version: service.version,
        ingress: IngressChange::Leave,
        condition: change(service, condition),
        finalizer: if service.finalizer { FinalizerChange::Leave } else { FinalizerChange::Add },
        notes: vec![],
    }
}

/// The Service has these addresses, of these pools. The remarks name what is not as the Service wants it, the most important one first.
/// `without_place`: ports for which the speakers have none.
pub fn allocated(
    service: &ServiceView,
    grants: &[(Ipv4Addr, &str)],
    remarks: &[Refused],
    without_place: &BTreeSet<Port>,
) -> Option<StatusWrite> {
    let granted = from_pools(grants);
    let addresses: Vec<Ipv4Addr> = grants.iter().map(|(address, _)| *address).collect();
    let sentences = std::iter::once(&granted).chain(remarks.iter().map(|remark| &remark.message));
    let condition = ConditionView {
        allocated: true,
        reason: remarks.first().map_or(REASON_ALLOCATED, |remark| remark.reason.as_str()).to_string(),
        message: sentences.map(String::as_str).collect::<Vec<_>>().join("; "),
    };
    let ports = coverage::ports(service, without_place);
    let mut notes = Vec::new();
    if service.condition.as_ref() != Some(&condition) {
        if remarks.is_empty() || service.condition.as_ref().is_none_or(|before| !before.allocated) {
            notes.push(Note { warning: false, reason: REASON_ALLOCATED, message: granted });
            notes.extend(service.renamed.iter().map(|(other, ours)| renamed(other, ours)));
        }
        notes.extend(remarks.iter().map(warning));
    } else if service.shown_alone().as_ref() != Some(&addresses) {
        let shown: Vec<String> = addresses.iter().map(Ipv4Addr::to_string).collect();
        let message = format!("a third party changed the status; it is {} again", shown.join(", "));
        notes.push(Note { warning: true, reason: REASON_CORRECTED, message });
    }
    let wanted = addresses.iter().map(|address| Ingress::Vip(*address, ports.clone()));
    let shown = wanted.eq(service.ingress.iter().cloned());
    let ingress = if shown { IngressChange::Leave } else { IngressChange::Set(addresses, ports) };
    let finalizer = if service.finalizer { FinalizerChange::Leave } else { FinalizerChange::Add };
    write(service, ingress, condition, finalizer, notes)
}

/// The Service has no address. `may_empty`: what its status shows is ours to take away.
pub fn refused(service: &ServiceView, refused: &Refused, may_empty: bool) -> Option<StatusWrite> {
    let condition = ConditionView {
        allocated: false,
        reason: refused.reason.as_str().to_string(),
        message: refused.message.clone(),
    };
    let note = if service.condition.as_ref() != Some(&condition) {
        warning(refused)
    } else {
        let message = "a third party changed the status; it is empty again".to_string();
        Note { warning: true, reason: REASON_CORRECTED, message }
    };
    let leave = service.ingress.is_empty() || !may_empty;
    let ingress = if leave { IngressChange::Leave } else { IngressChange::Clear };
    write(service, ingress, condition, no_finalizer(service), vec![note])
}

/// The Service is no longer ours: take back what we wrote, and only that. `listed`: the ledger names it, so the address goes first;
/// the finalizer and the condition that tells whose it is go together, last.
pub fn withdrawn(service: &ServiceView, held: &[IpAddr], listed: bool) -> Option<StatusWrite> {
    if listed {
        let all_held = |shown: Vec<Ipv4Addr>| shown.into_iter().all(|address| held.contains(&address.into()));
        let ours = service.shown_alone().is_some_and(all_held);
        let unmarked = service.finalizer && !service.finalizer_is_ours();
        if !ours && !unmarked {
            return None;
        }
        let condition = ConditionView {
            allocated: false,
            reason: REASON_RELEASING.to_string(),
            message: "the address is being taken back".to_string(),
        };
        let ingress = if ours { IngressChange::Clear } else { IngressChange::Leave };
        return write(service, ingress, condition, FinalizerChange::Leave, vec![]);
    }
    let finalizer = no_finalizer(service);
    if service.condition.is_none() && finalizer == FinalizerChange::Leave {
        return None;
    }
    let note = Note {
        warning: false,
        reason: REASON_RELEASED,
        message: "the Service is no longer of type LoadBalancer with a class of ours".to_string(),
    };
    Some(StatusWrite {
        service: service.key.clone(),
        uid: service.uid.clone(),
        version: service.version,
        ingress: IngressChange::Leave,
        condition: if service.condition.is_some() { ConditionChange::Remove } else { ConditionChange::Leave },
        finalizer,
        // A Service that goes needs none, and its namespace may take none any more.
        notes: if service.deleting { vec![] } else { vec![note] },
    })
}

/// Which addresses, and where each is from.
fn from_pools(grants: &[(impl fmt::Display, impl fmt::Display)]) -> String {
    let each = grants.iter().map(|(address, pool)| format!("{address} from pool '{pool}'"));
    each.collect::<Vec<_>>().join(", ")
}

fn no_finalizer(service: &ServiceView) -> FinalizerChange {
    if service.finalizer_is_ours() { FinalizerChange::Remove } else { FinalizerChange::Leave }
}

fn warning(refused: &Refused) -> Note {
    Note { warning: true, reason: refused.reason.as_str(), message: refused.message.clone() }
}

fn renamed(other: &str, ours: &str) -> Note {
    let message = format!("annotation {other} is understood; its name here is {ours}");
    Note { warning: false, reason: REASON_RENAMED, message }
}

fn change(service: &ServiceView, wanted: ConditionView) -> ConditionChange {
    if service.condition.as_ref() == Some(&wanted) {
        return ConditionChange::Leave;
    }
    let flips = service.condition.as_ref().is_none_or(|c| c.allocated != wanted.allocated);
    ConditionChange::Set { condition: wanted, flips }
}

fn write(
    service: &ServiceView,
    ingress: IngressChange,
    wanted: ConditionView,
    finalizer: FinalizerChange,
    notes: Vec<Note>,
) -> Option<StatusWrite> {
    let condition = change(service, wanted);
    if ingress == IngressChange::Leave && condition == ConditionChange::Leave && finalizer == FinalizerChange::Leave {
        return None;
    }
    Some(StatusWrite {
        service: service.key.clone(),
        uid: service.uid.clone(),
        version: service.version,
        ingress,
        condition,
        finalizer,
        notes,
    })
}

impl StatusWrite {
    /// The same without what is another controller's to write; nothing if that was all.
    pub fn without_ingress(mut self) -> Option<Self> {
        self.ingress = IngressChange::Leave;
        self.notes.retain(|note| note.reason != REASON_CORRECTED);
        let empty = self.condition == ConditionChange::Leave && self.finalizer == FinalizerChange::Leave;
        (!empty).then_some(self)
    }

    /// Whether this undoes a change that was not ours.
    pub fn is_correction(&self) -> bool {
        self.notes.iter().any(|note| note.reason == REASON_CORRECTED)
    }

    /// Whether the status was as it is written now before a third party, or the Service's own ports, changed it.
    pub fn is_repetition(&self) -> bool {
        let sets = self.ingress != IngressChange::Leave || self.finalizer == FinalizerChange::Add;
        sets && self.condition == ConditionChange::Leave
    }

    /// A strategic merge patch of `services/status`: other conditions, finalizers and fields are left alone. The subresource takes
    /// changes of finalizers as well, and a Service goes with its last one.
    pub fn patch(&self, now: Timestamp) -> Value {
        let mut metadata = as_seen(&self.uid, self.version);
        match self.finalizer {
            FinalizerChange::Leave => {}
            FinalizerChange::Add => metadata["finalizers"] = json!([CLEANUP_FINALIZER]),
            FinalizerChange::Remove => metadata["$deleteFromPrimitiveList/finalizers"] = json!([CLEANUP_FINALIZER]),
        }
        let mut status = json!({});
        match &self.ingress {
            IngressChange::Leave => {}
            IngressChange::Set(addresses, ports) => {
                let entries: Vec<Value> = addresses.iter().map(|address| ingress_entry(*address, ports)).collect();
                status["loadBalancer"] = json!({ "ingress": entries });
            }
            IngressChange::Clear => status["loadBalancer"] = json!({ "ingress": null }),
        }
        match &self.condition {
            ConditionChange::Leave => {}
            ConditionChange::Remove => {
                status["conditions"] = json!([{ "$patch": "delete", "type": CONDITION_ALLOCATED }]);
            }
            ConditionChange::Set { condition, flips } => {
                let mut entry = json!({
                    "type": CONDITION_ALLOCATED,
                    "status": if condition.allocated { "True" } else { "False" },
                    "reason": condition.reason,
                    "message": condition.message,
                });
                if *flips {
                    entry["lastTransitionTime"] = json!(now.strftime("%FT%TZ").to_string());
                }
                status["conditions"] = json!([entry]);
            }
        }
        json!({ "metadata": metadata, "status": status })
    }
}

/// Metadata of a patch. Both are preconditions: the API server answers 409 if the object is another one, or not as we saw it any more. So a
/// write that a former leader sends late changes nothing that its successor has decided.
pub fn as_seen(uid: &str, version: u64) -> Value {
    json!({ "uid": uid, "resourceVersion": version.to_string() })
}

fn ingress_entry(address: Ipv4Addr, ports: &[PortStatus]) -> Value {
    let mut entry = json!({ "ip": address, "ipMode": "VIP" });
    if !ports.is_empty() {
        entry["ports"] = ports.iter().map(port_entry).collect();
    }
    entry
}

fn port_entry(PortStatus { port, error }: &PortStatus) -> Value {
    let mut entry = json!({ "port": port.number, "protocol": port.protocol.as_str() });
    if let Some(error) = error {
        entry["error"] = json!(error);
    }
    entry
}

#[cfg(test)]
mod tests;
