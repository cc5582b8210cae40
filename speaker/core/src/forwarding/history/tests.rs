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
fn record(history: &mut History, seconds: u64, pods: u32) {
    history.record(at(seconds), &[(key(80), members(pods))].into());
}

/// Pods on node a and when it ended, newest first.
fn formers(history: &mut History) -> Vec<(Option<u32>, u64)> {
    let pods = |former: &Former| former.members.iter().find(|(node, _)| *node == "a").map(|(_, member)| member.pods);
    history.formers_mut(&key(80)).iter().map(|former| (pods(former), former.ended.as_nanos() / 1_000_000_000)).collect()
}

#[test]
fn newest_first_each_set_once_and_not_the_current_one() {
    let mut history = History::new(HOUR);
    for (seconds, pods) in [(10, 1), (20, 2), (30, 2), (40, 3), (50, 2), (60, 1)] {
        record(&mut history, seconds, pods);
    }
    assert_eq!(formers(&mut history), [(Some(2), 60), (Some(3), 50)]);
    assert_eq!(history.generation(), 5, "what changes nothing is not worth saving");
}

#[test]
fn bounded_in_time_and_number() {
    let mut history = History::new(HOUR);
    for n in 1..40 {
        record(&mut history, u64::from(n), n);
    }
    assert_eq!(formers(&mut history).len(), MAX_FORMERS);
    assert_eq!(formers(&mut history)[0], (Some(38), 39));
    record(&mut history, 39 + 3600, 39);
    assert_eq!(formers(&mut history), [(Some(38), 39)]);
    record(&mut history, 40 + 3600, 39);
    assert_eq!(formers(&mut history), []);
}

#[test]
fn a_service_that_is_gone_is_remembered_for_the_window() {
    let mut history = History::new(HOUR);
    record(&mut history, 10, 1);
    history.record(at(20), &BTreeMap::new());
    assert_eq!(formers(&mut history), [(Some(1), 20)]);
    history.record(at(20 + 3601), &BTreeMap::new());
    assert!(history.services.is_empty());
}

#[test]
fn who_was_away_takes_the_ring_without_itself_for_a_former_one() {
    let mut history = History::new(HOUR);
    record(&mut history, 10, 1);
    history.was_away("a", at(20));
    let lost: Vec<bool> = history.formers_mut(&key(80))[0].members.iter().map(|(_, member)| member.down).collect();
    assert_eq!(lost, [true, false]);
    history.was_away("stranger", at(30));
    assert_eq!(formers(&mut history).len(), 1);
}

fn saved() -> Saved {
    let mut history = History::new(HOUR);
    for (seconds, pods) in [(10, 1), (20, 2), (30, 3)] {
        history.record(at(seconds), &[(key(80), members(pods)), (key(81), members(pods))].into());
    }
    history.save("boot", at(100))
}

/// On the same boot times are exact; after another nothing has aged while the machine was off.
#[test]
fn the_next_run_knows_what_this_one_knew() {
    let mut history = History::restore(&saved(), HOUR, "boot", at(200)).unwrap();
    assert_eq!(formers(&mut history), [(Some(2), 30), (Some(1), 20)]);
    record(&mut history, 210, 4);
    assert_eq!(formers(&mut history)[0], (Some(3), 210), "what was current when it was saved");
    let mut history = History::restore(&saved(), HOUR, "another boot", at(1000)).unwrap();
    assert_eq!(formers(&mut history), [(Some(2), 930), (Some(1), 920)]);
    assert_eq!(History::restore(&saved(), HOUR, "boot", at(200)).unwrap().save("boot", at(100)), saved());
}

#[test]
fn bad_files_are_refused_and_say_why() {
    let refused = |change: &dyn Fn(&mut Saved)| {
        let mut saved = saved();
        change(&mut saved);
        History::restore(&saved, HOUR, "boot", at(200)).map(|_| ()).unwrap_err()
    };
    let twice = |port| BadHistory::Twice { address: [192, 0, 2, 1].into(), port, protocol: 6 };
    assert_eq!(refused(&|saved| saved.version = 2), BadHistory::Version(2));
    assert_eq!(refused(&|saved| saved.members.truncate(1)), BadHistory::Missing(1));
    assert_eq!(refused(&|saved| saved.members[0][0].0 = "a b".into()), BadHistory::Name("a b".into()));
    assert_eq!(refused(&|saved| saved.members[1][0].1 = 0), BadHistory::Members(1));
    assert_eq!(refused(&|saved| saved.members[1][0].0 = "b".into()), BadHistory::Members(1));
    assert_eq!(refused(&|saved| saved.services[1].port = 80), twice(80));
    let again = |saved: &mut Saved| {
        let former = saved.services[1].formers[0].clone();
        saved.services[1].formers.push(former);
    };
    assert_eq!(refused(&again), twice(81));
    let many = |saved: &mut Saved| saved.members[0] = vec![(String::from("a"), 1, false); 2000];
    assert_eq!(refused(&many), BadHistory::TooMany { what: "nodes in a set of members", limit: 1024 });
    let long = |saved: &mut Saved| saved.services[0].formers = vec![saved.services[0].formers[0].clone(); 17];
    assert_eq!(refused(&long), BadHistory::TooMany { what: "former rings of a service", limit: 16 });
}
