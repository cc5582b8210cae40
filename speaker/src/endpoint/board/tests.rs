use std::time::Duration;

use sheave_api::NoOwner;
use sheave_endpoint::status::Total;
use sheave_endpoint::status::events::Event;
use speaker_core::health::drains::Drain;
use speaker_core::health::{Checked, Outcome, Standing, totals};
use speaker_core::time::Instant;

use super::*;

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_796_000_000 + second).unwrap()
}

fn board() -> Board {
    let text = "addresses: [192.0.2.100]
ports: [{listen: 6443}, {listen: 8443, target: 6443}]
members: [{name: a, address: 192.0.2.11}, {name: b, address: 192.0.2.12}, {name: c, address: 192.0.2.13, speaker: false}]
key: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=
health: {insecureSkipVerify: true}
";
    Board::new("a".into(), Endpoint::parse(text).unwrap(), 3, at(-9))
}

fn place(node: &str, member: u8, standing: Standing, outcome: Option<Outcome>) -> Place {
    let target = Target { address: [192, 0, 2, member].into(), port: 6443 };
    let checked = outcome.map(|outcome| Checked { outcome, took: Duration::from_millis(4) });
    Place { node: node.into(), target, standing, known: outcome.is_some(), checked }
}

fn snapshot(of_b: Place) -> Snapshot {
    let serves = |node, member| place(node, member, Standing::Serves, Some(Outcome::Ready));
    Snapshot { places: vec![serves("a", 11), of_b, serves("a", 13), serves("b", 13)], ..Snapshot::default() }
}

fn status(board: &Board) -> Status {
    let traffic = [(6443, Traffic { connections: 1, ..Traffic::default() })].into();
    let (version, not_ready, notes) = ("1".into(), vec![], vec![]);
    board.status(Surroundings { version, not_ready, notes, traffic }, at(100))
}

fn events(board: &Board) -> Vec<Change> {
    board.events(3, 0).events.into_iter().map(|Event { change, .. }| change).collect()
}

fn elsewhere(owner: &str, term: u64) -> Ownership {
    Ownership::Elsewhere { owner: owner.into(), term, conflict: false }
}

#[test]
fn owners_have_a_history_of_twenty() {
    let board = board();
    assert_eq!(status(&board).addresses[0].owner, None);
    board.ownership(VIP, &elsewhere("b", 1), at(1));
    board.ownership(VIP, &elsewhere("b", 2), at(2));
    board.ownership(VIP, &Ownership::Vacant(NoOwner::NoEligibleNode), at(3));
    let known = &status(&board).addresses[0];
    assert_eq!((known.owner.as_deref(), known.term, known.since), (Some("b"), Some(2), Some(at(1))));
    assert_eq!(known.history.len(), 1, "the same owner again is no change");
    board.ownership(VIP, &Ownership::Unowned(NoOwner::HandingOver), at(4));
    board.ownership(VIP, &Ownership::Vacant(NoOwner::NoEligibleNode), at(5));
    for second in 6..40 {
        let owner = if second % 2 == 0 { "a" } else { "b" };
        board.ownership(VIP, &elsewhere(owner, 3), at(second));
    }
    let known = &status(&board).addresses[0];
    assert_eq!((known.history.len(), known.history[0].at, known.history[19].at), (20, at(39), at(20)));
    let first: Vec<Change> = events(&board).into_iter().take(3).collect();
    let change = |from: Option<&str>, to: Option<&str>, term, reason: Option<&str>| Change::OwnerChanged {
        address: VIP,
        from: from.map(Into::into),
        to: to.map(Into::into),
        term,
        reason: reason.map(Into::into),
    };
    let expected = [
        change(None, Some("b"), Some(1), None),
        change(Some("b"), None, None, Some("HandingOver")),
        change(None, None, None, Some("NoEligibleNode")),
    ];
    assert_eq!(first, expected);
}

#[test]
fn a_member_that_dies_is_one_event_with_its_reason() {
    let board = board();
    let mut newest = board.newest();
    board.members(snapshot(place("b", 12, Standing::Serves, Some(Outcome::Ready))), at(0));
    assert_eq!((events(&board), newest.has_changed().unwrap()), (vec![], false), "what is new is no change");
    // Known to fail, and not yet taken out.
    board.members(snapshot(place("b", 12, Standing::Serves, Some(Outcome::Refused))), at(1));
    assert_eq!(status(&board).ports[0].members[1].reason, "Refused");
    board.members(snapshot(place("b", 12, Standing::Fails, Some(Outcome::NotReady(500)))), at(2));
    board.members(snapshot(place("b", 12, Standing::Fails, Some(Outcome::Silent))), at(3));
    let changed = |from, to, reason: &str| Change::MemberChanged {
        member: "b".into(),
        port: 6443,
        from,
        to,
        reason: reason.into(),
    };
    assert_eq!(events(&board), [changed(State::Serving, State::Failing, "NotReady")]);
    assert!(newest.has_changed().unwrap() && *newest.borrow_and_update() == 1);
    let server = &status(&board).ports[1].members[1];
    assert_eq!((server.state, server.reason.as_str(), server.since), (State::Failing, "Silent", at(2)));
    // Its speaker died as well: nothing is known.
    board.members(snapshot(place("b", 12, Standing::Serves, None)), at(4));
    assert_eq!(events(&board)[1], changed(State::Failing, State::Unknown, "NoReport"));
    assert_eq!(status(&board).ports[0].members[1].check_millis, None);
}

#[test]
fn a_member_that_never_answered_was_never_serving() {
    let board = board();
    board.members(snapshot(place("b", 12, Standing::Serves, None)), at(0));
    board.members(snapshot(place("b", 12, Standing::Serves, Some(Outcome::Refused))), at(1));
    assert_eq!((events(&board), status(&board).ports[0].members[1].state), (vec![], State::Unknown));
    board.members(snapshot(place("b", 12, Standing::Fails, Some(Outcome::Refused))), at(2));
    let (member, reason) = ("b".into(), "Refused".into());
    let (from, to) = (State::Unknown, State::Failing);
    assert_eq!(events(&board), [Change::MemberChanged { member, port: 6443, from, to, reason }]);
}

#[test]
fn drains_are_events_and_those_of_the_disk_are_not() {
    let board = board();
    let of = |wish| -> Drains { [([192, 0, 2, 12].into(), Drain { at: 1_796_000_000_000, wish })].into() };
    let b = || snapshot(place("b", 12, Standing::Drained, Some(Outcome::Ready)));
    board.begin_with(&of(Wish::Drain));
    board.members(Snapshot { drains: of(Wish::Drain), ..b() }, at(0));
    assert_eq!(events(&board), []);
    let drained = status(&board).members[1].drained;
    assert_eq!(drained, Some(Drained { since: at(0), by_force: false }));
    board.members(Snapshot { drains: of(Wish::DrainByForce), ..b() }, at(1));
    board.members(Snapshot { drains: of(Wish::Serve), ..b() }, at(2));
    let began = Change::DrainBegan { member: "b".into(), by_force: true };
    assert_eq!(events(&board), [began, Change::DrainEnded { member: "b".into() }]);
    assert_eq!(status(&board).members[1].drained, None);
}

#[test]
fn weights_are_parts_of_the_table_and_what_is_not_known_is_none() {
    let board = board();
    let b = |standing| snapshot(place("b", 12, standing, Some(Outcome::Ready)));
    board.members(b(Standing::Serves), at(0));
    let weights = |board: &Board| -> Vec<Option<u32>> {
        status(board).ports[1].members.iter().map(|server| server.weight).collect()
    };
    assert_eq!(weights(&board), [None; 3]);
    let rows = |a, b| Some([(8443, [("a".to_owned(), a), ("b".to_owned(), b)].into())].into());
    // a has its own member and c, b its own and c: halves of halves.
    board.members(Snapshot { rows: rows(2000, 2000), ..b(Standing::Serves) }, at(1));
    assert_eq!(weights(&board), [Some(250), Some(250), Some(500)]);
    board.members(Snapshot { rows: rows(2000, 1000), ..b(Standing::Drained) }, at(2));
    assert_eq!(weights(&board), [Some(333), Some(0), Some(666)]);
    let known = status(&board);
    assert!(known.ports[0].members[0].weight.is_none(), "there are no rows of this port");
    assert_eq!((known.ports[0].traffic.map(|traffic| traffic.connections), known.ports[1].traffic), (Some(1), None));
    assert_eq!(
        (known.ports[0].members[2].via.clone(), known.ports[0].members[0].via.len()),
        (vec!["a".into(), "b".into()], 0)
    );
    assert_eq!(known.ports[0].members[0].connections, None);
    let connections = Some([((8443, [192, 0, 2, 11].into()), 7)].into());
    board.members(Snapshot { connections, ..b(Standing::Serves) }, at(3));
    let known = status(&board);
    let counted = |port: usize, member: usize| known.ports[port].members[member].connections;
    assert_eq!((counted(1, 0), counted(0, 0), counted(1, 1)), (Some(7), Some(0), Some(0)));
}

#[test]
fn peers_that_fall_silent_are_events() {
    let board = board();
    let peer = |alive| Peer { node: "b".into(), alive, lost: 2, of: 64 };
    board.peers(vec![peer(true)], at(0));
    board.peers(vec![peer(true)], at(1));
    board.peers(vec![peer(false)], at(2));
    assert_eq!(events(&board), [Change::PeerChanged { node: "b".into(), alive: false }]);
    assert_eq!(status(&board).peers, [peer(false)]);
}

/// The sum, what is missing of it, and this node's part.
#[test]
fn totals_are_of_the_nodes_that_count() {
    let board = board();
    let b = || snapshot(place("b", 12, Standing::Serves, Some(Outcome::Ready)));
    board.members(b(), at(0));
    let known = status(&board);
    assert_eq!((known.counted_by.len(), known.not_counted_by), (0, vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!(known.ports[0].members[0].total, None);
    let total = |connections| totals::Total { connections, bytes: 100 * connections, resets: 1 };
    let mut all = totals::Known::default();
    all.reported("b", [((8443, [192, 0, 2, 11].into()), total(5))].into(), Instant::from_millis(0));
    board.members(Snapshot { totals: all.sum(), ..b() }, at(1));
    let known = status(&board);
    // c has no speaker: it is no node that counts.
    assert_eq!((known.counted_by, known.not_counted_by), (vec!["b".to_owned()], vec!["a".to_owned()]));
    let server = &known.ports[1].members[0];
    assert_eq!((server.total.map(|total| total.connections), server.counted_here), (Some(5), None));
    all.set_own([((8443, [192, 0, 2, 11].into()), total(70))].into());
    board.members(Snapshot { totals: all.sum(), ..b() }, at(2));
    let known = status(&board);
    let server = &known.ports[1].members[0];
    assert_eq!(server.total, Some(Total { connections: 75, bytes: 7_500, resets: 2 }));
    assert_eq!(server.counted_here.map(|here| here.connections), Some(70));
    assert_eq!((known.ports[0].members[0].total, known.not_counted_by.len()), (Some(Total::default()), 0));
}

/// Members, ports and addresses are those of the newest file; what stays keeps its history.
#[test]
fn another_file_is_followed() {
    let board = board();
    board.ownership(VIP, &elsewhere("b", 1), at(1));
    board.members(snapshot(place("b", 12, Standing::Serves, Some(Outcome::Ready))), at(1));
    assert_eq!(status(&board).file, Some(File { taken: at(-9), refused: None }));
    board.refused(vec!["key is missing".into()], at(2));
    let refused = RefusedFile { at: at(2), because: vec!["key is missing".into()] };
    assert_eq!(status(&board).file, Some(File { taken: at(-9), refused: Some(refused) }));
    let text = "addresses: [192.0.2.100, 192.0.2.110]
ports: [{listen: 9443, target: 6443}]
members: [{name: a, address: 192.0.2.11}, {name: d, address: 192.0.2.14}]
key: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=
health: {insecureSkipVerify: true}
";
    board.follow(Endpoint::parse(text).unwrap(), at(3));
    let known = status(&board);
    assert_eq!(known.file, Some(File { taken: at(3), refused: None }));
    assert_eq!((known.addresses.len(), known.addresses[0].owner.as_deref()), (2, Some("b")));
    assert_eq!(
        (board.names(), board.address_of("b"), board.is_member([192, 0, 2, 14].into())),
        (vec!["a".to_owned(), "d".to_owned()], None, true)
    );
    let members: Vec<&str> = known.ports[0].members.iter().map(|server| server.member.as_str()).collect();
    assert_eq!((known.ports[0].listen, members), (9443, vec!["a"]), "of d nothing is known yet");
    // What is still under way of an address that is gone.
    let gone = Ipv4Addr::new(192, 0, 2, 199);
    board.ownership(gone, &elsewhere("b", 2), at(4));
    assert_eq!(status(&board).addresses.len(), 2);
    board.refused(vec![], at(5));
    assert_eq!(status(&board).file, Some(File { taken: at(3), refused: None }));
}
