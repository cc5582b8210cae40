//! 429: API Priority and Fairness gives the controller's account no share. What is created meanwhile is served when that is over; the
//! refusals have a name; and no more is asked than the API server has said.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sheave_tests::lab::wait_for;

use super::ground::{Counts, Ground, SOON, Server};
use super::history::History;
use super::replica::{NAMESPACE, Replica};

const LEVELS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations";
const SCHEMAS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";
/// Requests that a replica has under way at most: writes, Events, lists and watches, the Lease, and what is asked now and then.
const AT_A_TIME: [(&str, f64); 4] = [("writes", 8.0), ("events", 4.0), ("reads", 16.0), ("lease", 2.0)];

pub fn chapter(ground: &Ground) -> Result<()> {
    let history = History::start(ground.lab)?;
    let replica = ground.replica(Server::Second, "overload-1", &["--lease-seconds", "5"])?;
    ground.create("before")?;
    let address = ground.wait_shown("before")?;
    writes_are_refused(ground, &replica)?;
    ensure!(ground.shown("before")? == address, "an address moved");
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

const REFUSED: &str = "sheave_controller_write_errors_total{kind=\"TooManyRequests\"}";

/// Pauses that the replica says it was asked for.
fn pauses(replica: &Replica, requests: &str) -> f64 {
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
    fn close(ground: &'a Ground, name: &'static str, mut rules: Value) -> Result<Self> {
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
            "spec": { "priorityLevelConfiguration": { "name": name }, "matchingPrecedence": 2, "rules": [rules] },
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
