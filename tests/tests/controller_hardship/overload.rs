//! 429: API Priority and Fairness gives the controller's account no share. What is created meanwhile is served when that is over; the
//! refusals have a name; and no more is asked than the API server has said. The record of the lead has a share of its own.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sheave_tests::lab::wait_for;
use sheave_tests::scenario::api::text;

use super::ground::{Counts, Ground, SOON, Server};
use super::history::History;
use super::proxy::{Proxy, Request};
use super::replica::{NAMESPACE, Replica};

const LEVELS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations";
const SCHEMAS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";
/// Requests that a replica has under way at most: writes, Events, lists and watches, the Lease, and what is asked now and then.
pub const AT_A_TIME: [(&str, f64); 4] = [("writes", 8.0), ("events", 4.0), ("reads", 16.0), ("lease", 2.0)];

/// Pauses between tries to begin a watch grow to 30 s.
pub const WATCHES_GO_ON: Duration = Duration::from_secs(60);

pub fn chapter(ground: &Ground) -> Result<()> {
    let history = History::start(ground.lab)?;
    let replica = ground.replica(Server::Second, "overload-1", &["--lease-seconds", "5"])?;
    ground.create("before")?;
    let address = ground.wait_shown("before")?;
    writes_are_refused(ground, &replica)?;
    replica.terminate()?;
    all_but_the_lease_is_refused(ground)?;
    ensure!(ground.shown("before")? == address, "an address moved");
    let _last = ground.replica(Server::Second, "overload-3", &["--lease-seconds", "5"])?;
    ground.end(history)
}

/// The leader keeps the lead: its record is another matter.
fn writes_are_refused(ground: &Ground, replica: &Replica) -> Result<()> {
    let terms = ground.terms()?;
    let rule = json!({
        "verbs": ["create", "patch", "delete"], "apiGroups": ["", "sheave.dev"], "clusterScope": true, "namespaces": ["*"],
        "resources": ["services/status", "virtualips", "addresspools/status"],
    });
    let jail = Jail::close(ground, "hardship-writes", json!({ "resourceRules": [rule] }))?;
    let mut created = vec![];
    // It takes the API server some moments to know.
    wait_for("a write to be refused", SOON, || {
        if created.len() < 30 {
            let name = format!("refused-{}", created.len());
            ground.create(&name)?;
            created.push(name);
        }
        Ok((replica.metric(REFUSED)? > 0.0).then_some(()))
    })?;
    (0..12).try_for_each(|number| ground.create(&format!("meanwhile-{number}")))?;
    created.extend((0..12).map(|number| format!("meanwhile-{number}")));
    // The third pause has begun: the spans of two have passed.
    wait_for("several pauses", Duration::from_secs(40), || Ok((pauses(replica, "writes") >= 3.0).then_some(())))?;
    ensure!(ground.shown("meanwhile-11")?.is_empty(), "an address was shown although no write is admitted");
    jail.bounded(replica)?;
    let waited = jail.open()?;
    for name in &created {
        ground.wait_shown(name)?;
    }
    eprintln!("  writes refused: all {} Services served {:?} after the end", created.len(), waited.elapsed());
    ground.wait_true()?;
    ensure!(ground.terms()? == terms && replica.leads()?, "the lead was lost:\n{}", replica.log());
    let unnamed = replica.metric("sheave_controller_write_errors_total{kind=\"Timeout\"}")?;
    ensure!(unnamed == 0.0, "{unnamed} writes had no answer, they say:\n{}", replica.log());
    ensure!(replica.log().contains("kind=\"TooManyRequests\""), "{}", replica.log());
    Ok(())
}

/// The priority level of all workloads has no share left; Sheave's own FlowSchema gives the record of the lead another one.
fn all_but_the_lease_is_refused(ground: &Ground) -> Result<()> {
    let proxy = ground.proxy(Server::Second, "overload")?;
    let replica = ground.leader_behind(&proxy, "overload-2", &["--lease-seconds", "5"])?;
    let level = ground.api.get(&format!("{LEVELS}/leader-election"))?;
    let level = text(&level, "/metadata/uid");
    let of_lease = |request: &Request| request.is_of_lease() && request.done();
    ensure!(proxy.count(|request| of_lease(request) && request.level == level) > 0, "no request was of this level");
    let others: Vec<_> = proxy.requests().into_iter().filter(|one| of_lease(one) && one.level != level).collect();
    ensure!(others.is_empty(), "{others:?}");

    let terms = ground.terms()?;
    let jail = Jail::close_everything(ground, "hardship-rest")?;
    take_the_seat(ground, &proxy, &jail)?;
    proxy.end_connections();
    ground.create("waits")?;
    wait_for("lists to be refused", SOON, || Ok((pauses(&replica, "reads") > 0.0).then_some(())))?;
    let renewals = || proxy.count(|request| of_lease(request) && request.is_write());
    let before = renewals();
    // As many as two leases last.
    wait_for("renewals of the lead", Duration::from_secs(40), || Ok((renewals() >= before + 8).then_some(())))?;
    ensure!(replica.leads()? && ground.terms()? == terms, "the lead was lost:\n{}", replica.log());
    jail.open()?;
    wait_for("the watches to go on", WATCHES_GO_ON, || Ok((!ground.shown("waits")?.is_empty()).then_some(())))?;
    ground.wait_true()?;
    replica.terminate().map(drop)
}

/// Where there is no share one request is admitted at a time: this one, for a minute.
fn take_the_seat(ground: &Ground, proxy: &Proxy, jail: &Jail) -> Result<()> {
    let schema = format!("flow_schema=\"{}\"", jail.name);
    let taken = || {
        let executing =
            ground.counts(Server::Second)?.sum("apiserver_flowcontrol_current_executing_requests", &[&schema]);
        Ok((executing > 0.0).then_some(()))
    };
    // It takes the API server some moments to know.
    wait_for("the only seat to be taken", SOON, || {
        proxy.begin_request("POST", &format!("/apis/events.k8s.io/v1/namespaces/{}/events", super::NAMESPACE));
        Ok(wait_for("a request to be under way", Duration::from_secs(1), taken).ok())
    })
}

const REFUSED: &str = "sheave_controller_write_errors_total{kind=\"TooManyRequests\"}";

/// Pauses that the replica says it was asked for.
pub fn pauses(replica: &Replica, requests: &str) -> f64 {
    let requests = format!("requests=\"{requests}\"");
    let log = replica.log();
    log.lines().filter(|line| line.contains("asks for a pause") && line.contains(&requests)).count() as f64
}

/// A share of nothing for the controller's account.
struct Jail<'a> {
    ground: &'a Ground<'a>,
    name: &'static str,
}

impl<'a> Jail<'a> {
    /// Before all FlowSchemas of others.
    fn close(ground: &'a Ground, name: &'static str, rules: Value) -> Result<Self> {
        Self::close_at(ground, name, 2, rules)
    }

    /// Behind Sheave's own, before that of all ServiceAccounts.
    fn close_everything(ground: &'a Ground, name: &'static str) -> Result<Self> {
        let everything = json!({
            "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"],
        });
        Self::close_at(ground, name, 8000, json!({ "resourceRules": [everything] }))
    }

    fn close_at(ground: &'a Ground, name: &'static str, precedence: u16, mut rules: Value) -> Result<Self> {
        let level = json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration", "metadata": { "name": name },
            "spec": { "type": "Limited", "limited": {
                "nominalConcurrencyShares": 0, "lendablePercent": 0, "borrowingLimitPercent": 0, "limitResponse": { "type": "Reject" },
            } },
        });
        ground.api.create(LEVELS, &level)?;
        let account = json!({ "namespace": NAMESPACE, "name": "sheave-controller" });
        rules["subjects"] = json!([{ "kind": "ServiceAccount", "serviceAccount": account }]);
        let schema = json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": { "name": name },
            "spec": { "priorityLevelConfiguration": { "name": name }, "matchingPrecedence": precedence, "rules": [rules] },
        });
        ground.api.create(SCHEMAS, &schema)?;
        Ok(Self { ground, name })
    }

    /// Of each kind of requests as many as are under way at a time were sent for each pause that was asked for, and no more.
    fn bounded(&self, replica: &Replica) -> Result<()> {
        let most: f64 = AT_A_TIME.iter().map(|(kind, at_a_time)| (pauses(replica, kind) + 1.0) * at_a_time).sum();
        let refused = self.refused(&self.ground.counts(Server::Second)?);
        eprintln!("  {}: {refused} requests refused, {most} expected at most", self.name);
        ensure!(refused > 0.0 && refused <= most, "{refused} requests were refused, {most} at most are right");
        Ok(())
    }

    fn refused(&self, counts: &Counts) -> f64 {
        let schema = format!("flow_schema=\"{}\"", self.name);
        counts.sum("apiserver_flowcontrol_rejected_requests_total", &[&schema])
    }

    /// When it was opened.
    fn open(self) -> Result<Instant> {
        self.ground.api.delete(&format!("{SCHEMAS}/{}", self.name))?;
        self.ground.api.delete(&format!("{LEVELS}/{}", self.name))?;
        Ok(Instant::now())
    }
}
