use alloc::vec;

use super::*;
use crate::view::View;
use crate::view::endpoints::frontends;
use crate::view::example::{pod, view};

const PORT: u16 = 8080;

fn at(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

fn member(node: &str) -> Target {
    Target { address: pod(node, 1, Conditions::READY).address, port: PORT }
}

fn config(node: &str) -> Config {
    Config { node: node.into(), ports: [PORT].into(), first: PORT, checks: checks::Config::new(7) }
}

/// A member on each of three nodes, which run the machine, on one clock. Reports arrive at once.
struct Cluster {
    view: View,
    nodes: BTreeMap<&'static str, Health>,
    /// Of each member, to those nodes that are not cut off.
    servers: BTreeMap<Target, Outcome>,
    cut_off: BTreeSet<&'static str>,
    now: u64,
}

impl Cluster {
    fn new() -> Self {
        let view = view(["a", "b", "c"].map(|node| pod(node, 1, Conditions::READY)));
        let nodes = ["a", "b", "c"].map(|node| (node, Health::new(config(node))));
        let servers = ["a", "b", "c"].map(|node| (member(node), Outcome::Ready));
        Self { view, nodes: nodes.into(), servers: servers.into(), cut_off: BTreeSet::new(), now: 0 }
    }

    fn run(&mut self, until: u64) {
        while self.now < until {
            let now = at(self.now);
            for (node, health) in &mut self.nodes {
                let mut frontends = frontends(&self.view).0;
                health.follow(&mut frontends, now);
                for check in health.turn(now).0 {
                    let own = check.target == member(node);
                    let reached = own || !self.cut_off.contains(node);
                    let outcome = if reached { self.servers[&check.target] } else { Outcome::Silent };
                    health.ended(check, outcome, now);
                }
            }
            let reports: Vec<(&str, Report)> =
                self.nodes.iter().map(|(node, health)| (*node, health.report())).collect();
            for (from, report) in &reports {
                for health in self.nodes.iter_mut().filter(|(node, _)| *node != from).map(|(_, health)| health) {
                    health.reported(from, report.clone(), now);
                }
            }
            self.now += 10;
        }
    }

    /// The members that get new flows, as this node has it.
    fn serving(&mut self, node: &str) -> Vec<&'static str> {
        let mut frontends = frontends(&self.view).0;
        self.nodes.get_mut(node).unwrap().follow(&mut frontends, at(self.now));
        let frontend =
            frontends.into_values().find(|frontend| frontend.pods.iter().any(|pod| pod.port == PORT)).unwrap();
        let serves = |node: &&str| frontend.pods.iter().any(|pod| pod.node == *node && pod.conditions.ready);
        ["a", "b", "c"].into_iter().filter(serves).collect()
    }

    /// On this node, as an administrator there does it.
    fn wish(&mut self, on: &str, of: &str, wish: Wish) -> Result<(), Refused> {
        let (now, health) = (at(self.now), self.nodes.get_mut(on).unwrap());
        let drains = health.wish(member(of).address, wish, self.now)?;
        health.drained(&drains, now);
        Ok(())
    }

    fn given_up(&self, node: &str) -> Vec<String> {
        self.nodes[node].given_up().into_iter().collect()
    }
}

#[test]
fn a_member_that_fails_is_out_on_all_nodes_and_back_with_its_first_answer() {
    let mut cluster = Cluster::new();
    cluster.run(2_000);
    cluster.servers.insert(member("b"), Outcome::Refused);
    cluster.run(2_820);
    for node in ["a", "b", "c"] {
        assert_eq!(cluster.serving(node), ["a", "c"], "{node}");
    }
    cluster.servers.insert(member("b"), Outcome::Unauthorized);
    cluster.run(3_450);
    for node in ["a", "b", "c"] {
        assert_eq!(cluster.serving(node), ["a", "b", "c"], "{node}");
    }
}

#[test]
fn never_none_while_any_answers_and_none_when_none_does() {
    let mut cluster = Cluster::new();
    cluster.run(1_000);
    for (node, left) in [("a", &["b", "c"][..]), ("b", &["c"]), ("c", &[])] {
        cluster.servers.insert(member(node), Outcome::Refused);
        cluster.run(cluster.now + 1_000);
        assert_eq!(cluster.serving("a"), left);
    }
    cluster.servers.insert(member("b"), Outcome::Ready);
    cluster.run(cluster.now + 1_000);
    assert_eq!(cluster.serving("c"), ["b"]);
}

/// etcd has no quorum: every API server says 500, and is all that there is. kubelets get its answer, not a refusal.
#[test]
fn members_that_are_not_ready_serve_while_no_other_does() {
    let mut cluster = Cluster::new();
    cluster.run(1_000);
    for node in ["a", "b"] {
        cluster.servers.insert(member(node), Outcome::NotReady(500));
    }
    cluster.run(cluster.now + 1_000);
    assert_eq!((cluster.serving("a"), cluster.serving("c")), (vec!["c"], vec!["c"]), "one is ready");
    cluster.servers.insert(member("c"), Outcome::Silent);
    cluster.run(cluster.now + 3_000);
    assert_eq!((cluster.serving("a"), cluster.serving("c")), (vec!["a", "b"], vec!["a", "b"]));
    cluster.servers.insert(member("c"), Outcome::NotReady(503));
    cluster.run(cluster.now + 1_000);
    assert_eq!(cluster.serving("b"), ["a", "b", "c"]);
    cluster.servers.insert(member("b"), Outcome::Ready);
    cluster.run(cluster.now + 1_000);
    assert_eq!(
        (cluster.serving("a"), cluster.serving("b")),
        (vec!["b"], vec!["b"]),
        "the first that is ready takes all"
    );
    cluster.servers.insert(member("b"), Outcome::Refused);
    cluster.run(cluster.now + 1_000);
    assert_eq!(cluster.serving("b"), ["a", "c"]);
}

/// Its own certificates are not valid yet by its clock: others serve, and where every clock is wrong all serve. Nobody gives up ownership.
#[test]
fn a_wrong_clock_takes_no_member_from_the_last_ones() {
    let mut cluster = Cluster::new();
    cluster.servers.insert(member("a"), Outcome::CertificateTime);
    cluster.run(10_000);
    assert_eq!((cluster.serving("a"), cluster.serving("b")), (vec!["b", "c"], vec!["b", "c"]));
    assert!(cluster.given_up("a").is_empty(), "it reaches its own");
    cluster.servers.insert(member("b"), Outcome::CertificateTime);
    cluster.servers.insert(member("c"), Outcome::Slow);
    cluster.run(cluster.now + 10_000);
    for node in ["a", "b", "c"] {
        assert_eq!((cluster.serving(node), cluster.given_up(node)), (vec!["a", "b", "c"], vec![]), "{node}");
    }
}

#[test]
fn a_drained_member_gets_nothing_new_on_any_node_in_the_same_moment_and_over_restarts() {
    let mut cluster = Cluster::new();
    cluster.run(1_000);
    cluster.wish("c", "b", Wish::Drain).unwrap();
    cluster.run(1_080);
    assert_eq!(cluster.serving("a"), ["a", "b", "c"], "held, so that all change their rings together");
    cluster.run(1_150);
    for node in ["a", "b", "c"] {
        assert_eq!(cluster.serving(node), ["a", "c"], "{node}");
    }
    // Its check and its reach go on.
    assert!(cluster.nodes["b"].report().targets[&member("b")] && cluster.given_up("b").is_empty());
    // A new speaker, with the records of its disk.
    let drains = cluster.nodes["b"].drains().clone();
    let mut restarted = Health::new(config("b"));
    restarted.drained(&drains, at(cluster.now));
    cluster.nodes.insert("b", restarted);
    assert_eq!(cluster.serving("b"), ["a", "c"]);
    // One that lost them.
    cluster.nodes.insert("b", Health::new(config("b")));
    cluster.run(1_500);
    assert_eq!(cluster.serving("b"), ["a", "c"]);
    cluster.wish("b", "b", Wish::Serve).unwrap();
    cluster.run(1_700);
    assert_eq!(cluster.serving("a"), ["a", "b", "c"]);
}

#[test]
fn the_last_member_is_drained_by_force_alone() {
    let mut cluster = Cluster::new();
    cluster.run(1_000);
    assert_eq!(cluster.wish("a", "a", Wish::Drain), Ok(()));
    // At once after the first, too.
    assert_eq!(cluster.wish("a", "b", Wish::Drain), Ok(()));
    assert_eq!(cluster.wish("a", "c", Wish::Drain), Err(Refused::LastMember { port: PORT }));
    let unknown = cluster.nodes["a"].wish([192, 0, 2, 250].into(), Wish::Drain, 0);
    assert_eq!(unknown, Err(Refused::NoMember));
    cluster.run(2_000);
    assert_eq!(cluster.serving("b"), ["c"]);
    // While the last one fails, those that are drained serve.
    cluster.servers.insert(member("c"), Outcome::Refused);
    cluster.run(4_000);
    assert_eq!(cluster.serving("b"), ["a", "b"], "never none while any answers");
    cluster.servers.insert(member("c"), Outcome::Ready);
    cluster.run(5_000);
    assert_eq!(cluster.serving("b"), ["c"]);
    for (node, left) in [("a", &["c"][..]), ("b", &["c"]), ("c", &[])] {
        cluster.wish("c", node, Wish::DrainByForce).unwrap();
        cluster.run(cluster.now + 200);
        assert_eq!(cluster.serving("a"), left);
    }
}

#[test]
fn a_member_is_the_last_one_where_the_others_fail() {
    let mut cluster = Cluster::new();
    cluster.servers.insert(member("a"), Outcome::Refused);
    cluster.servers.insert(member("b"), Outcome::Silent);
    cluster.run(3_000);
    assert_eq!(cluster.wish("a", "c", Wish::Drain), Err(Refused::LastMember { port: PORT }));
    assert_eq!(cluster.wish("a", "b", Wish::Drain), Ok(()), "it takes nothing anyway");
    assert_eq!(cluster.wish("a", "c", Wish::DrainByForce), Ok(()));
    cluster.run(3_200);
    assert_eq!(cluster.serving("a"), [""; 0]);
}

#[test]
fn what_status_shows_of_others_is_what_they_report() {
    let mut cluster = Cluster::new();
    cluster.servers.insert(member("b"), Outcome::NotReady(500));
    cluster.nodes.get_mut("b").unwrap().set_connections([((443, member("b").address), 2)].into());
    cluster.run(2_000);
    let health = &cluster.nodes["a"];
    assert_eq!(health.last_check("b", member("b")).map(|checked| checked.outcome), Some(Outcome::NotReady(500)));
    assert_eq!(health.last_check("a", member("a")).map(|checked| checked.outcome), Some(Outcome::Ready));
    let places: Vec<_> = health.places().map(|(node, _, standing)| (node, standing)).collect();
    assert_eq!(places, [("a", Standing::Serves), ("b", Standing::NotReady), ("c", Standing::Serves)]);
    assert_eq!(health.connections().into_keys().collect::<Vec<_>>(), ["b"], "the others have not counted yet");
    assert!(health.is_known("c", member("c")) && !health.is_known("d", member("c")));
    let report = health.report();
    let counted = Report { details: Details { connections: None, ..Details::default() }, ..report.clone() };
    assert!(!report.is_news_after(&counted) && report.is_news_after(&Report::default()));
}

#[test]
fn members_on_lost_nodes_are_left_out_while_others_serve() {
    let mut cluster = Cluster::new();
    cluster.run(1_000);
    let serving = |cluster: &mut Cluster, lost: &[&str]| {
        let mut frontends = frontends(&cluster.view).0;
        cluster.nodes.get_mut("a").unwrap().follow(&mut frontends, at(cluster.now));
        leave_out(&mut frontends, |node| !lost.contains(&node));
        let pods = frontends.into_values().flat_map(|frontend| frontend.pods);
        let ready = pods.filter(|pod| pod.port == PORT && pod.conditions.ready);
        ready.map(|pod| String::from(pod.node)).collect::<BTreeSet<String>>().into_iter().collect::<Vec<String>>()
    };
    assert_eq!(serving(&mut cluster, &["b"]), ["a", "c"]);
    assert_eq!(serving(&mut cluster, &[]), ["a", "b", "c"]);
    // They may live: nobody knows.
    assert_eq!(serving(&mut cluster, &["a", "b", "c"]), ["a", "b", "c"]);
    cluster.servers.insert(member("a"), Outcome::Refused);
    cluster.run(2_000);
    assert_eq!(serving(&mut cluster, &["b", "c"]), ["b", "c"], "no other serves");
    assert_eq!(serving(&mut cluster, &["b"]), ["c"]);
}

/// Its kernel goes on, and nobody knows of its member.
#[test]
fn no_report_means_unknown() {
    let mut cluster = Cluster::new();
    cluster.servers.insert(member("b"), Outcome::Refused);
    cluster.run(2_000);
    assert_eq!(cluster.serving("a"), ["a", "c"]);
    cluster.nodes.remove("b");
    cluster.run(2_000 + 2_900);
    assert_eq!(cluster.serving("a"), ["a", "c"], "the last report counts for a while");
    cluster.run(2_000 + 3_200);
    assert_eq!(cluster.serving("a"), ["a", "b", "c"]);
}

#[test]
fn one_that_reaches_no_member_gives_up_and_its_own_member_alone_decides_nothing() {
    let mut cluster = Cluster::new();
    cluster.run(2_000);
    cluster.servers.insert(member("a"), Outcome::Refused);
    cluster.run(20_000);
    assert_eq!(cluster.given_up("a"), [""; 0], "it reaches the others");
    cluster.cut_off.insert("a");
    cluster.run(20_000 + 2_900);
    assert_eq!(cluster.given_up("c"), [""; 0]);
    cluster.run(20_000 + 4_500);
    for node in ["a", "b", "c"] {
        assert_eq!(cluster.given_up(node), ["a"], "all nodes have it from its report");
    }
    cluster.cut_off.clear();
    cluster.run(24_500 + 4_900);
    assert_eq!(cluster.given_up("b"), ["a"], "not at once");
    cluster.run(24_500 + 6_000);
    assert_eq!(cluster.given_up("b"), [""; 0]);
}

#[test]
fn where_none_answers_no_node_gives_up() {
    let mut cluster = Cluster::new();
    cluster.run(1_000);
    for node in ["a", "b", "c"] {
        cluster.servers.insert(member(node), Outcome::Refused);
    }
    cluster.run(61_000);
    assert_eq!(cluster.given_up("a"), [""; 0]);
    assert_eq!(cluster.serving("a"), [""; 0]);
}

/// The others are not asked for nothing.
#[test]
fn a_node_checks_the_others_only_while_its_own_member_fails() {
    let mut cluster = Cluster::new();
    cluster.run(1_000);
    let checked = |cluster: &Cluster| cluster.nodes["a"].targets().map(|(target, _)| target).collect::<Vec<_>>();
    assert_eq!(checked(&cluster), [member("a")]);
    cluster.servers.insert(member("a"), Outcome::Refused);
    cluster.run(2_000);
    assert_eq!(checked(&cluster), ["a", "b", "c"].map(member));
    cluster.servers.insert(member("a"), Outcome::Ready);
    cluster.run(3_000);
    assert_eq!(checked(&cluster), [member("a")]);
}

/// Ports that no check is named for are as the view has them.
#[test]
fn other_ports_are_left_alone() {
    let mut health = Health::new(Config { ports: [1].into(), first: 1, ..config("a") });
    let view = view(vec![pod("a", 1, Conditions::READY)]);
    let mut marked = frontends(&view).0;
    health.follow(&mut marked, at(0));
    assert_eq!((marked, health.next_deadline()), (frontends(&view).0, None));
}
