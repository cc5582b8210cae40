//! Which member this node is, and whether its network can carry the addresses.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::refusal::{Refusal, Refusals};
use crate::{Endpoint, Member};

/// An interface of this host, with its addresses and their prefix lengths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub addresses: Vec<Ipv4Net>,
}

/// This node's place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    pub member: Member,
    pub interface: String,
}

impl Endpoint {
    pub fn seat(&self, host: &[Interface]) -> Result<Seat, Refusals> {
        let has =
            |interface: &Interface, address: Ipv4Addr| interface.addresses.iter().any(|net| net.addr() == address);
        let found = self
            .members
            .iter()
            .find_map(|member| Some((member, host.iter().find(|interface| has(interface, member.address))?)));
        let Some((member, carries)) = found else {
            let members: Vec<String> = self.members.iter().map(|member| member.address.to_string()).collect();
            let own: Vec<String> =
                host.iter().flat_map(|one| &one.addresses).map(|net| net.addr().to_string()).collect();
            let allowed = format!("one of them is an address of this host, which has {}", own.join(", "));
            return Err(Refusal::new("members", members.join(", "), allowed).into());
        };
        let mut refusals = Refusals::default();
        if !member.speaker {
            let value = format!("speaker: false of {:?}, which is this host", member.name);
            refusals.add(Refusal::new("members", value, "a member that runs a speaker"));
        }
        if let Some(name) = self.interface.as_ref().filter(|name| **name != carries.name) {
            let allowed = format!("{} has the member's address {}", carries.name, member.address);
            refusals.add(Refusal::new("interface", format!("{name:?}"), allowed));
        }
        for vip in &self.addresses {
            if let Some(other) = host.iter().find(|interface| has(interface, *vip)) {
                let allowed = format!("{} of this host has it; an address that is on no interface", other.name);
                refusals.add(Refusal::new("addresses", vip.to_string(), allowed));
            } else if let Err(allowed) = in_subnet(*vip, carries) {
                refusals.add(Refusal::new("addresses", vip.to_string(), allowed));
            }
        }
        refusals.or(Seat { member: member.clone(), interface: carries.name.clone() })
    }
}

/// A neighbour must be able to ask for it.
fn in_subnet(vip: Ipv4Addr, uplink: &Interface) -> Result<(), String> {
    let subnets: Vec<Ipv4Net> = uplink.addresses.iter().map(Ipv4Net::trunc).collect();
    let shown: Vec<String> = subnets.iter().map(Ipv4Net::to_string).collect();
    let Some(subnet) = subnets.iter().find(|subnet| subnet.contains(&vip)) else {
        return Err(format!("an address in a subnet of {}: {}", uplink.name, shown.join(", ")));
    };
    // A subnet of two addresses has neither (RFC 3021).
    let ends = [subnet.network(), subnet.broadcast()];
    if subnet.prefix_len() < 31 && ends.contains(&vip) {
        return Err(format!("it is the network's own or broadcast address of {subnet}"));
    }
    Ok(())
}
