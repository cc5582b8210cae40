//! The packet path outside the kernel: the same decisions for tests and the simulator.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use ebpf_common::{
    Config, FlowWords, FragmentKey, FragmentValue, Lease, Node, RingHead, Row, ServiceCounters, ServiceKey,
    ServiceValue,
};

use crate::frame::{Frame, Mac, MacWord, Window};
use crate::tables::{Ring, Tables};

/// A frame as bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFrame(pub Vec<u8>);

impl Frame for HostFrame {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn window<const N: usize>(&self, at: usize) -> Option<impl Window> {
        self.0.get(at..)?.first_chunk::<N>().map(<[u8; N]>::as_slice)
    }

    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..)?.first_chunk().copied()
    }

    fn write<const N: usize>(&mut self, at: usize, bytes: [u8; N]) -> Option<()> {
        *self.0.get_mut(at..)?.first_chunk_mut()? = bytes;
        Some(())
    }

    fn truncate(&mut self, len: usize) -> Option<()> {
        (len <= self.0.len()).then(|| self.0.truncate(len))
    }
}

impl Window for &[u8] {
    fn half<const AT: usize>(&self) -> [u8; 2] {
        [self[AT], self[AT + 1]]
    }

    fn word<const AT: usize>(&self) -> [u8; 4] {
        [self[AT], self[AT + 1], self[AT + 2], self[AT + 3]]
    }
}

/// The maps as ordinary collections. `now_ns` stands still until the test changes it.
#[derive(Clone, Debug, Default)]
pub struct HostTables {
    pub config: Config,
    pub lease: Lease,
    pub now_ns: u64,
    pub vips: BTreeSet<[u8; 4]>,
    /// Counts with `Config::NODE_ADDRESSES` alone.
    pub node_addresses: BTreeSet<[u8; 4]>,
    pub own: BTreeSet<[u8; 4]>,
    pub services: BTreeMap<ServiceKey, ServiceValue>,
    /// Networks and prefix lengths by slot.
    pub source_ranges: BTreeMap<u16, Vec<([u8; 4], u8)>>,
    /// The path writes here.
    pub counters: RefCell<BTreeMap<u32, ServiceCounters>>,
    /// And here.
    pub fragments: RefCell<BTreeMap<FragmentKey, FragmentValue>>,
    pub rings: BTreeMap<u32, Vec<Row>>,
    pub nodes: BTreeMap<u32, Node>,
    pub peers: BTreeMap<Mac, u16>,
}

impl Tables for HostTables {
    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }

    fn lease(&self) -> Lease {
        self.lease
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn is_vip(&self, addr: [u8; 4]) -> bool {
        self.vips.contains(&addr)
    }

    fn is_node_address(&self, addr: [u8; 4]) -> bool {
        self.node_addresses.contains(&addr)
    }

    fn is_own(&self, vip: [u8; 4]) -> bool {
        self.own.contains(&vip)
    }

    fn service(&self, flow: FlowWords) -> Option<ServiceValue> {
        self.services.get(&ServiceKey::from_word(flow.service_word())).copied()
    }

    /// Naively: bits above the prefix length shifted away.
    fn admits(&self, slot: u16, client: [u8; 4]) -> bool {
        let bits = |address: [u8; 4], length: u8| u64::from(u32::from_be_bytes(address)) >> (32 - u32::from(length));
        let has = |(network, length): &([u8; 4], u8)| bits(*network, *length) == bits(client, *length);
        self.source_ranges.get(&slot).is_some_and(|ranges| ranges.iter().any(has))
    }

    /// Only the kernel counts.
    fn count_denied(&self, _: u16) {}

    fn count_in(&self, slot: u32, change: impl FnOnce(&mut ServiceCounters)) {
        if slot < ebpf_common::MAX_COUNTED {
            change(self.counters.borrow_mut().entry(slot).or_default());
        }
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentValue> {
        self.fragments.borrow().get(key).copied()
    }

    fn keep_fragment(&self, key: &FragmentKey, value: FragmentValue) {
        self.fragments.borrow_mut().insert(*key, value);
    }

    fn ring(&self, slot: u32) -> Option<impl Ring> {
        self.rings.get(&slot).map(Vec::as_slice)
    }

    /// Within the array every slot is there, an unknown one all zero.
    fn node(&self, slot: u32) -> Option<Node> {
        (slot < ebpf_common::MAX_NODES).then(|| self.nodes.get(&slot).copied().unwrap_or_default())
    }

    fn peer(&self, mac: MacWord) -> Option<u16> {
        self.peers.get(&mac.mac()).copied()
    }
}

/// Plain rows: what the kernel makes of its packed ones is compared with them.
impl Ring for &[Row] {
    fn head(&self) -> Option<RingHead> {
        u32::try_from(self.len()).ok().map(|rows| RingHead::new(rows, rows))
    }

    fn row(&self, _: RingHead, row: u32) -> Option<Row> {
        self.get(row as usize).copied()
    }
}
