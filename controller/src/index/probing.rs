//! Pure: probes of addresses among all that is known: which are next in line, and what waits for an answer.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::{Index, Subject, Write};
use crate::probes::{About, Changes, Gate};
use crate::view::ServiceKey;

impl Index {
    /// Takes what speakers have found into the guards. Followers do it, too: one of them leads next.
    pub(crate) fn observe_probes(&mut self, now: Instant) {
        self.probes.tick(now);
        self.guards_outdated |= self.probes.take_used();
    }

    /// Marks what follows from answers, and from silence.
    pub(crate) fn follow_probes(&mut self, now: Instant) {
        let Changes { answers, pools, look, used: _ } = self.probes.take_changes();
        if answers {
            let waiting = self.probes.take_waiting();
            waiting.iter().for_each(|service| self.mark_service(service));
        }
        if pools {
            self.dirty.extend(self.pools.iter().map(|(name, _)| Subject::Pool(name.clone())));
        }
        if look {
            self.dirty.extend(self.probes.nodes(now).into_iter().map(Subject::Probe));
        }
    }

    pub(crate) fn plan_probe(&mut self, node: &str, now: Instant) -> Option<Write> {
        // Grants change what is next in line one after the other.
        self.not_before.insert(Subject::Probe(node.to_string()), now + BETWEEN_PROBES);
        let ahead = self.allocator.ahead(self.probes.ahead());
        let in_pools = |address: Ipv4Addr| self.allocator.is_in_pools(address);
        self.probes.request(node, &ahead, in_pools, now).map(Write::Probe)
    }

    /// Whether the addresses may be granted to the Service now, as far as hosts of the segment matter.
    pub(crate) fn may_grant(&mut self, service: &ServiceKey, addresses: &[IpAddr], now: Instant) -> bool {
        // What the ledger has is shared, whoever answers. Probes are ARP.
        let probed = addresses.iter().filter_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4).filter(|_| self.grants.get(address).is_none()),
            IpAddr::V6(_) => None,
        });
        let probed: Vec<Ipv4Addr> = probed.collect();
        match self.probes.gate(&probed, service, now) {
            Gate::Open | Gate::NotProbed => true,
            Gate::Wait(nodes) => {
                for node in nodes {
                    let subject = Subject::Probe(node);
                    self.not_before.remove(&subject);
                    self.dirty.insert(subject);
                }
                false
            }
        }
    }

    pub(crate) fn about_probes(&self, pool: &str) -> About {
        let spans: Vec<(u32, u32)> = self.allocator.pool(pool).into_iter().flat_map(|pool| pool.spans_v4()).collect();
        self.probes.about(&spans)
    }
}

/// Between two plans about one speaker, unless an address is asked for.
pub(super) const BETWEEN_PROBES: Duration = Duration::from_millis(50);
