//! Step 4: the flow to a row of the service's ring, the row to a node.
//!
//! Every dispatcher with the same ring computes the same node, so no dispatcher keeps state.

use ebpf_common::{Config, FlowWords, Row, ServiceValue, Verdict, row_of};

use crate::frame::Mac;
use crate::tables::{Ring as _, Tables};

/// The flow's row; `None` if the ring is empty: the service has no endpoint anywhere.
#[inline(always)]
pub fn row(
    tables: &impl Tables,
    config: &Config,
    service: ServiceValue,
    flow: FlowWords,
) -> Result<Option<Row>, Verdict> {
    let flow = if service.flags & ServiceValue::CLIENT_AFFINITY != 0 { flow.client_only() } else { flow };
    let ring = tables.ring(service.ring).ok_or(Verdict::BadRing)?;
    let head = ring.head().ok_or(Verdict::BadRing)?;
    let Some(row) = row_of(flow.hash(&config.hash_key), head.rows()) else { return Ok(None) };
    Ok(Some(ring.row(head, row).ok_or(Verdict::BadRing)?))
}

/// Where to send frames for the row's primary.
#[inline(always)]
pub fn primary(tables: &impl Tables, row: Row) -> Result<Mac, Verdict> {
    if row.primary() == 0 {
        return Err(Verdict::BadRing);
    }
    node(tables, u32::from(row.primary()))
}

#[inline(always)]
pub fn node(tables: &impl Tables, slot: u32) -> Result<Mac, Verdict> {
    let node = tables.node(slot).ok_or(Verdict::BadRing)?;
    if node.mac == [0; 6] { Err(Verdict::NoNeighbour) } else { Ok(node.mac) }
}
