//! A node's uplink gets another MAC address, or another IP address, while everything runs.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use super::fault::uplink_mac;
use super::plan::{self, Plan, UPLINK};
use super::state::State;
use super::{kubelet, netns, topology};

/// As when a virtual machine's card or the active port of a bond is replaced: the kernel announces nothing (arp_notify is 0).
pub fn change_mac(plan: &Plan, node: &str) -> Result<()> {
    let name = plan.netns(node);
    let now = uplink_mac(&name)?;
    netns::ip(&name, &format!("link set dev {UPLINK} address {}\n", other_mac(&now)?))
}

/// As a DHCP client does with another lease: the old address goes, and all routes with it, then the new one comes. The routes to the
/// node's pods follow, as a CNI's do, and kubelet starts anew with the new address.
pub fn change_address(state: &mut State, node: &str) -> Result<()> {
    let plan = state.plan.clone();
    let old = state.node_address(node)?;
    let new = other_address(plan.node_number(node)?, old);
    let record = state.nodes.get_mut(node).with_context(|| format!("node {node} has no power"))?;
    record.address = Some(new);
    topology::set_address(state, node, old, new)?;
    kubelet::set_address(&plan, node, new)?;
    kubelet::restart(state, node)
}

/// There and back: one bit of a locally administered address.
fn other_mac(mac: &str) -> Result<String> {
    let (first, rest) = mac.split_once(':').with_context(|| format!("MAC address {mac:?}"))?;
    let first = u8::from_str_radix(first, 16).with_context(|| format!("MAC address {mac:?}"))?;
    Ok(format!("{:02x}:{rest}", first ^ MAC_BIT))
}

/// The address of the plan, or one that no other part of the segment has.
fn other_address(number: u8, now: Ipv4Addr) -> Ipv4Addr {
    let own = plan::node_address(number);
    if now == own { plan::address(LEASES + number) } else { own }
}

/// In the first byte; 0x02 is "locally administered".
const MAC_BIT: u8 = 0x04;
/// The last number of the first address that DHCP would hand out, less one.
const LEASES: u8 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_change_there_and_back() {
        let mac = other_mac("02:00:c0:a8:4d:0b").unwrap();
        assert_eq!(mac, "06:00:c0:a8:4d:0b");
        assert_eq!(other_mac(&mac).unwrap(), "02:00:c0:a8:4d:0b");
        let leased = other_address(1, plan::node_address(1));
        assert_eq!(leased, plan::address(101));
        assert_eq!(other_address(1, leased), plan::node_address(1));
    }
}
