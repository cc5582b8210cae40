//! What is on the segment beside the cluster: hosts, each in a namespace of its own, whose kernel answers for its addresses; and another lab.

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

    /// Both clusters, all clients and routers are on one segment from now on, until either lab is removed. The other one has another
    /// [`super::LabConfig::first_node`].
    pub fn join(&self, other: &Self) -> Result<()> {
        topology::join(&self.state()?.plan, &other.state()?.plan)
    }

    /// They are not. Nothing happens if they were not.
    pub fn part(&self, other: &Self) -> Result<()> {
        topology::part(&self.state()?.plan, &other.state()?.plan)
    }
}
