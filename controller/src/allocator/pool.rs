//! Pure: a pool's addresses in order: what it contains, the lowest that is free, how many there are.

mod guarded;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use sheave_api::{AddressRange, PoolReason, RETENTION_ANNOTATION};

use super::kept;
use super::selection::Selection;
use super::span::{self, Span};
use crate::guards::GuardSet;
use crate::view::PoolView;

/// A pool with its entries parsed, sorted and merged.
#[derive(Clone, Debug)]
pub struct Pool {
    pub name: String,
    pub auto_assign: bool,
    pub selection: Selection,
    /// Whether new addresses are granted from it, and if not, why.
    pub reason: PoolReason,
    /// The sentence that belongs to the reason.
    pub message: String,
    /// The sentence about another pool that has some of its addresses.
    pub conflict: Option<String>,
    /// How long a freed address is kept for its Service.
    pub retention: Duration,
    priority: Option<i32>,
    avoid_buggy: bool,
    /// Without exclusions.
    v4: Vec<Span>,
    v6: Vec<Span>,
    /// Addresses of all entries.
    total: u128,
}

/// Parses all pools. Of two that overlap the older one stays ready: adding a pool never takes one away.
pub fn parse_all<'a>(views: impl Iterator<Item = &'a PoolView>) -> Vec<Pool> {
    let mut views: Vec<&PoolView> = views.collect();
    views.sort_by_key(|view| (view.created, &view.name));
    let mut pools: Vec<Pool> = Vec::with_capacity(views.len());
    for view in views {
        let mut pool = Pool::parse(view);
        if let Some(rival) = pools.iter_mut().find(|other| other.is_ready() && pool.is_ready() && pool.overlaps(other))
        {
            let younger = format!("shares addresses with pool '{}', which is younger and grants none", pool.name);
            rival.conflict.get_or_insert(younger);
            pool.reason = PoolReason::Overlapping;
            pool.message = format!("shares addresses with pool '{}', which is older", rival.name);
            pool.conflict = Some(pool.message.clone());
        }
        pools.push(pool);
    }
    pools
}

impl Pool {
    /// One entry that cannot be read makes the whole pool malformed: guessing at the rest could grant what its author
    /// meant to keep.
    fn parse(view: &PoolView) -> Pool {
        let spec = &view.spec;
        let mut malformed = None;
        let mut spans = |entries: &[String], field: &str| {
            let (mut v4, mut v6) = (Vec::new(), Vec::new());
            for entry in entries {
                match entry.parse::<AddressRange>() {
                    Ok(range) if range.first().is_ipv4() => v4.push(Span::from(range)),
                    Ok(range) => v6.push(Span::from(range)),
                    Err(error) => drop(malformed.get_or_insert(format!("{field}: {error}"))),
                }
            }
            (span::merge(v4), span::merge(v6))
        };
        let (v4, v6) = spans(&spec.addresses, "spec.addresses");
        let excluded = spans(&spec.exclusions, "spec.exclusions");
        let selection = Selection::new(spec).unwrap_or_else(|error| {
            malformed.get_or_insert(error);
            Selection::default()
        });
        let (reason, message) = match malformed {
            Some(message) => (PoolReason::Malformed, message),
            None if spec.disabled => (PoolReason::Disabled, "spec.disabled: Services keep their addresses".to_string()),
            None => (PoolReason::Valid, "addresses are granted from this pool".to_string()),
        };
        let (retention, message) = match view.retention.as_deref().map(kept::parse) {
            None => (kept::DEFAULT, message),
            Some(Ok(span)) => (span, message),
            Some(Err(error)) => (kept::DEFAULT, format!("{message}; annotation {RETENTION_ANNOTATION}: {error}")),
        };
        Pool {
            name: view.name.clone(),
            auto_assign: spec.auto_assign,
            selection,
            reason,
            message,
            conflict: None,
            retention,
            priority: spec.priority,
            avoid_buggy: spec.avoid_buggy_ips,
            total: span::count(&v4) + span::count(&v6),
            v4: span::without(v4, &excluded.0),
            v6: span::without(v6, &excluded.1),
        }
    }

    pub fn is_ready(&self) -> bool {
        self.reason == PoolReason::Valid
    }

    /// Pools in the order of this are tried one after the other: by priority, one without last. Of equal ones those that
    /// select come first: else their addresses would be left while Services that others may not serve take the common ones.
    pub fn order(&self) -> (i32, bool, &str) {
        (self.priority.unwrap_or(i32::MAX), !self.selection.is_restricted(), &self.name)
    }

    /// Whether the pool's entries contain this address and its settings allow it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let number = u32::from(address).into();
        self.allows(number) && self.v4.iter().any(|span| span.contains(number))
    }

    /// The lowest address that no guard keeps back and for which `is_free`.
    pub fn lowest(&self, guards: &GuardSet, is_free: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        self.unguarded(guards).find(|address| is_free(*address))
    }

    /// The addresses that no guard keeps back, lowest first. Lazy.
    pub fn unguarded(&self, guards: &GuardSet) -> impl Iterator<Item = Ipv4Addr> {
        let numbers = self.spans_v4().flat_map(|(first, last)| guards.gaps(first, last)).flat_map(|(a, b)| a..=b);
        numbers.filter(|number| self.allows(u128::from(*number))).map(Ipv4Addr::from)
    }

    /// Addresses of all entries, of both families; computed, not counted.
    pub fn total(&self) -> u128 {
        self.total
    }

    /// How many addresses of IPv4 it can grant in all.
    pub fn usable(&self) -> u128 {
        let all = span::count(&self.v4);
        if self.avoid_buggy { all - span::endings(&self.v4, 0) - span::endings(&self.v4, 255) } else { all }
    }

    /// Addresses of the entries that are never granted.
    pub fn excluded(&self) -> u128 {
        self.total - self.usable() - span::count(&self.v6)
    }

    fn allows(&self, number: u128) -> bool {
        !self.avoid_buggy || !matches!(number & 0xff, 0 | 0xff)
    }

    fn overlaps(&self, other: &Pool) -> bool {
        span::overlap(&self.v4, &other.v4) || span::overlap(&self.v6, &other.v6)
    }
}

impl From<AddressRange> for Span {
    fn from(range: AddressRange) -> Self {
        let number = |address| match address {
            IpAddr::V4(address) => u32::from(address).into(),
            IpAddr::V6(address) => u128::from(address),
        };
        Span { first: number(range.first()), last: number(range.last()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::example_pool;

    fn pool(entries: &[&str], exclusions: &[&str]) -> Pool {
        let mut view = example_pool("p", entries);
        view.spec.exclusions = exclusions.iter().map(|entry| entry.to_string()).collect();
        Pool::parse(&view)
    }

    #[test]
    fn entries_that_overlap_or_touch_are_counted_once() {
        let pool = pool(&["192.0.2.4/30", "192.0.2.0/30", "192.0.2.2-192.0.2.9", "192.0.2.99"], &[]);
        assert_eq!((pool.total(), pool.usable(), pool.excluded()), (11, 11, 0));
        assert_eq!(
            pool.lowest(&GuardSet::default(), |a| a > Ipv4Addr::new(192, 0, 2, 9)),
            Some(Ipv4Addr::new(192, 0, 2, 99))
        );
    }

    #[test]
    fn exclusions_are_neither_given_nor_part_of_an_overlap() {
        let p = pool(&["192.0.2.0/24"], &["192.0.2.0/31", "192.0.2.4 - 192.0.2.9", "192.0.2.3", "198.51.100.0/24"]);
        assert_eq!((p.total(), p.usable(), p.excluded()), (256, 247, 9));
        let given: Vec<u8> = (0..12).filter(|n| p.contains(Ipv4Addr::new(192, 0, 2, *n))).collect();
        assert_eq!(given, [2, 10, 11]);
        assert_eq!(p.lowest(&GuardSet::default(), |a| a.octets()[3] > 2), Some(Ipv4Addr::new(192, 0, 2, 10)));
        assert!(!p.overlaps(&pool(&["192.0.2.5-192.0.2.8"], &[])) && p.overlaps(&pool(&["192.0.2.5-192.0.2.10"], &[])));
        assert_eq!(pool(&["192.0.2.0/30"], &["192.0.0.0/16"]).lowest(&GuardSet::default(), |_| true), None);
    }

    #[test]
    fn ipv6_is_counted_and_not_given() {
        let pool = pool(&["2001:db8::/64", "192.0.2.0/30"], &["2001:db8::/120"]);
        assert_eq!((pool.total(), pool.usable(), pool.excluded()), ((1 << 64) + 4, 4, 256));
        assert!(pool.is_ready() && pool.lowest(&GuardSet::default(), |a| a > Ipv4Addr::new(192, 0, 2, 3)).is_none());
    }

    #[test]
    fn buggy_addresses_are_left_out_and_counted_exactly() {
        for entry in
            ["192.0.2.0/24", "192.0.2.0-192.0.2.0", "192.0.1.255-192.0.3.0", "192.0.2.1-192.0.2.254", "10.0.0.0/20"]
        {
            let mut view = example_pool("p", &[entry]);
            view.spec.avoid_buggy_ips = true;
            let pool = Pool::parse(&view);
            let span = Span::from(entry.parse::<AddressRange>().unwrap());
            let counted = (span.first..=span.last).filter(|n| pool.contains(u32::try_from(*n).unwrap().into())).count();
            assert_eq!(pool.usable(), counted as u128, "{entry}");
        }
    }

    #[test]
    fn one_bad_entry_makes_the_pool_malformed_and_names_itself() {
        for (entries, exclusions, field) in [
            (["192.0.2.0/30", "nonsense"], [].as_slice(), "spec.addresses"),
            (["192.0.2.0/30", "192.0.2.8"], ["nonsense"].as_slice(), "spec.exclusions"),
        ] {
            let pool = pool(&entries, exclusions);
            assert_eq!(pool.reason, PoolReason::Malformed);
            assert!(pool.message.starts_with(&format!("{field}: 'nonsense' is neither")), "{}", pool.message);
            assert!(pool.contains(Ipv4Addr::new(192, 0, 2, 1)), "what was granted from the good part is still inside");
        }
    }

    /// What cannot be read is said, and harms nothing.
    #[test]
    fn the_annotation_says_how_long_a_freed_address_is_kept() {
        let parsed = |text: Option<&str>| {
            Pool::parse(&PoolView { retention: text.map(str::to_string), ..example_pool("p", &["192.0.2.0"]) })
        };
        assert_eq!((parsed(None).retention, parsed(Some("0s")).retention), (Duration::from_secs(300), Duration::ZERO));
        let odd = parsed(Some("soon"));
        assert!(odd.is_ready() && odd.retention == Duration::from_secs(300));
        let says =
            "annotation sheave.dev/address-retention: 'soon' is no time to keep a freed address; allowed are 0s to 24h";
        assert!(odd.message.contains(says), "{}", odd.message);
    }

    #[test]
    fn of_two_pools_that_overlap_the_older_stays_ready_and_both_say_so() {
        for shared in ["192.0.2.128-192.0.3.1", "2001:db8::/64"] {
            let mut pools = [example_pool("a", &["192.0.2.0/24", "2001:db8::1"]), example_pool("b", &[shared])];
            (pools[0].created, pools[1].created) = (5, 3);
            let parsed = parse_all(pools.iter());
            let pool = |name: &str| parsed.iter().find(|p| p.name == name).unwrap();
            assert_eq!((pool("a").reason, pool("b").reason), (PoolReason::Overlapping, PoolReason::Valid));
            assert_eq!(pool("a").conflict.as_deref(), Some("shares addresses with pool 'b', which is older"));
            let says = "shares addresses with pool 'a', which is younger and grants none";
            assert_eq!(pool("b").conflict.as_deref(), Some(says));
            pools[1].spec.disabled = true;
            assert!(
                parse_all(pools.iter()).iter().all(|pool| pool.conflict.is_none()),
                "one that grants none is no rival"
            );
        }
    }
}
