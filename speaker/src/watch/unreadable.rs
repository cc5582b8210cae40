//! Objects that this version cannot read: each is skipped, hides no other, and has a name in the log. What was read of it last goes on serving.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::DeserializeGuard;
use sheave_api::virtual_ip_address;
use speaker_core::view::{Key, Kind, Object, ObjectName};
use tracing::{info, warn};

/// Those of a kind.
#[derive(Debug)]
pub struct Unreadable {
    kind: Kind,
    keys: BTreeSet<Key>,
    /// Of the list that is being read.
    listed: BTreeSet<Key>,
}

/// What an object means to the view: its key, and the object unless it does not concern us.
pub type Converted = Option<(Key, Option<Object>)>;

impl Unreadable {
    pub fn new(kind: Kind) -> Self {
        Self { kind, keys: BTreeSet::new(), listed: BTreeSet::new() }
    }

    pub fn count(&self) -> usize {
        self.keys.len()
    }

    /// Of a list, or a change.
    pub fn read<K>(
        &mut self,
        DeserializeGuard(object): DeserializeGuard<K>,
        convert: impl Fn(K) -> Converted,
    ) -> Converted
    where
        K: Resource<DynamicType = ()> + Debug,
    {
        match object {
            Ok(object) => {
                // Of one that does not concern us the name counts as well.
                let named = key(self.kind, object.meta());
                let converted = convert(object);
                self.over(converted.as_ref().map(|(key, _)| key).or(named.as_ref()), "object can be read again");
                converted
            }
            Err(invalid) => {
                let key = key(self.kind, &invalid.metadata)?;
                if self.keys.len() < MOST || self.keys.contains(&key) {
                    self.listed.insert(key.clone());
                    if self.keys.insert(key.clone()) {
                        warn!(kind = ?self.kind, ?key, error = invalid.error, "object cannot be read; what was read of it last counts");
                    }
                }
                Some((key.clone(), Some(Object::Unreadable(key))))
            }
        }
    }

    /// One that was deleted.
    pub fn deleted<K>(&mut self, object: DeserializeGuard<K>, convert: impl Fn(K) -> Converted) -> Option<Key>
    where
        K: Resource<DynamicType = ()> + Debug,
    {
        let named = key(self.kind, object.meta());
        let key = match object.0 {
            Ok(object) => convert(object).map(|(key, _)| key),
            Err(_) => named,
        };
        self.over(key.as_ref(), "object that cannot be read is gone");
        key
    }

    /// A list begins.
    pub fn begin(&mut self) {
        self.listed.clear();
    }

    /// A list is complete: what it did not have is gone.
    pub fn complete(&mut self) {
        self.keys = std::mem::take(&mut self.listed);
    }

    fn over(&mut self, key: Option<&Key>, what: &str) {
        if let Some(key) = key
            && self.keys.remove(key)
        {
            self.listed.remove(key);
            info!(kind = ?self.kind, ?key, "{what}");
        }
    }
}

/// By its name alone; `None`: none of those that the view has.
fn key(kind: Kind, metadata: &ObjectMeta) -> Option<Key> {
    let name = || metadata.name.clone();
    let namespaced = || Some(ObjectName::new(metadata.namespace.clone().unwrap_or_default(), name()?));
    Some(match kind {
        Kind::Node => Key::Node(name()?),
        Kind::Service => Key::Service(namespaced()?),
        Kind::EndpointSlice => Key::EndpointSlice(namespaced()?),
        Kind::VirtualIp => match virtual_ip_address(&name()?)? {
            IpAddr::V4(address) => Key::VirtualIp(address),
            IpAddr::V6(_) => return None,
        },
        Kind::L2Advertisement => Key::L2Advertisement(name()?),
        Kind::Placement => Key::Placement(name()?),
        Kind::SpeakerState => Key::SpeakerState(name()?),
    })
}

/// As many are known; others are left out of the view.
const MOST: usize = 4096;

#[cfg(test)]
mod tests {
    use sheave_api::SpeakerState;

    use super::super::speaker_state;
    use super::*;

    fn state(name: &str, time: &str) -> DeserializeGuard<SpeakerState> {
        let condition = serde_json::json!({
            "type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": time,
        });
        let object = serde_json::json!({
            "apiVersion": "sheave.dev/v1alpha1", "kind": "SpeakerState", "metadata": {"name": name}, "spec": {},
            "status": {"conditions": [condition]},
        });
        serde_json::from_value(object).unwrap()
    }

    const READABLE: &str = "2026-11-29T00:00:00Z";
    /// What the definition lets through, and no clock has (C16 of November 2026).
    const UNREADABLE: &str = "2026-11-29T00:00:00+99:99";

    #[test]
    fn one_that_cannot_be_read_hides_no_other_and_keeps_its_key() {
        let mut unreadable = Unreadable::new(Kind::SpeakerState);
        unreadable.begin();
        let of_a = unreadable.read(state("a", UNREADABLE), speaker_state);
        let key = || Key::SpeakerState("a".into());
        assert_eq!(of_a, Some((key(), Some(Object::Unreadable(key())))));
        let of_b = unreadable.read(state("b", READABLE), speaker_state);
        assert!(matches!(of_b, Some((_, Some(Object::SpeakerState(name, _)))) if name == "b"));
        unreadable.complete();
        assert_eq!(unreadable.count(), 1);

        unreadable.begin();
        unreadable.read(state("a", READABLE), speaker_state);
        unreadable.complete();
        assert_eq!(unreadable.count(), 0);
        unreadable.read(state("a", UNREADABLE), speaker_state);
        assert_eq!(unreadable.count(), 1, "by a change");
        assert_eq!(unreadable.deleted(state("a", UNREADABLE), speaker_state), Some(key()));
        assert_eq!(unreadable.count(), 0);
    }

    #[test]
    fn a_virtualip_is_known_by_its_name() {
        let named = |name: &str| key(Kind::VirtualIp, &ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() });
        assert_eq!(named("192.0.2.1"), Some(Key::VirtualIp([192, 0, 2, 1].into())));
        assert_eq!((named("2001-db8--1"), named("else")), (None, None));
    }
}
