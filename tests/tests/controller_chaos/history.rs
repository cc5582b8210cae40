//! Every revision of the Services and of the ledger, by two watches, in the order of the store: `resourceVersion` is one counter for both
//! (etcd's revision), so what stood beside what at any moment is known exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sheave_tests::lab::{Lab, wait_for};
use sheave_tests::scenario::api::{Api, text};

use super::{LEDGER, SERVICES};

/// One object at one revision.
struct Seen {
    revision: u64,
    state: State,
}

enum State {
    Service {
        uid: String,
        name: String,
        shown: BTreeSet<String>,
        key: Option<String>,
        ports: BTreeSet<u64>,
        leaving: bool,
    },
    ServiceGone {
        uid: String,
    },
    /// An entry of the ledger: the uids of its Services.
    Granted {
        address: String,
        services: BTreeSet<String>,
    },
    Free {
        address: String,
    },
}

pub struct History {
    watches: Vec<Watch>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

struct Watch(Child);

impl Drop for Watch {
    fn drop(&mut self) {
        // Both fail when it has ended, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Report {
    revisions: usize,
    grants: usize,
    /// The most entries of the ledger at one time.
    most: usize,
    pub violations: Vec<String>,
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { revisions, grants, most, violations } = self;
        write!(f, "{revisions} revisions, {grants} grants, {most} addresses at most; {} violations", violations.len())
    }
}

impl History {
    pub fn start(lab: &Lab) -> Result<Self> {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let watch = |path: &str| -> Result<Watch> {
            let mut command = lab.kubectl_command();
            // Longer than any run; the API server ends watches after half an hour at the earliest.
            command.args(["get", "--raw", &format!("{path}?watch=true&resourceVersion=0&timeoutSeconds=7200")]);
            let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("kubectl")?;
            let lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
            let seen = seen.clone();
            thread::spawn(move || {
                for line in lines.map_while(Result::ok) {
                    let event = parse(&line).unwrap_or_else(|error| panic!("{error:#}: {line}"));
                    seen.lock().expect("no thread panics with it").push(event);
                }
            });
            Ok(Watch(child))
        };
        Ok(Self { watches: vec![watch(SERVICES)?, watch(LEDGER)?], seen })
    }

    /// Judges what happened until now.
    pub fn end(mut self, api: &Api) -> Result<Report> {
        for watch in &mut self.watches {
            ensure!(watch.0.try_wait()?.is_none(), "a watch ended before the run did");
        }
        // Nothing is left of either kind: the watches are complete when they show that.
        ensure!(api.list(SERVICES)?.is_empty() && api.list(LEDGER)?.is_empty(), "objects are left");
        wait_for("the watches to show the last deletions", Duration::from_secs(20), || {
            let (services, ledger) = replay(&mut self.seen.lock().expect("no thread panics with it"), |_, _, _| ());
            Ok((services.is_empty() && ledger.is_empty()).then_some(()))
        })?;
        let mut seen = self.seen.lock().expect("no thread panics with it");
        Ok(judge(&mut seen))
    }
}

type Services = BTreeMap<String, Shown>;
type Ledger = BTreeMap<String, BTreeSet<String>>;

struct Shown {
    name: String,
    addresses: BTreeSet<String>,
    key: Option<String>,
    ports: BTreeSet<u64>,
    leaving: bool,
}

/// Plays all revisions in order; `look` is called after each.
fn replay(seen: &mut [Seen], mut look: impl FnMut(&Seen, &Services, &Ledger)) -> (Services, Ledger) {
    seen.sort_by_key(|seen| seen.revision);
    let (mut services, mut ledger) = (Services::new(), Ledger::new());
    for event in seen.iter() {
        match &event.state {
            State::Service { uid, name, shown, key, ports, leaving } => {
                let (name, addresses) = (name.clone(), shown.clone());
                let shown = Shown { name, addresses, key: key.clone(), ports: ports.clone(), leaving: *leaving };
                services.insert(uid.clone(), shown);
            }
            State::ServiceGone { uid } => drop(services.remove(uid)),
            State::Granted { address, services } => drop(ledger.insert(address.clone(), services.clone())),
            State::Free { address } => drop(ledger.remove(address)),
        }
        look(event, &services, &ledger);
    }
    (services, ledger)
}

fn judge(seen: &mut [Seen]) -> Report {
    let mut report = Report { revisions: seen.len(), grants: 0, most: 0, violations: vec![] };
    let mut granted: BTreeSet<(String, String)> = BTreeSet::new();
    replay(seen, |event, services, ledger| {
        report.most = report.most.max(ledger.len());
        let touched: Vec<String> = match &event.state {
            State::Service { shown, .. } => shown.iter().cloned().collect(),
            State::ServiceGone { .. } => vec![],
            State::Granted { address, services } => {
                for uid in services {
                    report.grants += usize::from(granted.insert((address.clone(), uid.clone())));
                }
                vec![address.clone()]
            }
            State::Free { address } => {
                granted.retain(|(known, _)| known != address);
                vec![address.clone()]
            }
        };
        for address in touched {
            for wrong in wrong(&address, services, ledger) {
                report.violations.push(format!("revision {}: {wrong}", event.revision));
            }
        }
    });
    report
}

/// What must never stand beside each other.
fn wrong(address: &str, services: &Services, ledger: &Ledger) -> Vec<String> {
    let holders: Vec<(&String, &Shown)> =
        services.iter().filter(|(_, shown)| shown.addresses.contains(address)).collect();
    let mut wrong = vec![];
    for (index, (uid, shown)) in holders.iter().enumerate() {
        for (_, other) in &holders[..index] {
            if shown.key.is_none() || shown.key != other.key || !shown.ports.is_disjoint(&other.ports) {
                wrong.push(format!("{address} is shown by {} and by {}", shown.name, other.name));
            }
        }
        let granted = ledger.get(address).is_some_and(|services| services.contains(*uid));
        if !granted && !shown.leaving {
            wrong.push(format!("{address} is shown by {} and not granted to it", shown.name));
        }
    }
    wrong
}

fn parse(line: &str) -> Result<Seen> {
    let event: Value = serde_json::from_str(line)?;
    let (object, gone) = (&event["object"], event["type"] == "DELETED");
    ensure!(gone || event["type"] == "ADDED" || event["type"] == "MODIFIED", "no change of an object");
    let revision = text(object, "/metadata/resourceVersion").parse().context("resourceVersion")?;
    let all = |pointer: &str| object.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let state = if object["kind"] == "VirtualIP" {
        let address = text(object, "/spec/address").to_owned();
        let services = all("/spec/services").map(|service| text(service, "/uid").to_owned()).collect();
        if gone { State::Free { address } } else { State::Granted { address, services } }
    } else {
        let uid = text(object, "/metadata/uid").to_owned();
        let key = object["metadata"]["annotations"]["sheave.dev/allow-shared-ip"].as_str().map(str::to_owned);
        let service = State::Service {
            uid: uid.clone(),
            name: text(object, "/metadata/name").to_owned(),
            shown: all("/status/loadBalancer/ingress").map(|one| text(one, "/ip").to_owned()).collect(),
            key,
            ports: all("/spec/ports").filter_map(|port| port["port"].as_u64()).collect(),
            leaving: object["metadata"]["deletionTimestamp"].is_string(),
        };
        if gone { State::ServiceGone { uid } } else { service }
    };
    Ok(Seen { revision, state })
}
