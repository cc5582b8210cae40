//! The segment between the nodes: directed links that lose, delay, duplicate and overtake.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::random::Random;

/// Datagrams under way at most; a run that reaches it is broken.
const UNDER_WAY_MAX: usize = 100_000;

/// A directed link.
pub type Link = (usize, usize);

#[derive(Clone, Debug)]
pub struct Weather {
    pub loss_per_mille: u32,
    pub duplicate_per_mille: u32,
    pub delay: std::ops::Range<Duration>,
}

impl Weather {
    pub fn fair() -> Self {
        let delay = Duration::from_micros(50)..Duration::from_micros(400);
        Self { loss_per_mille: 0, duplicate_per_mille: 0, delay }
    }
}

#[derive(Debug)]
pub struct Network {
    weather: Weather,
    cut: BTreeSet<Link>,
    under_way: BTreeMap<(Duration, u64), Delivery>,
    counter: u64,
    /// Since when everything sent on a link has arrived.
    whole_since: BTreeMap<Link, Duration>,
}

#[derive(Clone, Debug)]
pub struct Delivery {
    pub to: usize,
    pub datagram: Vec<u8>,
}

impl Network {
    pub fn new() -> Self {
        Self {
            weather: Weather::fair(),
            cut: BTreeSet::new(),
            under_way: BTreeMap::new(),
            counter: 0,
            whole_since: BTreeMap::new(),
        }
    }

    pub fn send(&mut self, now: Duration, link: Link, datagram: &[u8], random: &mut Random) {
        if self.cut.contains(&link) || random.chance(self.weather.loss_per_mille) {
            self.broke_link(now, link);
            return;
        }
        let copies = if random.chance(self.weather.duplicate_per_mille) { 2 } else { 1 };
        for _ in 0..copies {
            let at = now + random.duration(self.weather.delay.clone());
            self.inject(at, link.1, datagram.to_vec());
        }
    }

    /// What is under way still has the old delay.
    pub fn change_weather(&mut self, now: Duration, weather: Weather, nodes: usize) {
        let calm = now + self.weather.delay.end;
        self.weather = weather;
        (0..nodes).for_each(|node| self.broke(calm, node, nodes));
    }

    /// How long a datagram is under way at most.
    pub fn delay_max(&self) -> Duration {
        self.weather.delay.end
    }

    /// From nowhere: recordings and forgeries.
    pub fn inject(&mut self, at: Duration, to: usize, datagram: Vec<u8>) {
        assert!(self.under_way.len() < UNDER_WAY_MAX, "a storm of datagrams");
        self.counter += 1;
        self.under_way.insert((at, self.counter), Delivery { to, datagram });
    }

    pub fn next(&self) -> Option<Duration> {
        self.under_way.first_key_value().map(|((at, _), _)| *at)
    }

    pub fn take(&mut self, now: Duration) -> Option<Delivery> {
        let first = self.under_way.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(first.remove())
    }

    pub fn cut(&mut self, now: Duration, link: Link) {
        self.cut.insert(link);
        self.broke_link(now, link);
    }

    /// Everything is whole from now on.
    pub fn heal(&mut self, now: Duration) {
        for link in core::mem::take(&mut self.cut) {
            self.broke_link(now, link);
        }
    }

    /// Something else on the way broke: a node that froze, a link without carrier.
    pub fn broke(&mut self, now: Duration, node: usize, nodes: usize) {
        for other in 0..nodes {
            self.broke_link(now, (node, other));
            self.broke_link(now, (other, node));
        }
    }

    fn broke_link(&mut self, now: Duration, link: Link) {
        let since = self.whole_since.entry(link).or_default();
        *since = now.max(*since);
    }

    /// Since when everything sent between these two has arrived; `None` if a link is cut.
    pub fn whole_since(&self, a: usize, b: usize) -> Option<Duration> {
        let since = |link| self.whole_since.get(&link).copied().unwrap_or_default();
        let cut = self.cut.contains(&(a, b)) || self.cut.contains(&(b, a));
        (!cut).then(|| since((a, b)).max(since((b, a))))
    }
}
