//! Pure: which L2Advertisements select an address: by its pool, by the labels of the pool, and by the labels of its Services. Lists that
//! are empty restrict nothing, as in MetalLB. What they say of nodes is the speakers' business.

mod status;
#[cfg(test)]
pub mod tests;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;
use kube::core::{Selector, SelectorExt};
use sheave_api::{
    AdvertisementReason, Announce, L2Advertisement, L2AdvertisementSpec, L2AdvertisementStatus, MAX_L2_ADVERTISEMENTS,
    VirtualIPSpec,
};

use crate::allocator::selection::{Labels, selectors};
use crate::view::{self, PoolView};
pub use status::status;

/// An L2Advertisement as the controller sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct AdvertisementView {
    pub name: String,
    pub uid: String,
    pub version: u64,
    pub created: i64,
    pub generation: i64,
    pub spec: L2AdvertisementSpec,
    pub status: L2AdvertisementStatus,
}

impl From<&L2Advertisement> for AdvertisementView {
    fn from(advertisement: &L2Advertisement) -> Self {
        AdvertisementView {
            name: advertisement.name_any(),
            uid: advertisement.uid().unwrap_or_default(),
            version: view::version(advertisement.resource_version()),
            created: advertisement.creation_timestamp().map_or(0, |at| at.0.as_second()),
            generation: advertisement.metadata.generation.unwrap_or_default(),
            spec: advertisement.spec.clone(),
            status: advertisement.status.clone().unwrap_or_default(),
        }
    }
}

/// How an address is announced, as the ledger says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// Names of L2Advertisements, in order.
    pub advertisements: Vec<String>,
    /// The pool is not announced.
    pub not: bool,
}

impl From<&VirtualIPSpec> for Announced {
    fn from(spec: &VirtualIPSpec) -> Self {
        let not = spec.announce == Some(Announce::None);
        Announced { advertisements: spec.l2_advertisements.clone(), not }
    }
}

impl Announced {
    /// As the ledger has it.
    pub fn announce(&self) -> Option<Announce> {
        self.not.then_some(Announce::None)
    }
}

/// All L2Advertisements, their selectors parsed.
#[derive(Debug, Default)]
pub struct Advertisements(BTreeMap<String, Advertisement>);

#[derive(Debug)]
struct Advertisement {
    selection: Selection,
    /// Why it selects nothing.
    unusable: Option<(AdvertisementReason, String)>,
}

#[derive(Debug, Default)]
struct Selection {
    pools: BTreeSet<String>,
    by_labels: Vec<Selector>,
    services: Vec<Selector>,
}

impl Advertisements {
    /// The oldest ones count, so that one more takes nothing away.
    pub fn new<'a>(views: impl Iterator<Item = &'a AdvertisementView>) -> Self {
        let mut views: Vec<&AdvertisementView> = views.collect();
        views.sort_by_key(|view| (view.created, &view.name));
        let parsed = views.into_iter().enumerate().map(|(at, view)| {
            let selection = Selection::new(&view.spec);
            let unusable = match &selection {
                Err(error) => Some((AdvertisementReason::Malformed, error.clone())),
                Ok(_) if at >= MAX_L2_ADVERTISEMENTS => Some((
                    AdvertisementReason::TooManyAdvertisements,
                    format!("{MAX_L2_ADVERTISEMENTS} older L2Advertisements are followed, and no more"),
                )),
                Ok(_) => None,
            };
            (view.name.clone(), Advertisement { selection: selection.unwrap_or_default(), unusable })
        });
        Self(parsed.collect())
    }

    /// Those that select an address of this pool, which may be gone, that these Services have.
    pub fn of(&self, pool: &str, view: Option<&PoolView>, services: &[&Labels]) -> Announced {
        if view.is_some_and(|view| !view.spec.announce.is_l2()) {
            return Announced { not: true, ..Announced::default() };
        }
        let labels = view.map(|view| &view.labels);
        let selects = |advertisement: &Advertisement| {
            advertisement.unusable.is_none() && advertisement.selection.selects(pool, labels, services)
        };
        let selecting = self.0.iter().filter(|(_, advertisement)| selects(advertisement));
        Announced { advertisements: selecting.map(|(name, _)| name.clone()).collect(), not: false }
    }

    fn unusable(&self, name: &str) -> Option<(AdvertisementReason, String)> {
        self.0.get(name)?.unusable.clone()
    }
}

impl Selection {
    /// `Err`: why a selector cannot be read. The API server admits no such selector.
    fn new(spec: &L2AdvertisementSpec) -> Result<Self, String> {
        // For speakers: nothing here needs them.
        selectors("spec.nodeSelectors", &spec.node_selectors)?;
        let preferred: Vec<LabelSelector> = spec.preferred_nodes.iter().map(|nodes| nodes.selector.clone()).collect();
        selectors("spec.preferredNodes", &preferred)?;
        spec.failback()?;
        Ok(Selection {
            pools: spec.pools.iter().cloned().collect(),
            by_labels: selectors("spec.poolSelectors", &spec.pool_selectors)?,
            services: selectors("spec.serviceSelectors", &spec.service_selectors)?,
        })
    }

    fn selects(&self, pool: &str, labels: Option<&Labels>, services: &[&Labels]) -> bool {
        let every = self.pools.is_empty() && self.by_labels.is_empty();
        let matches = |selector: &Selector| labels.is_some_and(|labels| selector.matches(labels));
        let of_pool = every || self.pools.contains(pool) || self.by_labels.iter().any(matches);
        let of_service = |selector: &Selector| services.iter().any(|labels| selector.matches(*labels));
        of_pool && (self.services.is_empty() || self.services.iter().any(of_service))
    }
}
