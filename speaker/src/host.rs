//! What this host's network is, passed to the threads as it changes: the uplink's link and addresses, the node's address among them,
//! default gateways.
//!
//! The node's address comes from two sides: the kernel knows first which addresses the host has, the API server reports later which
//! of them is the node's.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tracing::{info, warn};

use crate::backend::sysctl::Sysctls;
use crate::dataplane::inbox::{HostAddresses, Message, Outbox};
use crate::driver::{Command, Commands};
use crate::io::netlink::Change;
use crate::metrics::Metrics;

pub struct Host {
    addresses: NodeAddress,
    gateways: BTreeSet<Ipv4Addr>,
    commands: Commands,
    sync: Outbox,
    /// The node's address.
    present: Option<Ipv4Addr>,
    sysctls: Sysctls,
    metrics: Arc<Metrics>,
}

impl Host {
    /// `start`: the node's address as this process was started with.
    pub fn new(start: Ipv4Addr, commands: Commands, sync: Outbox, sysctls: Sysctls, metrics: Arc<Metrics>) -> Self {
        let addresses = NodeAddress { start, view: None, host: BTreeSet::from([start]), uplink: None };
        Self { addresses, gateways: BTreeSet::new(), commands, sync, present: Some(start), sysctls, metrics }
    }

    pub fn on_change(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Link { carrier, mac } => {
                // The MAC first: what a returning link makes announce shall name it.
                self.commands.send(Command::OwnMac(mac))?;
                self.commands.send(Command::Carrier(carrier))?;
                self.notify_dataplane(Message::OwnMac(mac))
            }
            // The packet path is bound to the device: a new one of the same name needs a new link. Begin anew.
            Change::LinkGone => bail!("the uplink is gone"),
            Change::Neighbour { ip, mac } => self.notify_dataplane(Message::Neighbour { ip, mac }),
            Change::Addresses(host) => {
                self.addresses.host = host;
                self.notify_addresses()?;
                self.notify_present()
            }
            // It stays hidden when kube-proxy's mode changes: until uninstall, like the other settings.
            Change::VipsAreLocal(false) => Ok(()),
            Change::VipsAreLocal(true) => {
                match self.sysctls.hide_local_vips() {
                    Ok(changed) if changed.is_empty() => {}
                    Ok(changed) => {
                        info!(?changed, "kube-proxy in IPVS mode: the kernel keeps silent about VIPs in ARP")
                    }
                    Err(error) => {
                        warn!(reason = "arp_of_local_vips", %error, "the kernel may answer ARP for VIPs of other nodes");
                    }
                }
                Ok(())
            }
            Change::UplinkAddress(uplink) => {
                self.addresses.uplink = uplink;
                self.notify_present()
            }
            Change::Gateways(gateways) => {
                self.gateways = gateways;
                self.notify_addresses()
            }
            Change::Reread(lost) => {
                warn!(cause = lost.label(), "netlink changes lost; links and addresses read again");
                self.metrics.netlink_rereads.with_label_values(&[lost.label()]).inc();
                Ok(())
            }
        }
    }

    /// The view names this node's address; `None`: the node is not in the view.
    pub fn on_view(&mut self, own: Option<Ipv4Addr>) -> Result<()> {
        // A node that leaves the view keeps its address.
        self.addresses.view = own.or(self.addresses.view);
        self.notify_present()
    }

    fn notify_present(&mut self) -> Result<()> {
        let present = self.addresses.present();
        if std::mem::replace(&mut self.present, present) != present {
            info!(address = ?present, "address of this node changed");
            self.commands.send(Command::OwnAddress(present))?;
        }
        Ok(())
    }

    fn notify_addresses(&self) -> Result<()> {
        let (addresses, gateways) = (self.addresses.host.clone(), self.gateways.clone());
        self.notify_dataplane(Message::HostAddresses(HostAddresses { addresses, gateways }))
    }

    fn notify_dataplane(&self, message: Message) -> Result<()> {
        self.sync.send(message).context("the dataplane thread has ended")
    }
}

/// Which address is the node's now.
#[derive(Debug)]
struct NodeAddress {
    start: Ipv4Addr,
    /// As the API server reported it last.
    view: Option<Ipv4Addr>,
    host: BTreeSet<Ipv4Addr>,
    uplink: Option<Ipv4Addr>,
}

impl NodeAddress {
    /// The view's address if the host has it; else the one of the start, if the host has that; else, until the view
    /// follows, the first of the uplink.
    fn present(&self) -> Option<Ipv4Addr> {
        let candidates = [self.view, Some(self.start)];
        candidates.into_iter().flatten().find(|address| self.host.contains(address)).or(self.uplink)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const NEW: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

    fn node_address(view: Option<Ipv4Addr>, host: &[Ipv4Addr]) -> NodeAddress {
        let uplink = host.iter().copied().find(|address| *address != Ipv4Addr::LOCALHOST);
        NodeAddress { start: OLD, view, host: host.iter().copied().collect(), uplink }
    }

    #[test]
    fn the_node_has_the_address_that_the_view_names_and_the_host_has() {
        let second = Ipv4Addr::new(192, 0, 2, 2);
        assert_eq!(node_address(Some(second), &[OLD, second]).present(), Some(second));
        assert_eq!(node_address(None, &[second, OLD]).present(), Some(OLD));
    }

    /// DHCP: the kernel has the new address, kubelet and API server still report the old one; then they follow.
    #[test]
    fn the_kernel_is_before_the_view() {
        assert_eq!(node_address(Some(OLD), &[Ipv4Addr::LOCALHOST, NEW]).present(), Some(NEW));
        assert_eq!(node_address(Some(OLD), &[Ipv4Addr::LOCALHOST]).present(), None);
        assert_eq!(node_address(Some(NEW), &[Ipv4Addr::LOCALHOST, NEW]).present(), Some(NEW));
    }
}
