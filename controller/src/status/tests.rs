use sheave_api::Refusal;

use super::*;
use crate::view::{Port, example as service};

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn exhausted() -> Refused {
    Refused { reason: Refusal::PoolExhausted, message: "full".into() }
}

/// All its ports have a place.
fn allocated(service: &ServiceView, grants: &[(Ipv4Addr, &str)], remarks: &[Refused]) -> Option<StatusWrite> {
    super::allocated(service, grants, remarks, &BTreeSet::new())
}

/// The Service as it is after the write.
fn after(service: &ServiceView, write: &StatusWrite) -> ServiceView {
    let mut service = service.clone();
    match &write.ingress {
        IngressChange::Leave => {}
        IngressChange::Set(addresses, ports) => {
            service.ingress = addresses.iter().map(|address| Ingress::Vip(*address, ports.clone())).collect();
        }
        IngressChange::Clear => service.ingress.clear(),
    }
    match &write.condition {
        ConditionChange::Leave => {}
        ConditionChange::Remove => service.condition = None,
        ConditionChange::Set { condition, .. } => service.condition = Some(condition.clone()),
    }
    match write.finalizer {
        FinalizerChange::Leave => {}
        FinalizerChange::Add => service.finalizer = true,
        FinalizerChange::Remove => service.finalizer = false,
    }
    service
}

#[test]
fn addresses_of_nodes_are_shown_once_and_without_a_finalizer() {
    let addresses = [11, 12].map(|last| Ipv4Addr::new(192, 0, 2, last));
    let first = at_nodes(&service(), &addresses, 2, None, false).unwrap();
    let patch = first.patch(Timestamp::UNIX_EPOCH);
    let entries = json!([{"ip": "192.0.2.11", "ipMode": "VIP"}, {"ip": "192.0.2.12", "ipMode": "VIP"}]);
    assert_eq!((&patch["status"]["loadBalancer"]["ingress"], first.finalizer), (&entries, FinalizerChange::Leave));
    let shown = after(&service(), &first);
    assert_eq!(at_nodes(&shown, &addresses, 2, None, false), None);
    // Local, without a pod anywhere: it keeps its ports.
    let none = after(&shown, &at_nodes(&shown, &[], 2, None, false).unwrap());
    assert!(none.ingress.is_empty() && none.condition.as_ref().unwrap().allocated);
    // What was granted from a pool goes first, and the finalizer after it.
    let pooled = ServiceView { finalizer: true, managed: true, ..shown.clone() };
    assert_eq!(at_nodes(&pooled, &addresses, 2, None, true), None);
    assert_eq!(at_nodes(&pooled, &addresses, 2, None, false).unwrap().finalizer, FinalizerChange::Remove);
    assert_eq!(withdrawn_from_nodes(&shown, &addresses).unwrap().ingress, IngressChange::Clear);
    assert_eq!(withdrawn_from_nodes(&service(), &[]), None);
}

#[test]
fn a_grant_is_shown_once_and_corrected_after_a_third_party_change() {
    let first = allocated(&service(), &[(VIP, "p")], &[]).unwrap();
    let patch = first.patch(Timestamp::UNIX_EPOCH);
    assert_eq!(patch["status"]["loadBalancer"]["ingress"], json!([{"ip": "192.0.2.1", "ipMode": "VIP"}]));
    assert_eq!(patch["status"]["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:00Z");
    let shown = after(&service(), &first);
    assert_eq!(allocated(&shown, &[(VIP, "p")], &[]), None);
    let foreign = ServiceView { ingress: vec![Ingress::Vip(Ipv4Addr::new(192, 0, 2, 66), vec![])], ..shown };
    let again = allocated(&foreign, &[(VIP, "p")], &[]).unwrap();
    assert!(again.is_correction() && again.ingress == IngressChange::Set(vec![VIP], vec![]));
}

#[test]
fn an_annotation_of_another_name_is_said_once() {
    let named = ServiceView { renamed: vec![("metallb.io/address-pool", "sheave.dev/address-pool")], ..service() };
    let first = allocated(&named, &[(VIP, "p")], &[]).unwrap();
    assert_eq!(first.notes[1].reason, "AnnotationRenamed");
    assert!(!first.notes[1].warning && first.notes[1].message.contains("its name here is sheave.dev/address-pool"));
    let remark = Refused { reason: Refusal::UnknownPool, message: "none".into() };
    let later = allocated(&after(&named, &first), &[(VIP, "p")], &[remark]).unwrap();
    assert_eq!(later.notes.len(), 1);
}

#[test]
fn a_refusal_empties_the_status_only_where_it_may() {
    let foreign = ServiceView { ingress: vec![Ingress::Vip(VIP, vec![])], ..service() };
    let write = refused(&foreign, &exhausted(), true).unwrap();
    assert_eq!(write.ingress, IngressChange::Clear);
    assert_eq!(write.patch(Timestamp::UNIX_EPOCH)["metadata"]["resourceVersion"], "7");
    assert_eq!(write.notes[0].reason, "PoolExhausted");
    let condition_only = refused(&foreign, &exhausted(), false).unwrap();
    assert_eq!(condition_only.ingress, IngressChange::Leave);
    assert_eq!(refused(&after(&foreign, &condition_only), &exhausted(), false), None, "said once, whatever it shows");
}

#[test]
fn an_address_of_another_controller_is_not_corrected() {
    let first = allocated(&service(), &[(VIP, "p")], &[]).unwrap();
    let shown = after(&service(), &first);
    let foreign = ServiceView { ingress: vec![Ingress::Other], ..shown };
    let correction = allocated(&foreign, &[(VIP, "p")], &[]).unwrap();
    assert!(correction.is_correction() && correction.without_ingress().is_none());
    let remark = Refused { reason: Refusal::AddressOfNode, message: "of a node".into() };
    let said = allocated(&foreign, &[(VIP, "p")], &[remark]).unwrap().without_ingress().unwrap();
    assert_eq!((said.ingress, said.notes.len()), (IngressChange::Leave, 1));
}

#[test]
fn what_we_did_not_write_is_left_when_a_service_is_no_longer_ours() {
    assert_eq!(withdrawn(&service(), &[VIP.into()], true), None, "we never touched it");
    let theirs = ServiceView { finalizer: true, ..service() };
    assert_eq!(withdrawn(&theirs, &[], false), None, "another controller's finalizer");
    let ours = after(&service(), &allocated(&service(), &[(VIP, "p")], &[]).unwrap());
    assert_eq!(withdrawn(&ours, &[VIP.into()], true).unwrap().ingress, IngressChange::Clear);
    let foreign = ServiceView { ingress: vec![Ingress::Other], ..ours };
    assert_eq!(withdrawn(&foreign, &[VIP.into()], true), None, "the ledger entry goes first");
    assert_eq!(withdrawn(&foreign, &[], false).unwrap().ingress, IngressChange::Leave);
    let write = refused(&theirs, &exhausted(), true).unwrap();
    assert_eq!(write.finalizer, FinalizerChange::Leave);
    assert_eq!(withdrawn(&after(&theirs, &write), &[], false).unwrap().finalizer, FinalizerChange::Leave);
}

#[test]
fn the_finalizer_comes_first_and_goes_last() {
    let first = granting(&service(), &[(VIP.into(), "p".into())]);
    let patch = first.patch(Timestamp::UNIX_EPOCH);
    assert_eq!(patch["metadata"]["finalizers"], json!(["service.kubernetes.io/load-balancer-cleanup"]));
    assert_eq!(patch["metadata"]["resourceVersion"], "7", "a Service that is being deleted takes none");
    let prepared = after(&service(), &first);
    assert!(prepared.finalizer_is_ours() && prepared.ingress.is_empty());
    let shown = after(&prepared, &allocated(&prepared, &[(VIP, "p")], &[]).unwrap());
    assert!(shown.finalizer_is_ours());

    let deleted = ServiceView { deleting: true, ..shown.clone() };
    let cleared = after(&deleted, &withdrawn(&deleted, &[VIP.into()], true).unwrap());
    assert!(cleared.finalizer_is_ours() && cleared.ingress.is_empty());
    assert_eq!(withdrawn(&cleared, &[VIP.into()], true), None, "the ledger entry goes first");
    let last = withdrawn(&cleared, &[], false).unwrap();
    let metadata = &last.patch(Timestamp::UNIX_EPOCH)["metadata"];
    assert_eq!(metadata["$deleteFromPrimitiveList/finalizers"], json!(["service.kubernetes.io/load-balancer-cleanup"]));
    assert!(last.notes.is_empty(), "no Event for a Service that goes");
    let gone = after(&cleared, &last);
    assert!(!gone.finalizer && gone.condition.is_none());

    // A third party takes the condition away: it is written again before the address goes.
    let unmarked = ServiceView { condition: None, ingress: vec![], ..deleted };
    let marked = after(&unmarked, &withdrawn(&unmarked, &[VIP.into()], true).unwrap());
    assert!(marked.finalizer_is_ours());
    let unmarked = ServiceView { managed: true, ..unmarked };
    assert_eq!(
        withdrawn(&unmarked, &[], false).unwrap().finalizer,
        FinalizerChange::Remove,
        "or the record says whose it is"
    );
    // A refusal leaves no finalizer behind.
    assert_eq!(refused(&shown, &exhausted(), true).unwrap().finalizer, FinalizerChange::Remove);
    // A Service of a version without finalizer gets it, and nothing else.
    let old = ServiceView { finalizer: false, ..shown };
    let added = allocated(&old, &[(VIP, "p")], &[]).unwrap();
    assert!(added.is_repetition() && !added.is_correction() && added.finalizer == FinalizerChange::Add);
}

#[test]
fn ports_that_are_not_served_are_listed_with_the_others_and_follow_the_spec() {
    let sctp = Port::new(38412, Some("SCTP"));
    let mixed = ServiceView { ports: vec![Port::new(80, None), sctp.clone()], ..service() };
    let remark = Refused { reason: Refusal::ProtocolNotServed, message: "not served: SCTP".into() };
    let first = allocated(&mixed, &[(VIP, "p")], std::slice::from_ref(&remark)).unwrap();
    let reasons: Vec<&str> = first.notes.iter().map(|note| note.reason).collect();
    assert_eq!(reasons, ["AddressAllocated", "ProtocolNotServed"]);
    let patch = first.patch(Timestamp::UNIX_EPOCH);
    let ports = &patch["status"]["loadBalancer"]["ingress"][0]["ports"];
    let error = "sheave.dev/ProtocolNotServed";
    let expected = json!([{"port": 80, "protocol": "TCP"}, {"port": 38412, "protocol": "SCTP", "error": error}]);
    assert_eq!(*ports, expected);
    assert_eq!(patch["status"]["conditions"][0]["message"], "192.0.2.1 from pool 'p'; not served: SCTP");

    let shown = after(&mixed, &first);
    assert_eq!(allocated(&shown, &[(VIP, "p")], std::slice::from_ref(&remark)), None);
    let more = ServiceView { ports: vec![Port::new(80, None), Port::new(81, None), sctp], ..shown.clone() };
    let again = allocated(&more, &[(VIP, "p")], &[remark]).unwrap();
    assert!(again.notes.is_empty() && again.is_repetition() && !again.is_correction(), "{again:?}");
    let plain = ServiceView { ports: vec![Port::new(80, None)], ..shown };
    let last = allocated(&plain, &[(VIP, "p")], &[]).unwrap();
    assert_eq!(last.ingress, IngressChange::Set(vec![VIP], vec![]), "the list goes with its reason");
}
