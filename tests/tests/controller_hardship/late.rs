//! Writes that arrive when another leader has decided otherwise: the leader is stopped as soon as a certain request of its own has left it,
//! and the request is held until another replica leads and has decided. Then it arrives: it must fail, and the leader that goes on must lead
//! again without harm.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use sheave_tests::lab::wait_for;

use super::ground::{Ground, SOON, Server};
use super::history::History;
use super::proxy::{Proxy, Request, Verdict};
use super::replica::Replica;
use super::{POOLS, SERVICES};

const FLAGS: [&str; 2] = ["--lease-seconds", "2"];
const ADDRESSES: &str = "sheave.dev/addresses";
const SHARING: &str = "sheave.dev/allow-shared-ip";

/// One decision, and what becomes of it.
struct Case {
    name: &'static str,
    /// What there is before.
    given: fn(&Ground) -> Result<()>,
    /// What the first leader decides by.
    change: fn(&Ground) -> Result<()>,
    /// The request that it decides on.
    write: fn(&Request) -> bool,
    /// What happens before another one leads.
    at_once: fn(&Ground) -> Result<()>,
    /// What happens, and is decided, while it is stopped.
    meanwhile: fn(&Ground) -> Result<()>,
}

const CASES: [Case; 7] = [
    Case {
        name: "the address is granted to another Service",
        given: |_| Ok(()),
        change: |ground| ground.create_with("late-a", &wants(30)),
        write: |request| request.method == "POST" && is_about(request, "/virtualips") && names(request, 30),
        at_once: |_| Ok(()),
        meanwhile: |ground| {
            ground.wait_shown("late-a")?;
            replace(ground, "late-a", "late-b", 30)
        },
    },
    Case {
        name: "the address that is to be released is granted to another Service",
        given: |ground| shown(ground, "late-a", &wants(31)),
        change: |ground| ground.delete("late-a"),
        write: |request| request.method == "DELETE" && is_about(request, "/virtualips/198.18.0.31"),
        at_once: |_| Ok(()),
        meanwhile: |ground| {
            wait_gone(ground, "late-a")?;
            shown(ground, "late-b", &wants(31))
        },
    },
    Case {
        name: "the address that is to be released is to be kept",
        given: |ground| shown(ground, "late-a", &wants(32)),
        change: |ground| set(ground, "late-a", &json!({ "type": "ClusterIP", "allocateLoadBalancerNodePorts": null })),
        write: |request| request.method == "DELETE" && is_about(request, "/virtualips/198.18.0.32"),
        at_once: |ground| {
            set(ground, "late-a", &json!({ "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false }))
        },
        meanwhile: |ground| ground.wait_shown("late-a").map(drop),
    },
    Case {
        name: "the Service that is to show the address shows another one",
        given: |_| Ok(()),
        change: |ground| ground.create_with("late-a", &wants(33)),
        write: |request| {
            is_about(request, "/services/late-a/status") && request.body.contains("\"ip\":\"198.18.0.33\"")
        },
        at_once: |_| Ok(()),
        meanwhile: |ground| {
            let path = format!("{SERVICES}/late-a");
            ground.api.patch(&path, &json!({ "metadata": { "annotations": wants(34) } }))?;
            wait_shows(ground, "late-a", 34)?;
            shown(ground, "late-b", &wants(33))
        },
    },
    Case {
        name: "the Service that is to have the address is another one of that name",
        given: |_| Ok(()),
        change: |ground| ground.create_with("late-a", &wants(35)),
        write: |request| is_about(request, "/services/late-a/status") && request.body.contains("finalizers"),
        at_once: |_| Ok(()),
        meanwhile: |ground| {
            replace(ground, "late-a", "late-b", 35)?;
            shown(ground, "late-a", &wants(36))
        },
    },
    Case {
        name: "another Service shares the address",
        given: |ground| shown(ground, "late-a", &shares(37)),
        change: |ground| create_at(ground, "late-b", 81),
        write: |request| is_about(request, "/virtualips/198.18.0.37") && request.body.contains("late-b"),
        at_once: |_| Ok(()),
        meanwhile: |ground| {
            ground.delete("late-b")?;
            wait_gone(ground, "late-b")?;
            create_at(ground, "late-c", 81)?;
            wait_shows(ground, "late-c", 37)
        },
    },
    Case {
        name: "the pool has other counts",
        given: |_| Ok(()),
        change: |ground| ground.create_with("late-a", &wants(38)),
        write: |request| is_about(request, "/addresspools/hardship/status"),
        at_once: |_| Ok(()),
        meanwhile: |ground| {
            shown(ground, "late-b", &wants(39))?;
            wait_for("the pool to count both", SOON, || {
                let pool = ground.api.get(&format!("{POOLS}/hardship"))?;
                Ok((pool["status"]["used"] == 2).then_some(()))
            })
        },
    },
];

pub fn chapter(ground: &Ground) -> Result<()> {
    let history = History::start(ground.lab)?;
    let proxy = ground.proxy(Server::Second, "late")?;
    for (number, case) in CASES.iter().enumerate() {
        arrives(ground, &proxy, number, case).context(case.name)?;
    }
    let _last = ground.replica(Server::First, "late-last", &FLAGS)?;
    ground.end(history)
}

fn arrives(ground: &Ground, proxy: &Proxy, number: usize, case: &Case) -> Result<()> {
    let first = ground.leader_behind(proxy, &format!("late-{number}-1"), &FLAGS)?;
    (case.given)(ground)?;
    ground.wait_true()?;
    let second = ground.replica(Server::First, &format!("late-{number}-2"), &FLAGS)?;
    let before = proxy.requests().len();
    let (pid, write) = (first.pid()?, case.write);
    // Also what it sends again: it may have counted on an answer already when it is stopped.
    proxy.rule(move |request| {
        if !write(request) {
            return Verdict::Pass;
        }
        // Without it there is no other leader, and the test says so.
        let _ = kill(pid, Signal::SIGSTOP);
        Verdict::Hold
    });
    (case.change)(ground)?;
    proxy.wait_held(SOON).with_context(|| first.log())?;
    (case.at_once)(ground)?;
    wait_for("the other replica to lead", SOON, || Ok(second.leads()?.then_some(())))?;
    (case.meanwhile)(ground).with_context(|| second.log())?;
    ground.wait_true()?;

    let decided = ground.ledger()?;
    proxy.pass();
    let is_late = |request: &&Request| write(request);
    let late = || proxy.requests().split_off(before).iter().filter(is_late).cloned().collect::<Vec<_>>();
    let late = wait_for("the API server to answer what was late", SOON, || {
        Ok(Some(late()).filter(|late| late.iter().all(|request| request.answer.is_some())))
    })?;
    ground.wait_true()?;
    let now = ground.ledger()?;
    let answers: Vec<_> = late.iter().map(|request| request.answer.map_or(0, |(status, _)| status)).collect();
    eprintln!("  {}: {answers:?}", case.name);
    ensure!(!late.is_empty() && answers.iter().all(|status| [404, 409].contains(status)), "{late:?}");
    ensure!(now == decided, "the ledger was {decided:?} and is {now:?}");
    leads_again(ground, first, second)
}

/// What the first replica takes its write for must not do harm when it leads again.
fn leads_again(ground: &Ground, first: Replica, second: Replica) -> Result<()> {
    let decided = ground.ledger()?;
    first.signal(Signal::SIGCONT)?;
    wait_for("the first replica to know that it does not lead", SOON, || Ok((!first.leads()?).then_some(())))?;
    ensure!(second.leads()?, "the lead was lost:\n{}", second.log());
    second.terminate()?;
    wait_for("the first replica to lead again", SOON, || Ok(first.leads()?.then_some(())))?;
    ground.create("late-end")?;
    ground.wait_shown("late-end").with_context(|| first.log())?;
    ground.wait_true()?;
    let now = ground.ledger()?;
    ensure!(decided.iter().all(|entry| now.contains(entry)), "the ledger was {decided:?} and is {now:?}");
    ground.clear()?;
    first.terminate().map(drop)
}

fn is_about(request: &Request, what: &str) -> bool {
    request.is_write() && request.path.ends_with(what)
}

fn address(last: u8) -> String {
    format!("198.18.0.{last}")
}

fn names(request: &Request, last: u8) -> bool {
    request.body.contains(&format!("\"{}\"", address(last)))
}

fn wants(last: u8) -> Value {
    json!({ ADDRESSES: address(last) })
}

fn shares(last: u8) -> Value {
    json!({ ADDRESSES: address(last), SHARING: "late" })
}

fn set(ground: &Ground, name: &str, spec: &Value) -> Result<()> {
    ground.api.patch(&format!("{SERVICES}/{name}"), &json!({ "spec": spec })).map(drop)
}

fn shown(ground: &Ground, name: &str, annotations: &Value) -> Result<()> {
    ground.create_with(name, annotations)?;
    ground.wait_shown(name).map(drop)
}

fn wait_shows(ground: &Ground, name: &str, last: u8) -> Result<()> {
    wait_for(&format!("{name} to show .{last}"), SOON, || Ok((ground.shown(name)? == address(last)).then_some(())))
}

fn wait_gone(ground: &Ground, name: &str) -> Result<()> {
    let path = format!("{SERVICES}/{name}");
    wait_for(&format!("{name} to be gone"), SOON, || Ok(ground.api.find(&path)?.is_none().then_some(())))
}

/// One goes, and another one has its address.
fn replace(ground: &Ground, name: &str, other: &str, last: u8) -> Result<()> {
    ground.delete(name)?;
    wait_gone(ground, name)?;
    shown(ground, other, &wants(last))
}

/// It shares .37 by another port than that of `create_with`.
fn create_at(ground: &Ground, name: &str, port: u16) -> Result<()> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "annotations": shares(37) },
        "spec": { "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{ "port": port }] },
    });
    ground.api.create(SERVICES, &service).map(drop)
}
