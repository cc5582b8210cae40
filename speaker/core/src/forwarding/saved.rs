//! The previous rings on disk: each set of members once, services by number. Read back whole or not at all.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use ebpf_common::{MAX_NODES, MAX_SERVICES, ServiceKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::maglev::Members;
use super::previous::{MAX_PREVIOUS, PortRings, PreviousRing, PreviousRings};
use crate::name::NodeName;
use crate::time::{Duration, Instant};

/// The content of the file. Serde does not judge; [`PreviousRings::restore`] does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedRings {
    pub(super) version: u32,
    boot: String,
    /// On the boot clock.
    saved_at_nanos: u64,
    /// Sets of members: node, pods, lost or not.
    pub(super) members: Vec<Vec<(String, u32, bool)>>,
    pub(super) services: Vec<SavedPort>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedPort {
    address: Ipv4Addr,
    pub(super) port: u16,
    protocol: u8,
    /// Index into the sets of members.
    current: Option<usize>,
    #[serde(alias = "formers")]
    pub(super) previous: Vec<SavedRing>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedRing {
    members: usize,
    /// When it was saved.
    age_millis: u64,
}

/// Why a file is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadSavedRings {
    #[error("version {0} of the saved rings is not known, only {VERSION}")]
    Version(u32),
    #[error("more than {limit} {what} in the saved rings")]
    TooMany { what: &'static str, limit: usize },
    #[error("{0:?} in the saved rings is no name of a node")]
    Name(String),
    #[error("set {0} of members in the saved rings have a node twice or one without pods")]
    Members(usize),
    #[error("the saved rings name set {0} of members, which they do not have")]
    Missing(usize),
    #[error("the saved rings have {address}:{port}/{protocol} twice, or one of its previous rings")]
    Twice { address: Ipv4Addr, port: u16, protocol: u8 },
}

const VERSION: u32 = 1;
const MAX_SETS: usize = MAX_SERVICES as usize * (MAX_PREVIOUS + 1);

impl SavedRings {
    pub(super) fn new(previous_rings: &PreviousRings, boot: &str, now: Instant) -> Self {
        let mut sets = Sets::default();
        let services = previous_rings.services.iter().map(|(key, port_rings)| SavedPort {
            address: key.addr.into(),
            port: u16::from_be_bytes(key.port),
            protocol: key.proto,
            current: port_rings.current.as_ref().map(|members| sets.index(members)),
            previous: port_rings.previous.iter().map(|previous_ring| sets.previous_ring(previous_ring, now)).collect(),
        });
        let services = services.collect();
        Self { version: VERSION, boot: boot.into(), saved_at_nanos: now.as_nanos(), members: sets.saved, services }
    }

    pub(super) fn restore(&self, window: Duration, boot: &str, now: Instant) -> Result<PreviousRings, BadSavedRings> {
        if self.version != VERSION {
            return Err(BadSavedRings::Version(self.version));
        }
        at_most("services", self.services.len(), MAX_SERVICES as usize)?;
        at_most("sets of members", self.members.len(), MAX_SETS)?;
        let sets =
            self.members.iter().enumerate().map(|(index, set)| members(index, set)).collect::<Result<Vec<_>, _>>()?;
        // Of another boot: how long the machine was off is unknown, so nothing has aged meanwhile.
        let away = match Instant::from_nanos(self.saved_at_nanos) {
            saved_at if boot == self.boot => now.since(saved_at),
            _ => Duration::ZERO,
        };
        let mut previous_rings = PreviousRings::new(window);
        for service in &self.services {
            let port_rings = service.port_rings(&sets, away, now)?;
            if previous_rings.services.insert(service.key(), port_rings).is_some() {
                return Err(service.twice());
            }
        }
        Ok(previous_rings)
    }
}

impl SavedPort {
    fn key(&self) -> ServiceKey {
        ServiceKey { addr: self.address.octets(), port: self.port.to_be_bytes(), proto: self.protocol, pad: 0 }
    }

    fn port_rings(&self, sets: &[Arc<Members>], away: Duration, now: Instant) -> Result<PortRings, BadSavedRings> {
        at_most("previous rings of a service port", self.previous.len(), MAX_PREVIOUS)?;
        let set = |index: usize| sets.get(index).cloned().ok_or(BadSavedRings::Missing(index));
        let distinct: BTreeSet<usize> = self.previous.iter().map(|previous_ring| previous_ring.members).collect();
        if distinct.len() != self.previous.len() {
            return Err(self.twice());
        }
        let previous_ring = |saved: &SavedRing| {
            let ended = now - Duration::from_millis(saved.age_millis).saturating_add(away);
            Ok(PreviousRing { members: set(saved.members)?, ended, retired_by: BTreeSet::new() })
        };
        Ok(PortRings {
            current: self.current.map(set).transpose()?,
            previous: self.previous.iter().map(previous_ring).collect::<Result<_, _>>()?,
        })
    }

    fn twice(&self) -> BadSavedRings {
        BadSavedRings::Twice { address: self.address, port: self.port, protocol: self.protocol }
    }
}

/// Sets of members as they are written, each once.
#[derive(Default)]
struct Sets {
    indices: BTreeMap<Arc<Members>, usize>,
    saved: Vec<Vec<(String, u32, bool)>>,
}

impl Sets {
    fn index(&mut self, members: &Arc<Members>) -> usize {
        let saved = &mut self.saved;
        *self.indices.entry(members.clone()).or_insert_with(|| {
            saved.push(members.iter().map(|(node, member)| (node.into(), member.pods, member.down)).collect());
            saved.len() - 1
        })
    }

    fn previous_ring(&mut self, previous_ring: &PreviousRing, now: Instant) -> SavedRing {
        let age_millis = now.since(previous_ring.ended).as_millis() as u64;
        SavedRing { members: self.index(&previous_ring.members), age_millis }
    }
}

fn members(index: usize, set: &[(String, u32, bool)]) -> Result<Arc<Members>, BadSavedRings> {
    at_most("nodes in a set of members", set.len(), MAX_NODES as usize)?;
    if let Some((name, ..)) = set.iter().find(|(name, ..)| NodeName::new(name).is_none()) {
        return Err(BadSavedRings::Name(name.clone()));
    }
    let members = Members::new(set.iter().cloned());
    if members.iter().count() != set.len() {
        return Err(BadSavedRings::Members(index));
    }
    Ok(Arc::new(members))
}

fn at_most(what: &'static str, count: usize, limit: usize) -> Result<(), BadSavedRings> {
    if count > limit { Err(BadSavedRings::TooMany { what, limit }) } else { Ok(()) }
}
