//! Pure: a pool's addresses in order: what it contains, the lowest that is free, how many there are.

use std::net::Ipv4Addr;

use sheave_api::{AddressRange, PoolReason};

use crate::view::PoolView;

/// A pool with its entries parsed, sorted and merged.
#[derive(Clone, Debug)]
pub struct Pool {
    pub name: String,
    pub auto_assign: bool,
    /// Whether new addresses are granted from it, and if not, why.
    pub reason: PoolReason,
    /// The sentence that belongs to the reason.
    pub message: String,
    avoid_buggy: bool,
    ranges: Vec<Span>,
}

/// An inclusive range of addresses as numbers; merging may join several entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    first: u32,
    last: u32,
}

/// Parses all pools. Of two that overlap the older one stays ready: adding a pool never takes one away.
pub fn parse_all<'a>(views: impl Iterator<Item = &'a PoolView>) -> Vec<Pool> {
    let mut views: Vec<&PoolView> = views.collect();
    views.sort_by_key(|view| (view.created, &view.name));
    let mut pools: Vec<Pool> = Vec::with_capacity(views.len());
    for view in views {
        let mut pool = Pool::parse(view);
        let rival = pools.iter().find(|other| other.reason == PoolReason::Valid && pool.overlaps(other));
        if let (PoolReason::Valid, Some(rival)) = (pool.reason, rival) {
            pool.reason = PoolReason::Overlapping;
            pool.message = format!("shares addresses with pool '{}', which is older", rival.name);
        }
        pools.push(pool);
    }
    pools
}

impl Pool {
    /// One entry that cannot be read makes the whole pool malformed: guessing at the rest could grant what its author
    /// meant to keep.
    fn parse(view: &PoolView) -> Pool {
        let mut pool = Pool {
            name: view.name.clone(),
            auto_assign: view.spec.auto_assign,
            reason: PoolReason::Valid,
            message: "addresses are granted from this pool".to_string(),
            avoid_buggy: view.spec.avoid_buggy_ips,
            ranges: Vec::new(),
        };
        for entry in &view.spec.addresses {
            match entry.parse::<AddressRange>() {
                Ok(range) => pool.ranges.push(Span { first: range.first().into(), last: range.last().into() }),
                Err(malformed) if pool.reason == PoolReason::Valid => {
                    pool.reason = PoolReason::Malformed;
                    pool.message = malformed.to_string();
                }
                Err(_) => {}
            }
        }
        pool.ranges = merge(std::mem::take(&mut pool.ranges));
        pool
    }

    pub fn is_ready(&self) -> bool {
        self.reason == PoolReason::Valid
    }

    /// Whether the pool's entries contain this address and its settings allow it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let number = u32::from(address);
        self.allows(number) && self.ranges.iter().any(|span| span.first <= number && number <= span.last)
    }

    /// The lowest address for which `is_free`. Lazy: stops at the first.
    pub fn lowest(&self, is_free: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        let numbers = self.ranges.iter().flat_map(|span| span.first..=span.last);
        numbers.filter(|number| self.allows(*number)).map(Ipv4Addr::from).find(|address| is_free(*address))
    }

    /// How many addresses it can grant in all; computed, not counted.
    pub fn total(&self) -> u64 {
        self.ranges
            .iter()
            .map(|span| {
                let all = u64::from(span.last) - u64::from(span.first) + 1;
                if self.avoid_buggy { all - endings(*span, 0) - endings(*span, 255) } else { all }
            })
            .sum()
    }

    fn allows(&self, number: u32) -> bool {
        !self.avoid_buggy || !matches!(number & 0xff, 0 | 0xff)
    }

    fn overlaps(&self, other: &Pool) -> bool {
        self.ranges.iter().any(|a| other.ranges.iter().any(|b| a.first <= b.last && b.first <= a.last))
    }
}

/// Sorts, and joins what overlaps or touches.
fn merge(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort();
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.first <= last.last.saturating_add(1) => last.last = last.last.max(span.last),
            _ => merged.push(span),
        }
    }
    merged
}

/// How many numbers in the span have this last octet.
fn endings(span: Span, octet: u64) -> u64 {
    let up_to = |bound: u64| if bound < octet { 0 } else { (bound - octet) / 256 + 1 };
    let before = match u64::from(span.first) {
        0 => 0,
        first => up_to(first - 1),
    };
    up_to(u64::from(span.last)) - before
}

#[cfg(test)]
mod tests {
    use sheave_api::{AddressPoolSpec, AddressPoolStatus};

    use super::*;

    fn view(name: &str, created: i64, entries: &[&str]) -> PoolView {
        let addresses = entries.iter().map(|e| e.to_string()).collect();
        PoolView {
            name: name.into(),
            uid: format!("uid of {name}"),
            version: 1,
            created,
            generation: 1,
            spec: AddressPoolSpec { addresses, auto_assign: true, avoid_buggy_ips: false },
            status: AddressPoolStatus::default(),
        }
    }

    #[test]
    fn entries_that_overlap_or_touch_are_counted_once() {
        let pool =
            Pool::parse(&view("p", 0, &["192.0.2.4/30", "192.0.2.0/30", "192.0.2.2-192.0.2.9", "192.0.2.99/32"]));
        assert_eq!(pool.total(), 11);
        assert_eq!(pool.lowest(|a| a > Ipv4Addr::new(192, 0, 2, 9)), Some(Ipv4Addr::new(192, 0, 2, 99)));
    }

    #[test]
    fn buggy_addresses_are_left_out_and_counted_exactly() {
        for entry in
            ["192.0.2.0/24", "192.0.2.0-192.0.2.0", "192.0.1.255-192.0.3.0", "192.0.2.1-192.0.2.254", "10.0.0.0/20"]
        {
            let mut view = view("p", 0, &[entry]);
            view.spec.avoid_buggy_ips = true;
            let pool = Pool::parse(&view);
            let counted = entry.parse::<AddressRange>().unwrap().iter().filter(|a| pool.contains(*a)).count();
            assert_eq!(pool.total(), counted as u64, "{entry}");
        }
    }

    #[test]
    fn one_bad_entry_makes_the_pool_malformed_and_names_itself() {
        let pool = Pool::parse(&view("p", 0, &["192.0.2.0/30", "nonsense"]));
        assert_eq!(pool.reason, PoolReason::Malformed);
        assert!(pool.message.contains("'nonsense'"), "{}", pool.message);
        assert!(pool.contains(Ipv4Addr::new(192, 0, 2, 1)), "what was granted from the good part is still inside");
    }

    #[test]
    fn of_two_pools_that_overlap_the_older_stays_ready() {
        let pools = [view("a", 5, &["192.0.2.0/24"]), view("b", 3, &["192.0.2.128-192.0.3.1"])];
        let parsed = parse_all(pools.iter());
        let reason = |name: &str| parsed.iter().find(|p| p.name == name).unwrap().reason;
        assert_eq!((reason("a"), reason("b")), (PoolReason::Overlapping, PoolReason::Valid));
    }
}
