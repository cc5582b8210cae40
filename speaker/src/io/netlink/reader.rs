//! What rtnetlink lists now: links, addresses, neighbours, default routes.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use rtnetlink::{Handle, RouteMessageBuilder};

use super::{Change, default_gateways, link_mac, link_name, local, neighbour};
use crate::io::Mac;

#[derive(Clone)]
pub struct Reader(Handle);

/// A host's devices, as far as they tell what runs on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    pub names: BTreeSet<String>,
    /// `None`: there is no device of the name that was asked for.
    pub uplink: Option<UplinkDevice>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkDevice {
    pub name: String,
    pub index: u32,
    pub carrier: bool,
    pub mac: Option<Mac>,
    pub mtu: Option<u32>,
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Network and prefix length of each address.
    pub subnets: BTreeSet<(Ipv4Addr, u8)>,
    /// Of default routes over it, in any table.
    pub gateways: BTreeSet<Ipv4Addr>,
}

impl Reader {
    /// Must be called inside a tokio runtime: the connection is a task of it, until the last reader is dropped.
    pub fn open() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("netlink socket")?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// All devices, and the one called `name`, or else the one that carries `node_ip`.
    pub async fn devices(&self, name: Option<&str>, node_ip: Ipv4Addr) -> Result<Devices> {
        let (links, addresses) = (self.links().await?, self.addresses().await?);
        let carrier = addresses.iter().find(|address| local(address) == Some(node_ip)).map(|found| found.header.index);
        let link = links.iter().find(|link| match name {
            Some(name) => link_name(link).as_deref() == Some(name),
            None => Some(link.header.index) == carrier,
        });
        let names = links.iter().filter_map(link_name).collect();
        let Some(link) = link else { return Ok(Devices { names, uplink: None }) };
        let index = link.header.index;
        let own = || addresses.iter().filter(|address| address.header.index == index);
        let uplink = UplinkDevice {
            name: link_name(link).context("the uplink has no name")?,
            index,
            carrier: super::carrier(link),
            mac: link_mac(link),
            mtu: mtu(link),
            addresses: own().filter_map(local).collect(),
            subnets: own().filter_map(|address| Some(subnet(local(address)?, address.header.prefix_len))).collect(),
            gateways: self.gateways(index).await?,
        };
        Ok(Devices { names, uplink: Some(uplink) })
    }

    pub(super) async fn index_of_address(&self, ip: Ipv4Addr) -> Result<u32> {
        let addresses = self.addresses().await?;
        let found = addresses.iter().find(|address| local(address) == Some(ip));
        let Some(address) = found else {
            bail!(
                "no interface carries the node address {ip} (from NODE_IP or --node-ip); name the uplink with --interface"
            )
        };
        Ok(address.header.index)
    }

    pub(super) async fn links(&self) -> Result<Vec<LinkMessage>> {
        self.0.link().get().execute().try_collect().await.context("list links")
    }

    pub(super) async fn addresses(&self) -> Result<Vec<AddressMessage>> {
        let all: Vec<AddressMessage> =
            self.0.address().get().execute().try_collect().await.context("list addresses")?;
        Ok(all.into_iter().filter(|address| local(address).is_some()).collect())
    }

    pub(super) async fn neighbours(&self, ifindex: u32) -> Result<Vec<Change>> {
        let request = self.0.neighbours().get().set_address_family(AddressFamily::Inet);
        let entries: Vec<NeighbourMessage> = request.execute().try_collect().await.context("list neighbours")?;
        Ok(entries.iter().filter_map(|entry| neighbour(entry, ifindex)).collect())
    }

    pub(super) async fn gateways(&self, ifindex: u32) -> Result<BTreeSet<Ipv4Addr>> {
        let mut routes = self.0.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
        let mut gateways = BTreeSet::new();
        while let Some(route) = routes.try_next().await.context("list routes")? {
            gateways.extend(default_gateways(&route, ifindex));
        }
        Ok(gateways)
    }
}

fn mtu(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

fn subnet(address: Ipv4Addr, length: u8) -> (Ipv4Addr, u8) {
    let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
    ((u32::from(address) & mask).into(), length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::tests::{in_namespace, ip};

    #[test]
    fn a_subnet_is_an_address_without_its_host_bits() {
        let address = Ipv4Addr::new(192, 0, 2, 77);
        assert_eq!(subnet(address, 24), (Ipv4Addr::new(192, 0, 2, 0), 24));
        assert_eq!(subnet(address, 26), (Ipv4Addr::new(192, 0, 2, 64), 26));
        assert_eq!(subnet(address, 32), (address, 32));
        assert_eq!(subnet(address, 0), (Ipv4Addr::UNSPECIFIED, 0));
    }

    #[test]
    fn the_uplink_is_read_with_subnets_and_gateways() {
        in_namespace(|| {
            ip("link set node mtu 1400\naddr add 198.51.100.9/28 dev node\nroute add default via 192.0.2.3\n\
                link add kube-ipvs0 type veth peer name other\n");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let reader = Reader::open().unwrap();
                let found = reader.devices(None, Ipv4Addr::new(192, 0, 2, 1)).await.unwrap();
                assert!(found.names.contains("kube-ipvs0") && found.names.contains("lo"), "{found:?}");
                let uplink = found.uplink.expect("it carries the node's address");
                assert_eq!((uplink.name.as_str(), uplink.mtu, uplink.carrier), ("node", Some(1400), true));
                assert_eq!(Ok(uplink.index), nix::net::if_::if_nametoindex("node"));
                assert_eq!(uplink.mac.map(|mac| mac.to_string()).as_deref(), Some("02:00:00:00:00:01"));
                let subnets = [(Ipv4Addr::new(192, 0, 2, 0), 24), (Ipv4Addr::new(198, 51, 100, 0), 28)];
                let addresses = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 9)];
                assert_eq!(uplink.addresses, BTreeSet::from(addresses));
                assert_eq!(uplink.subnets, BTreeSet::from(subnets));
                assert_eq!(uplink.gateways, BTreeSet::from([Ipv4Addr::new(192, 0, 2, 3)]));
                let far = reader.devices(Some("far"), Ipv4Addr::new(192, 0, 2, 1)).await.unwrap();
                assert_eq!(far.uplink.map(|uplink| uplink.name).as_deref(), Some("far"));
                assert_eq!(reader.devices(Some("none"), Ipv4Addr::LOCALHOST).await.unwrap().uplink, None);
            });
        });
    }
}
