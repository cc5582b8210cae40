//! What this node sends: to the group, and to each node that the group does not reach.
//!
//! A datagram to one node is signed apart, with a sequence number of its own: it says what concerns that node alone. Summaries, new pods and
//! checks are small and go to all such nodes at once. The rows may be 1 MiB, which multicast carries once and unicast once for each node:
//! they go to one node after the other, [`AT_ONCE`] datagrams every [`PAUSE`] (9 MB/s, a twentieth of a CPU for their signatures), so 255
//! nodes have a full list after 32 s, and ten have one of 100 kB after 0.12 s. A list that changes meanwhile is not begun again with
//! the first node: each node gets its turn.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::{Action, Exchange, Peer};
use crate::health;
use crate::health::totals::{Total, Totals};
use crate::name::NodeName;
use crate::startup::Starts;
use crate::time::{Duration, Instant};
use crate::wire::report::{Datagram, MAX_TOTALS, Piece, piece_len};

/// Nodes that the rows go to by unicast, one after the other.
#[derive(Debug, Default)]
pub(super) struct Copies {
    waiting: VecDeque<NodeName>,
    /// The version of the list and its part that the first of them gets next.
    version: u64,
    part: usize,
    next: Instant,
}

impl Copies {
    pub fn due(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.next)
    }
}

/// What a datagram carries beside the summary: one of these, or nothing.
#[derive(Clone, Default)]
struct Body {
    piece: Option<Piece>,
    starts: Option<Starts>,
    health: Option<health::Report>,
    totals: Option<Totals>,
}

const AT_ONCE: usize = 64;
const PAUSE: Duration = Duration::from_millis(10);

impl Exchange {
    /// All rows to the group; a summary to all, if there are none.
    pub(super) fn send_list(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.last_list = Some(now);
        let parts = self.parts();
        if parts == 0 {
            return self.send_summary(now, actions);
        }
        for part in 0..parts {
            let body = Body { piece: self.piece(part), ..Body::default() };
            let datagram = self.seal(body, None, now);
            actions.push(Action::Send(datagram));
        }
    }

    /// All rows to all nodes that the group does not reach, soon.
    pub(super) fn copy_to_all(&mut self, now: Instant) {
        let nodes: Vec<NodeName> = self.ways.targets(now).cloned().collect();
        nodes.into_iter().for_each(|node| self.copy_to(node, now));
    }

    /// All rows to this node, soon.
    pub(super) fn copy_to(&mut self, node: NodeName, now: Instant) {
        if self.parts() == 0 || self.copies.waiting.contains(&node) {
            return;
        }
        self.copies.next = self.copies.due().unwrap_or(now);
        self.copies.waiting.push_back(node);
    }

    pub(super) fn send_copies(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.copies.due().is_none_or(|due| due > now) {
            return;
        }
        self.copies.next = now + PAUSE;
        let version = self.own.as_ref().map_or(0, |own| own.version);
        if core::mem::replace(&mut self.copies.version, version) != version {
            self.copies.part = 0;
        }
        for _ in 0..AT_ONCE {
            let Some(node) = self.copies.waiting.front().cloned() else { return };
            let reached = self.ways.by_unicast(&node, now);
            if let Some(piece) = self.piece(self.copies.part).filter(|_| reached) {
                self.copies.part += 1;
                let datagram = self.seal(Body { piece: Some(piece), ..Body::default() }, Some(&node), now);
                actions.push(Action::SendTo(node, datagram));
            } else {
                self.copies.waiting.pop_front();
                self.copies.part = 0;
            }
        }
    }

    pub(super) fn send_summary(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.send(&Body::default(), now, actions);
    }

    /// At once, and with each summary until all are known to have started: a lost datagram costs a second.
    pub(super) fn set_starts(&mut self, starts: Starts, now: Instant, actions: &mut Vec<Action>) {
        if starts != self.starts {
            self.starts = starts;
            self.send_starts(now, actions);
        }
    }

    pub(super) fn send_starts(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.send(&Body { starts: Some(self.starts.clone()), ..Body::default() }, now, actions);
    }

    /// At once if it decides something, and with each summary: peers forget it otherwise.
    pub(super) fn set_health(&mut self, report: health::Report, now: Instant, actions: &mut Vec<Action>) {
        let is_news = self.health.as_ref().is_none_or(|before| report.is_news_after(before));
        self.health = Some(report);
        if is_news {
            self.send_health(now, actions);
        }
    }

    pub(super) fn send_health(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if let Some(report) = self.health.clone() {
            self.send(&Body { health: Some(report), ..Body::default() }, now, actions);
        }
    }

    /// With each summary: they are for status alone. Members to which nothing was led are left out; none at all is sent, too.
    pub(super) fn send_totals(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(totals) = &self.totals else { return };
        let counted: Vec<_> = totals.iter().filter(|(_, total)| **total != Total::default()).collect();
        let mut bodies: Vec<Totals> = counted
            .chunks(MAX_TOTALS)
            .map(|some| some.iter().map(|(place, total)| (**place, **total)).collect())
            .collect();
        if bodies.is_empty() {
            bodies.push(Totals::new());
        }
        for totals in bodies {
            self.send(&Body { totals: Some(totals), ..Body::default() }, now, actions);
        }
    }

    /// To the group, and to each node that it does not reach.
    fn send(&mut self, body: &Body, now: Instant, actions: &mut Vec<Action>) {
        let datagram = self.seal(body.clone(), None, now);
        actions.push(Action::Send(datagram));
        let nodes: Vec<NodeName> = self.ways.targets(now).cloned().collect();
        for node in nodes {
            let datagram = self.seal(body.clone(), Some(&node), now);
            actions.push(Action::SendTo(node, datagram));
        }
    }

    /// `to`: `None` for the group.
    fn seal(&mut self, Body { piece, starts, health, totals }: Body, to: Option<&NodeName>, now: Instant) -> Vec<u8> {
        self.sequence += 1;
        let own = self.own.as_ref();
        let age = own.map_or(Duration::ZERO, |own| now.since(own.reported.confirmed));
        let requests = match to {
            Some(node) => !self.peers.get(node).is_some_and(Peer::is_known),
            None => !self.peers.values().all(Peer::is_known) || !self.all_reported(now),
        };
        let datagram = Datagram {
            node: self.config.node.clone(),
            cluster: self.config.cluster,
            epoch: self.config.epoch,
            sequence: self.sequence,
            requests,
            partial: own.is_some_and(|own| own.partial),
            asks: to.is_some_and(|node| self.ways.asks(node, now)),
            version: own.map_or(0, |own| own.version),
            digest: own.map_or(0, |own| own.reported.report.digest),
            view: self.staleness.view(&self.config.node),
            age_millis: u32::try_from(age.as_millis()).unwrap_or(u32::MAX),
            parts: self.parts() as u16,
            piece,
            starts,
            health,
            totals,
        };
        datagram.seal(&self.config.keys)
    }

    /// Of the list: none if there are no rows.
    fn parts(&self) -> usize {
        self.own.as_ref().map_or(0, |own| own.list.len().div_ceil(self.piece_len()))
    }

    fn piece(&self, part: usize) -> Option<Piece> {
        let bytes = self.own.as_ref()?.list.chunks(self.piece_len()).nth(part)?;
        Some(Piece { part: u16::try_from(part).ok()?, bytes: bytes.into() })
    }

    fn piece_len(&self) -> usize {
        piece_len(self.config.node.as_str().len())
    }
}
