//! The contract of a protocol machine.

use alloc::vec::Vec;

use crate::time::Instant;

/// A machine turns events into actions and owns nothing but its state: no socket, no clock, no thread, no source of
/// randomness but the seed in its configuration. The same events at the same times give the same actions.
///
/// The driver's loop, the only correct one: 1. deliver everything that is pending (datagrams before anything else), each with the
/// time read just before; 2. if `next_deadline()` is not after now, deliver the machine's tick; 3. carry out the actions in their
/// order; 4. wait for the next event or for `next_deadline()`, whichever is first.
pub trait Machine {
    type Event;
    type Action;

    /// `now` never goes back.
    fn handle(&mut self, event: Self::Event, now: Instant, actions: &mut Vec<Self::Action>);

    /// When the tick must be delivered at the latest.
    fn next_deadline(&self) -> Option<Instant>;
}
