//! The path that a cluster has today, while a scenario goes on: the address of [`mod@crate::scenario::baseline`] at
//! one node, which it leaves when that node is lost or drained, as soon as Sheave's own address has moved.
//!
//! Otherwise it stays where it is: neither the death of a program nor the return of a node moves it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::lab::{Lab, netns, plan};
use crate::scenario::baseline;
use crate::scenario::deploy::{Scene, TCP_PORT, UDP_PORT};
use crate::scenario::settle::holder;
use crate::traffic::arp;

/// Where the address is, and the thread that moves it.
pub struct Today {
    lab: Lab,
    vip: Ipv4Addr,
    owner: String,
    moved_to: Vec<String>,
    follower: Option<Follower>,
}

struct Follower {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Option<String>>>,
}

impl Today {
    /// Returns when the address answers at this node.
    pub fn start(scene: &Scene, owner: &str) -> Result<Self> {
        baseline::serve(scene, owner)?;
        let (lab, vip, owner) = (scene.lab.clone(), scene.vip, owner.to_owned());
        Ok(Self { lab, vip, owner, moved_to: Vec::new(), follower: None })
    }

    pub fn tcp(&self) -> String {
        format!("{}:{TCP_PORT}", baseline::ADDRESS)
    }

    pub fn udp(&self) -> String {
        format!("{}:{UDP_PORT}", baseline::ADDRESS)
    }

    /// These nodes are about to lose what they have. Returns as soon as the segment is being listened to.
    pub fn leaving(&mut self, scene: &Scene, nodes: &[&str]) -> Result<()> {
        self.settle()?;
        if !nodes.contains(&self.owner.as_str()) {
            return Ok(());
        }
        let stays = |node: &String| !nodes.contains(&node.as_str());
        // Sheave's may be elsewhere since a previous fault: then it does not move, and this one takes as long as usual.
        let elsewhere = holder(scene, &scene.nodes).ok().flatten().filter(stays);
        let macs: Vec<_> = scene
            .nodes
            .iter()
            .filter(|node| stays(node))
            .filter_map(|node| Some((scene.lab.mac(node).ok()?.to_lowercase(), node.clone())))
            .collect();
        let socket = netns::inside(&self.lab.state()?.plan.netns("client"), || arp::open(plan::UPLINK))?;
        let (lab, vip, old, stop) = (self.lab.clone(), self.vip, self.owner.clone(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let next = match elsewhere {
                Some(holder) => {
                    thread::sleep(USUAL_TAKEOVER);
                    Some(holder)
                }
                None => arp::claims(&socket, vip, &stopped)
                    .find_map(|mac| macs.iter().find(|(known, _)| *known == mac.to_lowercase()))
                    .map(|(_, node)| node.clone()),
            };
            if let Some(next) = &next {
                baseline::claim(&lab, next)?;
                // A node that is losing power has nothing to release.
                let _ = baseline::release(&lab, &old);
            }
            Ok(next)
        });
        self.follower = Some(Follower { stop, thread });
        Ok(())
    }

    /// Where the address went.
    pub fn finish(mut self) -> Result<Vec<String>> {
        self.settle()?;
        Ok(self.moved_to)
    }

    /// No reader is left; what was found is known.
    fn settle(&mut self) -> Result<()> {
        let Some(Follower { stop, thread }) = self.follower.take() else { return Ok(()) };
        stop.store(true, Ordering::Release);
        let moved = thread.join().map_err(|_| anyhow!("the follower panicked"))?.context("move today's address")?;
        if let Some(next) = moved {
            self.owner.clone_from(&next);
            self.moved_to.push(next);
        }
        Ok(())
    }
}

/// What Sheave needs as a rule.
const USUAL_TAKEOVER: Duration = Duration::from_millis(150);
