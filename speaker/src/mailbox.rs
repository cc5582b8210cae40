//! A channel that holds the newest value of each key. A sender never waits for the receiver; nothing grows with time.
//!
//! At its limit of keys a value for a new key is refused, unless its sender says that there are few of its kind ([`Sender::insist`]).
//! Where keys are bounded by what they name (VIPs), there is no limit. The lock is held while one value is moved, so that the
//! election's thread may send.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::sync::mpsc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Undelivered {
    #[error("the receiver is gone")]
    Closed,
    #[error("the mailbox is full")]
    Full,
}

type Slots<K, V> = Arc<Mutex<BTreeMap<K, V>>>;

pub struct Sender<K, V> {
    slots: Slots<K, V>,
    wake: mpsc::Sender<()>,
    most: usize,
}

pub struct Receiver<K, V> {
    slots: Slots<K, V>,
    wake: mpsc::Receiver<()>,
}

/// `most`: keys whose value waits at a time.
pub fn channel<K: Ord, V>(most: usize) -> (Sender<K, V>, Receiver<K, V>) {
    let slots = Slots::default();
    let (sender, receiver) = mpsc::channel(1);
    (Sender { slots: slots.clone(), wake: sender, most }, Receiver { slots, wake: receiver })
}

impl<K: Ord, V> Sender<K, V> {
    /// Replaces the value of this key that waits.
    pub fn send(&self, key: K, value: V) -> Result<(), Undelivered> {
        self.edit(key, |_| value)
    }

    /// The same with a value made from the waiting one.
    pub fn edit(&self, key: K, value: impl FnOnce(Option<V>) -> V) -> Result<(), Undelivered> {
        self.put(key, value, self.most)
    }

    /// The same for a key that is never refused.
    pub fn insist(&self, key: K, value: impl FnOnce(Option<V>) -> V) -> Result<(), Undelivered> {
        self.put(key, value, usize::MAX)
    }

    fn put(&self, key: K, value: impl FnOnce(Option<V>) -> V, most: usize) -> Result<(), Undelivered> {
        {
            let mut slots = lock(&self.slots);
            if slots.len() >= most && !slots.contains_key(&key) {
                return Err(Undelivered::Full);
            }
            let before = slots.remove(&key);
            slots.insert(key, value(before));
        }
        match self.wake.try_send(()) {
            // Full: the receiver is being woken already.
            Ok(()) | Err(mpsc::error::TrySendError::Full(())) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(())) => Err(Undelivered::Closed),
        }
    }
}

impl<K, V> Clone for Sender<K, V> {
    fn clone(&self) -> Self {
        Self { slots: self.slots.clone(), wake: self.wake.clone(), most: self.most }
    }
}

impl<K: Ord, V> Receiver<K, V> {
    /// All that waits, in order of keys; `None` when every sender is gone. Loses nothing if it is dropped while it waits.
    pub async fn recv(&mut self) -> Option<BTreeMap<K, V>> {
        self.wake.recv().await?;
        Some(std::mem::take(&mut *lock(&self.slots)))
    }
}

/// A panic while it was held cannot have left it half changed.
fn lock<K, V>(slots: &Slots<K, V>) -> MutexGuard<'_, BTreeMap<K, V>> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_value_of_each_key_and_no_more_keys_than_allowed() {
        let (sender, mut receiver) = channel(2);
        assert_eq!(sender.send(1, "a"), Ok(()));
        assert_eq!(sender.send(2, "b"), Ok(()));
        assert_eq!(sender.send(1, "c"), Ok(()));
        assert_eq!(sender.send(3, "d"), Err(Undelivered::Full));
        assert_eq!(sender.insist(4, |before| before.unwrap_or("d")), Ok(()));
        assert_eq!(receiver.recv().await, Some([(1, "c"), (2, "b"), (4, "d")].into()));
        assert_eq!(sender.edit(3, |before| before.unwrap_or("e")), Ok(()));
        assert_eq!(sender.clone().edit(3, |before| before.unwrap_or("f")), Ok(()));
        assert_eq!(receiver.recv().await, Some([(3, "e")].into()));
        drop(sender);
        assert_eq!(receiver.recv().await, None);
        let (sender, receiver) = channel::<u8, u8>(1);
        drop(receiver);
        assert_eq!(sender.send(1, 1), Err(Undelivered::Closed));
    }
}
