use alloc::vec;

use proptest::prelude::*;

use super::trial::{PACE, SILENCE, SLOW};
use super::*;
use crate::attributes::{ServiceAttributes, StartupProbe};
use crate::view::endpoints::{frontends, service_key};
use crate::view::example::*;
use crate::view::{Affinity, Conditions, Endpoint, Event, Key, View};

fn at(millis: u64) -> Instant {
    Instant::from_millis(1_000_000 + millis)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("a short time")
}

fn ready(node: &str, n: u8) -> Endpoint {
    pod(node, n, Conditions::READY)
}

fn http(node: &str, n: u8) -> Target {
    Target { address: Ipv4Addr::new(10, 0, node.as_bytes()[0], n), port: 8080 }
}

/// A node's machine.
struct Node(Startup);

impl Node {
    /// Node `a`; it has followed the first view.
    fn with(endpoints: impl Into<Vec<Endpoint>>) -> Self {
        Self::named("a", endpoints)
    }

    fn named(own: &str, endpoints: impl Into<Vec<Endpoint>>) -> Self {
        let mut node = Self(Startup::new(own));
        assert_eq!(node.see(endpoints, 0), [], "no pod of the first view is new");
        node
    }

    /// Pods of the TCP port that have not started, after a view with these.
    fn see(&mut self, endpoints: impl Into<Vec<Endpoint>>, millis: u64) -> Vec<Target> {
        self.see_view(&view(endpoints), millis)
    }

    fn see_view(&mut self, view: &View, millis: u64) -> Vec<Target> {
        let (mut frontends, _) = frontends(view);
        self.0.follow(&mut frontends, view.is_saved(), at(millis));
        let udp = service_key(VIP, 53, Protocol::Udp);
        assert!(frontends.get(&udp).is_none_or(|dns| dns.pods.iter().all(|pod| pod.started)), "UDP is never probed");
        let unstarted = |frontends: &BTreeMap<ServiceKey, Frontend<'_>>| -> Vec<Target> {
            let web = frontends.get(&service_key(VIP, 80, Protocol::Tcp));
            web.into_iter().flat_map(|web| &web.pods).filter(|pod| !pod.started).map(target).collect()
        };
        let for_rings = unstarted(&frontends);
        let admitted = self.0.admit(&mut frontends);
        assert!(!self.0.is_due());
        let for_rules = unstarted(&frontends);
        assert!(for_rules.iter().all(|pod| for_rings.contains(pod) && !admitted.contains(pod)));
        for_rings
    }

    /// The rules of this node follow at once.
    fn rules_follow(&mut self, millis: u64) {
        let accepting = self.0.admit(&mut BTreeMap::new());
        self.0.in_rules(&accepting, at(millis));
    }

    /// The probes that are due, answered alike, and the rules follow.
    fn probed(&mut self, answer: Answer, millis: u64) -> Vec<Target> {
        let probed = self.probed_without_rules(answer, millis);
        self.rules_follow(millis);
        probed
    }

    fn probed_without_rules(&mut self, answer: Answer, millis: u64) -> Vec<Target> {
        let probes = self.0.turn(at(millis));
        probes.iter().for_each(|probe| self.0.answered(*probe, answer, at(millis)));
        probes.into_iter().map(|probe| probe.target).collect()
    }
}

/// nft does not follow: the rules lead a part of the new flows to a pod that is gone, whichever others live.
#[test]
fn pods_start_over_while_the_rules_name_one_that_is_gone() {
    let live = [ready("a", 1), ready("b", 1)];
    let (mut own, mut other) = (Node::with(live.clone()), Node::named("b", live.clone()));
    let behind = BTreeSet::from([http("a", 1)]);
    let late = 100 + millis(BEHIND);
    own.0.rules(&behind, at(100));
    assert_eq!(own.see(live.clone(), late - 1), [], "a transaction takes its time");
    assert_eq!(own.0.next_deadline(), Some(at(late)));
    own.0.turn(at(late));
    assert!(own.0.is_due());
    assert_eq!(own.see(live.clone(), late), [http("a", 1)]);
    // Rules that have the pod and not the change.
    own.rules_follow(late + 10);
    assert_eq!(own.0.starts().0, Starts::from([(http("a", 1), false)]));
    other.0.reported("a", own.0.starts().0, at(late + 20));
    assert_eq!(other.see(live.clone(), late + 20), [http("a", 1)]);

    own.0.rules(&BTreeSet::new(), at(3000));
    own.rules_follow(3000);
    assert_eq!(own.0.starts().0, Starts::from([(http("a", 1), true)]));
    other.0.reported("a", own.0.starts().0, at(3000));
    let held = 3000 + millis(HOLD);
    for node in [&mut own, &mut other] {
        assert_eq!(node.see(live.clone(), held - 1), [http("a", 1)], "all nodes in the same moment");
        assert_eq!(node.see(live.clone(), held), []);
    }
    assert_eq!(own.0.next_deadline(), None);
}

#[test]
fn a_new_pod_is_tried_every_50_ms_until_it_accepts() {
    let mut node = Node::with([ready("a", 1), ready("b", 1)]);
    let all = [ready("a", 1), ready("a", 2), ready("b", 1)];
    assert_eq!(node.see(all.clone(), 1000), [http("a", 2)]);
    for turn in 0..20 {
        let now = 1000 + turn * 50;
        assert_eq!(node.0.next_deadline(), Some(at(now)));
        assert_eq!(node.probed(Answer::Refused, now), [http("a", 2)]);
        assert_eq!(node.probed(Answer::Accepted, now + 49), []);
    }
    assert!(!node.0.is_due());
    assert_eq!(node.0.starts(), (Starts::from([(http("a", 2), false)]), 0));
    assert_eq!(node.probed(Answer::Accepted, 2000), [http("a", 2)]);
    assert_eq!(node.0.starts(), (Starts::from([(http("a", 2), true)]), 0));
    assert_eq!(node.see(all.clone(), 2099), [http("a", 2)], "the others do not know it yet");
    assert_eq!(node.0.next_deadline(), Some(at(2000) + HOLD));
    node.0.turn(at(2100));
    assert!(node.0.is_due());
    assert_eq!(node.see(all.clone(), 2100), []);
    // It is reported for a while, and tried no more.
    assert_eq!(node.probed(Answer::Refused, 6999), []);
    assert_eq!(node.0.starts().0.len(), 1);
    assert_eq!(node.probed(Answer::Refused, 7000), []);
    assert_eq!((node.0.starts().0.len(), node.see(all, 7000)), (0, vec![]));
}

/// nft is held: no ring may name a pod that the rules of its node lack.
#[test]
fn a_pod_that_accepts_has_not_started_before_the_rules_have_it() {
    let mut node = Node::with([ready("a", 1)]);
    let all = || [ready("a", 1), ready("a", 2), ready("a", 3)];
    node.see(all(), 0);
    assert_eq!(node.probed_without_rules(Answer::Accepted, 0), [http("a", 2), http("a", 3)]);
    assert!(node.0.is_due(), "the rules are to follow");
    let mut frontends_of = |millis: u64| {
        let view = view(all());
        let (mut frontends, _) = frontends(&view);
        node.0.follow(&mut frontends, false, at(millis));
        let admitted = node.0.admit(&mut frontends);
        let web = &frontends[&service_key(VIP, 80, Protocol::Tcp)];
        assert!(web.pods.iter().all(|pod| pod.started), "for the rules of this node they have");
        admitted
    };
    assert_eq!(frontends_of(10), [http("a", 2), http("a", 3)].into());
    // Half a minute later; of an older plan one of them is in force, and a third pod that has not been asked.
    for now in (1000..30_000).step_by(1000) {
        assert_eq!(node.see(all(), now), [http("a", 2), http("a", 3)]);
        assert!(node.0.waits(http("a", 2)) && !node.0.waits(http("a", 1)));
        assert_eq!(node.0.starts().0, [(http("a", 2), false), (http("a", 3), false)].into());
        assert_eq!(node.0.next_deadline(), None, "nothing but the rules is waited for");
    }
    node.0.in_rules(&[http("a", 2), http("a", 9)].into(), at(30_000));
    assert_eq!(node.0.starts().0, [(http("a", 2), true), (http("a", 3), false)].into());
    assert_eq!(node.see(all(), 30_099), [http("a", 2), http("a", 3)]);
    assert_eq!(node.see(all(), 30_100), [http("a", 3)]);
    // They go out of force again: it has started all the same.
    node.0.in_rules(&BTreeSet::new(), at(30_200));
    assert_eq!(node.see(all(), 30_200), [http("a", 3)]);
}

#[test]
fn one_that_goes_on_refusing_has_a_name_and_is_tried_less_often() {
    let mut node = Node::with([]);
    node.see([ready("a", 1)], 0);
    let tried = |node: &mut Node, from: u64, to: u64| {
        (from / 10..to / 10).map(|turn| node.probed(Answer::Refused, turn * 10).len()).sum::<usize>()
    };
    assert_eq!(tried(&mut node, 0, 10_000), 200);
    assert!(node.0.refusing(at(9_999)).is_empty());
    assert_eq!(node.0.refusing(at(10_000)), [http("a", 1)].into());
    assert_eq!(tried(&mut node, 10_000, 20_000), 10_000 / SLOW.as_millis() as usize);
    assert_eq!(node.probed(Answer::Accepted, 20_500), [http("a", 1)]);
    assert!(node.0.refusing(at(40_000)).is_empty());
}

#[test]
fn silence_is_no_refusal() {
    let mut node = Node::with([]);
    node.see([ready("a", 1)], 0);
    let silence = SILENCE.as_millis() as u64;
    // Silent until nearly the end, and then once more a refusal: the time begins anew.
    for now in (0..silence).step_by(200) {
        assert_eq!(node.probed(Answer::Silence, now).len(), 1);
    }
    assert_eq!(node.probed(Answer::Refused, silence - 50).len(), 1);
    for now in (silence..2 * silence).step_by(200) {
        assert_eq!(node.probed(Answer::Silence, now).len(), 1, "{now}");
        assert!(!node.0.is_due());
    }
    assert_eq!(node.probed(Answer::Silence, 2 * silence).len(), 1);
    assert_eq!(node.see([ready("a", 1)], 2 * silence + 100), [], "a policy may forbid the connection");
}

#[test]
fn a_pod_that_becomes_ready_again_is_new() {
    let mut node = Node::with([ready("a", 1), ready("b", 1)]);
    for other in [pod("a", 1, UNREADY), pod("a", 1, TERMINATING)] {
        assert_eq!(node.see([other, ready("b", 1)], 100), []);
        assert_eq!(node.see([ready("a", 1), ready("b", 1)], 200), [http("a", 1)], "its container may have restarted");
        let probe = node.0.turn(at(200));
        assert_eq!(probe.len(), 1);
        // The answer of the earlier one comes late.
        node.see([ready("b", 1)], 300);
        node.see([ready("a", 1), ready("b", 1)], 400);
        assert_eq!(node.0.turn(at(400)).len(), 1);
        node.0.answered(probe[0], Answer::Accepted, at(401));
        assert!(!node.0.is_due());
    }
}

/// The speaker was restarted, and not the pods: those that came meanwhile are among them.
#[test]
fn pods_of_the_first_confirmed_view_are_not_new() {
    let mut node = Node(Startup::new("a"));
    assert_eq!(node.see_view(&view([ready("a", 1)]).saved(), 0), []);
    assert_eq!(node.see([ready("a", 1), ready("a", 2), ready("b", 1)], 100), []);
    assert_eq!(node.see([ready("a", 1), ready("a", 2), ready("a", 3), ready("b", 1)], 200), [http("a", 3)]);
}

/// The node has booted, and does not reach the API server: its view from disk names pods that are gone.
#[test]
fn pods_that_are_not_there_after_a_boot_have_to_start() {
    let all = [ready("a", 1), ready("a", 2), ready("b", 1)];
    let mut node = Node(Startup::new("a"));
    node.0.not_there(BTreeSet::from([http("a", 1), http("a", 9)]));
    assert_eq!(node.see_view(&view(all.clone()).saved(), 0), [http("a", 1)]);
    assert_eq!(node.0.starts().0, Starts::from([(http("a", 1), false)]), "others are told");
    for at in (10..5000).step_by(50) {
        assert_eq!(
            node.probed(Answer::Silence, at),
            [http("a", 1)],
            "the kernel asks for its neighbour, and no host answers"
        );
    }
    // What the API server says later does not bring it back to life; an answer does.
    assert_eq!(node.see(all.clone(), 5000), [http("a", 1)]);
    assert_eq!(node.probed(Answer::Accepted, 5010), [http("a", 1)]);
    assert_eq!(node.see(all, 5010 + millis(HOLD)), []);
}

#[test]
fn a_service_port_that_appears_brings_pods_that_run() {
    let mut node = Node::with([ready("a", 1)]);
    let mut later = view([ready("a", 1), ready("a", 2)]);
    later.handle(Event::Delete(Key::VirtualIp(VIP)));
    assert_eq!(node.see_view(&later, 100), []);
    assert_eq!(node.see([ready("a", 1), ready("a", 2)], 200), []);
    assert_eq!(node.see([ready("a", 1), ready("a", 2), ready("a", 3)], 300), [http("a", 3)]);
}

#[test]
fn no_pod_is_probed_where_the_service_forbids_it_nor_one_of_no_node() {
    let off = ServiceAttributes { startup_probe: StartupProbe::Off, ..Affinity::None.into() };
    let mut node = Node::with([]);
    let mut forbidden = view([ready("a", 1), ready("b", 1)]);
    forbidden.handle(Event::Apply(service(web(), off)));
    assert_eq!((node.see_view(&forbidden, 100), node.0.next_deadline()), (vec![], None));
    // Neither when it is allowed again: they run.
    assert_eq!(node.see([ready("a", 1), ready("b", 1)], 200), []);
    let outside = Endpoint { node: None, ..ready("a", 9) };
    assert_eq!((node.see([ready("a", 1), outside], 300), node.0.next_deadline()), (vec![], None));
}

#[test]
fn the_report_of_its_node_decides_about_a_pod() {
    let mut node = Node::with([ready("a", 1)]);
    let all = || [ready("a", 1), ready("b", 1), ready("c", 1)];
    assert_eq!(node.see(all(), 0), [http("b", 1), http("c", 1)]);
    assert_eq!(node.probed(Answer::Accepted, 0), [], "each node probes its own");
    // Of pods on other nodes its report says nothing.
    let starts = Starts::from([(http("b", 1), true), (http("c", 1), true), (http("a", 1), false)]);
    node.0.reported("b", starts, at(100));
    assert_eq!(node.see(all(), 600), [http("c", 1)]);
    let refuses = || Starts::from([(http("c", 1), false)]);
    for now in (700..10_000).step_by(1000) {
        node.0.reported("c", refuses(), at(now));
        assert_eq!(node.see(all(), now), [http("c", 1)]);
    }
    // Its speaker died: the pod is as that of a node without one.
    assert_eq!(node.0.next_deadline(), Some(at(9700) + EXPIRY));
    assert_eq!(node.see(all(), 12_699), [http("c", 1)]);
    assert_eq!(node.see(all(), 12_700), []);
    // Its view changed earlier than ours, or ours missed that the pod was not ready for a moment.
    node.0.reported("c", refuses(), at(13_000));
    assert_eq!(node.see(all(), 13_000), [http("c", 1)]);
    node.0.reported("c", Starts::new(), at(13_100));
    assert_eq!(node.see(all(), 13_100), []);
}

#[test]
fn a_node_that_does_not_report_is_not_waited_for() {
    let mut node = Node::with([ready("a", 1)]);
    let all = || [ready("a", 1), ready("b", 1)];
    assert_eq!(node.see(all(), 0), [http("b", 1)]);
    assert_eq!(node.0.next_deadline(), Some(at(0) + GRACE));
    node.0.turn(at(999));
    assert!(!node.0.is_due());
    node.0.turn(at(1000));
    assert!(node.0.is_due() && node.0.next_deadline().is_none());
    assert_eq!(node.see(all(), 1000), []);
}

/// Else the pod's own node would have a ring for a moment that no other node has. So does a node whose speaker starts meanwhile.
#[test]
fn a_start_counts_in_the_same_moment_on_all_nodes() {
    let before = [ready("a", 1), ready("b", 1)];
    let all = || [ready("a", 1), ready("a", 2), ready("b", 1)];
    let mut nodes = ["a", "b"].map(|own| Node::named(own, before.clone()));
    nodes.iter_mut().for_each(|node| assert_eq!(node.see(all(), 0), [http("a", 2)]));
    assert_eq!(nodes[0].probed(Answer::Refused, 10), [http("a", 2)]);
    let [mut here, there] = nodes;
    let mut others = [there, Node::named("c", all())];
    let report = |here: &Node, others: &mut [Node], millis| {
        let starts = here.0.starts().0;
        others.iter_mut().for_each(|node| node.0.reported("a", starts.clone(), at(millis)));
    };
    report(&here, &mut others, 10);
    assert_eq!(here.probed(Answer::Accepted, 60), [http("a", 2)]);
    report(&here, &mut others, 61);
    for node in [&mut here].into_iter().chain(&mut others) {
        assert_eq!(node.see(all(), 159), [http("a", 2)]);
        node.0.turn(at(161));
        assert!(node.0.is_due());
        assert_eq!(node.see(all(), 161), []);
    }
}

/// Its container is restarted between two reports.
#[test]
fn a_pod_of_another_node_that_refuses_again_has_not_started() {
    let mut node = Node::with([ready("a", 1)]);
    let all = || [ready("a", 1), ready("b", 1)];
    node.see(all(), 0);
    for (started, now) in [(true, 10), (false, 50)] {
        node.0.reported("b", Starts::from([(http("b", 1), started)]), at(now));
    }
    assert_eq!(node.see(all(), 200), [http("b", 1)]);
    node.0.reported("b", Starts::from([(http("b", 1), true)]), at(250));
    assert_eq!(node.see(all(), 349), [http("b", 1)]);
    assert_eq!(node.see(all(), 350), []);
}

/// The node does not reach the API server, or no other node has its view: its pods may have ended.
#[test]
fn while_the_view_lags_pods_that_are_gone_start_over() {
    let all = [ready("a", 1), ready("a", 2), ready("a", 3), ready("b", 1)];
    let mut node = Node::with(all.clone());
    assert_eq!(node.probed(Answer::Refused, 10), [], "the view is the present one");
    node.0.set_lagging(true, at(20));
    assert_eq!(node.probed(Answer::Accepted, 20), [http("a", 1), http("a", 2), http("a", 3)]);
    assert_eq!((node.0.next_deadline(), node.0.is_due()), (Some(at(1020)), false));
    let answers = [Answer::Refused, Answer::Unreachable, Answer::Silence];
    for (probe, answer) in node.0.turn(at(1020)).into_iter().zip(answers) {
        node.0.answered(probe, answer, at(1030));
    }
    assert!(node.0.is_due());
    let gone = [http("a", 1), http("a", 2)];
    assert_eq!(node.see(all.clone(), 1030), gone, "a policy may cause silence, and nothing else");
    assert_eq!(node.0.starts().0, gone.map(|pod| (pod, false)).into(), "others are told");
    // Its network is gone, too: no silence brings it back.
    for at in (1040..9000).step_by(50) {
        node.probed(Answer::Silence, at);
    }
    assert_eq!(node.see(all.clone(), 9000), gone);
    // What is there after all has started when it accepts, and is tried on.
    node.probed(Answer::Accepted, 9040);
    assert_eq!(node.see(all.clone(), 9040 + millis(HOLD)), []);
    assert_eq!(node.probed(Answer::Accepted, 9200), gone);
    node.0.set_lagging(false, at(9300));
    assert_eq!(node.probed(Answer::Refused, 11_000), []);
    assert_eq!(node.see(all, 15_000), []);
}

/// Any answers to any number of pods.
#[derive(Clone, Debug)]
struct Course {
    /// When the nth pod begins to listen; `None`: never.
    listens: Vec<Option<u64>>,
    silent: Vec<bool>,
    latency: u64,
}

fn course() -> impl Strategy<Value = Course> {
    (1usize..250).prop_flat_map(|pods| {
        let listens = proptest::collection::vec(proptest::option::weighted(0.8, 0u64..5_000), pods);
        let silent = proptest::collection::vec(proptest::bool::weighted(0.1), pods);
        (listens, silent, 0u64..200).prop_map(|(listens, silent, latency)| Course { listens, silent, latency })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// However many pods come at once: no more probes than allowed run, none is passed over, each starts soon after it listens and
    /// none that refuses, and the machine never asks for a turn in the past.
    #[test]
    fn each_pod_starts_when_it_listens(course in course()) {
        let mut node = Node::with([]);
        let pods: Vec<Endpoint> = (0..course.listens.len()).map(|n| ready("a", n as u8)).collect();
        node.see(pods.clone(), 0);
        let mut running: Vec<(u64, Probe)> = Vec::new();
        for now in 0..8_000 {
            let (done, rest): (Vec<_>, Vec<_>) = running.into_iter().partition(|(end, _)| *end <= now);
            running = rest;
            for (_, probe) in done {
                let n = usize::from(probe.target.address.octets()[3]);
                let answer = match course.silent[n] {
                    true => Answer::Silence,
                    false if course.listens[n].is_some_and(|listens| probe.asked >= at(listens)) => Answer::Accepted,
                    false => Answer::Refused,
                };
                node.0.answered(probe, answer, at(now));
            }
            node.rules_follow(now);
            running.extend(node.0.turn(at(now)).into_iter().map(|probe| (now + course.latency, probe)));
            prop_assert!(running.len() <= MAX_PROBES);
            prop_assert!(node.0.next_deadline().is_none_or(|due| due > at(now)));
        }
        // Every probe may have to wait for all others, four times over.
        let slack = 4 * (course.latency + PACE.as_millis() as u64) + 50;
        let unstarted = node.see(pods, 8_000);
        for (n, listens) in course.listens.iter().enumerate() {
            let starts = course.silent[n] || listens.is_some_and(|listens| listens + slack < 8_000);
            prop_assert_eq!(unstarted.contains(&http("a", n as u8)), !starts, "pod {}: {:?}", n, listens);
        }
    }
}
