//! (ii) Who owns a VIP: what the election thread is made of.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use speaker_core::announce::{self, Announcer};
use speaker_core::conflict::Conflicts;
use speaker_core::election::{self, Election};
use speaker_core::liveness::{self, Liveness};
use speaker_core::name::NodeName;
use speaker_core::readiness::{self, Readiness};
use speaker_core::resolve::{self, Resolver};
use speaker_core::rotation::Rotation;
use speaker_core::unicast::{self, Unicast};
use speaker_core::unverified::Unverified;

use super::Ground;
use crate::dataplane::LeaseMaps;
use crate::dataplane::inbox::Outbox;
use crate::driver::{Driver, Inbox, Notices};
use crate::io;
use crate::io::arp::ArpSocket;
use crate::io::clock;
use crate::io::netlink::Uplink;
use crate::keys::Keys;
use crate::state::PersistedState;

pub struct Parts<'a> {
    pub ground: &'a Ground,
    pub uplink: &'a Uplink,
    pub keys: &'a Keys,
    /// A random number.
    pub jitter: u64,
}

impl Parts<'_> {
    pub fn build(
        &self,
        rotation: Rotation,
        inbox: Inbox,
        sync: Outbox,
        notices: Notices,
    ) -> Result<(Election, Driver)> {
        let Self { ground, uplink, keys, jitter } = self;
        let args = &ground.args;
        let (node, cluster) = (ground.node.clone(), keys.identity().cluster_id());
        let seed = io::random::seed().context("random seed")?;
        let mut config = election::Config::new(node.clone(), cluster, ground.epoch, rotation.ring(), seed)
            .at_pace(args.interval(), args.dead_intervals);
        config.leave_timeout = Duration::from_millis(args.handover_timeout_ms);
        config.check().context("--heartbeat-interval-ms, --dead-intervals")?;
        let liveness =
            liveness::Config { interval: config.interval, dead: config.dead(), ..liveness::Config::new(*jitter) };
        let remembered = ready(ground.persisted.as_ref().filter(|_| !ground.booted));
        let now = clock::now();
        let driver = Driver {
            liveness: Liveness::new(liveness),
            readiness: Readiness::new(readiness::Config::default(), remembered),
            resolver: Resolver::new(resolve::Config::new(*jitter)),
            unicast: Unicast::new(unicast::Config::new(config.dead())),
            rotation,
            unverified: Unverified::new(node, keys.is_confirmed(), now),
            announcer: Announcer::new(announce::Config::default()),
            conflicts: Conflicts::new(cluster),
            udp: ground.adverts_socket("heartbeat", uplink, args.heartbeat_port)?,
            arp: ArpSocket::open(uplink.index, uplink.mac).context("ARP socket: capability NET_RAW is needed")?,
            claims: ArpSocket::open(uplink.index, uplink.mac).context("ARP socket for other owners")?,
            lease: LeaseMaps::open(&ground.pins)?,
            inbox,
            own_ip: Some(args.node_ip),
            sync,
            notices,
            health: ground.health.clone(),
            metrics: ground.metrics.clone(),
        };
        Ok((Election::new(config, now), driver))
    }
}

/// The nodes that were ready when the speaker before this one ended. Not after a boot: others may have booted meanwhile, and a
/// search that visits a node with kube-proxy's rules but not ours costs the flow.
fn ready(persisted: Option<&PersistedState>) -> BTreeSet<NodeName> {
    let names = persisted.into_iter().flat_map(|persisted| &persisted.ready);
    names.filter_map(|name| NodeName::new(name)).collect()
}
