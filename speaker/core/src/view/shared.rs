//! A map that the copies of a view share until one of them changes it: the main loop and the dataplane each have one.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::ops::Deref;

use super::Limit;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shared<K, V>(Arc<BTreeMap<K, V>>);

impl<K: Clone + Ord, V: Clone + PartialEq> Shared<K, V> {
    /// Whether this changed the map; `Err` if there is no room for a new key.
    pub fn insert(&mut self, key: K, value: V, limit: Limit) -> Result<bool, Limit> {
        if self.0.get(&key) == Some(&value) {
            return Ok(false);
        }
        super::insert(Arc::make_mut(&mut self.0), key, value, limit)
    }

    /// Whether it was there.
    pub fn remove(&mut self, key: &K) -> bool {
        self.0.contains_key(key) && Arc::make_mut(&mut self.0).remove(key).is_some()
    }
}

impl<K, V> Default for Shared<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, V> Deref for Shared<K, V> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
