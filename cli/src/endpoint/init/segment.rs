//! The segment: four seconds of listening, while the addresses and the members are asked for by ARP; and what follows from it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use sheave_endpoint::Endpoint;
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::finding::{Finding, Obstacle};
use super::host::Link;
use super::packets::{self, Heard, VRRP_GROUP};

/// A backup would take over after three intervals of a second and its skew (RFC 9568 section 6.1): a master is heard within it.
pub const LISTEN: Duration = Duration::from_secs(4);
/// Between two requests for the same address (RFC 5227 section 1.1: PROBE_MAX is 2 s).
const EVERY: Duration = Duration::from_secs(1);
/// Kinds of what is heard: an attacker that sends more only fills it.
const MOST: usize = 4096;
/// Longer frames are cut: what is looked at is in the first bytes.
const FRAME: usize = 1600;

/// What was heard, each thing once.
pub fn listen(link: Link, endpoint: &Endpoint, own: Ipv4Addr) -> io::Result<Vec<Heard>> {
    let group = &endpoint.group;
    // The interface takes frames to the groups for as long as these are open.
    let _members = [join(link, VRRP_GROUP)?, join(link, group.address)?];
    let socket = open(link, group.heartbeat_port)?;
    let vips = endpoint.addresses.iter().map(|vip| (Ipv4Addr::UNSPECIFIED, *vip));
    let members = endpoint.members.iter().map(|member| (own, member.address)).filter(|(own, member)| own != member);
    let requests: Vec<_> =
        vips.chain(members).map(|(sender, target)| packets::request(link.mac, sender, target)).collect();
    let began = Instant::now();
    let mut next = began;
    let mut heard = Vec::new();
    while began.elapsed() < LISTEN {
        if Instant::now() >= next {
            for frame in &requests {
                socket.send_to(frame, &link_address(link)?)?;
            }
            next += EVERY;
        }
        let until = next.min(began + LISTEN).saturating_duration_since(Instant::now());
        // Zero would wait for ever.
        socket.set_read_timeout(Some(until.max(Duration::from_millis(1))))?;
        let found = receive(&socket)?.and_then(|frame| packets::parse(&frame, link.mac, group.heartbeat_port));
        if let Some(found) =
            found.filter(|found| matters(endpoint, found) && heard.len() < MOST && !heard.contains(found))
        {
            heard.push(found);
        }
    }
    Ok(heard)
}

/// Most of a segment's ARP is about others.
fn matters(endpoint: &Endpoint, heard: &Heard) -> bool {
    let is_member = |address: &Ipv4Addr| endpoint.members.iter().any(|member| member.address == *address);
    match heard {
        Heard::Has { address, .. } => endpoint.addresses.contains(address) || is_member(address),
        Heard::Heartbeat { from } => is_member(from),
        Heard::Advert { .. } => true,
    }
}

/// Whose the addresses are.
pub fn judge(endpoint: &Endpoint, heard: &[Heard]) -> Vec<Finding> {
    let mut owners: BTreeMap<Ipv4Addr, BTreeSet<packets::Mac>> = BTreeMap::new();
    let mut speaking = BTreeSet::new();
    let mut findings = Vec::new();
    let is_vip = |address: &Ipv4Addr| endpoint.addresses.contains(address);
    for one in heard {
        match one {
            Heard::Has { address, mac } => drop(owners.entry(*address).or_default().insert(*mac)),
            Heard::Heartbeat { from } => drop(speaking.insert(*from)),
            Heard::Advert { router, id, version, addresses } => {
                let who = format!("{router} (VRRP version {version}, virtual router {id})");
                let (ours, others): (Vec<&Ipv4Addr>, Vec<&Ipv4Addr>) =
                    addresses.iter().partition(|address| is_vip(address));
                for vip in ours {
                    let why =
                        format!("{who} advertises {vip}: stop keepalived, or what it is, on all its routers first");
                    findings.push(Finding::refused(Obstacle::VipAdvertised, why));
                }
                if !others.is_empty() {
                    let others: Vec<String> = others.iter().map(ToString::to_string).collect();
                    findings.push(Finding::Note(format!("{who} advertises {}: other addresses", others.join(", "))));
                }
            }
        }
    }
    let member_at = |mac: packets::Mac| {
        endpoint.members.iter().find(|member| owners.get(&member.address).is_some_and(|macs| macs.contains(&mac)))
    };
    for vip in &endpoint.addresses {
        let answers = owners.get(vip).into_iter().flatten();
        let mut answers = answers.map(|mac| answer(*vip, *mac, member_at(*mac), &speaking)).peekable();
        if answers.peek().is_none() {
            findings.push(Finding::Fine(format!("{vip}: no host answers for it")));
        }
        findings.extend(answers);
    }
    findings
}

/// A member that serves the endpoint already answers rightly.
fn answer(
    vip: Ipv4Addr,
    mac: packets::Mac,
    member: Option<&sheave_endpoint::Member>,
    speaking: &BTreeSet<Ipv4Addr>,
) -> Finding {
    match member {
        Some(member) if speaking.contains(&member.address) => {
            Finding::Fine(format!("{vip}: served by member {}, whose speaker is heard", member.name))
        }
        Some(member) => {
            let why = format!(
                "{vip}: member {} ({mac}) answers for it, and no speaker of this endpoint is heard there: \
                 does kube-vip run on it, or has an interface the address?",
                member.name
            );
            Finding::refused(Obstacle::VipAnswered, why)
        }
        None => {
            let why = format!("{vip}: the host with MAC address {mac} answers for it; an address that no host has");
            Finding::refused(Obstacle::VipAnswered, why)
        }
    }
}

fn join(link: Link, group: Ipv4Addr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    socket.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(link.index))?;
    Ok(socket)
}

fn open(link: Link, heartbeat_port: u16) -> io::Result<Socket> {
    // Without a protocol it takes nothing before it is bound: the filter comes first.
    let socket = Socket::new(Domain::PACKET, Type::RAW.cloexec(), Some(Protocol::from(0)))?;
    socket.attach_filter(&packets::filter(heartbeat_port))?;
    socket.bind(&link_address(link)?)?;
    Ok(socket)
}

/// Of all frames on the interface.
fn link_address(link: Link) -> io::Result<SockAddr> {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is the address type of AF_PACKET and fits into sockaddr_storage.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = i32::try_from(link.index).map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
    address.sll_halen = 6;
    // SAFETY: the storage holds a sockaddr_ll, and this is its length.
    Ok(unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) })
}

/// `None`: the time is over.
fn receive(socket: &Socket) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); FRAME];
    match socket.recv(&mut buffer) {
        Ok(length) => {
            let length = length.min(buffer.len());
            // SAFETY: recv initialised the first `length` bytes, and `length` is at most the buffer's size.
            let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length) };
            Ok(Some(bytes.to_vec()))
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::init::packets::Mac;

    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
    const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn judged(heard: &[Heard]) -> Vec<Finding> {
        let text = "addresses: [192.0.2.100]\nports: [{listen: 6443}]\nmembers: [{name: a, address: 192.0.2.11}]
key: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\nhealth: {insecureSkipVerify: true}\n";
        judge(&Endpoint::parse(text).unwrap(), heard)
    }

    fn has(address: Ipv4Addr) -> Heard {
        Heard::Has { address, mac: MAC }
    }

    fn obstacles(findings: &[Finding]) -> Vec<Obstacle> {
        let obstacle = |finding: &Finding| match finding {
            Finding::Refused(obstacle, _) => Some(*obstacle),
            _ => None,
        };
        findings.iter().filter_map(obstacle).collect()
    }

    #[test]
    fn silence_is_a_free_address() {
        let findings = judged(&[has(A), Heard::Heartbeat { from: A }]);
        assert_eq!(findings, [Finding::Fine("192.0.2.100: no host answers for it".into())]);
    }

    #[test]
    fn another_host_is_refused_with_its_mac() {
        let findings = judged(&[has(VIP)]);
        assert_eq!(obstacles(&findings), [Obstacle::VipAnswered]);
        assert!(format!("{findings:?}").contains("the host with MAC address 02:00:00:00:00:01 answers"));
    }

    /// The second member is set up while the first one serves.
    #[test]
    fn a_member_may_answer_whose_speaker_is_heard() {
        let findings = judged(&[has(VIP), Heard::Heartbeat { from: A }, has(A)]);
        assert_eq!(findings, [Finding::Fine("192.0.2.100: served by member a, whose speaker is heard".into())]);
        let findings = judged(&[has(VIP), has(A)]);
        assert_eq!(obstacles(&findings), [Obstacle::VipAnswered]);
        assert!(format!("{findings:?}").contains("does kube-vip run on it"));
    }

    #[test]
    fn an_advert_of_the_address_is_refused_and_of_others_noted() {
        let advert =
            |addresses: &[Ipv4Addr]| Heard::Advert { router: A, id: 51, version: 3, addresses: addresses.into() };
        let findings = judged(&[advert(&[VIP, A])]);
        assert_eq!(obstacles(&findings), [Obstacle::VipAdvertised]);
        assert!(matches!(&findings[1], Finding::Note(text) if text.contains("192.0.2.11: other addresses")));
        assert!(obstacles(&judged(&[advert(&[A])])).is_empty());
    }
}
