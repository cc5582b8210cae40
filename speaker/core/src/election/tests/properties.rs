//! Any events at any times: no panic, no busy loop, nothing too large, and OWN and the owners agree.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::super::*;
use super::harness::{config, keyring, name, vip};
use crate::name::Term;
use crate::time::Duration;
use crate::wire::advert::{Body, Claim, Flags, MAX_DATAGRAM, digest};
use crate::wire::pace::Pace;

/// Any advert that a peer with the key could send, sense or nonsense.
fn any_advert() -> impl Strategy<Value = Advert> {
    let claim = (1u8..5, 0u64..6, any::<bool>());
    let claim = claim.prop_map(|(last, term, stepping_down)| Claim { vip: vip(last), term: Term(term), stepping_down });
    let claims = prop::collection::btree_map(1u8..5, claim, 0..4).prop_map(|claims| {
        claims.into_iter().map(|(last, claim)| Claim { vip: vip(last), ..claim }).collect::<Vec<_>>()
    });
    (0usize..4, 0u64..4, 0u64..200, prop::array::uniform7(any::<bool>()), claims, any::<(bool, bool, u8, u32)>())
        .prop_map(
            |(
                node,
                epoch,
                sequence,
                [ready, leaving, need_claims, joining, alone, saved_view, drained],
                claims,
                (list, whole, part, tag),
            )| {
                let digest = if whole { digest(claims.iter().copied()) } else { u64::from(part) };
                let body = if part >= 200 {
                    let interval = Duration::from_millis(10 + u64::from(tag % 991));
                    let pace = Pace { interval, dead_intervals: 3 + tag / 1000 % 8 };
                    Body::Node { mac: [2, 0, 0, 0, 0, 7], pace: whole.then_some(pace) }
                } else if list {
                    Body::Claims {
                        part: if whole { 0 } else { u16::from(part % 3) },
                        parts: if whole { 1 } else { 3 },
                        claims,
                    }
                } else {
                    Body::Heartbeat { echoes: alloc::vec![tag] }
                };
                let flags = Flags { ready, leaving, need_claims, joining, alone, saved_view, drained };
                Advert { node: name(node), cluster: 1, epoch, sequence, flags, digest, challenge: tag, body }
            },
        )
}

#[derive(Clone, Debug)]
enum Step {
    Advert(Advert),
    /// The same, but it names the challenge that the machine sent last.
    Answer(Advert),
    Bytes(Vec<u8>),
    Desired(u8),
    Ready(bool),
    SavedView(bool),
    Drained(bool),
    Carrier(bool),
    Leave,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any_advert().prop_map(Step::Advert),
        6 => any_advert().prop_map(Step::Answer),
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Step::Bytes),
        1 => (0u8..6).prop_map(Step::Desired),
        1 => prop::bool::weighted(0.8).prop_map(Step::Ready),
        1 => prop::bool::weighted(0.5).prop_map(Step::SavedView),
        1 => prop::bool::weighted(0.5).prop_map(Step::Drained),
        1 => prop::bool::weighted(0.8).prop_map(Step::Carrier),
        1 => prop::bool::weighted(0.05).prop_map(|leave| if leave { Step::Leave } else { Step::Ready(true) }),
    ]
}

/// All nodes; heavier ones beside this one, with failback; none but another one; a preferred one, and an order to this node's owner.
fn any_eligible(how: u8) -> Eligible {
    let standing = |choice, weight| Standing { choice, weight };
    let chosen = |nodes: &[(usize, Choice, u8)], failback| Eligible::Chosen {
        nodes: Arc::new(nodes.iter().map(|(node, choice, weight)| (name(*node), standing(*choice, *weight))).collect()),
        failback,
    };
    let heavier = [(0, Choice::First, 1), (1, Choice::First, 2), (2, Choice::Second, 3), (3, Choice::Keeps, 0)];
    match how % 5 {
        0 => Eligible::All,
        1 => chosen(&heavier, Some(Duration::from_millis(70))),
        2 => chosen(&[(1, Choice::First, 0)], None),
        3 => chosen(&heavier[..1], None),
        _ => {
            let order = Order { to: name(1), from: name(0), term: Term(u64::from(how % 3) + 1) };
            Eligible::Placed { preferred: Some(name(2)), order: Some(order), of: Arc::new(chosen(&heavier, None)) }
        }
    }
}

/// The machine, and what its actions add up to.
struct Driven {
    election: Election,
    now: Instant,
    own: BTreeMap<Vip, Term>,
    challenge: u32,
    seen: u64,
}

impl Driven {
    fn handle(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.election.handle(event, self.now, &mut actions);
        for action in actions {
            match action {
                Action::Send(bytes) => {
                    assert!(bytes.len() <= MAX_DATAGRAM);
                    let advert = Advert::open(&bytes, 1, &keyring()).expect("what we send is valid");
                    assert!(advert.sequence > self.seen, "sequence numbers rise");
                    (self.seen, self.challenge) = (advert.sequence, advert.challenge);
                }
                Action::RenewLease { until } => assert_eq!(until, self.now + self.election.config.lease, "I1"),
                Action::Acquire { vip, term } => {
                    assert!(self.own.insert(vip, term).is_none_or(|before| before < term), "terms rise");
                }
                Action::Release { vip, .. } => assert!(self.own.remove(&vip).is_some(), "released what was held"),
                _ => {}
            }
        }
        // What was touched is decided by the tick that follows.
        let status = self.election.status(self.now);
        assert_eq!(self.own, status.held);
        assert!(self.own.keys().all(|vip| status.owners.get(vip).is_some_and(|owner| owner.node == name(0))));
    }

    /// As the driver does it, through to `end`.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.election.next_deadline().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.handle(Event::Tick);
            assert!(self.election.next_deadline().is_none_or(|next| next > self.now), "a busy loop");
        }
        self.now = end;
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Advert(advert) => self.handle(Event::Datagram(advert.seal(&keyring()))),
            Step::Answer(mut advert) => {
                if let Body::Heartbeat { echoes } = &mut advert.body {
                    echoes.push(self.challenge);
                }
                self.handle(Event::Datagram(advert.seal(&keyring())));
            }
            Step::Bytes(bytes) => self.handle(Event::Datagram(bytes)),
            Step::Desired(count) => {
                self.handle(Event::Desired((1..=count).map(|last| (vip(last), any_eligible(last + count))).collect()));
            }
            Step::Ready(ready) => self.handle(Event::Ready(ready)),
            Step::SavedView(saved) => self.handle(Event::SavedView(saved)),
            Step::Drained(drained) => self.handle(Event::Drained(drained)),
            Step::Carrier(carrier) => self.handle(Event::Carrier(carrier)),
            Step::Leave => self.handle(Event::Leave),
        }
    }
}

proptest! {
    #[test]
    fn anything_goes(steps in prop::collection::vec((any_step(), 0u64..120, prop::bool::weighted(0.95)), 0..150)) {
        let now = Instant::from_millis(1000);
        let election = Election::new(config(0, 3), now);
        let mut driven = Driven { election, now, own: BTreeMap::new(), challenge: 0, seen: 0 };
        driven.step(Step::Desired(4));
        driven.step(Step::Ready(true));
        for (step, millis, awake) in steps {
            // Asleep, it is given no tick: a freeze.
            if awake {
                driven.pass(Duration::from_millis(millis));
            } else {
                let stalled = Duration::from_millis(millis * 10);
                driven.now += stalled;
                driven.handle(Event::Woke { stalled });
            }
            driven.step(step);
        }
    }
}
