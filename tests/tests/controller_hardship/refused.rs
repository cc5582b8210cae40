//! 429 for the record of the lead, and for lists and watches: who cannot renew the lead stops in time, so that no two lead; where all are
//! refused none leads, and one does again when that is over; and what is asked meanwhile is what the answers allow.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sheave_tests::lab::wait_for;

use super::ground::{Ground, SOON, Server};
use super::history::History;
use super::overload::{AT_A_TIME, WATCHES_GO_ON, pauses};
use super::proxy::{Proxy, RETRY_AFTER, Request, Verdict};
use super::replica::Replica;

const FLAGS: [&str; 2] = ["--lease-seconds", "5"];
const LISTED: [&str; 3] = ["services", "virtualips", "addresspools"];

pub fn chapter(ground: &Ground) -> Result<()> {
    let history = History::start(ground.lab)?;
    let proxies = [ground.proxy(Server::First, "refused-1")?, ground.proxy(Server::Second, "refused-2")?];
    let first = ground.leader_behind(&proxies[0], "refused-1", &FLAGS)?;
    let second = ground.replica_behind(&proxies[1], "refused-2", &FLAGS)?;
    ground.create("before")?;
    let address = ground.wait_shown("before")?;
    ground.create("gone")?;
    the_leader_is_refused(ground, &proxies, [&first, &second])?;
    all_are_refused(ground, &proxies, [&first, &second])?;
    ensure!(ground.shown("before")? == address, "an address moved");
    ground.end(history)?;
    first.terminate()?;
    second.terminate().map(drop)
}

/// One API server is overloaded, and refuses nothing but the record.
fn the_leader_is_refused(ground: &Ground, proxies: &[Proxy; 2], [first, second]: [&Replica; 2]) -> Result<()> {
    let terms = ground.terms()?;
    proxies[0].rule(|request| if request.is_of_lease() { Verdict::Refuse(429) } else { Verdict::Pass });
    let (mut created, some) = (0, 10);
    let name = |number: usize| format!("handed-{number}");
    // There is something to write all the time, for whoever leads.
    wait_for("the other replica to lead", SOON, || {
        ground.create(&name(created))?;
        if created >= some {
            ground.delete(&name(created - some))?;
        }
        created += 1;
        Ok(second.leads()?.then_some(()))
    })?;
    let left = created.saturating_sub(some)..created;
    ensure!(!first.leads()?, "both lead:\n{}", first.log());
    left.clone().try_for_each(|number| ground.wait_shown(&name(number)).map(drop))?;
    let taken = proxies[1].requests();
    let taken = taken.iter().find(|request| request.is_of_lease() && request.is_write() && request.done());
    let taken = taken.context("the other one leads, and never wrote the record")?.at;
    let writes = |request: &&Request| request.is_write() && LISTED.iter().any(|kind| request.path.contains(kind));
    let all = proxies[0].requests();
    let late: Vec<_> = all.iter().filter(writes).filter(|request| request.at > taken).collect();
    ensure!(late.is_empty() && all.iter().any(|request| writes(&request)), "written after the lead was lost: {late:?}");
    ensure!(ground.terms()? == terms + 1, "the lead went to and fro");
    bounded(&proxies[0], first)?;
    proxies[0].pass();
    left.clone().try_for_each(|number| ground.delete(&name(number)))?;
    ground.wait_true()
}

/// All API servers are overloaded, and refuse everything; watches end as well.
fn all_are_refused(ground: &Ground, proxies: &[Proxy; 2], replicas: [&Replica; 2]) -> Result<()> {
    for proxy in proxies {
        proxy.rule(|_| Verdict::Refuse(429));
        proxy.end_connections();
    }
    let nobody = || Ok::<_, anyhow::Error>(!replicas[0].leads()? && !replicas[1].leads()?);
    wait_for("the lead to end", SOON, || Ok(nobody()?.then_some(())))?;
    (0..4).try_for_each(|number| ground.create(&format!("unseen-{number}")))?;
    ground.delete("gone")?;
    let begun = replicas.map(|replica| pauses(replica, "reads"));
    wait_for("several pauses", Duration::from_secs(60), || {
        let more = replicas.iter().zip(begun).all(|(replica, begun)| pauses(replica, "reads") >= begun + 3.0);
        Ok(more.then_some(()))
    })?;
    ensure!(nobody()?, "one leads although the record can be written by none");
    proxies.iter().zip(replicas).try_for_each(|(proxy, replica)| bounded(proxy, replica))?;

    let since = proxies.each_ref().map(|proxy| proxy.requests().len());
    let over = Instant::now();
    proxies.iter().for_each(Proxy::pass);
    (0..4).try_for_each(|number| ground.wait_shown(&format!("unseen-{number}")).map(drop))?;
    eprintln!("  everything refused: all served {:?} after the end", over.elapsed());
    ground.wait_true()?;
    // A leader reads all at once; the watches go on when their own pauses are over.
    ground.create("after")?;
    wait_for("the watches to go on", WATCHES_GO_ON, || Ok((!ground.shown("after")?.is_empty()).then_some(())))?;
    ensure!(replicas[0].leads()? != replicas[1].leads()?, "both lead, or none");
    for (proxy, since) in proxies.iter().zip(since) {
        for kind in LISTED {
            let lists =
                proxy.requests()[since..].iter().filter(|request| request.lists(kind) && request.done()).count();
            // A watch that begins anew, a new leader that reads everything, and a doubt.
            ensure!(lists <= 3, "{kind} were listed {lists} times");
        }
    }
    Ok(())
}

/// Of each kind of requests as many as are under way at a time were refused for each pause, and no more.
fn bounded(proxy: &Proxy, replica: &Replica) -> Result<()> {
    let refused = proxy.count(Request::refused) as f64;
    let most: f64 = AT_A_TIME.iter().map(|(kind, at_a_time)| (pauses(replica, kind) + 1.0) * at_a_time).sum();
    eprintln!("  {refused} requests refused with pauses of {RETRY_AFTER} s, {most} expected at most");
    ensure!(refused > 0.0 && refused <= most, "{refused} requests were refused, {most} at most are right");
    Ok(())
}
