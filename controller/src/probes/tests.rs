use ipnet::Ipv4Net;

use super::*;

const HOST: &str = "02:00:00:00:00:99";

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

fn service(name: &str) -> ServiceKey {
    ServiceKey { namespace: "default".into(), name: name.into() }
}

/// node1 and node2 on 192.0.2.0/24; node1 also on a narrower one, and with an address of one host.
fn probes() -> Probes {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Ipv4Net>>();
    let mut segments = Segments::default();
    segments.add(
        "node1",
        "u1",
        &nets(&["192.0.2.0/24", "192.0.2.64/28", "192.0.2.9/32"]),
        &["02:00:00:00:01:01".into()],
    );
    segments.add("node2", "u2", &nets(&["192.0.2.0/24"]), &["02:00:00:00:01:02".into()]);
    let mut probes = Probes::default();
    probes.set_segments(segments);
    probes
}

/// The speaker answers what it was asked last, as the watch shows it.
fn answer(probes: &mut Probes, write: &ProbeWrite, hosts: &[Ipv4Addr]) {
    let version = 10 * u64::try_from(write.round).unwrap();
    let view =
        ProbeView { node: write.node.clone(), uid: "p".into(), version, round: write.round, ..ProbeView::default() };
    let view = ProbeView { observed: probes.objects.get(&write.node).map_or(0, |known| known.observed), ..view };
    probes.observe(view.clone());
    let macs = |one: &Ipv4Addr| hosts.iter().filter(|host| *host == one).map(|_| HOST.to_string()).collect();
    let results = write.addresses.iter().map(|one| (*one, macs(one))).collect();
    probes.observe(ProbeView { version: version + 1, observed: write.round, results, ..view });
}

fn request(probes: &mut Probes, node: &str, ahead: &[Ipv4Addr], now: Instant) -> Option<ProbeWrite> {
    probes.nodes(now);
    probes.request(node, &[ahead.to_vec()], |_| true, now)
}

#[test]
fn the_narrowest_subnet_has_the_address_and_one_host_is_no_segment() {
    let probes = probes();
    let subnet = |last| probes.segments.subnet(ip(last)).map(|subnet| subnet.to_string());
    assert_eq!(subnet(70).as_deref(), Some("192.0.2.64/28"));
    assert_eq!(subnet(9).as_deref(), Some("192.0.2.0/24"));
    assert_eq!(probes.segments.subnet(Ipv4Addr::new(198, 51, 100, 1)), None);
}

#[test]
fn what_no_node_reaches_is_granted_at_once() {
    let mut probes = probes();
    let now = Instant::now();
    assert_eq!(probes.gate(&[Ipv4Addr::new(198, 51, 100, 1)], &service("a"), now), Gate::Open);
    assert_eq!(probes.totals(), (0, 0));
}

#[test]
fn those_in_line_are_asked_again_when_half_are_unknown_or_one_is_old() {
    let (mut probes, start) = (probes(), Instant::now());
    let after = |seconds| start + Duration::from_secs(seconds);
    let line: Vec<Ipv4Addr> = (100..116).map(ip).collect();
    let first = request(&mut probes, "node1", &line, start).expect("nothing is known");
    assert_eq!((first.round, &first.addresses, first.owner.as_str(), &first.seen), (1, &line, "u1", &None));
    assert_eq!(request(&mut probes, "node1", &line, start), None, "its answer is awaited");
    assert_eq!(request(&mut probes, "node2", &line, start), None, "one speaker per subnet");
    answer(&mut probes, &first, &[]);
    probes.tick(start);
    let moved: Vec<Ipv4Addr> = (108..124).map(ip).collect();
    assert_eq!(request(&mut probes, "node1", &moved, after(1)), None, "half of them are known");
    let moved: Vec<Ipv4Addr> = (109..125).map(ip).collect();
    let second = request(&mut probes, "node1", &moved, after(40)).expect("more than half are unknown");
    assert_eq!(second.addresses, moved, "and the others would be due soon");
    assert_eq!((second.round, second.seen.is_some()), (2, true));
    answer(&mut probes, &second, &[]);
    probes.tick(after(40));
    assert_eq!(request(&mut probes, "node1", &moved, after(99)), None);
    assert!(request(&mut probes, "node1", &moved, after(100)).is_some());
}

/// An address that is asked for waits for no answer about others.
#[test]
fn a_wish_joins_the_request_that_is_under_way() {
    let (mut probes, now) = (probes(), Instant::now());
    let first = request(&mut probes, "node1", &[ip(100)], now).unwrap();
    assert_eq!(probes.gate(&[ip(100)], &service("b"), now), Gate::Wait(BTreeSet::new()), "it is under way");
    assert_eq!(probes.gate(&[ip(200)], &service("a"), now), Gate::Wait(["node1".to_string()].into()));
    let later = now + Duration::from_millis(50);
    let second = request(&mut probes, "node1", &[ip(100)], later).expect("it is new");
    assert_eq!((second.round, &second.addresses), (2, &vec![ip(100), ip(200)]));
    assert_eq!(probes.gate(&[ip(200)], &service("a"), later), Gate::Wait(BTreeSet::new()), "it is asked for");
    answer(&mut probes, &first, &[]);
    probes.tick(later);
    assert_eq!(probes.next_deadline(), Some(later + Duration::from_millis(250)), "of the second one");
    answer(&mut probes, &second, &[ip(200)]);
    probes.tick(later);
    assert!(probes.take_used() && probes.next_deadline().is_none());
    assert_eq!(probes.take_waiting(), BTreeSet::from([service("a"), service("b")]));
}

#[test]
fn after_the_time_the_next_speaker_is_asked_and_then_none() {
    let (mut probes, start) = (probes(), Instant::now());
    let after = |millis| start + Duration::from_millis(millis);
    probes.gate(&[ip(200)], &service("a"), start);
    probes.gate(&[ip(201)], &service("b"), start);
    assert!(request(&mut probes, "node1", &[], start).is_some());
    probes.take_changes();
    probes.tick(after(249));
    assert!(!probes.take_changes().answers);
    probes.tick(after(250));
    assert!(probes.take_changes().answers);
    assert_eq!(probes.gate(&[ip(200)], &service("a"), after(250)), Gate::NotProbed, "it waits no longer");
    assert_eq!(probes.gate(&[ip(202)], &service("c"), after(250)), Gate::Wait(["node2".to_string()].into()));
    assert!(request(&mut probes, "node2", &[], after(250)).is_some());
    probes.tick(after(500));
    assert_eq!(probes.gate(&[ip(203)], &service("d"), after(500)), Gate::NotProbed, "none is left");
    assert!(probes.about(&[(ip(200).into(), ip(210).into())]).not_probed.is_some());
    assert_eq!(probes.about(&[(0, 5)]).not_probed, None, "elsewhere");
    assert_eq!(
        probes.gate(&[ip(204)], &service("e"), after(10_251)),
        Gate::Wait(["node1".to_string()].into()),
        "it is tried again"
    );
}

/// What the API server has when this replica starts is of unknown age.
#[test]
fn an_answer_of_earlier_times_counts_for_nothing() {
    let (mut probes, now) = (probes(), Instant::now());
    let view = ProbeView {
        node: "node1".into(),
        uid: "p".into(),
        version: 5,
        round: 7,
        observed: 7,
        results: vec![(ip(100), BTreeSet::new())],
        ..ProbeView::default()
    };
    probes.observe(view);
    probes.tick(now);
    assert!(matches!(probes.gate(&[ip(100)], &service("a"), now), Gate::Wait(nodes) if !nodes.is_empty()));
    let asked = request(&mut probes, "node1", &[], now).unwrap();
    assert_eq!((asked.round, asked.seen), (8, Some(("p".into(), 5))));
}

#[test]
fn a_request_that_is_not_written_holds_nobody_up() {
    let (mut probes, now) = (probes(), Instant::now());
    probes.gate(&[ip(200)], &service("a"), now);
    let write = request(&mut probes, "node1", &[], now).unwrap();
    probes.not_written(&write, true, now);
    let again = request(&mut probes, "node1", &[], now).expect("another version was there");
    assert_eq!(again.addresses, [ip(200)]);
    probes.not_written(&again, false, now);
    assert_eq!(probes.gate(&[ip(200)], &service("a"), now), Gate::Wait(["node2".to_string()].into()));
}
