//! Several IPv4 addresses of one Service: all of them or none, added and removed live, by every project's annotation.

use anyhow::{Result, ensure};
use sheave_tests::lab::wait_for;

use super::objects::{Objects, SOON};
use super::pair::Pair;

/// Service `four` has 192.168.77.200 of pool `default` when this begins, and when it ends.
pub fn chapters(objects: &Objects, pair: &mut Pair) -> Result<()> {
    objects.pool_with("low", "addresses: [198.51.100.20-198.51.100.23], autoAssign: false")?;
    objects.pool_with("high", "addresses: [198.51.100.40-198.51.100.43], autoAssign: false")?;
    live(objects)?;
    all_or_none(objects)?;
    restarted(objects, pair)?;
    for name in ["multi", "other"] {
        objects.delete("service", name)?;
    }
    objects.wait_ledger(&["192.168.77.200"])?;
    objects.delete("addresspool", "low")?;
    objects.delete("addresspool", "high")
}

/// Waits until the Service shows these, in order, and the ledger has them for it.
fn wait_all(objects: &Objects, name: &str, expected: &[&str]) -> Result<()> {
    wait_for(&format!("{name} to have {expected:?}"), SOON, || {
        let ingress = objects.get(&["service", name])?["status"]["loadBalancer"]["ingress"].take();
        let entries = ingress.as_array().cloned().unwrap_or_default();
        let shown = entries.iter().all(|entry| entry["ipMode"] == "VIP")
            && entries.iter().map(|entry| entry["ip"].as_str().unwrap_or_default()).eq(expected.iter().copied());
        let ledger = objects.ledger()?;
        let of_it = ledger.iter().filter(|(_, (_, service))| service == name).map(|(address, _)| address.as_str());
        Ok((shown && of_it.eq(expected.iter().copied())).then_some(()))
    })
}

fn live(objects: &Objects) -> Result<()> {
    // MetalLB refuses two of one family; kube-vip and Cilium have them.
    let both = ["198.51.100.21", "198.51.100.40"];
    for name in ["metallb.io/loadBalancerIPs", "kube-vip.io/loadbalancerIPs", "lbipam.cilium.io/ips"] {
        objects.service("multi", &format!("{name}: '198.51.100.40, 198.51.100.21'"), "")?;
        wait_all(objects, "multi", &both)?;
    }
    let (status, reason, message) = objects.condition("multi")?;
    ensure!((status.as_str(), reason.as_str()) == ("True", "AddressAllocated"), "{status} {reason}");
    ensure!(message == "198.51.100.21 from pool 'low', 198.51.100.40 from pool 'high'", "{message}");
    objects.wait_counts("low", &[("used", 1), ("free", 3)])?;
    objects.wait_counts("high", &[("used", 1), ("free", 3)])?;

    // What stays is not granted anew.
    let entry = objects.ledger()?[both[0]].clone();
    objects.service("multi", "sheave.dev/addresses: '198.51.100.21,198.51.100.41,198.51.100.42'", "")?;
    wait_all(objects, "multi", &["198.51.100.21", "198.51.100.41", "198.51.100.42"])?;
    ensure!(objects.ledger()?[both[0]] == entry, "granted anew");
    objects.third_party_status("multi", r#"[{"ip":"198.51.100.21"}]"#)?;
    wait_all(objects, "multi", &["198.51.100.21", "198.51.100.41", "198.51.100.42"])?;
    ensure!(objects.ledger()?[both[0]] == entry, "granted anew");
    objects.service("multi", "sheave.dev/addresses: 198.51.100.21", "")?;
    wait_all(objects, "multi", &["198.51.100.21"])
}

fn all_or_none(objects: &Objects) -> Result<()> {
    objects.service("other", "sheave.dev/addresses: '198.51.100.22,198.51.100.21'", "")?;
    objects.wait_refused("other", "AddressInUse")?;
    let message = objects.condition("other")?.2;
    let says = "198.51.100.21 is granted already: default/multi has it; the Service asks for 2 addresses and gets all of \
                them or none";
    ensure!(message == says, "{message}");
    ensure!(objects.wait_event("other", "Warning", "AddressInUse")?.contains("198.51.100.21"));
    ensure!(!objects.ledger()?.contains_key("198.51.100.22"), "a part was granted");
    ensure!(objects.get(&["service", "other"])?["metadata"]["finalizers"].is_null(), "a finalizer without an address");
    // The other way round nothing is taken away.
    objects.service("other", "sheave.dev/addresses: '198.51.100.22,198.51.100.23'", "")?;
    wait_all(objects, "other", &["198.51.100.22", "198.51.100.23"])?;
    objects.service("other", "sheave.dev/addresses: '198.51.100.22,198.51.100.99,198.51.100.21'", "")?;
    wait_for("the addresses that cannot be had to be named", SOON, || {
        let (status, _, message) = objects.condition("other")?;
        let named = ["198.51.100.21 is granted already", "198.51.100.99 is in no pool"];
        let said = named.iter().all(|one| message.contains(one));
        Ok((status == "True" && said && message.ends_with("198.51.100.22, 198.51.100.23 stay")).then_some(()))
    })?;
    wait_all(objects, "other", &["198.51.100.22", "198.51.100.23"])?;
    let many: Vec<String> = (1..=17).map(|last| format!("198.51.100.{last}")).collect();
    objects.service("other", &format!("sheave.dev/addresses: '{}'", many.join(",")), "")?;
    wait_for("too many to be named", SOON, || {
        let (_, reason, message) = objects.condition("other")?;
        Ok((reason == "AddressMalformed" && message.contains("17 addresses of IPv4 are named; 16 are allowed"))
            .then_some(()))
    })?;
    objects.service("other", "sheave.dev/addresses: '198.51.100.22,198.51.100.23'", "")?;
    wait_all(objects, "other", &["198.51.100.22", "198.51.100.23"])
}

/// Replicas that know only what the API server has take all up, and write nothing.
fn restarted(objects: &Objects, pair: &mut Pair) -> Result<()> {
    objects.service("multi", "sheave.dev/addresses: '198.51.100.21,198.51.100.43'", "")?;
    wait_all(objects, "multi", &["198.51.100.21", "198.51.100.43"])?;
    let versions = || -> Result<Vec<String>> {
        let mut all = Vec::new();
        for (kind, name) in [("service", "multi"), ("service", "other"), ("virtualip", "198.51.100.43")] {
            all.push(objects.get(&[kind, name])?["metadata"]["resourceVersion"].to_string());
        }
        Ok(all)
    };
    let before = versions()?;
    pair.replace(&[])?;
    objects.service("late", "sheave.dev/addresses: 198.51.100.42", "")?;
    objects.wait_shown("late", "198.51.100.42")?;
    objects.delete("service", "late")?;
    ensure!(versions()? == before, "written although nothing has changed");
    wait_all(objects, "multi", &["198.51.100.21", "198.51.100.43"])
}
