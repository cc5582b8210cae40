//! The ledger, as decisions see it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kube::ResourceExt;
use sheave_api::{MOVE_ANNOTATION, Partly, ServiceRef, VirtualIP, VirtualIPStatus};

use super::version;
use crate::advertisements::Announced;

/// An entry of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantView {
    pub address: IpAddr,
    pub uid: String,
    pub version: u64,
    pub pool: String,
    /// The node whose address it is: then ports are granted.
    pub node: Option<String>,
    pub services: Vec<ServiceRef>,
    pub announced: Announced,
    /// What its owner does not serve of it.
    pub partly: BTreeSet<Partly>,
    /// The pool that its Services are to have an address from instead.
    pub move_to: Option<String>,
}

impl GrantView {
    /// None for an object that is not as we write them; it grants nothing.
    pub fn new(vip: &VirtualIP) -> Option<Self> {
        let address = vip.address()?;
        Some(GrantView {
            address,
            uid: vip.uid().unwrap_or_default(),
            version: version(vip.resource_version()),
            pool: vip.spec.pool.clone(),
            node: vip.spec.node.clone(),
            services: vip.spec.services.clone(),
            announced: Announced::from(&vip.spec),
            partly: vip.status.as_ref().map(partly).unwrap_or_default(),
            move_to: vip.annotations().get(MOVE_ANNOTATION).cloned(),
        })
    }
}

/// The reason of a VirtualIP without owner is none of these, but for a conflict: then an owner is silent.
fn partly(status: &VirtualIPStatus) -> BTreeSet<Partly> {
    let mut parts = status.reason.as_deref().map(Partly::parse).unwrap_or_default();
    parts.retain(|part| status.owner.is_some() || *part == Partly::AddressConflict);
    parts
}
