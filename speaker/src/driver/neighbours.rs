//! The other nodes on the segment, and this node's own place there: which are queried by ARP, and what they are sent when an
//! address of the uplink changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use speaker_core::announce;
use speaker_core::liveness;
use speaker_core::machine::Machine;
use speaker_core::name::NodeName;
use speaker_core::presence;
use speaker_core::resolve;
use speaker_core::time::Instant;
use speaker_core::unverified;
use tracing::info;

use super::State;
use crate::dataplane::sync::Message;
use crate::io::Mac;
use crate::io::arp::Heard;

/// No query is due.
const NEVER: Instant = Instant::from_nanos(u64::MAX);

impl State {
    pub(super) fn set_nodes(&mut self, nodes: BTreeMap<NodeName, Ipv4Addr>, now: Instant) {
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
        self.attend(presence::Event::Nodes(names.clone()), now);
        self.judge_unverified(unverified::Event::Nodes(names), now);
        if changed {
            self.tell_unavailable();
        }
    }

    pub(super) fn take_heard(&mut self, heard: &Heard, now: Instant) {
        let Some(node) = self.by_address.get(&heard.ip).cloned() else { return };
        if self.macs.insert(heard.ip, heard.mac) != Some(heard.mac) {
            self.tell(Message::Neighbour { ip: heard.ip, mac: heard.mac });
        }
        self.resolve_event(resolve::Event::Known(node.clone()), now);
        if heard.program {
            self.attend(presence::Event::Program(node.clone()), now);
        }
        let sign = if heard.reply { liveness::Event::ProbeReply(node) } else { liveness::Event::Seen(node) };
        self.watch(sign, now);
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
