//! Pure: what we know of one kind of object, from several sources that overtake each other (watch, list, the answers to
//! our own writes). The newest resourceVersion wins, whichever way it came.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Objects by key, each with the version it was seen in.
#[derive(Debug)]
pub struct Cache<K, V> {
    entries: BTreeMap<K, Entry<V>>,
    /// Counts the beginnings of full lists; an entry seen since the last one survives its end.
    round: u64,
    synced: bool,
    /// The version of the last full list: what is older and not in it is gone.
    floor: u64,
    tombstones: Tombstones,
}

#[derive(Debug)]
struct Entry<V> {
    uid: String,
    version: u64,
    round: u64,
    value: V,
}

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Cache { entries: BTreeMap::new(), round: 0, synced: false, floor: 0, tombstones: Tombstones::default() }
    }
}

impl<K: Ord + Clone, V> Cache<K, V> {
    /// Stores the object unless more is known: a newer version, or that it is gone. True if it was stored.
    pub fn apply(&mut self, key: K, uid: &str, version: u64, value: V) -> bool {
        let round = self.round;
        match self.entries.get_mut(&key) {
            Some(known) if known.version > version => {
                known.round = round;
                return false;
            }
            None if version <= self.floor => return false,
            _ if self.tombstones.contains(uid) => return false,
            _ => {}
        }
        self.entries.insert(key, Entry { uid: uid.to_string(), version, round, value });
        true
    }

    /// Removes the object unless a newer one of the same name is known. True if it was removed.
    pub fn delete(&mut self, key: &K, version: u64) -> bool {
        let newer = self.entries.get(key).is_none_or(|known| known.version > version);
        !newer && self.remove(key)
    }

    /// Removes this very object. True if it was known.
    pub fn delete_uid(&mut self, key: &K, uid: &str) -> bool {
        let other = self.entries.get(key).is_none_or(|known| known.uid != uid);
        !other && self.remove(key)
    }

    /// A full list begins: what is not seen from here on is gone.
    pub fn begin(&mut self) {
        self.round += 1;
    }

    /// The full list is complete; `version` is what it was read at (0 if that is not known). Returns what it did not
    /// contain.
    pub fn complete(&mut self, version: u64) -> Vec<(K, V)> {
        self.synced = true;
        self.floor = self.floor.max(version);
        let gone: Vec<K> = self.entries.iter().filter(|(_, e)| e.round < self.round).map(|(k, _)| k.clone()).collect();
        // Of unknown age the list may be older than what it lacks, which comes back then.
        let dated = version > 0;
        let take = |key: K| {
            let value = if dated { self.take(&key) } else { self.entries.remove(&key).map(|entry| entry.value) };
            value.map(|value| (key, value))
        };
        gone.into_iter().filter_map(take).collect()
    }

    /// The list has the object, in a state that cannot be read: what is known of it stays.
    pub fn touch(&mut self, key: &K) {
        if let Some(known) = self.entries.get_mut(key) {
            known.round = self.round;
        }
    }

    fn remove(&mut self, key: &K) -> bool {
        self.take(key).is_some()
    }

    fn take(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.remove(key)?;
        self.tombstones.add(entry.uid);
        Some(entry.value)
    }

    /// Whether a full list was ever completed.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    pub fn uid(&self, key: &K) -> Option<&str> {
        self.entries.get(key).map(|entry| entry.uid.as_str())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, entry)| (key, &entry.value))
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

/// The uids of objects that went last: a late answer or a watch that lags must not bring them back. A uid never returns.
#[derive(Debug, Default)]
struct Tombstones {
    uids: BTreeSet<String>,
    order: VecDeque<String>,
}

impl Tombstones {
    fn contains(&self, uid: &str) -> bool {
        self.uids.contains(uid)
    }

    fn add(&mut self, uid: String) {
        if self.order.len() >= MAX_TOMBSTONES
            && let Some(oldest) = self.order.pop_front()
        {
            self.uids.remove(&oldest);
        }
        if self.uids.insert(uid.clone()) {
            self.order.push_back(uid);
        }
    }
}

/// Far more than can be deleted while one answer is on its way.
const MAX_TOMBSTONES: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_version_changes_nothing() {
        let mut cache = Cache::default();
        assert!(cache.apply("a", "u2", 7, 1));
        assert!(!cache.apply("a", "u2", 6, 2));
        assert!(!cache.delete(&"a", 6), "the deletion of a predecessor");
        assert_eq!(cache.get(&"a"), Some(&1));
        assert!(cache.delete(&"a", 8));
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn what_is_gone_does_not_come_back() {
        let mut cache = Cache::default();
        cache.apply("a", "u1", 1, ());
        assert!(!cache.delete_uid(&"a", "another"));
        assert!(cache.delete_uid(&"a", "u1"));
        assert!(!cache.apply("a", "u1", 5, ()), "a late answer");
        assert!(cache.apply("a", "u2", 6, ()), "a successor");
        cache.begin();
        cache.complete(10);
        assert!(!cache.apply("b", "u3", 9, ()), "older than the list that did not contain it");
        assert!(cache.apply("b", "u4", 11, ()));
    }

    #[test]
    fn a_full_list_removes_what_was_not_seen_since_it_began() {
        let mut cache = Cache::default();
        cache.apply("old", "u1", 1, ());
        cache.apply("kept", "u2", 2, ());
        cache.begin();
        cache.apply("written by us meanwhile", "u3", 9, ());
        cache.apply("kept", "u2", 2, ());
        assert_eq!(cache.complete(3), [("old", ())]);
        assert!(cache.is_synced());
        assert_eq!(cache.len(), 2);
        cache.begin();
        cache.touch(&"kept");
        assert_eq!(cache.complete(0).len(), 1, "what the list has and cannot be read stays");
        assert!(cache.get(&"kept").is_some());
    }

    #[test]
    fn a_list_of_unknown_age_forbids_nothing_to_come_back() {
        let mut cache = Cache::default();
        cache.apply("a", "u1", 5, ());
        cache.begin();
        assert_eq!(cache.complete(0).len(), 1);
        assert!(cache.apply("a", "u1", 5, ()), "the list was older");
    }

    #[test]
    fn the_memory_of_what_is_gone_is_bounded() {
        let mut tombstones = Tombstones::default();
        (0..MAX_TOMBSTONES + 10).for_each(|n| tombstones.add(n.to_string()));
        assert_eq!((tombstones.uids.len(), tombstones.order.len()), (MAX_TOMBSTONES, MAX_TOMBSTONES));
        assert!(!tombstones.contains("0") && tombstones.contains("10"));
    }
}
