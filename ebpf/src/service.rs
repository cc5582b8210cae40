//! Step 3: VIP and port to the service that is published there.

use ebpf_common::{FlowTuple, ServiceKey, ServiceValue};

use crate::tables::Tables;

#[inline(always)]
pub fn find(tables: &impl Tables, flow: &FlowTuple) -> Option<ServiceValue> {
    tables.service(&ServiceKey { addr: flow.dst, port: flow.dst_port, proto: flow.proto, pad: 0 })
}
