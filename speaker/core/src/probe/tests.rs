use std::vec;

use super::*;

const HOST: Mac = [2, 0, 0, 0, 0, 9];
const ROUTER: Mac = [2, 0, 0, 0, 0, 3];
const PROXY: Mac = [2, 0, 0, 0, 0, 4];

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

fn around() -> Around {
    Around { own: BTreeSet::from([ip(1)]), subnets: BTreeSet::from([(ip(0), 24)]), gateways: BTreeSet::from([ip(254)]) }
}

/// One node, and a segment whose hosts answer after a time: `answers` says who, `late` how late.
struct Segment {
    prober: Prober,
    now: Instant,
    /// When each probe was sent.
    sent: Vec<(Ipv4Addr, u64)>,
    reports: Vec<(Report, u64)>,
    on_the_way: Vec<(Instant, Ipv4Addr, Mac)>,
    answers: fn(Ipv4Addr) -> Vec<Mac>,
    late: Duration,
}

impl Segment {
    fn new(answers: fn(Ipv4Addr) -> Vec<Mac>) -> Self {
        Self {
            prober: Prober::default(),
            now: Instant::from_millis(1_000_000),
            sent: vec![],
            reports: vec![],
            on_the_way: vec![],
            answers,
            late: Duration::from_millis(2),
        }
    }

    fn at(&self) -> u64 {
        self.now.as_nanos() / 1_000_000 - 1_000_000
    }

    fn event(&mut self, event: Event) {
        let mut actions = vec![];
        self.prober.handle(event, self.now, &mut actions);
        for action in actions {
            match action {
                Action::Probe(address) => {
                    self.sent.push((address, self.at()));
                    let (when, macs) = (self.now + self.late, (self.answers)(address));
                    self.on_the_way.extend(macs.into_iter().map(|mac| (when, address, mac)));
                }
                Action::Report(report) => self.reports.push((report, self.at())),
                Action::Expect(expected) => assert!(expected.len() <= MAX_TARGETS, "{}", expected.len()),
            }
        }
    }

    fn ask(&mut self, round: i64, addresses: &[Ipv4Addr]) {
        let request = Request { round, addresses: addresses.to_vec(), around: around(), seed: 7 };
        self.event(Event::Request(request));
    }

    /// Until this many milliseconds have passed since the start.
    fn run(&mut self, until: u64) {
        let until = Instant::from_millis(1_000_000 + until);
        loop {
            self.on_the_way.sort();
            let answer = self.on_the_way.first().map(|(when, ..)| *when);
            let tick = self.prober.next_deadline();
            let Some(next) = answer.into_iter().chain(tick).min().filter(|next| *next <= until) else { break };
            assert!(next >= self.now, "a deadline that is past: {next} at {}", self.now);
            self.now = next;
            if answer == Some(next) {
                let (_, address, mac) = self.on_the_way.remove(0);
                self.event(Event::Answer { address, mac });
            } else {
                self.event(Event::Tick);
            }
        }
        self.now = until;
    }

    fn times(&self, address: Ipv4Addr) -> Vec<u64> {
        self.sent.iter().filter(|(sent, _)| *sent == address).map(|(_, at)| *at).collect()
    }

    fn answered(&self, report: usize) -> Vec<(u8, Vec<Mac>)> {
        let results = self.reports[report].0.results.iter().filter(|(_, macs)| !macs.is_empty());
        results.map(|(address, macs)| (address.octets()[3], macs.iter().copied().collect())).collect()
    }
}

#[test]
fn two_probes_100_ms_apart_and_a_report_50_ms_later() {
    let mut segment = Segment::new(|address| if address == ip(20) { vec![HOST] } else { vec![] });
    segment.ask(1, &[ip(20), ip(21)]);
    segment.run(5_000);
    assert_eq!((segment.times(ip(20)), segment.times(ip(21))), (vec![0, 100], vec![0, 100]));
    let (report, at) = &segment.reports[0];
    assert_eq!((report.round, *at, segment.reports.len()), (1, 150, 1));
    assert_eq!(report.results.len(), 2, "also what is silent");
    assert_eq!(segment.answered(0), [(20, vec![HOST])]);
    assert!(!segment.prober.is_busy() && segment.prober.next_deadline().is_none(), "at rest");
}

#[test]
fn a_late_answer_counts_until_the_report() {
    let mut segment = Segment::new(|address| if address == ip(20) { vec![HOST] } else { vec![] });
    segment.late = Duration::from_millis(140);
    segment.ask(1, &[ip(20)]);
    segment.run(1_000);
    assert_eq!(segment.answered(0), [(20, vec![HOST])]);
    let mut segment = Segment::new(|address| if address == ip(20) { vec![HOST] } else { vec![] });
    segment.late = Duration::from_millis(160);
    segment.ask(1, &[ip(20)]);
    segment.run(1_000);
    assert_eq!(segment.answered(0), []);
}

/// Another request does not hold up the one before, and what is under way is not begun anew.
#[test]
fn requests_overlap_and_each_is_answered_in_time() {
    let mut segment = Segment::new(|address| if address == ip(30) { vec![HOST] } else { vec![] });
    segment.ask(4, &[ip(20)]);
    segment.run(60);
    segment.ask(5, &[ip(20), ip(30)]);
    segment.run(2_000);
    assert_eq!((segment.times(ip(20)), segment.times(ip(30))), (vec![0, 100], vec![60, 160]));
    let reports: Vec<(i64, u64)> = segment.reports.iter().map(|(report, at)| (report.round, *at)).collect();
    assert_eq!(reports, [(4, 150), (5, 210)]);
    assert_eq!(segment.answered(1), [(30, vec![HOST])]);
    segment.ask(6, &[ip(20)]);
    segment.run(3_000);
    assert_eq!(segment.times(ip(20)), [0, 100, 2_000, 2_100], "it is old by now");
}

#[test]
fn what_was_probed_within_a_second_is_reported_at_once() {
    let mut segment = Segment::new(|address| if address == ip(20) { vec![HOST] } else { vec![] });
    segment.ask(1, &[ip(20)]);
    segment.run(500);
    segment.ask(2, &[ip(20)]);
    assert_eq!((segment.reports[1].1, segment.answered(1)), (500, vec![(20, vec![HOST])]));
    assert_eq!(segment.times(ip(20)).len(), 2);
}

/// 64 addresses, the gateway and eight random ones: never more than a burst at a time.
#[test]
fn the_rate_is_bounded() {
    let mut segment = Segment::new(|_| vec![]);
    let addresses: Vec<Ipv4Addr> = (100..164).map(ip).collect();
    segment.ask(1, &addresses);
    segment.run(1_000);
    assert_eq!(segment.sent.len(), 2 * (64 + 9));
    for (_, from) in &segment.sent {
        let near = segment.sent.iter().filter(|(_, at)| (*from..*from + 10).contains(at)).count();
        assert!(near <= BURST, "{near} probes within 10 ms");
    }
    assert!(segment.reports[0].1 <= 170, "{} ms", segment.reports[0].1);
}

#[test]
fn a_router_is_named_by_its_own_address_and_a_proxy_by_eight_random_ones() {
    let mut segment = Segment::new(|address| match address.octets()[3] {
        254 => vec![ROUTER, PROXY],
        20 => vec![HOST, PROXY],
        _ => vec![PROXY],
    });
    segment.ask(1, &[ip(20), ip(21)]);
    segment.run(1_000);
    let report = &segment.reports[0].0;
    assert_eq!(report.proxies, BTreeSet::from([PROXY]));
    assert_eq!(report.gateways, BTreeSet::from([ROUTER, PROXY]));
    assert_eq!(segment.answered(0), [(20, vec![PROXY, HOST]), (21, vec![PROXY])]);
    let sent = segment.sent.len();
    segment.run(5_000);
    segment.ask(2, &[ip(20)]);
    segment.run(9_000);
    assert_eq!(segment.sent.len(), sent + 2, "the verdict holds for a while");
    assert_eq!(segment.reports[1].0.proxies, BTreeSet::from([PROXY]));
    segment.answers = |_| vec![];
    segment.run(11_000);
    segment.ask(3, &[ip(20)]);
    segment.run(12_000);
    assert!(segment.reports[2].0.proxies.is_empty() && segment.reports[2].0.gateways.is_empty());
}

/// A segment full of hosts is no proxy.
#[test]
fn hosts_on_every_address_are_no_proxy() {
    let mut segment = Segment::new(|address| vec![[2, 0, 0, 0, 1, address.octets()[3]]]);
    segment.ask(1, &[ip(20)]);
    segment.run(1_000);
    assert!(segment.reports[0].0.proxies.is_empty());
    assert_eq!(segment.answered(0), [(20, vec![[2, 0, 0, 0, 1, 20]])]);
}

#[test]
fn a_flood_of_answers_and_of_requests_is_bounded() {
    let mut segment = Segment::new(|_| vec![]);
    segment.ask(1, &[ip(20)]);
    for number in 0..100 {
        segment.event(Event::Answer { address: ip(20), mac: [2, 0, 0, 0, 2, number] });
        segment.event(Event::Answer { address: ip(99), mac: HOST });
    }
    for round in 2..50 {
        let others = (0..60).map(|n| Ipv4Addr::from(0xc000_0200 + 60 * u32::try_from(round).unwrap() + n));
        segment.ask(round, &std::iter::once(ip(20)).chain(others).collect::<Vec<_>>());
    }
    assert_eq!((segment.prober.rounds.len(), segment.prober.targets.len()), (MAX_ROUNDS, MAX_TARGETS));
    segment.run(3_000);
    assert_eq!(segment.reports.last().unwrap().0.round, 49);
    assert_eq!(segment.reports.last().unwrap().0.results[&ip(20)].len(), MAX_ANSWERS);
}

/// The kernel refused a probe: silence would be no answer.
#[test]
fn a_failure_answers_nothing() {
    let mut segment = Segment::new(|_| vec![]);
    segment.ask(1, &[ip(20)]);
    segment.prober.fail();
    segment.run(1_000);
    assert!(segment.reports.is_empty() && segment.prober.next_deadline().is_none());
    segment.ask(2, &[ip(20)]);
    segment.run(3_000);
    assert_eq!(segment.reports[0].0.round, 2);
}
