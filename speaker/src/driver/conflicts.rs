//! Other hosts that announce a VIP of this node (`speaker_core::conflict`): which frames are read, and what is done about them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use speaker_core::conflict::{self, Action};
use speaker_core::machine::Machine;
use speaker_core::time::Instant;
use speaker_core::{announce, election};
use tracing::{info, warn};

use super::{Notice, State};
use crate::io::Mac;

/// Any host can send such frames: they do not wake the loop, which reads so many of them at most, once in so long.
const MAX_FRAMES: usize = 128;
const PAUSE: Duration = Duration::from_millis(10);
/// Nodes of other clusters that are remembered, and after how long without an advert one counts as new.
const MAX_NODES: usize = 256;
const SILENT: Duration = Duration::from_secs(1);
/// Between two announcements of all VIPs on account of new nodes.
const ANNOUNCED: Duration = Duration::from_millis(500);

/// What is known of other claimants beside the conflicts.
#[derive(Default)]
pub struct Claims {
    read: Instant,
    range: Option<(Ipv4Addr, Ipv4Addr)>,
    /// When adverts of another cluster arrived last, by their sender.
    others: BTreeMap<Ipv4Addr, Instant>,
    announced: Option<Instant>,
    /// When what this node owns is announced on account of them.
    pub(super) announce_at: Option<Instant>,
}

impl State {
    pub(super) fn take_claims(&mut self, now: Instant) {
        if now.since(self.claims.read) < PAUSE {
            return;
        }
        self.claims.read = now;
        for _ in 0..MAX_FRAMES {
            match self.driver.claims.receive_claimant() {
                Ok(Some(Some(claimant))) => {
                    let (vip, mac) = (speaker_core::name::Vip(claimant.ip), claimant.mac);
                    // A node of this cluster, or its kernel: the election settles that.
                    if !self.macs.values().any(|known| *known == mac) {
                        let heard = conflict::Event::Heard { vip, mac: mac.0, claim: claimant.claim };
                        let answered = conflict::Event::Answered(vip);
                        self.on_conflict(if claimant.to_announcement { answered } else { heard }, now);
                    }
                }
                Ok(Some(None)) => {}
                Ok(None) => return,
                Err(error) => return self.failed("claims_receive", &error),
            }
        }
    }

    /// Frames about other addresses than those between the VIPs of this node stay in the kernel.
    pub(super) fn filter_claims(&mut self) {
        let range = self.driver.conflicts.range().map(|(low, high)| (low.0, high.0));
        if std::mem::replace(&mut self.claims.range, range) != range
            && let Err(error) = self.driver.claims.set_range(range)
        {
            self.failed("claims_filter", &error);
        }
    }

    /// An advert of another cluster has arrived. Where its sender is new here, both sides announce what they own, so that two owners of one
    /// address find each other.
    pub(super) fn on_other_cluster(&mut self, now: Instant) {
        let source = self.incoming.source;
        let claims = &mut self.claims;
        if claims.others.len() >= MAX_NODES && !claims.others.contains_key(&source) {
            claims.others.retain(|_, heard| now.since(*heard) < SILENT);
            if claims.others.len() >= MAX_NODES {
                return;
            }
        }
        let new = claims.others.insert(source, now).is_none_or(|heard| now.since(heard) >= SILENT);
        if new && claims.announced.is_none_or(|announced| now.since(announced) >= ANNOUNCED) {
            claims.announced = Some(now);
            let waits = self.incoming.cluster.map(|other| self.driver.conflicts.waits_for(other));
            claims.announce_at = Some(now + waits.unwrap_or_default());
        }
    }

    pub(super) fn announce_to_others(&mut self, now: Instant) {
        if self.claims.announce_at.is_some_and(|at| at <= now) {
            self.claims.announce_at = None;
            self.on_announce(announce::Event::OtherCluster, now);
        }
    }

    pub(super) fn on_conflict(&mut self, event: conflict::Event, now: Instant) {
        let mut actions = Vec::new();
        self.driver.conflicts.handle(event, now, &mut actions);
        for action in actions {
            match action {
                Action::Defend(vip) => self.on_announce(announce::Event::Announce(vip), now),
                Action::Yield { vip, term } => {
                    self.driver.health.disown(vip.0);
                    self.on_announce(announce::Event::Stop(vip), now);
                    self.remove_own(vip);
                    self.notify_app(Notice::Yielded { vip: vip.0, term });
                }
                Action::Resume { vip, term } if self.enter_own(vip, term) => {
                    self.on_announce(announce::Event::Announce(vip), now);
                }
                Action::Resume { vip, .. } => self.follow_up.push(election::Event::NotAcquired(vip)),
                Action::Probe(vip) => {
                    if let Err(error) = self.driver.claims.probe_address(vip.0) {
                        self.failed("conflict_probe", &error);
                    }
                }
                Action::Concede { vip, to } => {
                    let claim = self.driver.conflicts.claim(vip, now);
                    if let Err(error) = self.driver.arp.concede(vip.0, Mac(to), claim) {
                        self.failed("concession", &error);
                    }
                }
                Action::Began { vip, mac, cluster, yielded } => {
                    let (mac, of) = (Mac(mac), if cluster { "a node of another cluster" } else { "a host" });
                    match yielded {
                        true => {
                            warn!(%vip, %mac, of, "address_conflict: VIP is not announced or answered for until the other is gone");
                        }
                        false => warn!(%vip, %mac, of, "address_conflict: another announces the VIP; announced again"),
                    }
                    self.show_conflicts();
                }
                Action::Ended { vip, mac } => {
                    info!(%vip, mac = %Mac(mac), "address conflict ended");
                    self.show_conflicts();
                }
            }
        }
    }

    fn show_conflicts(&self) {
        let vips: BTreeSet<Ipv4Addr> = self.driver.conflicts.vips().map(|vip| vip.0).collect();
        self.driver.metrics.address_conflicts.set(vips.len() as i64);
        self.driver.health.set_conflicts(vips);
    }
}
