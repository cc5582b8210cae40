//! Pure: Services that share an address: the same key, no port of the same protocol in common, and a pool that is open to the
//! namespaces of all. Policies and selectors of the Services may differ: rings and rules are per port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sheave_api::{MAX_SERVICES_PER_ADDRESS, Refusal, excerpt};

use super::choice::first_in;
use super::pool::Pool;
use super::{Allocator, Holder, State, Taken};
use crate::family::Family;
use crate::request::{Refused, Request};
use crate::view::Port;

/// What Services that may share an address have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SharingKey {
    pub key: String,
    /// The namespace that the key is confined to: Cilium's.
    pub namespace: Option<String>,
}

/// What matters of a Service to those that would share its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharing {
    pub key: SharingKey,
    pub ports: BTreeSet<Port>,
}

/// Services with a key.
#[derive(Clone, Debug, Default)]
pub struct Sharers {
    by_uid: BTreeMap<String, Sharing>,
    uids: BTreeMap<SharingKey, BTreeSet<String>>,
}

impl Sharers {
    fn get(&self, uid: &str) -> Option<&Sharing> {
        self.by_uid.get(uid)
    }

    fn with_key(&self, key: &SharingKey) -> impl Iterator<Item = &String> {
        self.uids.get(key).into_iter().flatten()
    }

    fn insert(&mut self, uid: &str, sharing: Sharing) {
        self.uids.entry(sharing.key.clone()).or_default().insert(uid.to_string());
        self.by_uid.insert(uid.to_string(), sharing);
    }

    fn remove(&mut self, uid: &str) {
        let Some(Sharing { key, .. }) = self.by_uid.remove(uid) else { return };
        if let Some(uids) = self.uids.get_mut(&key) {
            uids.remove(uid);
            if uids.is_empty() {
                self.uids.remove(&key);
            }
        }
    }
}

impl Allocator {
    /// What is known of a Service; `None`: it shares with none, or is gone. True if that is new.
    pub fn set_sharing(&mut self, uid: &str, sharing: Option<Sharing>) -> bool {
        if self.sharers.get(uid) == sharing.as_ref() {
            return false;
        }
        self.sharers.remove(uid);
        if let Some(sharing) = sharing {
            self.sharers.insert(uid, sharing);
        }
        true
    }

    /// Forgets Services that are not kept.
    pub fn retain_sharing(&mut self, keep: impl Fn(&str) -> bool) {
        let gone: Vec<String> = self.sharers.by_uid.keys().filter(|uid| !keep(uid)).cloned().collect();
        gone.iter().for_each(|uid| self.sharers.remove(uid));
    }

    /// The lowest address that the Service may share, of the first of these pools that has one.
    pub(super) fn shared(&self, request: &Request, pools: &[&Pool]) -> Option<(IpAddr, String)> {
        let key = &request.sharing.as_ref()?.key;
        let same = |taken: &Taken| {
            taken
                .holders
                .first()
                .and_then(|holder| self.sharers.get(&holder.service.uid))
                .is_some_and(|s| s.key == *key)
        };
        let held = self.sharers.with_key(key).filter_map(|uid| self.held.get(uid)).flatten();
        let of_family = held.filter(|address| Family::of(**address) == request.family);
        let lowest_first: BTreeSet<IpAddr> = of_family.copied().collect();
        let may = |address: &IpAddr| self.taken.get(address).is_some_and(same) && self.is_free(*address, request);
        let open: Vec<IpAddr> = lowest_first.into_iter().filter(may).collect();
        first_in(pools, &open)
    }

    /// Why the Service may not have this address beside those that have it.
    pub(super) fn bars(&self, taken: &Taken, request: &Request) -> Option<Refused> {
        // A grant of its own that fitted would have been kept.
        let own = |holder: &Holder| holder.service.uid == request.service.uid && holder.state == State::Reserved;
        let others: Vec<&Holder> = taken.holders.iter().filter(|holder| !own(holder)).collect();
        if others.iter().any(|holder| holder.state == State::Leaving) {
            return Some(refused(Refusal::AddressInUse, "it is being taken back".to_string()));
        }
        if others.len() >= MAX_SERVICES_PER_ADDRESS {
            let message = format!("{MAX_SERVICES_PER_ADDRESS} Services share it, which is the most that may");
            return Some(refused(Refusal::AddressInUse, message));
        }
        let pool = self.pools.get(&taken.pool);
        others.into_iter().find_map(|holder| {
            let who = format!("{}/{}", holder.service.namespace, holder.service.name);
            let closed =
                pool.and_then(|pool| pool.selection.rejects_namespace(&holder.service.namespace, &self.namespaces));
            match (self.conflict(request, &holder.service.uid, &who), closed) {
                (Some(conflict), _) => Some(conflict),
                (None, Some(what)) => {
                    let message = format!("{who} has it, and pool '{}' does not select {what}", taken.pool);
                    Some(refused(Refusal::AddressInUse, message))
                }
                (None, None) => None,
            }
        })
    }

    /// A Service keeps an address that it shares. The remark says what keeps it from being served whole, or others from joining.
    pub(super) fn sharing_remark(&self, address: IpAddr, request: &Request) -> Option<Refused> {
        let taken = self.taken.get(&address)?;
        let granted = |state| state == State::Granted;
        let others = taken.holders.iter().filter(|h| granted(h.state) && h.service.uid != request.service.uid);
        let mut conflicts = others.filter_map(|holder| {
            let who = format!("{}/{}", holder.service.namespace, holder.service.name);
            self.conflict(request, &holder.service.uid, &who)
        });
        let conflict = conflicts.next()?;
        let message = format!("{address} is shared: {}", conflict.message);
        Some(refused(Refusal::SharingConflict, message))
    }

    fn conflict(&self, request: &Request, uid: &str, who: &str) -> Option<Refused> {
        let in_use = |message| Some(refused(Refusal::AddressInUse, message));
        let Some(ours) = &request.sharing else { return in_use(format!("{who} has it")) };
        let Some(theirs) = self.sharers.get(uid).filter(|theirs| theirs.key == ours.key) else {
            return in_use(format!("{who} has it, without the sharing key '{}'", excerpt(&ours.key.key)));
        };
        let common = ours.ports.iter().find(|port| theirs.ports.contains(port))?;
        in_use(format!("{who} has its port {common}"))
    }
}

fn refused(reason: Refusal, message: String) -> Refused {
    Refused { reason, message }
}
