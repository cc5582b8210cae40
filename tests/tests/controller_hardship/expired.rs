//! 410: the way to the API server is interrupted while Services come, go and change, and the state that the watches ask for then is known no
//! more. What is there is listed once, what is gone is noticed, and what stays is not touched. The API server itself says so in the first
//! event of a watch, here by an etcd that has forgotten its history; what stands before it may refuse the watch.

use std::io::{Read, Write};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sheave_tests::lab::{Fault, wait_for};

use super::SERVICES;
use super::ground::{Ground, Server};
use super::history::History;
use super::overload::WATCHES_GO_ON;
use super::proxy::{Proxy, Request, Verdict};
use super::replica::Replica;

/// Plural names of what is watched, and what the controller's log calls it.
const WATCHED: [(&str, &str); 3] =
    [("services", "Services"), ("virtualips", "VirtualIPs"), ("addresspools", "AddressPools")];
/// One by the watch, and one of everything for each of six kinds that are in doubt, as their watches begin anew at different moments.
const LISTS: usize = 7;

pub fn chapter(ground: &Ground) -> Result<()> {
    let history = History::start(ground.lab)?;
    let proxy = ground.proxy(Server::Second, "expired")?;
    // It keeps the lead all the time: a new leader would read everything anyway.
    let replica = ground.leader_behind(&proxy, "expired-1", &["--lease-seconds", "120"])?;
    wait_listed(&proxy, 0)?;
    let terms = ground.terms()?;
    by_an_event(ground, &proxy, &replica).context("in an event")?;
    by_a_status(ground, &proxy, &replica).context("by the status")?;
    ensure!(ground.terms()? == terms && replica.leads()?, "the lead was lost: this shows nothing");
    ground.end(history)?;
    replica.terminate().map(drop)
}

/// As the API server does: the watch is admitted, and its first event is the error.
fn by_an_event(ground: &Ground, proxy: &Proxy, replica: &Replica) -> Result<()> {
    let before = Before::prepare(ground)?;
    cut(proxy);
    before.change(ground)?;
    compact(ground, ground.version()?)?;
    // Its caches know what they read at its start.
    ground.lab.fault(Fault::ApiStart { server: Some(Server::Second.role().into()) })?;
    ground.wait_ready(Server::Second)?;
    let since = proxy.requests().len();
    proxy.pass();
    before.wait_right(ground).with_context(|| replica.log())?;
    wait_listed(proxy, since).with_context(|| replica.log())?;
    for (_, kind) in WATCHED {
        let expired =
            |line: &str| line.contains(&format!("kind=\"{kind}\"")) && line.contains("too old resource version");
        ensure!(replica.log().lines().any(expired), "no watch of {kind} was refused:\n{}", replica.log());
    }
    ground.clear()
}

/// No watch of before is admitted, however often it is asked for.
fn by_a_status(ground: &Ground, proxy: &Proxy, replica: &Replica) -> Result<()> {
    let before = Before::prepare(ground)?;
    cut(proxy);
    before.change(ground)?;
    let (known, since) = (ground.version()?, proxy.requests().len());
    let expired = move |request: &Request| {
        let goes_on = request.asks("watch").is_some() && request.asks("sendInitialEvents").is_none();
        let version = request.asks("resourceVersion").and_then(|version| version.parse::<u64>().ok());
        goes_on && version.is_some_and(|version| version < known)
    };
    proxy.rule(move |request| if expired(request) { Verdict::Refuse(410) } else { Verdict::Pass });
    before.wait_right(ground).with_context(|| replica.log())?;
    wait_listed(proxy, since).with_context(|| replica.log())?;
    for (plural, _) in WATCHED {
        let refused = |request: &Request| request.refused() && request.path.ends_with(&format!("/{plural}"));
        ensure!(proxy.count(refused) > 0, "no watch of {plural} was refused: this shows nothing");
    }
    proxy.pass();
    ground.clear()
}

/// The connections end, and what is asked for then has no answer for now.
fn cut(proxy: &Proxy) {
    proxy.rule(|_| Verdict::Hold);
    proxy.end_connections();
}

/// Every watch has listed its kind anew, and that was all.
fn wait_listed(proxy: &Proxy, since: usize) -> Result<()> {
    let lists = |plural: &str, wanted: fn(&Request) -> bool| {
        let all = proxy.requests().split_off(since);
        all.iter().filter(|request| request.lists(plural) && request.done() && wanted(request)).count()
    };
    for (plural, _) in WATCHED {
        // What is read beside the watches is the newest state, of no version.
        let by_the_watch = || lists(plural, |request| request.asks("resourceVersion") == Some("0"));
        wait_for(&format!("the watch of {plural} to list"), WATCHES_GO_ON, || Ok((by_the_watch() > 0).then_some(())))?;
        let all = lists(plural, |_| true);
        ensure!(all <= LISTS, "{plural} were listed {all} times");
    }
    Ok(())
}

/// Services, and the addresses that they have.
struct Before {
    addresses: Vec<String>,
    /// Entries of the ledger that must stay as they are.
    kept: Vec<(String, String, String)>,
}

impl Before {
    fn prepare(ground: &Ground) -> Result<Self> {
        (0..6).try_for_each(|number| ground.create(&format!("old-{number}")))?;
        let addresses = (0..6).map(|number| ground.wait_shown(&format!("old-{number}"))).collect::<Result<_>>()?;
        ground.wait_true()?;
        let kept = ground.ledger()?.into_iter().filter(|(_, _, name)| name == "old-4" || name == "old-5").collect();
        Ok(Self { addresses, kept })
    }

    /// Gone at once, deleted, of another type, moved by its user; and new ones.
    fn change(&self, ground: &Ground) -> Result<()> {
        let path = |number: usize| format!("{SERVICES}/old-{number}");
        ground.api.patch(&path(0), &json!({ "metadata": { "finalizers": null } }))?;
        ground.delete("old-0")?;
        ground.delete("old-1")?;
        ground
            .api
            .patch(&path(2), &json!({ "spec": { "type": "ClusterIP", "allocateLoadBalancerNodePorts": null } }))?;
        ground.api.patch(&path(3), &json!({ "metadata": { "annotations": { "sheave.dev/addresses": MOVED } } }))?;
        (0..3).try_for_each(|number| ground.create(&format!("new-{number}")))
    }

    fn wait_right(&self, ground: &Ground) -> Result<()> {
        (0..3).try_for_each(|number| ground.wait_shown(&format!("new-{number}")).map(drop))?;
        ground.wait_true()?;
        for (name, address) in [("old-4", &*self.addresses[4]), ("old-5", &*self.addresses[5]), ("old-3", MOVED)] {
            let shown = ground.shown(name)?;
            ensure!(shown == address, "{name} shows {shown:?} instead of {address:?}");
        }
        let now = ground.ledger()?;
        ensure!(
            self.kept.len() == 2 && self.kept.iter().all(|entry| now.contains(entry)),
            "an entry was written anew: {now:?}"
        );
        let deleted = ground.api.find(&format!("{SERVICES}/old-1"))?;
        ensure!(deleted.is_none(), "old-1 still waits for its deletion");
        Ok(())
    }
}

const MOVED: &str = "198.18.0.50";

/// etcd forgets what was before this revision.
fn compact(ground: &Ground, revision: u64) -> Result<()> {
    let body = json!({ "revision": revision.to_string(), "physical": true }).to_string();
    let request = format!(
        "POST /v3/kv/compaction HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let servers = ground.lab.state()?.plan.control_plane();
    let (role, address) = servers.first().context("an API server")?;
    let script = format!("exec 3<>/dev/tcp/{address}/2379; cat >&3; cat <&3");
    let mut bash = ground.lab.netns_command(role, "bash")?;
    let mut bash = bash.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("bash")?;
    bash.stdin.take().context("stdin")?.write_all(request.as_bytes())?;
    let mut answer = String::new();
    bash.stdout.take().context("stdout")?.read_to_string(&mut answer)?;
    bash.wait()?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}
