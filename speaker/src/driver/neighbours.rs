//! The other nodes on the segment, and this node's own place there: which are queried by ARP, and what they are sent when an
//! address of the uplink changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use speaker_core::announce;
use speaker_core::liveness;
use speaker_core::machine::Machine;
use speaker_core::name::NodeName;
use speaker_core::readiness;
use speaker_core::resolve;
use speaker_core::time::Instant;
use speaker_core::unicast;
use speaker_core::unverified;
use tracing::{info, warn};

use super::State;
use crate::dataplane::inbox::Message;
use crate::io::Mac;
use crate::io::arp::Neighbour;

/// Between two statements of which incarnations are verified.
const INCARNATIONS: Duration = Duration::from_secs(1);

/// No query is due.
const NEVER: Instant = Instant::from_nanos(u64::MAX);

impl State {
    /// `members`: those of which adverts count.
    pub(super) fn set_nodes(&mut self, nodes: BTreeMap<NodeName, Ipv4Addr>, members: BTreeSet<NodeName>, now: Instant) {
        self.by_address = nodes.iter().map(|(name, ip)| (*ip, name.clone())).collect();
        self.macs.retain(|ip, _| self.by_address.contains_key(ip));
        self.filter_arp();
        let mut changed = self.members != members;
        self.members.clone_from(&members);
        for set in [&mut self.down, &mut self.silent, &mut self.unknown] {
            let known = set.len();
            set.retain(|name| nodes.contains_key(name));
            changed |= set.len() != known;
        }
        let names: BTreeSet<NodeName> = nodes.keys().cloned().collect();
        let former = std::mem::replace(&mut self.nodes, nodes);
        self.on_resolve(resolve::Event::Nodes(names.clone()), now);
        let moved = former.iter().filter(|(name, ip)| self.nodes.get(*name).is_some_and(|present| present != *ip));
        for name in moved.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.on_resolve(resolve::Event::Unknown(name), now);
        }
        self.on_liveness(liveness::Event::Nodes(names.clone()), now);
        self.on_readiness(readiness::Event::Nodes(names), now);
        let spoken_to = if self.beyond_limit { BTreeSet::new() } else { members.clone() };
        self.on_unicast(unicast::Event::Nodes(spoken_to), now);
        self.on_unverified(unverified::Event::Nodes(members), now);
        self.signed_macs.retain(|ip, _| self.by_address.contains_key(ip));
        if let Err(error) = self.driver.udp.set_peers(&self.by_address.keys().copied().collect()) {
            self.failed("advert_filter", &error);
        }
        if changed {
            self.notify_unavailable();
        }
    }

    pub(super) fn note_incarnation(&mut self, node: &NodeName, epoch: u64) {
        match self.incarnations.get_mut(node) {
            Some(known) => *known = epoch,
            None => drop(self.incarnations.insert(node.clone(), epoch)),
        }
    }

    /// Repeated, because reports of other incarnations must not count for long.
    pub(super) fn notify_incarnations(&mut self, now: Instant) {
        self.incarnations_at = now + INCARNATIONS;
        if !self.incarnations.is_empty() {
            let incarnations = std::mem::take(&mut self.incarnations);
            self.notify(Message::Incarnations(incarnations));
        }
    }

    pub(super) fn on_arp(&mut self, neighbour: &Neighbour, now: Instant) {
        let Some(node) = self.by_address.get(&neighbour.ip).cloned() else { return };
        if self.signed_macs.get(&neighbour.ip).is_some_and(|signed| *signed != neighbour.mac) {
            let refused = self.driver.metrics.arp_contradicts_advert.with_label_values(&[node.as_str()]);
            if refused.get() == 0 {
                warn!(%node, claimed = %neighbour.mac, "arp_contradicts_advert: ARP frame with another MAC for the node's address; ignored and counted");
            }
            return refused.inc();
        }
        if self.macs.insert(neighbour.ip, neighbour.mac) != Some(neighbour.mac) {
            self.notify(Message::Neighbour { ip: neighbour.ip, mac: neighbour.mac });
        }
        self.on_resolve(resolve::Event::Known(node.clone()), now);
        if neighbour.program {
            self.on_unicast(unicast::Event::Program(node.clone()), now);
            self.on_readiness(readiness::Event::Program(node.clone()), now);
        }
        let sign = if neighbour.reply { liveness::Event::ProbeReply(node) } else { liveness::Event::Seen(node) };
        self.on_liveness(sign, now);
    }

    /// The address that the node states under its signature replaces that of ARP, here and in the packet path.
    pub(super) fn set_signed_mac(&mut self, node: &NodeName, mac: Mac) {
        let Some(ip) = self.nodes.get(node).copied() else { return };
        self.macs.insert(ip, mac);
        if self.signed_macs.insert(ip, mac) != Some(mac) {
            self.notify(Message::SignedMac { ip, mac: Some(mac) });
        }
    }

    /// Its speaker is silent: ARP alone gives its address.
    pub(super) fn forget_signed_mac(&mut self, node: &NodeName) {
        let Some(ip) = self.nodes.get(node) else { return };
        if self.signed_macs.remove(ip).is_some() {
            self.notify(Message::SignedMac { ip: *ip, mac: None });
        }
    }

    /// To the group, and to nodes that the group does not reach. A node beyond the limit would only be refused.
    pub(super) fn send(&mut self, datagram: &[u8]) {
        if self.beyond_limit {
            return;
        }
        match self.driver.udp.send(datagram) {
            Ok(()) => self.driver.metrics.adverts_sent.inc(),
            Err(error) => self.failed("advert", &error),
        }
        for ip in self.driver.unicast.targets().filter_map(|node| self.nodes.get(node)) {
            match self.driver.udp.send_to(datagram, *ip) {
                Ok(()) => self.driver.metrics.adverts_sent.inc(),
                Err(error) => self.failed("unicast_advert", &error),
            }
        }
    }

    /// Which way adverts take between this node and the others.
    pub(super) fn on_unicast(&mut self, event: unicast::Event, now: Instant) {
        let mut actions = Vec::new();
        // These end what was true of a node, and say nothing of it.
        let ends = matches!(event, unicast::Event::Nodes(_) | unicast::Event::Down(_) | unicast::Event::Tick);
        let (tick, missing) = (event == unicast::Event::Tick, self.driver.unicast.missing().count());
        self.driver.unicast.handle(event, now, &mut actions);
        if actions.is_empty() && (!ends || tick && self.driver.unicast.missing().count() == missing) {
            return;
        }
        for action in actions {
            match action {
                unicast::Action::Start(node) => {
                    info!(%node, "no adverts by multicast from or to the node; sending them by unicast too")
                }
                unicast::Action::Filtered(node) => {
                    warn!(%node, "multicast_filtered: adverts of the node arrive by unicast only; check for a filter of 224.0.0.254 and for IGMP snooping without a querier")
                }
                unicast::Action::Stop(node) => {
                    info!(%node, "adverts arrive by multicast from and to the node; unicast stopped")
                }
                unicast::Action::Missing(node) => {
                    warn!(%node, "adverts_missing: the node's program answers, but none of its adverts arrives; check for a filter on UDP 7480");
                }
                unicast::Action::Arrived(node) => info!(%node, "adverts of the node arrive"),
            }
        }
        let unicast = &self.driver.unicast;
        // Flow reports take the same way.
        self.notify(Message::Unicast(unicast.targets().cloned().collect()));
        self.driver.metrics.peers_by_unicast.set(unicast.targets().count() as i64);
        self.driver.metrics.adverts_missing.set(unicast.missing().count() as i64);
        self.driver.health.adverts_missing.store(unicast.receives_none(), Ordering::Relaxed);
        self.driver.health.some_adverts_missing.store(unicast.missing().next().is_some(), Ordering::Relaxed);
    }

    /// All announcements and queries use the new MAC address at once, and the others receive it: the owner's VIPs by a new burst,
    /// the node's own address by an announcement, which its kernel does not make (arp_notify is 0), and by a query to every node.
    pub(super) fn set_own_mac(&mut self, mac: Mac, now: Instant) {
        self.driver.claims.set_mac(mac);
        if !self.driver.arp.set_mac(mac) {
            return;
        }
        info!(%mac, "MAC address of the uplink changed; announced");
        self.on_announce(announce::Event::OwnAddress, now);
        if let Some(own) = self.driver.own_ip
            && let Err(error) = self.driver.arp.announce(own, None)
        {
            self.failed("announcement", &error);
        }
        self.on_resolve(resolve::Event::OwnAddress, now);
    }

    /// `None`: the node has no address now.
    pub(super) fn set_own_address(&mut self, address: Option<Ipv4Addr>, now: Instant) {
        if std::mem::replace(&mut self.driver.own_ip, address) == address {
            return;
        }
        info!(?address, "address of this node changed");
        self.on_resolve(resolve::Event::OwnAddress, now);
    }

    pub(super) fn resolve(&mut self, now: Instant) {
        self.on_resolve(resolve::Event::Tick, now);
    }

    /// Dispatching needs MAC addresses before liveness has a reason to query. The kernel's own neighbours come by netlink; it
    /// queries only hosts that it sends to.
    pub(super) fn on_resolve(&mut self, event: resolve::Event, now: Instant) {
        let mut actions = Vec::new();
        self.driver.resolver.handle(event, now, &mut actions);
        for action in actions {
            match action {
                resolve::Action::Query(node) => self.probe(&node),
                resolve::Action::Search(node) => self.search(&node),
            }
        }
        self.resolve_at = self.driver.resolver.next_deadline().unwrap_or(NEVER);
    }

    /// Unicast, if the node's MAC address is known.
    pub(super) fn probe(&mut self, node: &NodeName) {
        let Some(ip) = self.nodes.get(node).copied() else { return };
        self.query(ip, self.macs.get(&ip).copied());
    }

    /// Broadcast: the node's MAC address may be another.
    pub(super) fn search(&mut self, node: &NodeName) {
        let Some(ip) = self.nodes.get(node).copied() else { return };
        self.query(ip, None);
    }

    fn query(&self, ip: Ipv4Addr, mac: Option<Mac>) {
        if let Err(error) = self.driver.arp.probe(self.driver.own_ip, ip, mac) {
            self.failed("probe", &error);
        }
    }

    fn filter_arp(&self) {
        let nodes = self.by_address.keys().copied().collect();
        if let Err(error) = self.driver.arp.set_nodes(&nodes) {
            self.failed("arp_filter", &error);
        }
    }
}
