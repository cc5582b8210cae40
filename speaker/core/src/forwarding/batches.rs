//! Additions to rings, held back and applied together.
//!
//! Read first: docs/decisions/0015. Each ring change moves rows, and a row has room for the nodes of four rings. So pods that come up one
//! by one are one change every [`LONGEST`], not one each. Nodes receive views at slightly different moments; a node that sees a
//! peer's table follows it instead of waiting for its own time: see [`Batches::follow`].

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ebpf_common::ServiceKey;

use super::maglev::Members;
use crate::time::{Duration, Instant};

/// A batch is applied when no pod was added to the service port for so long.
pub const QUIET: Duration = Duration::from_secs(3);

/// Between two batches of a service port, and thus the longest that an added pod waits.
pub const LONGEST: Duration = Duration::from_secs(15);

/// A batch of so many times the pods that have rows is applied at once: few pods should not serve alone for long.
const AT_ONCE: u64 = 4;

/// A ring that was in force until so long ago is restored at once: nodes have flows of it anyway, so no row gets another node
/// with flows.
const RESTORED: Duration = Duration::from_secs(60);

/// States of a batch that are kept for peers that follow; the oldest are dropped first.
const MAX_STATES: usize = 32;

/// What waits, by service port.
#[derive(Debug, Default)]
pub(super) struct Batches(BTreeMap<ServiceKey, Port>);

#[derive(Debug, Default)]
struct Port {
    /// When a batch was last applied.
    applied: Option<Instant>,
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// When the first addition came.
    first: Instant,
    /// The members that the view named since, the newest last.
    states: Vec<State>,
}

#[derive(Debug)]
struct State {
    members: Arc<Members>,
    digest: u64,
    since: Instant,
}

/// Members of a service port as the view names them now.
pub(super) struct Wanted<'a> {
    pub members: Arc<Members>,
    /// The members that have rows.
    pub current: Option<&'a Arc<Members>>,
    /// When the ring of the wanted members ended, if it is the one before the present one.
    pub ended: Option<Instant>,
}

impl Batches {
    /// The members that get rows now: the wanted ones, or, while additions wait, the present ones.
    pub fn next(&mut self, key: &ServiceKey, wanted: Wanted<'_>, hash_key: &[u64; 2], now: Instant) -> Arc<Members> {
        let Wanted { members, current, ended } = wanted;
        let Some(current) = current.filter(|current| waits(current, &members, ended, now)) else {
            if let Some(port) = self.0.get_mut(key) {
                port.waiting = None;
            }
            return members;
        };
        let port = self.0.entry(*key).or_default();
        let (pods, had) = (members.pods(), current.pods());
        let members = port.add(members, hash_key, now);
        if port.due().is_some_and(|due| now < due) && pods - had < AT_ONCE * had {
            return current.clone();
        }
        (port.waiting, port.applied) = (None, Some(now));
        members
    }

    /// Nothing waits any more: the planner takes the view as it is.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Keeps what is needed of service ports that there are.
    pub fn retain(&mut self, now: Instant, exists: impl Fn(&ServiceKey) -> bool) {
        let recent = |port: &Port| port.applied.is_some_and(|applied| now.since(applied) < LONGEST);
        self.0.retain(|key, port| exists(key) && (port.waiting.is_some() || recent(port)));
    }

    /// What to apply because a peer has applied it: everything that waits, or one service port's batch as it was at some time. `is_theirs`:
    /// whether a peer's table has these digests of rings in place of the present ones.
    pub fn follow(
        &mut self,
        is_theirs: impl Fn(&BTreeMap<ServiceKey, u64>) -> bool,
        now: Instant,
    ) -> Vec<(ServiceKey, Arc<Members>)> {
        let waiting = || self.0.iter().filter_map(|(key, port)| Some((*key, port.waiting.as_ref()?)));
        let newest = |(key, waiting): (ServiceKey, &Waiting)| Some((key, waiting.states.len().checked_sub(1)?));
        let all: BTreeMap<ServiceKey, usize> = waiting().filter_map(newest).collect();
        let digest = |(key, state): (&ServiceKey, &usize)| Some((*key, self.0.get(key)?.digest(*state)?));
        let found = if is_theirs(&all.iter().filter_map(digest).collect()) {
            all
        } else {
            let states = waiting().flat_map(|(key, waiting)| (0..waiting.states.len()).rev().map(move |at| (key, at)));
            let one = |(key, state): (ServiceKey, usize)| [(key, state)].into();
            let is_theirs = |one: &BTreeMap<_, _>| is_theirs(&one.iter().filter_map(digest).collect());
            // Each costs a digest of the whole table: what is not found here comes by its own time.
            states.take(MAX_STATES).map(one).find(is_theirs).unwrap_or_default()
        };
        let applied =
            found.into_iter().filter_map(|(key, state)| Some((key, self.0.get_mut(&key)?.apply(state, now)?)));
        applied.collect()
    }

    /// The members that a service port gets with the next batch. Peers may have applied it already, and have flows by it.
    pub fn upcoming(&self, key: &ServiceKey) -> Option<&Arc<Members>> {
        Some(&self.0.get(key)?.waiting.as_ref()?.states.last()?.members)
    }

    pub fn is_empty(&self) -> bool {
        self.waiting() == 0
    }

    /// Service ports whose added pods wait.
    pub fn waiting(&self) -> usize {
        self.0.values().filter(|port| port.waiting.is_some()).count()
    }

    /// When the next batch is to be applied.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.0.values().filter_map(Port::due).min()
    }
}

impl Port {
    fn add(&mut self, members: Arc<Members>, hash_key: &[u64; 2], now: Instant) -> Arc<Members> {
        let waiting = self.waiting.get_or_insert_with(|| Waiting { first: now, states: Vec::new() });
        if let Some(newest) = waiting.states.last().filter(|newest| newest.members == members) {
            return newest.members.clone();
        }
        if waiting.states.len() >= MAX_STATES {
            waiting.states.remove(0);
        }
        let state = State { digest: members.digest(hash_key), members, since: now };
        let members = state.members.clone();
        waiting.states.push(state);
        members
    }

    fn due(&self) -> Option<Instant> {
        let waiting = self.waiting.as_ref()?;
        let newest = waiting.states.last().map_or(waiting.first, |newest| newest.since);
        let quiet = newest + QUIET;
        let apart = self.applied.map_or(quiet, |applied| quiet.max(applied + LONGEST));
        Some(apart.min(waiting.first + LONGEST))
    }

    fn digest(&self, state: usize) -> Option<u64> {
        Some(self.waiting.as_ref()?.states.get(state)?.digest)
    }

    /// A state of the batch gets rows; what came after it goes on waiting.
    fn apply(&mut self, state: usize, now: Instant) -> Option<Arc<Members>> {
        let waiting = self.waiting.as_mut()?;
        let members = waiting.states.get(state)?.members.clone();
        waiting.states.drain(..=state);
        match waiting.states.first().map(|next| next.since) {
            Some(since) => waiting.first = since,
            None => self.waiting = None,
        }
        self.applied = Some(now);
        Some(members)
    }
}

/// Whether the change is one that waits: additions only, to pods that have rows. Removals, and nodes that are lost, excluded, or
/// back, do not wait, nor does what is added together with them.
fn waits(current: &Members, wanted: &Members, ended: Option<Instant>, now: Instant) -> bool {
    let restored = ended.is_some_and(|ended| now.since(ended) <= RESTORED);
    current.pods() > 0 && current.grow_into(wanted) && !restored
}

#[cfg(test)]
mod tests;
