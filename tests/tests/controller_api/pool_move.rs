//! `sheave pool move`: nothing moves without `--yes`, and what cannot move stays and says why.

use anyhow::{Context, Result, ensure};
use sheave_tests::lab::wait_for;

use super::command::{Said, refused, sheave};
use super::objects::{Objects, SOON};

/// Of `here` and of `there`, which give addresses to those that name them, and of a Service that names neither.
const HERE: &str = "addresses: ['192.168.77.230 - 192.168.77.233'], priority: 1";
const THERE: &str = "addresses: ['192.168.77.235 - 192.168.77.236'], autoAssign: false";

pub fn chapters(objects: &Objects) -> Result<()> {
    refused(objects, &["pool", "move", "here", "there"], "there is no AddressPool 'there'")?;
    objects.pool_with("here", HERE)?;
    objects.pool_with("there", THERE)?;
    with_consent(objects).context("with consent")?;
    what_cannot_move(objects).context("what cannot move")?;
    for service in ["first", "second", "third", "named"] {
        objects.delete("service", service)?;
    }
    objects.delete("addresspool", "here")?;
    objects.delete("addresspool", "there")?;
    objects.wait_ledger(&["192.168.77.200"])
}

fn with_consent(objects: &Objects) -> Result<()> {
    for (service, address) in [("first", "192.168.77.230"), ("second", "192.168.77.231"), ("third", "192.168.77.232")] {
        objects.service(service, "", "")?;
        objects.wait_shown(service, address)?;
    }
    let asked = said(objects, &["pool", "move", "here", "there"], 0)?;
    ensure!(asked.out.contains("192.168.77.230 (default/first) would move to pool 'there'"), "{asked:?}");
    ensure!(asked.out.contains("pool 'there' has 2 IPv4 addresses left for 3"), "{asked:?}");
    ensure!(asked.out.contains("nothing was changed; --yes does it"), "{asked:?}");
    objects.wait_ledger(&["192.168.77.200", "192.168.77.230", "192.168.77.231", "192.168.77.232"])?;

    let one = said(objects, &["pool", "move", "here", "there", "--service", "default/second", "--yes"], 0)?;
    ensure!(one.out == "default/second: 192.168.77.231 is 192.168.77.235 now\n", "{one:?}");
    objects.wait_shown("second", "192.168.77.235")?;
    objects.wait_shown("first", "192.168.77.230")?;
    objects.wait_ledger(&["192.168.77.200", "192.168.77.230", "192.168.77.232", "192.168.77.235"])?;
    let (_, reason, message) = objects.condition("second")?;
    ensure!((reason.as_str(), message.as_str()) == ("AddressAllocated", "192.168.77.235 from pool 'there'"));
    objects.wait_event("second", "Normal", "AddressAllocated")?;
    let again = said(objects, &["pool", "move", "here", "there", "--service", "default/second"], 2)?;
    ensure!(again.error.contains("default/second has no address of pool 'here'"), "{again:?}");
    Ok(())
}

/// One has room, one has not and moves later or not at all, one names its address.
fn what_cannot_move(objects: &Objects) -> Result<()> {
    objects.service("named", "sheave.dev/addresses: 192.168.77.233", "")?;
    objects.wait_shown("named", "192.168.77.233")?;
    let rest = said(objects, &["pool", "move", "here", "there", "--yes"], 1)?;
    ensure!(rest.out.contains("default/first: 192.168.77.230 is 192.168.77.236 now"), "{rest:?}");
    let full = "192.168.77.232 (default/third) has not moved: PoolExhausted (";
    ensure!(rest.out.contains(full) && rest.out.contains("192.168.77.232 stays)"), "{rest:?}");
    ensure!(rest.out.contains("AddressAmbiguous (") && rest.out.contains("names address 192.168.77.233"), "{rest:?}");
    ensure!(rest.out.contains("sheave pool move here --undo"), "{rest:?}");
    objects.wait_shown("third", "192.168.77.232")?;
    objects.wait_shown("named", "192.168.77.233")?;

    objects.delete("service", "second")?;
    objects.wait_shown("third", "192.168.77.235").context("there is room now")?;
    objects.service("second", "", "")?;
    objects.wait_shown("second", "192.168.77.230").context("the pool that was left has its addresses again")?;
    let undone = said(objects, &["pool", "move", "here", "--undo"], 0)?;
    ensure!(undone.out == "192.168.77.233 (default/named) stays\n", "{undone:?}");
    wait_for("the condition to be without the order", SOON, || {
        Ok((objects.condition("named")?.1 == "AddressAllocated").then_some(()))
    })?;
    let none = said(objects, &["pool", "move", "here", "--undo"], 0)?;
    ensure!(none.out == "no address of pool 'here' was to move\n", "{none:?}");
    Ok(())
}

fn said(objects: &Objects, words: &[&str], code: i32) -> Result<Said> {
    let said = sheave(objects, words, "")?;
    ensure!(said.code == code, "{words:?}: {said:?}");
    Ok(said)
}
