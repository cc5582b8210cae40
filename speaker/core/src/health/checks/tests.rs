use alloc::vec;

use proptest::prelude::*;

use super::*;

const TARGET: Target = Target { address: core::net::Ipv4Addr::new(192, 0, 2, 1), port: 6443 };

/// What the server does with a check that starts at a time.
type Server<'a> = &'a dyn Fn(Instant) -> (Outcome, Duration);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn at(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

/// Runs a machine against a server on a virtual clock, and says when the target counted otherwise.
fn run(seed: u64, server: Server<'_>, until: Instant) -> (Vec<(Instant, bool)>, Vec<Instant>) {
    let mut checks = Checks::new(Config::new(seed));
    checks.set_targets(&[TARGET].into(), at(0));
    let (mut running, mut changes, mut starts) = (BTreeMap::new(), vec![], vec![]);
    let mut now = at(0);
    while now <= until {
        let mut before = checks.get(TARGET).unwrap().answers;
        let mut note = |checks: &Checks, now| {
            let answers = checks.get(TARGET).unwrap().answers;
            if core::mem::replace(&mut before, answers) != answers {
                changes.push((now, answers));
            }
        };
        for check in checks.turn(now) {
            let (outcome, after) = server(now);
            starts.push(now);
            running.insert((now + after, check), outcome);
        }
        note(&checks, now);
        let due: Vec<_> = running.keys().filter(|(end, _)| *end <= now).copied().collect();
        for key in due {
            let outcome = running.remove(&key).unwrap();
            checks.ended(key.1, outcome, now);
            note(&checks, now);
        }
        let ends = running.keys().map(|(end, _)| *end);
        let next = ends.chain(checks.next_deadline()).min().unwrap();
        assert!(next > now || checks.next_deadline().is_none_or(|due| due <= now), "it goes on");
        now = next.max(now + Duration::from_nanos(1));
    }
    (changes, starts)
}

/// As if the server never answered: longer than any timeout.
const NEVER: Duration = Duration::from_secs(600);

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    /// Whenever the fault comes: out after 1.8 s at most with the hold, and never before two checks have failed.
    #[test]
    fn a_silent_server_is_out_in_time(seed: u64, fault in 2_000u64..4_000, answer in 1u64..150) {
        let frozen = |start: Instant| {
            // A check that is under way when the server freezes hangs too.
            let answered = start + millis(answer) <= at(fault);
            if answered { (Outcome::Ready, millis(answer)) } else { (Outcome::Ready, NEVER) }
        };
        let (changes, _) = run(seed, &frozen, at(fault + 10_000));
        prop_assert_eq!(changes.len(), 1);
        let out = changes[0].0.since(at(fault)) + super::super::HOLD;
        prop_assert!(!changes[0].1 && out <= millis(1_800), "{:?}", out);
    }

    #[test]
    fn a_server_that_refuses_is_out_in_time(seed: u64, fault in 2_000u64..4_000) {
        let killed = |start: Instant| {
            if start < at(fault) { (Outcome::Ready, millis(3)) } else { (Outcome::Refused, millis(0)) }
        };
        let (changes, _) = run(seed, &killed, at(fault + 10_000));
        prop_assert_eq!(changes.len(), 1);
        let out = changes[0].0.since(at(fault)) + super::super::HOLD;
        prop_assert!(!changes[0].1 && out <= millis(800), "{:?}", out);
    }

    /// One answer brings it back, within an interval and what the answer takes.
    #[test]
    fn a_server_that_returns_is_back_with_its_first_answer(seed: u64, fault in 2_000u64..3_000, long in 3_000u64..9_000, silent: bool) {
        let (gone, back) = (at(fault), at(fault + long));
        let server = |start: Instant| match start < gone || start >= back {
            true => (Outcome::Ready, millis(5)),
            false if silent => (Outcome::Silent, NEVER),
            false => (Outcome::Refused, millis(0)),
        };
        let (changes, _) = run(seed, &server, back + millis(3_000));
        prop_assert_eq!(changes.iter().map(|(_, answers)| *answers).collect::<Vec<_>>(), vec![false, true]);
        prop_assert!(changes[1].0.since(back) <= millis(505), "{:?}", changes[1].0.since(back));
    }

    /// A check now and then that fails, between others that do not, takes nothing out.
    #[test]
    fn single_failures_take_nothing_out(seed: u64, every in 2u64..9, silent: bool) {
        let count = core::cell::Cell::new(0u64);
        let server = |_: Instant| {
            count.set(count.get() + 1);
            match count.get() % every {
                0 if count.get() > 1 => (Outcome::Refused, if silent { NEVER } else { millis(1) }),
                _ => (Outcome::Ready, millis(1)),
            }
        };
        let (changes, _) = run(seed, &server, at(60_000));
        prop_assert_eq!(changes, vec![]);
    }

    /// Whatever a server does: a bounded number of checks, and the machine never stops.
    #[test]
    fn checks_are_bounded_and_go_on(seed: u64, answers in proptest::collection::vec((0u8..4, 0u64..1_500), 1..40)) {
        let count = core::cell::Cell::new(0usize);
        let server = |_: Instant| {
            count.set(count.get() + 1);
            let (kind, after) = answers[count.get() % answers.len()];
            let outcome = [Outcome::Ready, Outcome::Unauthorized, Outcome::NotReady(500), Outcome::Refused][usize::from(kind)];
            (outcome, millis(after))
        };
        let (_, starts) = run(seed, &server, at(30_000));
        prop_assert!((20..=150).contains(&starts.len()), "{}", starts.len());
        for window in starts.windows(2) {
            prop_assert!(window[1].since(window[0]) <= millis(1_300), "{:?}", window);
        }
    }
}

#[test]
fn a_refusal_to_authorize_is_an_answer() {
    for (outcome, answers) in [
        (Outcome::Ready, true),
        (Outcome::Unauthorized, true),
        (Outcome::Handshake, true),
        (Outcome::NotReady(500), false),
        (Outcome::Slow, false),
        (Outcome::CertificateTime, false),
        (Outcome::Certificate, false),
        (Outcome::CaMissing, false),
    ] {
        let mut checks = Checks::new(Config::new(1));
        checks.set_targets(&[TARGET].into(), at(0));
        assert!(checks.get(TARGET).unwrap().answers, "unknown takes nothing out");
        let started = checks.turn(at(0));
        checks.ended(started[0], outcome, at(5));
        assert_eq!(
            checks.get(TARGET).map(|state| state.answers),
            Some(answers),
            "{outcome:?}: the first check decides"
        );
    }
}

/// Of a check that was given up, or of a target that is checked no more.
#[test]
fn a_late_outcome_says_nothing() {
    let mut checks = Checks::new(Config::new(1));
    checks.set_targets(&[TARGET].into(), at(0));
    let first = checks.turn(at(0))[0];
    let second = checks.turn(at(200))[0];
    assert!(!checks.ended(second, Outcome::Ready, at(210)));
    assert!(!checks.ended(first, Outcome::Refused, at(220)) && checks.get(TARGET).unwrap().failures == 0);
    let next = checks.turn(at(500))[0];
    checks.set_targets(&BTreeSet::new(), at(510));
    assert!(!checks.ended(next, Outcome::Refused, at(520)) && checks.next_deadline().is_none());
}
