//! All maps of the program, and the packet path's view of them. What each is for: docs/dataplane.md, map table; names, keys and
//! values: `ebpf-common`.

use aya_ebpf::bindings::BPF_F_INNER_MAP;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray};
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::btf_map;
use ebpf_common::{
    Config, FlowWords, FragmentKey, FragmentValue, Lease, MAX_COUNTED, MAX_FRAGMENTED, MAX_NODE_ADDRESSES, MAX_NODES,
    MAX_RESTRICTED, MAX_RINGS, MAX_SERVICES, MAX_SOURCE_RANGES, MAX_VERDICTS, MAX_VIPS, MacKey, Node, Own, RING_WORDS,
    RangeKey, RingHead, Row, ServiceCounters, ServiceKey, ServiceValue, Verdict, VipValue,
};

use crate::frame::MacWord;
use crate::tables::{self, Tables};

#[btf_map]
static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
static LEASE: Array<Lease, 1> = Array::new();
#[btf_map]
static OWN: HashMap<[u8; 4], Own, { MAX_VIPS as usize }> = HashMap::new();
#[btf_map]
static VIPS: HashMap<[u8; 4], VipValue, { MAX_VIPS as usize }> = HashMap::new();
#[btf_map]
static NODE_ADDRESSES: HashMap<[u8; 4], u32, { MAX_NODE_ADDRESSES as usize }> = HashMap::new();
#[btf_map]
static SERVICES: HashMap<ServiceKey, ServiceValue, { MAX_SERVICES as usize }> = HashMap::new();
#[btf_map]
static SOURCE_RANGES: LpmTrie<RangeKey, u32, { MAX_SOURCE_RANGES as usize }> = LpmTrie::new();
#[btf_map]
static DENIED: PerCpuArray<u64, { MAX_RESTRICTED as usize }> = PerCpuArray::new();
#[btf_map]
static SERVICE_COUNTERS: PerCpuArray<ServiceCounters, { MAX_COUNTED as usize }> = PerCpuArray::new();
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentValue, { MAX_FRAGMENTED as usize }> = LruHashMap::new();
/// `BPF_F_INNER_MAP` (Linux 5.10): the rings may have any length; that of the template here does not matter.
type Ring = Array<[u64; RING_WORDS], 2, { BPF_F_INNER_MAP as usize }>;
#[btf_map]
static RINGS: ArrayOfMaps<Ring, { MAX_RINGS as usize }> = ArrayOfMaps::new();
#[btf_map]
static NODES: Array<Node, { MAX_NODES as usize }> = Array::new();
#[btf_map]
static PEERS: HashMap<MacKey, u32, { MAX_NODES as usize }> = HashMap::new();
#[btf_map]
pub static NEXT: ProgramArray<1> = ProgramArray::new();
#[btf_map]
static COUNTERS: PerCpuArray<u64, { MAX_VERDICTS as usize }> = PerCpuArray::new();

/// The maps of the running program.
pub struct KernelTables;

impl Tables for KernelTables {
    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CONFIG.get(0)
    }

    #[inline(always)]
    fn lease(&self) -> Lease {
        // No lease is a lease that is over.
        LEASE.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_boot_ns() }
    }

    #[inline(always)]
    fn is_vip(&self, addr: [u8; 4]) -> bool {
        there(VIPS.get_ptr(addr))
    }

    #[inline(always)]
    fn is_node_address(&self, addr: [u8; 4]) -> bool {
        there(NODE_ADDRESSES.get_ptr(addr))
    }

    #[inline(always)]
    fn is_own(&self, vip: [u8; 4]) -> bool {
        there(OWN.get_ptr(vip))
    }

    #[inline(always)]
    fn service(&self, flow: FlowWords) -> Option<ServiceValue> {
        let word = flow.service_word().to_le();
        // SAFETY: the key is these bytes; the value is copied at once.
        unsafe { SERVICES.get(&*(&raw const word).cast::<ServiceKey>()).copied() }
    }

    #[inline(always)]
    fn admits(&self, slot: u16, client: [u8; 4]) -> bool {
        let key = Key::new(RangeKey::BITS, RangeKey::new(slot, client));
        there(SOURCE_RANGES.get(&key).map(|value| value as *const u32))
    }

    #[inline(always)]
    fn count_denied(&self, slot: u16) {
        if let Some(counter) = DENIED.get_ptr_mut(u32::from(slot)) {
            // SAFETY: as in `count`.
            unsafe { *counter += 1 };
        }
    }

    #[inline(always)]
    fn count_in(&self, slot: u32, change: impl FnOnce(&mut ServiceCounters)) {
        if let Some(counters) = SERVICE_COUNTERS.get_ptr_mut(slot) {
            // SAFETY: as in `count`.
            change(unsafe { &mut *counters });
        }
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentValue> {
        // SAFETY: copied at once. Another fragment with this key, seen at the same time on another CPU, has the same contents or is a new
        // datagram's: either is a whole answer, for the kernel replaces entries and does not write into them.
        unsafe { FRAGMENTS.get(key).copied() }
    }

    #[inline(always)]
    fn keep_fragment(&self, key: &FragmentKey, value: FragmentValue) {
        // Without room for it the later fragments are dropped by name: `FragmentWithoutFirst` counts that.
        let _ = FRAGMENTS.insert(key, value, 0);
    }

    #[inline(always)]
    fn ring(&self, slot: u32) -> Option<impl tables::Ring> {
        RINGS.get(slot)
    }

    #[inline(always)]
    fn node(&self, slot: u32) -> Option<Node> {
        NODES.get(slot).copied()
    }

    #[inline(always)]
    fn peer(&self, mac: MacWord) -> Option<u16> {
        let word = mac.0.to_le();
        // SAFETY: the key is these bytes; the value is copied at once.
        unsafe { PEERS.get(&*(&raw const word).cast::<MacKey>()) }.map(|slot| *slot as u16)
    }
}

impl tables::Ring for &Ring {
    #[inline(always)]
    fn head(&self) -> Option<RingHead> {
        word(self, 0).map(RingHead)
    }

    #[inline(always)]
    fn row(&self, head: RingHead, row: u32) -> Option<Row> {
        let numbers = word(self, head.number_at(row))?;
        word(self, head.row_at(row, numbers)).map(Row)
    }
}

#[inline(always)]
fn word(ring: &Ring, word: u32) -> Option<u64> {
    let words = ring.get(word / RING_WORDS as u32)?;
    Some(words[word as usize % RING_WORDS])
}

/// Whether a look-up found something. The value is read although it is not used: without that LLVM joins two such checks into one
/// "or" of the pointers, which the verifier refuses (seen with LLVM 22: "pointer |= pointer prohibited").
#[inline(always)]
fn there<V: Copy>(value: Option<*const V>) -> bool {
    // SAFETY: a pointer that the look-up returned is valid until the program ends.
    value.map(|value| unsafe { value.read_volatile() }).is_some()
}

/// One more frame with this verdict, on this CPU.
#[inline(always)]
pub fn count(verdict: Verdict) {
    if let Some(counter) = COUNTERS.get_ptr_mut(verdict as u32) {
        // SAFETY: this CPU's own slot; XDP programs do not interrupt each other on one CPU.
        unsafe { *counter += 1 };
    }
}
