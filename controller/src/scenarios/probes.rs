//! Hosts of the segment, and speakers that probe addresses: answers that come, late, never, of nodes and of proxies; two leaders.

use sheave_api::{ProbeVerdict, Refusal, UplinkState};

use super::*;
use crate::guards::facts::{Facts, SpeakerFacts, SpeakerStatus};
use crate::index::Subject;
use crate::probes::ProbeView;

const HOST: &str = "02:00:00:00:00:99";
const ROUTER: &str = "02:00:00:00:00:03";

/// How long an answer that nobody uses an address holds, and how late the watch may be that brings it.
const HOLDS: Duration = Duration::from_secs(75 + 40);

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

fn key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "default".into(), name: name.into() }
}

fn mac_of(node: u8) -> String {
    format!("02:00:00:00:01:{node:02x}")
}

/// The world, and the segment that its speakers see.
struct Segment {
    world: World,
    /// Who uses an address, by its Ethernet address.
    hosts: BTreeMap<Ipv4Addr, &'static str>,
    /// Speakers that answer nothing.
    silent: BTreeSet<String>,
    gateways: BTreeSet<String>,
    proxies: BTreeSet<String>,
    /// When an answer said last that no host uses an address.
    free: BTreeMap<Ipv4Addr, Instant>,
    /// When an address was chosen last.
    chosen: BTreeMap<Ipv4Addr, Instant>,
    requests: usize,
}

impl Segment {
    /// A pool of 192.0.2.100 to .199 in the subnet of three nodes (.11 to .13).
    fn new() -> Self {
        let mut world = World::new();
        world.api.put_pool("p", "192.0.2.100-192.0.2.199");
        let mut segment = Segment {
            world,
            hosts: BTreeMap::new(),
            silent: BTreeSet::new(),
            gateways: BTreeSet::new(),
            proxies: BTreeSet::new(),
            free: BTreeMap::new(),
            chosen: BTreeMap::new(),
            requests: 0,
        };
        (1..=3).for_each(|node| segment.speaker(node));
        segment
    }

    fn speaker(&mut self, node: u8) {
        let status = serde_json::json!({ "uplinks": [UplinkState {
            name: "eth0".into(),
            mac: Some(mac_of(node).to_ascii_uppercase()),
            addresses: vec![ip(10 + node).to_string()],
            subnets: vec!["192.0.2.0/24".into()],
            ..UplinkState::default()
        }]});
        let facts = Facts::Speaker(SpeakerFacts::new(serde_json::from_value::<SpeakerStatus>(status).unwrap()));
        let (source, name, uid) = (Source::SpeakerStates, format!("node{node}"), format!("s{node}"));
        let fact = Fact::Here { source, name, uid, version: u64::from(node), facts };
        self.world.api.facts.push(fact.clone());
        let replicas = &mut self.world.replicas;
        replicas.iter_mut().for_each(|replica| replica.index.observe(Observed::Guard(fact.clone())));
    }

    fn leader(&mut self) -> &mut Index {
        &mut self.world.replicas[self.world.leader].index
    }

    /// One speaker answers, so long after the request.
    fn answer(&mut self, after: Duration) -> bool {
        let probes = &self.world.api.probes;
        let open = |probe: &&ProbeView| probe.observed < probe.round && !self.silent.contains(&probe.node);
        let Some(probe) = probes.values().find(open).cloned() else { return false };
        self.world.now += after;
        let asked = self.world.api.asked[&(probe.node.clone(), probe.round)].clone();
        let macs = |address: &Ipv4Addr| {
            let host = self.hosts.get(address).map(|mac| (*mac).to_string());
            host.into_iter().chain(self.proxies.iter().cloned()).collect::<BTreeSet<_>>()
        };
        let results: Vec<(Ipv4Addr, BTreeSet<String>)> = asked.iter().map(|one| (*one, macs(one))).collect();
        let unused = results.iter().filter(|(_, macs)| !macs.contains(HOST));
        self.free.extend(unused.map(|(address, _)| (*address, self.world.now)));
        let (gateways, proxies) = (self.gateways.clone(), self.proxies.clone());
        self.world.api.put_probe(ProbeView { observed: probe.round, results, gateways, proxies, ..probe });
        true
    }

    fn plan(&mut self, most: usize) {
        for _ in 0..=most {
            let (now, before) = (self.world.now, self.leader().probes.totals().0);
            let Some(planned) = self.leader().next_write(now, Timestamp::UNIX_EPOCH) else { return };
            self.requests += usize::from(matches!(planned.subject, Subject::Probe(_)));
            if let Write::Prepare { address: IpAddr::V4(address), .. } = &planned.write {
                let unprobed = self.leader().probes.totals().0 > before;
                self.chosen.insert(*address, now);
                let known = self.free.get(address).is_some_and(|at| *at + HOLDS > now);
                assert!(unprobed || known, "{address} is chosen although nobody has said that it is free");
            }
            let leader = self.world.leader;
            self.world.replicas[leader].under_way.push(planned);
        }
    }

    /// The watches of a replica catch up. A follower decides nothing, and takes note of the time.
    fn deliver(&mut self, replica: usize, most: usize) {
        let (now, leads) = (self.world.now, replica == self.world.leader);
        let replica = &mut self.world.replicas[replica];
        Kind::ALL.into_iter().for_each(|kind| replica.deliver(&self.world.api, kind, most));
        if leads {
            replica.index.observe_probes(now);
        } else {
            assert_eq!(replica.index.next_write(now, Timestamp::UNIX_EPOCH), None);
        }
    }

    /// Speakers answer within the time that they have.
    fn settle(&mut self) -> bool {
        for _ in 0..3000 {
            let leader = self.world.leader;
            (0..2).for_each(|replica| self.deliver(replica, usize::MAX));
            self.plan(8);
            if !self.world.replicas[leader].under_way.is_empty() {
                self.world.finish_one(0);
            } else if self.answer(Duration::from_millis(180)) {
            } else if let Some(at) = self.leader().next_deadline() {
                self.world.now = self.world.now.max(at);
            } else {
                return true;
            }
        }
        false
    }

    /// Nothing happens but time.
    fn rest(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.world.now += Duration::from_secs(1);
            assert!(self.settle());
        }
    }

    fn service(&mut self, name: &str, wish: Option<Ipv4Addr>) -> ServiceView {
        let addresses = wish.map(|address| address.to_string());
        let class = Some(sheave_api::LOAD_BALANCER_CLASS.to_string());
        let uid = format!("uid of {name}");
        self.world.api.put_service(ServiceView { key: key(name), uid, version: 0, class, addresses, ..example() });
        self.found(name)
    }

    fn found(&mut self, name: &str) -> ServiceView {
        assert!(self.settle());
        self.world.api.services[&key(name)].clone()
    }

    fn excluded(&self, reason: &str) -> i64 {
        let status = &self.world.api.pools["p"].status;
        status.excluded_by.iter().find(|one| one.reason == reason).map_or(0, |one| one.count)
    }

    fn pool_says(&self, condition: &str) -> (bool, String) {
        let conditions = &self.world.api.pools["p"].status.conditions;
        let found = conditions.iter().find(|one| one.type_ == condition).expect("it has the condition");
        (found.status == "True", found.message.clone())
    }
}

fn reason(service: &ServiceView) -> (bool, &str) {
    let condition = service.condition.as_ref().expect("a condition");
    (condition.allocated, &condition.reason)
}

#[test]
fn an_address_that_a_host_uses_is_skipped_counted_and_refused_by_name() {
    let mut segment = Segment::new();
    segment.hosts = BTreeMap::from([(ip(100), HOST), (ip(150), HOST)]);
    assert_eq!(segment.service("auto", None).shown(), Some(ip(101)));
    let asked = segment.service("asked", Some(ip(150)));
    assert_eq!((reason(&asked), asked.shown()), ((false, "AnsweredByHost"), None));
    assert_eq!(
        asked.condition.unwrap().message,
        "192.0.2.150 is in use by the host 02:00:00:00:00:99, which has answered an ARP probe of the speaker of node \
         node1; no Service may have it"
    );
    assert_eq!(segment.excluded("AnsweredByHost"), 2);
    assert_eq!(segment.leader().probes.counts()[&ProbeVerdict::AnsweredByHost], 2);
    assert_eq!(segment.leader().guarded()[&Refusal::AnsweredByHost], 2);

    segment.hosts.clear();
    segment.rest(50);
    assert_eq!(segment.found("asked").shown(), None, "it was probed less than a minute ago");
    segment.rest(15);
    assert_eq!(segment.found("asked").shown(), Some(ip(150)), "the host is gone");
    assert_eq!(segment.service("next", None).shown(), Some(ip(100)));
    assert_eq!(segment.excluded("AnsweredByHost"), 0);
}

/// All are asked for at once; one that a host uses keeps the others away. Speakers that answer nothing do not.
#[test]
fn several_addresses_are_probed_together() {
    let mut segment = Segment::new();
    segment.hosts = BTreeMap::from([(ip(150), HOST)]);
    let put = |segment: &mut Segment, name: &str, list: &str| {
        let (uid, addresses) = (format!("uid of {name}"), Some(list.to_string()));
        segment.world.api.put_service(ServiceView { key: key(name), uid, addresses, ..example() });
        assert!(segment.settle());
        segment.found(name)
    };
    let good = put(&mut segment, "good", "192.0.2.160,192.0.2.161,192.0.2.162");
    assert_eq!(good.shown_alone(), Some(vec![ip(160), ip(161), ip(162)]));
    let all = |asked: &Vec<Ipv4Addr>| [160, 161, 162].iter().all(|last| asked.contains(&ip(*last)));
    assert!(segment.world.api.asked.values().any(all), "in one request");
    let bad = put(&mut segment, "bad", "192.0.2.149,192.0.2.150,192.0.2.151");
    assert_eq!((reason(&bad), bad.shown_alone()), ((false, "AnsweredByHost"), None));
    let message = bad.condition.unwrap().message;
    assert!(message.contains("192.0.2.150 is in use by the host") && !message.contains("192.0.2.149"), "{message}");
    assert!(!segment.world.api.grants.contains_key(&ip(149).into()));
    segment.silent = (1..=3).map(|node| format!("node{node}")).collect();
    let unprobed = put(&mut segment, "unprobed", "192.0.2.170,192.0.2.171");
    assert_eq!(unprobed.shown_alone(), Some(vec![ip(170), ip(171)]));
    assert_eq!(segment.leader().probes.totals().0, 2, "each counts");
}

/// Once those in line are known a grant waits for nobody.
#[test]
fn a_grant_costs_no_time_while_speakers_answer() {
    let mut segment = Segment::new();
    segment.rest(1);
    for round in 0..200 {
        let began = segment.world.now;
        segment.world.api.put_service(ServiceView {
            key: key(&format!("s{round}")),
            uid: format!("u{round}"),
            version: 0,
            addresses: None,
            ..example()
        });
        let leader = segment.world.leader;
        let mut planned = Vec::new();
        segment.world.replicas[leader].deliver(&segment.world.api, Kind::Services, usize::MAX);
        while let Some(write) = segment.leader().next_write(began, Timestamp::UNIX_EPOCH) {
            planned.push(write);
        }
        let prepared = planned.iter().any(|planned| matches!(planned.write, Write::Prepare { .. }));
        assert!(prepared, "Service {round} waits at once");
        segment.world.replicas[leader].under_way.extend(planned);
        assert!(segment.settle());
        segment.world.api.delete_service(&key(&format!("s{round}")));
        segment.rest(1);
    }
    assert_eq!(segment.leader().probes.totals(), (0, 0));
}

#[test]
fn at_rest_a_minute_costs_one_request() {
    let mut segment = Segment::new();
    segment.hosts = (100..180).map(|last| (ip(last), HOST)).collect();
    segment.rest(10);
    assert_eq!(segment.excluded("AnsweredByHost"), 80);
    let before = segment.requests;
    segment.rest(600);
    assert!((9..=10).contains(&(segment.requests - before)), "{} requests in ten minutes", segment.requests - before);
    assert_eq!(segment.excluded("AnsweredByHost"), 80, "all of them are probed again in time");
    segment.world.api.put_pool("p", "198.51.100.0/28");
    assert!(segment.settle());
    let before = segment.requests;
    segment.rest(700);
    assert_eq!(segment.requests - before, 0, "no node is on that segment");
}

#[test]
fn silence_of_speakers_keeps_no_service_from_an_address() {
    let mut segment = Segment::new();
    segment.silent = ["node1", "node2", "node3"].map(String::from).into();
    let began = segment.world.now;
    segment.hosts = BTreeMap::from([(ip(100), HOST)]);
    assert_eq!(segment.service("auto", None).shown(), Some(ip(100)));
    let waited = segment.chosen[&ip(100)] - began;
    assert!(waited <= Duration::from_millis(250), "{waited:?}");
    let (is, message) = segment.pool_says("NotProbed");
    assert!(is && message.contains("no speaker in 192.0.2.0/24 answers"), "{message}");
    let notes = segment.leader().notes();
    assert!(notes.iter().any(|note| note.starts_with("NotProbed: no speaker in 192.0.2.0/24")), "{notes:?}");
    assert_eq!(segment.leader().probes.totals().0, 1);

    let began = segment.world.now;
    assert_eq!(segment.service("second", None).shown(), Some(ip(101)));
    assert_eq!(segment.chosen[&ip(101)], began, "nobody is waited for again");

    segment.silent.remove("node3");
    segment.rest(190);
    assert!(!segment.pool_says("NotProbed").0 && segment.leader().notes().is_empty());
    segment.hosts.insert(ip(150), HOST);
    assert_eq!(reason(&segment.service("asked", Some(ip(150)))), (false, "AnsweredByHost"));
}

/// The first one by name is dead: the next one is asked, and stays the one that is asked.
#[test]
fn another_speaker_is_asked_where_one_is_silent() {
    let mut segment = Segment::new();
    segment.silent = BTreeSet::from(["node1".to_string()]);
    segment.hosts = BTreeMap::from([(ip(100), HOST)]);
    segment.rest(2);
    assert_eq!(segment.service("auto", None).shown(), Some(ip(101)));
    segment.silent.clear();
    let before = segment.world.api.probes["node1"].round;
    segment.rest(300);
    assert_eq!(segment.world.api.probes["node1"].round, before);
    assert_eq!(segment.leader().probes.totals().1, 1);
}

#[test]
fn nodes_and_proxies_use_no_address() {
    let mut segment = Segment::new();
    let predecessor: &'static str = Box::leak(mac_of(2).into_boxed_str());
    segment.hosts = BTreeMap::from([(ip(100), predecessor), (ip(101), ROUTER)]);
    segment.gateways = BTreeSet::from([ROUTER.to_string()]);
    assert_eq!(segment.service("a", None).shown(), Some(ip(100)), "a node's: adopted");
    let (is, message) = segment.pool_says("ProxyArp");
    assert!(is && message.contains("02:00:00:00:00:03 is a gateway"), "{message}");
    assert_eq!(segment.service("b", None).shown(), Some(ip(101)));
    assert_eq!(segment.leader().probes.counts()[&ProbeVerdict::AnsweredByNode], 1);
    let said = |segment: &mut Segment| {
        let notes = segment.leader().notes();
        notes.iter().filter(|note| note.starts_with("ProxyArp")).count()
    };
    assert_eq!(said(&mut segment), 1);

    segment.hosts = BTreeMap::from([(ip(170), HOST)]);
    segment.proxies = BTreeSet::from(["02:00:00:00:00:44".to_string()]);
    segment.rest(61);
    let (is, message) = segment.pool_says("ProxyArp");
    assert!(is && message.contains("02:00:00:00:00:44 answers ARP for every address"), "{message}");
    assert_eq!(segment.service("c", None).shown(), Some(ip(102)));
    assert_eq!(reason(&segment.service("d", Some(ip(170)))), (false, "AnsweredByHost"), "a host beside the proxy");
    segment.proxies.clear();
    segment.gateways.clear();
    segment.rest(150);
    assert_eq!((segment.pool_says("ProxyArp").0, said(&mut segment)), (false, 0));
}

/// It came too late to be heard; it is named, and nothing is taken away.
#[test]
fn an_answer_for_a_granted_address_is_named_and_takes_nothing() {
    let mut segment = Segment::new();
    segment.hosts = BTreeMap::from([(ip(150), HOST)]);
    segment.silent = ["node1", "node2", "node3"].map(String::from).into();
    assert_eq!(segment.service("late", Some(ip(150))).shown(), Some(ip(150)));
    segment.silent.clear();
    assert!(segment.answer(Duration::from_millis(400)), "to the request of then");
    let late = segment.found("late");
    assert_eq!((reason(&late), late.shown()), ((true, "AnsweredByHost"), Some(ip(150))));
    let message = late.condition.unwrap().message;
    assert!(message.contains("192.0.2.150 is in use by the host 02:00:00:00:00:99") && message.ends_with("; it stays"));
    assert_eq!(segment.excluded("AnsweredByHost"), 1);
    segment.hosts.clear();
    segment.rest(130);
    assert_eq!(reason(&segment.found("late")), (true, "AddressAllocated"));
}

/// Both ask, and the one that leads no more sends its request late: the API server refuses it, or the speaker answers it as well.
#[test]
fn two_leaders_ask_and_no_request_replaces_a_newer_one() {
    let mut segment = Segment::new();
    segment.rest(1);
    segment.rest(61);
    segment.world.now += Duration::from_secs(60);
    let now = segment.world.now;
    let old = segment.leader().next_write(now, Timestamp::UNIX_EPOCH).expect("those in line are due");
    assert!(matches!(old.write, Write::Probe(_)), "{old:?}");
    segment.world.take_over(1);
    assert!(segment.settle());
    let round = segment.world.api.probes["node1"].round;
    assert!(matches!(segment.world.api.apply(&old.write), Err(WriteError::Conflict(_))));
    assert_eq!(segment.world.api.probes["node1"].round, round);
    assert_eq!(segment.service("next", None).shown(), Some(ip(100)));
    assert_eq!(segment.leader().probes.totals(), (0, 0), "a follower knows what was answered");
}

proptest! {
    /// Hosts come and go, speakers answer late or never, replicas crash and follow each other. Every Service ends with an address or a
    /// refusal that is true, and no address is chosen that nobody has called free, unless no speaker answered (checked in `plan`).
    #[test]
    fn any_order_of_hosts_answers_and_leaders_ends_well(
        steps in prop::collection::vec(any::<(u8, u8, u8)>(), 1..150)
    ) {
        let mut segment = Segment::new();
        for (what, who, how) in steps {
            segment.world.now += Duration::from_millis(u64::from(how));
            let address = ip(100 + who % 20);
            let name = format!("s{}", who % 12);
            match what % 16 {
                0..=2 => segment.world.create(key(&name), None),
                3 => segment.world.create(key(&name), Some(100 + how % 20)),
                4 => segment.world.api.delete_service(&key(&name)),
                5 => drop(segment.hosts.insert(address, HOST)),
                6 => drop(segment.hosts.remove(&address)),
                7 => drop(segment.silent.insert(format!("node{}", 1 + who % 3))),
                8 => drop(segment.silent.remove(&format!("node{}", 1 + who % 3))),
                9 => {
                    // No watch is that late.
                    (0..2).for_each(|replica| segment.deliver(replica, usize::MAX));
                    segment.world.now += Duration::from_secs(u64::from(how));
                }
                10 => segment.world.take_over(usize::from(who % 2)),
                11 => segment.world.crash(usize::from(who % 2)),
                12 => drop(segment.answer(Duration::from_millis(u64::from(who)))),
                13 => segment.plan(usize::from(how % 4)),
                14 => segment.world.finish_one(how),
                _ => segment.deliver(usize::from(who % 2), usize::from(how % 7)),
            }
        }
        while !segment.world.late.is_empty() {
            segment.world.arrive(0);
        }
        segment.silent.clear();
        prop_assert!(segment.settle(), "does not come to rest");
        // Speakers that were silent are asked again, and hosts are looked for anew.
        segment.rest(260);
        for service in segment.world.api.services.values() {
            let held: Vec<_> =
                segment.world.api.grants.iter().filter(|(_, grant)| grant.services[0].uid == service.uid).collect();
            let wish: Option<Ipv4Addr> = service.addresses.as_ref().map(|text| text.parse().unwrap());
            let (allocated, why) = reason(service);
            match wish {
                _ if allocated => prop_assert_eq!(held.len(), 1, "{:?}", service),
                Some(wish) if why == "AnsweredByHost" => prop_assert!(segment.hosts.contains_key(&wish), "{:?}", service),
                Some(wish) => prop_assert!(why == "AddressInUse" && segment.world.api.grants.contains_key(&wish.into()), "{why}"),
                None => prop_assert!(false, "100 addresses, and {:?} has none", service.condition),
            }
        }
    }
}
