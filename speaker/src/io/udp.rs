//! Sockets of the adverts: multicast on the uplink, TTL 255 in both directions (RFC 5082: nothing from beyond a router).
//! One for heartbeats, one for holdings.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt, sockopt};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

/// Longer datagrams are reported as oversized by the codec: the buffer takes a little more than the largest allowed one.
pub const RECEIVE_BUFFER: usize = 2048;

pub struct MulticastSocket {
    socket: Socket,
    group: SocketAddrV4,
}

/// One datagram as received.
pub struct Received<'a> {
    pub bytes: &'a [u8],
    pub ttl: u8,
    /// Nothing proves it.
    pub source: Ipv4Addr,
}

impl MulticastSocket {
    pub fn open(interface: &str, ifindex: u32, own: Ipv4Addr, group: SocketAddrV4) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, group.port()).into())?;
        socket.join_multicast_v4_n(group.ip(), &InterfaceIndexOrAddress::Index(ifindex))?;
        socket.set_multicast_if_v4(&own)?;
        socket.set_multicast_loop_v4(false)?;
        socket.set_multicast_ttl_v4(255)?;
        // Network control (RFC 4594): heartbeats must not queue behind the traffic they guard.
        socket.set_tos_v4(0xc0)?;
        setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?;
        Ok(Self { socket, group })
    }

    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.socket.send_to(datagram, &self.group.into()).map(|_| ())
    }

    /// The next datagram, `None` when nothing waits.
    pub fn receive<'a>(&self, buffer: &'a mut [u8; RECEIVE_BUFFER]) -> io::Result<Option<Received<'a>>> {
        loop {
            let mut space = cmsg_space!(libc::c_int);
            let mut parts = [IoSliceMut::new(&mut buffer[..])];
            let (length, ttl, source) =
                match recvmsg::<SockaddrIn>(self.socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()) {
                    Ok(message) => {
                        let ttl = message.cmsgs()?.find_map(|part| match part {
                            ControlMessageOwned::Ipv4Ttl(ttl) => u8::try_from(ttl).ok(),
                            _ => None,
                        });
                        (message.bytes, ttl, message.address.map_or(Ipv4Addr::UNSPECIFIED, |address| address.ip()))
                    }
                    Err(Errno::EAGAIN) => return Ok(None),
                    Err(Errno::EINTR) => continue,
                    Err(error) => return Err(error.into()),
                };
            let bytes = buffer.get(..length).unwrap_or_default();
            return Ok(Some(Received { bytes, ttl: ttl.unwrap_or(0), source }));
        }
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
