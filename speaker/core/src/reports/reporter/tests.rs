use alloc::vec::Vec;

use ebpf_common::row_of;

use super::*;
use crate::forwarding::previous::PreviousRings;
use crate::forwarding::{Planner, TrafficStates};
use crate::reports::Reports;
use crate::view::Protocol;
use crate::view::endpoints::service_key;
use crate::view::example::{VIP, pod, view};
use crate::view::{Affinity, Conditions};

const KEY: [u64; 2] = [1, 2];
const HOUR: Duration = Duration::from_secs(3600);

fn table(nodes: &[&str]) -> Table {
    let pods: Vec<_> = nodes.iter().map(|node| pod(node, 1, Conditions::READY)).collect();
    let mut planner = Planner::new(KEY, PreviousRings::new(HOUR));
    planner.table(&view(pods), &TrafficStates::default(), &Reports::new(), Instant::ZERO)
}

fn flows(count: u16) -> Vec<FlowTuple> {
    let flow = |port: u16| FlowTuple {
        src: [198, 51, 100, 7],
        dst: VIP.octets(),
        src_port: port.to_be_bytes(),
        dst_port: 80u16.to_be_bytes(),
        proto: 6,
    };
    (1000..1000 + count).map(flow).collect()
}

fn web() -> ServiceKey {
    service_key(VIP, 80, Protocol::Tcp)
}

fn at(seconds: u64) -> Instant {
    Instant::from_millis(seconds * 1000)
}

/// Rows of port 80 in the report.
fn reported(announcement: &Announcement) -> Vec<u32> {
    announcement.report.services.get(&web()).map(|rows| rows.iter().collect()).unwrap_or_default()
}

fn row(table: &Table, flow: FlowTuple) -> u32 {
    row_of(flow.hash(&KEY), table.services[&web()].ring.rows.len() as u32).unwrap()
}

#[test]
fn rows_with_flows_of_other_primaries() {
    let table = table(&["a", "b"]);
    let ring = &table.services[&web()].ring;
    let mut reporter = Reporter::new("a", KEY, HOUR);
    let mut expected: Vec<u32> = flows(50).into_iter().map(|flow| row(&table, flow)).collect();
    expected.sort_unstable();
    expected.dedup();
    let others: Vec<u32> = expected.iter().copied().filter(|&row| ring.primary(row) != Some("a")).collect();
    // While the ring is new, all: there may be the next one in a moment.
    assert_eq!(reported(&reporter.announce(&table, flows(50), false, at(0))), expected);
    assert_eq!(reported(&reporter.announce(&table, flows(50), false, at(9))), expected);
    let announced = reporter.announce(&table, flows(50), false, at(10));
    assert_eq!((reported(&announced), announced.expired, announced.report.digest), (others, 0, table.digest));
    // While tables differ, all: by the other table the primary may be another.
    assert_eq!(reported(&reporter.announce(&table, flows(50), true, at(11))), expected);
}

#[test]
fn another_ring_begins_the_time_anew_and_another_service_does_not() {
    let (one, two) = (table(&["a", "b"]), table(&["a", "b", "c"]));
    let mut reporter = Reporter::new("a", KEY, HOUR);
    let all = reported(&reporter.announce(&one, flows(50), false, at(0))).len();
    assert!(reported(&reporter.announce(&one, flows(50), false, at(30))).len() < all);
    assert_eq!(reported(&reporter.announce(&two, flows(50), false, at(31))).len(), all);
    assert!(reported(&reporter.announce(&two, flows(50), false, at(60))).len() < all);
    let other = ServiceKey { port: [0, 81], ..web() };
    let mut with_another = table(&["a", "b", "c"]);
    with_another.services.insert(other, one.services[&web()].clone());
    assert!(reported(&reporter.announce(&with_another, flows(50), false, at(61))).len() < all);
}

#[test]
fn with_client_affinity_the_client_chooses_the_row() {
    let mut table = table(&["b"]);
    table.services.get_mut(&web()).unwrap().attributes.affinity = Affinity::ClientIp;
    let announced = Reporter::new("a", KEY, HOUR).announce(&table, flows(50), false, at(0));
    assert_eq!(reported(&announced), [row(&table, flows(1)[0].client_only())]);
}

/// A record is no open flow: no change ends it.
#[test]
fn rows_of_known_clients_are_reported_and_their_ends_not_counted() {
    let mut table = table(&["b"]);
    table.services.get_mut(&web()).unwrap().attributes.affinity = Affinity::ClientIp;
    let mut reporter = Reporter::new("a", KEY, HOUR);
    let client = flows(1)[0].client_only();
    let known = || [FlowTuple { dst_port: 80u16.to_be_bytes(), proto: 6, ..client }];
    let announced = reporter.announce_with(&table, [], known(), false, at(0));
    assert_eq!((reported(&announced), announced.expired), ([row(&table, client)].into(), 0));
    let late = reporter.announce_with(&table, flows(2), known(), false, at(3601));
    assert_eq!((reported(&late).len(), late.expired), (0, 2), "the two flows");
}

#[test]
fn flows_of_no_service_are_not_reported() {
    let stray = FlowTuple { dst_port: [0, 1], ..flows(1)[0] };
    let announced = Reporter::new("a", KEY, HOUR).announce(&table(&["b"]), [stray], false, at(0));
    assert!(announced.report.services.is_empty());
}

/// From when the row was lost, not from when the flow began; a row that came back and is lost again counts anew.
#[test]
fn beyond_the_window_flows_are_counted_and_not_reported() {
    let (own, lost) = (table(&["a"]), table(&["b"]));
    let mut reporter = Reporter::new("a", KEY, HOUR);
    reporter.announce(&own, flows(9), false, at(0));
    assert_eq!(reported(&reporter.announce(&own, flows(9), false, at(10))), []);
    let rows = reported(&reporter.announce(&lost, flows(9), false, at(20)));
    assert_eq!(reported(&reporter.announce(&lost, flows(9), false, at(3620))), rows);
    let late = reporter.announce(&lost, flows(9), false, at(3621));
    assert_eq!((reported(&late).len(), late.expired), (0, 9));
    reporter.announce(&own, flows(9), false, at(3630));
    let again = reporter.announce(&lost, flows(9), false, at(3640));
    assert_eq!((reported(&again), again.expired), (rows, 0));
}

#[test]
fn rows_are_added_at_once_and_taken_out_together() {
    let table = table(&["b"]);
    let mut reporter = Reporter::new("a", KEY, HOUR);
    let first = reporter.announce(&table, flows(9), false, at(0));
    let fewer = reporter.announce(&table, flows(8), false, at(5));
    assert!(Arc::ptr_eq(&first.report, &fewer.report), "no ring is written for it");
    assert_eq!(reported(&reporter.announce(&table, flows(10), false, at(6))).len(), 10);
    assert_eq!(reported(&reporter.announce(&table, flows(3), false, at(15))).len(), 10);
    assert_eq!(reported(&reporter.announce(&table, flows(3), false, at(16))).len(), 3);
    assert_eq!(reported(&reporter.announce(&table, [], false, at(17))), []);
}
