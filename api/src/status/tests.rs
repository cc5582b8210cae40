use super::*;
use crate::ProbeVerdict;

/// What a user reads somewhere can be looked up.
#[test]
fn every_name_has_a_line_in_the_document() {
    let document = include_str!("../../../docs/troubleshooting.md");
    let refusals = Refusal::ALL.map(Refusal::as_str);
    let pools = PoolReason::ALL.map(PoolReason::as_str);
    let verdicts = ProbeVerdict::ALL.map(ProbeVerdict::as_str);
    let owners = NoOwner::ALL.map(NoOwner::as_str);
    let advertisements = AdvertisementReason::ALL.map(AdvertisementReason::as_str);
    for name in refusals.into_iter().chain(pools).chain(owners).chain(advertisements).chain(verdicts) {
        assert!(document.contains(&format!("\n|`{name}`|")), "{name}");
    }
    assert!(Refusal::ALL.iter().filter(|refusal| refusal.guards()).count() == 13);
}

/// The derived `Debug` is the variant's name; the name in the API must be the same.
#[test]
fn the_name_is_the_variant() {
    for refusal in Refusal::ALL {
        assert_eq!(refusal.as_str(), format!("{refusal:?}"));
        assert_eq!(refusal.port_error(), format!("sheave.dev/{refusal:?}"));
    }
    for reason in PoolReason::ALL {
        assert_eq!(reason.as_str(), format!("{reason:?}"));
    }
    for reason in AdvertisementReason::ALL {
        assert_eq!(reason.as_str(), format!("{reason:?}"));
    }
    for reason in Partly::ALL {
        assert_eq!(reason.as_str(), format!("{reason:?}"));
    }
    for reason in NoOwner::ALL {
        assert_eq!(reason.as_str(), format!("{reason:?}"));
    }
}

/// The field of the API takes 64 characters; a status that does not fit would not be written at all.
#[test]
fn all_parts_fit_into_a_reason_and_are_read_again() {
    let mut all = BTreeSet::from(Partly::ALL);
    let beside = Partly::join(&all).unwrap();
    assert_eq!(beside, "AddressConflict,FQDNNotServed,NodeNotListed,NodeWithoutSpeaker");
    all.remove(&Partly::AddressConflict);
    let reason = Partly::join(&all).unwrap();
    assert_eq!(reason, "FQDNNotServed,NodeNotListed,NodeWithoutSpeaker,EndpointAddress");
    for (reason, parts) in [(&beside, 0..4), (&reason, 1..5)] {
        assert!(reason.len() <= 64, "{}", reason.len());
        assert_eq!(Partly::parse(reason), Partly::ALL[parts].iter().copied().collect());
    }
    let two = BTreeSet::from([Partly::AddressConflict, Partly::ClientAddressLost]);
    assert_eq!(Partly::join(&two).as_deref(), Some("AddressConflict,ClientAddressLost"));
    for part in Partly::ALL {
        let one = BTreeSet::from([part]);
        assert_eq!((Partly::join(&one).as_deref(), Partly::parse(part.as_str())), (Some(part.as_str()), one));
    }
    assert_eq!((Partly::join(&BTreeSet::new()), Partly::parse("HandingOver")), (None, BTreeSet::new()));
}
