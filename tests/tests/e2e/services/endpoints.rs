//! Where the pods of a Service are named: several EndpointSlices, duplicates, hints; clients outside reach all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sheave_tests::lab::wait_for;
use sheave_tests::scenario::Scene;

use super::clients::{OUTSIDE, datagram, greeted_by, greetings, refused, wait_refused, wait_served};
use super::{Room, Server, WITHIN};

/// Pods whose named port has another number each, one of them on its node's own network, so that there are several slices, and no
/// node ports; then a slice that names one of the pods once more, and one that holds names.
pub fn slices(scene: &Scene) -> Result<String> {
    let room = Room::open(scene, "slices")?;
    let here = |node, name, port| Server { port, ..Server::on(node, name, "several") };
    let host = Server { host_network: true, ..here(2, "host", 8083) };
    let beside = Server { port: 8081, ..Server::on(1, "beside", "other") };
    room.start(&[here(0, "first", 8081), here(1, "second", 8082), host, beside])?;
    let vip = room.service("several", 205, "", "selector: {app: several}\n  allocateLoadBalancerNodePorts: false")?;
    wait_served(scene, vip)?;
    let slices = wait_for("three slices", WITHIN, || {
        let slices = room.slices("several")?;
        Ok((slices.iter().flatten().filter(|one| one.ready).count() == 3).then_some(slices))
    })?;
    ensure!(slices.len() == 3, "other numbers are other slices: {slices:?}");
    let service = scene.api.get(&room.path("services", "several"))?;
    ensure!(service.pointer("/spec/ports/0/nodePort").is_none(), "{service}");
    for (role, address) in OUTSIDE {
        wait_all(scene, role, address, vip, &["first", "second", "host"])?;
    }
    let datagrams: BTreeSet<String> = (0..MANY).map(|_| datagram(scene, "client", vip)).collect::<Result<_>>()?;
    ensure!(datagrams.len() == 3, "datagrams reached {datagrams:?}");

    let first = room.find("first")?;
    let address = |pod: &str| -> Result<String> { Ok(room.find(pod)?.ip.map(|ip| ip.to_string()).unwrap_or_default()) };
    let endpoint =
        |address: String, node: &str| json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}});
    let names = slice("names", "FQDN", json!([{"addresses": ["db.example.com"], "conditions": {"ready": true}}]));
    scene.api.create(SLICES, &names)?;
    let twice = [endpoint(address("first")?, &first.node), endpoint(address("beside")?, &scene.nodes[1])];
    scene.api.create(SLICES, &slice("twice", "IPv4", json!(twice)))?;
    // A pod that leaves the Service ends the wait for a batch of additions, the one of the new slice.
    scene.api.patch(&room.path("pods", "host"), &json!({"metadata": {"labels": {"app": "gone"}}}))?;
    // Two of three pods are on the second node; if the duplicate counted it would be two of four. Both are four standard deviations
    // away.
    let mut shares = BTreeMap::new();
    let all = wait_for("each pod to have its share", WITHIN, || {
        shares = greeted_by(scene, "client", OUTSIDE[0].1, vip, SHARED)?;
        let of = |pod: &str| shares.get(pod).copied().unwrap_or_default();
        Ok((of("host") == 0 && of("beside") > 0 && of("second") + of("beside") > SHARED * 7 / 12).then_some(()))
    });
    all.with_context(|| format!("last: {shares:?} of {SHARED}"))?;
    // One that holds names takes nothing from the others, and is named as long as it is there.
    let refused = room.remark("several", "FQDNNotServed")?;
    ensure!(refused.contains("addressType FQDN"), "{refused}");
    scene.api.delete(&format!("{SLICES}/names"))?;
    room.remark("several", "AddressAllocated")?;
    pod_of_no_node(&room)?;
    Ok(format!("3 slices, then a fourth with a duplicate, beside names: {shares:?} of {SHARED}"))
}

/// A Service without a selector, and a slice that names a living pod and not its node: nodes translate for it, and the condition says so.
fn pod_of_no_node(room: &Room<'_>) -> Result<()> {
    let scene = room.scene;
    let vip = room.service("bare", 206, "", "allocateLoadBalancerNodePorts: false")?;
    let address = room.find("first")?.ip.map(|ip| ip.to_string());
    let endpoints = json!([{"addresses": [address], "conditions": {"ready": true}}]);
    scene.api.create(SLICES, &slice_of("bare", "bare", "IPv4", endpoints))?;
    wait_served(scene, vip)?;
    for (role, _) in OUTSIDE {
        let pods: BTreeSet<String> =
            greetings(scene, role, vip, FEW)?.into_iter().map(|greeting| greeting.pod).collect();
        ensure!(pods == ["first".to_owned()].into(), "{role} reached {pods:?}");
    }
    room.remark("bare", "ClientAddressLost").map(drop)
}

/// A slice of the Service that no controller made.
fn slice(name: &str, address_type: &str, endpoints: serde_json::Value) -> serde_json::Value {
    slice_of("several", name, address_type, endpoints)
}

fn slice_of(service: &str, name: &str, address_type: &str, endpoints: serde_json::Value) -> serde_json::Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": address_type,
        "metadata": {"name": name, "labels": {
            "kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "sheave-tests"}},
        "ports": [{"name": "web", "protocol": "TCP", "port": 8081}],
        "endpoints": endpoints,
    })
}

/// A pod that is never ready, behind a Service that publishes it and behind one that does not.
pub fn not_ready(scene: &Scene) -> Result<String> {
    let room = Room::open(scene, "notready")?;
    room.start(&[Server { ready: false, ..Server::on(1, "early", "early") }])?;
    let published = room.service("published", 206, "", "selector: {app: early}\n  publishNotReadyAddresses: true")?;
    let waits = room.service("waits", 207, "", "selector: {app: early}")?;
    wait_served(scene, published)?;
    wait_refused(scene, waits)?;
    for (role, address) in OUTSIDE {
        greeted_by(scene, role, address, published, FEW)?;
        refused(scene, role, waits)?;
    }
    Ok("published: served; not published: refused".into())
}

/// Hints and internalTrafficPolicy are for clients inside.
pub fn hints(scene: &Scene) -> Result<String> {
    let room = Room::open(scene, "hints")?;
    let zones = Zones::label(scene)?;
    let servers = [Server::on(0, "one", "all"), Server::on(1, "two", "all"), Server::on(2, "three", "all")];
    room.start(&servers)?;
    let close = room.service("close", 210, "", "selector: {app: all}\n  trafficDistribution: PreferClose")?;
    let own = room.service("own", 211, "", "selector: {app: all}\n  internalTrafficPolicy: Local")?;
    wait_for("hints", WITHIN, || {
        let endpoints: Vec<_> = room.slices("close")?.into_iter().flatten().collect();
        Ok((endpoints.len() == servers.len() && endpoints.iter().all(|one| one.zones == 1)).then_some(()))
    })?;
    for vip in [close, own] {
        wait_served(scene, vip)?;
        for (role, address) in OUTSIDE {
            wait_all(scene, role, address, vip, &["one", "two", "three"])?;
        }
    }
    drop(zones);
    Ok("pods of all zones answer clients outside".into())
}

/// Connections until all these pods have answered. Additions to a ring wait for a batch. None may fail.
fn wait_all(scene: &Scene, role: &str, seen: Ipv4Addr, vip: Ipv4Addr, pods: &[&str]) -> Result<()> {
    let mut all = BTreeMap::new();
    wait_for(&format!("answers of {pods:?} to {role}"), WITHIN, || {
        all.append(&mut greeted_by(scene, role, seen, vip, FEW)?);
        Ok((all.len() == pods.len() && pods.iter().all(|pod| all.contains_key(*pod))).then_some(()))
    })
}

/// Each node in a zone of its own, until dropped.
struct Zones<'a>(&'a Scene);

impl<'a> Zones<'a> {
    fn label(scene: &'a Scene) -> Result<Self> {
        let zones = Self(scene);
        scene.nodes.iter().try_for_each(|node| zones.set(node, json!(format!("zone-{node}"))))?;
        Ok(zones)
    }

    fn set(&self, node: &str, zone: serde_json::Value) -> Result<()> {
        let patch = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}});
        self.0.api.patch(&format!("/api/v1/nodes/{node}"), &patch).map(drop)
    }
}

impl Drop for Zones<'_> {
    fn drop(&mut self) {
        for node in &self.0.nodes {
            if let Err(error) = self.set(node, serde_json::Value::Null) {
                eprintln!("{node} keeps its zone: {error:#}");
            }
        }
    }
}

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/slices/endpointslices";
const FEW: usize = 8;
const MANY: usize = 40;
const SHARED: usize = 600;
