//! Pure: decision → the status of a Service or a pool, and the patch that leads to it. Nothing if it is so already, so that
//! repeating a decision writes nothing.

mod pool;

use std::net::Ipv4Addr;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sheave_api::Refusal;
use sheave_api::status::{CONDITION_ALLOCATED, REASON_ALLOCATED, REASON_CORRECTED, REASON_RELEASED};

use crate::coverage;
use crate::request::Refused;
use crate::view::{ConditionView, Ingress, PortStatus, ServiceKey, ServiceView};

pub use pool::pool_status;

/// A change of a Service's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusWrite {
    pub service: ServiceKey,
    pub uid: String,
    pub version: u64,
    pub ingress: IngressChange,
    pub condition: ConditionChange,
    /// What is new to the user.
    pub notes: Vec<Note>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IngressChange {
    Leave,
    Set(Ipv4Addr, Vec<PortStatus>),
    /// Only as long as the Service is as we saw it.
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

/// An Event on a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

/// The Service has this address. The remarks name what is not as the Service wants it, the most important one first.
pub fn allocated(service: &ServiceView, address: Ipv4Addr, pool: &str, remarks: &[Refused]) -> Option<StatusWrite> {
    let granted = format!("{address} from pool '{pool}'");
    let sentences = std::iter::once(&granted).chain(remarks.iter().map(|remark| &remark.message));
    let condition = ConditionView {
        allocated: true,
        reason: remarks.first().map_or(REASON_ALLOCATED, |remark| remark.reason.as_str()).to_string(),
        message: sentences.map(String::as_str).collect::<Vec<_>>().join("; "),
    };
    let ports = coverage::ports(service);
    let mut notes = Vec::new();
    if service.condition.as_ref() != Some(&condition) {
        if remarks.is_empty() || service.condition.as_ref().is_none_or(|before| !before.allocated) {
            notes.push(Note { warning: false, reason: REASON_ALLOCATED, message: granted });
        }
        notes.extend(remarks.iter().map(warning));
    } else if service.shown() != Some(address) {
        let message = format!("a third party changed the status; it is {address} again");
        notes.push(Note { warning: true, reason: REASON_CORRECTED, message });
    }
    let shown = matches!(&service.ingress[..], [Ingress::Vip(shown, listed)] if *shown == address && *listed == ports);
    let ingress = if shown { IngressChange::Leave } else { IngressChange::Set(address, ports) };
    write(service, ingress, condition, notes)
}

/// The Service has no address. Without any pool we are not (yet) in charge and leave what a predecessor wrote.
pub fn refused(service: &ServiceView, refused: &Refused, any_pool: bool) -> Option<StatusWrite> {
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
    let leave = service.ingress.is_empty() || (refused.reason == Refusal::NoPool && !any_pool);
    write(service, if leave { IngressChange::Leave } else { IngressChange::Clear }, condition, vec![note])
}

/// The Service is no longer ours: take back what we wrote, and only that.
pub fn withdrawn(service: &ServiceView, held: &[Ipv4Addr]) -> Option<StatusWrite> {
    service.condition.as_ref()?;
    let ours = service.shown().is_some_and(|address| held.contains(&address));
    Some(StatusWrite {
        service: service.key.clone(),
        uid: service.uid.clone(),
        version: service.version,
        ingress: if ours { IngressChange::Clear } else { IngressChange::Leave },
        condition: ConditionChange::Remove,
        notes: vec![Note {
            warning: false,
            reason: REASON_RELEASED,
            message: "the Service is no longer of type LoadBalancer with a class of ours".to_string(),
        }],
    })
}

fn warning(refused: &Refused) -> Note {
    Note { warning: true, reason: refused.reason.as_str(), message: refused.message.clone() }
}

fn write(
    service: &ServiceView,
    ingress: IngressChange,
    wanted: ConditionView,
    notes: Vec<Note>,
) -> Option<StatusWrite> {
    let condition = if service.condition.as_ref() == Some(&wanted) {
        ConditionChange::Leave
    } else {
        let flips = service.condition.as_ref().is_none_or(|c| c.allocated != wanted.allocated);
        ConditionChange::Set { condition: wanted, flips }
    };
    if ingress == IngressChange::Leave && condition == ConditionChange::Leave {
        return None;
    }
    Some(StatusWrite {
        service: service.key.clone(),
        uid: service.uid.clone(),
        version: service.version,
        ingress,
        condition,
        notes,
    })
}

impl StatusWrite {
    /// Whether this undoes a change that was not ours.
    pub fn is_correction(&self) -> bool {
        self.notes.iter().any(|note| note.reason == REASON_CORRECTED)
    }

    /// Whether the status was as it is written now before a third party, or the Service's own ports, changed it.
    pub fn is_repetition(&self) -> bool {
        self.ingress != IngressChange::Leave && self.condition == ConditionChange::Leave
    }

    /// A strategic merge patch of `services/status`: other conditions and other fields are left alone.
    pub fn patch(&self, now: Timestamp) -> Value {
        // Both are preconditions: the API server answers 409 if the Service is another one.
        let mut metadata = json!({ "uid": self.uid });
        if self.ingress == IngressChange::Clear {
            metadata["resourceVersion"] = json!(self.version.to_string());
        }
        let mut status = json!({});
        match &self.ingress {
            IngressChange::Leave => {}
            IngressChange::Set(address, ports) => {
                let mut entry = json!({ "ip": address, "ipMode": "VIP" });
                if !ports.is_empty() {
                    entry["ports"] = ports.iter().map(port_entry).collect();
                }
                status["loadBalancer"] = json!({ "ingress": [entry] });
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

fn port_entry(PortStatus { port, error }: &PortStatus) -> Value {
    let mut entry = json!({ "port": port.number, "protocol": port.protocol.as_str() });
    if let Some(error) = error {
        entry["error"] = json!(error);
    }
    entry
}

#[cfg(test)]
mod tests;
