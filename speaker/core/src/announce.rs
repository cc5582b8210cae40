//! When a won VIP is announced: a burst of gratuitous ARP with a schedule, again on carrier up, then now and then.
//!
//! Read first: RFC 5227 section 3, RFC 9568 section 6.4.2 (a new Active router sends gratuitous ARP), docs/election.md. Here
//! only the times; the daemon sends each announcement in request and reply form (some stacks take only one of the two).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::machine::Machine;
use crate::name::Vip;
use crate::time::{Duration, Instant};

/// Announcements of one turn: a win of thousands of VIPs must not keep the loop from its heartbeat. The rest is due at once.
pub const MAX_PER_TURN: usize = 64;

/// Schedules announcements.
#[derive(Clone, Debug)]
pub struct Announcer {
    config: Config,
    carrier: bool,
    vips: BTreeMap<Vip, Schedule>,
    timers: BTreeSet<(Instant, Vip)>,
}

#[derive(Clone, Debug)]
pub struct Config {
    /// Offsets from the win, ascending.
    pub burst: Vec<Duration>,
    /// After the burst; for switches and clients that lost the entry.
    pub refresh: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            burst: [0, 10, 50, 200, 1000].into_iter().map(Duration::from_millis).collect(),
            refresh: Some(Duration::from_secs(30)),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A VIP was won, or kept against another claimant: the burst starts (again).
    Announce(Vip),
    /// The VIP is no longer ours: not one more announcement.
    Stop(Vip),
    /// The MAC address of the uplink changed: the burst starts again for every VIP.
    OwnAddress,
    /// Nodes of another cluster have come to the segment, which may have one of the VIPs: the same.
    OtherCluster,
    /// The link came up: the burst starts again for every VIP. While it is down nothing is announced.
    Carrier(bool),
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send one gratuitous ARP, request and reply form.
    Send(Vip),
}

#[derive(Clone, Debug)]
struct Schedule {
    started: Instant,
    /// How many announcements of the burst are done.
    done: usize,
    next: Instant,
}

impl Announcer {
    pub fn new(config: Config) -> Self {
        Self { config, carrier: true, vips: BTreeMap::new(), timers: BTreeSet::new() }
    }

    fn start(&mut self, vip: Vip, now: Instant) {
        self.stop(vip);
        let next = now + self.config.burst.first().copied().unwrap_or_default();
        self.vips.insert(vip, Schedule { started: now, done: 0, next });
        self.timers.insert((next, vip));
    }

    fn stop(&mut self, vip: Vip) {
        if let Some(schedule) = self.vips.remove(&vip) {
            self.timers.remove(&(schedule.next, vip));
        }
    }

    fn start_all(&mut self, now: Instant) {
        let vips: Vec<Vip> = self.vips.keys().copied().collect();
        vips.into_iter().for_each(|vip| self.start(vip, now));
    }

    fn send_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !self.carrier {
            return;
        }
        for _ in 0..MAX_PER_TURN {
            let Some((at, vip)) = self.timers.first().copied().filter(|(at, _)| *at <= now) else { return };
            self.timers.remove(&(at, vip));
            actions.push(Action::Send(vip));
            self.schedule_next(vip, now);
        }
    }

    fn schedule_next(&mut self, vip: Vip, now: Instant) {
        let Some(schedule) = self.vips.get_mut(&vip) else { return };
        let Config { burst, refresh } = &self.config;
        // After a delay the announcements that were missed are one, not a volley.
        while burst.get(schedule.done).is_some_and(|offset| schedule.started + *offset <= now) {
            schedule.done += 1;
        }
        schedule.next = match (burst.get(schedule.done), refresh) {
            (Some(offset), _) => schedule.started + *offset,
            (None, Some(refresh)) => now + *refresh,
            (None, None) => {
                self.vips.remove(&vip);
                return;
            }
        };
        self.timers.insert((schedule.next, vip));
    }
}

impl Machine for Announcer {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Announce(vip) => self.start(vip, now),
            Event::Stop(vip) => self.stop(vip),
            Event::OwnAddress | Event::OtherCluster => self.start_all(now),
            Event::Carrier(up) => {
                if up && !self.carrier {
                    self.start_all(now);
                }
                self.carrier = up;
            }
            Event::Tick => {}
        }
        self.send_due(now, actions);
    }

    fn next_deadline(&self) -> Option<Instant> {
        if self.carrier { self.timers.first().map(|(at, _)| *at) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: Vip = Vip(core::net::Ipv4Addr::new(192, 0, 2, 1));

    /// The times of all announcements until `end`, in milliseconds.
    fn times(announcer: &mut Announcer, end: u64) -> Vec<u64> {
        let mut times = Vec::new();
        while let Some(due) = announcer.next_deadline().filter(|due| *due <= Instant::from_millis(end)) {
            let mut actions = Vec::new();
            announcer.handle(Event::Tick, due, &mut actions);
            times.extend(actions.iter().map(|_| due.as_nanos() / 1_000_000));
        }
        times
    }

    fn started() -> (Announcer, Vec<Action>) {
        let (mut announcer, mut actions) = (Announcer::new(Config::default()), Vec::new());
        announcer.handle(Event::Announce(VIP), Instant::from_millis(100), &mut actions);
        (announcer, actions)
    }

    #[test]
    fn burst_then_refresh() {
        let (mut announcer, actions) = started();
        assert_eq!(actions, [Action::Send(VIP)]);
        assert_eq!(times(&mut announcer, 70_000), [110, 150, 300, 1100, 31_100, 61_100]);
    }

    #[test]
    fn nothing_after_stop() {
        let (mut announcer, mut actions) = started();
        announcer.handle(Event::Stop(VIP), Instant::from_millis(105), &mut actions);
        assert_eq!(actions.len(), 1);
        assert_eq!(announcer.next_deadline(), None);
    }

    #[test]
    fn carrier_up_starts_the_burst_again() {
        let (mut announcer, mut actions) = started();
        announcer.handle(Event::Carrier(false), Instant::from_millis(120), &mut actions);
        assert_eq!(announcer.next_deadline(), None);
        actions.clear();
        announcer.handle(Event::Carrier(true), Instant::from_millis(5000), &mut actions);
        assert_eq!(actions, [Action::Send(VIP)]);
        assert_eq!(times(&mut announcer, 6000), [5010, 5050, 5200, 6000]);
    }

    /// A win of many VIPs is announced in turns, each VIP once.
    #[test]
    fn a_large_win_takes_several_turns() {
        let mut announcer = Announcer::new(Config { burst: alloc::vec![Duration::ZERO], refresh: None });
        let (mut actions, now) = (Vec::new(), Instant::from_millis(100));
        let vips: Vec<Vip> = (0..1000u32).map(|at| Vip((0x0a00_0000 + at).into())).collect();
        announcer.carrier = false;
        vips.iter().for_each(|vip| announcer.handle(Event::Announce(*vip), now, &mut actions));
        announcer.handle(Event::Carrier(true), now, &mut actions);
        while announcer.next_deadline().is_some() {
            let before = actions.len();
            announcer.handle(Event::Tick, now, &mut actions);
            assert!((1..=MAX_PER_TURN).contains(&(actions.len() - before)));
        }
        let mut sent: Vec<Vip> = actions.iter().map(|Action::Send(vip)| *vip).collect();
        sent.sort();
        assert_eq!(sent, vips);
    }

    #[test]
    fn another_mac_address_starts_the_burst_again() {
        let (mut announcer, mut actions) = started();
        times(&mut announcer, 5000);
        actions.clear();
        announcer.handle(Event::OwnAddress, Instant::from_millis(5000), &mut actions);
        assert_eq!(actions, [Action::Send(VIP)]);
        assert_eq!(times(&mut announcer, 6000), [5010, 5050, 5200, 6000]);
    }

    #[test]
    fn missed_announcements_are_one() {
        let (mut announcer, mut actions) = started();
        actions.clear();
        announcer.handle(Event::Tick, Instant::from_millis(400), &mut actions);
        assert_eq!(actions.len(), 1);
        assert_eq!(times(&mut announcer, 2000), [1100]);
    }
}
