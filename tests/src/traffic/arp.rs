//! Queries the segment for an address, again and again, and records which MAC addresses answer.
//!
//! The requests come from an unused address and MAC address, so that neither this machine's nor the nodes' neighbour tables take
//! anything from them. Arrival times are the kernel's: a busy machine may wake this program late.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use pnet_packet::arp::{ArpHardwareTypes, ArpOperations, ArpPacket, MutableArpPacket};
use pnet_packet::ethernet::{EtherTypes, EthernetPacket, MutableEthernetPacket};
use pnet_packet::{MutablePacket, Packet};

use super::clock::{now_ns, realtime_minus_monotonic, sleep_until};
use super::control::{Control, print_report, say_ready};
use super::report::{ArpAnswer, ArpAnswerer, ArpReport};

#[derive(clap::Args)]
pub struct Arguments {
    /// The address that is queried
    #[arg(long)]
    ip: Ipv4Addr,
    #[arg(long, default_value_t = 10)]
    interval_ms: u64,
    #[arg(long, default_value = "eth0")]
    device: String,
    /// The sender: an unused address of the segment
    #[arg(long, default_value = "192.168.77.4")]
    from: Ipv4Addr,
    #[arg(long)]
    duration: Option<f64>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let control = Control::start(arguments.duration)?;
    let socket = Arc::new(open(&arguments.device)?);
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let receiver = {
        let (socket, stop, ip, from) = (socket.clone(), stop.clone(), arguments.ip, arguments.from);
        thread::spawn(move || receive(&socket, ip, from, &stop))
    };
    let sender = {
        let (stop, sent, question) = (stop.clone(), sent.clone(), question(arguments.ip, arguments.from));
        let every = arguments.interval_ms * 1_000_000;
        thread::spawn(move || {
            let mut at = now_ns();
            while !stop.load(Ordering::Acquire) {
                // SAFETY: the buffer outlives the call. A question that cannot be sent (link down) is not counted.
                let result = unsafe { libc::send(socket.as_raw_fd(), question.as_ptr().cast(), question.len(), 0) };
                sent.fetch_add(u64::from(result > 0), Ordering::Relaxed);
                at = (at + every).max(now_ns());
                sleep_until(at);
            }
        })
    };
    say_ready()?;
    control.wait();
    stop.store(true, Ordering::Release);
    let _ = sender.join();
    let answers = receiver.join().unwrap_or_default();
    print_report(&ArpReport {
        ip: arguments.ip.to_string(),
        mark_ns: control.mark_ns(),
        sent: sent.load(Ordering::Relaxed),
        answerers: answerers(&answers),
        answers,
    })
}

/// The MAC addresses that announce an address, one after the other, until the end. Announcements from before the socket was
/// opened are not received.
pub fn claims(socket: &OwnedFd, ip: Ipv4Addr, stop: &AtomicBool) -> impl Iterator<Item = String> {
    let mut buffer = [0u8; 2048];
    std::iter::from_fn(move || {
        while !stop.load(Ordering::Acquire) {
            // SAFETY: the buffer outlives the call and has the length given.
            let length = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            let frame = usize::try_from(length).ok().and_then(|length| EthernetPacket::new(&buffer[..length]));
            if let Some((mac, _)) = frame.and_then(|frame| claim(&frame, ip, Ipv4Addr::UNSPECIFIED)) {
                return Some(mac);
            }
        }
        None
    })
}

/// A socket that receives all ARP on a device of the calling thread's network; it waits a tenth of a second at most.
pub fn open(device: &str) -> Result<OwnedFd> {
    let index = nix::net::if_::if_nametoindex(device).with_context(|| format!("device {device}"))?;
    let protocol = (libc::ETH_P_ARP as u16).to_be();
    // SAFETY: plain system calls with structures that outlive them; the descriptor is ours alone.
    unsafe {
        let raw = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol));
        if raw < 0 {
            bail!("AF_PACKET socket: {}", io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(raw);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as i32;
        let length = size_of::<libc::sockaddr_ll>() as u32;
        if libc::bind(raw, (&raw const address).cast(), length) < 0 {
            bail!("bind to {device}: {}", io::Error::last_os_error());
        }
        let wait = libc::timeval { tv_sec: 0, tv_usec: 100_000 };
        let length = size_of::<libc::timeval>() as u32;
        if libc::setsockopt(raw, libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const wait).cast(), length) < 0 {
            bail!("SO_RCVTIMEO: {}", io::Error::last_os_error());
        }
        Ok(socket)
    }
}

fn question(ip: Ipv4Addr, from: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0; FRAME];
    let mut ethernet = MutableEthernetPacket::new(&mut frame).expect("long enough");
    ethernet.set_destination([0xff; 6].into());
    ethernet.set_source(ASKER.into());
    ethernet.set_ethertype(EtherTypes::Arp);
    let mut arp = MutableArpPacket::new(ethernet.payload_mut()).expect("long enough");
    arp.set_hardware_type(ArpHardwareTypes::Ethernet);
    arp.set_protocol_type(EtherTypes::Ipv4);
    arp.set_hw_addr_len(6);
    arp.set_proto_addr_len(4);
    arp.set_operation(ArpOperations::Request);
    arp.set_sender_hw_addr(ASKER.into());
    arp.set_sender_proto_addr(from);
    arp.set_target_proto_addr(ip);
    frame
}

fn receive(socket: &OwnedFd, ip: Ipv4Addr, from: Ipv4Addr, stop: &AtomicBool) -> Vec<ArpAnswer> {
    let mut answers = Vec::new();
    let mut buffer = [0u8; 2048];
    let mut last_answers_until: Option<u64> = None;
    loop {
        // A segment with constant ARP traffic is never idle.
        if stop.load(Ordering::Acquire) && now_ns() > *last_answers_until.get_or_insert_with(|| now_ns() + LATE_NS) {
            return answers;
        }
        // SAFETY: the buffer outlives the call and has the length given.
        let length = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let Ok(length) = usize::try_from(length) else {
            if stop.load(Ordering::Acquire) {
                return answers;
            }
            continue;
        };
        let at_ns = arrival(socket).unwrap_or_else(now_ns);
        if let Some((mac, announcement)) =
            EthernetPacket::new(&buffer[..length]).and_then(|frame| claim(&frame, ip, from))
            && answers.len() < ANSWERS_KEPT
        {
            answers.push(ArpAnswer { at_ns, mac, announcement });
        }
    }
}

/// The MAC address that claims the address in this frame, and whether without a request.
fn claim(frame: &EthernetPacket<'_>, ip: Ipv4Addr, from: Ipv4Addr) -> Option<(String, bool)> {
    if frame.get_ethertype() != EtherTypes::Arp {
        return None;
    }
    let arp = ArpPacket::new(frame.payload())?;
    if arp.get_sender_proto_addr() != ip {
        return None;
    }
    let to_us = arp.get_operation() == ArpOperations::Reply && arp.get_target_proto_addr() == from;
    let announcement = arp.get_target_proto_addr() == ip;
    (to_us || announcement).then(|| (arp.get_sender_hw_addr().to_string(), announcement))
}

/// When the kernel took the last received frame from the device.
fn arrival(socket: &OwnedFd) -> Option<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSTAMPNS, &raw mut time) };
    let nanoseconds = i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
    (result == 0).then(|| u64::try_from(nanoseconds - realtime_minus_monotonic()).ok())?
}

fn answerers(answers: &[ArpAnswer]) -> Vec<ArpAnswerer> {
    let mut found: Vec<ArpAnswerer> = Vec::new();
    for answer in answers {
        let index = found.iter().position(|one| one.mac == answer.mac).unwrap_or_else(|| {
            let (mac, first_ns) = (answer.mac.clone(), answer.at_ns);
            found.push(ArpAnswerer { mac, replies: 0, announcements: 0, first_ns, last_ns: first_ns });
            found.len() - 1
        });
        let one = &mut found[index];
        one.replies += u64::from(!answer.announcement);
        one.announcements += u64::from(answer.announcement);
        one.last_ns = answer.at_ns;
    }
    found
}

/// Locally administered, so that it is no device's.
const ASKER: [u8; 6] = [0x02, b'A', b'S', b'K', 0x00, 0x04];
const FRAME: usize = 42;
/// An answer that takes longer than this is not waited for.
const LATE_NS: u64 = 100_000_000;
const ANSWERS_KEPT: usize = 100_000;
const SIOCGSTAMPNS: libc::c_ulong = 0x8907;
