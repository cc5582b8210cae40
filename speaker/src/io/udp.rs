//! Sockets of the adverts: multicast on the uplink, and unicast of nodes if they are named; time to live 255 in both directions
//! (RFC 5082: nothing from beyond a router). One for heartbeats, one for flow reports.
//!
//! Nothing here depends on the addresses of this node: the device is bound, the kernel chooses the source of each datagram, and
//! the membership is the device's. What strangers send is dropped before the queue (filter.rs).

use std::collections::BTreeSet;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt, sockopt};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

use super::filter;

/// Longer datagrams are reported as oversized by the codec: the buffer takes a little more than the largest allowed one.
pub const RECEIVE_BUFFER: usize = 2048;

/// The receive buffer: the heartbeats and claim lists of 256 peers for as long as the loop may be late. The kernel counts about
/// 2.3 kB for a datagram of full length.
pub const QUEUE: usize = 4 << 20;

pub struct MulticastSocket {
    socket: Socket,
    group: SocketAddrV4,
    queue: usize,
    drops: Arc<AtomicU64>,
}

/// One datagram as received.
pub struct Received<'a> {
    pub bytes: &'a [u8],
    pub ttl: u8,
    /// It was sent to the group, not to this node alone.
    pub multicast: bool,
    /// Nothing proves it.
    pub source: Ipv4Addr,
}

impl MulticastSocket {
    pub fn open(interface: &str, ifindex: u32, group: SocketAddrV4) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        // Before the bind: nothing is queued that the filter would drop.
        socket.attach_filter(&filter::datagrams(*group.ip(), &BTreeSet::new()))?;
        socket.set_reuse_address(true)?;
        // Also chooses where multicast is sent: IP_MULTICAST_IF with an address would make it the source of every datagram, and
        // each send fail once the node has another one.
        socket.bind_device(Some(interface.as_bytes()))?;
        // Not to the group: peers may be reached by unicast.
        socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, group.port()).into())?;
        socket.join_multicast_v4_n(group.ip(), &InterfaceIndexOrAddress::Index(ifindex))?;
        socket.set_multicast_loop_v4(false)?;
        socket.set_multicast_ttl_v4(255)?;
        socket.set_ttl_v4(255)?;
        // Network control (RFC 4594): heartbeats must not queue behind the traffic they guard.
        socket.set_tos_v4(0xc0)?;
        setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?;
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        setsockopt(&socket, sockopt::RxqOvfl, &1)?;
        // Beyond net.core.rmem_max only with capability NET_ADMIN.
        if setsockopt(&socket, sockopt::RcvBufForce, &QUEUE).is_err() {
            socket.set_recv_buffer_size(QUEUE)?;
        }
        // The kernel doubles the requested size.
        let queue = socket.recv_buffer_size()? / 2;
        Ok(Self { socket, group, queue, drops: Arc::default() })
    }

    /// What the kernel queues: less than [`QUEUE`] if it refused so much.
    pub fn queue(&self) -> usize {
        self.queue
    }

    /// Datagrams that the kernel dropped at this socket: of unknown senders (the filter), or for want of room. As of the last one
    /// that was received.
    pub fn drops(&self) -> Arc<AtomicU64> {
        self.drops.clone()
    }

    /// From now on unicast of these is received too, at most [`filter::MAX_ADDRESSES`]. What is queued stays.
    pub fn set_peers(&self, peers: &BTreeSet<Ipv4Addr>) -> io::Result<()> {
        self.socket.attach_filter(&filter::datagrams(*self.group.ip(), peers))
    }

    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.send_to(datagram, *self.group.ip())
    }

    /// To one node. It is received if that node has named this one's address.
    pub fn send_to(&self, datagram: &[u8], address: Ipv4Addr) -> io::Result<()> {
        self.socket.send_to(datagram, &SocketAddrV4::new(address, self.group.port()).into()).map(|_| ())
    }

    /// The next datagram, `None` when nothing waits.
    pub fn receive<'a>(&self, buffer: &'a mut [u8; RECEIVE_BUFFER]) -> io::Result<Option<Received<'a>>> {
        loop {
            let mut space = cmsg_space!(libc::c_int, u32, libc::in_pktinfo);
            let mut parts = [IoSliceMut::new(&mut buffer[..])];
            let (length, ttl, multicast, source) =
                match recvmsg::<SockaddrIn>(self.socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()) {
                    Ok(message) => {
                        let (mut ttl, mut multicast) = (None, false);
                        for part in message.cmsgs()? {
                            match part {
                                ControlMessageOwned::Ipv4Ttl(value) => ttl = u8::try_from(value).ok(),
                                ControlMessageOwned::RxqOvfl(drops) => self.dropped(drops),
                                ControlMessageOwned::Ipv4PacketInfo(info) => {
                                    multicast = Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).is_multicast();
                                }
                                _ => {}
                            }
                        }
                        (
                            message.bytes,
                            ttl,
                            multicast,
                            message.address.map_or(Ipv4Addr::UNSPECIFIED, |address| address.ip()),
                        )
                    }
                    Err(Errno::EAGAIN) => return Ok(None),
                    Err(Errno::EINTR) => continue,
                    Err(error) => return Err(error.into()),
                };
            let bytes = buffer.get(..length).unwrap_or_default();
            return Ok(Some(Received { bytes, ttl: ttl.unwrap_or(0), multicast, source }));
        }
    }

    /// The kernel's counter has 32 bits and wraps.
    fn dropped(&self, counter: u32) {
        let known = self.drops.load(Ordering::Relaxed);
        self.drops.store(known + u64::from(counter.wrapping_sub(known as u32)), Ordering::Relaxed);
    }
}

impl AsFd for MulticastSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for MulticastSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
