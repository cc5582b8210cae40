//! What is made happen, the same for all that are compared, and what is noted of it.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::Value;
use sheave_tests::endpoint::faults::{self, Faulted};
use sheave_tests::endpoint::judge::{self, Promise};
use sheave_tests::endpoint::{Clients, Seen, cold, upkeep};
use sheave_tests::lab::ha::{Ha, Part};

use super::{Arguments, Column};

/// One fault, once.
#[derive(Serialize)]
pub struct Measured {
    pub fault: &'static str,
    pub figures: Vec<Figure>,
    pub promises: Vec<Promise>,
    /// Everything that was seen.
    pub seen: Value,
}

/// A count out of all, or a time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    pub name: &'static str,
    pub value: f64,
    /// `None`: milliseconds or megabytes, the name says which.
    pub of: Option<f64>,
}

/// What is noted of a fault.
type Told = (Vec<Figure>, Vec<Promise>, Value);

pub struct Fault {
    pub name: &'static str,
    make: fn(&Ha, &mut Clients) -> Result<Told>,
}

pub const FAULTS: [Fault; 10] = [
    Fault { name: "API server killed", make: killed },
    Fault { name: "API server frozen", make: frozen },
    Fault { name: "etcd member killed", make: etcd_killed },
    Fault { name: "owner stopped in order", make: owner_stopped },
    Fault { name: "owner loses power", make: owner_lost },
    Fault { name: "owner loses power, one of three API servers left", make: owner_lost_with_one_left },
    Fault { name: "all API servers killed, 10 s", make: all_down },
    Fault { name: "rolling restart of all API servers", make: rolled },
    Fault { name: "etcd stands still on all nodes, 10 s", make: etcd_stopped },
    Fault { name: "all certificates renewed", make: renewed },
];

/// From a cluster of which nothing runs. An error: nothing more can be measured.
pub fn all(arguments: &Arguments, ha: &Ha, column: &mut Column) -> Result<()> {
    let refused = cold::refused(ha)?;
    let figures =
        vec![counted("refused", refused.refused, refused.made), time("slowest answer, ms", refused.longest_ms)];
    let promises = vec![judge::refused_at_once(&refused)];
    let seen = serde_json::to_value(&refused)?;
    column.measured.push(Measured { fault: "no API server has started yet", figures, promises, seen });
    faults::start_all(ha)?;
    let mut clients = Clients::start(ha, arguments.watches.into())?;
    for fault in FAULTS.iter().filter(|fault| fault.name.contains(&arguments.only)) {
        for number in 1..=arguments.times {
            eprintln!("  {} {number}/{}", fault.name, arguments.times);
            match (fault.make)(ha, &mut clients) {
                Ok((figures, promises, seen)) => {
                    column.measured.push(Measured { fault: fault.name, figures, promises, seen });
                }
                Err(error) => {
                    column.failures.push((fault.name.to_owned(), format!("{error:#}")));
                    whole_again(ha, &mut clients).with_context(|| format!("after {:?}", fault.name))?;
                }
            }
        }
    }
    let memory = ha.nodes().iter().map(|node| ha.memory(node)).collect::<Result<Vec<_>>>()?;
    let most = memory.into_iter().max().context("a node")?;
    let (own, logged) = judge::logged_with_address(ha)?;
    let figures = vec![
        time("memory on a node, MB", most as f64 / 1e6),
        counted("requests in audit logs with the client's address", own, logged),
    ];
    column.measured.push(Measured {
        fault: "at the end",
        figures,
        promises: vec![judge::client_seen(ha)?],
        seen: Value::Null,
    });
    Ok(())
}

/// What a fault that was not measured to its end has left: nodes without power, API servers that are stopped or frozen.
fn whole_again(ha: &Ha, clients: &mut Clients) -> Result<()> {
    for node in ha.nodes() {
        if !ha.has_power(&node)? {
            ha.power_on(&node)?;
            clients.start_on(&node)?;
        }
        if ha.process(&node, Part::ApiServer)?.is_some() {
            ha.signal(&node, Part::ApiServer, Signal::SIGCONT)?;
        }
    }
    faults::start_all(ha)?;
    clients.fill()
}

fn killed(ha: &Ha, clients: &mut Clients) -> Result<Told> {
    let other = another(ha)?;
    let faulted = faults::kill_api_server(ha, clients, &other)?;
    told(&faulted, judge::killed(&faulted))
}

/// Of the owner.
fn frozen(ha: &Ha, clients: &mut Clients) -> Result<Told> {
    let owner = ha.owner()?.context("an owner")?;
    let faulted = faults::stop_api_server(ha, clients, &owner)?;
    told(&faulted, judge::frozen(&faulted))
}

fn etcd_killed(ha: &Ha, clients: &mut Clients) -> Result<Told> {
    let other = another(ha)?;
    let faulted = faults::kill_etcd(ha, clients, &other)?;
    let (open, alive) = faulted.seen.watches.all();
    let mut figures = fresh(&faulted.seen);
    figures.push(counted("watches that stay open", alive, open));
    Ok((figures, judge::without_etcd(&faulted), serde_json::to_value(&faulted)?))
}

fn owner_stopped(ha: &Ha, clients: &mut Clients) -> Result<Told> {
    let faulted = faults::stop_owner(ha, clients)?;
    told(&faulted, judge::owner_stopped(&faulted))
}

fn owner_lost(ha: &Ha, clients: &mut Clients) -> Result<Told> {
    let faulted = faults::power_off_owner(ha, clients)?;
    told(&faulted, judge::owner_lost(&faulted))
}

fn owner_lost_with_one_left(ha: &Ha, clients: &mut Clients) -> Result<Told> {
    let faulted = faults::power_off_owner_with_one_left(ha, clients)?;
    told(&faulted, judge::owner_lost(&faulted))
}

fn all_down(ha: &Ha, clients: &mut Clients) -> Result<Told> {
    let (down, ()) = faults::kill_all_api_servers(ha, clients, Duration::from_secs(10), || Ok(()))?;
    let fresh = &down.seen.fresh;
    let refused = fresh.failed.get("refused").copied().unwrap_or_default();
    let figures = vec![
        counted("refused", refused, fresh.made),
        counted("owners", down.owners.len(), 1),
        time("served after the first API server was ready, ms", down.back_ms),
    ];
    Ok((figures, judge::all_down(&down), serde_json::to_value(&down)?))
}

fn rolled(ha: &Ha, clients: &mut Clients) -> Result<Told> {
    let seen = faults::rolling_restart(ha, clients)?;
    Ok((fresh(&seen), judge::rolled(&seen), serde_json::to_value(&seen)?))
}

fn etcd_stopped(ha: &Ha, clients: &mut Clients) -> Result<Told> {
    let stopped = upkeep::stop_all_etcd(ha, clients, Duration::from_secs(10))?;
    let (open, alive) = stopped.seen.watches.all();
    let mut figures = fresh(&stopped.seen);
    figures.push(counted("watches that stay open", alive, open));
    figures.push(counted("owners", stopped.owners.len(), 1));
    Ok((figures, judge::etcd_stopped(&stopped), serde_json::to_value(&stopped)?))
}

fn renewed(ha: &Ha, clients: &mut Clients) -> Result<Told> {
    let renewed = upkeep::renew_certificates(ha, clients)?;
    let (open, awake) = renewed.seen.watches.except(&[]);
    let mut figures = fresh(&renewed.seen);
    figures.push(counted("watches on living API servers, open and with events", awake, open));
    Ok((figures, judge::renewed(&renewed), serde_json::to_value(&renewed)?))
}

/// A node that does not have the address.
fn another(ha: &Ha) -> Result<String> {
    let owner = ha.owner()?.context("an owner")?;
    ha.nodes().into_iter().find(|node| *node != owner).context("another node")
}

fn told(faulted: &Faulted, promises: Vec<Promise>) -> Result<Told> {
    let dead: Vec<&str> = faulted.dead.iter().map(String::as_str).collect();
    let (open, awake) = faulted.seen.watches.except(&dead);
    let mut figures = fresh(&faulted.seen);
    figures.push(counted("watches on living API servers, open and with events", awake, open));
    Ok((figures, promises, serde_json::to_value(faulted)?))
}

fn fresh(seen: &Seen) -> Vec<Figure> {
    let window = &seen.fresh;
    let nodes = seen.nodes.values();
    let (failed, made) = nodes.fold((0, 0), |(failed, made), one| (failed + one.failures(), made + one.made));
    vec![
        counted("new connections that failed", window.failures(), window.made),
        time("the last of them began after, ms", window.last_failed_ms.unwrap_or_default()),
        time("longest handshake, ms", window.longest_ms),
        time("nothing answered for, ms", window.silence_ms),
        counted("new connections of clients on the nodes that failed", failed, made),
        counted("kubectl get failed", seen.kubectl.failed.len(), seen.kubectl.started),
    ]
}

fn counted(name: &'static str, value: usize, of: usize) -> Figure {
    Figure { name, value: value as f64, of: Some(of as f64) }
}

fn time(name: &'static str, value: f64) -> Figure {
    Figure { name, value, of: None }
}
