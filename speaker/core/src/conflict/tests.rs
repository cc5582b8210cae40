use alloc::vec;
use core::net::Ipv4Addr;

use super::*;

const VIP: Vip = Vip(Ipv4Addr::new(192, 0, 2, 1));
const HOST: [u8; 6] = [2, 0, 0, 0, 0, 9];
const A: u64 = 0x0001;
const B: u64 = 0x0002;

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

fn owner(cluster: u64, since: u64) -> Conflicts {
    let mut conflicts = Conflicts::new(cluster);
    assert_eq!(told(&mut conflicts, Event::Acquired { vip: VIP, term: Term(3) }, since), []);
    conflicts
}

fn told(conflicts: &mut Conflicts, event: Event, now: u64) -> Vec<Action> {
    let mut actions = Vec::new();
    conflicts.handle(event, at(now), &mut actions);
    actions
}

fn from_host() -> Event {
    Event::Heard { vip: VIP, mac: HOST, claim: None }
}

/// Everything that is due until then, with its times.
fn until(conflicts: &mut Conflicts, end: u64) -> Vec<(u64, Action)> {
    let mut done = Vec::new();
    while let Some(due) = conflicts.next_deadline().filter(|due| *due <= at(end)) {
        let mut actions = Vec::new();
        conflicts.handle(Event::Tick, due, &mut actions);
        done.extend(actions.into_iter().map(|action| (due.as_nanos() / 1_000_000, action)));
    }
    done
}

/// What is sent after `event`, as the other side hears it.
fn announced(from: &Conflicts, mac: u8, now: u64) -> Event {
    Event::Heard { vip: VIP, mac: [2, 0, 0, 0, 0, mac], claim: Some(from.claim(VIP, at(now))) }
}

#[test]
fn a_claim_reads_as_it_was_written() {
    for state in Owner::ALL {
        for cluster in [0, 1, 0x1234, u16::MAX] {
            let claim = Claim { state, cluster };
            assert_eq!(Claim::of(claim.bytes()), Some(claim));
        }
    }
    for bytes in [[0; 6], [0xff; 6], [2, 0x53, 0x68, 0x3f, 0, 0], [2, 0x53, 0x68, 1, 0, 0], [2, 0x53, 0x69, b'O', 0, 0]]
    {
        assert_eq!(Claim::of(bytes), None, "{bytes:x?}");
    }
}

#[test]
fn against_a_host_the_owner_stays_and_says_so_now_and_then() {
    let mut owner = owner(A, 0);
    let began = Action::Began { vip: VIP, mac: HOST, cluster: false, yielded: false };
    assert_eq!(told(&mut owner, from_host(), 5000), [Action::Defend(VIP), began]);
    assert_eq!(owner.vips().collect::<Vec<_>>(), [VIP]);
    assert_eq!(told(&mut owner, from_host(), 6000), [], "RFC 5227: not more often than every 10 s");
    assert_eq!(told(&mut owner, from_host(), 15_000), [Action::Defend(VIP)]);
    // It is still there while it answers probes, and gone after three without an answer.
    assert_eq!(until(&mut owner, 15_000), [(10_000, Action::Probe(VIP)), (15_000, Action::Probe(VIP))]);
    assert_eq!(told(&mut owner, from_host(), 15_001), []);
    let rest = until(&mut owner, 60_000);
    let probes = [20_000, 25_000, 30_000].map(|time| (time, Action::Probe(VIP)));
    assert_eq!(rest, [&probes[..], &[(35_000, Action::Ended { vip: VIP, mac: HOST })]].concat());
    assert_eq!(owner.vips().count(), 0);
}

#[test]
fn a_new_owner_yields_to_a_settled_one_and_comes_back_when_it_is_gone() {
    for (old, new) in [(A, B), (B, A)] {
        let (mut old, mut new) = (owner(old, 0), owner(new, 10_000));
        let heard = announced(&new, 2, 10_000);
        let [Action::Defend(VIP), Action::Began { yielded: false, cluster: true, .. }] =
            told(&mut old, heard, 10_000)[..]
        else {
            panic!("the old one stays")
        };
        let heard = announced(&old, 1, 10_001);
        let concedes = Action::Concede { vip: VIP, to: [2, 0, 0, 0, 0, 1] };
        let began = Action::Began { vip: VIP, mac: [2, 0, 0, 0, 0, 1], cluster: true, yielded: true };
        let yields = Action::Yield { vip: VIP, term: Term(3) };
        assert_eq!(told(&mut new, heard, 10_001), [yields, concedes, began], "the new one yields");
        // Its probes are answered, plainly: it stays silent. The old one is told, and has nothing to defend.
        let answer = Event::Heard { vip: VIP, mac: [2, 0, 0, 0, 0, 1], claim: None };
        let probed = |time| [(time, Action::Probe(VIP)), (time, concedes)];
        for second in 11..20 {
            let time = second * 1000 + 1;
            assert_eq!(until(&mut new, time), probed(time));
            assert_eq!(told(&mut old, announced(&new, 2, time), time), []);
            assert_eq!(told(&mut new, answer, time + 1), []);
        }
        // A proxy's answers do not count.
        told(&mut new, from_host(), 20_000);
        let (rest, gone) = (until(&mut new, 30_000), Action::Ended { vip: VIP, mac: [2, 0, 0, 0, 0, 1] });
        let mut wanted = [20_001, 21_001, 22_001].map(probed).concat();
        wanted.extend([(23_001, gone), (23_001, Action::Resume { vip: VIP, term: Term(3) })]);
        assert_eq!(rest, wanted);
        assert_eq!(new.claim(VIP, at(24_000)).state, Owner::New, "and is a new owner");
    }
}

/// The one that keeps the VIP has heard nothing but the concession.
#[test]
fn a_concession_is_named_for_as_long_as_it_comes() {
    let mut keeper = owner(A, 0);
    let silent = Event::Heard { vip: VIP, mac: HOST, claim: Some(Claim { state: Owner::Silent, cluster: B as u16 }) };
    let began = Action::Began { vip: VIP, mac: HOST, cluster: true, yielded: false };
    assert_eq!(told(&mut keeper, silent, 5000), [Action::Defend(VIP), began]);
    for second in 6..60 {
        assert_eq!(told(&mut keeper, silent, second * 1000), [], "it has announced it once");
        assert!(!until(&mut keeper, second * 1000).iter().any(|(_, action)| matches!(action, Action::Ended { .. })));
        assert_eq!(keeper.vips().count(), 1);
    }
    let ended = Action::Ended { vip: VIP, mac: HOST };
    assert_eq!(until(&mut keeper, 90_000).last(), Some(&(75_000, ended)));
}

/// Two that have yielded to a third: neither takes the other one for it.
#[test]
fn a_concession_is_no_answer_to_one_that_has_yielded() {
    let mut silent = owner(B, 0);
    let other = |state, mac| Event::Heard { vip: VIP, mac: [mac; 6], claim: Some(Claim { state, cluster: A as u16 }) };
    told(&mut silent, other(Owner::Settled, 2), 5000);
    for second in 6..9 {
        until(&mut silent, second * 1000);
        assert_eq!(told(&mut silent, other(Owner::Silent, 4), second * 1000), []);
    }
    let ended = Action::Ended { vip: VIP, mac: [2; 6] };
    assert_eq!(until(&mut silent, 9000), [(9000, ended), (9000, Action::Resume { vip: VIP, term: Term(3) })]);
}

#[test]
fn of_two_clusters_that_meet_the_lower_number_announces_first() {
    let [one, other] = [A, B].map(Conflicts::new);
    assert_eq!((one.waits_for(B), other.waits_for(A)), (Duration::ZERO, HEARD_BEFORE));
}

/// Whatever the times: exactly one of two yields, and it does within a few frames.
#[test]
fn exactly_one_of_two_clusters_yields() {
    for since in [0, 1000, 1900, 1999, 2000, 2001, 4000] {
        for first in [false, true] {
            for delay in [0, 1, 50, 99] {
                let mut both = [owner(A, 0), owner(B, since)];
                let (mut now, mut sender, mut yielded) = (since, usize::from(first), [false; 2]);
                for _ in 0..4 {
                    let heard = announced(&both[sender], sender as u8, now);
                    now += delay;
                    if yielded[sender] {
                        break;
                    }
                    sender = 1 - sender;
                    let told = told(&mut both[sender], heard, now);
                    yielded[sender] |= told.iter().any(|action| matches!(action, Action::Yield { vip: VIP, .. }));
                    now += 100;
                }
                assert_eq!(yielded.iter().filter(|yielded| **yielded).count(), 1, "{since} {first} {delay}");
            }
        }
    }
}

#[test]
fn nodes_of_this_cluster_and_vips_of_other_nodes_are_no_conflict() {
    let mut owner = owner(A, 0);
    let ours = announced(&Conflicts::new(A), 7, 100);
    assert_eq!(told(&mut owner, ours, 100), []);
    let mut other = Conflicts::new(A);
    assert_eq!((told(&mut other, from_host(), 100), other.next_deadline()), (vec![], None));
}

/// Proxy ARP leaves the probe alone; a host that has the VIP answers it.
#[test]
fn an_answer_to_an_announcement_is_a_reason_to_probe_and_no_conflict() {
    let mut owner = owner(A, 0);
    assert_eq!(told(&mut owner, Event::Answered(VIP), 5000), [Action::Probe(VIP)]);
    assert_eq!((told(&mut owner, Event::Answered(VIP), 5999), owner.vips().count()), (vec![], 0), "once a second");
    assert_eq!((told(&mut owner, Event::Answered(VIP), 6000), owner.vips().count()), (vec![Action::Probe(VIP)], 0));
    assert_eq!(owner.next_deadline(), None);

    let began = Action::Began { vip: VIP, mac: HOST, cluster: false, yielded: false };
    assert_eq!(told(&mut owner, from_host(), 6001), [Action::Defend(VIP), began], "the host's answer to the probe");
    assert_eq!(told(&mut owner, Event::Answered(VIP), 8000), [], "probed anyway");
    assert_eq!(told(&mut Conflicts::new(A), Event::Answered(VIP), 8000), [], "another node's");
}

#[test]
fn a_conflict_ends_with_the_ownership() {
    let mut owner = owner(A, 0);
    told(&mut owner, from_host(), 100);
    assert_eq!(told(&mut owner, Event::Released(VIP), 200), [Action::Ended { vip: VIP, mac: HOST }]);
    assert_eq!(owner.next_deadline(), None);
}

/// A flood of forged frames about all VIPs: probes are spread over turns.
#[test]
fn probes_of_one_turn_have_a_limit() {
    let mut conflicts = Conflicts::new(A);
    for number in 0..1000_u32 {
        let vip = Vip(Ipv4Addr::from(0x0a00_0000 + number));
        told(&mut conflicts, Event::Acquired { vip, term: Term(1) }, 0);
        told(&mut conflicts, Event::Heard { vip, mac: HOST, claim: None }, 0);
    }
    assert_eq!(told(&mut conflicts, Event::Tick, 5000).len(), MAX_PER_TURN);
    assert_eq!(conflicts.next_deadline(), Some(at(5000)));
}
