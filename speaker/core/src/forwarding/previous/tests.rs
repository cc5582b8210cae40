use alloc::string::String;
use alloc::vec;

use super::*;
use crate::view::Protocol;
use crate::view::endpoints::service_key;

const HOUR: Duration = Duration::from_secs(3600);

fn key(port: u16) -> ServiceKey {
    service_key([192, 0, 2, 1].into(), port, Protocol::Tcp)
}

/// Pods on node a.
fn members(pods: u32) -> Arc<Members> {
    Arc::new(Members::new([("a".into(), pods, false), ("b".into(), 1, false)]))
}

fn at(seconds: u64) -> Instant {
    Instant::from_millis(seconds * 1000)
}

/// Port 80 has these members from then on.
fn record(previous_rings: &mut PreviousRings, seconds: u64, pods: u32) {
    previous_rings.record(at(seconds), &[(key(80), members(pods))].into());
}

/// Pods on node a and when it ended, newest first.
fn previous(previous_rings: &mut PreviousRings) -> Vec<(Option<u32>, u64)> {
    let pods = |previous_ring: &PreviousRing| {
        previous_ring.members.iter().find(|(node, _)| *node == "a").map(|(_, member)| member.pods)
    };
    previous_rings
        .previous_mut(&key(80))
        .iter()
        .map(|previous_ring| (pods(previous_ring), previous_ring.ended.as_nanos() / 1_000_000_000))
        .collect()
}

#[test]
fn newest_first_each_set_once_and_not_the_current_one() {
    let mut previous_rings = PreviousRings::new(HOUR);
    for (seconds, pods) in [(10, 1), (20, 2), (30, 2), (40, 3), (50, 2), (60, 1)] {
        record(&mut previous_rings, seconds, pods);
    }
    assert_eq!(previous(&mut previous_rings), [(Some(2), 60), (Some(3), 50)]);
    assert_eq!(previous_rings.generation(), 5, "what changes nothing is not worth saving");
}

#[test]
fn bounded_in_time_and_number() {
    let mut previous_rings = PreviousRings::new(HOUR);
    for n in 1..40 {
        record(&mut previous_rings, u64::from(n), n);
    }
    assert_eq!(previous(&mut previous_rings).len(), MAX_PREVIOUS);
    assert_eq!(previous(&mut previous_rings)[0], (Some(38), 39));
    record(&mut previous_rings, 39 + 3600, 39);
    assert_eq!(previous(&mut previous_rings), [(Some(38), 39)]);
    record(&mut previous_rings, 40 + 3600, 39);
    assert_eq!(previous(&mut previous_rings), []);
}

#[test]
fn a_service_that_is_gone_is_remembered_for_the_window() {
    let mut previous_rings = PreviousRings::new(HOUR);
    record(&mut previous_rings, 10, 1);
    previous_rings.record(at(20), &BTreeMap::new());
    assert_eq!(previous(&mut previous_rings), [(Some(1), 20)]);
    previous_rings.record(at(20 + 3601), &BTreeMap::new());
    assert!(previous_rings.services.is_empty());
}

#[test]
fn a_node_that_was_away_records_the_ring_without_itself() {
    let mut previous_rings = PreviousRings::new(HOUR);
    record(&mut previous_rings, 10, 1);
    previous_rings.was_away("a", at(20));
    let lost: Vec<bool> =
        previous_rings.previous_mut(&key(80))[0].members.iter().map(|(_, member)| member.down).collect();
    assert_eq!(lost, [true, false]);
    previous_rings.was_away("stranger", at(30));
    assert_eq!(previous(&mut previous_rings).len(), 1);
}

fn saved() -> SavedRings {
    let mut previous_rings = PreviousRings::new(HOUR);
    for (seconds, pods) in [(10, 1), (20, 2), (30, 3)] {
        previous_rings.record(at(seconds), &[(key(80), members(pods)), (key(81), members(pods))].into());
    }
    previous_rings.save("boot", at(100))
}

/// On the same boot times are exact; after another nothing has aged while the machine was off.
#[test]
fn the_next_run_restores_the_state_of_this_one() {
    let mut previous_rings = PreviousRings::restore(&saved(), HOUR, "boot", at(200)).unwrap();
    assert_eq!(previous(&mut previous_rings), [(Some(2), 30), (Some(1), 20)]);
    record(&mut previous_rings, 210, 4);
    assert_eq!(previous(&mut previous_rings)[0], (Some(3), 210), "what was current when it was saved");
    let mut previous_rings = PreviousRings::restore(&saved(), HOUR, "another boot", at(1000)).unwrap();
    assert_eq!(previous(&mut previous_rings), [(Some(2), 930), (Some(1), 920)]);
    assert_eq!(PreviousRings::restore(&saved(), HOUR, "boot", at(200)).unwrap().save("boot", at(100)), saved());
}

#[test]
fn bad_files_are_refused_with_the_cause() {
    let refused = |change: &dyn Fn(&mut SavedRings)| {
        let mut saved = saved();
        change(&mut saved);
        PreviousRings::restore(&saved, HOUR, "boot", at(200)).map(|_| ()).unwrap_err()
    };
    let twice = |port| BadSavedRings::Twice { address: [192, 0, 2, 1].into(), port, protocol: 6 };
    assert_eq!(refused(&|saved| saved.version = 2), BadSavedRings::Version(2));
    assert_eq!(refused(&|saved| saved.members.truncate(1)), BadSavedRings::Missing(1));
    assert_eq!(refused(&|saved| saved.members[0][0].0 = "a b".into()), BadSavedRings::Name("a b".into()));
    assert_eq!(refused(&|saved| saved.members[1][0].1 = 0), BadSavedRings::Members(1));
    assert_eq!(refused(&|saved| saved.members[1][0].0 = "b".into()), BadSavedRings::Members(1));
    assert_eq!(refused(&|saved| saved.services[1].port = 80), twice(80));
    let again = |saved: &mut SavedRings| {
        let previous_ring = saved.services[1].previous[0].clone();
        saved.services[1].previous.push(previous_ring);
    };
    assert_eq!(refused(&again), twice(81));
    let many = |saved: &mut SavedRings| saved.members[0] = vec![(String::from("a"), 1, false); 2000];
    assert_eq!(refused(&many), BadSavedRings::TooMany { what: "nodes in a set of members", limit: 1024 });
    let long = |saved: &mut SavedRings| saved.services[0].previous = vec![saved.services[0].previous[0].clone(); 17];
    assert_eq!(refused(&long), BadSavedRings::TooMany { what: "previous rings of a service port", limit: 16 });
}
