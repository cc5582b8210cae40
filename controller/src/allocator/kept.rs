//! Pure: addresses that were freed lately. A Service of the same namespace and name gets its address back, so that one that is
//! deleted and created again does not move; others get it if they ask for it, or if the pool is otherwise full.
//!
//! Every replica keeps them, by what its own watch shows, so that a change of leader forgets none. A restart forgets all.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use sheave_api::excerpt;

use super::runs::Runs;
use crate::family::{Family, number};
use crate::view::ServiceKey;

/// Addresses, and for whom.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    entries: BTreeMap<IpAddr, Entry>,
    /// The same, as numbers.
    runs: Runs,
}

#[derive(Clone, Debug)]
struct Entry {
    services: Vec<ServiceKey>,
    span: Duration,
    /// None until the next `tick`.
    until: Option<Instant>,
}

impl Kept {
    /// Services have lost the address.
    pub fn add(&mut self, address: IpAddr, services: impl Iterator<Item = ServiceKey>, span: Duration) {
        let mut services: Vec<ServiceKey> = services.collect();
        if services.is_empty() || span.is_zero() {
            return;
        }
        services.extend(self.entries.remove(&address).into_iter().flat_map(|earlier| earlier.services));
        services.truncate(MAX_SERVICES);
        if self.entries.len() >= MAX_ADDRESSES
            && let Some(first) = self.oldest(|_| true)
        {
            self.remove(first);
        }
        self.runs.insert(number(address));
        self.entries.insert(address, Entry { services, span, until: None });
    }

    /// A Service has the address again.
    pub fn returned(&mut self, address: IpAddr, service: &ServiceKey) {
        if let Some(entry) = self.entries.get_mut(&address) {
            entry.services.retain(|other| other != service);
            if entry.services.is_empty() {
                self.remove(address);
            }
        }
    }

    /// Begins the time of what was added, and ends what is over.
    pub fn tick(&mut self, now: Instant) {
        let over = self.entries.extract_if(.., |_, entry| *entry.until.get_or_insert(now + entry.span) <= now);
        over.for_each(|(address, _)| self.runs.remove(number(address)));
    }

    fn remove(&mut self, address: IpAddr) {
        self.entries.remove(&address);
        self.runs.remove(number(address));
    }

    /// The last number of the run of kept addresses that contains this one.
    pub fn run(&self, number: u128) -> Option<u128> {
        self.runs.end(number)
    }

    /// Addresses that are kept for this Service, the lowest first.
    pub fn of(&self, service: &ServiceKey, family: Family) -> impl Iterator<Item = IpAddr> {
        let kept = self.entries.iter().filter(|(_, entry)| entry.services.contains(service));
        kept.map(|(address, _)| *address).filter(move |address| Family::of(*address) == family)
    }

    /// All of them, the one that is kept for the shortest time from now on in front.
    pub fn by_age(&self) -> impl Iterator<Item = IpAddr> {
        let mut all: Vec<(bool, Option<Instant>, IpAddr)> =
            self.entries.iter().map(|(address, entry)| (entry.until.is_none(), entry.until, *address)).collect();
        all.sort();
        all.into_iter().map(|(.., address)| address)
    }

    /// Of those that fit, the one that is kept for the shortest time from now on.
    pub fn oldest(&self, fits: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let fitting = self.entries.iter().filter(|(address, _)| fits(**address));
        let oldest = fitting.min_by_key(|(address, entry)| (entry.until.is_none(), entry.until, **address));
        oldest.map(|(address, _)| *address)
    }
}

/// How long unless the pool says otherwise.
pub const DEFAULT: Duration = Duration::from_secs(300);
const MOST: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads the annotation of a pool: `90s`, `5m`, `1h`, or `0`.
pub fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let (number, seconds) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3600),
        _ if text == "0" => (text, 1),
        _ => ("", 1),
    };
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let span =
        number.parse().ok().filter(|_| digits).and_then(|n: u64| n.checked_mul(seconds)).map(Duration::from_secs);
    span.filter(|span| *span <= MOST).ok_or_else(|| {
        format!(
            "'{}' is no time to keep a freed address; allowed are 0s to 24h, as 90s, 5m or 1h; 5m holds until then",
            excerpt(text)
        )
    })
}

/// Addresses that are kept at a time: more than are freed within the time by anything but a mistake.
const MAX_ADDRESSES: usize = 4096;
/// Services that one address is kept for.
const MAX_SERVICES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_or_refused_with_what_is_allowed() {
        let seconds = |text| parse(text).map(|span| span.as_secs());
        assert_eq!((seconds("90s"), seconds(" 5m "), seconds("24h")), (Ok(90), Ok(300), Ok(86400)));
        assert_eq!((seconds("0"), seconds("0s")), (Ok(0), Ok(0)));
        for wrong in ["", "s", "5", "-5m", "+5m", "25h", "1.5h", "5 m", "5ms", "99999999999999999999s", "5µ"] {
            let said = parse(wrong).expect_err(wrong);
            assert!(said.starts_with(&format!("'{wrong}' is no time")) && said.contains("0s to 24h"), "{said}");
        }
    }

    #[test]
    fn the_time_begins_with_the_first_tick_and_memory_is_bounded() {
        let (now, mut kept) = (Instant::now(), Kept::default());
        let key = |n: u32| ServiceKey { namespace: "a".into(), name: n.to_string() };
        let address = |n: u32| IpAddr::V4((0x0a00_0000 + n).into());
        kept.add(address(7), [key(7)].into_iter(), Duration::from_secs(10));
        kept.tick(now);
        kept.tick(now + Duration::from_secs(9));
        assert_eq!(kept.of(&key(7), Family::V4).collect::<Vec<_>>(), [address(7)]);
        assert_eq!(kept.of(&key(7), Family::V6).count(), 0);
        let most = u32::try_from(MAX_ADDRESSES).unwrap();
        (100..100 + most).for_each(|n| kept.add(address(n), [key(n)].into_iter(), Duration::from_secs(10)));
        let run = |kept: &Kept, n| kept.run(number(address(n)));
        assert_eq!(kept.entries.len(), MAX_ADDRESSES);
        assert_eq!(run(&kept, 7), None, "the oldest makes room");
        assert_eq!(run(&kept, 100), Some(number(address(99 + most))));
        kept.tick(now + Duration::from_secs(20));
        kept.tick(now + Duration::from_secs(30));
        assert!(kept.entries.is_empty() && kept.runs == Runs::default());
    }
}
