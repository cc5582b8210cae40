//! Pure: decision → the status of a Service or a pool, and the patch that leads to it. Nothing if it is so already, so that
//! repeating a decision writes nothing.

use std::net::Ipv4Addr;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sheave_api::status::{CONDITION_ALLOCATED, CONDITION_READY, REASON_ALLOCATED, REASON_CORRECTED, REASON_RELEASED};
use sheave_api::{PoolReason, Refusal};

use crate::allocator::Usage;
use crate::allocator::pool::Pool;
use crate::request::Refused;
use crate::view::{ConditionView, Ingress, PoolView, ServiceKey, ServiceView};

/// A change of a Service's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusWrite {
    pub service: ServiceKey,
    pub uid: String,
    pub version: u64,
    pub ingress: IngressChange,
    pub condition: ConditionChange,
    /// The note for the user, if it is new.
    pub note: Option<Note>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IngressChange {
    Leave,
    Set(Ipv4Addr),
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

/// The Service has this address.
pub fn allocated(
    service: &ServiceView,
    address: Ipv4Addr,
    pool: &str,
    remark: Option<&Refused>,
) -> Option<StatusWrite> {
    let condition = ConditionView {
        allocated: true,
        reason: remark.map_or(REASON_ALLOCATED, |r| r.reason.as_str()).to_string(),
        message: remark.map_or_else(|| format!("{address} from pool '{pool}'"), |r| r.message.clone()),
    };
    let shown = service.ingress == [Ingress::Vip(address)];
    let news = service.condition.as_ref() != Some(&condition);
    let note = match (news, remark) {
        (false, _) => Note {
            warning: true,
            reason: REASON_CORRECTED,
            message: format!("a third party changed the status; it is {address} again"),
        },
        (true, Some(remark)) => warning(remark),
        (true, None) => Note { warning: false, reason: REASON_ALLOCATED, message: condition.message.clone() },
    };
    let ingress = if shown { IngressChange::Leave } else { IngressChange::Set(address) };
    write(service, ingress, condition, note)
}

/// The Service has no address. Without any pool we are not (yet) in charge and leave what a predecessor wrote.
pub fn refused(service: &ServiceView, refused: &Refused, any_pool: bool) -> Option<StatusWrite> {
    let condition = ConditionView {
        allocated: false,
        reason: refused.reason.as_str().to_string(),
        message: refused.message.clone(),
    };
    let news = service.condition.as_ref() != Some(&condition);
    let note = if news {
        warning(refused)
    } else {
        let message = "a third party changed the status; it is empty again".to_string();
        Note { warning: true, reason: REASON_CORRECTED, message }
    };
    let leave = service.ingress.is_empty() || (refused.reason == Refusal::NoPool && !any_pool);
    write(service, if leave { IngressChange::Leave } else { IngressChange::Clear }, condition, note)
}

/// The Service is no longer ours: take back what we wrote, and only that.
pub fn withdrawn(service: &ServiceView, held: &[Ipv4Addr]) -> Option<StatusWrite> {
    service.condition.as_ref()?;
    let ours = matches!(service.ingress[..], [Ingress::Vip(address)] if held.contains(&address));
    Some(StatusWrite {
        service: service.key.clone(),
        uid: service.uid.clone(),
        version: service.version,
        ingress: if ours { IngressChange::Clear } else { IngressChange::Leave },
        condition: ConditionChange::Remove,
        note: Some(Note {
            warning: false,
            reason: REASON_RELEASED,
            message: "the Service is no longer of type LoadBalancer with a class of ours".to_string(),
        }),
    })
}

fn warning(refused: &Refused) -> Note {
    Note { warning: true, reason: refused.reason.as_str(), message: refused.message.clone() }
}

fn write(service: &ServiceView, ingress: IngressChange, wanted: ConditionView, note: Note) -> Option<StatusWrite> {
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
        note: Some(note),
    })
}

impl StatusWrite {
    /// Whether this undoes a change that was not ours.
    pub fn is_correction(&self) -> bool {
        self.note.as_ref().is_some_and(|note| note.reason == REASON_CORRECTED)
    }

    /// A strategic merge patch of `services/status`: other conditions and other fields are left alone.
    pub fn patch(&self, now: Timestamp) -> Value {
        // Both are preconditions: the API server answers 409 if the Service is another one.
        let mut metadata = json!({ "uid": self.uid });
        if self.ingress == IngressChange::Clear {
            metadata["resourceVersion"] = json!(self.version.to_string());
        }
        let mut status = json!({});
        match self.ingress {
            IngressChange::Leave => {}
            IngressChange::Set(address) => {
                status["loadBalancer"] = json!({ "ingress": [{ "ip": address, "ipMode": "VIP" }] });
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

/// A change of a pool's status, as a merge patch.
pub fn pool_status(view: &PoolView, pool: &Pool, usage: Usage, now: Timestamp) -> Option<Value> {
    let ready = if pool.reason == PoolReason::Valid { "True" } else { "False" };
    let known = view.status.conditions.iter().find(|c| c.type_ == CONDITION_READY);
    let same_condition = known.is_some_and(|c| {
        c.status == ready
            && c.reason == pool.reason.as_str()
            && c.message == pool.message
            && c.observed_generation == Some(view.generation)
    });
    let counts = (view.status.assigned, view.status.available, view.status.outside);
    if same_condition && counts == (usage.assigned, usage.available, usage.outside) {
        return None;
    }
    let since = known.filter(|c| c.status == ready).map_or(now, |c| c.last_transition_time.0);
    Some(json!({ "status": {
        "assigned": usage.assigned,
        "available": usage.available,
        "outside": usage.outside,
        "conditions": [{
            "type": CONDITION_READY,
            "status": ready,
            "reason": pool.reason.as_str(),
            "message": pool.message,
            "observedGeneration": view.generation,
            "lastTransitionTime": since.strftime("%FT%TZ").to_string(),
        }],
    }}))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn service() -> ServiceView {
        ServiceView {
            key: ServiceKey { namespace: "default".into(), name: "web".into() },
            uid: "u".into(),
            version: 7,
            created: 0,
            load_balancer: true,
            class: None,
            wants_ipv4: true,
            pool: None,
            addresses: None,
            ingress: vec![],
            condition: None,
        }
    }

    fn exhausted() -> Refused {
        Refused { reason: Refusal::PoolExhausted, message: "full".into() }
    }

    /// The Service as it is after the write.
    fn after(service: &ServiceView, write: &StatusWrite) -> ServiceView {
        let mut service = service.clone();
        match write.ingress {
            IngressChange::Leave => {}
            IngressChange::Set(address) => service.ingress = vec![Ingress::Vip(address)],
            IngressChange::Clear => service.ingress.clear(),
        }
        match &write.condition {
            ConditionChange::Leave => {}
            ConditionChange::Remove => service.condition = None,
            ConditionChange::Set { condition, .. } => service.condition = Some(condition.clone()),
        }
        service
    }

    #[test]
    fn a_grant_is_shown_once_and_corrected_after_a_third_party_change() {
        let first = allocated(&service(), VIP, "p", None).unwrap();
        let patch = first.patch(Timestamp::UNIX_EPOCH);
        assert_eq!(patch["status"]["loadBalancer"]["ingress"], json!([{"ip": "192.0.2.1", "ipMode": "VIP"}]));
        assert_eq!(patch["status"]["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:00Z");
        let shown = after(&service(), &first);
        assert_eq!(allocated(&shown, VIP, "p", None), None);
        let foreign = ServiceView { ingress: vec![Ingress::Vip(Ipv4Addr::new(192, 0, 2, 66))], ..shown };
        let again = allocated(&foreign, VIP, "p", None).unwrap();
        assert!(again.is_correction() && again.ingress == IngressChange::Set(VIP));
    }

    #[test]
    fn a_refusal_empties_the_status_unless_there_is_no_pool_at_all() {
        let foreign = ServiceView { ingress: vec![Ingress::Vip(VIP)], ..service() };
        let write = refused(&foreign, &exhausted(), true).unwrap();
        assert_eq!(write.ingress, IngressChange::Clear);
        assert_eq!(write.patch(Timestamp::UNIX_EPOCH)["metadata"]["resourceVersion"], "7");
        assert_eq!(write.note.unwrap().reason, "PoolExhausted");
        let no_pool = Refused { reason: Refusal::NoPool, message: "none".into() };
        assert_eq!(refused(&foreign, &no_pool, false).unwrap().ingress, IngressChange::Leave);
    }

    #[test]
    fn what_we_did_not_write_is_left_when_a_service_is_no_longer_ours() {
        assert_eq!(withdrawn(&service(), &[VIP]), None, "we never touched it");
        let ours = after(&service(), &allocated(&service(), VIP, "p", None).unwrap());
        assert_eq!(withdrawn(&ours, &[VIP]).unwrap().ingress, IngressChange::Clear);
        let foreign = ServiceView { ingress: vec![Ingress::Other], ..ours };
        assert_eq!(withdrawn(&foreign, &[VIP]).unwrap().ingress, IngressChange::Leave);
    }
}
