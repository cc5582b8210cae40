//! Links, addresses, neighbours and routes through rtnetlink. With neighbours.rs, reader.rs and subscription.rs the only file that names
//! netlink types: they change with every release.

mod neighbours;
mod reader;
mod subscription;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteVia};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::warn;

use super::Mac;
use subscription::{Lost, Subscription};

pub use neighbours::Neighbours;
pub use reader::{Reader, UplinkDevice};

/// The interface that carries VIP traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub name: String,
    pub index: u32,
    pub mac: Mac,
    pub carrier: bool,
}

/// What changed on the uplink, and of this host's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Link {
        carrier: bool,
        mac: Mac,
    },
    LinkGone,
    Neighbour {
        ip: Ipv4Addr,
        mac: Mac,
    },
    /// All of this host, on any device but kube-proxy's own ([`IPVS_DEVICE`]).
    Addresses(BTreeSet<Ipv4Addr>),
    /// VIPs are addresses of this host: kube-proxy runs in IPVS mode ([`IPVS_DEVICE`]).
    VipsAreLocal(bool),
    /// The uplink's first primary address.
    UplinkAddress(Option<Ipv4Addr>),
    /// Of default routes over the uplink, in any table.
    Gateways(BTreeSet<Ipv4Addr>),
    /// Changes were lost; everything is read again and follows.
    Reread(Lost),
}

/// Changes that wait; then the kernel's queue fills, and is read again after it has overflown.
const MAX_CHANGES: usize = 256;
/// After a failed attempt to open the sockets or to read.
const RETRY: Duration = Duration::from_secs(1);
/// kube-proxy in IPVS mode gives every VIP to this device of every node: they are not this host's.
const IPVS_DEVICE: &str = "kube-ipvs0";

/// A subscription to changes. Opened before the first look, so that nothing between the two is lost.
pub struct Netlink {
    reader: Reader,
    subscription: Subscription,
}

impl Netlink {
    /// Must be called inside a tokio runtime: the connection is a task of it.
    pub fn open() -> Result<Self> {
        let subscription = Subscription::open().context("netlink subscription")?;
        Ok(Self { reader: Reader::open()?, subscription })
    }

    /// The interface called `name`, or the one that carries `node_ip`.
    pub async fn uplink(&self, name: Option<&str>, node_ip: Ipv4Addr) -> Result<Uplink> {
        let index = match name {
            Some(_) => None,
            None => Some(self.reader.index_of_address(node_ip).await?),
        };
        let links = self.reader.links().await?;
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

    /// Everything as it is now, then every change, until the receiver is gone. A task of the runtime: while the receiver is slow the
    /// kernel queues, and what does not fit there is read again.
    pub fn watch(self, ifindex: u32) -> mpsc::Receiver<Change> {
        let (changes, receiver) = mpsc::channel(MAX_CHANGES);
        let watcher = Watcher { net: self, ifindex, changes, unread: Unread::ALL, known: Known::default() };
        tokio::spawn(watcher.run());
        receiver
    }
}

/// What has to be read from the kernel.
#[derive(Clone, Copy, Debug, Default)]
struct Unread {
    link: bool,
    /// Meanwhile a message reported the uplink without carrier: the receiver is told even if it is back.
    link_lost: bool,
    addresses: bool,
    gateways: bool,
    neighbours: bool,
}

impl Unread {
    const ALL: Self = Self { link: true, link_lost: false, addresses: true, gateways: true, neighbours: true };
}

/// What the receiver has got last.
#[derive(Debug, Default)]
struct Known {
    addresses: Option<BTreeSet<Ipv4Addr>>,
    vips_are_local: Option<bool>,
    uplink: Option<Option<Ipv4Addr>>,
    gateways: Option<BTreeSet<Ipv4Addr>>,
}

struct Watcher {
    net: Netlink,
    ifindex: u32,
    changes: mpsc::Sender<Change>,
    unread: Unread,
    known: Known,
}

/// The receiver is gone.
struct Unwanted;

impl Watcher {
    async fn run(mut self) {
        while self.turn().await.is_ok() {}
    }

    async fn turn(&mut self) -> std::result::Result<(), Unwanted> {
        match self.read().await {
            Ok(changes) => self.send_all(changes).await?,
            Err(error) => {
                warn!(error = format!("{error:#}"), "links and addresses not read; retrying");
                sleep(RETRY).await;
                return self.reopen().await;
            }
        }
        match self.net.subscription.next().await {
            Ok(messages) => {
                let changes = messages.into_iter().filter_map(|message| self.change(message)).collect();
                self.send_all(changes).await
            }
            Err(lost) => {
                self.unread = Unread::ALL;
                self.send_all(vec![Change::Reread(lost)]).await?;
                if lost == Lost::Closed { self.reopen().await } else { Ok(()) }
            }
        }
    }

    async fn send_all(&self, changes: Vec<Change>) -> std::result::Result<(), Unwanted> {
        for change in changes {
            self.changes.send(change).await.map_err(|_| Unwanted)?;
        }
        Ok(())
    }

    async fn reopen(&mut self) -> std::result::Result<(), Unwanted> {
        self.unread = Unread::ALL;
        loop {
            match Netlink::open() {
                Ok(net) => {
                    self.net = net;
                    return Ok(());
                }
                Err(error) if !self.changes.is_closed() => {
                    warn!(error = format!("{error:#}"), "netlink socket not opened; retrying");
                    sleep(RETRY).await;
                }
                Err(_) => return Err(Unwanted),
            }
        }
    }

    /// What a message contains by itself; of links, addresses and routes only that they have to be read: a message may be older than
    /// what was read last.
    fn change(&mut self, message: RouteNetlinkMessage) -> Option<Change> {
        use RouteNetlinkMessage::{DelAddress, DelLink, DelRoute, NewAddress, NewLink, NewNeighbour, NewRoute};
        match message {
            // A bridge reports its ports in a family of its own: a port that leaves it is not gone.
            NewLink(link) if self.is_uplink(&link) => {
                // The kernel takes routes of a link that goes down without a message.
                (self.unread.link, self.unread.gateways) = (true, true);
                self.unread.link_lost |= !carrier(&link);
                None
            }
            DelLink(link) if self.is_uplink(&link) => {
                self.unread.link = true;
                None
            }
            NewAddress(address) | DelAddress(address) if local(&address).is_some() => {
                (self.unread.addresses, self.unread.gateways) = (true, true);
                None
            }
            NewRoute(route) | DelRoute(route) if is_default(&route) => {
                self.unread.gateways = true;
                None
            }
            NewNeighbour(entry) => neighbour(&entry, self.ifindex),
            _ => None,
        }
    }

    fn is_uplink(&self, link: &LinkMessage) -> bool {
        link.header.index == self.ifindex && link.header.interface_family == AddressFamily::Unspec
    }

    async fn read(&mut self) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        let unread = self.unread;
        let links = if unread.link || unread.addresses { self.net.reader.links().await? } else { Vec::new() };
        if unread.link {
            let Some(link) = links.iter().find(|link| link.header.index == self.ifindex) else {
                self.unread = Unread::default();
                return Ok(vec![Change::LinkGone]);
            };
            if let Some(mac) = link_mac(link) {
                let carrier = carrier(link);
                changes.extend((unread.link_lost && carrier).then_some(Change::Link { carrier: false, mac }));
                changes.push(Change::Link { carrier, mac });
            }
        }
        if unread.addresses {
            let addresses = self.net.reader.addresses().await?;
            let (host, uplink) = (host_addresses(&addresses, &links), uplink_address(&addresses, self.ifindex));
            changes.extend(note(&mut self.known.addresses, host).map(Change::Addresses));
            let ipvs = ipvs_device(&links);
            let vips_are_local = addresses.iter().any(|address| Some(address.header.index) == ipvs);
            changes.extend(note(&mut self.known.vips_are_local, vips_are_local).map(Change::VipsAreLocal));
            changes.extend(note(&mut self.known.uplink, uplink).map(Change::UplinkAddress));
        }
        if unread.gateways {
            let gateways = self.net.reader.gateways(self.ifindex).await?;
            changes.extend(note(&mut self.known.gateways, gateways).map(Change::Gateways));
        }
        if unread.neighbours {
            changes.extend(self.net.reader.neighbours(self.ifindex).await?);
        }
        self.unread = Unread::default();
        Ok(changes)
    }
}

/// The value, if it changed.
fn note<T: Clone + PartialEq>(known: &mut Option<T>, value: T) -> Option<T> {
    (known.as_ref() != Some(&value)).then(|| known.insert(value).clone())
}

fn host_addresses(addresses: &[AddressMessage], links: &[LinkMessage]) -> BTreeSet<Ipv4Addr> {
    let ipvs = ipvs_device(links);
    addresses.iter().filter(|address| Some(address.header.index) != ipvs).filter_map(local).collect()
}

fn ipvs_device(links: &[LinkMessage]) -> Option<u32> {
    let ipvs = links.iter().find(|link| link_name(link).as_deref() == Some(IPVS_DEVICE));
    ipvs.map(|link| link.header.index)
}

fn uplink_address(addresses: &[AddressMessage], ifindex: u32) -> Option<Ipv4Addr> {
    let is_primary = |address: &AddressMessage| !address.header.flags.contains(AddressHeaderFlags::Secondary);
    let mut own = addresses.iter().filter(|address| address.header.index == ifindex && is_primary(address));
    own.find_map(local)
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

/// The host's own end, IPv4.
fn local(address: &AddressMessage) -> Option<Ipv4Addr> {
    address.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(local)) => Some(*local),
        _ => None,
    })
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.address_family == AddressFamily::Inet && route.header.destination_prefix_length == 0
}

fn default_gateways(route: &RouteMessage, ifindex: u32) -> Vec<Ipv4Addr> {
    if !is_default(route) {
        return Vec::new();
    }
    let over_uplink = route.attributes.contains(&RouteAttribute::Oif(ifindex));
    let single = over_uplink.then(|| gateway(&route.attributes)).flatten();
    let hops = route.attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    let hops = hops.flatten().filter(|hop| hop.interface_index == ifindex);
    hops.filter_map(|hop| gateway(&hop.attributes)).chain(single).collect()
}

fn gateway(attributes: &[RouteAttribute]) -> Option<Ipv4Addr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)) | RouteAttribute::Via(RouteVia::Inet(gateway)) => {
            Some(*gateway)
        }
        _ => None,
    })
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

#[cfg(test)]
mod tests;
