//! Named deadlines of a machine.

use alloc::collections::BTreeMap;

use crate::time::Instant;

/// Deadlines by name; at most one each. Small tables: `next` reads all of them.
#[derive(Clone, Debug)]
pub struct TimerTable<T: Ord + Copy> {
    deadlines: BTreeMap<T, Instant>,
}

impl<T: Ord + Copy> Default for TimerTable<T> {
    fn default() -> Self {
        Self { deadlines: BTreeMap::new() }
    }
}

impl<T: Ord + Copy> TimerTable<T> {
    pub fn set(&mut self, timer: T, at: Instant) {
        self.deadlines.insert(timer, at);
    }

    pub fn stop(&mut self, timer: T) {
        self.deadlines.remove(&timer);
    }

    pub fn get(&self, timer: T) -> Option<Instant> {
        self.deadlines.get(&timer).copied()
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Instant> {
        self.deadlines.values().min().copied()
    }

    /// Takes one timer that is due, the earliest first.
    pub fn expire(&mut self, now: Instant) -> Option<T> {
        let (&timer, _) = self.deadlines.iter().filter(|(_, at)| **at <= now).min_by_key(|(_, at)| **at)?;
        self.deadlines.remove(&timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expires_in_order_of_time() {
        let mut table = TimerTable::default();
        table.set('a', Instant::from_millis(30));
        table.set('b', Instant::from_millis(10));
        table.set('c', Instant::from_millis(20));
        table.stop('c');
        assert_eq!(table.next(), Some(Instant::from_millis(10)));
        assert_eq!(table.expire(Instant::from_millis(5)), None);
        assert_eq!(table.expire(Instant::from_millis(40)), Some('b'));
        assert_eq!(table.expire(Instant::from_millis(40)), Some('a'));
        assert_eq!(table.next(), None);
    }
}
