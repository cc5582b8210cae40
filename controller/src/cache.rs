//! Pure: what we know of one kind of object, from several sources that overtake each other (watch, list, the answers to
//! our own writes). The newest resourceVersion wins, whichever way it came.

use std::collections::BTreeMap;

/// Objects by key, each with the version it was seen in.
#[derive(Debug)]
pub struct Cache<K, V> {
    entries: BTreeMap<K, Entry<V>>,
    /// Counts the beginnings of full lists; an entry seen since the last one survives its end.
    round: u64,
    synced: bool,
}

#[derive(Debug)]
struct Entry<V> {
    version: u64,
    round: u64,
    value: V,
}

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Cache { entries: BTreeMap::new(), round: 0, synced: false }
    }
}

impl<K: Ord + Clone, V> Cache<K, V> {
    /// Stores the object unless a newer version is known. True if it was stored.
    pub fn apply(&mut self, key: K, version: u64, value: V) -> bool {
        let round = self.round;
        match self.entries.get_mut(&key) {
            Some(known) if known.version > version => {
                known.round = round;
                false
            }
            _ => {
                self.entries.insert(key, Entry { version, round, value });
                true
            }
        }
    }

    /// Forgets the object unless a newer one of the same name is known. True if it was forgotten.
    pub fn delete(&mut self, key: &K, version: u64) -> bool {
        let stale = self.entries.get(key).is_none_or(|known| known.version > version);
        !stale && self.entries.remove(key).is_some()
    }

    /// A full list begins: what is not seen from here on is gone.
    pub fn begin(&mut self) {
        self.round += 1;
    }

    /// The full list is complete. Returns what it did not contain.
    pub fn complete(&mut self) -> Vec<K> {
        self.synced = true;
        let gone: Vec<K> = self.entries.iter().filter(|(_, e)| e.round < self.round).map(|(k, _)| k.clone()).collect();
        for key in &gone {
            self.entries.remove(key);
        }
        gone
    }

    /// Whether a full list was ever completed.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, entry)| (key, &entry.value))
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_version_changes_nothing() {
        let mut cache = Cache::default();
        assert!(cache.apply("a", 7, 1));
        assert!(!cache.apply("a", 6, 2));
        assert!(!cache.delete(&"a", 6), "the deletion of a predecessor");
        assert_eq!(cache.get(&"a"), Some(&1));
        assert!(cache.delete(&"a", 8));
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn a_full_list_removes_what_was_not_seen_since_it_began() {
        let mut cache = Cache::default();
        cache.apply("old", 1, ());
        cache.apply("kept", 2, ());
        cache.begin();
        cache.apply("written by us meanwhile", 9, ());
        cache.apply("kept", 2, ());
        assert_eq!(cache.complete(), ["old"]);
        assert!(cache.is_synced());
        assert_eq!(cache.len(), 2);
    }
}
