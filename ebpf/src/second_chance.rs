//! Step 5: whether a packet stays, and which node may know its flow if conntrack here does not: the second chance.
//!
//! Read first: docs/dataplane.md, "Second chance". The decision is pure: it sees the row, this node, where the packet came from
//! and what it is. The kernel's chains see only the result, a [`Mark`] in place of the source MAC address.

use ebpf_common::{Config, Mark, NextHop, Node, RESERVED_FLAG, Row, SearchState, ServiceValue, Verdict};

use crate::forward;
use crate::frame::Frame;
use crate::parse::{Content, MAC_LEN, Packet};
use crate::tables::Tables;

/// How a packet came to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Not from a node that we know as one.
    Client,
    /// From another node's dispatcher. That node has not looked whether it knows the flow itself.
    Dispatcher { from: u16 },
    /// In search of its flow, from a node that does not know it.
    Search { from: u16, state: SearchState },
}

impl Origin {
    /// Of a packet that is not in search. `sender`: the slot of a node, or 0.
    #[inline(always)]
    pub fn direct(sender: u16) -> Self {
        if sender == 0 { Self::Client } else { Self::Dispatcher { from: sender } }
    }

    /// Of one that [`is_in_search`] has judged.
    #[inline(always)]
    pub fn of(sender: u16, packet: &Packet) -> Self {
        match packet.flags & RESERVED_FLAG != 0 {
            true => Self::Search { from: sender, state: SearchState::from_ttl(packet.ttl) },
            false => Self::direct(sender),
        }
    }
}

/// Only nodes send packets with the reserved flag (RFC 791 section 3.1: must be zero).
#[inline(always)]
pub fn is_in_search(sender: u16, packet: &Packet) -> Result<bool, Verdict> {
    match packet.flags & RESERVED_FLAG != 0 {
        true if sender == 0 => Err(Verdict::Malformed),
        in_search => Ok(in_search),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// To the primary of the row, which is another node.
    Dispatch,
    /// The same with a SYN that a node sent here by another ring: with a [`SearchState`] of this hop.
    ForwardSyn { hop: u8 },
    /// Up the stack.
    PassToStack(Mark),
}

/// Every packet is dispatched once; from then on its [`SearchState`] limits the hops: two nodes with different rings
/// never play ping-pong. `search_origin`: see [`search_origin`].
#[inline(always)]
pub fn next(
    config: &Config,
    service: ServiceValue,
    row: Row,
    origin: Origin,
    search_origin: u16,
    content: &Content,
) -> Step {
    let own = config.self_slot as u16;
    let elsewhere = row.primary() != own;
    let is_syn = content.is_syn();
    let syn_elsewhere = elsewhere && is_syn && service.flags & ServiceValue::SERVED_HERE == 0;
    let seeks_client = seeks_client(service, content);
    match origin {
        // What may be an answer to a flow of this node goes to conntrack first, and from there to the primary as the first alternate.
        Origin::Client if elsewhere && (is_syn || !may_be_of_node(service)) => Step::Dispatch,
        Origin::Dispatcher { .. } if syn_elsewhere => Step::ForwardSyn { hop: 1 },
        Origin::Search { .. } if seeks_client && search_origin != 0 => {
            Step::PassToStack(next_hop(row, own, origin, search_origin, content))
        }
        // The row here lacks the node where the search began, which would take the client. This one's primary has pods.
        Origin::Search { state: SearchState { hop: 2 | 3, no_reset }, .. } if seeks_client && syn_elsewhere => {
            Step::PassToStack(Mark { next_hop: NextHop::ToPrimary, no_reset, slot: row.primary() })
        }
        // The node that sent it may have the newer view, and this one no rules for its pods yet: if the rows name each other,
        // the first one takes it after all.
        Origin::Search { state: SearchState { hop: 1, .. }, .. } if syn_elsewhere => Step::ForwardSyn { hop: 2 },
        // A new flow: no node knows it yet.
        Origin::Search { .. } if is_syn => Step::PassToStack(local(origin, content)),
        // With affinity another node may know the client.
        _ if is_syn && !seeks_client => Step::PassToStack(local(origin, content)),
        _ => Step::PassToStack(next_hop(row, own, origin, search_origin, content)),
    }
}

/// Packets of flows that this node, or a pod that it masquerades, has opened may come to this port.
#[inline(always)]
pub fn may_be_of_node(service: ServiceValue) -> bool {
    service.flags & ServiceValue::NODE_FLOWS != 0
}

/// A SYN of a service with sessionAffinity ClientIP: the node that has the client's record is to take it, if there is one.
#[inline(always)]
pub fn seeks_client(service: ServiceValue, content: &Content) -> bool {
    service.flags & ServiceValue::CLIENT_AFFINITY != 0 && content.is_syn()
}

/// The row without alternates that take no new flows: they have flows, and their rules may name pods that are not ready any more.
#[inline(always)]
pub fn with_takers(tables: &impl Tables, service: ServiceValue, mut row: Row) -> Row {
    let excluded = if service.flags & ServiceValue::EXCLUDED_TAKE != 0 { 0 } else { Node::EXCLUDED };
    let alternates = row.alternates();
    for (place, slot) in alternates.into_iter().enumerate() {
        let node = tables.node(u32::from(slot)).unwrap_or_default();
        if node.flags & (Node::EXISTING_FLOWS_ONLY | excluded) != 0 {
            row = row.without(place);
        }
    }
    row
}

/// The node that began the search, as far as the packet names it; 0: none. The node of hop 2 needs it to choose hop 3. A SYN in search
/// of its client's node ([`seeks_client`]) returns to it; one that names none was sent on because two rings differ.
#[inline(always)]
pub fn search_origin(tables: &impl Tables, packet: &Packet, row: Row, origin: Origin, seeks_client: bool) -> u16 {
    let Origin::Search { from, state } = origin else { return 0 };
    let began = |slot: u16| {
        let node = tables.node(u32::from(slot)).unwrap_or_default();
        // A slot without a node has no address, and many packets of clients have no identification.
        slot != 0 && node.addr != [0; 4] && SearchState::is_origin(packet.id, node.addr)
    };
    match state.hop {
        1 if seeks_client && began(from) => return from,
        2 => {}
        3 if seeks_client => {}
        _ => return 0,
    }
    for slot in row.nodes() {
        if began(slot) {
            return slot;
        }
    }
    // A speaker of an earlier version does not name it: where the rings agree it was the primary.
    if seeks_client { 0 } else { row.primary() }
}

/// No next hop: what the kernel here does not know is new, or refused. A SYN has the slot of the node that dispatched it here: by its
/// table there is a pod, so without a rule one of the two tables is behind, and the guard leaves the SYN to be repeated. Not one that
/// was sent on: a node without the VIP's rules may have, whose conntrack keeps an entry that no repetition gets past.
#[inline(always)]
fn local(origin: Origin, content: &Content) -> Mark {
    let (from, no_reset) = match origin {
        Origin::Client => (0, false),
        Origin::Dispatcher { from } => (from, false),
        Origin::Search { state, .. } => (0, state.no_reset),
    };
    Mark { no_reset, slot: if content.is_syn() { from } else { 0 }, ..Mark::LOCAL }
}

/// The row here has no further alternate. The node that sent a segment may have one: the speaker here may be dead or lagging, and
/// the row older than the sender's. So the segment returns there, once.
#[inline(always)]
pub fn no_alternate(origin: Origin, content: &Content) -> Mark {
    match (origin, content) {
        (Origin::Dispatcher { from }, Content::Tcp(_)) if !content.is_syn() => {
            Mark { next_hop: NextHop::ToDispatcher, no_reset: false, slot: from }
        }
        (Origin::Search { from, state: SearchState { hop: 1, no_reset } }, Content::Tcp(_)) if !content.is_syn() => {
            Mark { next_hop: NextHop::Alternate(2), no_reset, slot: from }
        }
        _ => local(origin, content),
    }
}

/// The next hop of a packet that belongs to a flow, or of a SYN that seeks its client's node. A UDP packet of an unknown flow begins
/// one, at the primary; the SYN of an unknown client where its search began.
///
/// Nodes need not agree on the order of a row, nor on its primary. No node is visited twice, so with the same four nodes
/// everywhere the third hop finds the one that is left. While a change propagates nodes may disagree on the nodes of the row;
/// then each uses its own row, and the hop limit ends the search.
#[inline(always)]
fn next_hop(row: Row, own: u16, origin: Origin, search_origin: u16, content: &Content) -> Mark {
    let Origin::Search { from, state } = origin else {
        // The dispatcher is a candidate like any other: it sent the packet by its row, not by its conntrack.
        return match first_unvisited(row.nodes(), [own; 3]) {
            0 => no_alternate(origin, content),
            slot => Mark { next_hop: NextHop::Alternate(1), no_reset: false, slot },
        };
    };
    let home = match content {
        Content::Udp => row.primary(),
        _ if content.is_syn() => search_origin,
        _ => 0,
    };
    let (next_hop, next) = match state.hop {
        1 => (NextHop::Alternate(2), first_unvisited(row.nodes(), [own, from, from])),
        2 => (NextHop::Alternate(3), first_unvisited(row.nodes(), [own, from, search_origin])),
        _ => (NextHop::Local, 0),
    };
    match next {
        0 if home != 0 && home != own && state.hop < SearchState::LAST_HOP => {
            Mark { next_hop: NextHop::ToPrimary, no_reset: state.no_reset, slot: home }
        }
        0 => no_alternate(origin, content),
        slot => Mark { next_hop, no_reset: state.no_reset, slot },
    }
}

/// The first of these nodes that the search has not visited; 0: none.
#[inline(always)]
fn first_unvisited<const N: usize>(nodes: [u16; N], [own, from, first]: [u16; 3]) -> u16 {
    for slot in nodes {
        if slot != 0 && slot != own && slot != from && slot != first {
            return slot;
        }
    }
    0
}

/// The last step of a packet that passes to the stack: its mark, and no trace of its search state. A packet with a next hop gets
/// the TTL guard ([`Mark::GUARD_TTL`]).
#[inline(always)]
pub fn pass_to_stack(frame: &mut impl Frame, packet: &Packet, origin: Origin, mark: Mark) -> Result<(), Verdict> {
    let guarded = mark.next_hop.needs_ttl_guard();
    if guarded || matches!(origin, Origin::Search { .. }) {
        let ttl = if guarded { Mark::GUARD_TTL } else { packet.ttl };
        forward::flags_and_ttl(frame, packet, packet.flags & !RESERVED_FLAG, ttl)?;
    }
    frame.write(MAC_LEN, mark.mac()).ok_or(Verdict::Malformed)
}

/// The counter of a packet to a flow's row that passes to the stack.
#[inline(always)]
pub fn verdict(origin: Origin, content: &Content, mark: Mark) -> Verdict {
    match (origin, content, mark.next_hop) {
        (Origin::Search { .. }, ..) => Verdict::SecondChanceArrived,
        (Origin::Dispatcher { .. }, _, NextHop::Local | NextHop::ToDispatcher) => Verdict::FromPeer,
        (Origin::Dispatcher { .. }, ..) => Verdict::SecondChancePeer,
        (Origin::Client, Content::Error, _) => Verdict::IcmpLocal,
        (Origin::Client, _, NextHop::Local) => Verdict::DispatchedLocal,
        (Origin::Client, ..) => Verdict::SecondChanceLocal,
    }
}
