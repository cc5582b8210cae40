//! One turn of the loop around the election: daemon and simulator run this.
//!
//! The order keeps a node that has much to do from being taken for dead: a heartbeat that is due goes out before pending datagrams
//! and between the actions of a decision; a decision is made once, after what was pending; silence is judged only then.

use alloc::vec::Vec;

use super::{Action, Election, Event};
use crate::machine::Machine;
use crate::time::{Duration, Instant};

/// What the loop is run in: a clock, a socket, hands.
pub trait Surroundings {
    fn now(&mut self) -> Instant;

    /// For how long since the last heartbeat the thread was kept from running: [`Event::Woke`].
    fn stalled(&mut self) -> Duration;

    /// The next datagram that is pending.
    fn receive(&mut self) -> Option<Vec<u8>>;

    /// The machine has handled an event: a simulator charges the time that it takes.
    fn handled(&mut self, _election: &Election) {}

    /// Carries out an action. An event comes back where the kernel refused it.
    fn act(&mut self, action: Action, now: Instant) -> Option<Event>;
}

/// Datagrams of one turn.
const MAX_DATAGRAMS: usize = 1024;
/// Actions between two reads of the clock.
const ACTIONS: usize = 32;

/// The loop's own memory.
#[derive(Debug, Default)]
pub struct Turn {
    /// More was pending at the end of each turn since then.
    undrained: Option<Instant>,
}

impl Turn {
    /// Everything that is due now. To be called after each wait for `next_deadline()` or a datagram; it is due at once again if
    /// `next_deadline()` is not after now, or if more is pending.
    pub fn run(&mut self, election: &mut Election, around: &mut impl Surroundings) {
        woke(election, around);
        let drained = receive(election, around);
        let now = around.now();
        // A flood must not keep silence from being judged for ever.
        let since = *self.undrained.get_or_insert(now);
        if drained || now.since(since) >= election.config.dead() {
            self.undrained = None;
            if election.next_deadline().is_some_and(|due| due <= now) {
                handle(election, Event::Tick, around);
            }
        }
    }
}

/// An event from another thread.
pub fn handle(election: &mut Election, event: Event, around: &mut impl Surroundings) {
    let now = around.now();
    let mut actions = Vec::new();
    election.handle(event, now, &mut actions);
    around.handled(election);
    let mut refused = Vec::new();
    for (at, action) in actions.into_iter().enumerate() {
        if at % ACTIONS == ACTIONS - 1 {
            beat_if_due(election, around);
        }
        refused.extend(around.act(action, now));
    }
    refused.into_iter().for_each(|event| act(election, event, around));
}

/// Whether all that was pending has been delivered.
fn receive(election: &mut Election, around: &mut impl Surroundings) -> bool {
    for _ in 0..MAX_DATAGRAMS {
        beat_if_due(election, around);
        let Some(datagram) = around.receive() else { return true };
        act(election, Event::Datagram(datagram), around);
    }
    false
}

fn beat_if_due(election: &mut Election, around: &mut impl Surroundings) {
    if around.now() >= election.next_beat() {
        woke(election, around);
        act(election, Event::Beat, around);
    }
}

fn woke(election: &mut Election, around: &mut impl Surroundings) {
    let stalled = around.stalled();
    act(election, Event::Woke { stalled }, around);
}

/// An event with few actions, and what the kernel refuses of them. What it refused is not tried again before [`super::Config::retry`], so
/// this ends.
fn act(election: &mut Election, event: Event, around: &mut impl Surroundings) {
    let mut events = alloc::vec![event];
    while let Some(event) = events.pop() {
        let now = around.now();
        let mut actions = Vec::new();
        election.handle(event, now, &mut actions);
        around.handled(election);
        events.extend(actions.into_iter().filter_map(|action| around.act(action, now)));
    }
}
