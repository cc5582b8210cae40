//! Pure: L2Advertisements among all that is known, and which of them the ledger is to name.

use k8s_openapi::jiff::Timestamp;
use sheave_api::ServiceRef;

use super::{Index, Kind, Subject, Write};
use crate::advertisements::{self, AdvertisementView, Advertisements, Announced};
use crate::allocator::selection::Labels;
use crate::status::as_seen;
use crate::view::ServiceKey;

impl Index {
    pub(super) fn advertisement_changed(&mut self, view: AdvertisementView) {
        let name = view.name.clone();
        let spec_changed = self.advertisements.get(&name).is_none_or(|known| known.spec != view.spec);
        if !self.advertisements.apply(name.clone(), &view.uid.clone(), view.version, view) {
            return;
        }
        self.dirty.insert(Subject::Advertisement(name));
        if spec_changed {
            self.advertisements_changed();
        }
    }

    /// Every entry of the ledger may be selected by others.
    pub(super) fn advertisements_changed(&mut self) {
        self.announcing = Advertisements::new(self.advertisements.iter().map(|(_, view)| view));
        self.dirty.extend(self.grants.iter().map(|(address, _)| Subject::Address(*address)));
        self.mark_advertisements();
    }

    /// Their statuses count addresses, and name pools that are not there.
    pub(super) fn mark_advertisements(&mut self) {
        self.dirty.extend(self.advertisements.iter().map(|(name, _)| Subject::Advertisement(name.clone())));
    }

    /// How an address of this pool that these Services have is to be announced. `known`: what the ledger says, which stays as far as an
    /// object that it rests on cannot be read.
    pub(crate) fn announced(&self, pool: &str, services: &[ServiceRef], known: &Announced) -> Announced {
        let view =
            |service: &ServiceRef| self.services.get(&ServiceKey::from(service)).filter(|view| view.uid == service.uid);
        let Some(labels) = services.iter().map(|one| Some(&view(one)?.labels)).collect::<Option<Vec<&Labels>>>() else {
            return known.clone();
        };
        // A pool that is gone goes on saying what it said.
        if known.not && self.pools.get(&pool.to_string()).is_none() {
            return known.clone();
        }
        let mut announced = self.announcing.of(pool, self.pools.get(&pool.to_string()), &labels);
        let unread = |name: &&String| {
            let unreadable = self.unreadable.contains_key(&(Kind::Advertisements, (*name).clone()));
            unreadable && self.advertisements.get(name).is_none()
        };
        if !announced.not {
            announced.advertisements.extend(known.advertisements.iter().filter(unread).cloned());
            announced.advertisements.sort();
        }
        announced
    }

    pub(crate) fn plan_advertisement(&self, name: &str, wall: Timestamp) -> Option<Write> {
        let view = self.advertisements.get(&name.to_string())?;
        let names = |announced: &Announced| announced.advertisements.iter().any(|one| one == name);
        let addresses = self.grants.iter().filter(|(_, grant)| names(&grant.announced)).count();
        let addresses = i64::try_from(addresses).unwrap_or(i64::MAX);
        let is_pool = |pool: &str| self.pools.get(&pool.to_string()).is_some();
        let mut status = advertisements::status(view, &self.announcing, addresses, is_pool, wall)?;
        status["metadata"] = as_seen(&view.uid, view.version);
        Some(Write::AdvertisementStatus { advertisement: name.to_string(), status })
    }
}
