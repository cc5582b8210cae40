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
use speaker_core::presence;
use speaker_core::resolve;
use speaker_core::time::Instant;
use speaker_core::unicast;
use speaker_core::unverified;
use tracing::{info, warn};

use super::State;
use crate::dataplane::inbox::Message;
use crate::io::Mac;
use crate::io::arp::Heard;

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
        let mut changed = false;
        for set in [&mut self.down, &mut self.absent, &mut self.blank] {
            let known = set.len();
            set.retain(|name| nodes.contains_key(name));
            changed |= set.len() != known;
        }
        let names: BTreeSet<NodeName> = nodes.keys().cloned().collect();
        let former = std::mem::replace(&mut self.nodes, nodes);
        self.resolve_event(resolve::Event::Nodes(names.clone()), now);
        let moved = former.iter().filter(|(name, ip)| self.nodes.get(*name).is_some_and(|present| present != *ip));
        for name in moved.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.resolve_event(resolve::Event::Unknown(name), now);
        }
        self.watch(liveness::Event::Nodes(names.clone()), now);
        self.attend(presence::Event::Nodes(names), now);
        self.reach(unicast::Event::Nodes(members.clone()), now);
        self.judge_unverified(unverified::Event::Nodes(members), now);
        self.signed_macs.retain(|ip, _| self.by_address.contains_key(ip));
        if let Err(error) = self.driver.udp.set_peers(&self.by_address.keys().copied().collect()) {
            self.failed("advert_filter", &error);
        }
        if changed {
            self.tell_unavailable();
        }
    }

    pub(super) fn note_incarnation(&mut self, node: &NodeName, epoch: u64) {
        match self.incarnations.get_mut(node) {
            Some(known) => *known = epoch,
            None => drop(self.incarnations.insert(node.clone(), epoch)),
        }
    }

    /// Again and again: reports of other incarnations must not count for long.
    pub(super) fn tell_incarnations(&mut self, now: Instant) {
        self.incarnations_at = now + INCARNATIONS;
        if !self.incarnations.is_empty() {
            let incarnations = std::mem::take(&mut self.incarnations);
            self.tell(Message::Incarnations(incarnations));
        }
    }

    pub(super) fn take_heard(&mut self, heard: &Heard, now: Instant) {
        let Some(node) = self.by_address.get(&heard.ip).cloned() else { return };
        if self.signed_macs.get(&heard.ip).is_some_and(|signed| *signed != heard.mac) {
            let refused = self.driver.metrics.arp_contradicts_advert.with_label_values(&[node.as_str()]);
            if refused.get() == 0 {
                warn!(%node, claimed = %heard.mac, "arp_contradicts_advert: an ARP frame claims the node's address; ignored and counted");
            }
            return refused.inc();
        }
        if self.macs.insert(heard.ip, heard.mac) != Some(heard.mac) {
            self.tell(Message::Neighbour { ip: heard.ip, mac: heard.mac });
        }
        self.resolve_event(resolve::Event::Known(node.clone()), now);
        if heard.program {
            self.reach(unicast::Event::Program(node.clone()), now);
            self.attend(presence::Event::Program(node.clone()), now);
        }
        let sign = if heard.reply { liveness::Event::ProbeReply(node) } else { liveness::Event::Seen(node) };
        self.watch(sign, now);
    }

    /// What the node states under its signature replaces what ARP says, here and in the packet path.
    pub(super) fn set_signed_mac(&mut self, node: &NodeName, mac: Mac) {
        let Some(ip) = self.nodes.get(node).copied() else { return };
        self.macs.insert(ip, mac);
        if self.signed_macs.insert(ip, mac) != Some(mac) {
            self.tell(Message::SignedMac { ip, mac: Some(mac) });
        }
    }

    /// Its speaker is silent: ARP alone tells where it is reached.
    pub(super) fn forget_signed_mac(&mut self, node: &NodeName) {
        let Some(ip) = self.nodes.get(node) else { return };
        if self.signed_macs.remove(ip).is_some() {
            self.tell(Message::SignedMac { ip: *ip, mac: None });
        }
    }

    /// To the group, and to those that it does not reach.
    pub(super) fn send(&mut self, datagram: &[u8]) {
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
    pub(super) fn reach(&mut self, event: unicast::Event, now: Instant) {
        let mut actions = Vec::new();
        self.driver.unicast.handle(event, now, &mut actions);
        if actions.is_empty() {
            return;
        }
        for action in actions {
            match action {
                unicast::Action::Start(node) => {
                    warn!(%node, "multicast does not pass between this node and that one: adverts go by unicast too")
                }
                unicast::Action::Stop(node) => info!(%node, "multicast passes again: no adverts by unicast"),
                unicast::Action::Missing(node) => {
                    warn!(%node, "adverts_missing: its program answers, but no advert of it arrives; is UDP 7480 filtered, or its speaker dead?");
                }
                unicast::Action::Arrived(node) => info!(%node, "its adverts arrive"),
            }
        }
        let unicast = &self.driver.unicast;
        self.driver.metrics.peers_by_unicast.set(unicast.targets().count() as i64);
        self.driver.metrics.adverts_missing.set(unicast.missing().count() as i64);
        self.driver.shared.adverts_missing.store(unicast.receives_none(), Ordering::Relaxed);
    }

    /// All that announces or queries uses the new MAC address at once, and the others learn it: the owner's VIPs by a new burst, the
    /// node's own address by an announcement, which its kernel does not make (arp_notify is 0), and by a query to every node.
    pub(super) fn set_own_mac(&mut self, mac: Mac, now: Instant) {
        if !self.driver.arp.set_mac(mac) {
            return;
        }
        info!(%mac, "the uplink has another MAC address: announced");
        self.announce(announce::Event::OwnAddress, now);
        if let Some(own) = self.driver.own_ip
            && let Err(error) = self.driver.arp.announce(own)
        {
            self.failed("announcement", &error);
        }
        self.resolve_event(resolve::Event::OwnAddress, now);
    }

    /// `None`: the node has no address now.
    pub(super) fn set_own_address(&mut self, address: Option<Ipv4Addr>, now: Instant) {
        if std::mem::replace(&mut self.driver.own_ip, address) == address {
            return;
        }
        info!(?address, "this node's address on the segment");
        self.resolve_event(resolve::Event::OwnAddress, now);
    }

    pub(super) fn resolve(&mut self, now: Instant) {
        self.resolve_event(resolve::Event::Tick, now);
    }

    /// Dispatching needs MAC addresses before liveness has a reason to query. The kernel's own neighbours come by netlink; it
    /// queries only hosts that it sends to.
    pub(super) fn resolve_event(&mut self, event: resolve::Event, now: Instant) {
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
