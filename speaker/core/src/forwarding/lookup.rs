//! Where a table sends a flow.

use alloc::string::String;
use alloc::sync::Arc;

use ebpf_common::{FlowTuple, ServiceKey, row_of};

use super::{Service, Table};

impl Table {
    pub fn service_of(&self, flow: &FlowTuple) -> Option<&Service> {
        self.services.get(&ServiceKey { addr: flow.dst, port: flow.dst_port, proto: flow.proto, pad: 0 })
    }
}

impl Service {
    /// The row of a flow and its primary.
    pub fn row_of(&self, flow: FlowTuple, hash_key: &[u64; 2]) -> Option<(u32, Option<&str>)> {
        let row = row_of(self.attributes.hashed(flow).hash(hash_key), self.ring.rows.len() as u32)?;
        Some((row, self.ring.primary(row)))
    }
}

/// What a change of the table means for the flows of a node.
#[derive(Clone, Debug)]
pub struct Change {
    pub own: String,
    pub hash_key: [u64; 2],
    /// `None`: not known.
    pub before: Option<Arc<Table>>,
    pub now: Arc<Table>,
}

impl Change {
    /// The node is the flow's primary before and after it: whoever begins a connection of this tuple meanwhile begins it here.
    pub fn leaves(&self, flow: &FlowTuple) -> bool {
        let is_own = |table: &Arc<Table>| {
            let found = table.service_of(flow).and_then(|service| service.row_of(*flow, &self.hash_key));
            found.is_some_and(|(_, primary)| primary == Some(&self.own))
        };
        self.before.as_ref().is_some_and(is_own) && is_own(&self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forwarding::maglev::{self, Members};

    const KEY: [u64; 2] = [1, 2];

    fn table(nodes: &[&str]) -> Arc<Table> {
        let members = Members::new(nodes.iter().map(|node| (String::from(*node), 1, true)));
        let ring = Arc::new(maglev::fill(&members, &KEY));
        let service = Service {
            attributes: crate::view::ServiceAttributes::default(),
            no_new_flows: false,
            excluded_take: false,
            ring,
            alternates: None,
        };
        let services = [(ServiceKey { addr: [192, 0, 2, 1], port: [0, 80], proto: 6, pad: 0 }, service)].into();
        Arc::new(Table { services, ..Table::default() })
    }

    #[test]
    fn a_change_leaves_the_flows_whose_primary_this_node_was_and_is() {
        let flows: alloc::vec::Vec<FlowTuple> = (0..1000_u16)
            .map(|port| FlowTuple {
                src: [192, 0, 2, 5],
                dst: [192, 0, 2, 1],
                src_port: port.to_be_bytes(),
                dst_port: [0, 80],
                proto: 6,
            })
            .collect();
        let (one, two) = (table(&["a"]), table(&["a", "b"]));
        let left = |own: &str, before: Option<&Arc<Table>>, now: &Arc<Table>| {
            let change = Change { own: own.into(), hash_key: KEY, before: before.cloned(), now: now.clone() };
            flows.iter().filter(|flow| change.leaves(flow)).count()
        };
        assert_eq!(left("a", None, &one), 0, "what was before is not known");
        assert_eq!(left("a", Some(&one), &one), 1000);
        let of_a = left("a", Some(&two), &two);
        assert!((400..600).contains(&of_a), "{of_a}");
        assert_eq!(left("a", Some(&one), &two), of_a, "rows that left");
        assert_eq!(left("a", Some(&two), &one), of_a, "rows that came");
        assert_eq!(left("b", Some(&one), &two), 0, "it has had none");
        let gone = Arc::new(Table::default());
        assert_eq!(left("a", Some(&one), &gone), 0, "the service port is gone");
    }
}
