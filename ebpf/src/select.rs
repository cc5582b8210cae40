//! Step 4: the flow to a row of the service's ring, the row to a node.
//!
//! Every dispatcher with the same ring computes the same node, so no dispatcher keeps state.

use ebpf_common::{Config, FlowTuple, Row, ServiceValue, Verdict, row_of};

use crate::frame::Mac;
use crate::tables::Tables;

pub enum Choice {
    /// The service has no ready endpoint anywhere.
    EmptyRing,
    /// This node.
    Local,
    /// The node with this MAC address.
    Peer(Mac),
}

#[inline(always)]
pub fn node(tables: &impl Tables, config: &Config, service: ServiceValue, flow: &FlowTuple) -> Result<Choice, Verdict> {
    let flow = if service.flags & ServiceValue::CLIENT_AFFINITY != 0 { flow.client_only() } else { *flow };
    let rows = tables.ring(service.ring, 0).ok_or(Verdict::BadRing)?;
    let Some(row) = row_of(flow.hash(&config.hash_key), rows) else { return Ok(Choice::EmptyRing) };
    // Between the two reads the ring may have been swapped for a shorter one. Such a packet is lost and counted; its sender
    // repeats it.
    let primary = Row(tables.ring(service.ring, row.wrapping_add(1)).ok_or(Verdict::BadRing)?).primary();
    let slot = u32::from(primary);
    if slot == config.self_slot {
        return Ok(Choice::Local);
    }
    if slot == 0 {
        return Err(Verdict::BadRing);
    }
    let node = tables.node(slot).ok_or(Verdict::BadRing)?;
    if node.mac == [0; 6] { Err(Verdict::NoNeighbour) } else { Ok(Choice::Peer(node.mac)) }
}
