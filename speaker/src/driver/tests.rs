//! The loop with real sockets and real maps, in a namespace as in io/tests.rs. The test is every other host, and the kernel refuses what
//! it is made to refuse.

mod conflicts;

use std::net::SocketAddrV4;

use ebpf_common::map;
use nix::net::if_::if_nametoindex;
use speaker_core::election::turn::Surroundings;
use speaker_core::wire::advert::{Key, Keyring};

use super::*;
use crate::dataplane::Counters;
use crate::dataplane::inbox::{self, Inbox as Dataplane};
use crate::dataplane::loader::Pins;
use crate::dataplane::map_tests::{freeze, with_maps};
use crate::io::tests::{Far, arp, in_namespace};
use crate::mailbox;

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 254), 7480);
/// From a refusal to the next claim.
const RETRY: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(10);

/// A node whose election has no peer.
struct Driven {
    driven: Loop,
    notices: mailbox::Receiver<Subject, Notice>,
    dataplane: Dataplane,
    health: Arc<HealthFlags>,
    metrics: Arc<Metrics>,
    far: Far,
}

fn driven(test: impl FnOnce(Driven, &Pins) + Send + 'static) {
    in_namespace(move || with_maps(move |pins| test(Driven::new(pins), pins)));
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

impl Driven {
    fn new(pins: &Pins) -> Self {
        Self::at("node", 1, 5, pins)
    }

    /// A node of this cluster, with the Ethernet address of that end of the cable.
    fn at(device: &str, last: u8, cluster: u64, pins: &Pins) -> Self {
        let (index, now) = (if_nametoindex(device).unwrap(), clock::now());
        let node = NodeName::new("own").unwrap();
        let keys = Keyring { current: Key { id: 1, secret: [7; 32] }, other: None };
        let secret = rotation::Secret { current: keys.current.clone(), previous: None };
        // A machine that is busy for half a second freezes no node.
        let config = election::Config::new(node.clone(), cluster, 100, keys, 5).at_pace(Duration::from_millis(50), 20);
        let config = election::Config { retry: RETRY, ..config };
        let metrics = Arc::new(Metrics::new(Counters::open(pins).unwrap()).unwrap());
        let health = Arc::new(HealthFlags::new(now));
        let (sync, dataplane) = inbox::channel(metrics.clone());
        let (notices_sender, notices) = Notices::channel();
        let driver = Driver {
            liveness: Liveness::new(liveness::Config::new(3)),
            readiness: Readiness::new(readiness::Config::default(), BTreeSet::new()),
            resolver: Resolver::new(resolve::Config::new(3)),
            unicast: Unicast::new(unicast::Config::new(config.dead())),
            rotation: Rotation::new(rotation::Config::new(config.dead()), secret, None, now),
            unverified: Unverified::new(node, true, now),
            announcer: Announcer::new(announce::Config::default()),
            conflicts: Conflicts::new(cluster),
            udp: MulticastSocket::open(device, index, GROUP).unwrap(),
            arp: ArpSocket::open(index, mac(last)).unwrap(),
            claims: ArpSocket::open(index, mac(last)).unwrap(),
            lease: LeaseMaps::open(pins).unwrap(),
            inbox: Commands::channel().unwrap().1,
            own_ip: (last == 1).then_some(NODE),
            sync,
            notices: notices_sender,
            health: health.clone(),
            metrics: metrics.clone(),
        };
        let mut driven = Loop::new(Election::new(config, now), driver).unwrap();
        driven.set_desired([(Vip(VIP), Eligible::All)].into(), false);
        driven.state.ready = true;
        driven.elect(election::Event::Ready(true));
        Self { driven, notices, dataplane, health, metrics, far: Far::open() }
    }

    /// Turns of the loop until it is so.
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = clock::now() + PATIENCE;
        while !done(self) {
            assert!(clock::now() < end, "not within {PATIENCE:?}: {what}");
            self.driven.step().unwrap();
        }
    }

    fn owns(&self) -> bool {
        self.health.owns(VIP)
    }

    /// What the main loop receives, newest of each kind.
    fn noticed(&mut self) -> Vec<Notice> {
        let waiting = futures::FutureExt::now_or_never(self.notices.recv());
        waiting.flatten().into_iter().flat_map(std::collections::BTreeMap::into_values).collect()
    }

    /// Turns of the loop until it reports that the VIP has no owner, and why.
    fn until_lost(&mut self) -> Option<LoseReason> {
        let mut lost = None;
        self.until("the VIP has no owner", |driven| {
            lost = driven.noticed().into_iter().find_map(|notice| match notice {
                Notice::OwnerChanged { vip: VIP, owner: None, why } => Some(why),
                _ => None,
            });
            lost.is_some()
        });
        lost.flatten()
    }

    /// Announcements of the VIP that have been sent and not been counted yet.
    fn announced(&self) -> usize {
        let frames = std::iter::from_fn(|| self.far.receive());
        frames
            .filter(|frame| frame.len() >= 42 && frame[12..14] == [0x08, 0x06] && frame[28..32] == VIP.octets())
            .count()
    }

    fn refused(&self, map: &str) -> u64 {
        self.metrics.send_errors.with_label_values(&[map]).get()
    }

    /// What the dataplane receives of the peer's address.
    fn addresses(&mut self) -> Vec<Message> {
        let received = futures::FutureExt::now_or_never(self.dataplane.recv()).flatten();
        let of_peer = |message: &Message| match message {
            Message::Neighbour { ip, .. } | Message::SignedMac { ip, .. } => *ip == PEER,
            _ => false,
        };
        received.into_iter().flatten().filter(of_peer).collect()
    }
}

/// The map of owned VIPs is full: this node is no owner, does not announce itself, and says why; once there is room it is.
#[test]
fn a_refused_entry_is_released_and_not_announced() {
    driven(|mut driven, pins| {
        let mut maps = LeaseMaps::open(pins).unwrap();
        let others = (0..).map(|number: u32| Ipv4Addr::from(0x0a00_0000 + number));
        let entered: Vec<Ipv4Addr> = others.take_while(|other| maps.acquire(*other, 1).is_ok()).collect();
        assert!(!entered.is_empty());
        assert_eq!(driven.until_lost(), Some(LoseReason::MapWriteFailed));
        assert!(!driven.owns() && driven.refused("own") == 1);
        let end = clock::now() + RETRY / 2;
        driven.until("some turns", |_| clock::now() >= end);
        assert_eq!((driven.announced(), driven.refused("own")), (0, 1), "neither announced nor tried again at once");
        maps.release(entered[0]).unwrap();
        driven.until("there is room", |driven| driven.owns());
        driven.until("it is announced", |driven| driven.announced() > 0);
        assert_eq!(maps.term(VIP), Some(driven.driven.election.owner(Vip(VIP)).unwrap().term.0));
    });
}

/// The kernel takes no lease any more: it is about to answer for no VIP, so this node owns none, and claims none.
#[test]
fn a_refused_lease_releases_the_vips() {
    driven(|mut driven, pins| {
        driven.until("it owns the VIP", |driven| driven.owns() && driven.announced() > 0);
        assert!(LeaseMaps::open(pins).unwrap().term(VIP).is_some());
        freeze(pins, map::LEASE);
        assert_eq!(driven.until_lost(), Some(LoseReason::MapWriteFailed));
        assert!(!driven.owns());
        assert_eq!(LeaseMaps::open(pins).unwrap().term(VIP), None);
        driven.announced();
        // Refused with each heartbeat, and counted; claimed no more, however long ago the first refusal was.
        let refused = driven.refused("lease");
        driven.until("many heartbeats", |driven| driven.refused("lease") >= refused + 30);
        assert!(!driven.owns() && driven.announced() == 0);
        assert!(!driven.noticed().iter().any(|notice| matches!(notice, Notice::Acquired { .. })));
    });
}

/// Its Node is deleted, and its flows are still waited for.
#[test]
fn a_node_that_was_taken_out_of_the_cluster_is_no_alarm() {
    driven(|mut driven, _| {
        let peer = NodeName::new("peer").unwrap();
        let nodes = BTreeMap::from([(peer.clone(), PEER)]);
        let state = &mut driven.driven.state;
        state.set_nodes(nodes.clone(), [peer.clone()].into(), clock::now());
        state.down.insert(peer);
        state.notify_unavailable();
        assert_eq!(driven.metrics.nodes_down.get(), 1);
        driven.driven.state.set_nodes(nodes, [].into(), clock::now());
        assert_eq!((driven.metrics.nodes_down.get(), driven.metrics.nodes_silent.get()), (0, 0));
        assert!(driven.driven.state.down.len() == 1, "its rows stay with other nodes");
    });
}

/// Any host can send an ARP frame that claims a node's address; its signed MAC address stays, in the election and in the packet path.
#[test]
fn the_signed_mac_outranks_arp() {
    driven(|mut driven, _| {
        let peer = NodeName::new("peer").unwrap();
        let nodes = BTreeMap::from([(peer.clone(), PEER)]);
        driven.driven.state.set_nodes(nodes, [peer.clone()].into(), clock::now());
        let claims = |driven: &Driven, last| driven.far.send(&arp(mac(last), 2, PEER, mac(1)));
        let known = |driven: &Driven| driven.driven.state.macs.get(&PEER).copied();
        let ignored = |driven: &Driven| driven.metrics.arp_contradicts_advert.with_label_values(&["peer"]).get();

        claims(&driven, 7);
        driven.until("without an advert ARP counts", |driven| known(driven) == Some(mac(7)));
        assert_eq!(driven.addresses(), [Message::Neighbour { ip: PEER, mac: mac(7) }]);

        let stated = election::Action::Address { node: peer.clone(), mac: mac(8).0 };
        driven.driven.state.act(stated, clock::now());
        assert_eq!((known(&driven), ignored(&driven)), (Some(mac(8)), 0));
        assert_eq!(driven.addresses(), [Message::SignedMac { ip: PEER, mac: Some(mac(8)) }]);
        for last in [7, 9] {
            claims(&driven, last);
        }
        driven.until("both are counted", |driven| ignored(driven) == 2);
        assert_eq!((known(&driven), driven.addresses()), (Some(mac(8)), vec![]), "the packet path hears of neither");

        // Its speaker has ended: ARP alone gives its address.
        driven.driven.state.act(election::Action::PeerDown { node: peer, left: false }, clock::now());
        assert_eq!(driven.addresses(), [Message::SignedMac { ip: PEER, mac: None }]);
        claims(&driven, 9);
        driven.until("ARP counts again", |driven| known(driven) == Some(mac(9)));
        assert_eq!(driven.addresses(), [Message::Neighbour { ip: PEER, mac: mac(9) }]);
    });
}
