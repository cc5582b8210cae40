//! Totals of members on the wire, also to nodes that do not know of them.

use super::*;
use crate::health;
use crate::health::totals::Total;
use crate::wire::report::MAX_TOTALS;
use crate::wire::seal::MAC_LEN;

/// For status: with the summary, in as many datagrams as they need, and once more each second.
#[test]
fn totals_of_members_reach_every_node() {
    let mut wire = Wire::new(2);
    wire.run(SECOND);
    let total = |connections| Total { connections, ..Total::default() };
    let totals: Totals = (0..100).map(|port| ((port, [192, 0, 2, 11].into()), total(u64::from(port)))).collect();
    wire.event(0, Event::Totals(totals.clone()));
    wire.event(1, Event::Totals(Totals::new()));
    wire.log.clear();
    wire.run(2 * SECOND);
    let known = |at: usize| -> Vec<&Totals> {
        let of = |(node, action): &'_ (usize, Action)| *node == at && matches!(action, Action::Totals { .. });
        let taken = wire.log.iter().filter(|entry| of(entry));
        taken
            .filter_map(|(_, action)| if let Action::Totals { totals, .. } = action { Some(totals) } else { None })
            .collect()
    };
    let all: Totals = known(1).into_iter().flatten().map(|(place, total)| (*place, *total)).collect();
    assert_eq!((all.len(), known(1).len()), (99, 2 * 99_usize.div_ceil(MAX_TOTALS)), "port 0 has counted nothing");
    assert!(all.iter().all(|(place, total)| totals[place] == *total));
    assert_eq!(known(0), [&Totals::new(), &Totals::new()], "it counts, and has counted nothing");
}

/// What a speaker does that does not know a kind of datagram: it counts it, and takes everything else.
#[test]
fn a_kind_that_is_not_known_costs_no_other_report() {
    let mut wire = Wire::new(2);
    let held = report(7, [1]);
    wire.local(0, &held);
    wire.run(2 * SECOND);
    wire.log.clear();
    wire.sent.clear();
    // The datagrams of node 0 go by way of the test, to a node that knows kinds up to 4.
    wire.filtered.insert((0, 1, true));
    let total = Total { connections: 3, ..Total::default() };
    wire.event(0, Event::Totals([((6443, [192, 0, 2, 11].into()), total)].into()));
    wire.event(0, Event::Health(health::Report { reaches: true, ..health::Report::default() }));
    wire.run(2 * SECOND);
    let mut kinds = BTreeMap::<u8, usize>::new();
    for mut bytes in wire.sent.remove(&0).unwrap_or_default() {
        *kinds.entry(bytes[5]).or_default() += 1;
        if bytes[5] > 4 {
            // As an unknown kind is to this one.
            bytes[5] = u8::MAX;
            bytes.truncate(bytes.len() - MAC_LEN);
            config(0, 1).keys.seal(&mut bytes);
        }
        wire.event(1, to_all(bytes));
    }
    assert!(kinds.keys().eq(&[1, 4, 5]), "{kinds:?}");
    let of_1 = || wire.log.iter().filter(|(node, _)| *node == 1).map(|(_, action)| action);
    let count = |is: &dyn Fn(&Action) -> bool| of_1().filter(|action| is(action)).count();
    assert_eq!(count(&|action| *action == Action::Rejected(Reject::Malformed)), kinds[&5]);
    assert_eq!(count(&|action| matches!(action, Action::Health { report, .. } if report.reaches)), kinds[&4]);
    assert!(!of_1().any(|action| matches!(action, Action::Rejected(reject) if *reject != Reject::Malformed)));
    assert_eq!(wire.known(1, 0), Some(held));
    assert!(wire.nodes[&1].has_reported(&name(0), wire.now - 2 * SECOND));
}
