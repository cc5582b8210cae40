//! The history as it lies on disk: each set of members once, services by number. Read back whole or not at all.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use ebpf_common::{MAX_NODES, MAX_SERVICES, ServiceKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::history::{Former, History, MAX_FORMERS, Past};
use super::maglev::Members;
use crate::name::NodeName;
use crate::time::{Duration, Instant};

/// The content of the file. Serde does not judge; [`History::restore`] does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    pub(super) version: u32,
    boot: String,
    /// On the boot clock.
    saved_at_nanos: u64,
    /// Sets of members: node, pods, lost or not.
    pub(super) members: Vec<Vec<(String, u32, bool)>>,
    pub(super) services: Vec<SavedService>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedService {
    address: Ipv4Addr,
    pub(super) port: u16,
    protocol: u8,
    /// Index into the sets of members.
    current: Option<usize>,
    pub(super) formers: Vec<SavedFormer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedFormer {
    members: usize,
    /// When it was saved.
    age_millis: u64,
}

/// Why a file is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadHistory {
    #[error("version {0} of the history is not known, only {VERSION}")]
    Version(u32),
    #[error("more than {limit} {what} in the history")]
    TooMany { what: &'static str, limit: usize },
    #[error("{0:?} in the history is no name of a node")]
    Name(String),
    #[error("set {0} of members in the history has a node twice or one without pods")]
    Members(usize),
    #[error("the history names set {0} of members, which it does not have")]
    Missing(usize),
    #[error("the history has {address}:{port}/{protocol} twice, or one of its former rings")]
    Twice { address: Ipv4Addr, port: u16, protocol: u8 },
}

const VERSION: u32 = 1;
const MAX_SETS: usize = MAX_SERVICES as usize * (MAX_FORMERS + 1);

impl Saved {
    pub(super) fn new(history: &History, boot: &str, now: Instant) -> Self {
        let mut sets = Sets::default();
        let services = history.services.iter().map(|(key, past)| SavedService {
            address: key.addr.into(),
            port: u16::from_be_bytes(key.port),
            protocol: key.proto,
            current: past.current.as_ref().map(|members| sets.index(members)),
            formers: past.formers.iter().map(|former| sets.former(former, now)).collect(),
        });
        let services = services.collect();
        Self { version: VERSION, boot: boot.into(), saved_at_nanos: now.as_nanos(), members: sets.saved, services }
    }

    pub(super) fn history(&self, window: Duration, boot: &str, now: Instant) -> Result<History, BadHistory> {
        if self.version != VERSION {
            return Err(BadHistory::Version(self.version));
        }
        at_most("services", self.services.len(), MAX_SERVICES as usize)?;
        at_most("sets of members", self.members.len(), MAX_SETS)?;
        let sets =
            self.members.iter().enumerate().map(|(index, set)| members(index, set)).collect::<Result<Vec<_>, _>>()?;
        // Of another boot: nobody knows how long the machine was off, so nothing has aged meanwhile.
        let away = match Instant::from_nanos(self.saved_at_nanos) {
            saved_at if boot == self.boot => now.since(saved_at),
            _ => Duration::ZERO,
        };
        let mut history = History::new(window);
        for service in &self.services {
            let past = service.past(&sets, away, now)?;
            if history.services.insert(service.key(), past).is_some() {
                return Err(service.twice());
            }
        }
        Ok(history)
    }
}

impl SavedService {
    fn key(&self) -> ServiceKey {
        ServiceKey { addr: self.address.octets(), port: self.port.to_be_bytes(), proto: self.protocol, pad: 0 }
    }

    fn past(&self, sets: &[Arc<Members>], away: Duration, now: Instant) -> Result<Past, BadHistory> {
        at_most("former rings of a service", self.formers.len(), MAX_FORMERS)?;
        let set = |index: usize| sets.get(index).cloned().ok_or(BadHistory::Missing(index));
        let distinct: BTreeSet<usize> = self.formers.iter().map(|former| former.members).collect();
        if distinct.len() != self.formers.len() {
            return Err(self.twice());
        }
        let former = |saved: &SavedFormer| {
            let ended = now - Duration::from_millis(saved.age_millis).saturating_add(away);
            Ok(Former { members: set(saved.members)?, ended, settled: BTreeSet::new() })
        };
        Ok(Past {
            current: self.current.map(set).transpose()?,
            formers: self.formers.iter().map(former).collect::<Result<_, _>>()?,
        })
    }

    fn twice(&self) -> BadHistory {
        BadHistory::Twice { address: self.address, port: self.port, protocol: self.protocol }
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

    fn former(&mut self, former: &Former, now: Instant) -> SavedFormer {
        let age_millis = now.since(former.ended).as_millis() as u64;
        SavedFormer { members: self.index(&former.members), age_millis }
    }
}

fn members(index: usize, set: &[(String, u32, bool)]) -> Result<Arc<Members>, BadHistory> {
    at_most("nodes in a set of members", set.len(), MAX_NODES as usize)?;
    if let Some((name, ..)) = set.iter().find(|(name, ..)| NodeName::new(name).is_none()) {
        return Err(BadHistory::Name(name.clone()));
    }
    let members = Members::new(set.iter().cloned());
    if members.iter().count() != set.len() {
        return Err(BadHistory::Members(index));
    }
    Ok(Arc::new(members))
}

fn at_most(what: &'static str, count: usize, limit: usize) -> Result<(), BadHistory> {
    if count > limit { Err(BadHistory::TooMany { what, limit }) } else { Ok(()) }
}
