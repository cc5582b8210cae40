//! Both families, on an API server with ClusterIPs of both: an IPv6 address is reserved in the ledger, stands in the condition, and never in
//! the status.

use anyhow::{Context, Result, ensure};
use sheave_tests::lab::wait_for;

use super::objects::{Objects, SOON};
use super::pair::Pair;

pub fn chapters(objects: &Objects, pair: &mut Pair) -> Result<()> {
    names(objects).context("names")?;
    objects.pool_with("v4", "addresses: [198.51.100.8-198.51.100.9], priority: 1")?;
    objects.pool_with("v6", "addresses: ['2001:db8:77::/64'], exclusions: ['2001:db8:77::/127']")?;
    second_family(objects).context("the second family")?;
    asked_for(objects).context("addresses that are asked for")?;
    refused(objects).context("refusals")?;
    restarted(objects, pair).context("other replicas")?;
    for name in ["dual", "wants"] {
        objects.delete("service", name)?;
    }
    wait_for("the ledger to have no IPv6", SOON, || {
        Ok(objects.ledger()?.keys().all(|address| !address.contains(':')).then_some(()))
    })?;
    objects.delete("addresspool", "v4")?;
    objects.delete("addresspool", "v6")
}

/// A VirtualIP of IPv6 has one name, which the API server checks.
fn names(objects: &Objects) -> Result<()> {
    let vip = |name: &str, address: &str| {
        objects.0.apply(&format!(
            "apiVersion: sheave.dev/v1alpha1\nkind: VirtualIP\nmetadata: {{name: {name}}}\n\
             spec: {{address: '{address}', pool: p, services: [{{namespace: a, name: b, uid: c}}]}}"
        ))
    };
    let name = "2001-0db8-0000-0000-0000-0000-0000-0010";
    for (name, address) in [("2001-db8--10", "2001:db8::10"), (name, "2001:db8::11"), (name, "2001:db8:0::10")] {
        let refused = vip(name, address).err().with_context(|| format!("{name} was accepted for {address}"))?;
        let says = format!("the name '{name}' must be the address '{address}', with all digits and - for :");
        ensure!(refused.to_string().contains(&says), "{refused}");
    }
    Ok(())
}

/// Waits until the Service shows this IPv4 address alone, and the ledger has this one of IPv6 for it as well.
fn wait_both(objects: &Objects, name: &str, v4: &str, v6: &str, pool: &str) -> Result<()> {
    objects.wait_shown(name, v4)?;
    let says = format!("is not served: {v6} from pool '{pool}' is reserved");
    wait_for(&format!("{name} to have {v6}"), SOON, || {
        let has = objects.ledger()?.get(v6).is_some_and(|(_, service)| service == name);
        let said = objects.condition(name)?.2.contains(&says);
        let ingress = objects.get(&["service", name])?["status"]["loadBalancer"]["ingress"].clone();
        ensure!(ingress.as_array().is_some_and(|all| all.len() == 1), "{ingress}");
        Ok((has && said).then_some(()))
    })
}

fn patch(objects: &Objects, service: &str, spec: &str) -> Result<()> {
    objects.patch("service", service, &serde_json::from_str(spec)?)
}

/// Added and removed live, of another pool than IPv4; exactly that address is released.
fn second_family(objects: &Objects) -> Result<()> {
    objects.service("dual", "", "")?;
    objects.wait_shown("dual", "198.51.100.8")?;
    let granted = objects.ledger()?["198.51.100.8"].clone();
    patch(objects, "dual", r#"{"spec":{"ipFamilyPolicy":"PreferDualStack"}}"#)?;
    wait_both(objects, "dual", "198.51.100.8", "2001:db8:77::2", "v6")?;
    ensure!(objects.condition("dual")?.1 == "IPv6NotServed", "{:?}", objects.condition("dual")?);
    ensure!(objects.wait_event("dual", "Warning", "IPv6NotServed")?.contains("not served"));
    let vip = objects.get(&["virtualip", "2001-0db8-0077-0000-0000-0000-0000-0002"])?;
    ensure!(vip["spec"]["address"] == "2001:db8:77::2" && vip["spec"]["pool"] == "v6", "{vip}");
    // 2^64 addresses, of which two are excluded: the counts end where an integer does.
    objects.wait_counts("v6", &[("used", 1), ("total", i64::MAX), ("free", i64::MAX), ("excluded", 2)])?;
    objects.wait_counts("v6", &[("availableIPv4", 0), ("availableIPv6", i64::MAX)])?;
    objects.wait_counts("v4", &[("used", 1), ("free", 1), ("availableIPv4", 1), ("availableIPv6", 0)])?;

    patch(objects, "dual", r#"{"spec":{"ipFamilyPolicy":"SingleStack"}}"#)?;
    wait_for("the IPv6 address to be released", SOON, || {
        Ok((!objects.ledger()?.contains_key("2001:db8:77::2")).then_some(()))
    })?;
    wait_for("the condition to say so", SOON, || {
        let (status, reason, message) = objects.condition("dual")?;
        Ok((status == "True" && reason == "AddressAllocated" && !message.contains("IPv6")).then_some(()))
    })?;
    ensure!(objects.ledger()?["198.51.100.8"] == granted, "the IPv4 address was granted anew");
    patch(objects, "dual", r#"{"spec":{"ipFamilyPolicy":"RequireDualStack"}}"#)?;
    wait_both(objects, "dual", "198.51.100.8", "2001:db8:77::2", "v6")
}

/// One of each family, by MetalLB's annotation and ours; changed live.
fn asked_for(objects: &Objects) -> Result<()> {
    let dual = ", ipFamilyPolicy: PreferDualStack";
    objects.service("wants", "metallb.io/loadBalancerIPs: '2001:db8:77::50,198.51.100.9'", dual)?;
    wait_both(objects, "wants", "198.51.100.9", "2001:db8:77::50", "v6")?;
    objects.service("wants", "sheave.dev/addresses: '2001:db8:77:0::51'", dual)?;
    wait_both(objects, "wants", "198.51.100.9", "2001:db8:77::51", "v6")?;
    ensure!(!objects.ledger()?.contains_key("2001:db8:77::50"), "the old one stays");
    // Of another Service: said, and nothing is taken away.
    objects.service("wants", "sheave.dev/addresses: '2001:db8:77::2'", dual)?;
    let taken = "2001:db8:77::2 is granted already: default/dual has it; 2001:db8:77::51 stays";
    wait_remark(objects, "AddressInUse", taken)?;
    ensure!(objects.ledger()?.contains_key("2001:db8:77::51"));
    Ok(())
}

fn wait_remark(objects: &Objects, reason: &str, says: &str) -> Result<()> {
    wait_for(&format!("the condition {reason}: {says}"), SOON, || {
        let (status, found, message) = objects.condition("wants")?;
        Ok((status == "True" && found == reason && message.contains(says)).then_some(()))
    })
}

fn refused(objects: &Objects) -> Result<()> {
    let dual = ", ipFamilyPolicy: PreferDualStack";
    let cluster_ips = objects.get(&["service", "wants"])?["spec"]["clusterIPs"].clone();
    let cluster_ip = cluster_ips[1].as_str().context("a ClusterIP of IPv6")?.to_string();
    for (asked, reason) in [
        ("fe80::1", "LinkLocalAddress"),
        ("ff02::1", "MulticastAddress"),
        ("::1", "LoopbackAddress"),
        ("4000::1", "ReservedAddress"),
        (cluster_ip.as_str(), "AddressInServiceRange"),
        ("2001:db8:78::1", "AddressNotInPool"),
        ("2001:db8:77::1", "AddressNotInPool"),
    ] {
        objects.service("wants", &format!("sheave.dev/addresses: '{asked}'"), dual)?;
        wait_remark(objects, reason, asked)?;
    }
    for (asked, reason, says) in [
        ("::ffff:198.51.100.9", "AddressMalformed", "is IPv4 in the notation of IPv6; write 198.51.100.9"),
        ("2001:db8:77::3,2001:db8:77::4", "AddressMalformed", "names more than one IPv6 address"),
    ] {
        objects.service("wants", &format!("sheave.dev/addresses: '{asked}'"), dual)?;
        wait_remark(objects, reason, says)?;
    }
    // It has had 2001:db8:77::51 all the time.
    objects.service("wants", "", dual)?;
    wait_both(objects, "wants", "198.51.100.9", "2001:db8:77::51", "v6")?;
    objects.service("only", "", ", ipFamilyPolicy: SingleStack, ipFamilies: [IPv6]")?;
    objects.wait_refused("only", "IPv6NotServed")?;
    objects.delete("service", "only")
}

/// A pool that shrinks, and replicas that know only what the API server has, move nothing.
fn restarted(objects: &Objects, pair: &mut Pair) -> Result<()> {
    let before = objects.ledger()?;
    objects.pool_with("v6", "addresses: ['2001:db8:77::50/124']")?;
    objects.wait_counts("v6", &[("used", 2), ("outside", 1), ("total", 16), ("availableIPv6", 15)])?;
    pair.replace(&[])?;
    objects.service("late", "", ", ipFamilyPolicy: PreferDualStack")?;
    wait_for("the replicas to serve", SOON, || Ok((objects.condition("late")?.1 == "IPv6NotServed").then_some(())))?;
    objects.delete("service", "late")?;
    wait_for("the ledger as before", SOON, || Ok((objects.ledger()? == before).then_some(())))?;
    wait_remark(objects, "IPv6NotServed", "2001:db8:77::51 from pool 'v6' is reserved")
}
