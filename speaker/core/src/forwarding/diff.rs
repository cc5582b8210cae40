//! (what the maps hold, what they should hold) -> writes, in an order in which no packet meets a gap.
//!
//! Adds before removes. Adds go from what is pointed at to what points: nodes, rings, services, VIPs. Removes go the other
//! way: VIPs, services, rings, nodes. A speaker that dies between two writes leaves maps that forward. No write changes the rows of a
//! service port that is to keep them: see slots.rs.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::Ipv4Addr;

use ebpf_common::{MAX_NODE_ADDRESSES, MAX_RINGS, MAX_SERVICES, MacKey, Node, ServiceKey, ServiceValue};

use super::Table;
use super::alternates::ByAddress;
use super::counted::{Counted, CounterSlots};
use super::ids::{Exhausted, NodeSlots};
pub use super::restricted::Range;
use super::restricted::RangeSlots;
pub use super::slots::Contents;
use super::slots::{Alternate, ByDigest, Source, Wanted};
use crate::view::ObjectName;

/// The maps that follow the view, as they are or as they should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapState {
    /// `NODES`, without slots that are all zero.
    pub nodes: BTreeMap<u32, Node>,
    pub peers: BTreeMap<MacKey, u32>,
    pub rings: BTreeMap<u32, Contents>,
    pub services: BTreeMap<ServiceKey, ServiceValue>,
    pub vips: BTreeSet<[u8; 4]>,
    pub node_addresses: BTreeSet<[u8; 4]>,
    pub ranges: BTreeSet<Range>,
}

/// One write to one map.
#[derive(Clone, PartialEq, Eq)]
pub enum MapOp {
    SetNode { slot: u32, node: Node },
    SetPeer { mac: MacKey, slot: u32 },
    SetRing { slot: u32, contents: Contents },
    SetRange(Range),
    DelRange(Range),
    SetService { key: ServiceKey, value: ServiceValue },
    SetVip { addr: [u8; 4] },
    SetNodeAddress { addr: [u8; 4] },
    DelNodeAddress { addr: [u8; 4] },
    DelVip { addr: [u8; 4] },
    DelService { key: ServiceKey },
    DelRing { slot: u32 },
    DelPeer { mac: MacKey },
    DelNode { slot: u32 },
}

/// Turns tables into map contents. Owns the slots of nodes.
#[derive(Clone, Debug)]
pub struct Layout {
    node_slots: NodeSlots,
    range_slots: RangeSlots,
    counter_slots: CounterSlots,
    service_ports: usize,
    rings: u32,
    /// As of the last table: the slot of each node by name, and the contents of each ring.
    names: BTreeMap<String, u16>,
    contents: BTreeMap<Source, Contents>,
    /// Nodes that the rules in force can hand packets to, by slot; `None`: all.
    peers: Option<BTreeMap<u16, Ipv4Addr>>,
}

impl Default for Layout {
    fn default() -> Self {
        Self::limited(MAX_SERVICES as usize, MAX_RINGS)
    }
}

impl Layout {
    fn limited(service_ports: usize, rings: u32) -> Self {
        let (names, contents) = (BTreeMap::new(), BTreeMap::new());
        let (node_slots, range_slots, counter_slots) =
            (NodeSlots::nodes(), RangeSlots::default(), CounterSlots::default());
        Self { node_slots, range_slots, counter_slots, service_ports, rings, names, contents, peers: None }
    }

    /// Slots as a previous speaker left them. Contradictory entries are left out: they count as to be removed.
    pub fn restore(have: &MapState) -> Self {
        let mut layout = Self::default();
        for (&slot, node) in &have.nodes {
            layout.node_slots.restore(slot, Ipv4Addr::from(node.addr));
        }
        layout
    }

    /// The slot of the node with this address: `Config::self_slot`.
    pub fn node_slot(&self, address: Ipv4Addr) -> Option<u32> {
        self.node_slots.get(&address)
    }

    /// Services with source ranges, by their slot.
    pub fn restricted(&self) -> BTreeMap<u16, ObjectName> {
        self.range_slots.names()
    }

    /// Services with source ranges for which there is no slot: they admit no client.
    pub fn beyond_restricted(&self) -> &BTreeSet<ObjectName> {
        self.range_slots.beyond()
    }

    /// Services and VIPs that are counted, by their slot.
    pub fn counted(&self) -> BTreeMap<u16, Counted> {
        self.counter_slots.names()
    }

    /// The rules that are in force lead to these, by slot: other alternates come last in their rows.
    pub fn set_peers(&mut self, peers: BTreeMap<u16, Ipv4Addr>) {
        if self.peers.as_ref() != Some(&peers) {
            self.peers = Some(peers);
            self.contents.clear();
        }
    }

    /// What the maps should hold. `have`: what they hold; a slot that they still name is not given to another. `macs`: name ->
    /// MAC, for every node that has one known; `own` is this node's name (its own frames come from no peer); `served`: service
    /// ports with pods on this node, once its nftables table has them. What finds no slot is left out and named; a service port that is
    /// in the maps stays as it is. What a write removes makes room for the next one.
    pub fn want(
        &mut self,
        table: &Table,
        have: &MapState,
        macs: &BTreeMap<String, [u8; 6]>,
        own: &str,
        served: &BTreeSet<ServiceKey>,
    ) -> (MapState, Vec<Exhausted>) {
        let mut state = MapState { vips: table.vips.iter().map(Ipv4Addr::octets).collect(), ..Default::default() };
        let mut exhausted = Vec::new();
        let node_addresses = table.node_addresses.iter().map(Ipv4Addr::octets);
        state.node_addresses = node_addresses.take(MAX_NODE_ADDRESSES as usize).collect();
        if table.node_addresses.len() > MAX_NODE_ADDRESSES as usize {
            exhausted.push(Exhausted { what: "node_address", limit: MAX_NODE_ADDRESSES });
        }
        self.want_nodes(table, have, macs, own, &mut state, &mut exhausted);
        let restricted = self.range_slots.want(&table.restricted, have, &mut exhausted);
        state.ranges = restricted.ranges;
        let counted = self.counter_slots.want(&table.counted, have, &mut exhausted);
        let slots_of =
            |key: &ServiceKey| restricted.flags.get(key).copied().unwrap_or(0) | counted.get(key).copied().unwrap_or(0);
        let wanted = self.wanted(table, have, &mut exhausted);
        let slots = wanted.slots(have, self.rings);
        if slots.contains(&None) {
            exhausted.push(Exhausted { what: "ring", limit: self.rings });
        }
        let mut services = Vec::with_capacity(wanted.users.len());
        for (key, ring) in &wanted.users {
            match slots[*ring] {
                Some(ring) => {
                    let flags = flags(key, table, served) | slots_of(key);
                    services.push((*key, ServiceValue { ring, flags }));
                }
                None => {
                    let Some(value) = have.services.get(key) else { continue };
                    // It stays as it is, but for the clients that are admitted, and where it is counted.
                    let slots = ServiceValue::restricted_to(u16::MAX) | ServiceValue::counted_in(u16::MAX);
                    let flags = value.flags & !slots | slots_of(key);
                    services.push((*key, ServiceValue { flags, ..*value }));
                    let contents = have.rings.get(&value.ring).unwrap_or(&Contents::UNKNOWN);
                    state.rings.insert(value.ring, contents.clone());
                }
            }
        }
        state.services = services.into_iter().collect();
        state.rings.extend(slots.iter().zip(wanted.rings).filter_map(|(slot, contents)| Some(((*slot)?, contents))));
        (state, exhausted)
    }

    fn want_nodes(
        &mut self,
        table: &Table,
        have: &MapState,
        macs: &BTreeMap<String, [u8; 6]>,
        own: &str,
        state: &mut MapState,
        exhausted: &mut Vec<Exhausted>,
    ) {
        let addresses: BTreeSet<&Ipv4Addr> = table.nodes.values().collect();
        self.node_slots.retain(|address, slot| addresses.contains(address) || have.nodes.contains_key(&slot));
        let mut names = BTreeMap::new();
        for (name, address) in &table.nodes {
            let slot = match self.node_slots.assign(address) {
                Ok(slot) => slot,
                Err(error) => {
                    exhausted.retain(|known| *known != error);
                    exhausted.push(error);
                    continue;
                }
            };
            let mac = macs.get(name).copied().unwrap_or_default();
            let existing_only = if table.existing_only.contains(name) { Node::EXISTING_FLOWS_ONLY } else { 0 };
            let flags = existing_only | if table.excluded.contains(name) { Node::EXCLUDED } else { 0 };
            state.nodes.insert(slot, Node { addr: address.octets(), mac, flags });
            if mac != [0; 6] && name != own {
                state.peers.insert(MacKey { mac, pad: [0; 2] }, slot);
            }
            names.insert(name.clone(), slot as u16);
        }
        if self.names != names {
            self.names = names;
            self.contents.clear();
        }
    }

    /// The service ports that there is room for, and their rings. New ones have to wait until removed ones are out of the map.
    fn wanted(&mut self, table: &Table, have: &MapState, exhausted: &mut Vec<Exhausted>) -> Wanted {
        let mut room = self.service_ports.saturating_sub(have.services.len());
        let mut numbers: BTreeMap<Source, usize> = BTreeMap::new();
        let mut wanted = Wanted { rings: Vec::new(), users: Vec::with_capacity(table.services.len()) };
        let mut contents = BTreeMap::new();
        let mut left_out = false;
        for (key, service) in &table.services {
            if !have.services.contains_key(key) {
                if room == 0 {
                    left_out = true;
                    continue;
                }
                room -= 1;
            }
            let source = (ByDigest(service.ring.clone()), service.alternates.clone().map(ByAddress));
            let number = *numbers.entry(source).or_insert_with_key(|source| {
                let slot_of = |name: &str| self.names.get(name).copied().unwrap_or(0);
                let alternate = |name: &str| {
                    let slot = slot_of(name);
                    let leads_there = |peers: &BTreeMap<u16, Ipv4Addr>| peers.get(&slot) == table.nodes.get(name);
                    Alternate { slot, pending: !self.peers.as_ref().is_none_or(leads_there) }
                };
                let known = self.contents.get(source).cloned();
                let ring = known.unwrap_or_else(|| Contents::new(source.clone(), slot_of, alternate));
                contents.insert(source.clone(), ring.clone());
                wanted.rings.push(ring);
                wanted.rings.len() - 1
            });
            wanted.users.push((*key, number));
        }
        if left_out {
            exhausted.push(Exhausted { what: "service_port", limit: self.service_ports as u32 });
        }
        self.contents = contents;
        wanted
    }
}

fn flags(key: &ServiceKey, table: &Table, served: &BTreeSet<ServiceKey>) -> u32 {
    let Some(service) = table.services.get(key) else { return 0 };
    let served = if served.contains(key) { ServiceValue::SERVED_HERE } else { 0 };
    let no_new_flows = if service.no_new_flows { ServiceValue::NO_NEW_FLOWS } else { 0 };
    let excluded_take = if service.excluded_take { ServiceValue::EXCLUDED_TAKE } else { 0 };
    let node_flows = if table.is_node_port(key) && may_be_of_node(key) { ServiceValue::NODE_FLOWS } else { 0 };
    service.attributes.flags() | served | no_new_flows | excluded_take | node_flows
}

/// Kernels choose no lower source port for what they masquerade (nf_nat_core.c: "class" of the port), and for the flows of processes one
/// from 1024, or 665 (RPC). A process that binds a lower one itself is found by its socket.
fn may_be_of_node(key: &ServiceKey) -> bool {
    u16::from_be_bytes(key.port) >= 512
}

/// The slots of Services that keep or get source ranges.
fn restricted(want: &MapState) -> BTreeSet<u16> {
    let flagged = want.services.values().filter(|value| value.flags & ServiceValue::SOURCE_RANGES != 0);
    flagged.map(|value| value.ranges_slot()).collect()
}

/// The writes that lead from `have` to `want`, in order.
pub fn diff(have: &MapState, want: &MapState) -> Vec<MapOp> {
    let mut ops = Vec::new();
    ops.extend(news(&have.nodes, &want.nodes).map(|(&slot, &node)| MapOp::SetNode { slot, node }));
    ops.extend(news(&have.peers, &want.peers).map(|(&mac, &slot)| MapOp::SetPeer { mac, slot }));
    ops.extend(want.ranges.difference(&have.ranges).map(|&range| MapOp::SetRange(range)));
    let kept = restricted(want);
    // A client that is no longer admitted does not wait for what else changes.
    let (narrowed, left): (Vec<Range>, Vec<Range>) =
        have.ranges.difference(&want.ranges).partition(|range| kept.contains(&range.slot));
    ops.extend(narrowed.into_iter().map(MapOp::DelRange));
    let rings = news(&have.rings, &want.rings);
    ops.extend(rings.map(|(&slot, contents)| MapOp::SetRing { slot, contents: contents.clone() }));
    ops.extend(news(&have.services, &want.services).map(|(&key, &value)| MapOp::SetService { key, value }));
    ops.extend(want.vips.difference(&have.vips).map(|&addr| MapOp::SetVip { addr }));
    let (addresses, before) = (&want.node_addresses, &have.node_addresses);
    ops.extend(addresses.difference(before).map(|&addr| MapOp::SetNodeAddress { addr }));

    ops.extend(before.difference(addresses).map(|&addr| MapOp::DelNodeAddress { addr }));
    ops.extend(have.vips.difference(&want.vips).map(|&addr| MapOp::DelVip { addr }));
    ops.extend(gone(&have.services, &want.services).map(|&key| MapOp::DelService { key }));
    ops.extend(left.into_iter().map(MapOp::DelRange));
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
            MapOp::SetRing { slot, contents } => drop(self.rings.insert(*slot, contents.clone())),
            MapOp::SetRange(range) => drop(self.ranges.insert(*range)),
            MapOp::DelRange(range) => drop(self.ranges.remove(range)),
            MapOp::SetService { key, value } => drop(self.services.insert(*key, *value)),
            MapOp::SetVip { addr } => drop(self.vips.insert(*addr)),
            MapOp::DelVip { addr } => drop(self.vips.remove(addr)),
            MapOp::SetNodeAddress { addr } => drop(self.node_addresses.insert(*addr)),
            MapOp::DelNodeAddress { addr } => drop(self.node_addresses.remove(addr)),
            MapOp::DelService { key } => drop(self.services.remove(key)),
            MapOp::DelRing { slot } => drop(self.rings.remove(slot)),
            MapOp::DelPeer { mac } => drop(self.peers.remove(mac)),
            MapOp::DelNode { slot } => drop(self.nodes.remove(slot)),
        }
    }
}

impl fmt::Debug for MapOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetNode { slot, node } => write!(f, "SetNode({slot}, {})", Ipv4Addr::from(node.addr)),
            Self::SetPeer { mac, slot } => write!(f, "SetPeer({:02x?}, {slot})", mac.mac),
            Self::SetRing { slot, contents } => write!(f, "SetRing({slot}, {contents:?})"),
            Self::SetRange(range) => write!(f, "SetRange({})", ShowRange(range)),
            Self::DelRange(range) => write!(f, "DelRange({})", ShowRange(range)),
            Self::SetService { key, value } => write!(f, "SetService({}, ring {})", ShowKey(key), value.ring),
            Self::SetVip { addr } => write!(f, "SetVip({})", Ipv4Addr::from(*addr)),
            Self::SetNodeAddress { addr } => write!(f, "SetNodeAddress({})", Ipv4Addr::from(*addr)),
            Self::DelNodeAddress { addr } => write!(f, "DelNodeAddress({})", Ipv4Addr::from(*addr)),
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

struct ShowRange<'a>(&'a Range);

impl fmt::Display for ShowRange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { slot, network, length } = self.0;
        write!(f, "{slot}, {}/{length}", Ipv4Addr::from(*network))
    }
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
