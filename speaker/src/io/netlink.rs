//! Links, addresses and neighbours through rtnetlink. The only file that names netlink types: they change with every release.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, bail};
use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup};

use super::Mac;

/// The interface that carries VIP traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub name: String,
    pub index: u32,
    pub mac: Mac,
    pub carrier: bool,
}

/// What changed on the uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Link { carrier: bool, mac: Mac },
    LinkGone,
    Neighbour { ip: Ipv4Addr, mac: Mac },
}

/// A subscription to changes. Opened before the first look, so that nothing between the two is lost.
pub struct Netlink {
    handle: Handle,
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
}

impl Netlink {
    /// Must be called inside a tokio runtime: the connection is a task of it.
    pub fn open() -> Result<Self> {
        let (connection, handle, messages) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link, MulticastGroup::Neigh])
                .context("netlink socket")?;
        tokio::spawn(connection);
        Ok(Self { handle, messages })
    }

    /// The interface called `name`, or the one that carries `node_ip`.
    pub async fn uplink(&self, name: Option<&str>, node_ip: Ipv4Addr) -> Result<Uplink> {
        let index = match name {
            Some(_) => None,
            None => Some(self.index_of_address(node_ip).await?),
        };
        let links: Vec<LinkMessage> = self.handle.link().get().execute().try_collect().await.context("list links")?;
        let names = || links.iter().filter_map(link_name).collect::<Vec<_>>().join(", ");
        let found = links.iter().find(|link| match (name, index) {
            (Some(name), _) => link_name(link).as_deref() == Some(name),
            (None, index) => Some(link.header.index) == index,
        });
        let Some(link) = found else {
            bail!("interface {:?} does not exist; there are: {}", name.unwrap_or_default(), names());
        };
        let name = link_name(link).context("the uplink has no name")?;
        let Some(mac) = link_mac(link) else { bail!("interface {name} has no Ethernet address") };
        Ok(Uplink { name, index: link.header.index, mac, carrier: carrier(link) })
    }

    /// What the kernel knows of its neighbours on the uplink now.
    pub async fn neighbours(&self, ifindex: u32) -> Result<Vec<Change>> {
        let entries: Vec<NeighbourMessage> = self
            .handle
            .neighbours()
            .get()
            .set_address_family(AddressFamily::Inet)
            .execute()
            .try_collect()
            .await
            .context("list neighbours")?;
        Ok(entries.iter().filter_map(|entry| neighbour(entry, ifindex)).collect())
    }

    /// The next change on the uplink; `None` when the socket is gone.
    pub async fn next(&mut self, ifindex: u32) -> Option<Change> {
        loop {
            let (message, _) = self.messages.next().await?;
            let NetlinkPayload::InnerMessage(message) = message.payload else { continue };
            let change = match message {
                RouteNetlinkMessage::NewLink(link) if link.header.index == ifindex => {
                    link_mac(&link).map(|mac| Change::Link { carrier: carrier(&link), mac })
                }
                RouteNetlinkMessage::DelLink(link) if link.header.index == ifindex => Some(Change::LinkGone),
                RouteNetlinkMessage::NewNeighbour(entry) => neighbour(&entry, ifindex),
                _ => None,
            };
            if change.is_some() {
                return change;
            }
        }
    }

    async fn index_of_address(&self, ip: Ipv4Addr) -> Result<u32> {
        let mut addresses = self.handle.address().get().execute();
        while let Some(address) = addresses.try_next().await.context("list addresses")? {
            let ours = address
                .attributes
                .iter()
                .any(|attribute| matches!(attribute, AddressAttribute::Local(IpAddr::V4(local)) if *local == ip));
            if ours {
                return Ok(address.header.index);
            }
        }
        bail!(
            "no interface carries the node address {ip} (from NODE_IP or --node-ip); name the uplink with --interface"
        )
    }
}

fn link_name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

fn link_mac(link: &LinkMessage) -> Option<Mac> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac),
        _ => None,
    })
}

fn carrier(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::LowerUp) && link.header.flags.contains(LinkFlags::Up)
}

fn neighbour(entry: &NeighbourMessage, ifindex: u32) -> Option<Change> {
    let usable = !matches!(
        entry.header.state,
        NeighbourState::Failed | NeighbourState::Incomplete | NeighbourState::Noarp | NeighbourState::None
    );
    if entry.header.ifindex != ifindex || !usable {
        return None;
    }
    let ip = entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(*ip),
        _ => None,
    })?;
    let mac = entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac),
        _ => None,
    })?;
    Some(Change::Neighbour { ip, mac })
}
