use alloc::format;

use proptest::prelude::*;

use ebpf_common::row_of;

use super::*;

const KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

fn members(nodes: impl IntoIterator<Item = (u32, u32)>, down: &[u32]) -> Members {
    Members::new(nodes.into_iter().map(|(node, pods)| (format!("node-{node}"), pods, down.contains(&node))))
}

/// The name in each row.
fn named(ring: &Ring) -> Vec<&str> {
    ring.rows.iter().map(|node| ring.nodes[usize::from(node)].as_str()).collect()
}

fn rows_of(ring: &Ring, node: &str) -> usize {
    let Some(index) = ring.nodes.iter().position(|name| name == node) else { return 0 };
    ring.rows.iter().filter(|row| usize::from(*row) == index).count()
}

/// Rows that name another node in `after`, among rows that named `node` (or any) before.
fn moved(before: &Ring, after: &Ring, among: impl Fn(&str) -> bool) -> usize {
    assert_eq!(before.rows.len(), after.rows.len());
    named(before).into_iter().zip(named(after)).filter(|(old, new)| among(old) && old != new).count()
}

#[test]
fn sizes_are_large_enough_and_one_divides_the_other() {
    assert_eq!([size(0), size(1), size(40), size(41)], [0, 4093, 4093, 65488]);
    assert_eq!([size(654), size(655), size(1_000_000)], [65488, 65488, 65488]);
    assert_eq!(SIZES[1] % SIZES[0], 0);
}

#[test]
fn a_ring_that_is_split_sends_every_flow_to_the_same_node() {
    let ring = fill(&members([(1, 3), (2, 1), (3, 6)], &[2]), &KEY);
    let split = ring.split().unwrap();
    assert_eq!((split.rows.len(), split.digest), (65488, ring.digest));
    for hash in (0..u64::from(u32::MAX)).step_by(9973) {
        let of = |ring: &Ring| ring.primary(row_of(hash << 32, ring.rows.len() as u32).unwrap()).map(String::from);
        assert_eq!(of(&split), of(&ring));
    }
    assert_eq!(split.split(), None);
    assert_eq!(Ring::default().split(), None, "no rows");
}

#[test]
fn no_members_no_rows() {
    assert!(fill(&Members::default(), &KEY).rows.is_empty());
    assert!(fill(&members([(1, 0)], &[]), &KEY).rows.is_empty());
}

#[test]
fn rows_follow_the_number_of_pods() {
    let ring = fill(&members([(1, 3), (2, 1), (3, 6)], &[]), &KEY);
    // In turns: no two members differ by more than one row.
    for (node, pods) in [("node-1", 3), ("node-2", 1), ("node-3", 6)] {
        let share = rows_of(&ring, node) as i64 - pods * ring.rows.len() as i64 / 10;
        assert!(share.abs() <= pods, "{node}: off by {share}");
    }
}

/// The table is part of what nodes of different versions must agree on: a change of this number moves every connection
/// during an upgrade.
#[test]
fn the_table_itself() {
    let ring = fill(&members([(1, 1), (2, 2), (3, 1)], &[2]), &KEY);
    let sum = ring.rows.iter().fold(0, |sum, row| siphash13(&KEY, sum, u64::from(row)));
    assert_eq!((ring.rows.len(), sum), (4093, TABLE_OF_VERSION_1));
}

#[test]
fn a_lost_member_moves_few_rows_of_others_in_the_plain_table() {
    let before = fill(&members((0..10).map(|n| (n, 1)), &[]), &KEY);
    let after = fill(&members((0..9).map(|n| (n, 1)), &[]), &KEY);
    let moved = moved(&before, &after, |node| node != "node-9");
    assert!(moved * 100 < before.rows.len() * 8, "{moved} of {}", before.rows.len());
}

#[test]
fn lost_rows_spread_over_all_survivors() {
    let lost: Vec<u32> = (0..5).collect();
    let ring = fill(&members((0..20).map(|n| (n, 2)), &lost), &KEY);
    let even = ring.rows.len() / 15;
    for node in 5..20 {
        let rows = rows_of(&ring, &format!("node-{node}"));
        assert!((even * 3 / 4..=even * 5 / 4).contains(&rows), "node-{node}: {rows}, even would be {even}");
    }
}

#[test]
fn one_survivor_among_many_takes_all() {
    let lost: Vec<u32> = (1..300).collect();
    let ring = fill(&members((0..300).map(|n| (n, 1)), &lost), &KEY);
    assert_eq!(rows_of(&ring, "node-0"), ring.rows.len());
}

#[test]
fn all_lost_keeps_the_table() {
    let nodes = || (0..5).map(|n| (n, 2));
    assert_eq!(fill(&members(nodes(), &[0, 1, 2, 3, 4]), &KEY).rows, fill(&members(nodes(), &[]), &KEY).rows);
}

#[test]
fn more_pods_than_turns_still_fill_evenly() {
    let ring = fill(&members((0..1000).map(|n| (n, if n == 0 { 1 } else { 30 })), &[]), &KEY);
    assert_eq!(ring.rows.len(), 65488);
    let counts: Vec<usize> = (1..1000).map(|n| ring.rows.iter().filter(|row| *row == n).count()).collect();
    assert!(counts.iter().all(|&rows| rows > 0));
    assert!(rows_of(&ring, "node-0") > 0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn spread(pods in proptest::collection::vec(1u32..4, 1..40), key: [u64; 2]) {
        let ring = fill(&members((0..).zip(pods.iter().copied()), &[]), &key);
        let total: u32 = pods.iter().sum();
        for (node, &pods) in pods.iter().enumerate() {
            let fair = f64::from(pods) * ring.rows.len() as f64 / f64::from(total);
            let rows = rows_of(&ring, &format!("node-{node}")) as f64;
            prop_assert!((rows - fair).abs() <= f64::from(pods), "node-{node}: {rows} rows, fair {fair}");
        }
    }

    /// The promise that open connections rest on: whatever else is lost, one more loss moves the rows of that node only, and
    /// its return moves back those rows only.
    #[test]
    fn a_loss_moves_no_row_of_survivors(
        pods in proptest::collection::vec(1u32..4, 2..20),
        down in proptest::collection::btree_set(0u32..20, 0..20),
        one_more: prop::sample::Index,
    ) {
        let one_more = one_more.index(pods.len()) as u32;
        let without: Vec<u32> = down.iter().copied().filter(|&node| node != one_more).collect();
        let with: Vec<u32> = without.iter().copied().chain([one_more]).collect();
        prop_assume!((0..pods.len() as u32).any(|node| !with.contains(&node)));
        let ring = |down: &[u32]| fill(&members((0..).zip(pods.iter().copied()), down), &KEY);
        let (before, after) = (ring(&without), ring(&with));
        let lost = format!("node-{one_more}");
        prop_assert_eq!(moved(&before, &after, |node| node != lost), 0);
        for node in with {
            prop_assert_eq!(rows_of(&after, &format!("node-{node}")), 0);
        }
    }

    /// Members have no order, and nothing but members and key matters.
    #[test]
    fn same_input_same_table(pods in proptest::collection::btree_map(0u32..50, 1u32..4, 1..20)) {
        let forwards = fill(&members(pods.clone(), &[]), &KEY);
        let backwards = fill(&members(pods.into_iter().rev(), &[]), &KEY);
        prop_assert_eq!(forwards, backwards);
    }
}

#[test]
fn names_that_differ_in_padding_only_differ() {
    assert_ne!(digest(&KEY, b"a"), digest(&KEY, b"a\0"));
    assert_ne!(digest(&KEY, b""), digest(&KEY, b"\0"));
}

const TABLE_OF_VERSION_1: u64 = 887_075_477_374_851_585;
