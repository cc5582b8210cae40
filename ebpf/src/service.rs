//! Step 3: VIP and port to the service that is published there.

use ebpf_common::{FlowWords, ServiceValue};

use crate::parse::Content;
use crate::second_chance::Origin;
use crate::tables::Tables;

#[inline(always)]
pub fn find(tables: &impl Tables, flow: FlowWords) -> Option<ServiceValue> {
    tables.service(flow)
}

/// Without a ready pod a service has open flows only. (Whether a datagram begins one conntrack knows, where its row leads.)
#[inline(always)]
pub fn takes(service: ServiceValue, content: &Content) -> bool {
    service.flags & ServiceValue::NO_NEW_FLOWS == 0 || !content.is_syn()
}

/// A SYN that another node sent here in search of its client's node ([`crate::second_chance::seeks_client`]). This node is only asked: by
/// the other one's view the service has pods.
#[inline(always)]
pub fn is_asked(service: ServiceValue, content: &Content, origin: Origin) -> bool {
    matches!(origin, Origin::Search { .. }) && crate::second_chance::seeks_client(service, content)
}
