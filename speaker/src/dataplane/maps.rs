//! The only file with aya's map types. Two handles: what the election thread writes, and what dataplane sync writes.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use ebpf_common::{
    Config, Lease, MacKey, Node, Own, RING_WORDS, RangeKey, Row, ServiceCounters, ServiceKey, ServiceValue, Verdict,
    VipValue, map,
};
use speaker_core::backend::Place;
use speaker_core::forwarding::diff::{Contents, MapOp, MapState, Range};
use speaker_core::time::Instant;

use super::loader::Pins;

/// The lease in the kernel. Owned by the election thread.
pub struct LeaseMaps {
    lease: Array<MapData, Lease>,
    own: HashMap<MapData, [u8; 4], Own>,
}

impl LeaseMaps {
    pub fn open(pins: &Pins) -> Result<Self> {
        let lease = Array::try_from(open(pins, map::LEASE, Map::Array)?)?;
        let own = HashMap::try_from(open(pins, map::OWN, Map::HashMap)?)?;
        Ok(Self { lease, own })
    }

    /// Ends the lease and clears what an earlier speaker owned: ownership is decided anew.
    pub fn clear(&mut self) -> Result<()> {
        let mut lease = self.lease.get(&0, 0)?;
        lease.until_ns = 0;
        self.lease.set(0, lease, 0)?;
        let owned: Vec<[u8; 4]> = self.own.keys().collect::<Result<_, _>>()?;
        for vip in owned {
            self.release(vip.into())?;
        }
        Ok(())
    }

    pub fn renew(&mut self, until: Instant, mute_until: Instant) -> Result<()> {
        let lease = Lease { until_ns: until.as_nanos(), mute_until_ns: mute_until.as_nanos() };
        self.lease.set(0, lease, 0).context("renew the lease")
    }

    pub fn acquire(&mut self, vip: Ipv4Addr, term: u64) -> Result<()> {
        self.own.insert(vip.octets(), Own { term }, 0).with_context(|| format!("enter {vip} as owned"))
    }

    pub fn release(&mut self, vip: Ipv4Addr) -> Result<()> {
        absent_is_fine(self.own.remove(&vip.octets())).with_context(|| format!("remove {vip} as owned"))
    }
}

/// What the packet path forwards by. Owned by dataplane sync.
pub struct ForwardingMaps {
    config: Array<MapData, Config>,
    vips: HashMap<MapData, [u8; 4], VipValue>,
    node_addresses: HashMap<MapData, [u8; 4], u32>,
    services: HashMap<MapData, ServiceKey, ServiceValue>,
    source_ranges: LpmTrie<MapData, RangeKey, u32>,
    rings: MapData,
    nodes: Array<MapData, Node>,
    peers: HashMap<MapData, MacKey, u32>,
}

impl ForwardingMaps {
    pub fn open(pins: &Pins) -> Result<Self> {
        Ok(Self {
            config: Array::try_from(open(pins, map::CONFIG, Map::Array)?)?,
            vips: HashMap::try_from(open(pins, map::VIPS, Map::HashMap)?)?,
            node_addresses: HashMap::try_from(open(pins, map::NODE_ADDRESSES, Map::HashMap)?)?,
            services: HashMap::try_from(open(pins, map::SERVICES, Map::HashMap)?)?,
            source_ranges: LpmTrie::try_from(open(pins, map::SOURCE_RANGES, Map::LpmTrie)?)?,
            rings: pinned(pins, map::RINGS)?,
            nodes: Array::try_from(open(pins, map::NODES, Map::Array)?)?,
            peers: HashMap::try_from(open(pins, map::PEERS, Map::HashMap)?)?,
        })
    }

    /// What an earlier speaker left. Rings cannot be read back (a file descriptor of an inner map by id takes
    /// CAP_SYS_ADMIN), so what each holds is unknown: it is filled anew at the first synchronisation, in the slot that it has.
    pub fn restore(&self) -> Result<MapState> {
        let mut state = MapState::default();
        for vip in self.vips.keys() {
            state.vips.insert(vip?);
        }
        for address in self.node_addresses.keys() {
            state.node_addresses.insert(address?);
        }
        for entry in self.services.iter() {
            let (key, value) = entry?;
            state.rings.insert(value.ring, Contents::UNKNOWN);
            state.services.insert(key, value);
        }
        for key in self.source_ranges.keys() {
            state.ranges.insert(range(&key?));
        }
        for entry in self.peers.iter() {
            let (mac, slot) = entry?;
            state.peers.insert(mac, slot);
        }
        for slot in 1..self.nodes.len() {
            let node = self.nodes.get(&slot, 0)?;
            if node != Node::default() {
                state.nodes.insert(slot, node);
            }
        }
        Ok(state)
    }

    /// The rows of a slot. Takes CAP_SYS_ADMIN.
    #[cfg(test)]
    pub fn rows(pins: &Pins, slot: u32) -> Result<Vec<ebpf_common::Row>> {
        use ebpf_common::{RING_WORDS, RingHead, Row};

        let rings = open(pins, map::RINGS, Map::ArrayOfMaps)?;
        let rings: aya::maps::ArrayOfMaps<_, ebpf_object::Ring> = rings.try_into()?;
        let ring = rings.get(&slot, 0)?;
        let word =
            |word: u32| -> Result<u64> { Ok(ring.get(&(word / RING_WORDS as u32), 0)?[word as usize % RING_WORDS]) };
        let head = RingHead(word(0)?);
        (0..head.rows()).map(|row| Ok(Row(word(head.row_at(row, word(head.number_at(row))?))?))).collect()
    }

    /// Carries out writes in order and reports each that is done. Neighbouring rings are swapped together: a swap waits until no
    /// packet sees the old ring (16 ms), which a node with many services cannot afford for each of them.
    pub fn execute(&mut self, ops: &[MapOp], mut done: impl FnMut(&MapOp)) -> Result<()> {
        let ring = |op: &MapOp| matches!(op, MapOp::SetRing { .. } | MapOp::DelRing { .. });
        for run in ops.chunk_by(|first, second| ring(first) && ring(second)) {
            match run {
                [op] if !ring(op) => {
                    self.execute_one(op).with_context(|| format!("{op:?}"))?;
                    done(op);
                }
                rings => self.put_rings(rings, &mut done)?,
            }
        }
        Ok(())
    }

    fn execute_one(&mut self, op: &MapOp) -> Result<()> {
        match op {
            MapOp::SetNode { slot, node } => self.nodes.set(*slot, *node, 0)?,
            MapOp::DelNode { slot } => self.nodes.set(*slot, Node::default(), 0)?,
            MapOp::SetPeer { mac, slot } => self.peers.insert(*mac, *slot, 0)?,
            MapOp::DelPeer { mac } => absent_is_fine(self.peers.remove(mac))?,
            MapOp::SetService { key, value } => self.services.insert(*key, *value, 0)?,
            MapOp::DelService { key } => absent_is_fine(self.services.remove(key))?,
            MapOp::SetRange(range) => self.source_ranges.insert(&range_key(range), 1, 0)?,
            MapOp::DelRange(range) => absent_is_fine(self.source_ranges.remove(&range_key(range)))?,
            MapOp::SetVip { addr } => self.vips.insert(*addr, VipValue::default(), 0)?,
            MapOp::DelVip { addr } => absent_is_fine(self.vips.remove(addr))?,
            MapOp::SetNodeAddress { addr } => self.node_addresses.insert(*addr, 1, 0)?,
            MapOp::DelNodeAddress { addr } => absent_is_fine(self.node_addresses.remove(addr))?,
            MapOp::SetRing { .. } | MapOp::DelRing { .. } => self.put_rings(std::slice::from_ref(op), |_| {})?,
        }
        Ok(())
    }

    pub fn config(&self) -> Result<Config> {
        Ok(self.config.get(&0, 0)?)
    }

    pub fn set_config(&mut self, config: Config) -> Result<()> {
        self.config.set(0, config, 0).context("write CONFIG")
    }

    /// New rings beside those in use, then a swap: a packet sees an old ring or a new one, whole. A batch at a time, so that no more than
    /// one batch of rings is there twice. A deleted slot gets an empty ring, which frees the memory of the old one; nothing names the slot
    /// any more.
    fn put_rings(&mut self, ops: &[MapOp], mut done: impl FnMut(&MapOp)) -> Result<()> {
        let empty = ebpf_object::create_ring(&[]).context("an empty ring")?;
        let mut rest = ops;
        while !rest.is_empty() {
            let (mut made, mut bytes) = (Vec::new(), 0);
            for op in rest.iter().take(BATCH_RINGS) {
                let ring = match op {
                    MapOp::SetRing { contents, .. } => {
                        let rows: Vec<Row> = contents.rows().collect();
                        Some(ebpf_object::create_ring(&rows).with_context(|| format!("{op:?}"))?)
                    }
                    _ => None,
                };
                bytes += ring.as_ref().map_or(0, |ring| size_of::<[u64; RING_WORDS]>() * ring.len() as usize);
                made.push(ring);
                if bytes >= BATCH_BYTES {
                    break;
                }
            }
            let (batch, later) = rest.split_at(made.len());
            let rings = batch.iter().zip(&made).filter_map(|(op, ring)| match op {
                MapOp::SetRing { slot, .. } | MapOp::DelRing { slot } => Some((*slot, ring.as_ref().unwrap_or(&empty))),
                _ => None,
            });
            let rings: Vec<_> = rings.collect();
            ebpf_object::put_rings(&self.rings, &rings).with_context(|| format!("{} rings", rings.len()))?;
            batch.iter().for_each(&mut done);
            rest = later;
        }
        Ok(())
    }
}

/// Rings that are made before one swap: their memory, and their number, because each is a file descriptor meanwhile (systemd's
/// default limit for services is 1024).
const BATCH_BYTES: usize = 4 << 20;
const BATCH_RINGS: usize = 512;

/// What the packet path counts, summed over CPUs.
pub struct Counters {
    counters: PerCpuArray<MapData, u64>,
    denied: PerCpuArray<MapData, u64>,
    services: PerCpuArray<MapData, ServiceCounters>,
}

impl Counters {
    pub fn open(pins: &Pins) -> Result<Self> {
        Ok(Self {
            counters: PerCpuArray::try_from(open(pins, map::COUNTERS, Map::PerCpuArray)?)?,
            denied: PerCpuArray::try_from(open(pins, map::DENIED, Map::PerCpuArray)?)?,
            services: PerCpuArray::try_from(open(pins, map::SERVICE_COUNTERS, Map::PerCpuArray)?)?,
        })
    }

    /// Packets of clients that the Service in this slot does not admit.
    pub fn denied(&self, slot: u16) -> Result<u64> {
        Ok(self.denied.get(&u32::from(slot), 0)?.iter().sum())
    }

    /// The traffic of the Service that is counted in this slot.
    pub fn service(&self, slot: u16) -> Result<ServiceCounters> {
        let mut sum = ServiceCounters::default();
        for ServiceCounters { packets, bytes, new_flows, resets, second_chances } in
            self.services.get(&u32::from(slot), 0)?.iter()
        {
            sum.packets += packets;
            sum.bytes += bytes;
            sum.new_flows += new_flows;
            sum.resets += resets;
            sum.second_chances += second_chances;
        }
        Ok(sum)
    }

    /// Frames by verdict.
    pub fn read(&self) -> Result<Vec<(Verdict, u64)>> {
        let sum = |verdict: &Verdict| -> Result<(Verdict, u64)> {
            Ok((*verdict, self.counters.get(&(*verdict as u32), 0)?.iter().sum()))
        };
        Verdict::ALL.iter().map(sum).collect()
    }
}

/// VIPs of the host speaker beside this one. None, if it is of a version with other maps.
pub fn vips_of_first(pins: &Pins) -> Result<BTreeSet<Ipv4Addr>> {
    let pins = pins.clone().at(Place::First);
    if !pins.map(map::VIPS).exists() {
        return Ok(BTreeSet::new());
    }
    let vips: HashMap<_, [u8; 4], VipValue> = HashMap::try_from(open(&pins, map::VIPS, Map::HashMap)?)?;
    vips.keys().map(|vip| Ok(Ipv4Addr::from(vip?))).collect()
}

fn range_key(range: &Range) -> Key<RangeKey> {
    let Range { slot, network, length } = *range;
    Key::new(RangeKey::SLOT_BITS + u32::from(length), RangeKey::new(slot, network))
}

fn range(key: &Key<RangeKey>) -> Range {
    let (bits, RangeKey { slot, client, pad: _ }) = (key.prefix_len(), key.data());
    // Longer than 32 it is none of ours; it goes with the first synchronization.
    Range { slot: u16::from_be_bytes(slot), network: client, length: bits.saturating_sub(RangeKey::SLOT_BITS) as u8 }
}

fn open(pins: &Pins, name: &str, wrap: fn(MapData) -> Map) -> Result<Map> {
    pinned(pins, name).map(wrap)
}

fn pinned(pins: &Pins, name: &str) -> Result<MapData> {
    let path = pins.map(name);
    MapData::from_pin(&path).with_context(|| format!("open the pinned map {}", path.display()))
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
pub mod tests;
