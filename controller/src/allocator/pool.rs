//! Pure: a pool's addresses in order: what it contains, the lowest that is free, how many there are.

mod guarded;

use std::net::IpAddr;
use std::time::Duration;

use sheave_api::{AddressRange, PoolReason, RETENTION_ANNOTATION};

use super::kept;
use super::selection::Selection;
use super::span::{self, Span};
use crate::family::{Family, address, number};
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
    pub fn contains(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        let (number, spans) = (number(address), self.spans(Family::of(address)));
        // Sorted, so the last one that starts below it is the only one that can contain it.
        let below = spans.partition_point(|span| span.first <= number);
        self.allows(number) && spans[..below].last().is_some_and(|span| span.contains(number))
    }

    /// Whether it can grant addresses of this family.
    pub fn has(&self, family: Family) -> bool {
        self.usable(family) > 0
    }

    /// The addresses of a family that no guard keeps back and that are not taken, lowest first. `run`: the last number of the run of
    /// taken ones that contains this number. Lazy: what is guarded or taken in a row costs one step, whatever its length.
    pub fn open<'a>(
        &'a self,
        family: Family,
        guards: &'a GuardSet,
        run: impl Fn(u128) -> Option<u128> + Copy + 'a,
    ) -> impl Iterator<Item = IpAddr> + 'a {
        let gaps = self.spans(family).iter().flat_map(|span| guards.gaps(span.first, span.last));
        gaps.flat_map(move |(first, last)| {
            let mut next = Some(first);
            std::iter::from_fn(move || {
                loop {
                    let number = next.filter(|number| *number <= last)?;
                    let end = run(number);
                    next = end.unwrap_or(number).checked_add(1);
                    if end.is_none() && self.allows(number) {
                        return Some(address(number));
                    }
                }
            })
        })
    }

    /// Addresses of all entries, of both families; computed, not counted.
    pub fn total(&self) -> u128 {
        self.total
    }

    /// How many addresses of a family it can grant in all.
    pub fn usable(&self, family: Family) -> u128 {
        let spans = self.spans(family);
        let buggy = self.avoid_buggy && family == Family::V4;
        span::count(spans) - if buggy { span::endings(spans, 0) + span::endings(spans, 255) } else { 0 }
    }

    /// Addresses of the entries that are never granted.
    pub fn excluded(&self) -> u128 {
        self.total - Family::ALL.into_iter().map(|family| self.usable(family)).sum::<u128>()
    }

    /// Its spans of numbers of a family, lowest first.
    pub fn spans(&self, family: Family) -> &[Span] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    fn allows(&self, number: u128) -> bool {
        !self.avoid_buggy || address(number).is_ipv6() || !matches!(number & 0xff, 0 | 0xff)
    }

    fn overlaps(&self, other: &Pool) -> bool {
        span::overlap(&self.v4, &other.v4) || span::overlap(&self.v6, &other.v6)
    }
}

impl From<AddressRange> for Span {
    fn from(range: AddressRange) -> Self {
        Span { first: number(range.first()), last: number(range.last()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::example_pool;

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn pool(entries: &[&str], exclusions: &[&str]) -> Pool {
        let mut view = example_pool("p", entries);
        view.spec.exclusions = exclusions.iter().map(|entry| entry.to_string()).collect();
        Pool::parse(&view)
    }

    #[test]
    fn entries_that_overlap_or_touch_are_counted_once() {
        let pool = pool(&["192.0.2.4/30", "192.0.2.0/30", "192.0.2.2-192.0.2.9", "192.0.2.99"], &[]);
        assert_eq!((pool.total(), pool.usable(Family::V4), pool.excluded()), (11, 11, 0));
        let given: Vec<IpAddr> = pool.open(Family::V4, &GuardSet::default(), |_| None).skip(9).collect();
        assert_eq!(given, [ip(9), ip(99)]);
    }

    #[test]
    fn exclusions_are_neither_given_nor_part_of_an_overlap() {
        let p = pool(&["192.0.2.0/24"], &["192.0.2.0/31", "192.0.2.4 - 192.0.2.9", "192.0.2.3", "198.51.100.0/24"]);
        assert_eq!((p.total(), p.usable(Family::V4), p.excluded()), (256, 247, 9));
        let given: Vec<u8> = (0..12).filter(|n| p.contains(ip(*n))).collect();
        assert_eq!(given, [2, 10, 11]);
        let open: Vec<IpAddr> = p.open(Family::V4, &GuardSet::default(), |_| None).take(3).collect();
        assert_eq!(open, [ip(2), ip(10), ip(11)]);
        assert!(!p.overlaps(&pool(&["192.0.2.5-192.0.2.8"], &[])) && p.overlaps(&pool(&["192.0.2.5-192.0.2.10"], &[])));
        assert!(!pool(&["192.0.2.0/30"], &["192.0.0.0/16"]).has(Family::V4));
    }

    /// Neither the length of what is taken nor of what is guarded costs time: this would take years otherwise.
    #[test]
    fn families_are_given_apart_and_wide_ranges_cost_nothing() {
        let pool = pool(&["2001:db8::/32", "192.0.2.0/30"], &["2001:db8::/48"]);
        assert_eq!((pool.usable(Family::V4), pool.usable(Family::V6)), (4, (1 << 96) - (1 << 80)));
        assert_eq!((pool.total(), pool.excluded()), ((1 << 96) + 4, 1 << 80));
        let mut guards = GuardSet::default();
        let guarded: ipnet::IpNet = "2001:db8:1::/64".parse().unwrap();
        guards.add_network(guarded, sheave_api::Refusal::AddressInPodRange, "in a pod range");
        let all_of =
            |number: u128| number.checked_sub(0x2001_0db8_0001_0001 << 64).map(|_| number | u128::from(u64::MAX));
        let open = |run: fn(u128) -> Option<u128>| pool.open(Family::V6, &guards, run).next().map(|a| a.to_string());
        assert_eq!(open(|_| None).as_deref(), Some("2001:db8:1:1::"));
        let taken = |number| if number < 0x2001_0db8_0002_0000 << 64 { all_of(number) } else { None };
        assert_eq!(
            pool.open(Family::V6, &guards, taken).next().map(|a| a.to_string()).as_deref(),
            Some("2001:db8:2::")
        );
        assert!(
            pool.open(Family::V4, &guards, |_| None).map(|a| a.to_string()).eq((0..4).map(|n| format!("192.0.2.{n}")))
        );
        let has = |text: &str| pool.contains(text.parse::<IpAddr>().unwrap());
        assert!(
            has("2001:db8:1::1") && !has("2001:db8::1") && !has("2001:db9::") && has("192.0.2.3") && !has("192.0.2.4")
        );
    }

    #[test]
    fn buggy_addresses_are_those_of_ipv4() {
        let mut view = example_pool("p", &["2001:db8::/120"]);
        view.spec.avoid_buggy_ips = true;
        let pool = Pool::parse(&view);
        assert_eq!((pool.usable(Family::V6), pool.excluded()), (256, 0));
        assert!(pool.contains("2001:db8::ff".parse::<IpAddr>().unwrap()));
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
            let counted = (span.first..=span.last).filter(|n| pool.contains(address(*n))).count();
            assert_eq!(pool.usable(Family::V4), counted as u128, "{entry}");
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
            assert!(pool.contains(ip(1)), "what was granted from the good part is still inside");
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
