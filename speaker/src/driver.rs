//! The election thread: one loop around the machines of `speaker-core`, its sockets and the lease in the kernel.
//!
//! Deliver what is pending, tick what is due, carry out the actions, wait. Nothing here decides. The lease is renewed from
//! this loop only: if the loop does not turn, the kernel stops answering by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;
use speaker_core::announce::{self, Announcer};
use speaker_core::election::{self, Election, Eligible, LoseReason, Owner, Phase};
use speaker_core::liveness::{self, Liveness};
use speaker_core::machine::Machine;
use speaker_core::name::{NodeName, Term, Vip};
use speaker_core::presence::{self, Presence};
use speaker_core::time::Instant;
use tracing::{error, info, warn};

use crate::dataplane::LeaseMaps;
use crate::dataplane::inbox::{Message, Outbox};
use crate::io::arp::ArpSocket;
use crate::io::udp::{MulticastSocket, RECEIVE_BUFFER};
use crate::io::{Mac, clock, schedule};
use crate::mailbox;
use crate::metrics::Metrics;
use crate::shared::{Shared, turned};

/// ARP for VIPs of other nodes stays unanswered this long after the loop's last turn; then the kernel may answer again.
const MUTE: Duration = Duration::from_secs(5);
const MUTE_REFRESH: Duration = Duration::from_secs(1);
/// Between questions to a node whose MAC address is not known.
const RESOLVE: Duration = Duration::from_millis(100);
/// Between questions to nodes whose MAC address is known: it may have changed without a word.
const RESOLVE_AGAIN: Duration = Duration::from_secs(30);
/// Datagrams and frames taken in one turn: a flood must not keep the loop from its heartbeat.
const MAX_PER_TURN: usize = 1024;
/// Commands that wait; the senders send changes only.
pub const MAX_COMMANDS: usize = 256;

/// What the other threads ask for.
#[derive(Debug)]
pub enum Command {
    Desired(BTreeMap<Vip, Eligible>),
    Ready(bool),
    Carrier(bool),
    /// All other nodes and their addresses on the segment.
    Nodes(BTreeMap<NodeName, Ipv4Addr>),
    Leave,
}

/// What the other threads hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    Acquired { vip: Ipv4Addr, term: Term },
    OwnerChanged { vip: Ipv4Addr, owner: Option<Owner> },
    HandedOver { all_taken: bool },
}

/// Where the loop puts its reports: it never waits. Of what is not taken yet the newest of each kind and VIP counts.
pub struct Reports(mailbox::Sender<Subject, Report>);

/// In the order in which they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// That this node owns the VIP, or that it has no owner.
    Owned(Ipv4Addr),
    /// Which other node owns it.
    Owner(Ipv4Addr),
    HandedOver,
}

impl Reports {
    /// At most two for each VIP of the view, and the last.
    pub fn channel() -> (Self, mailbox::Receiver<Subject, Report>) {
        let (sender, receiver) = mailbox::channel(usize::MAX);
        (Self(sender), receiver)
    }

    pub fn send(&self, report: Report) -> Result<(), mailbox::Undelivered> {
        let subject = match report {
            Report::Acquired { vip, .. } | Report::OwnerChanged { vip, owner: None } => Subject::Owned(vip),
            Report::OwnerChanged { vip, owner: Some(_) } => Subject::Owner(vip),
            Report::HandedOver { .. } => Subject::HandedOver,
        };
        self.0.send(subject, report)
    }
}

/// Sends commands and wakes the loop.
#[derive(Clone)]
pub struct Commands {
    sender: mpsc::SyncSender<Command>,
    wake: Arc<EventFd>,
}

impl Commands {
    pub fn channel() -> Result<(Self, Inbox)> {
        let (sender, receiver) = mpsc::sync_channel(MAX_COMMANDS);
        let wake = Arc::new(EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_NONBLOCK).context("eventfd")?);
        Ok((Self { sender, wake: wake.clone() }, Inbox { receiver, wake }))
    }

    /// An error means that the loop has ended: the process is about to as well.
    pub fn send(&self, command: Command) -> Result<()> {
        self.sender.send(command).context("the election loop has ended")?;
        // EAGAIN: the counter is full, so the loop is being woken anyway.
        match self.wake.write(1) {
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(error) => Err(error).context("wake the election loop"),
        }
    }
}

pub struct Inbox {
    receiver: mpsc::Receiver<Command>,
    wake: Arc<EventFd>,
}

/// Everything the loop is made of.
pub struct Driver {
    pub election: Election,
    pub liveness: Liveness,
    pub presence: Presence,
    pub announcer: Announcer,
    pub udp: MulticastSocket,
    pub arp: ArpSocket,
    pub lease: LeaseMaps,
    pub inbox: Inbox,
    pub own_ip: Ipv4Addr,
    pub sync: Outbox,
    pub reports: Reports,
    pub shared: Arc<Shared>,
    pub metrics: Arc<Metrics>,
}

/// Runs until the process ends.
pub fn run(driver: Driver) -> Result<()> {
    match schedule::prefer() {
        Ok(policy) => info!(policy = policy.label(), "election thread is preferred"),
        Err(error) => warn!(%error, "no priority for the election thread: a busy node may oversleep its lease"),
    }
    let mut state = State {
        nodes: BTreeMap::new(),
        by_address: BTreeMap::new(),
        macs: BTreeMap::new(),
        down: BTreeSet::new(),
        absent: BTreeSet::new(),
        blank: BTreeSet::new(),
        lease_until: Instant::ZERO,
        mute_written: Instant::ZERO,
        resolve_at: Instant::ZERO,
        driver,
    };
    state.driver.lease.clear()?;
    state.turn_forever()
}

struct State {
    driver: Driver,
    nodes: BTreeMap<NodeName, Ipv4Addr>,
    by_address: BTreeMap<Ipv4Addr, NodeName>,
    macs: BTreeMap<Ipv4Addr, Mac>,
    down: BTreeSet<NodeName>,
    absent: BTreeSet<NodeName>,
    /// No speaker has been ready on these since they were new or down.
    blank: BTreeSet<NodeName>,
    lease_until: Instant,
    mute_written: Instant,
    /// When the nodes are asked for their MAC addresses next.
    resolve_at: Instant,
}

impl State {
    fn turn_forever(&mut self) -> Result<()> {
        loop {
            self.take_commands();
            self.take_datagrams();
            self.take_arp();
            let now = clock::now();
            self.tick(now);
            if now.since(self.mute_written) >= MUTE_REFRESH {
                self.write_lease(now);
            }
            if now >= self.resolve_at {
                self.resolve(now);
            }
            turned(&self.driver.shared.election_turned, now);
            self.wait()?;
        }
    }

    fn wait(&self) -> Result<()> {
        let driver = &self.driver;
        let machines = [
            driver.election.next_deadline(),
            driver.liveness.next_deadline(),
            driver.presence.next_deadline(),
            driver.announcer.next_deadline(),
        ];
        let own = (self.mute_written + MUTE_REFRESH).min(self.resolve_at);
        let deadline = machines.into_iter().flatten().fold(own, Instant::min);
        let timeout = TimeSpec::from_duration(deadline.since(clock::now()));
        let mut fds = [
            PollFd::new(driver.udp.as_fd(), PollFlags::POLLIN),
            PollFd::new(driver.arp.as_fd(), PollFlags::POLLIN),
            PollFd::new(driver.inbox.wake.as_fd(), PollFlags::POLLIN),
        ];
        match ppoll(&mut fds, Some(timeout), None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("poll"),
        }
    }

    fn tick(&mut self, now: Instant) {
        let due = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        if due(self.driver.election.next_deadline()) {
            self.elect(election::Event::Tick, now);
        }
        if due(self.driver.liveness.next_deadline()) {
            self.watch(liveness::Event::Tick, now);
        }
        if due(self.driver.presence.next_deadline()) {
            self.attend(presence::Event::Tick, now);
        }
        if due(self.driver.announcer.next_deadline()) {
            self.announce(announce::Event::Tick, now);
        }
    }

    fn take_commands(&mut self) {
        // Reading resets the counter; EAGAIN: nobody woke us.
        if let Err(error) = self.driver.inbox.wake.read()
            && error != Errno::EAGAIN
        {
            warn!(%error, "eventfd");
        }
        while let Ok(command) = self.driver.inbox.receiver.try_recv() {
            let now = clock::now();
            match command {
                Command::Desired(desired) => self.elect(election::Event::Desired(desired), now),
                Command::Ready(ready) => self.elect(election::Event::Ready(ready), now),
                Command::Carrier(up) => {
                    self.driver.shared.carrier.store(up, Ordering::Relaxed);
                    self.elect(election::Event::Carrier(up), now);
                    self.watch(liveness::Event::Carrier(up), now);
                    self.announce(announce::Event::Carrier(up), now);
                }
                Command::Nodes(nodes) => self.set_nodes(nodes, now),
                Command::Leave => self.elect(election::Event::Leave, now),
            }
        }
    }

    fn set_nodes(&mut self, nodes: BTreeMap<NodeName, Ipv4Addr>, now: Instant) {
        self.by_address = nodes.iter().map(|(name, ip)| (*ip, name.clone())).collect();
        self.macs.retain(|ip, _| self.by_address.contains_key(ip));
        let mut changed = false;
        for set in [&mut self.down, &mut self.absent, &mut self.blank] {
            let known = set.len();
            set.retain(|name| nodes.contains_key(name));
            changed |= set.len() != known;
        }
        let names: BTreeSet<NodeName> = nodes.keys().cloned().collect();
        self.nodes = nodes;
        self.resolve_at = now;
        self.watch(liveness::Event::Nodes(names.clone()), now);
        self.attend(presence::Event::Nodes(names), now);
        if changed {
            self.tell_unavailable();
        }
    }

    fn take_datagrams(&mut self) {
        let mut buffer = [0; RECEIVE_BUFFER];
        for _ in 0..MAX_PER_TURN {
            let received = match self.driver.udp.receive(&mut buffer) {
                Ok(Some(received)) => received,
                Ok(None) => return,
                Err(error) => {
                    self.failed("receive", &error);
                    return;
                }
            };
            self.driver.metrics.adverts_received.inc();
            // RFC 5082: what crossed a router is not from this segment.
            if received.ttl != 255 {
                self.driver.metrics.adverts_rejected.with_label_values(&["ttl"]).inc();
                continue;
            }
            let event = election::Event::Datagram(received.bytes.to_vec());
            self.elect(event, clock::now());
        }
    }

    fn take_arp(&mut self) {
        for _ in 0..MAX_PER_TURN {
            match self.driver.arp.receive() {
                Ok(Some(heard)) => {
                    let Some(node) = self.by_address.get(&heard.ip).cloned() else { continue };
                    if self.macs.insert(heard.ip, heard.mac) != Some(heard.mac) {
                        self.tell(Message::Neighbour { ip: heard.ip, mac: heard.mac });
                    }
                    let now = clock::now();
                    if heard.program {
                        self.attend(presence::Event::Program(node.clone()), now);
                    }
                    if heard.reply {
                        self.watch(liveness::Event::ProbeReply(node), now);
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    self.failed("arp_receive", &error);
                    return;
                }
            }
        }
    }

    fn elect(&mut self, event: election::Event, now: Instant) {
        let mut actions = Vec::new();
        self.driver.election.handle(event, now, &mut actions);
        for action in actions {
            self.act(action, now);
        }
    }

    fn act(&mut self, action: election::Action, now: Instant) {
        use election::Action;
        match action {
            Action::Send(datagram) => match self.driver.udp.send(&datagram) {
                Ok(()) => self.driver.metrics.adverts_sent.inc(),
                Err(error) => self.failed("advert", &error),
            },
            Action::RenewLease { until } => {
                self.lease_until = until;
                self.write_lease(now);
            }
            Action::Acquire { vip, term } => self.acquire(vip, term),
            Action::Release { vip, reason } => self.release(vip, reason, now),
            Action::Announce { vip } => self.announce(announce::Event::Announce(vip), now),
            Action::Heard { node, ready } => {
                self.watch(liveness::Event::Heard(node.clone()), now);
                if ready {
                    self.attend(presence::Event::Ready(node), now);
                }
            }
            Action::PeerUp { node } => {
                info!(%node, "speaker heard");
                self.driver.metrics.peers.inc();
            }
            Action::PeerDown { node } => {
                warn!(%node, "speaker silent");
                self.driver.metrics.peers.dec();
            }
            Action::Phase(phase) => {
                info!(phase = phase.label(), "phase");
                let joined = matches!(phase, Phase::Member | Phase::Isolated);
                self.driver.shared.joined.store(joined, Ordering::Relaxed);
                self.driver.metrics.isolated.set(i64::from(phase == Phase::Isolated));
            }
            Action::OwnerChanged { vip, owner } => self.report(Report::OwnerChanged { vip: vip.0, owner }),
            Action::Rejected { reason } => {
                self.driver.metrics.adverts_rejected.with_label_values(&[reason.label()]).inc();
            }
            Action::HandedOver { all_taken } => self.report(Report::HandedOver { all_taken }),
        }
    }

    fn acquire(&mut self, vip: Vip, term: Term) {
        if let Err(error) = self.driver.lease.acquire(vip.0, term.0) {
            error!(%vip, error = format!("{error:#}"), "won, but the kernel was not told");
            self.driver.metrics.send_errors.with_label_values(&["own"]).inc();
        }
        info!(%vip, %term, "owner now");
        self.driver.metrics.transitions.inc();
        self.driver.shared.own(vip.0, term.0);
        self.report(Report::Acquired { vip: vip.0, term });
    }

    fn release(&mut self, vip: Vip, reason: LoseReason, now: Instant) {
        if let Err(error) = self.driver.lease.release(vip.0) {
            error!(%vip, error = format!("{error:#}"), "lost, but the kernel was not told");
            self.driver.metrics.send_errors.with_label_values(&["own"]).inc();
        }
        info!(%vip, reason = reason.label(), "owner no more");
        self.driver.metrics.transitions.inc();
        self.driver.shared.disown(vip.0);
        self.announce(announce::Event::Stop(vip), now);
    }

    fn watch(&mut self, event: liveness::Event, now: Instant) {
        let mut actions = Vec::new();
        self.driver.liveness.handle(event, now, &mut actions);
        for action in actions {
            match action {
                liveness::Action::Probe(node) => self.probe(&node),
                liveness::Action::NodeDown(node) => {
                    warn!(%node, "its kernel does not answer: rows move");
                    self.down.insert(node.clone());
                    self.tell_unavailable();
                    self.attend(presence::Event::Down(node), now);
                }
                liveness::Action::NodeUp(node) => {
                    info!(%node, "its kernel answers");
                    self.down.remove(&node);
                    self.tell_unavailable();
                }
                liveness::Action::CutOff => warn!("nobody answers: this node is cut off, the last rows stay"),
                liveness::Action::Restored => {
                    info!("others answer again");
                    self.tell(Message::WasAway);
                }
            }
        }
    }

    fn attend(&mut self, event: presence::Event, now: Instant) {
        let mut actions = Vec::new();
        self.driver.presence.handle(event, now, &mut actions);
        for action in &actions {
            match action {
                presence::Action::Absent(node) => {
                    info!(%node, "its speaker is silent: no new flows for it");
                    self.blank.remove(node);
                    self.absent.insert(node.clone());
                }
                presence::Action::Blank(node) => {
                    info!(%node, "no speaker has been ready there yet: nothing is sent to it");
                    self.absent.remove(node);
                    self.blank.insert(node.clone());
                }
                presence::Action::Present(node) => {
                    info!(%node, "its packet path is ready");
                    self.absent.remove(node);
                    self.blank.remove(node);
                }
            }
        }
        if !actions.is_empty() {
            self.tell_unavailable();
        }
    }

    /// Dispatching needs MAC addresses before any trouble makes liveness ask. The kernel's own neighbours come by netlink; it
    /// asks only those that it talks to.
    fn resolve(&mut self, now: Instant) {
        let known = |node: &NodeName| self.nodes.get(node).is_some_and(|ip| self.macs.contains_key(ip));
        let (known, unknown): (Vec<NodeName>, Vec<NodeName>) = self.nodes.keys().cloned().partition(known);
        let (ask, pause) = if unknown.is_empty() { (known, RESOLVE_AGAIN) } else { (unknown, RESOLVE) };
        ask.iter().for_each(|node| self.probe(node));
        self.resolve_at = now + pause;
    }

    fn probe(&mut self, node: &NodeName) {
        let Some(ip) = self.nodes.get(node).copied() else { return };
        if let Err(error) = self.driver.arp.probe(self.driver.own_ip, ip, self.macs.get(&ip).copied()) {
            self.failed("probe", &error);
        }
    }

    fn announce(&mut self, event: announce::Event, now: Instant) {
        let mut actions = Vec::new();
        self.driver.announcer.handle(event, now, &mut actions);
        for announce::Action::Send(vip) in actions {
            if let Err(error) = self.driver.arp.announce(vip.0) {
                self.failed("announcement", &error);
            }
        }
    }

    fn write_lease(&mut self, now: Instant) {
        self.mute_written = now;
        self.driver.shared.lease_until.store(self.lease_until.as_nanos(), Ordering::Relaxed);
        if let Err(error) = self.driver.lease.renew(self.lease_until, now + MUTE) {
            error!(error = format!("{error:#}"), "lease not renewed");
            self.driver.metrics.send_errors.with_label_values(&["lease"]).inc();
        }
    }

    fn tell_unavailable(&self) {
        self.driver.metrics.nodes_down.set(self.down.len() as i64);
        let absent = self.absent.union(&self.blank).filter(|node| !self.down.contains(*node));
        self.driver.metrics.nodes_absent.set(absent.count() as i64);
        let (down, absent, blank) = (self.down.clone(), self.absent.clone(), self.blank.clone());
        self.tell(Message::Unavailable { down, absent, blank });
    }

    fn tell(&self, message: Message) {
        // The dataplane thread ends only with the process, which says why.
        if self.driver.sync.send(message).is_err() {
            error!("the dataplane thread has ended");
        }
    }

    fn report(&self, report: Report) {
        if self.driver.reports.send(report).is_err() {
            error!("nobody takes reports any more");
        }
    }

    fn failed(&self, kind: &'static str, error: &std::io::Error) {
        let counter = self.driver.metrics.send_errors.with_label_values(&[kind]);
        if counter.get() == 0 {
            warn!(kind, %error, "the kernel did not take it; counted from here on (sheave_send_errors_total)");
        }
        counter.inc();
    }
}
