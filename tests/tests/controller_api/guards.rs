//! Addresses that no Service may have: a pool of the nodes' own subnet works, and takes no machine off the network.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use sheave_tests::lab::wait_for;

use super::objects::{Objects, SOON};
use super::pair::Pair;
use super::speaker_state::{report, speaker_of};

/// Service `four` has 192.168.77.200 when this begins, and when it ends. `node1` is 192.168.77.11; the API server is .2.
pub fn chapters(objects: &Objects, pair: &Pair, folder: &Path) -> Result<()> {
    let speaker = speaker_of(objects.0, folder, "node1")?;
    before_a_speaker(objects, &speaker).context("before a speaker has reported")?;
    what_is_left_out(objects, pair).context("what is left out")?;
    asked_for(objects, pair).context("asked for")?;
    a_node_that_joins(objects, pair).context("a node that joins")?;
    objects.delete("service", "early")?;
    objects.pool("default", "192.168.77.200-192.168.77.203")?;
    objects.0.kubectl(&["-n", "sheave-system", "delete", "pod", "speaker-node1", "--force"])?;
    objects.0.kubectl(&["delete", "speakerstates", "--all"])?;
    wait_condition(objects, "four", "AddressAllocated")?;
    objects.wait_ledger(&["192.168.77.200"])
}

/// Waits until the condition is True with this reason, and returns the message.
fn wait_condition(objects: &Objects, service: &str, reason: &str) -> Result<String> {
    wait_for(&format!("{service} to say {reason}"), SOON, || {
        let (status, found, message) = objects.condition(service)?;
        Ok((status == "True" && found == reason).then_some(message))
    })
}

/// `status.excludedBy` of the pool, as far as it is of these reasons.
fn wait_excluded(objects: &Objects, expected: &[(&str, i64)]) -> Result<()> {
    wait_for(&format!("the pool to leave out {expected:?}"), SOON, || {
        let status = objects.get(&["addresspool", "default"])?["status"].take();
        let entries = status["excludedBy"].as_array().cloned().unwrap_or_default();
        let counts: BTreeMap<&str, i64> =
            entries.iter().filter_map(|entry| Some((entry["reason"].as_str()?, entry["count"].as_i64()?))).collect();
        Ok((counts == expected.iter().copied().collect()).then_some(()))
    })
}

/// As after a fresh installation: nobody knows yet which address of the nodes' subnet is the gateway.
fn before_a_speaker(objects: &Objects, speaker: &Path) -> Result<()> {
    objects.pool("default", "192.168.77.0/24")?;
    objects.service("early", "", "")?;
    objects.wait_refused("early", "SubnetNotReported")?;
    wait_condition(objects, "four", "AddressAllocated").context("what was granted stays without a word")?;
    let status = "{uplinks: [{name: eth0, addresses: [192.168.77.11, 192.168.77.21], \
                  subnets: [192.168.77.0/24], gateways: [192.168.77.1]}]}";
    report(objects.0, speaker, "node1", status)?;
    // .0 is the network's, .1 the gateway's, .2 the API server's.
    objects.wait_shown("early", "192.168.77.3")
}

/// Two addresses of node1, of which the Node object has one.
const LEFT_OUT: [(&str, i64); 5] = [
    ("AddressOfNode", 2),
    ("AddressOfGateway", 1),
    ("AddressOfAPIServer", 1),
    ("NetworkAddress", 1),
    ("BroadcastAddress", 1),
];

fn what_is_left_out(objects: &Objects, pair: &Pair) -> Result<()> {
    wait_excluded(objects, &LEFT_OUT)?;
    // Two are granted: `four` and `early`.
    objects.wait_counts("default", &[("total", 256), ("excluded", 6), ("free", 256 - 6 - 2), ("used", 2)])?;
    let leader = pair.leader()?;
    wait_for("the metric", SOON, || {
        let metric = "sheave_controller_addresses_excluded{reason=\"AddressOfNode\"}";
        Ok((leader.metric(metric)? == 2.0).then_some(()))
    })
}

fn asked_for(objects: &Objects, pair: &Pair) -> Result<()> {
    let cluster_ip =
        objects.get(&["service", "kubernetes"])?["spec"]["clusterIP"].as_str().context("an IP")?.to_owned();
    for (name, address, reason) in [
        ("node", "192.168.77.11", "AddressOfNode"),
        ("uplink", "192.168.77.21", "AddressOfNode"),
        ("gateway", "192.168.77.1", "AddressOfGateway"),
        ("server", "192.168.77.2", "AddressOfAPIServer"),
        ("network", "192.168.77.0", "NetworkAddress"),
        ("broadcast", "192.168.77.255", "BroadcastAddress"),
        ("inside", &cluster_ip, "AddressInServiceRange"),
        ("loopback", "127.0.0.1", "LoopbackAddress"),
        ("multicast", "224.0.0.18", "MulticastAddress"),
    ] {
        // By annotation, and by the old field.
        match name {
            "node" => objects.service(name, "", &format!(", loadBalancerIP: {address}"))?,
            _ => objects.service(name, &format!("sheave.dev/loadBalancerIPs: {address}"), "")?,
        };
        objects.wait_refused(name, reason)?;
        let note = objects.wait_event(name, "Warning", reason)?;
        ensure!(note.contains(address) && note.contains("no Service may have it"), "{note}");
        let waiting = format!("sheave_controller_services_waiting{{reason=\"{reason}\"}}");
        wait_for(&waiting, SOON, || Ok((pair.leader()?.metric(&waiting)? >= 1.0).then_some(())))?;
        if name != "node" {
            objects.delete("service", name)?;
        }
    }
    ensure!(objects.ledger()?.len() == 2, "{:?}", objects.ledger()?);
    // Said once: the full pass finds nothing new to say.
    let events = objects.get(&["events.events.k8s.io"])?;
    let about_node = |event: &&serde_json::Value| event["regarding"]["name"] == "node" && event["type"] == "Warning";
    let count = events["items"].as_array().context("a list")?.iter().filter(about_node).count();
    ensure!(count == 1, "{count} Events");
    objects.delete("service", "node")
}

/// It has the address of a Service, and a pod range that nobody knew.
fn a_node_that_joins(objects: &Objects, pair: &Pair) -> Result<()> {
    let before = objects.ledger()?;
    objects.0.apply(
        "apiVersion: v1\nkind: Node\nmetadata: {name: late}\nspec: {podCIDR: 10.66.0.0/24, podCIDRs: [10.66.0.0/24]}",
    )?;
    let addresses = r#"{"status":{"addresses":[{"type":"InternalIP","address":"192.168.77.3"}]}}"#;
    objects.0.kubectl(&["patch", "node", "late", "--subresource=status", "--type=merge", "-p", addresses])?;
    let message = wait_condition(objects, "early", "AddressOfNode")?;
    ensure!(message.contains("192.168.77.3 is an address of node late; it stays and is not served"), "{message}");
    objects.wait_event("early", "Warning", "AddressOfNode")?;
    objects.wait_shown("early", "192.168.77.3")?;
    ensure!(objects.ledger()? == before, "the grant was written anew");
    let mut left_out = LEFT_OUT;
    left_out[0].1 = 3;
    wait_excluded(objects, &left_out)?;
    objects.service("pods", "sheave.dev/loadBalancerIPs: 10.66.0.7", "")?;
    objects.wait_refused("pods", "AddressInPodRange")?;
    objects.delete("service", "pods")?;

    // Heartbeats: what a kubelet writes changes nothing here, and nothing is written.
    let queue = "sheave_controller_queue_depth";
    let beats = objects.get(&["service", "early"])?["metadata"]["resourceVersion"].take();
    for second in 10..15 {
        let beat = format!(
            r#"{{"status":{{"conditions":[{{"type":"Ready","status":"True","reason":"x","message":"x","lastHeartbeatTime":"2026-01-01T00:00:{second}Z"}}]}}}}"#
        );
        objects.0.kubectl(&["patch", "node", "late", "--subresource=status", "--type=merge", "-p", &beat])?;
    }
    wait_for("an empty queue", SOON, || Ok((pair.leader()?.metric(queue)? == 0.0).then_some(())))?;
    ensure!(objects.get(&["service", "early"])?["metadata"]["resourceVersion"] == beats, "a heartbeat led to a write");

    objects.0.kubectl(&["delete", "node", "late"])?;
    wait_condition(objects, "early", "AddressAllocated")?;
    wait_excluded(objects, &LEFT_OUT)
}
