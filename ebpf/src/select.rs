//! Step 4: the flow to a row of the service's ring, the row to a node.
//!
//! Every dispatcher with the same ring computes the same node, so no dispatcher keeps state.

use ebpf_common::{Config, FlowTuple, Row, ServiceValue, Verdict, row_of};

use crate::frame::Mac;
use crate::tables::{Ring as _, Tables};

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
    let ring = tables.ring(service.ring).ok_or(Verdict::BadRing)?;
    let rows = ring.element(0).ok_or(Verdict::BadRing)? as u32;
    let Some(row) = row_of(flow.hash(&config.hash_key), rows) else { return Ok(Choice::EmptyRing) };
    let primary = Row(ring.element(row.wrapping_add(1)).ok_or(Verdict::BadRing)?).primary();
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
