//! Real sockets in a network namespace that only the test's thread is in; the kernel removes it with the thread.
//!
//! ```text
//! node, 192.0.2.1/24 --- far, a packet socket through which the test is every other host
//! ```

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::Mac;
use super::arp::{ArpSocket, Frame, Neighbour};
use super::udp::{MulticastSocket, QUEUE, RECEIVE_BUFFER};
use crate::backend::sysctl::Sysctls;

const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 254), 7480);
const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);
const NODE_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const FAR_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
const PATIENCE: Duration = Duration::from_secs(5);

pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs CAP_SYS_ADMIN");
        ip("link set lo up\n\
            link add node address 02:00:00:00:00:01 type veth peer name far address 02:00:00:00:00:02\n\
            addr add 192.0.2.1/24 dev node\nlink set node up\nlink set far up\n");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A batch of commands in the thread's namespace.
pub fn ip(batch: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("iproute2");
    child.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip:\n{batch}");
}

/// The other end of the cable.
pub struct Far(Socket);

impl Far {
    pub fn open() -> Self {
        let every = i32::from((libc::ETH_P_ALL as u16).to_be());
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(every))).unwrap();
        socket.bind(&link_address("far")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self(socket)
    }

    pub fn send(&self, frame: &[u8]) {
        self.0.send(frame).unwrap();
    }

    /// The next frame of those that have come.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 2048];
        // A socket says once that its link was down.
        self.0.take_error().unwrap();
        match self.0.recv_with_flags(&mut buffer, libc::MSG_DONTWAIT) {
            // SAFETY: the kernel has written so many bytes.
            Ok(length) => Some(buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// The next frame that is `wanted`.
    pub fn find(&self, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        use std::io::Read;
        let end = Instant::now() + PATIENCE;
        let mut buffer = [0; 2048];
        while Instant::now() < end {
            match (&self.0).read(&mut buffer) {
                Ok(length) if wanted(&buffer[..length]) => return Some(buffer[..length].to_vec()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
        None
    }
}

fn link_address(device: &str) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is the address type of AF_PACKET and fits into sockaddr_storage.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = if_nametoindex(device).unwrap() as i32;
    // SAFETY: the storage holds a sockaddr_ll, and this is its length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

/// A datagram to the port of the adverts.
fn datagram(to_mac: Mac, from: Ipv4Addr, to: Ipv4Addr, ttl: u8, text: &[u8]) -> Vec<u8> {
    let mut frame = [&to_mac.0[..], &FAR_MAC.0, &[0x08, 0x00]].concat();
    let length = (28 + text.len() as u16).to_be_bytes();
    let mut header = [&[0x45, 0][..], &length, &[0, 0, 0, 0, ttl, 17, 0, 0], &from.octets(), &to.octets()].concat();
    let words = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(sum as u16 + (sum >> 16) as u16)).to_be_bytes());
    frame.extend(header);
    // Without a checksum.
    frame.extend([0x1d, 0x38, 0x1d, 0x38]);
    frame.extend((8 + text.len() as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(text);
    frame
}

fn multicast(from: Ipv4Addr, ttl: u8, text: &[u8]) -> Vec<u8> {
    datagram(Mac([1, 0, 0x5e, 0, 0, 254]), from, *GROUP.ip(), ttl, text)
}

pub fn arp(from_mac: Mac, op: u8, from: Ipv4Addr, to_mac: Mac) -> Vec<u8> {
    let mut frame = [&to_mac.0[..], &from_mac.0, &[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, op]].concat();
    frame.extend(from_mac.0);
    frame.extend(from.octets());
    frame.extend([0; 6]);
    frame.extend(NODE.octets());
    frame
}

fn open() -> MulticastSocket {
    MulticastSocket::open("node", if_nametoindex("node").unwrap(), GROUP).unwrap()
}

/// What the socket queues until `last` comes, which the caller has made sure to be accepted.
fn received(socket: &MulticastSocket, last: &[u8]) -> Vec<Vec<u8>> {
    let end = Instant::now() + PATIENCE;
    let (mut texts, mut buffer) = (Vec::new(), [0; RECEIVE_BUFFER]);
    while Instant::now() < end {
        let Some(datagram) = socket.receive(&mut buffer).unwrap() else {
            std::thread::yield_now();
            continue;
        };
        assert_eq!(datagram.ttl, 255);
        if datagram.bytes == last {
            return texts;
        }
        texts.push(datagram.bytes.to_vec());
    }
    panic!("{} did not come; before it came {texts:?}", String::from_utf8_lossy(last));
}

#[test]
fn only_the_group_and_named_peers_are_queued_and_only_with_ttl_255() {
    in_namespace(|| {
        let (socket, far) = (open(), Far::open());
        far.send(&multicast(STRANGER, 255, b"group"));
        far.send(&multicast(PEER, 254, b"routed"));
        far.send(&datagram(NODE_MAC, PEER, NODE, 255, b"no peer yet"));
        far.send(&multicast(PEER, 255, b"end"));
        assert_eq!(received(&socket, b"end"), [b"group"]);
        assert_eq!(socket.drops().load(Ordering::Relaxed), 2);

        socket.set_peers(&BTreeSet::from([PEER, Ipv4Addr::new(192, 0, 2, 3)])).unwrap();
        far.send(&datagram(NODE_MAC, PEER, NODE, 255, b"peer"));
        far.send(&datagram(NODE_MAC, PEER, NODE, 63, b"a pod behind the peer"));
        far.send(&datagram(NODE_MAC, STRANGER, NODE, 255, b"stranger"));
        far.send(&multicast(PEER, 255, b"end"));
        assert_eq!(received(&socket, b"end"), [b"peer"]);
        assert_eq!(socket.drops().load(Ordering::Relaxed), 4);
    });
}

/// Without the filter this fills the buffer: the heartbeat behind it is lost.
#[test]
fn a_unicast_flood_takes_no_room_from_the_group() {
    in_namespace(|| {
        let (socket, far) = (open(), Far::open());
        let flood = datagram(NODE_MAC, STRANGER, NODE, 63, &[0; 1200]);
        (0..10_000).for_each(|_| far.send(&flood));
        far.send(&multicast(PEER, 255, b"heartbeat"));
        assert_eq!(received(&socket, b"heartbeat"), Vec::<Vec<u8>>::new());
        assert_eq!(socket.drops().load(Ordering::Relaxed), 10_000);
    });
}

/// 256 peers with a heartbeat and a claim list of full length each, while the loop does not turn.
#[test]
fn the_queue_holds_what_256_peers_send_at_once() {
    in_namespace(|| {
        let (socket, far) = (open(), Far::open());
        assert_eq!(socket.queue(), QUEUE);
        for peer in 0..256_u32 {
            let from = Ipv4Addr::from(u32::from(NODE) + 1 + peer);
            (0..6).for_each(|_| far.send(&multicast(from, 255, &[7; 1400])));
        }
        far.send(&multicast(PEER, 255, b"end"));
        assert_eq!(received(&socket, b"end").len(), 256 * 6);
        assert_eq!(socket.drops().load(Ordering::Relaxed), 0);
    });
}

/// DHCP: the address goes, later another comes. The socket stays, with its membership.
#[test]
fn sends_and_membership_outlive_the_address() {
    in_namespace(|| {
        let (socket, far) = (open(), Far::open());
        let source = |text: &[u8]| {
            let frame = far.find(|frame| frame.ends_with(text)).expect("the datagram on the wire");
            assert_eq!((frame[22], &frame[30..34]), (255, &GROUP.ip().octets()[..]));
            Ipv4Addr::from([frame[26], frame[27], frame[28], frame[29]])
        };
        socket.send(b"before").unwrap();
        assert_eq!(source(b"before"), NODE);
        ip("addr del 192.0.2.1/24 dev node\n");
        socket.send(b"without an address").unwrap();
        assert_ne!(source(b"without an address"), NODE);
        far.send(&multicast(PEER, 255, b"heard without an address"));
        received(&socket, b"heard without an address");
        ip("addr add 192.0.2.77/24 dev node\n");
        socket.send(b"after").unwrap();
        assert_eq!(source(b"after"), Ipv4Addr::new(192, 0, 2, 77));
        far.send(&multicast(PEER, 255, b"heard"));
        received(&socket, b"heard");
        // The device goes down and up; the cable carries frames some time later.
        ip("link set node down\nlink set node up\n");
        let (end, mut buffer) = (Instant::now() + PATIENCE, [0; RECEIVE_BUFFER]);
        while socket.receive(&mut buffer).unwrap().is_none() {
            assert!(Instant::now() < end, "nothing is received after the device went down and up");
            far.send(&multicast(PEER, 255, b"heard again"));
        }
    });
}

#[test]
fn unicast_leaves_with_ttl_255() {
    in_namespace(|| {
        let (socket, far) = (open(), Far::open());
        ip("neigh replace 192.0.2.2 lladdr 02:00:00:00:00:02 dev node\n");
        socket.send_to(b"unicast", PEER).unwrap();
        let frame = far.find(|frame| frame.ends_with(b"unicast")).expect("the datagram on the wire");
        assert_eq!((frame[22], &frame[30..34]), (255, &PEER.octets()[..]));
    });
}

fn arp_socket() -> ArpSocket {
    ArpSocket::open(if_nametoindex("node").unwrap(), NODE_MAC).unwrap()
}

fn neighbour(socket: &ArpSocket) -> Neighbour {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        match socket.receive().unwrap() {
            Some(Frame::Neighbour(neighbour)) => return neighbour,
            Some(Frame::Ignored) => panic!("the filter let through a frame without meaning"),
            None => std::thread::yield_now(),
        }
    }
    panic!("nothing came");
}

#[test]
fn arp_of_unknown_hosts_is_dropped_before_the_queue() {
    in_namespace(|| {
        let (socket, far) = (arp_socket(), Far::open());
        far.send(&arp(FAR_MAC, 2, PEER, NODE_MAC));
        socket.set_nodes(&BTreeSet::from([PEER])).unwrap();
        for _ in 0..10_000 {
            far.send(&arp(FAR_MAC, 1, STRANGER, Mac::BROADCAST));
            // A probe names no sender.
            far.send(&arp(FAR_MAC, 1, Ipv4Addr::UNSPECIFIED, Mac::BROADCAST));
        }
        far.send(&arp(FAR_MAC, 2, PEER, NODE_MAC));
        assert_eq!(neighbour(&socket), Neighbour { ip: PEER, mac: FAR_MAC, reply: true, program: false });
        assert_eq!(socket.receive().unwrap(), None);
    });
}

#[test]
fn arp_names_the_mac_of_now() {
    in_namespace(|| {
        let (mut socket, far) = (arp_socket(), Far::open());
        let other = Mac([2, 0, 0, 0, 0, 0x99]);
        let vip = Ipv4Addr::new(192, 0, 2, 200);
        ip("link set node address 02:00:00:00:00:99\n");
        assert!(socket.set_mac(other) && !socket.set_mac(other));
        socket.announce(vip, None).unwrap();
        socket.probe(Some(NODE), PEER, None).unwrap();
        for sender in [vip, vip, NODE] {
            let is_ours = |frame: &[u8]| frame[12..14] == [0x08, 0x06] && frame[28..32] == sender.octets();
            let frame = far.find(is_ours).expect("the frame on the wire");
            assert_eq!((&frame[6..12], &frame[22..28]), (&other.0[..], &other.0[..]), "{sender}");
        }
        socket.probe(None, PEER, None).unwrap();
        let is_probe = |frame: &[u8]| frame[12..14] == [0x08, 0x06] && frame[28..32] == [0; 4];
        assert!(far.find(is_probe).is_some(), "without an address it probes all the same");
        // Replies come to the new one.
        socket.set_nodes(&BTreeSet::from([PEER])).unwrap();
        far.send(&arp(FAR_MAC, 2, PEER, other));
        assert!(neighbour(&socket).reply);
    });
}

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);

/// The kernel's answer to a request for `target`, if one comes before its answer for its own address, which is requested after it.
fn answers_for(far: &Far, target: Ipv4Addr) -> bool {
    for asked in [target, NODE] {
        let mut request = arp(FAR_MAC, 1, PEER, Mac::BROADCAST);
        let at = request.len() - 4;
        request[at..].copy_from_slice(&asked.octets());
        far.send(&request);
    }
    let is_reply = |frame: &[u8]| frame[12..14] == [8, 6] && frame[20..22] == [0, 2];
    let reply = far.find(is_reply).expect("an answer for the node's own address");
    let about: [u8; 4] = reply[28..32].try_into().unwrap();
    Ipv4Addr::from(about) == target
}

/// Which address the kernel gives as its own when a process at the VIP sends to a neighbor that it does not know.
fn asks_as(far: &Far, neighbor: Ipv4Addr) -> Ipv4Addr {
    let socket = std::net::UdpSocket::bind((VIP, 0)).unwrap();
    socket.send_to(b"x", (neighbor, 9)).unwrap();
    let is_request =
        |frame: &[u8]| frame[12..14] == [8, 6] && frame[20..22] == [0, 1] && frame[38..42] == neighbor.octets();
    let request = far.find(is_request).expect("a request");
    <[u8; 4]>::try_from(&request[28..32]).unwrap().into()
}

/// kube-proxy in IPVS mode has every VIP on a device of each node.
#[test]
fn the_kernel_keeps_silent_about_vips_of_this_host() {
    in_namespace(|| {
        ip(
            "link add kube-ipvs0 type veth peer name other\naddr add 192.0.2.200/32 dev kube-ipvs0\nlink set kube-ipvs0 up\n",
        );
        let far = Far::open();
        assert!(answers_for(&far, VIP), "else there is nothing to hide");
        assert_eq!(asks_as(&far, Ipv4Addr::new(192, 0, 2, 77)), VIP);
        let dir = std::env::temp_dir().join(format!("sheave-arp-{}", std::process::id()));
        let sysctls = Sysctls::new("/proc/sys/net", dir.join("sysctl.json"));
        assert_eq!(sysctls.hide_local_vips().unwrap().len(), 2);
        assert!(!answers_for(&far, VIP));
        assert_eq!(asks_as(&far, Ipv4Addr::new(192, 0, 2, 78)), NODE);
        assert_eq!(sysctls.hide_local_vips().unwrap(), Vec::<String>::new());
        assert_eq!(sysctls.restore().unwrap().len(), 2);
        assert!(answers_for(&far, VIP));
        std::fs::remove_dir_all(dir).unwrap();
    });
}
