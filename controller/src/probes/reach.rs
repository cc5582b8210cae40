//! Pure: which speakers reach which addresses, and which of them is asked. One speaker per subnet, and the same one as long as it answers:
//! every probe is a broadcast that wakes all hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

/// What speakers report of the segments of their nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    /// Nodes by the subnets of their uplinks.
    subnets: BTreeMap<Ipv4Net, BTreeSet<String>>,
    /// By node: the uid of its SpeakerState.
    owners: BTreeMap<String, String>,
    /// Nodes by the Ethernet addresses of their uplinks.
    macs: BTreeMap<String, String>,
}

impl Segments {
    pub fn add<'a>(
        &mut self,
        node: &str,
        owner: &str,
        subnets: impl IntoIterator<Item = &'a Ipv4Net>,
        macs: impl IntoIterator<Item = &'a String>,
    ) {
        // Where there are two hosts at most there is no pool.
        for subnet in subnets.into_iter().filter(|subnet| subnet.prefix_len() <= 30) {
            self.subnets.entry(*subnet).or_default().insert(node.to_string());
        }
        self.owners.insert(node.to_string(), owner.to_string());
        self.macs.extend(macs.into_iter().map(|mac| (mac.clone(), node.to_string())));
    }

    /// The narrowest subnet that contains the address.
    pub fn subnet(&self, address: Ipv4Addr) -> Option<Ipv4Net> {
        let containing = self.subnets.keys().filter(|subnet| subnet.contains(&address));
        containing.max_by_key(|subnet| subnet.prefix_len()).copied()
    }

    pub fn nodes(&self, subnet: &Ipv4Net) -> impl Iterator<Item = &String> {
        self.subnets.get(subnet).into_iter().flatten()
    }

    pub fn subnets(&self) -> impl Iterator<Item = Ipv4Net> {
        self.subnets.keys().copied()
    }

    pub fn owner(&self, node: &str) -> Option<&str> {
        self.owners.get(node).map(String::as_str)
    }

    /// The node that has this Ethernet address.
    pub fn node_with(&self, mac: &str) -> Option<&str> {
        self.macs.get(mac).map(String::as_str)
    }

    fn has(&self, subnet: &Ipv4Net, node: &str) -> bool {
        self.subnets.get(subnet).is_some_and(|nodes| nodes.contains(node))
    }
}

/// Which speaker of a subnet is asked, and which do not answer.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    chosen: BTreeMap<Ipv4Net, String>,
    silent: BTreeMap<String, Silence>,
    /// Subnets some of whose speakers were asked in vain: until when none is asked.
    quiet: BTreeMap<Ipv4Net, Silence>,
}

#[derive(Clone, Copy, Debug)]
struct Silence {
    until: Instant,
    pause: Duration,
    /// The end of the pause was noticed.
    over: bool,
}

impl Silence {
    fn holds(&self, now: Instant) -> bool {
        self.until > now
    }
}

impl Choice {
    /// `None`: none of the subnet's speakers is to be asked now.
    pub fn of(&mut self, subnet: Ipv4Net, segments: &Segments, now: Instant) -> Option<String> {
        if self.quiet.get(&subnet).is_some_and(|quiet| quiet.holds(now)) {
            return None;
        }
        let can = |node: &&String| {
            segments.has(&subnet, node) && !self.silent.get(*node).is_some_and(|silence| silence.holds(now))
        };
        let kept = self.chosen.get(&subnet).filter(can);
        // One that was not asked yet, or else the one that was silent for the longest time.
        let others =
            || segments.nodes(&subnet).filter(can).min_by_key(|node| self.silent.get(*node).map(|one| one.until));
        let found = kept.filter(|node| !self.silent.contains_key(*node)).or_else(others)?.clone();
        self.chosen.insert(subnet, found.clone());
        Some(found)
    }

    pub fn is_chosen(&self, subnet: &Ipv4Net, node: &str) -> bool {
        self.chosen.get(subnet).is_some_and(|chosen| chosen == node)
    }

    /// True if it was silent before.
    pub fn answered(&mut self, node: &str, segments: &Segments) -> bool {
        let was_silent = self.silent.remove(node).is_some();
        for subnet in segments.subnets().filter(|subnet| segments.has(subnet, node)) {
            self.quiet.remove(&subnet);
            let free = self.chosen.get(&subnet).is_none_or(|chosen| self.silent.contains_key(chosen));
            if free {
                self.chosen.insert(subnet, node.to_string());
            }
        }
        was_silent
    }

    pub fn fell_silent(&mut self, node: &str, segments: &Segments, now: Instant) {
        let pause = self.silent.get(node).map_or(PAUSE, |known| (2 * known.pause).min(LONGEST_PAUSE));
        self.silent.insert(node.to_string(), Silence { until: now + pause, pause, over: false });
        for subnet in segments.subnets().filter(|subnet| segments.has(subnet, node)) {
            let tried = segments.nodes(&subnet).filter(|node| self.silent.contains_key(*node)).count();
            if tried >= TRIED {
                self.quiet.insert(subnet, Silence { until: now + QUIET, pause: QUIET, over: false });
            }
        }
    }

    /// Whether a speaker can be asked again since the last call.
    pub fn end_pauses(&mut self, segments: &Segments, now: Instant) -> bool {
        self.silent.retain(|node, _| segments.owner(node).is_some());
        self.quiet.retain(|subnet, _| segments.subnets.contains_key(subnet));
        let mut ended = false;
        let silences = self.silent.values_mut().chain(self.quiet.values_mut());
        for silence in silences.filter(|silence| !silence.over && silence.until <= now) {
            (silence.over, ended) = (true, true);
        }
        ended
    }

    /// Whether no speaker of the subnet has answered when it was asked last.
    pub fn is_silent(&self, subnet: &Ipv4Net, segments: &Segments) -> bool {
        let mut nodes = segments.nodes(subnet).peekable();
        let all = nodes.peek().is_some() && nodes.all(|node| self.silent.contains_key(node));
        all || self.quiet.contains_key(subnet)
    }
}

/// Until a speaker that has not answered is asked again; doubled each time.
const PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(160);
/// So many silent speakers of a subnet, and from then on one is asked in so long: a version that answers nothing may run on hundreds of
/// nodes.
const TRIED: usize = 3;
const QUIET: Duration = Duration::from_secs(60);
