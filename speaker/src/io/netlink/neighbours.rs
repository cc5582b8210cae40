//! Entries of the kernel's neighbour table.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use netlink_packet_route::neighbour::NeighbourState;
use rtnetlink::Handle;

use crate::io::Mac;

/// Of one device.
pub struct Neighbours {
    handle: Handle,
    ifindex: u32,
}

impl Neighbours {
    /// Must be called inside a tokio runtime: the connection is a task of it, until this value is dropped.
    pub fn open(ifindex: u32) -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("netlink socket")?;
        tokio::spawn(connection);
        Ok(Self { handle, ifindex })
    }

    /// Packets to the address go there from now on. The kernel verifies it when it is used, and forgets it like what it has learned itself.
    pub async fn set(&self, ip: Ipv4Addr, mac: Mac) -> Result<()> {
        let entry = self.handle.neighbours().add(self.ifindex, ip.into()).link_layer_address(&mac.0);
        entry.state(NeighbourState::Stale).replace().execute().await.with_context(|| format!("neighbour entry of {ip}"))
    }
}
