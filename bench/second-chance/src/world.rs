//! A node between an uplink and a pod, in namespaces of its own, with the rules of one choice.
//!
//! `<name>`: up0 (10.99.0.1) and pod0; `<name>-out`: their other ends, which count what arrives and drop it (it is addressed to
//! others). The VIP is no address of the node, as on a real one.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use ebpf_common::ServiceKey;
use sheave_tests::lab::netns;
use speaker_core::backend::{Adverts, Endpoints, LocalPods, Plan, Uplink, ruleset};
use speaker_core::view::ServiceAttributes;

pub const VIP: [u8; 4] = [192, 0, 2, 10];
pub const POD: [u8; 4] = [10, 244, 0, 5];
/// Slot of the node that may have the flows that this one does not know: 10.99.0.2.
pub const ALTERNATE: u16 = 2;
pub const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

pub struct World {
    pub node: String,
    out: String,
    pub uplink_ifindex: u32,
    pub pod_ifindex: u32,
}

/// Packets that left the node since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    pub to_uplink: u64,
    pub to_pod: u64,
}

impl World {
    pub fn new(name: &str, rules: &str) -> Result<Self> {
        let (node, out) = (format!("{PREFIX}{name}"), format!("{PREFIX}{name}-out"));
        for namespace in [&node, &out] {
            netns::delete(namespace)?;
            netns::create(namespace)?;
            netns::sysctl(
                namespace,
                &[
                    ("ipv6/conf/all/disable_ipv6", "1"),
                    ("ipv6/conf/default/disable_ipv6", "1"),
                    ("ipv4/conf/all/rp_filter", "0"),
                    ("ipv4/conf/default/rp_filter", "0"),
                    ("ipv4/ip_forward", "1"),
                ],
            )?;
        }
        netns::ip(&node, &LINKS.replace("OUT", &out))?;
        netns::ip(&out, "link set up9 up\nlink set pod9 up\n")?;
        let index =
            |device: &str| -> Result<u32> { netns::inside(&node, || Ok(nix::net::if_::if_nametoindex(device)?)) };
        let world = Self { uplink_ifindex: index("up0")?, pod_ifindex: index("pod0")?, node, out };
        if rules.contains("ct mark") {
            netns::ip(
                &world.node,
                "rule add fwmark 2 lookup 102\nroute add default via 10.99.0.2 dev up0 table 102\n",
            )?;
        }
        world.apply(rules)?;
        Ok(world)
    }

    /// The ends that take no part in what is measured.
    pub fn far_end(&self) -> &str {
        &self.out
    }

    /// One nft transaction.
    pub fn apply(&self, rules: &str) -> Result<()> {
        let mut command = Command::new("nft");
        command.args(["-f", "-"]).stdin(Stdio::piped());
        netns::enter(&mut command, &self.node)?;
        let mut child = command.spawn().context("start nft (Debian package nftables)")?;
        child.stdin.take().expect("piped").write_all(rules.as_bytes())?;
        ensure!(child.wait()?.success(), "nft refused:\n{rules}");
        Ok(())
    }

    /// Counted where they arrive; since the world began.
    pub fn sent(&self) -> Result<Sent> {
        netns::inside(&self.out, || {
            // Of this thread: /proc/net is the namespace of the process.
            let table = fs::read_to_string("/proc/thread-self/net/dev")?;
            let received = |device: &str| -> Result<u64> {
                let line = table.lines().find_map(|line| line.trim().strip_prefix(device)).context("no such device")?;
                let packets = line.trim_start_matches(':').split_whitespace().nth(1).context("no counter")?;
                Ok(packets.parse()?)
            };
            Ok(Sent { to_uplink: received("up9")?, to_pod: received("pod9")? })
        })
    }

    pub fn sent_since(&self, before: Sent) -> Result<Sent> {
        let now = self.sent()?;
        Ok(Sent { to_uplink: now.to_uplink - before.to_uplink, to_pod: now.to_pod - before.to_pod })
    }

    /// Entries of this node.
    pub fn conntrack_count(&self) -> Result<u64> {
        netns::inside(&self.node, || {
            Ok(fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")?.trim().parse()?)
        })
    }

    pub fn flush(&self) -> Result<()> {
        netns::run("ip", &["netns", "exec", &self.node, "conntrack", "-F"]).map(drop)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for namespace in [&self.node, &self.out] {
            if let Err(error) = netns::delete(namespace) {
                eprintln!("{error:#}");
            }
        }
    }
}

/// No rule matches on connections: conntrack does not run at all.
pub const PLAIN: &str = "";

/// The cheapest that the stack can do with a packet.
pub const DROP: &str = "table ip bench {
  chain raw { type filter hook prerouting priority -300; ip daddr 192.0.2.10 drop; }
}";

/// A node's own flows, no second chance.
pub const NAT: &str = "table ip bench {
  chain nat { type nat hook prerouting priority -110; ip daddr 192.0.2.10 tcp dport 80 dnat to 10.244.0.5:8080; }
}";

/// (a) A filter chain behind conntrack forwards the packets that conntrack does not know, and drops them here.
pub const DUP: &str = "table ip bench {
  chain known { type filter hook prerouting priority -150;
    ct status & dnat != 0 accept
    @ll,48,24 0x025368 goto unknown
  }
  chain unknown {
    tcp flags & (syn | ack) == syn return
    @ll,72,8 vmap { 0x01 : jump first, 0x03 : jump home }
    @ll,72,8 0x00 return
    @nh,48,8 set @nh,48,8 | 0x80
    dup to @ll,80,16 map { 2 : 10.99.0.2, 3 : 10.99.0.3, 4 : 10.99.0.4 } device up0
    drop
  }
  chain first { ip ttl set 16; }
  chain home { ip ttl set 13; }
  chain nat { type nat hook prerouting priority -110; ip daddr 192.0.2.10 tcp dport 80 dnat to 10.244.0.5:8080; }
}";

/// The same statement before conntrack, for every packet: what `dup` costs without the question.
pub const DUP_RAW: &str = "table ip bench {
  chain raw { type filter hook prerouting priority -310;
    ip ttl set 16 @nh,48,8 set @nh,48,8 | 0x80 dup to @ll,80,16 map { 2 : 10.99.0.2 } device up0 drop
  }
}";

/// (a) as a speaker puts it in place on such a node.
pub fn shipped() -> Result<String> {
    let plan = Plan {
        uplink: Uplink::new("up0")?,
        address: Some([10, 99, 0, 1].into()),
        vips: [VIP.into()].into(),
        node_ports: BTreeSet::new(),
        services: [(
            ServiceKey { addr: VIP, port: 80_u16.to_be_bytes(), proto: 6, pad: 0 },
            LocalPods {
                attributes: ServiceAttributes::default(),
                pods: vec![(POD.into(), 8080)],
                last_resort: false,
                via: BTreeSet::new(),
                service: 0,
            },
        )]
        .into(),
        inside: [].into(),
        inside_refused: [].into(),
        peers: [(ALTERNATE, [10, 99, 0, 2].into())].into(),
        second_chance: true,
        udp_silent: false,
        accept_mark: ruleset::ACCEPT_MARK,
        adverts: Adverts::default(),
        counted: BTreeSet::new(),
        starting: BTreeSet::new(),
        udp_pins: [].into(),
        endpoints: Endpoints::default(),
    };
    Ok(ruleset::replace(&plan))
}

/// (b) nat chains see only unknown connections: one binds "no translation" and a mark, a policy route per node follows the mark.
pub const NAT_MARK: &str = "table ip bench {
  chain nat { type nat hook prerouting priority -110;
    ip daddr 192.0.2.10 tcp dport 80 tcp flags & (syn | ack) == syn dnat to 10.244.0.5:8080
    @ll,48,24 0x025368 ct mark set @ll,80,16 map { 2 : 2, 3 : 3, 4 : 4 } dnat to 192.0.2.10
  }
  chain restore { type filter hook prerouting priority -90; ct mark != 0 meta mark set ct mark; }
}";

const LINKS: &str = "link add up0 address 02:00:00:00:00:01 type veth peer name up9 netns OUT
link add pod0 address 02:00:00:00:00:01 type veth peer name pod9 netns OUT
address add 10.99.0.1/24 dev up0
address add 10.244.0.1/24 dev pod0
link set up0 up
link set pod0 up
neighbour add 10.99.0.2 lladdr 02:00:00:00:99:02 dev up0
neighbour add 10.99.0.254 lladdr 02:00:00:00:99:fe dev up0
neighbour add 10.244.0.5 lladdr 02:00:00:00:00:05 dev pod0
route add default via 10.99.0.254 dev up0
";

const PREFIX: &str = "second-chance-";
