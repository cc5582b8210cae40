//! Packets in a cluster whose rings have any contents: every walk ends, and where the rings agree it ends where the flow is.
//! Conntrack is a set of nodes that know the flow; the kernel's chains are [`forward_to`].

use ebpf_common::{ALTERNATES, Config, Mark, NextHop, Node, RESERVED_FLAG, Row, SearchState, ServiceKey, ServiceValue};
use proptest::prelude::*;

use super::VIP;
use crate::host::{HostFrame, HostTables};
use crate::{checksum, walk};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8192))]

    #[test]
    fn every_walk_ends(cluster in clusters(), kind in kinds(), entry in 1..=NODES, invalid: bool) {
        let walk = cluster.send(kind, entry, invalid)?;
        prop_assert!(walk.hops <= usize::from(SearchState::LAST_HOP), "{walk:?}");
        if kind == Kind::Syn {
            prop_assert!(walk.hops <= 2, "{walk:?}");
        }
        let is_syn = matches!(kind, Kind::Syn | Kind::AffineSyn);
        let dispatched = is_syn && walk.hops == 0;
        prop_assert!(walk.known || walk.sent_by == if dispatched { walk.last } else { 0 }, "{walk:?}");
        if kind == Kind::AffineSyn {
            prop_assert!(invalid || !walk.no_reset, "{walk:?}");
        } else {
            prop_assert_eq!(walk.no_reset, invalid && walk.hops > 0 && !walk.known && kind != Kind::Syn);
        }
    }

    /// Nodes may order the row differently. Where no node knows the client, the SYN ends where one without affinity ends.
    #[test]
    fn with_the_same_nodes_in_each_row_the_syn_of_an_unknown_client_comes_home(
        mut cluster in clusters(),
        orders in proptest::collection::vec(Just([1u16, 2, 3, 4]).prop_shuffle(), usize::from(NODES)),
        entry in 1..=NODES,
    ) {
        cluster.rows = orders.into_iter().map(|[primary, rest @ ..]| Row::new(primary, rest)).collect();
        cluster.known.fill(false);
        let [affine, plain] = [Kind::AffineSyn, Kind::Syn].map(|kind| cluster.send(kind, entry, false));
        let (affine, plain) = (affine?, plain?);
        // Two nodes that are neither primary nor have a pod sent it on.
        if plain.hops < 2 {
            prop_assert_eq!(affine.end, plain.end, "{:?} {:?}", affine, plain);
        }
    }

    /// Its rules may name pods that are not ready any more. Its open flows are found all the same.
    #[test]
    fn a_node_that_takes_no_new_flows_is_not_asked_for_clients(mut cluster in clusters(), entry in 1..=NODES, closed in 2..=4u16) {
        cluster.rows.fill(Row::new(1, [2, 3, 4]));
        cluster.known = (1..=NODES).map(|slot| slot == closed).collect();
        cluster.existing_only = closed;
        let [syn, segment] = [Kind::AffineSyn, Kind::Segment].map(|kind| cluster.send(kind, entry, false));
        prop_assert_eq!(syn?.end, 1);
        prop_assert_eq!(segment?.end, closed);
    }

    /// Unless the service says that nodes with the exclude label take new flows.
    #[test]
    fn an_excluded_node_is_asked_for_clients_where_it_takes_new_flows(
        mut cluster in clusters(),
        entry in 1..=NODES,
        excluded in 2..=4u16,
        takes: bool,
    ) {
        cluster.rows.fill(Row::new(1, [2, 3, 4]));
        cluster.known = (1..=NODES).map(|slot| slot == excluded).collect();
        (cluster.excluded, cluster.excluded_take) = (excluded, takes);
        let [syn, segment] = [Kind::AffineSyn, Kind::Segment].map(|kind| cluster.send(kind, entry, false));
        prop_assert_eq!(syn?.end, if takes { excluded } else { 1 });
        prop_assert_eq!(segment?.end, excluded);
    }

    /// It is only asked: by the view of the node where the search began there are pods.
    #[test]
    fn a_node_with_an_empty_ring_sends_the_syn_home(mut cluster in clusters(), entry in prop_oneof![Just(1u16), 3..=NODES]) {
        cluster.rows.fill(Row::new(1, [2, 3, 4]));
        cluster.known.fill(false);
        cluster.empty = 2;
        prop_assert_eq!(cluster.send(Kind::AffineSyn, entry, false)?.end, 1);
    }

    /// With any rows: a node that has no pod and is not its row's primary keeps no SYN, unless one without affinity ends there too, or
    /// another node takes it for the primary.
    #[test]
    fn the_syn_of_an_unknown_client_ends_where_there_may_be_a_pod(mut cluster in clusters(), entry in 1..=NODES) {
        cluster.known.fill(false);
        let [affine, plain] = [Kind::AffineSyn, Kind::Syn].map(|kind| cluster.send(kind, entry, false));
        let (affine, plain) = (affine?, plain?);
        let primary = cluster.rows.iter().any(|row| row.primary() == affine.end);
        let served = cluster.served[usize::from(affine.end) - 1];
        prop_assert!(served || primary || affine.end == plain.end, "{affine:?} {plain:?}");
    }

    #[test]
    fn with_one_ring_a_packet_finds_its_flow(
        mut cluster in clusters(),
        kind in kinds(),
        entry in 1..=NODES,
        invalid: bool,
    ) {
        let row = distinct(cluster.rows[0]);
        cluster.rows.fill(row);
        let walk = cluster.send(kind, entry, invalid)?;
        let place = row.nodes().iter().position(|slot| cluster.knows(*slot));
        match place {
            _ if kind == Kind::Syn => prop_assert_eq!((walk.end, walk.hops), (row.primary(), 0)),
            // Nobody knows the client: the primary takes it.
            None if kind == Kind::AffineSyn => prop_assert_eq!((walk.end, walk.known), (row.primary(), false)),
            // The first in the row is 0 hops away, the last alternate 3.
            Some(place) => {
                prop_assert!(walk.known && walk.hops <= place && place <= ALTERNATES, "{walk:?}");
            }
            // A new flow begins at the primary; the last node refuses a segment of an unknown flow.
            None if matches!(kind, Kind::Datagram | Kind::Fragment) => prop_assert_eq!((walk.end, walk.known), (row.primary(), false)),
            // The dispatcher may know a flow that its row does not give it.
            None => prop_assert!(!walk.known || walk.end == entry),
        }
    }
}

const NODES: u16 = 6;

/// Nodes 1 to 6.
#[derive(Clone, Debug)]
struct Cluster {
    /// Of each node: its own idea of the flow's row.
    rows: Vec<Row>,
    /// Whether its conntrack knows the flow.
    known: Vec<bool>,
    /// Whether it has a pod.
    served: Vec<bool>,
    /// A node that takes no new flows; 0: none.
    existing_only: u16,
    /// A node with the exclude label; 0: none.
    excluded: u16,
    /// Whether the service lets it take new flows.
    excluded_take: bool,
    /// A node whose ring is empty; 0: none.
    empty: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Syn,
    /// Of a service with sessionAffinity ClientIP: known is its client.
    AffineSyn,
    Segment,
    Datagram,
    /// The first fragment of one.
    Fragment,
    Error,
}

#[derive(Debug)]
struct Walk {
    /// The node whose kernel kept the packet.
    end: u16,
    known: bool,
    no_reset: bool,
    /// By the mark.
    sent_by: u16,
    /// The node that did; 0: the client.
    last: u16,
    /// After the dispatch.
    hops: usize,
}

fn clusters() -> impl Strategy<Value = Cluster> {
    let nodes = usize::from(NODES);
    let row = (1..=NODES, [0..=NODES, 0..=NODES, 0..=NODES]).prop_map(|(primary, rest)| Row::new(primary, rest));
    let flags = |share| proptest::collection::vec(proptest::bool::weighted(share), nodes);
    (proptest::collection::vec(row, nodes), flags(0.15), flags(0.5)).prop_map(|(rows, known, served)| Cluster {
        rows,
        known,
        served,
        existing_only: 0,
        excluded: 0,
        excluded_take: false,
        empty: 0,
    })
}

/// As user space makes rows: no node twice.
fn distinct(row: Row) -> Row {
    let mut seen = vec![row.primary()];
    Row::new(
        row.primary(),
        row.alternates().map(|slot| {
            let new = !seen.contains(&slot);
            seen.push(slot);
            if new { slot } else { 0 }
        }),
    )
}

fn kinds() -> impl Strategy<Value = Kind> {
    let syns = prop_oneof![Just(Kind::Syn), Just(Kind::AffineSyn)];
    prop_oneof![syns, Just(Kind::Segment), Just(Kind::Datagram), Just(Kind::Fragment), Just(Kind::Error)]
}

impl Cluster {
    /// From the client to the node `entry`, and on until a kernel keeps it.
    fn send(&self, kind: Kind, entry: u16, invalid: bool) -> Result<Walk, TestCaseError> {
        let sent = kind.frame();
        let mut frame = HostFrame(sent.clone());
        frame.0[..6].copy_from_slice(&mac(entry));
        let (mut at, mut last, mut frames, mut dispatched) = (entry, 0, 0, 0);
        loop {
            prop_assert!(frames <= 1 + usize::from(SearchState::LAST_HOP), "no end at node {at}");
            let verdict = walk(&mut frame, &self.tables(at, kind));
            let header: [u8; 20] = frame.0[14..34].try_into().expect("a header");
            prop_assert_eq!(checksum::finish(checksum::sum(&header)), 0, "node {} breaks the checksum", at);
            match verdict.fate() {
                ebpf_common::Fate::Drop => prop_assert!(false, "node {at} drops it: {verdict:?}"),
                ebpf_common::Fate::Tx => {
                    prop_assert_eq!(&frame.0[6..12], &mac(at));
                    dispatched = 1;
                }
                ebpf_common::Fate::Pass => {
                    prop_assert!(frame.0[20] & 0x80 == 0, "no kernel sees the reserved flag");
                    prop_assert!(
                        frame.0[24..26] == header[10..12] && frame.0[26..] == sent[26..],
                        "it is as it was sent"
                    );
                    let known = self.knows(at) && kind != Kind::Syn;
                    let mark = mark(&frame);
                    prop_assert!(
                        !mark.next_hop.needs_ttl_guard() || frame.0[22] == 1,
                        "it goes nowhere without our chains"
                    );
                    if known || mark.next_hop == NextHop::Local {
                        return Ok(Walk {
                            end: at,
                            known,
                            no_reset: mark.no_reset && !known,
                            sent_by: mark.slot,
                            last,
                            hops: frames - dispatched,
                        });
                    }
                    forward_to(&mut frame, at, mark, invalid);
                }
            }
            frames += 1;
            last = at;
            at = u16::from(frame.0[5]);
        }
    }

    fn flags(&self, slot: u16) -> u16 {
        let existing_only = if slot == self.existing_only { Node::EXISTING_FLOWS_ONLY } else { 0 };
        existing_only | if slot == self.excluded { Node::EXCLUDED } else { 0 }
    }

    fn knows(&self, slot: u16) -> bool {
        slot != 0 && self.known[usize::from(slot) - 1]
    }

    fn tables(&self, slot: u16, kind: Kind) -> HostTables {
        let mut tables = HostTables {
            config: Config { mac: mac(slot), self_slot: u32::from(slot), ..Config::default() },
            ..HostTables::default()
        };
        tables.vips.insert(VIP);
        let at = usize::from(slot) - 1;
        // A node may not have heard of a pod yet.
        let row = Some(self.rows[at]).filter(|_| self.empty != slot);
        tables.rings.insert(1, row.into_iter().collect());
        let served = if self.served[at] { ServiceValue::SERVED_HERE } else { 0 };
        let affinity = if kind == Kind::AffineSyn { ServiceValue::CLIENT_AFFINITY } else { 0 };
        let excluded_take = if self.excluded_take { ServiceValue::EXCLUDED_TAKE } else { 0 };
        let flags = served | affinity | excluded_take;
        for proto in [6, 17] {
            let key = ServiceKey { addr: VIP, port: [0, 80], proto, pad: 0 };
            tables.services.insert(key, ServiceValue { ring: 1, flags });
        }
        for peer in (1..=NODES).filter(|peer| *peer != slot) {
            tables.nodes.insert(u32::from(peer), Node { addr: address(peer), mac: mac(peer), flags: self.flags(peer) });
            tables.peers.insert(mac(peer), peer);
        }
        tables
    }
}

/// What the filter chain in nftables does with a packet of a flow that conntrack does not know (docs/dataplane.md).
fn forward_to(frame: &mut HostFrame, at: u16, mark: Mark, invalid: bool) {
    let ttl = match mark.next_hop {
        NextHop::Local => unreachable!("local is no next hop"),
        NextHop::Alternate(1) | NextHop::ToDispatcher | NextHop::InFragments if invalid => 32,
        next_hop if mark.no_reset => 33 - next_hop.hop(),
        next_hop => 17 - next_hop.hop(),
    };
    frame.0[..6].copy_from_slice(&mac(mark.slot));
    frame.0[6..12].copy_from_slice(&mac(at));
    // The kernel makes fragments anew, without the flag.
    let fragment = frame.0[20] & 0x20 != 0;
    assert_eq!(
        mark.next_hop == NextHop::InFragments,
        fragment && mark.next_hop.hop() == 1,
        "they keep their identification"
    );
    if !fragment {
        frame.0[20] |= RESERVED_FLAG.to_be_bytes()[0];
    }
    if matches!(mark.next_hop, NextHop::Alternate(1) | NextHop::ToDispatcher) {
        frame.0[18..20].copy_from_slice(&SearchState::origin_id(address(at)).to_be_bytes());
    }
    // `dup` takes one off.
    frame.0[22] = ttl - 1;
    fill_checksum(&mut frame.0);
}

fn mark(frame: &HostFrame) -> Mark {
    let byte = frame.0[9];
    let next_hops = [
        NextHop::Local,
        NextHop::Alternate(1),
        NextHop::Alternate(2),
        NextHop::Alternate(3),
        NextHop::ToPrimary,
        NextHop::ToDispatcher,
        NextHop::InFragments,
    ];
    let next_hop = next_hops[usize::from(byte & !Mark::NO_RESET)];
    let mark =
        Mark { next_hop, no_reset: byte & Mark::NO_RESET != 0, slot: u16::from_be_bytes([frame.0[10], frame.0[11]]) };
    assert_eq!(frame.0[6..12], mark.mac(), "to the stack there is a mark");
    mark
}

fn address(slot: u16) -> [u8; 4] {
    [192, 0, 2, slot as u8]
}

fn mac(slot: u16) -> [u8; 6] {
    [2, 0, 0, 0, 0, slot as u8]
}

impl Kind {
    /// From the client by way of the router. The checksums behind the IP header do not matter here.
    fn frame(self) -> Vec<u8> {
        const CLIENT: [u8; 4] = [198, 51, 100, 7];
        let tcp = |flags| [&[0x9c, 0x40, 0, 80][..], &[0; 8], &[0x50, flags], &[0; 6]].concat();
        let (proto, rest) = match self {
            Kind::Syn | Kind::AffineSyn => (6, tcp(0x02)),
            Kind::Segment => (6, tcp(0x10)),
            Kind::Datagram => (17, vec![0x9c, 0x40, 0, 80, 0, 8, 0, 0]),
            Kind::Fragment => (17, vec![0x9c, 0x40, 0, 80, 0x1f, 0x48, 0, 0]),
            // It quotes a datagram from the VIP to the client.
            Kind::Error => {
                let quoted = [&[0x45, 0, 0, 28, 0, 0, 0x40, 0, 60, 17, 0, 0][..], &VIP, &CLIENT].concat();
                (1, [&[3, 4, 0, 0, 0, 0, 5, 0][..], &quoted, &[0, 80, 0x9c, 0x40, 0, 8, 0, 0]].concat())
            }
        };
        // Don't fragment; more fragments.
        let flags = if self == Kind::Fragment { 0x20 } else { 0x40 };
        let header =
            [&[0x45, 0, 0, 20 + rest.len() as u8, 0, 0, flags, 0, 64, proto, 0, 0][..], &CLIENT, &VIP].concat();
        let mut frame = [&mac(0)[..], &mac(99), &[8, 0], &header, &rest].concat();
        fill_checksum(&mut frame);
        frame
    }
}

fn fill_checksum(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let header: [u8; 20] = frame[14..34].try_into().expect("a header");
    frame[24..26].copy_from_slice(&checksum::finish(checksum::sum(&header)).to_be_bytes());
}
