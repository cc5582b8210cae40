//! The packet path itself in place of its stand-in: the XDP program on each node's uplink, its maps filled as a speaker would.

use std::net::Ipv4Addr;

use ebpf_common::{Config, Node as Peer, Row, ServiceKey, ServiceValue, Verdict};
use sheave_ebpf::host::HostTables;
use sheave_tests::lab::{netns, xdp};
use sheave_tests::xdp::Kernel;

use crate::world::{A, B, Node, OTHER_VIP, VIP, World};

/// Attached to a node while it lives.
pub struct PacketPath {
    kernel: Kernel,
    tables: HostTables,
}

impl PacketPath {
    /// Both nodes get this row for every flow, whatever its port.
    pub fn pair(world: &World, row: Row) -> [Self; 2] {
        [&world.a, world.b()].map(|node| Self::attach(world, node, row))
    }

    fn attach(world: &World, node: &Node, row: Row) -> Self {
        let tables = tables(node.slot, row);
        let mut kernel = Kernel::load(&tables).expect("loading the XDP program");
        let port = format!("node{}", node.slot);
        // Before anything learns the address.
        node.ip(&format!("link set eth0 address {}\n", mac(node.slot).map(|byte| format!("{byte:02x}")).join(":")));
        // What XDP sends on has its checksums, and arrives: see `lab/topology.rs`.
        netns::inside(&world.client, || {
            xdp::attach_pass(&port)?;
            netns::run("ethtool", &["-K", &port, "tx", "off"])
        })
        .expect("the switch's port");
        node.unmark();
        netns::inside(&node.name, || kernel.attach("eth0")).expect("the uplink");
        Self { kernel, tables }
    }

    /// From now on every flow has this row.
    pub fn set_row(&mut self, row: Row) {
        self.tables.rings.insert(RING, vec![row]);
        self.refill();
    }

    /// From now on the UDP port of the VIP admits only these clients.
    pub fn restrict(&mut self, network: Ipv4Addr, length: u8) {
        let flags = ServiceValue::restricted_to(1);
        self.tables.services.insert(service(VIP, 17), ServiceValue { ring: RING, flags });
        self.tables.source_ranges.insert(1, vec![(network.octets(), length)]);
        self.refill();
    }

    fn refill(&mut self) {
        self.kernel.fill(&self.tables).expect("the maps");
    }

    /// Frames with this verdict so far.
    pub fn count(&self, verdict: Verdict) -> u64 {
        self.kernel.counters().expect("COUNTERS")[verdict as usize]
    }

    /// Datagrams in fragments that are remembered.
    pub fn fragments(&self) -> usize {
        self.kernel.fragments().expect("FRAGMENTS")
    }
}

const RING: u32 = 1;

fn tables(slot: u16, row: Row) -> HostTables {
    let mut tables = HostTables {
        config: Config { hash_key: [1, 2], mac: mac(slot), self_slot: u32::from(slot), ..Config::default() },
        ..HostTables::default()
    };
    tables.rings.insert(RING, vec![row]);
    for vip in [VIP, OTHER_VIP] {
        tables.vips.insert(vip.octets());
        for proto in [6, 17] {
            tables.services.insert(service(vip, proto), ServiceValue { ring: RING, flags: 0 });
        }
    }
    for node in [A, B] {
        tables.nodes.insert(node.into(), Peer { addr: [192, 0, 2, 10 + node as u8], mac: mac(node), flags: 0 });
        if node != slot {
            tables.peers.insert(mac(node), node);
        }
    }
    tables
}

fn service(vip: Ipv4Addr, proto: u8) -> ServiceKey {
    let port: u16 = if proto == 6 { 80 } else { 53 };
    ServiceKey { addr: vip.octets(), port: port.to_be_bytes(), proto, pad: 0 }
}

fn mac(slot: u16) -> [u8; 6] {
    [2, 0, 0, 0, 0, slot as u8]
}
