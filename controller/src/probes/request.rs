//! Pure: which addresses a speaker is asked for now. Requests are few: at rest one per subnet and [`Config::again`](super::Config).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Instant;

use sheave_api::ProbeVerdict;
use sheave_api::addressprobe::most;

use super::{Asked, ProbeWrite, Probes, Wanted};

/// Addresses next in line that are probed ahead, per pool.
pub const AHEAD: usize = 16;

impl Probes {
    /// Speakers that may have to be asked.
    pub fn nodes(&mut self, now: Instant) -> BTreeSet<String> {
        let subnets: Vec<_> = self.segments.subnets().collect();
        subnets.into_iter().filter_map(|subnet| self.choice.of(subnet, &self.segments, now)).collect()
    }

    /// How many addresses per pool are next in line: more while Services wait.
    pub fn ahead(&self) -> usize {
        (AHEAD + self.waiting.len()).min(most::ADDRESSES)
    }

    /// The request to this node's speaker, if there is one to be made. `ahead`: the addresses next in line of each pool; `in_pools`: whether
    /// a pool contains an address.
    pub fn request(
        &mut self,
        node: &str,
        ahead: &[Vec<Ipv4Addr>],
        in_pools: impl Fn(Ipv4Addr) -> bool,
        now: Instant,
    ) -> Option<ProbeWrite> {
        let owner = self.segments.owner(node)?.to_string();
        let mine = |address: &Ipv4Addr| self.asks(node, *address);
        let new = |(address, wanted): (&Ipv4Addr, &Wanted)| (*wanted == Wanted::New).then_some(*address);
        let wanted: Vec<Ipv4Addr> = self.wanted.iter().filter_map(new).filter(mine).collect();
        let under_way = self.under_way.get(node).and_then(|asked| asked.last());
        let mut addresses = under_way.map(|asked| asked.addresses.clone()).unwrap_or_default();
        // Its answer says what is next.
        if !addresses.is_empty() && (wanted.is_empty() || addresses.len() >= most::ADDRESSES) {
            return None;
        }
        let ahead: Vec<Vec<Ipv4Addr>> = ahead.iter().map(|pool| pool.iter().copied().filter(mine).collect()).collect();
        let used = self.used(node, in_pools);
        // However many they are: what there is no room for waits for the next turn.
        let turn = self.asked.get(node).map_or(now, |asked| *asked + self.config.again);
        let used_is_due = turn <= now && used.iter().any(|one| self.is_old(*one, now, 1));
        let is_due = used_is_due || ahead.iter().any(|pool| self.is_due(pool, now));
        if wanted.is_empty() && !is_due {
            self.plan_ahead(node, ahead.iter().flatten(), used.first().map(|_| turn));
            return None;
        }
        // What would be due soon comes along, unless it would only delay the answer that a Service waits for.
        let along = ahead.iter().flatten().chain(&used).copied().filter(|_| is_due);
        let along = along.filter(|address| self.is_old(*address, now, 2));
        for address in wanted.into_iter().chain(along) {
            if addresses.len() < most::ADDRESSES && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Some(self.ask(node, owner, addresses, now))
    }

    /// Whether this node's speaker is the one that is asked for the address.
    fn asks(&self, node: &str, address: Ipv4Addr) -> bool {
        self.segments.subnet(address).is_some_and(|subnet| self.choice.is_chosen(&subnet, node))
    }

    /// Addresses of pools that hosts use: they are probed again, too, the oldest first.
    fn used(&self, node: &str, in_pools: impl Fn(Ipv4Addr) -> bool) -> Vec<Ipv4Addr> {
        let hosts = self.results.answers(&self.segments);
        let hosts = hosts.filter(|(_, answer)| answer.verdict == ProbeVerdict::AnsweredByHost);
        let mut used: Vec<Ipv4Addr> =
            hosts.map(|(address, _)| address).filter(|one| self.asks(node, *one) && in_pools(*one)).collect();
        used.sort_by_key(|address| self.results.probed(*address));
        used
    }

    /// Whether one is to be probed again, or more than half were never probed.
    fn is_due(&self, pool: &[Ipv4Addr], now: Instant) -> bool {
        let unknown = pool.iter().filter(|address| self.results.probed(**address).is_none()).count();
        unknown * 2 > pool.len()
            || pool.iter().any(|one| self.results.probed(*one).is_some() && self.is_old(*one, now, 1))
    }

    /// Whether this part of the time has passed since it was probed.
    fn is_old(&self, address: Ipv4Addr, now: Instant, part: u32) -> bool {
        self.results.probed(address).is_none_or(|at| at + self.config.again / part <= now)
    }

    /// When the first of these is due, or the next turn comes.
    fn plan_ahead<'a>(&mut self, node: &str, ahead: impl Iterator<Item = &'a Ipv4Addr>, turn: Option<Instant>) {
        let probed = ahead.filter_map(|address| self.results.probed(*address));
        match probed.map(|at| at + self.config.again).chain(turn).min() {
            Some(next) => drop(self.due.insert(node.to_string(), next)),
            None => drop(self.due.remove(node)),
        }
    }

    fn ask(&mut self, node: &str, owner: String, addresses: Vec<Ipv4Addr>, now: Instant) -> ProbeWrite {
        let known = self.objects.get(&node.to_string());
        let asked = self.under_way.entry(node.to_string()).or_default();
        let rounds =
            known.map(|known| known.round.max(known.observed)).into_iter().chain(asked.last().map(|last| last.round));
        let round = rounds.max().unwrap_or_default() + 1;
        let seen = known.map(|known| (known.uid.clone(), known.version));
        self.asked.insert(node.to_string(), now);
        asked.push(Asked { round, at: now, addresses: addresses.clone() });
        for address in &addresses {
            if let Some(wanted @ Wanted::New) = self.wanted.get_mut(address) {
                *wanted = Wanted::Asked(now);
            }
        }
        ProbeWrite { node: node.to_string(), owner, seen, round, addresses }
    }
}
