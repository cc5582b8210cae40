//! (what the maps hold, what they should hold) -> writes, in an order in which no packet meets a gap.
//!
//! Adds before removes. Adds go from what is pointed at to what points: nodes, rings, services, VIPs. Removes go the other
//! way: VIPs, services, rings, nodes. A speaker that dies between two writes leaves maps that forward.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::net::Ipv4Addr;

use ebpf_common::{MacKey, Node, Row, ServiceKey, ServiceValue};

use super::ids::{Exhausted, NodeSlots, RingSlots};
use super::{Ring, Table};
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
    /// Rows in slots, by address of the ring (which lives as long as the entry): services that share a ring share them, and
    /// an unchanged ring is the same allocation.
    rows: BTreeMap<usize, SlotRows>,
}

#[derive(Clone, Debug)]
struct SlotRows {
    ring: Arc<Ring>,
    /// Of `ring.nodes`.
    slots: Vec<u16>,
    rows: Arc<[Row]>,
}

impl Default for Layout {
    fn default() -> Self {
        Self { node_slots: NodeSlots::nodes(), ring_slots: RingSlots::rings(), rows: BTreeMap::new() }
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

    /// What the maps should hold. `have`: what they hold; a slot that they still name is not given to another. `macs`: name ->
    /// MAC, for every node that has one known; `own` is this node's name (its own frames come from no peer). What finds no
    /// slot is left out and named.
    pub fn want(
        &mut self,
        table: &Table,
        have: &MapState,
        macs: &BTreeMap<alloc::string::String, [u8; 6]>,
        own: &str,
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
            let flags = match service.affinity {
                Affinity::None => 0,
                Affinity::ClientIp => ServiceValue::CLIENT_AFFINITY,
            };
            state.services.insert(*key, ServiceValue { ring: slot, flags });
            let rows = self.rows(&service.ring, table);
            state.rings.insert(slot, rows);
        }
        let used: BTreeSet<usize> = table.services.values().map(|service| address_of(&service.ring)).collect();
        self.rows.retain(|address, _| used.contains(address));
        (state, exhausted.into_values().collect())
    }

    fn rows(&mut self, ring: &Arc<Ring>, table: &Table) -> Arc<[Row]> {
        // A node without a slot gets slot 0: its frames are dropped as `bad_ring` and counted.
        let slot_of = |name| table.nodes.get(name).and_then(|address| self.node_slots.get(address)).unwrap_or(0) as u16;
        let slots: Vec<u16> = ring.nodes.iter().map(slot_of).collect();
        if let Some(known) = self.rows.get(&address_of(ring))
            && Arc::ptr_eq(&known.ring, ring)
            && known.slots == slots
        {
            return known.rows.clone();
        }
        let rows: Arc<[Row]> = ring.rows.iter().map(|&node| Row::new(slots[usize::from(node)], [0; 3])).collect();
        self.rows.insert(address_of(ring), SlotRows { ring: ring.clone(), slots, rows: rows.clone() });
        rows
    }
}

fn address_of(ring: &Arc<Ring>) -> usize {
    Arc::as_ptr(ring) as usize
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

/// A ring is named by its length: 65521 rows help nobody in a log.
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
