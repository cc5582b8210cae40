//! Addresses that change under a running packet path: this node's and those of the others.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use speaker_core::backend::Senders;
use speaker_core::forwarding::Table;
use speaker_core::view::View;
use speaker_core::view::endpoints::Reason;
use tracing::info;

use super::State;
use crate::backend::arp_guard::Signed;
use crate::io::Mac;

impl State {
    /// Before the view replaces the previous one. The own row goes by the view's address, as it does on the other nodes.
    pub(super) fn follow_addresses(&mut self, view: &View) {
        if let Some(former) = &self.view {
            carry_macs(&mut self.macs, former, view);
        }
        let own = view.nodes().get(&self.sync.node).map(|node| node.address);
        if let Some(own) = own.filter(|own| *own != self.sync.node_ip) {
            info!(former = %self.sync.node_ip, now = %own, "view has another address for this node");
            self.sync.node_ip = own;
        }
    }

    /// A node states where it is reached, under its signature, or its speaker has fallen silent.
    pub(super) fn set_signed_mac(&mut self, ip: Ipv4Addr, mac: Option<Mac>) {
        match mac {
            None => self.dirty |= self.signed_macs.remove(&ip).is_some(),
            // The election states nodes of the view only; there are at most as many.
            Some(mac) => {
                self.dirty |= self.signed_macs.insert(ip, mac) != Some(mac);
                self.dirty |= self.macs.insert(ip, mac) != Some(mac);
            }
        }
        self.guard_arp();
    }

    /// Of nodes that are in the cluster: the address of another one may be any host's.
    pub(super) fn guard_arp(&self) {
        let (Some(guard), Some(view)) = (&self.arp_guard, &self.view) else { return };
        let others = view.members().map(|(_, node)| node.address).filter(|address| *address != self.sync.node_ip);
        let others = others.filter_map(|address| Some((address, *self.signed_macs.get(&address)?))).collect();
        guard.set(Signed { own: self.sync.mac, others });
    }

    /// The packet path compares each frame with this address and answers ARP with it: the next write of the maps has it, which waits for
    /// no rules.
    pub(super) fn set_own_mac(&mut self, mac: Mac) {
        self.dirty |= std::mem::replace(&mut self.sync.mac, mac) != mac;
        self.guard_arp();
    }

    /// Whose adverts pass.
    pub(super) fn senders(&self, view: &View) -> Option<Senders> {
        let addresses = view.senders()?;
        Some(Senders { addresses, macs: self.signed_macs.values().map(|mac| mac.0).collect() })
    }

    /// VIPs that this host must not serve, whatever the API server has: they are its own addresses, its host speaker's, or its gateways.
    pub(super) fn bar_addresses(&self, table: &mut Table) {
        let reason = |vip: &Ipv4Addr| match () {
            () if self.host.addresses.contains(vip) => Some(Reason::AddressOfHost),
            () if self.sync.attachment.of_first().contains(vip) => Some(Reason::AddressOfHost),
            () if self.host.gateways.contains(vip) => Some(Reason::AddressOfGateway),
            () => None,
        };
        let barred: Vec<(Ipv4Addr, Reason)> = table.vips.iter().filter_map(|vip| Some((*vip, reason(vip)?))).collect();
        for (vip, reason) in barred {
            table.bar(vip, reason);
        }
    }
}

/// A node that has another IP address is the same host on the same device until ARP shows another: its rows need not wait for
/// ARP.
fn carry_macs(macs: &mut BTreeMap<Ipv4Addr, Mac>, former: &View, view: &View) {
    for (name, node) in view.nodes() {
        let Some(before) = former.nodes().get(name).filter(|before| before.address != node.address) else { continue };
        if let Some(mac) = macs.get(&before.address).copied() {
            macs.entry(node.address).or_insert(mac);
        }
        let in_use = view.nodes().values().any(|other| other.address == before.address);
        if !in_use {
            macs.remove(&before.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use speaker_core::view::{Event, Node, Object};

    use super::*;

    fn view(nodes: &[(&str, u8)]) -> View {
        let mut view = View::default();
        for (name, last) in nodes {
            let node = Node::at(address(*last));
            view.handle(Event::Apply(Object::Node((*name).into(), node)));
        }
        view
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, last)
    }

    fn mac(last: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, last])
    }

    #[test]
    fn a_node_keeps_its_mac_with_another_address() {
        let mut macs = BTreeMap::from([(address(1), mac(1)), (address(2), mac(2))]);
        carry_macs(&mut macs, &view(&[("a", 1), ("b", 2)]), &view(&[("a", 77), ("b", 2)]));
        assert_eq!(macs, BTreeMap::from([(address(77), mac(1)), (address(2), mac(2))]));
    }

    /// An ARP frame of the new address counts more.
    #[test]
    fn an_address_that_is_known_already_stays() {
        let mut macs = BTreeMap::from([(address(1), mac(1)), (address(77), mac(7))]);
        carry_macs(&mut macs, &view(&[("a", 1)]), &view(&[("a", 77)]));
        assert_eq!(macs, BTreeMap::from([(address(77), mac(7))]));
    }

    /// Two nodes that swap their addresses: what is known stays until ARP shows the swap.
    #[test]
    fn an_address_that_another_node_has_now_stays() {
        let mut macs = BTreeMap::from([(address(1), mac(1)), (address(2), mac(2))]);
        carry_macs(&mut macs, &view(&[("a", 1), ("b", 2)]), &view(&[("a", 2), ("b", 1)]));
        assert_eq!(macs.len(), 2);
    }
}
