//! The packet path on the real verifier: loads the object, fills its maps from a [`HostTables`], runs frames through it.
//!
//! Nothing is pinned, and attached only by [`Kernel::attach`]: all of it ends with the process. The way rings are created and put in place here is the one
//! that user space uses (docs/dataplane.md, "Rings").

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, ArrayOfMaps, HashMap, MapData, MapInfo, PerCpuArray};
use aya::programs::{TestRun as _, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use ebpf_common::{
    Config, FragmentKey, FragmentValue, Lease, MacKey, Node, Own, RING_WORDS, RangeKey, RingHead, Row, ServiceCounters,
    ServiceKey, ServiceValue, Verdict, VipValue, map,
};
use ebpf_object::Ring;
use sheave_ebpf::host::HostTables;

/// A loaded program with maps of its own.
pub struct Kernel {
    ebpf: Ebpf,
}

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    /// The action that the kernel saw.
    pub action: u32,
    pub frame: Vec<u8>,
}

impl Kernel {
    /// Fails, rather than skips, where BPF programs may not be loaded.
    pub fn load(tables: &HostTables) -> Result<Self> {
        let ebpf = EbpfLoader::new().load(ebpf_object::object()?).context(
            "loading the maps of the XDP program: the packet tests need root (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON)",
        )?;
        let mut kernel = Self { ebpf };
        let program: &mut Xdp = kernel.ebpf.program_mut(ebpf_common::PROGRAM).context("no program")?.try_into()?;
        program.load().context("the verifier refused the XDP program")?;
        kernel.fill(tables)?;
        Ok(kernel)
    }

    /// Attaches to a device of the calling thread's network namespace, in driver mode, until the value is dropped.
    pub fn attach(&mut self, device: &str) -> Result<()> {
        let program: &mut Xdp = self.ebpf.program_mut(ebpf_common::PROGRAM).context("no program")?.try_into()?;
        program.attach(device, XdpMode::Driver).with_context(|| format!("attach to {device}"))?;
        Ok(())
    }

    /// Puts the tables into the maps (added to what is there). `now_ns` stays the kernel's own clock: see [`boot_ns`].
    pub fn fill(&mut self, tables: &HostTables) -> Result<()> {
        self.array::<Config>(map::CONFIG)?.set(0, tables.config, 0)?;
        self.array::<Lease>(map::LEASE)?.set(0, tables.lease, 0)?;
        let mut vips: HashMap<_, [u8; 4], VipValue> = self.map(map::VIPS)?.try_into()?;
        for vip in &tables.vips {
            vips.insert(vip, VipValue::default(), 0)?;
        }
        let mut node_addresses: HashMap<_, [u8; 4], u32> = self.map(map::NODE_ADDRESSES)?.try_into()?;
        for address in &tables.node_addresses {
            node_addresses.insert(address, 1, 0)?;
        }
        let mut own: HashMap<_, [u8; 4], Own> = self.map(map::OWN)?.try_into()?;
        for vip in &tables.own {
            own.insert(vip, Own { term: 1 }, 0)?;
        }
        let rings: Vec<_> = tables
            .rings
            .iter()
            .map(|(slot, rows)| Ok((*slot, ebpf_object::create_ring(rows)?)))
            .collect::<Result<_>>()?;
        self.put_rings(&rings)?;
        let mut services: HashMap<_, ServiceKey, ServiceValue> = self.map(map::SERVICES)?.try_into()?;
        for (key, value) in &tables.services {
            services.insert(key, value, 0)?;
        }
        let mut ranges: LpmTrie<_, RangeKey, u32> = self.map(map::SOURCE_RANGES)?.try_into()?;
        for (slot, list) in &tables.source_ranges {
            for (network, length) in list {
                let bits = RangeKey::SLOT_BITS + u32::from(*length);
                ranges.insert(&Key::new(bits, RangeKey::new(*slot, *network)), 1, 0)?;
            }
        }
        let mut fragments: HashMap<_, FragmentKey, FragmentValue> = self.map(map::FRAGMENTS)?.try_into()?;
        for (key, value) in tables.fragments.borrow().iter() {
            fragments.insert(key, value, 0)?;
        }
        let mut nodes = self.array::<Node>(map::NODES)?;
        for (slot, node) in &tables.nodes {
            nodes.set(*slot, node, 0)?;
        }
        let mut peers: HashMap<_, MacKey, u32> = self.map(map::PEERS)?.try_into()?;
        for (mac, slot) in &tables.peers {
            peers.insert(MacKey { mac: *mac, pad: [0; 2] }, u32::from(*slot), 0)?;
        }
        Ok(())
    }

    /// Changes one service port.
    pub fn serve(&mut self, key: &ServiceKey, value: ServiceValue) -> Result<()> {
        let mut services: HashMap<_, ServiceKey, ServiceValue> = self.map(map::SERVICES)?.try_into()?;
        Ok(services.insert(key, value, 0)?)
    }

    /// Puts rings in place. Needs no exclusive access: the maps are the kernel's.
    pub fn put_rings(&self, rings: &[(u32, Ring)]) -> Result<()> {
        let Some(aya::maps::Map::ArrayOfMaps(outer)) = self.ebpf.map(map::RINGS) else { bail!("no map RINGS") };
        let rings: Vec<_> = rings.iter().map(|(slot, ring)| (*slot, ring)).collect();
        Ok(ebpf_object::put_rings(outer, &rings)?)
    }

    /// The rows of the ring in a slot, as a restarted speaker reads them back.
    pub fn rows(&self, slot: u32) -> Result<Vec<Row>> {
        let rings: ArrayOfMaps<_, Ring> = self.ebpf.map(map::RINGS).context("no map RINGS")?.try_into()?;
        let ring = rings.get(&slot, 0)?;
        let word =
            |word: u32| -> Result<u64> { Ok(ring.get(&(word / RING_WORDS as u32), 0)?[word as usize % RING_WORDS]) };
        let head = RingHead(word(0)?);
        (0..head.rows()).map(|row| Ok(Row(word(head.row_at(row, word(head.number_at(row))?))?))).collect()
    }

    /// Runs one frame (at least 14 bytes: the kernel takes no shorter one) and reads from the counters what was decided.
    pub fn run(&mut self, frame: &[u8]) -> Result<Outcome> {
        let before = self.counters()?;
        let mut out = vec![0; frame.len() + 256];
        let (action, len) = self.test_run(frame, &mut out, 1)?;
        out.truncate(len);
        let after = self.counters()?;
        let mut counted = Verdict::ALL.iter().filter(|verdict| after[**verdict as usize] != before[**verdict as usize]);
        let verdict = *counted.next().context("no counter moved")?;
        ensure!(counted.next().is_none(), "more than one counter moved");
        ensure!(after.iter().sum::<u64>() == before.iter().sum::<u64>() + 1, "a frame is counted once");
        Ok(Outcome { verdict, action, frame: out })
    }

    /// Runs the frame `repeat` times; the mean time of one run in nanoseconds.
    pub fn time(&self, frame: &[u8], repeat: u32) -> Result<u64> {
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.repeat = repeat;
        let result = self.program()?.test_run(options)?;
        Ok(u64::try_from(result.duration.as_nanos())?)
    }

    /// `COUNTERS`, summed over the CPUs.
    pub fn counters(&self) -> Result<Vec<u64>> {
        let counters: PerCpuArray<_, u64> = self.ebpf.map(map::COUNTERS).context("no map COUNTERS")?.try_into()?;
        (0..counters.len()).map(|index| Ok(counters.get(&index, 0)?.iter().sum())).collect()
    }

    /// `DENIED` of a slot, summed over the CPUs.
    pub fn denied(&self, slot: u16) -> Result<u64> {
        let denied: PerCpuArray<_, u64> = self.ebpf.map(map::DENIED).context("no map DENIED")?.try_into()?;
        Ok(denied.get(&u32::from(slot), 0)?.iter().sum())
    }

    /// `SERVICE_COUNTERS` of a slot, one per CPU.
    pub fn service_counters(&self, slot: u16) -> Result<Vec<ServiceCounters>> {
        let counters: PerCpuArray<_, ServiceCounters> =
            self.ebpf.map(map::SERVICE_COUNTERS).context("no map SERVICE_COUNTERS")?.try_into()?;
        Ok(counters.get(&u32::from(slot), 0)?.to_vec())
    }

    /// How many datagrams in fragments are remembered.
    pub fn fragments(&self) -> Result<usize> {
        let fragments = self.ebpf.map(map::FRAGMENTS).context("no map FRAGMENTS")?;
        let fragments: HashMap<_, FragmentKey, FragmentValue> = fragments.try_into()?;
        Ok(fragments.keys().filter(Result::is_ok).count())
    }

    /// The program, for a map of programs.
    pub fn program_fd(&self) -> Result<BorrowedFd<'_>> {
        Ok(self.program()?.fd()?.as_fd())
    }

    /// Bytes that each map takes, rings not counted.
    pub fn memory(&self) -> Result<BTreeMap<String, u64>> {
        let ids = self.program()?.info()?.map_ids()?.context("no map ids: Linux 4.15 has them")?;
        ids.into_iter()
            .map(|id| {
                let name = MapInfo::from_id(id)?.name_as_str().context("a map without a name")?.to_owned();
                Ok((name, map_memory(MapData::from_id(id)?.fd().as_fd())?))
            })
            .collect()
    }

    fn test_run(&self, frame: &[u8], out: &mut [u8], repeat: u32) -> Result<(u32, usize)> {
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(out);
        options.repeat = repeat;
        let result = self.program()?.test_run(options).context("BPF_PROG_TEST_RUN")?;
        Ok((result.return_value, result.data_size_out as usize))
    }

    fn program(&self) -> Result<&Xdp> {
        Ok(self.ebpf.program(ebpf_common::PROGRAM).context("no program")?.try_into()?)
    }

    fn map(&mut self, name: &str) -> Result<&mut aya::maps::Map> {
        self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))
    }

    fn array<V: aya::Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        Ok(self.map(name)?.try_into()?)
    }
}

/// Bytes that a map takes, by the kernel's own count (exact since Linux 6.4).
pub fn map_memory(map: BorrowedFd<'_>) -> Result<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:")).context("no memlock in fdinfo")?;
    Ok(bytes.trim().parse()?)
}

/// CLOCK_BOOTTIME in nanoseconds: the clock of the lease.
pub fn boot_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}
