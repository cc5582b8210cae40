//! The election thread: one loop around the machines of `speaker-core`, its sockets and the lease in the kernel.
//!
//! Take commands, run the election's turn (`election::turn`: heartbeat, datagrams, decision), tick what else is due, wait. Nothing
//! here decides. The lease is renewed from this loop only: if the loop does not turn, the kernel stops answering by itself.

mod commands;
mod conflicts;
mod keys;
mod lease;
mod neighbours;
mod notices;
mod signals;
mod surroundings;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use speaker_core::announce::{self, Announcer};
use speaker_core::conflict::{self, Conflicts};
use speaker_core::election::stall::Stall;
use speaker_core::election::turn::{self, Turn};
use speaker_core::election::{self, Election, Eligible, LoseReason};
use speaker_core::liveness::{self, Liveness};
use speaker_core::machine::Machine;
use speaker_core::name::{NodeName, Vip};
use speaker_core::readiness::{self, Readiness};
use speaker_core::resolve::{self, Resolver};
use speaker_core::rotation::{self, Rotation};
use speaker_core::time::Instant;
use speaker_core::unicast::{self, Unicast};
use speaker_core::unverified::{self, Unverified};
use speaker_core::wire::advert::Signer;
use speaker_core::wire::pace::Pace;
use tracing::{error, info, warn};

use crate::dataplane::LeaseMaps;
use crate::dataplane::inbox::{Message, Outbox};
use crate::health::{HealthFlags, turned};
use crate::io::arp::{ArpSocket, Frame};
use crate::io::udp::MulticastSocket;
use crate::io::{Mac, clock, schedule};
use crate::metrics::Metrics;
pub use commands::{Command, Commands, Inbox};
pub use notices::{Notice, Notices, Subject};

/// Between two looks at the peers, for status.
const SHOW_PEERS: Duration = Duration::from_secs(1);
/// ARP for VIPs of other nodes stays unanswered this long after the loop's last turn; then the kernel may answer again.
const MUTE: Duration = Duration::from_secs(5);
const MUTE_REFRESH: Duration = Duration::from_secs(1);
/// Frames taken in one turn: a flood must not keep the loop from its heartbeat.
const MAX_PER_TURN: usize = 1024;

/// Everything the loop is made of.
pub struct Driver {
    pub liveness: Liveness,
    pub readiness: Readiness,
    pub resolver: Resolver,
    pub unicast: Unicast,
    pub rotation: Rotation,
    pub unverified: Unverified,
    pub announcer: Announcer,
    pub conflicts: Conflicts,
    pub udp: MulticastSocket,
    pub arp: ArpSocket,
    /// For frames of any host with an owned VIP as sender.
    pub claims: ArpSocket,
    pub lease: LeaseMaps,
    pub inbox: Inbox,
    pub own_ip: Option<Ipv4Addr>,
    pub sync: Outbox,
    pub notices: Notices,
    pub health: Arc<HealthFlags>,
    pub metrics: Arc<Metrics>,
}

/// Runs until the process ends.
pub fn run(election: Election, driver: Driver) -> Result<()> {
    match schedule::prefer() {
        Ok(policy) => info!(policy = policy.label(), "election thread runs with priority"),
        Err(error) => warn!(%error, "no priority for the election thread; on a busy node its lease may lapse"),
    }
    let mut driven = Loop::new(election, driver)?;
    loop {
        driven.step()?;
    }
}

/// The election, and everything that surrounds it.
struct Loop {
    election: Election,
    turn: Turn,
    state: State,
}

struct State {
    driver: Driver,
    /// Also those whose Node is deleted, while they may have flows.
    nodes: BTreeMap<NodeName, Ipv4Addr>,
    /// Those whose Node is there.
    members: BTreeSet<NodeName>,
    by_address: BTreeMap<Ipv4Addr, NodeName>,
    macs: BTreeMap<Ipv4Addr, Mac>,
    /// Of nodes whose speakers are received, as they state it under their signature: it outranks ARP.
    signed_macs: BTreeMap<Ipv4Addr, Mac>,
    down: BTreeSet<NodeName>,
    silent: BTreeSet<NodeName>,
    /// No speaker has been ready on these since they were new or down.
    unknown: BTreeSet<NodeName>,
    lease_until: Instant,
    /// The kernel refused the last one; it is logged once.
    lease_refused: bool,
    mute_written: Instant,
    /// When the nodes are queried for their MAC addresses next.
    resolve_at: Instant,
    /// VIPs that this node has just released, until it is known what becomes of them.
    released_for: BTreeMap<Vip, LoseReason>,
    /// VIPs that the kernel still has as owned, against the election's decision: removing them is tried again with each
    /// heartbeat.
    unreleased: BTreeSet<Vip>,
    /// Verified and received since the dataplane was notified, and when it is notified next.
    incarnations: BTreeMap<NodeName, u64>,
    incarnations_at: Instant,
    /// When the peers were shown last.
    peers_shown: Instant,
    stall: Stall,
    claims: conflicts::Claims,
    /// The packet path can serve.
    ready: bool,
    /// The unverified side is larger (`unverified::Action::Yield`).
    yields: bool,
    /// The election has no place for this node.
    beyond_limit: bool,
    /// The datagram that the election handles.
    incoming: Incoming,
    /// For the election, found while its actions were carried out: the next in this turn.
    follow_up: Vec<election::Event>,
}

/// What is known of a datagram beside its contents.
struct Incoming {
    source: Ipv4Addr,
    multicast: bool,
    /// Of which cluster it says that it is.
    cluster: Option<u64>,
    /// It has READY, verified or not.
    ready: bool,
    /// Of its sender, if it states one, verified or not.
    pace: Option<Pace>,
    /// The key that it is signed with and the hint of the sender's other one, while there are two keys.
    signed: Option<(Signer, u8)>,
}

impl Loop {
    fn new(election: Election, mut driver: Driver) -> Result<Self> {
        driver.lease.clear()?;
        let state = State {
            nodes: BTreeMap::new(),
            members: BTreeSet::new(),
            by_address: BTreeMap::new(),
            macs: BTreeMap::new(),
            down: BTreeSet::new(),
            silent: BTreeSet::new(),
            unknown: BTreeSet::new(),
            lease_until: Instant::ZERO,
            lease_refused: false,
            mute_written: Instant::ZERO,
            resolve_at: Instant::ZERO,
            released_for: BTreeMap::new(),
            unreleased: BTreeSet::new(),
            incarnations: BTreeMap::new(),
            incarnations_at: Instant::ZERO,
            peers_shown: Instant::ZERO,
            stall: Stall::new(clock::now(), clock::thread_time()),
            claims: conflicts::Claims::default(),
            ready: false,
            yields: false,
            beyond_limit: false,
            incoming: Incoming {
                source: Ipv4Addr::UNSPECIFIED,
                multicast: true,
                cluster: None,
                ready: false,
                pace: None,
                signed: None,
            },
            signed_macs: BTreeMap::new(),
            follow_up: Vec::new(),
            driver,
        };
        state.show_keys();
        Ok(Self { election, turn: Turn::default(), state })
    }

    /// One turn, and the wait for the next.
    fn step(&mut self) -> Result<()> {
        self.take_commands();
        self.turn.run(&mut self.election, &mut self.state);
        self.state.take_arp();
        self.state.take_claims(clock::now());
        let now = clock::now();
        self.state.tick(now);
        for event in std::mem::take(&mut self.state.follow_up) {
            self.elect(event);
        }
        self.show_peers(now);
        turned(&self.state.driver.health.election_turned, now);
        self.wait()
    }

    fn wait(&mut self) -> Result<()> {
        let state = &mut self.state;
        let deadline = [self.election.next_deadline(), state.next_deadline()].into_iter().flatten().min();
        let now = clock::now();
        let deadline = deadline.unwrap_or(now).max(now);
        let timeout = TimeSpec::from_duration(deadline.since(now));
        let mut fds = [
            PollFd::new(state.driver.udp.as_fd(), PollFlags::POLLIN),
            PollFd::new(state.driver.arp.as_fd(), PollFlags::POLLIN),
            PollFd::new(state.driver.inbox.as_fd(), PollFlags::POLLIN),
        ];
        state.stall.work_ends(now, clock::thread_time());
        let polled = ppoll(&mut fds, Some(timeout), None);
        state.stall.work_begins(clock::now(), deadline, clock::thread_time());
        match polled {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("poll"),
        }
    }

    /// For the status of an endpoint, whose nodes are few.
    fn show_peers(&mut self, now: Instant) {
        let health = &self.state.driver.health;
        if health.peers_wanted.load(Ordering::Relaxed) && now.since(self.state.peers_shown) >= SHOW_PEERS {
            self.state.peers_shown = now;
            health.set_peers(self.election.peers(now).collect());
        }
    }

    fn elect(&mut self, event: election::Event) {
        turn::handle(&mut self.election, event, &mut self.state);
    }

    /// VIPs of a saved view are never taken for confirmed ones.
    fn set_desired(&mut self, desired: BTreeMap<Vip, Eligible>, saved_view: bool) {
        if saved_view {
            self.elect(election::Event::SavedView(true));
        }
        self.elect(election::Event::Desired(desired));
        if !saved_view {
            self.elect(election::Event::SavedView(false));
        }
    }

    fn take_commands(&mut self) {
        for command in self.state.driver.inbox.take() {
            let now = clock::now();
            match command {
                Command::Desired { desired, saved_view } => self.set_desired(desired, saved_view),
                Command::Ready(ready) => {
                    self.state.ready = ready;
                    self.elect(self.state.readiness());
                }
                Command::Keys(secret) => {
                    self.state.on_rotation(rotation::Event::Slowest(self.election.slowest_dead()), now);
                    self.state.on_rotation(rotation::Event::Secret(secret), now);
                    self.state.show_keys();
                }
                Command::Carrier(up) => {
                    self.elect(election::Event::Carrier(up));
                    self.state.set_carrier(up, now);
                }
                Command::OwnMac(mac) => {
                    self.elect(election::Event::OwnMac(mac.0));
                    self.state.set_own_mac(mac, now);
                }
                Command::OwnAddress(address) => self.state.set_own_address(address, now),
                Command::Nodes { nodes, departed, beyond_limit, this_one, saved } => {
                    // A view counts as confirmed once the packet path has applied it.
                    if saved {
                        self.elect(election::Event::SavedView(true));
                    }
                    let members: BTreeSet<NodeName> =
                        nodes.keys().filter(|node| !departed.contains(*node)).cloned().collect();
                    self.elect(election::Event::BeyondLimit(beyond_limit));
                    self.elect(election::Event::Nodes(members.clone()));
                    self.state.beyond_limit = this_one;
                    self.elect(self.state.readiness());
                    self.state.set_nodes(nodes, members, now);
                }
                Command::Drained(drained) => self.elect(election::Event::Drained(drained)),
                Command::Leave => self.elect(election::Event::Leave),
            }
        }
    }
}

impl State {
    fn next_deadline(&self) -> Option<Instant> {
        let driver = &self.driver;
        let machines = [
            driver.liveness.next_deadline(),
            driver.readiness.next_deadline(),
            driver.unicast.next_deadline(),
            driver.rotation.next_deadline(),
            driver.unverified.next_deadline(),
            driver.announcer.next_deadline(),
            driver.conflicts.next_deadline(),
            self.claims.announce_at,
        ];
        let own = (self.mute_written + MUTE_REFRESH).min(self.resolve_at).min(self.incarnations_at);
        Some(machines.into_iter().flatten().fold(own, Instant::min))
    }

    fn tick(&mut self, now: Instant) {
        let due = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        if due(self.driver.liveness.next_deadline()) {
            self.on_liveness(liveness::Event::Tick, now);
        }
        if due(self.driver.readiness.next_deadline()) {
            self.on_readiness(readiness::Event::Tick, now);
        }
        if due(self.driver.unicast.next_deadline()) {
            self.on_unicast(unicast::Event::Tick, now);
        }
        if due(self.driver.rotation.next_deadline()) {
            self.on_rotation(rotation::Event::Tick, now);
        }
        if due(self.driver.unverified.next_deadline()) {
            self.on_unverified(unverified::Event::Tick, now);
        }
        if due(self.driver.announcer.next_deadline()) {
            self.on_announce(announce::Event::Tick, now);
        }
        if due(self.driver.conflicts.next_deadline()) {
            self.on_conflict(conflict::Event::Tick, now);
        }
        self.announce_to_others(now);
        if now.since(self.mute_written) >= MUTE_REFRESH && !self.write_lease(now) {
            self.follow_up.push(election::Event::NotRenewed);
        }
        if now >= self.resolve_at {
            self.resolve(now);
        }
        if now >= self.incarnations_at {
            self.notify_incarnations(now);
        }
    }

    fn set_carrier(&mut self, up: bool, now: Instant) {
        self.driver.health.carrier.store(up, Ordering::Relaxed);
        self.on_liveness(liveness::Event::Carrier(up), now);
        self.on_announce(announce::Event::Carrier(up), now);
        self.on_resolve(resolve::Event::Carrier(up), now);
    }

    fn take_arp(&mut self) {
        for _ in 0..MAX_PER_TURN {
            match self.driver.arp.receive() {
                Ok(Some(Frame::Neighbour(neighbour))) => self.on_arp(&neighbour, clock::now()),
                Ok(Some(Frame::Ignored)) => {}
                Ok(None) => return,
                Err(error) => {
                    self.failed("arp_receive", &error);
                    return;
                }
            }
        }
    }

    fn on_announce(&mut self, event: announce::Event, now: Instant) {
        let mut actions = Vec::new();
        self.driver.announcer.handle(event, now, &mut actions);
        for announce::Action::Send(vip) in actions {
            let claim = self.driver.conflicts.claim(vip, now);
            if let Err(error) = self.driver.arp.announce(vip.0, Some(claim)) {
                self.failed("announcement", &error);
            }
        }
    }

    fn notify(&self, message: Message) {
        // The dataplane thread ends only with the process, which logs the cause.
        if self.driver.sync.send(message).is_err() {
            error!("message to the dataplane thread lost: the thread has ended");
        }
    }

    fn notify_app(&self, notice: Notice) {
        if self.driver.notices.send(notice).is_err() {
            error!("notice to the main loop lost: the loop has ended");
        }
    }

    fn failed(&self, kind: &'static str, error: &std::io::Error) {
        let counter = self.driver.metrics.send_errors.with_label_values(&[kind]);
        if counter.get() == 0 {
            warn!(kind, %error, "socket operation failed; further failures are only counted (sheave_send_errors_total)");
        }
        counter.inc();
    }
}

#[cfg(test)]
mod tests;
