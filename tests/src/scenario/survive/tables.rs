//! Rules and programs in the kernel are removed or written anew: kube-proxy's, which are not ours, and our own.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::watch::{Options, Watch};
use super::{Setup, Survival, survive};
use crate::lab::{Fault, ProxyMode, netns, wait_for};
use crate::scenario::baseline;
use crate::scenario::deploy::{Scene, TCP_PORT};
use crate::scenario::settle::greet;

pub fn kube_proxy_restarted(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        for node in &scene.nodes {
            watch.order(&format!("kube-proxy of {node} is killed and started"))?;
            scene.lab.fault(Fault::KubeProxyStart { node: node.clone() })?;
            sleep(SYNCS);
        }
        Ok(())
    })
}

/// One node after the other gets the other mode, then all get their own back.
pub fn kube_proxy_mode(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        let own = scene.lab.state()?.plan.proxy_mode;
        let other = match own {
            ProxyMode::Nftables => ProxyMode::Iptables,
            ProxyMode::Iptables => ProxyMode::Nftables,
        };
        for mode in [other, own] {
            for node in &scene.nodes {
                watch.order(&format!("kube-proxy of {node}: {mode}"))?;
                scene.lab.fault(Fault::KubeProxyMode { node: node.clone(), mode })?;
                sleep(SYNCS);
            }
        }
        Ok(())
    })
}

/// On all nodes. It writes them anew when it looks the next time, half a minute later at most.
pub fn kube_proxy_flushed(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        watch.fault("kube-proxy's rules are flushed on all nodes")?;
        let began = Instant::now();
        scene.nodes.iter().try_for_each(|node| scene.lab.fault(Fault::KubeProxyFlush { node: node.clone() }))?;
        let back = setup.compare && today_answers(scene, KUBE_PROXY_LOOKS_WITHIN)?;
        if back {
            watch.figure("kube-proxy's rules are back after, s", began.elapsed().as_secs_f64());
        } else {
            watch.note("kube-proxy is restarted");
            scene.nodes.iter().try_for_each(|node| scene.lab.fault(Fault::KubeProxyStart { node: node.clone() }))?;
        }
        sleep(SYNCS);
        Ok(())
    })
}

pub fn nft_deleted(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        each_repaired(
            watch,
            "nftables table back after, ms",
            |node| Fault::NftDelete { node },
            |node| scene.lab.nft_table(node),
        )
    })
}

pub fn xdp_detached(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        each_repaired(
            watch,
            "XDP link back after, ms",
            |node| Fault::XdpDetach { node },
            |node| scene.lab.xdp_attached(node),
        )
    })
}

pub fn xdp_unpinned(scene: &Scene, setup: &Setup) -> Result<Survival> {
    survive(scene, setup, Options::default(), |watch| {
        each_repaired(
            watch,
            "XDP link back after, ms",
            |node| Fault::XdpUnpin { node },
            |node| scene.lab.xdp_attached(node),
        )
    })
}

/// On one node after the other something of ours is removed: how long until it is back, on the slowest node?
fn each_repaired(
    watch: &mut Watch<'_>,
    figure: &str,
    fault: impl Fn(String) -> Fault,
    there: impl Fn(&str) -> Result<bool>,
) -> Result<()> {
    let scene = watch.scene;
    let mut slowest: f64 = 0.0;
    for node in &scene.nodes {
        watch.fault(&format!("removed on {node}"))?;
        scene.lab.fault(fault(node.clone()))?;
        let began = Instant::now();
        let what = format!("what was removed on {node} to be there again");
        let waited = wait_for(&what, REPAIRED_WITHIN, || Ok(there(node)?.then_some(())));
        slowest = slowest.max(began.elapsed().as_secs_f64() * 1e3);
        watch.figure(figure, slowest);
        if waited.is_err() {
            watch.note(&format!("not repaired on {node}: its speaker is replaced"));
            scene.lab.fault(Fault::DeleteSpeakerPod { node: node.clone() })?;
        }
        sleep(BETWEEN);
    }
    Ok(())
}

/// Whether the address of today's path answers within this time.
fn today_answers(scene: &Scene, within: Duration) -> Result<bool> {
    let to = format!("{}:{TCP_PORT}", baseline::ADDRESS).parse()?;
    let client = scene.lab.state()?.plan.netns("client");
    Ok(netns::inside(&client, || wait_for("today's path", within, || Ok(greet(to).ok()))).is_ok())
}

const SYNCS: Duration = Duration::from_secs(2);
const BETWEEN: Duration = Duration::from_secs(1);
const REPAIRED_WITHIN: Duration = Duration::from_secs(10);
const KUBE_PROXY_LOOKS_WITHIN: Duration = Duration::from_secs(35);
