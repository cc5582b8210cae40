//! A node's uplink gets another MAC address, or another IP address, or a host claims it; or the switch loses what the speakers send to all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::nodes::struck;
use super::watch::{Options, Watch};
use super::workload::{scale, wait_rolled_out};
use super::{Setup, Survival, survive};
use crate::lab::{Fault, netns, plan, wait_for};
use crate::scenario::address::counted;
use crate::scenario::api::text;
use crate::scenario::deploy::Scene;
use crate::scenario::settle::{wait_holder, wait_speakers};
use crate::scenario::{gratuitous, http};

/// Clients send what goes to the VIPs to the MAC address that they know.
pub fn mac_of_owner(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| change_mac(watch, &wait_holder(scene, &scene.nodes)?))
}

/// The owner sends what goes to the node's pods to the MAC address that it knows.
pub fn mac_of_backend(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        let node = not_owner(scene, setup)?;
        change_mac(watch, &node)
    })
}

fn not_owner(scene: &Scene, setup: &Setup) -> Result<String> {
    let owner = wait_holder(scene, &scene.nodes)?;
    let others: Vec<_> = scene.nodes.iter().filter(|node| **node != owner).collect();
    Ok(others[setup.repetition % others.len()].clone())
}

/// The advert that states the new address must arrive by unicast, from a kernel that has forgotten its neighbours, at nodes that take no ARP
/// frame with that address.
pub fn mac_without_multicast(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        scene.lab.fault(Fault::FilterMulticast)?;
        watch.order("the switch loses the speakers' multicast")?;
        let node = not_owner(scene, setup)?;
        let changed = wait_unicast(scene).and_then(|()| change_mac(watch, &node));
        watch.note("the switch forwards it again");
        scene.lab.fault(Fault::PassMulticast)?;
        changed?;
        wait_speakers(scene)
    })
}

/// A host of the segment tells every node that each other node is at a MAC address that nobody has. Pods come and go meanwhile, so that
/// nodes send flows to each other.
pub fn forged_arp(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        let before = contradictions(scene)?;
        let nodes = scene.nodes.iter().map(|node| Ok((scene.node_address(node)?, scene.lab.mac(node)?)));
        let nodes: Vec<_> = nodes.collect::<Result<_>>()?;
        let pairs = nodes.iter().flat_map(|victim| nodes.iter().map(move |claimed| (victim, claimed.0)));
        let pairs: Vec<_> = pairs.filter(|(victim, claimed)| victim.0 != *claimed).collect();
        let client = scene.lab.state()?.plan.netns("client");
        watch.fault("a host claims the address of each node to the others")?;
        let over = AtomicBool::new(false);
        let scaled = std::thread::scope(|scope| {
            let forger = scope.spawn(|| {
                netns::inside(&client, || {
                    while !over.load(Ordering::Relaxed) {
                        for ((ip, mac), claimed) in &pairs {
                            gratuitous::forge(plan::UPLINK, *claimed, (mac, *ip))?;
                        }
                        sleep(FORGED_EVERY);
                    }
                    Ok(())
                })
            });
            let scaled = there_and_back(scene, watch);
            over.store(true, Ordering::Relaxed);
            forger.join().expect("the forger").and(scaled)
        });
        scaled?;
        watch.figure("forged frames counted", contradictions(scene)? - before);
        let plan = scene.lab.state()?.plan;
        for node in &scene.nodes {
            let neighbours =
                netns::run("ip", &["-netns", &plan.netns(node), "neighbour", "show", "dev", plan::UPLINK])?;
            ensure!(!neighbours.contains(gratuitous::FORGER), "{node} believes the forger: {neighbours}");
        }
        Ok(())
    })
}

/// As by DHCP, there and back: the owner in one repetition, another node in the next. Rows have moved before: a part of what is open at the
/// node is in rows of others, which go by its address.
pub fn ip_of_node(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        add_pods(scene, watch)?;
        let node = struck(scene, setup)?;
        for _ in 0..2 {
            watch.fault(&format!("{node} gets another IP address"))?;
            scene.lab.fault(Fault::ChangeAddress { node: node.clone() })?;
            let began = Instant::now();
            wait_reported(scene, &node)?;
            watch.note(&format!("the Node follows after {:.1} s", began.elapsed().as_secs_f64()));
            wait_speakers(scene)?;
            watch.note(&format!("all speakers receive each other after {:.1} s", began.elapsed().as_secs_f64()));
            sleep(AFTERWARDS);
        }
        Ok(())
    })
}

/// For longer than anything that waits for multicast can wait; then pods come and go, whose rings no previous primary may leave without a
/// report.
pub fn multicast_filtered(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        let before = counted(scene, TRANSITIONS)?;
        watch.fault("the switch loses the speakers' multicast")?;
        scene.lab.fault(Fault::FilterMulticast)?;
        let began = Instant::now();
        let unicast = wait_unicast(scene);
        watch.note(&format!("by unicast after {:.1} s", began.elapsed().as_secs_f64()));
        sleep(FILTERED.saturating_sub(began.elapsed()));
        let scaled = there_and_back(scene, watch);
        let unicast = unicast.and(scaled).and_then(|()| agree(scene));
        watch.note("the switch forwards it again");
        scene.lab.fault(Fault::PassMulticast)?;
        unicast?;
        wait_speakers(scene)?;
        sleep(AFTERWARDS);
        watch.figure("VIPs won and lost", counted(scene, TRANSITIONS)? - before);
        Ok(())
    })
}

/// The speakers of the owner and of another node receive nothing of each other; the third node receives both. Pods come and go.
pub fn two_parted(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        let before = counted(scene, TRANSITIONS)?;
        let owner = wait_holder(scene, &scene.nodes)?;
        let others: Vec<_> = scene.nodes.iter().filter(|node| **node != owner).collect();
        let other = others[setup.repetition % others.len()];
        watch.fault(&format!("adverts and flow reports between {owner} and {other} are lost"))?;
        scene.lab.fault(Fault::PartSpeakers { node: owner.clone(), other: other.clone() })?;
        let named = wait_named(scene, [&owner, other]);
        let scaled = there_and_back(scene, watch);
        watch.note("they pass again");
        scene.lab.fault(Fault::JoinSpeakers)?;
        named.and(scaled)?;
        wait_speakers(scene)?;
        sleep(AFTERWARDS);
        watch.figure("VIPs won and lost", counted(scene, TRANSITIONS)? - before);
        agree(scene)
    })
}

/// Twice as many pods, then a quarter of that.
fn there_and_back(scene: &Scene, watch: &mut Watch<'_>) -> Result<()> {
    let pods = scene.nodes.len() * scene.pods_per_node;
    for replicas in [2 * pods, pods / 2] {
        watch.order(&format!("{replicas} pods"))?;
        scale(scene, replicas)?;
        wait_rolled_out(scene)?;
    }
    Ok(())
}

/// Half as many pods more, which have their rows when this returns.
fn add_pods(scene: &Scene, watch: &mut Watch<'_>) -> Result<()> {
    let replicas = scene.nodes.len() * scene.pods_per_node * 3 / 2;
    watch.order(&format!("{replicas} pods"))?;
    scale(scene, replicas)?;
    wait_rolled_out(scene)?;
    wait_for("every added pod to have rows", FILTERED, || {
        Ok((counted(scene, "sheave_batches_waiting")? == 0.0).then_some(()))
    })?;
    agree(scene)
}

/// Waits until all speakers have the same table by each other's reports.
fn agree(scene: &Scene) -> Result<()> {
    wait_for("the speakers' tables to agree, and every report to arrive", FILTERED, || {
        let differ = counted(scene, "sheave_table_differs")? + counted(scene, "sheave_reports_missing")?;
        Ok((differ == 0.0).then_some(()))
    })
}

/// Waits until both nodes say that a peer's adverts are missing: `/readyz` as a note, and the metric.
fn wait_named(scene: &Scene, nodes: [&String; 2]) -> Result<()> {
    wait_for("both speakers to name the missing adverts", NAMED_WITHIN, || {
        for node in nodes {
            let address = scene.node_address(node)?;
            let metrics = http::metrics(&scene.lab, address)?;
            let ready = http::speaker(&scene.lab, address, "/readyz")?;
            let named = ready.status == 200 && ready.body.contains("adverts_missing");
            if !named || http::value(&metrics, "sheave_adverts_missing") != Some(1.0) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
}

/// ARP frames with another MAC address of a node than its advert has, as all speakers count them.
fn contradictions(scene: &Scene) -> Result<f64> {
    let of = |node| counted(scene, &format!("sheave_arp_contradicts_advert_total{{node=\"{node}\"}}"));
    scene.nodes.iter().map(of).sum()
}

fn change_mac(watch: &mut Watch<'_>, node: &str) -> Result<()> {
    watch.fault(&format!("{node} gets another MAC address"))?;
    watch.scene.lab.fault(Fault::ChangeMac { node: node.to_owned() })?;
    sleep(AFTERWARDS);
    wait_speakers(watch.scene)
}

/// Waits until the Node has the address that its uplink has.
fn wait_reported(scene: &Scene, node: &str) -> Result<()> {
    let address = scene.node_address(node)?.to_string();
    wait_for(&format!("the Node {node} to have {address}"), REPORTED_WITHIN, || {
        let object = scene.api.get(&format!("/api/v1/nodes/{node}"))?;
        let addresses = object.pointer("/status/addresses").and_then(|all| all.as_array()).context("addresses")?;
        Ok(addresses.iter().any(|one| text(one, "/address") == address).then_some(()))
    })
}

/// Waits until every speaker sends to all others one by one: proof that nothing else arrives.
fn wait_unicast(scene: &Scene) -> Result<()> {
    let others = scene.nodes.len() as f64 - 1.0;
    wait_for("adverts by unicast", FILTERED, || {
        for node in &scene.nodes {
            // A speaker that does not answer is not there yet.
            let metrics = http::metrics(&scene.lab, scene.node_address(node)?).unwrap_or_default();
            for way in ["sheave_peers_by_unicast", "sheave_reports_by_unicast"] {
                if http::value(&metrics, way) != Some(others) {
                    return Ok(None);
                }
            }
        }
        Ok(Some(()))
    })
}

/// The pace of the forger, which awaits nothing. A kernel takes one such change a second.
const FORGED_EVERY: Duration = Duration::from_millis(100);
const TRANSITIONS: &str = "sheave_vip_transitions_total";
/// How long clients are watched on: an entry of a kernel's neighbor table that is not renewed is in use for as long as this.
const AFTERWARDS: Duration = Duration::from_secs(10);
/// The length of the fault.
const FILTERED: Duration = Duration::from_secs(15);
/// Ten seconds without adverts, and a look.
const NAMED_WITHIN: Duration = Duration::from_secs(20);
const REPORTED_WITHIN: Duration = Duration::from_secs(60);
