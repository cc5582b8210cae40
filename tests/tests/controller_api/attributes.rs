//! What a Service asks for beside its address is served, or refused by name: in its condition, an Event and a metric.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sheave_tests::lab::wait_for;

use super::claims;
use super::objects::{Objects, SOON};
use super::pair::Pair;

/// The ledger has one address and room for three when this begins, and when it ends.
pub fn chapters(objects: &Objects, pair: &Pair) -> Result<()> {
    source_ranges(objects, pair)?;
    too_many_source_ranges(objects, pair)?;
    startup_probe(objects, pair)?;
    sctp(objects, pair)?;
    ipv6(objects)?;
    too_many_ports(objects)?;
    names_instead_of_addresses(objects)?;
    another_host_has_the_address(objects, pair)
}

/// Waits until the Service has an address and this reason beside it, and returns the message.
pub fn wait_remark(objects: &Objects, service: &str, reason: &str) -> Result<String> {
    wait_for(&format!("{service} to have an address and the remark {reason}"), SOON, || {
        let (status, found, message) = objects.condition(service)?;
        Ok((status == "True" && found == reason && objects.shown(service)?.is_some()).then_some(message))
    })
}

fn wait_metric(pair: &Pair, name: &str, reason: &str, value: f64) -> Result<()> {
    pair.wait_metric(name, &format!("{{reason=\"{reason}\"}}"), value)
}

fn patch(objects: &Objects, service: &str, patch: &Value) -> Result<()> {
    objects.patch("service", service, patch)
}

/// The API server admits a malformed annotation where it does not count yet, and lets it stand when the field goes.
fn source_ranges(objects: &Objects, pair: &Pair) -> Result<()> {
    const ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
    let malformed = format!("{ANNOTATION}: '10.0.0.0/8,10.1.0.0/99', sheave.dev/address-pool: none");
    objects.service("closed", &malformed, ", loadBalancerSourceRanges: [10.0.0.0/8]")?;
    objects.wait_refused("closed", "UnknownPool")?;
    let no_field = json!({ "spec": { "loadBalancerSourceRanges": null } });
    let no_pool = json!({ "metadata": { "annotations": { "sheave.dev/address-pool": null } } });
    patch(objects, "closed", &no_field)?;
    patch(objects, "closed", &no_pool)?;
    objects.wait_refused("closed", "SourceRangesMalformed")?;
    let note = objects.wait_event("closed", "Warning", "SourceRangesMalformed")?;
    ensure!(
        note.contains(ANNOTATION) && note.contains("'10.1.0.0/99' is no address range; allowed are CIDRs"),
        "{note}"
    );
    wait_metric(pair, "services_waiting", "SourceRangesMalformed", 1.0)?;
    let log = pair.leader()?.log();
    ensure!(log.contains("SourceRangesMalformed") && log.contains("default/closed"), "not in the log:\n{log}");

    patch(objects, "closed", &json!({ "metadata": { "annotations": { ANNOTATION: "10.0.0.0/8" } } }))?;
    objects.wait_shown("closed", "192.168.77.201")?;
    // kube-proxy judges clients inside, and knows the field only.
    let message = wait_remark(objects, "closed", "SourceRangesOutsideOnly")?;
    ensure!(message.contains("it reads spec.loadBalancerSourceRanges alone"), "{message}");
    ensure!(objects.wait_event("closed", "Warning", "SourceRangesOutsideOnly")?.contains("every one inside is"));
    wait_metric(pair, "services_partly_served", "SourceRangesOutsideOnly", 1.0)?;
    patch(objects, "closed", &json!({ "spec": { "loadBalancerSourceRanges": ["10.0.0.0/8"] } }))?;
    wait_remark(objects, "closed", "AddressAllocated")?;
    patch(objects, "closed", &json!({ "spec": { "loadBalancerSourceRanges": ["2001:db8::/32"] } }))?;
    let message = wait_remark(objects, "closed", "SourceRangesWithoutIPv4")?;
    ensure!(
        message.contains("192.168.77.201") && message.contains("no IPv4 client outside the cluster is admitted"),
        "{message}"
    );
    wait_metric(pair, "services_partly_served", "SourceRangesWithoutIPv4", 1.0)?;

    // The field hides the annotation again while it becomes malformed. A refusal takes no address away.
    patch(objects, "closed", &json!({ "metadata": { "annotations": { ANNOTATION: "nonsense" } } }))?;
    patch(objects, "closed", &no_field)?;
    let message = wait_remark(objects, "closed", "SourceRangesMalformed")?;
    ensure!(message.contains("no client outside the cluster is admitted; 192.168.77.201 stays"), "{message}");
    objects.delete("service", "closed")
}

/// Beyond the limit of the speakers. Ranges that touch are one range.
fn too_many_source_ranges(objects: &Objects, pair: &Pair) -> Result<()> {
    let ranges = |count: usize, length: u8| {
        let ranges = (0..count).map(|number| format!("10.{}.{}.0/{length}", number / 256, number % 256));
        format!(", loadBalancerSourceRanges: [{}]", ranges.collect::<Vec<_>>().join(","))
    };
    objects.service("lists", "", &ranges(1025, 25))?;
    objects.wait_refused("lists", "SourceRangesTooMany")?;
    let note = objects.wait_event("lists", "Warning", "SourceRangesTooMany")?;
    ensure!(note.contains("1025 source ranges") && note.contains("1024 are allowed"), "{note}");
    wait_metric(pair, "services_waiting", "SourceRangesTooMany", 1.0)?;
    objects.service("lists", "", &ranges(1025, 24))?;
    objects.wait_shown("lists", "192.168.77.201")?;
    wait_remark(objects, "lists", "AddressAllocated")?;
    objects.service("lists", "", &ranges(1025, 25))?;
    let message = wait_remark(objects, "lists", "SourceRangesTooMany")?;
    ensure!(message.contains("no client outside the cluster is admitted; 192.168.77.201 stays"), "{message}");
    objects.delete("service", "lists")
}

fn startup_probe(objects: &Objects, pair: &Pair) -> Result<()> {
    const ANNOTATION: &str = "sheave.dev/startup-probe";
    objects.service("hasty", &format!("{ANNOTATION}: 'no'"), "")?;
    let message = wait_remark(objects, "hasty", "StartupProbeUnknown")?;
    let said = format!("{ANNOTATION}: 'no' is unknown; allowed are 'on' (the default) and 'off'; new pods are probed");
    ensure!(message.contains(&said), "{message}");
    ensure!(objects.wait_event("hasty", "Warning", "StartupProbeUnknown")?.contains(&said));
    wait_metric(pair, "services_partly_served", "StartupProbeUnknown", 1.0)?;
    patch(objects, "hasty", &json!({ "metadata": { "annotations": { ANNOTATION: "off" } } }))?;
    wait_remark(objects, "hasty", "AddressAllocated")?;
    objects.delete("service", "hasty")
}

fn sctp(objects: &Objects, pair: &Pair) -> Result<()> {
    objects.service_with("signal", "[{port: 38412, protocol: SCTP}]", "")?;
    objects.wait_refused("signal", "ProtocolNotServed")?;
    ensure!(objects.wait_event("signal", "Warning", "ProtocolNotServed")?.contains("port 38412/SCTP"));
    wait_metric(pair, "services_waiting", "ProtocolNotServed", 1.0)?;
    let mixed = "[{name: web, port: 80}, {name: signal, port: 38412, protocol: SCTP}]";
    objects.service_with("signal", mixed, "")?;
    objects.wait_shown("signal", "192.168.77.201")?;
    let message = wait_remark(objects, "signal", "ProtocolNotServed")?;
    ensure!(message.contains("not served: port 38412/SCTP"), "{message}");
    let error = "sheave.dev/ProtocolNotServed";
    let expected = json!([{"port": 80, "protocol": "TCP"}, {"port": 38412, "protocol": "SCTP", "error": error}]);
    ensure!(objects.ports("signal")? == expected, "{}", objects.ports("signal")?);
    wait_metric(pair, "services_partly_served", "ProtocolNotServed", 1.0)?;
    wait_metric(pair, "services_waiting", "ProtocolNotServed", 0.0)?;
    objects.service_with("signal", "[{name: web, port: 80}]", "")?;
    wait_remark(objects, "signal", "AddressAllocated")?;
    ensure!(objects.ports("signal")?.is_null(), "{}", objects.ports("signal")?);
    objects.delete("service", "signal")
}

/// Of a Service of IPv4 alone; those of both families are in module `families`.
fn ipv6(objects: &Objects) -> Result<()> {
    objects.service("six", "sheave.dev/loadBalancerIPs: '2001:db8::1'", "")?;
    objects.wait_refused("six", "IPv6NotServed")?;
    objects.wait_event("six", "Warning", "IPv6NotServed")?;
    objects.service("six", "sheave.dev/loadBalancerIPs: '192.168.77.202,2001:db8::1'", "")?;
    objects.wait_shown("six", "192.168.77.202")?;
    let message = wait_remark(objects, "six", "IPv6NotServed")?;
    ensure!(message.contains("2001:db8::1 is not served"), "{message}");
    objects.delete("service", "six")
}

fn too_many_ports(objects: &Objects) -> Result<()> {
    let ports = |count: usize| {
        let ports = (1..=count).map(|port| format!("{{name: p{port}, port: {port}}}"));
        format!("[{}]", ports.collect::<Vec<_>>().join(","))
    };
    let no_node_ports = ", allocateLoadBalancerNodePorts: false";
    objects.service_with("wide", &ports(1000), no_node_ports)?;
    objects.wait_shown("wide", "192.168.77.201")?;
    wait_remark(objects, "wide", "AddressAllocated")?;
    let entry = objects.ledger()?["192.168.77.201"].clone();
    objects.service_with("wide", &ports(1001), no_node_ports)?;
    let message = wait_remark(objects, "wide", "TooManyPorts")?;
    ensure!(message.contains("not served: port 1001/TCP (the first 1000 ports"), "{message}");
    ensure!(objects.wait_event("wide", "Warning", "TooManyPorts")?.contains("1001/TCP"));
    let listed = objects.ports("wide")?;
    let refused = listed.as_array().into_iter().flatten().filter(|port| !port["error"].is_null());
    let refused: Vec<&Value> = refused.collect();
    ensure!(refused == [&json!({"port": 1001, "protocol": "TCP", "error": "sheave.dev/TooManyPorts"})], "{refused:?}");
    ensure!(objects.ledger()?["192.168.77.201"] == entry, "the grant was written anew");
    objects.delete("service", "wide")
}

/// Speakers see EndpointSlices. What one writes into the VirtualIP's status is said on the Service.
fn names_instead_of_addresses(objects: &Objects) -> Result<()> {
    objects.service("names", "", "")?;
    objects.wait_shown("names", "192.168.77.201")?;
    claims::write(objects, "node1", "192.168.77.201", "{owner: node1, term: 1, reason: FQDNNotServed}")?;
    wait_remark(objects, "names", "FQDNNotServed")?;
    ensure!(objects.wait_event("names", "Warning", "FQDNNotServed")?.contains("addressType FQDN"));
    claims::write(objects, "node1", "192.168.77.201", "{owner: node1, term: 1}")?;
    wait_remark(objects, "names", "AddressAllocated")?;
    objects.delete("service", "names")?;
    objects.wait_ledger(&["192.168.77.200"])
}

/// The owner's speaker writes it, beside what else it finds, for as long as the host is there.
fn another_host_has_the_address(objects: &Objects, pair: &Pair) -> Result<()> {
    objects.service("twice", "", "")?;
    objects.wait_shown("twice", "192.168.77.201")?;
    let writes = |status: &str| claims::write(objects, "node1", "192.168.77.201", status);
    writes("{owner: node1, term: 1, reason: 'AddressConflict,ClientAddressLost'}")?;
    let message = wait_remark(objects, "twice", "AddressConflict")?;
    for part in ["another host of the segment announces the address", "endpoints without a node"] {
        ensure!(message.contains(part), "{message}");
    }
    for reason in ["AddressConflict", "ClientAddressLost"] {
        ensure!(!objects.wait_event("twice", "Warning", reason)?.is_empty());
    }
    wait_metric(pair, "services_partly_served", "AddressConflict", 1.0)?;
    // Of two clusters this one yields: it has an owner that is silent, so the status names none.
    writes("{reason: AddressConflict}")?;
    wait_for("the message to be of the conflict alone", SOON, || {
        let (_, reason, message) = objects.condition("twice")?;
        Ok((reason == "AddressConflict" && !message.contains("endpoints without a node")).then_some(()))
    })?;
    // The host is gone.
    writes("{owner: node1, term: 1, reason: ClientAddressLost}")?;
    let message = wait_remark(objects, "twice", "ClientAddressLost")?;
    ensure!(!message.contains("another host"), "{message}");
    wait_metric(pair, "services_partly_served", "AddressConflict", 0.0)?;
    writes("{owner: node1, term: 1}")?;
    wait_remark(objects, "twice", "AddressAllocated")?;
    objects.delete("service", "twice")?;
    objects.wait_ledger(&["192.168.77.200"])
}
