//! This machine: its interfaces, and whether ports are free.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use nix::ifaddrs::getifaddrs;
use sheave_endpoint::host::Interface;
use sheave_endpoint::{Endpoint, Member};

use super::finding::{Finding, Obstacle};
use super::packets::Mac;
use super::tls::{self, Served};

/// Of the speaker that serves the endpoint (`sheave-speaker endpoint --local-socket`).
pub const SOCKET: &str = "/run/sheave/endpoint.sock";
/// Defaults of its `--probe-listen`, `--metrics-listen` and `--status-listen`.
const LOOPBACK_PORTS: [(u16, &str); 3] = [(7486, "its probes"), (7487, "its metrics"), (7488, "its status page")];

pub struct Host {
    pub interfaces: Vec<Interface>,
    links: BTreeMap<String, Link>,
}

#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub index: u32,
    pub mac: Mac,
}

impl Host {
    pub fn read() -> Result<Self> {
        let mut found: BTreeMap<String, Vec<Ipv4Net>> = BTreeMap::new();
        let mut links = BTreeMap::new();
        for one in getifaddrs()? {
            let address = one.address.as_ref();
            if let Some(link) = address.and_then(|address| address.as_link_addr()).filter(|link| link.halen() == 6)
                && let (Ok(index), Some(mac)) = (u32::try_from(link.ifindex()), link.addr())
            {
                links.insert(one.interface_name.clone(), Link { index, mac: Mac(mac) });
            }
            let address = address.and_then(|address| Some(address.as_sockaddr_in()?.ip()));
            let mask = one.netmask.as_ref().and_then(|mask| Some(mask.as_sockaddr_in()?.ip()));
            if let (Some(address), Some(mask)) = (address, mask)
                && let Ok(net) = Ipv4Net::with_netmask(address, mask)
            {
                found.entry(one.interface_name).or_default().push(net);
            }
        }
        let interfaces = found.into_iter().map(|(name, addresses)| Interface { name, addresses }).collect();
        Ok(Self { interfaces, links })
    }

    pub fn link(&self, interface: &str) -> Result<Link> {
        // Addresses may have a label: eth0:1.
        let device = interface.split(':').next().unwrap_or(interface);
        self.links
            .get(device)
            .copied()
            .with_context(|| format!("{interface} is no Ethernet interface: it has no MAC address"))
    }
}

/// The speaker's own, and those of the API server, which it needs on this machine.
pub fn ports(endpoint: &Endpoint, member: &Member) -> Vec<Finding> {
    let mut findings = if UnixStream::connect(SOCKET).is_ok() {
        vec![Finding::Fine(format!("a speaker of the endpoint runs here already ({SOCKET}): its ports are its own"))]
    } else {
        own_ports(endpoint)
    };
    let targets: std::collections::BTreeSet<u16> = endpoint.ports.iter().map(|port| port.target).collect();
    findings.extend(targets.into_iter().filter_map(|target| api_port(SocketAddrV4::new(member.address, target))));
    findings
}

fn own_ports(endpoint: &Endpoint) -> Vec<Finding> {
    let group = &endpoint.group;
    let udp = [
        (group.heartbeat_port, "heartbeats", "group.heartbeatPort"),
        (group.report_port, "reports", "group.reportPort"),
    ];
    let udp = udp.into_iter().map(|(port, of, field)| {
        let way_out = format!("; {field} in the file chooses another one");
        judge(port, "UDP", of, &way_out, UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).map(drop))
    });
    let tcp = LOOPBACK_PORTS.into_iter().map(|(port, of)| {
        judge(port, "TCP", of, " on 127.0.0.1", TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map(drop))
    });
    udp.chain(tcp).collect()
}

fn judge(port: u16, protocol: &str, of: &str, more: &str, bound: io::Result<()>) -> Finding {
    match bound {
        Ok(()) => Finding::Fine(format!("{protocol} port {port} is free for the speaker ({of})")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let why = format!("{protocol} port {port}, which the speaker needs for {of}, is another program's{more}");
            Finding::refused(Obstacle::PortTaken, why)
        }
        Err(error) => {
            Finding::refused(Obstacle::PortTaken, format!("{protocol} port {port} for the speaker ({of}): {error}"))
        }
    }
}

/// Free before the API server is there; then it speaks TLS. `None`: nothing to say.
fn api_port(at: SocketAddrV4) -> Option<Finding> {
    match tls::look(at) {
        Served::Certificate(_) => Some(Finding::Fine(format!("{at} speaks TLS: an API server runs here already"))),
        Served::NoTls(error) => {
            let why = format!("something listens on {at} that speaks no TLS ({error}); the API server needs the port");
            Some(Finding::refused(Obstacle::PortTaken, why))
        }
        Served::Nothing(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_another_program_is_named() {
        let taken = UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let bound = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).map(drop);
        let found = judge(port, "UDP", "heartbeats", "; there", bound);
        let expected = format!("UDP port {port}, which the speaker needs for heartbeats, is another program's; there");
        assert_eq!(found, Finding::Refused(Obstacle::PortTaken, expected));
        drop(taken);
        assert!(matches!(judge(port, "UDP", "heartbeats", "", Ok(())), Finding::Fine(_)));
    }

    #[test]
    fn the_loopback_is_no_uplink() {
        let host = Host::read().unwrap();
        assert!(host.interfaces.iter().any(|interface| interface.name == "lo"));
        // Its address has six zeros.
        assert!(host.link("none").is_err());
    }
}
