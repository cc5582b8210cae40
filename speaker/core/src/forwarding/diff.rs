//! (what the maps hold, what they should hold) -> writes, in an order in which no packet meets a gap.
//!
//! Adds before removes. Adds go from what is pointed at to what points: nodes, rings, services, VIPs. Removes go the other
//! way: VIPs, services, rings, nodes. A speaker that dies between two writes leaves maps that forward.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::net::Ipv4Addr;

use ebpf_common::{ALTERNATES, MacKey, Node, Row, ServiceKey, ServiceValue};

use super::alternates::{Alternates, ByAddress};
use super::ids::{Exhausted, NodeSlots, RingSlots};
use super::{Ring, Service, Table};
use crate::view::Affinity;

/// The maps that follow the view, as they are or as they should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapState {
    /// `NODES`, without slots that are all zero.
    pub nodes: BTreeMap<u32, Node>,
    pub peers: BTreeMap<MacKey, u32>,
    /// `RINGS`: rows without the length in element 0.
    pub rings: BTreeMap<u32, Arc<[Row]>>,
    pub services: BTreeMap<ServiceKey, ServiceValue>,
    pub vips: BTreeSet<[u8; 4]>,
}

/// One write to one map.
#[derive(Clone, PartialEq, Eq)]
pub enum MapOp {
    SetNode { slot: u32, node: Node },
    SetPeer { mac: MacKey, slot: u32 },
    SetRing { slot: u32, rows: Arc<[Row]> },
    SetService { key: ServiceKey, value: ServiceValue },
    SetVip { addr: [u8; 4] },
    DelVip { addr: [u8; 4] },
    DelService { key: ServiceKey },
    DelRing { slot: u32 },
    DelPeer { mac: MacKey },
    DelNode { slot: u32 },
}

/// Turns tables into map contents. Owns the slots.
#[derive(Clone, Debug)]
pub struct Layout {
    node_slots: NodeSlots,
    ring_slots: RingSlots,
    /// Rows in slots: services that share ring and alternates share them, and unchanged ones are the same allocation.
    rows: BTreeMap<Source, SlotRows>,
    /// Nodes that the rules in force can hand packets to; `None`: all.
    peers: Option<BTreeMap<u16, Ipv4Addr>>,
}

/// What rows are made of.
type Source = (ByAddress<Ring>, Option<ByAddress<Alternates>>);

#[derive(Clone, Debug)]
struct SlotRows {
    /// Of the ring's nodes, and of those of the alternates.
    slots: [Vec<u16>; 2],
    rows: Arc<[Row]>,
}

impl Default for Layout {
    fn default() -> Self {
        Self { node_slots: NodeSlots::nodes(), ring_slots: RingSlots::rings(), rows: BTreeMap::new(), peers: None }
    }
}

impl Layout {
    /// Slots as a previous speaker left them. Contradictory entries are left out: they count as to be removed.
    pub fn restore(have: &MapState) -> Self {
        let mut layout = Self::default();
        for (&slot, node) in &have.nodes {
            layout.node_slots.restore(slot, Ipv4Addr::from(node.addr));
        }
        for (&key, value) in &have.services {
            layout.ring_slots.restore(value.ring, key);
        }
        layout
    }

    /// The slot of the node with this address: `Config::self_slot`.
    pub fn node_slot(&self, address: Ipv4Addr) -> Option<u32> {
        self.node_slots.get(&address)
    }

    /// From now on only these are alternates, by slot: a mark with another slot has no effect in the rules that are in force.
    pub fn set_peers(&mut self, peers: BTreeMap<u16, Ipv4Addr>) {
        self.peers = Some(peers);
    }

    /// What the maps should hold. `have`: what they hold; a slot that they still name is not given to another. `macs`: name ->
    /// MAC, for every node that has one known; `own` is this node's name (its own frames come from no peer); `served`: service
    /// ports with pods on this node, once its nftables table has them. What finds no slot is left out and named.
    pub fn want(
        &mut self,
        table: &Table,
        have: &MapState,
        macs: &BTreeMap<alloc::string::String, [u8; 6]>,
        own: &str,
        served: &BTreeSet<ServiceKey>,
    ) -> (MapState, Vec<Exhausted>) {
        let addresses: BTreeSet<&Ipv4Addr> = table.nodes.values().collect();
        self.node_slots.retain(|address, slot| addresses.contains(address) || have.nodes.contains_key(&slot));
        self.ring_slots.retain(|key, slot| table.services.contains_key(key) || have.rings.contains_key(&slot));
        let mut state = MapState { vips: table.vips.iter().map(Ipv4Addr::octets).collect(), ..Default::default() };
        let mut exhausted = BTreeMap::new();
        for (name, address) in &table.nodes {
            let slot = match self.node_slots.assign(address) {
                Ok(slot) => slot,
                Err(error) => {
                    exhausted.insert(error.what, error);
                    continue;
                }
            };
            let mac = macs.get(name).copied().unwrap_or_default();
            state.nodes.insert(slot, Node { addr: address.octets(), mac, pad: [0; 2] });
            if mac != [0; 6] && name != own {
                state.peers.insert(MacKey { mac, pad: [0; 2] }, slot);
            }
        }
        for (key, service) in &table.services {
            let slot = match self.ring_slots.assign(key) {
                Ok(slot) => slot,
                Err(error) => {
                    exhausted.insert(error.what, error);
                    continue;
                }
            };
            let affinity = match service.affinity {
                Affinity::None => 0,
                Affinity::ClientIp => ServiceValue::CLIENT_AFFINITY,
            };
            let served = if served.contains(key) { ServiceValue::SERVED_HERE } else { 0 };
            let closed = if service.closed { ServiceValue::CLOSED } else { 0 };
            state.services.insert(*key, ServiceValue { ring: slot, flags: affinity | served | closed });
            state.rings.insert(slot, self.rows(service, table));
        }
        let used: BTreeSet<Source> = table.services.values().map(source).collect();
        self.rows.retain(|source, _| used.contains(source));
        (state, exhausted.into_values().collect())
    }

    fn rows(&mut self, service: &Service, table: &Table) -> Arc<[Row]> {
        // A node without a slot gets slot 0: its frames are dropped as `bad_ring` and counted; as an alternate it is nobody.
        let slot_of = |name| table.nodes.get(name).and_then(|address| self.node_slots.get(address)).unwrap_or(0) as u16;
        let alternate_slot_of = |name| {
            let slot: u16 = slot_of(name);
            let allowed = |peers: &BTreeMap<u16, Ipv4Addr>| peers.get(&slot) == table.nodes.get(name);
            if self.peers.as_ref().is_none_or(allowed) { slot } else { 0 }
        };
        let ring = &service.ring;
        let others = service.alternates.as_deref();
        let slots: [Vec<u16>; 2] = [
            ring.nodes.iter().map(slot_of).collect(),
            // 0 stays nobody.
            [0].into_iter().chain(others.iter().flat_map(|others| &others.nodes).map(alternate_slot_of)).collect(),
        ];
        let source = source(service);
        if let Some(known) = self.rows.get(&source).filter(|known| known.slots == slots) {
            return known.rows.clone();
        }
        let [primaries, alternates] = &slots;
        let alternates = |row: usize| match others {
            Some(others) => others.rows[row].map(|number| alternates[usize::from(number)]),
            None => [0; ALTERNATES],
        };
        let primary = |node: u16| primaries[usize::from(node)];
        let rows: Arc<[Row]> =
            ring.rows.iter().enumerate().map(|(row, &node)| Row::new(primary(node), alternates(row))).collect();
        self.rows.insert(source, SlotRows { slots, rows: rows.clone() });
        rows
    }
}

fn source(service: &Service) -> Source {
    (ByAddress(service.ring.clone()), service.alternates.clone().map(ByAddress))
}

/// The writes that lead from `have` to `want`, in order.
pub fn diff(have: &MapState, want: &MapState) -> Vec<MapOp> {
    let mut ops = Vec::new();
    ops.extend(news(&have.nodes, &want.nodes).map(|(&slot, &node)| MapOp::SetNode { slot, node }));
    ops.extend(news(&have.peers, &want.peers).map(|(&mac, &slot)| MapOp::SetPeer { mac, slot }));
    let rings = want.rings.iter().filter(|(slot, rows)| !have.rings.get(slot).is_some_and(|held| same(held, rows)));
    ops.extend(rings.map(|(&slot, rows)| MapOp::SetRing { slot, rows: rows.clone() }));
    ops.extend(news(&have.services, &want.services).map(|(&key, &value)| MapOp::SetService { key, value }));
    ops.extend(want.vips.difference(&have.vips).map(|&addr| MapOp::SetVip { addr }));

    ops.extend(have.vips.difference(&want.vips).map(|&addr| MapOp::DelVip { addr }));
    ops.extend(gone(&have.services, &want.services).map(|&key| MapOp::DelService { key }));
    ops.extend(gone(&have.rings, &want.rings).map(|&slot| MapOp::DelRing { slot }));
    ops.extend(gone(&have.peers, &want.peers).map(|&mac| MapOp::DelPeer { mac }));
    ops.extend(gone(&have.nodes, &want.nodes).map(|&slot| MapOp::DelNode { slot }));
    ops
}

impl MapState {
    /// The state after one more write succeeded: keeps `have` true when a later one fails.
    pub fn apply(&mut self, op: &MapOp) {
        match op {
            MapOp::SetNode { slot, node } => drop(self.nodes.insert(*slot, *node)),
            MapOp::SetPeer { mac, slot } => drop(self.peers.insert(*mac, *slot)),
            MapOp::SetRing { slot, rows } => drop(self.rings.insert(*slot, rows.clone())),
            MapOp::SetService { key, value } => drop(self.services.insert(*key, *value)),
            MapOp::SetVip { addr } => drop(self.vips.insert(*addr)),
            MapOp::DelVip { addr } => drop(self.vips.remove(addr)),
            MapOp::DelService { key } => drop(self.services.remove(key)),
            MapOp::DelRing { slot } => drop(self.rings.remove(slot)),
            MapOp::DelPeer { mac } => drop(self.peers.remove(mac)),
            MapOp::DelNode { slot } => drop(self.nodes.remove(slot)),
        }
    }
}

/// A ring is named by its length: 65488 rows help nobody in a log.
impl fmt::Debug for MapOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetNode { slot, node } => write!(f, "SetNode({slot}, {})", Ipv4Addr::from(node.addr)),
            Self::SetPeer { mac, slot } => write!(f, "SetPeer({:02x?}, {slot})", mac.mac),
            Self::SetRing { slot, rows } => write!(f, "SetRing({slot}, {} rows)", rows.len()),
            Self::SetService { key, value } => write!(f, "SetService({}, ring {})", ShowKey(key), value.ring),
            Self::SetVip { addr } => write!(f, "SetVip({})", Ipv4Addr::from(*addr)),
            Self::DelVip { addr } => write!(f, "DelVip({})", Ipv4Addr::from(*addr)),
            Self::DelService { key } => write!(f, "DelService({})", ShowKey(key)),
            Self::DelRing { slot } => write!(f, "DelRing({slot})"),
            Self::DelPeer { mac } => write!(f, "DelPeer({:02x?})", mac.mac),
            Self::DelNode { slot } => write!(f, "DelNode({slot})"),
        }
    }
}

struct ShowKey<'a>(&'a ServiceKey);

impl fmt::Display for ShowKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServiceKey { addr, port, proto, pad: _ } = self.0;
        write!(f, "{}:{}/{proto}", Ipv4Addr::from(*addr), u16::from_be_bytes(*port))
    }
}

fn same(a: &Arc<[Row]>, b: &Arc<[Row]>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

fn news<'a, K: Ord, V: PartialEq>(
    have: &'a BTreeMap<K, V>,
    want: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    want.iter().filter(|(key, value)| have.get(key) != Some(value))
}

fn gone<'a, K: Ord, V>(have: &'a BTreeMap<K, V>, want: &'a BTreeMap<K, V>) -> impl Iterator<Item = &'a K> {
    have.keys().filter(|key| !want.contains_key(key))
}

#[cfg(test)]
mod tests;
