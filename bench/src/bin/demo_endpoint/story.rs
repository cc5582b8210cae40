//! What happens, one thing after the other.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use sheave_bench::screen::Screen;
use sheave_tests::endpoint::faults::Faulted;
use sheave_tests::endpoint::judge::{self, Promise};
use sheave_tests::endpoint::streams::Streams;
use sheave_tests::endpoint::{Clients, Seen, cold, faults, further, kubelets, upkeep};
use sheave_tests::lab::Lab;
use sheave_tests::lab::ha::Ha;

use super::{Arguments, promise_line};

type Told = (Vec<(String, Value)>, Vec<Promise>);

struct Story<'a> {
    arguments: &'a Arguments,
    screen: Screen,
    told: Told,
    streams: Option<Streams>,
}

pub fn tell(arguments: &Arguments, screen: Screen, lab: &Lab) -> Result<Told> {
    let ha = Ha::of(lab)?;
    let mut story = Story { arguments, screen, told: Told::default(), streams: None };
    cold_start(&mut story, &ha)?;
    screen.progress("opening the watches");
    let mut clients = Clients::start(&ha, arguments.watches.into())?;
    screen.heading("The clients");
    screen.line(&format!(
        "{} open watches by HTTP/2, each on its own connection; 20 new TLS connections a second with one request each;",
        arguments.watches
    ));
    screen.line("a `kubectl get` a second; and on each node a client with four connections a second");
    one_server(&mut story, &ha, &mut clients)?;
    owner(&mut story, &ha, &mut clients)?;
    none(&mut story, &ha, &clients)?;
    if story.begins("Rolling restart of all three API servers") {
        let seen = faults::rolling_restart(&ha, &clients)?;
        story.saw(&seen);
        story.end(&seen, judge::rolled(&seen))?;
    }
    years(&mut story, &ha, &clients)?;
    ensure!(!story.told.0.is_empty(), "--only {:?} is in no heading", arguments.only);
    drop(clients);
    story.begins("The audit logs");
    let seen = judge::client_seen(&ha)?;
    story.end(&seen.clone(), vec![seen])?;
    Ok(story.told)
}

fn cold_start(story: &mut Story<'_>, ha: &Ha) -> Result<()> {
    let screen = story.screen;
    screen.heading("Cold start: the speakers run, and no API server does");
    let refused = cold::refused(ha)?;
    let longest = refused.longest_ms;
    screen.line(&format!(
        "from the client on the segment and from every node {} of {} connections are refused, the slowest after {longest:.1} ms",
        refused.refused, refused.made
    ));
    story.told.1.push(judge::refused_at_once(&refused));
    if !story.arguments.no_kubelets {
        screen.progress("kubelets, containerd and kube-proxies, which know the API servers by this address alone");
        kubelets::start(ha)?;
        let pods = kubelets::restart_with_pods(ha, POD)?;
        static_pods(story, &pods);
    }
    screen.progress("etcd on all nodes, then the API server of one");
    let first = cold::first_api_server(ha)?;
    screen.line(&format!(
        "the API server of {} was ready; the endpoint served it {:.0} ms later",
        first.node, first.served_after_ms
    ));
    story.told.1.push(judge::first_served(&first));
    screen.progress("the other two");
    faults::start_all(ha)
}

fn one_server(story: &mut Story<'_>, ha: &Ha, clients: &mut Clients) -> Result<()> {
    let owner = ha.owner()?.context("the endpoint has an owner")?;
    let other = ha.nodes().into_iter().find(|node| *node != owner).context("another node")?;
    if story.begins(&format!("SIGKILL for the API server of {other}")) {
        story.open_streams(ha)?;
        let faulted = faults::kill_api_server(ha, clients, &other)?;
        story.faulted(&faulted, judge::killed(&faulted))?;
    }
    if story.begins(&format!("SIGSTOP for the API server of {owner}, which holds the address")) {
        story.open_streams(ha)?;
        let faulted = faults::stop_api_server(ha, clients, &owner)?;
        story.faulted(&faulted, judge::frozen(&faulted))?;
    }
    if story.begins(&format!("SIGKILL for the etcd member of {other}; two have quorum")) {
        story.open_streams(ha)?;
        let faulted = faults::kill_etcd(ha, clients, &other)?;
        story.faulted(&faulted, judge::without_etcd(&faulted))?;
    }
    let further = ha.further_ports().iter().map(u16::to_string).collect::<Vec<_>>().join(" and ");
    if !further.is_empty() && story.begins(&format!("SIGKILL for what serves port {further} on {other}")) {
        let killed = further::kill(ha, clients, &other)?;
        story.saw(&killed.seen);
        story.end(&killed, judge::further_killed(&killed))?;
    }
    Ok(())
}

fn owner(story: &mut Story<'_>, ha: &Ha, clients: &mut Clients) -> Result<()> {
    if story.begins("The node that holds the address loses power") {
        story.open_streams(ha)?;
        let faulted = faults::power_off_owner(ha, clients)?;
        story.faulted(&faulted, judge::owner_lost(&faulted))?;
    }
    if story.begins("The owner loses power while its API server and another one are dead") {
        story.open_streams(ha)?;
        let faulted = faults::power_off_owner_with_one_left(ha, clients)?;
        story.faulted(&faulted, judge::owner_lost(&faulted))?;
    }
    Ok(())
}

fn none(story: &mut Story<'_>, ha: &Ha, clients: &Clients) -> Result<()> {
    let seconds = story.arguments.none_for;
    if !story.begins(&format!("All API servers are killed, for {seconds} s")) {
        return Ok(());
    }
    let kubelets = !story.arguments.no_kubelets;
    let meanwhile = || kubelets.then(|| kubelets::restart_with_pods(ha, "second")).transpose();
    let (down, pods) = faults::kill_all_api_servers(ha, clients, Duration::from_secs(seconds.into()), meanwhile)?;
    story.saw(&down.seen);
    if let Some(pods) = pods {
        static_pods(story, &pods);
    }
    story.end(&down, judge::all_down(&down))
}

/// What happens in the years of a cluster.
fn years(story: &mut Story<'_>, ha: &Ha, clients: &Clients) -> Result<()> {
    if story.begins("etcd stands still on all nodes, for 10 s") {
        let stopped = upkeep::stop_all_etcd(ha, clients, Duration::from_secs(10))?;
        story.saw(&stopped.seen);
        story.end(&stopped, judge::etcd_stopped(&stopped))?;
    }
    if story.begins("New certificates for all API servers, and for the checks of all speakers") {
        let renewed = upkeep::renew_certificates(ha, clients)?;
        story.saw(&renewed.seen);
        story.screen.line(&format!("all use them after {:.1} s", renewed.taken_ms / 1e3));
        story.end(&renewed, judge::renewed(&renewed))?;
    }
    let Some(test_build) = story.arguments.wrong_clock.as_deref() else { return Ok(()) };
    for (seconds, way) in [(3600, "fast"), (-3600, "slow")] {
        if story.begins(&format!("The wall clock of the owner's speaker is an hour {way}, and that speaker restarts")) {
            let wrong = upkeep::wrong_clock(ha, clients, test_build, seconds)?;
            story.saw(&wrong.jump);
            story.screen.line(&format!("its own API server, as it has it: {}", wrong.reasons.join(", ")));
            story.saw(&wrong.restart);
            story.end(&wrong, judge::clock_wrong(&wrong))?;
        }
    }
    Ok(())
}

fn static_pods(story: &mut Story<'_>, pods: &[(String, f64)]) {
    let each: Vec<_> = pods.iter().map(|(node, ms)| format!("{node} {:.1} s", ms / 1e3)).collect();
    story
        .screen
        .line(&format!("kubelets started without an API server; their static pods ran after: {}", each.join(", ")));
    story.told.1.push(judge::static_pods(pods));
}

impl Story<'_> {
    /// Whether this is told.
    fn begins(&self, heading: &str) -> bool {
        let told = heading.contains(&self.arguments.only);
        if told {
            self.screen.heading(heading);
        }
        told
    }

    fn saw(&self, seen: &Seen) {
        let screen = self.screen;
        let fresh = &seen.fresh;
        screen.line(&format!(
            "new connections: {} made, {} failed; served by {}",
            fresh.made,
            fresh.failures(),
            judge::counts(&fresh.served)
        ));
        screen.line(&format!(
            "nothing answered for {:.0} ms at most; the longest handshake took {:.0} ms",
            fresh.silence_ms, fresh.longest_ms
        ));
        if !fresh.unanswered.is_empty() {
            screen.line(&format!("requests without a good answer: {}", judge::counts(&fresh.unanswered)));
        }
        let watches = &seen.watches;
        screen.line(&format!(
            "watches open before: {}; alive: {}; with an event in the last 3 s: {}",
            judge::counts(&watches.open),
            judge::counts(&watches.alive),
            judge::counts(&watches.awake)
        ));
        let kubectl = &seen.kubectl;
        screen.line(&format!(
            "kubectl get: {} of {} succeeded, the longest took {:.0} ms",
            kubectl.good, kubectl.started, kubectl.longest_ms
        ));
        for (node, window) in &seen.nodes {
            screen.line(&format!("on {node}: {} connections, {} failed", window.made, window.failures()));
        }
    }

    /// exec and logs of a pod that does not go with the owner.
    fn open_streams(&mut self, ha: &Ha) -> Result<()> {
        if !self.arguments.no_kubelets {
            let owner = ha.owner()?;
            let node = ha.nodes().into_iter().find(|node| Some(node) != owner.as_ref()).context("another node")?;
            self.streams = None;
            self.streams = Some(Streams::open(ha, &node, POD)?);
        }
        Ok(())
    }

    fn faulted(&mut self, faulted: &Faulted, mut promises: Vec<Promise>) -> Result<()> {
        self.saw(&faulted.seen);
        self.screen.line(&format!(
            "repaired: the endpoint reaches {} {:.0} ms after its API server is ready",
            faulted.node, faulted.back_ms
        ));
        if let Some(streams) = &mut self.streams {
            promises.push(judge::streams(&streams.seen(), &faulted.dead));
        }
        self.end(faulted, promises)
    }

    fn end(&mut self, seen: &impl Serialize, promises: Vec<Promise>) -> Result<()> {
        promises.iter().for_each(|promise| promise_line(self.screen, promise));
        let name = promises.first().map_or_else(String::new, |promise| promise.name.to_owned());
        self.told.0.push((name, serde_json::to_value(seen)?));
        self.told.1.extend(promises);
        Ok(())
    }
}

/// The static pod of the cold start.
const POD: &str = "first";
