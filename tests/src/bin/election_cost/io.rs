//! System calls of the election thread: a datagram sent and received, a gratuitous ARP pair, an entry of `OWN`, the lease.

use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, MapData};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

use crate::{cost, time};
use sheave_tests::lab::netns;

const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 254), 7480);
const HERE: &str = "sheave-cost-a";
const THERE: &str = "sheave-cost-b";
/// A heartbeat of sixty nodes.
const DATAGRAM: usize = 330;

pub fn print() -> Result<()> {
    let world = World::new()?;
    let [sender, receiver] = [(HERE, "10.98.0.1"), (THERE, "10.98.0.2")].map(|(name, own)| socket(name, own));
    let (sender, receiver) = (sender?, receiver?);
    let datagram = [0; DATAGRAM];
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let send = || assert_eq!(sender.send_to(&datagram, &GROUP.into()).expect("sends"), DATAGRAM);
    let both = time(15, 2000, || {
        send();
        receiver.recv(&mut buffer).expect("arrives: a veth delivers before the call returns");
    });
    let mut receive = Vec::new();
    for _ in 0..200 {
        (0..50).for_each(|_| send());
        let start = std::time::Instant::now();
        (0..50).for_each(|_| assert_eq!(receiver.recv(&mut buffer).expect("arrives"), DATAGRAM));
        receive.push(start.elapsed().as_nanos() as f64 / 50.0);
    }
    receive.sort_by(f64::total_cmp);
    let receive = receive[100];
    cost("receive", receive);
    cost("send", both - receive);
    // Request and reply form; a frame costs what a datagram costs, within what runs differ.
    cost("announce", 2.0 * (both - receive));
    maps()?;
    drop(world);
    Ok(())
}

fn maps() -> Result<()> {
    let mut own = HashMap::<MapData, [u8; 4], [u8; 8]>::create(ebpf_common::MAX_VIPS, 0)?;
    let mut next = 0u32;
    let insert = time(15, 1000, || {
        next = (next + 1) % ebpf_common::MAX_VIPS;
        own.insert(next.to_be_bytes(), [1; 8], 0).expect("fits");
    });
    cost("map_write", insert);
    let mut lease = Array::<MapData, [u8; 16]>::create(1, 0)?;
    cost("lease", time(15, 1000, || lease.set(0, [1; 16], 0).expect("is set")));
    Ok(())
}

fn socket(name: &str, own: &str) -> Result<Socket> {
    netns::inside(name, || {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, GROUP.port()).into())?;
        let own: Ipv4Addr = own.parse()?;
        socket.join_multicast_v4_n(GROUP.ip(), &InterfaceIndexOrAddress::Address(own))?;
        socket.set_multicast_if_v4(&own)?;
        socket.set_multicast_loop_v4(false)?;
        Ok(socket)
    })
}

/// Two namespaces and the pair between them; gone when dropped.
struct World;

impl World {
    fn new() -> Result<Self> {
        let world = Self;
        for name in [HERE, THERE] {
            netns::delete(name)?;
            netns::create(name)?;
        }
        let pair = format!(
            "link add name a type veth peer name b netns {THERE}\naddr add 10.98.0.1/24 dev a\nlink set dev a up\n"
        );
        netns::ip(HERE, &pair).context("a veth pair")?;
        netns::ip(THERE, "addr add 10.98.0.2/24 dev b\nlink set dev b up\n")?;
        Ok(world)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in [HERE, THERE] {
            if let Err(error) = netns::delete(name) {
                eprintln!("namespace {name} stays: {error:#}");
            }
        }
    }
}
