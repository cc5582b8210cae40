//! Where flows may be after rows have moved, and when a node follows its peers.

use super::*;

/// Alternates of rows that were another node's.
fn moved_rows(table: &Table) -> Option<BTreeSet<String>> {
    let service = &table.services[&web_port()];
    let rows = 0..service.ring.rows.len() as u32;
    let alternates = service.alternates.as_ref()?;
    Some(rows.flat_map(|row| alternates.of(row).map(String::from).collect::<Vec<_>>()).collect())
}

fn reported(table: &Table, at: Instant) -> Reported {
    let report = crate::reports::Report { digest: table.digest, ..Default::default() };
    Reported { report: Arc::new(report), confirmed: at, ..Reported::default() }
}

/// From a change until the previous primary has reported, some time later and by the same table, that it has no such flows.
#[test]
fn a_previous_primary_is_an_alternate_until_it_has_reported() {
    let mut planner = planner(KEY);
    let all = TrafficStates::default();
    let (before, after) = (view([ready("a", 1)]), view([ready("b", 1)]));
    let mut reports = Reports::new();
    let mut at = |known: &View, reports: &Reports, seconds: u64| {
        let table = planner.table(known, &all, reports, NOW + Duration::from_secs(seconds));
        let moved = moved_rows(&table);
        assert_eq!(planner.awaits_reports(), moved.is_some());
        (table, moved)
    };
    assert_eq!(at(&before, &reports, 0).1, None);
    let (table, moved) = at(&after, &reports, 10);
    assert_eq!(moved, Some(names(["a"])));
    let same = at(&after, &reports, 11).0.services;
    assert!(same.iter().zip(&table.services).all(|((_, a), (_, b))| match (&a.alternates, &b.alternates) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        _ => false,
    }));
    reports.insert("a".into(), reported(&table, NOW + Duration::from_secs(19)));
    assert_eq!(at(&after, &reports, 20).1, Some(names(["a"])), "too soon after the change");
    reports.insert("a".into(), Reported { confirmed: NOW + Duration::from_secs(30), ..Reported::default() });
    assert_eq!(at(&after, &reports, 30).1, Some(names(["a"])), "by another table");
    reports.insert("a".into(), reported(&table, NOW + Duration::from_secs(31)));
    assert_eq!(at(&after, &reports, 31).1, None);
    // Its report about that time stays true.
    reports.clear();
    assert_eq!(at(&after, &reports, 32).1, None);
    let rows = [(web_port(), Arc::new(crate::reports::Rows::new(4093, [5])))];
    let report = crate::reports::Report { services: rows.into(), ..Default::default() };
    reports.insert("a".into(), Reported { report: Arc::new(report), confirmed: NOW, ..Reported::default() });
    let table = planner.table(&after, &all, &reports, NOW + Duration::from_secs(33));
    assert_eq!(moved_rows(&table), Some(names(["a"])));
    let lost = planner.table(&after, &down(&names(["a"])), &reports, NOW + Duration::from_secs(34));
    assert_eq!(moved_rows(&lost), None, "a dead node is no alternate");
    let absent = TrafficStates { existing_only: names(["a"]), ..TrafficStates::default() };
    assert_eq!(
        moved_rows(&planner.table(&after, &absent, &reports, NOW + Duration::from_secs(35))),
        Some(names(["a"]))
    );
}

#[test]
fn nobodys_word_is_all_while_some_table_differs() {
    let mut planner = planner(KEY);
    let all = TrafficStates::default();
    planner.table(&view([ready("a", 1)]), &all, &Reports::new(), NOW);
    let after = view([ready("b", 1)]);
    let table = planner.table(&after, &all, &Reports::new(), NOW);
    // The last dispatcher that lags sends its flows to a until the 30th second.
    let at = |seconds: u64| NOW + Duration::from_secs(seconds);
    planner.tables_differ(at(30));
    let reports = |seconds: u64| Reports::from([(String::from("a"), reported(&table, at(seconds)))]);
    assert_eq!(moved_rows(&planner.table(&after, &all, &reports(39), at(39))), Some(names(["a"])));
    assert_eq!(moved_rows(&planner.table(&after, &all, &reports(40), at(40))), None);
}

/// Nodes receive views at slightly different moments, and come to equal tables before their own time.
#[test]
fn a_node_applies_additions_with_its_peers_and_after_a_restart_at_once() {
    let all = TrafficStates::default();
    let [mut ahead, mut behind] = [planner(KEY), planner(KEY)];
    let [few, more] = [view([ready("a", 1), ready("b", 1)]), view([ready("a", 1), ready("b", 1), ready("c", 1)])];
    let before = [&mut ahead, &mut behind].map(|planner| planner.table(&few, &all, &Reports::new(), NOW));
    assert_eq!(ahead.table(&more, &all, &Reports::new(), NOW).digest, before[0].digest, "c waits");
    assert_eq!(ahead.next_deadline(), Some(NOW + QUIET));
    let applied = ahead.table(&more, &all, &Reports::new(), NOW + QUIET);
    assert_ne!(applied.digest, before[0].digest);
    let reports = Reports::from([(String::from("a"), reported(&applied, NOW + QUIET))]);
    let waiting = behind.table(&more, &all, &Reports::new(), NOW + QUIET);
    assert_eq!((waiting.digest, behind.next_deadline()), (before[0].digest, Some(NOW + QUIET * 2)));
    assert!(moved_rows(&waiting).unwrap().contains("c"), "a peer may have flows by the next ring already");
    let followed = behind.table(&more, &all, &reports, NOW + QUIET);
    assert_eq!((followed.digest, behind.next_deadline()), (applied.digest, None));
    // What the API server named while the speaker was away was applied by its peers.
    let saved = ahead.previous_rings().save("boot", NOW + QUIET);
    let mut restarted =
        Planner::new(KEY, PreviousRings::restore(&saved, Duration::from_secs(3600), "boot", NOW).unwrap());
    restarted.was_away("a");
    let most = view([ready("a", 1), ready("a", 2), ready("b", 1), ready("c", 1)]);
    assert_eq!(restarted.table(&most, &all, &reports, NOW + QUIET).digest, table(&most, &none()).digest);
    // A pod that is ready again soon has the rows again that it had.
    let unready = ahead.table(&few, &all, &Reports::new(), NOW + QUIET * 2);
    let again = ahead.table(&more, &all, &Reports::new(), NOW + QUIET * 3);
    assert_eq!((unready.digest, again.digest), (before[0].digest, applied.digest));
}

#[test]
fn a_node_that_was_away_has_alternates_that_served_meanwhile() {
    let mut planner = planner(KEY);
    let known = view([ready("a", 1), ready("b", 1)]);
    planner.was_away("a");
    let table = planner.table(&known, &TrafficStates::default(), &Reports::new(), NOW);
    let service = &table.services[&web_port()];
    let others = service.alternates.as_ref().unwrap();
    // c has no part in this ring, but may have flows of a ring in between.
    let alternates_of = |row| if service.ring.primary(row) == Some("a") { vec!["b", "c"] } else { vec!["c"] };
    assert!((0..4093).all(|row| others.of(row).eq(alternates_of(row)) || others.of(row).eq(["c", "b"])));
    assert!(planner.awaits_reports());
    // By this table b has nothing that is not its own.
    let reports = |at| Reports::from(["b", "c"].map(|node| (String::from(node), reported(&table, at))));
    let later = NOW + SETTLE;
    let one_reported = planner.table(&known, &TrafficStates::default(), &reports(NOW), later);
    assert_eq!(moved_rows(&one_reported), Some(names(["b"])), "of the ring without a");
    assert_eq!(moved_rows(&planner.table(&known, &TrafficStates::default(), &reports(later), later)), None);
    assert!(!planner.awaits_reports());
}

/// Another affinity is another hash: flows lie in rows that no ring shows.
#[test]
fn with_another_affinity_all_nodes_are_alternates_until_all_have_reported() {
    let mut planner = planner(KEY);
    let mut known = view([ready("a", 1), ready("b", 1)]);
    let mut at = |known: &View, reports: &Reports, now| planner.table(known, &TrafficStates::default(), reports, now);
    assert_eq!(moved_rows(&at(&known, &Reports::new(), NOW)), None);
    known.handle(Event::Apply(service(ObjectName::new("default", "web"), Affinity::ClientIp)));
    let table = at(&known, &Reports::new(), NOW);
    let web = &table.services[&web_port()];
    let alternates_of = |row| web.alternates.as_ref().unwrap().of(row).collect::<BTreeSet<_>>();
    let others = |row| ["a", "b", "c"].into_iter().filter(move |node| web.ring.primary(row) != Some(node)).collect();
    assert!((0..4093).all(|row| alternates_of(row) == others(row)));
    let reports = |now| Reports::from(["a", "b", "c"].map(|node| (String::from(node), reported(&table, now))));
    let (soon, later) = (NOW + SETTLE / 2, NOW + SETTLE);
    assert!(
        moved_rows(&at(&known, &reports(soon), later)).is_some(),
        "dispatchers that lag open flows by the old hash"
    );
    assert_eq!(moved_rows(&at(&known, &reports(later), later)), None);
}

/// Nodes without a speaker do not stand in every row for ever.
#[test]
fn the_report_of_a_silent_node_expires() {
    let mut planner = planner(KEY);
    let known = view([ready("a", 1)]);
    planner.was_away("a");
    let mut at = |seconds| {
        let now = NOW + Duration::from_secs(seconds);
        moved_rows(&planner.table(&known, &TrafficStates::default(), &Reports::new(), now))
    };
    assert_eq!((at(0), at(599), at(600)), (Some(names(["b", "c"])), Some(names(["b", "c"])), None));
}
