//! Hosts of the segment that are no part of the cluster: each in a namespace of its own, whose kernel answers for its addresses.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::{Lab, topology};

impl Lab {
    /// A host with this address is there from now on. Returns its namespace.
    pub fn plug_in(&self, host: &str, address: Ipv4Addr) -> Result<String> {
        let plan = self.state()?.plan;
        topology::connect(&plan, host, address)?;
        Ok(plan.netns(host))
    }

    /// It is gone. Nothing happens if it is not there.
    pub fn unplug(&self, host: &str) -> Result<()> {
        topology::remove_node(&self.state()?.plan, host)
    }
}
