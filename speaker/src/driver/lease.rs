//! VIPs and the lease in the kernel: what the packet path reads to answer ARP.

use std::sync::atomic::Ordering;

use speaker_core::announce;
use speaker_core::conflict;
use speaker_core::election::LoseReason;
use speaker_core::name::{Term, Vip};
use speaker_core::time::Instant;
use tracing::{error, info};

use super::{MUTE, Notice, State};

impl State {
    /// Whether the kernel has this node as the VIP's owner now.
    pub(super) fn acquire(&mut self, vip: Vip, term: Term, now: Instant) -> bool {
        if !self.enter_own(vip, term) {
            return false;
        }
        info!(%vip, %term, "VIP acquired");
        self.driver.metrics.transitions.inc();
        self.on_conflict(conflict::Event::Acquired { vip, term }, now);
        self.filter_claims();
        true
    }

    /// From now on the kernel answers for the VIP.
    pub(super) fn enter_own(&mut self, vip: Vip, term: Term) -> bool {
        if let Err(error) = self.driver.lease.acquire(vip.0, term.0) {
            error!(%vip, error = format!("{error:#}"), "OWN map update failed; VIP not announced");
            self.driver.metrics.send_errors.with_label_values(&["own"]).inc();
            return false;
        }
        self.unreleased.remove(&vip);
        self.driver.health.own(vip.0, term.0);
        self.notify_app(Notice::Acquired { vip: vip.0, term });
        true
    }

    pub(super) fn release(&mut self, vip: Vip, reason: LoseReason, now: Instant) {
        self.released_for.insert(vip, reason);
        info!(%vip, reason = reason.label(), "VIP released");
        self.driver.metrics.transitions.inc();
        self.driver.health.disown(vip.0);
        self.on_announce(announce::Event::Stop(vip), now);
        self.remove_own(vip);
        self.on_conflict(conflict::Event::Released(vip), now);
        self.filter_claims();
    }

    pub(super) fn remove_own(&mut self, vip: Vip) {
        match self.driver.lease.release(vip.0) {
            Ok(()) => drop(self.unreleased.remove(&vip)),
            Err(error) => {
                self.driver.metrics.send_errors.with_label_values(&["own"]).inc();
                if self.unreleased.insert(vip) {
                    error!(%vip, error = format!("{error:#}"), "OWN map removal failed; retrying with each heartbeat");
                }
            }
        }
    }

    /// Whether the kernel has the lease.
    pub(super) fn write_lease(&mut self, now: Instant) -> bool {
        for vip in self.unreleased.clone() {
            self.remove_own(vip);
        }
        self.mute_written = now;
        self.driver.health.lease_until.store(self.lease_until.as_nanos(), Ordering::Relaxed);
        let renewed = self.driver.lease.renew(self.lease_until, now + MUTE);
        let refused = std::mem::replace(&mut self.lease_refused, renewed.is_err());
        match &renewed {
            Ok(()) if refused => info!("LEASE map updated again"),
            Ok(()) => {}
            Err(error) => {
                self.driver.metrics.send_errors.with_label_values(&["lease"]).inc();
                if !refused {
                    error!(
                        error = format!("{error:#}"),
                        "LEASE map update failed; VIPs released (map_write_failed), retrying with each heartbeat"
                    );
                }
            }
        }
        renewed.is_ok()
    }
}
