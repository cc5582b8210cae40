//! Keeps the packet path attached to the uplink: first when there is something to attach, then whatever others do to it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use tracing::{error, info, warn};

use super::loader::{Attached, Loaded};

/// Between checks of the link. A packet that came meanwhile is sent again by TCP after 200 ms at the earliest.
pub const CHECK: Duration = Duration::from_millis(100);
/// Checks that are left out after an attempt that failed, so that a third party's program is not contested all the time.
const PAUSE: u32 = 20;

pub struct Attachment {
    loaded: Loaded,
    interface: String,
    ifindex: u32,
    attached: bool,
    pause: u32,
    of_first: BTreeSet<Ipv4Addr>,
}

/// What [`Attachment::check`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkCheck {
    /// As it was: attached, or not and not to be tried yet.
    Attached,
    /// A third party had detached it: attached again.
    Reattached,
    /// It is not attached any more, and could not be attached again.
    Detached,
}

impl Attachment {
    pub fn new(loaded: Loaded, interface: &str, ifindex: u32) -> Self {
        Self { loaded, interface: interface.into(), ifindex, attached: false, pause: 0, of_first: BTreeSet::new() }
    }

    /// The first time: when the maps are complete. Until then a program of an earlier speaker goes on with its own maps, which
    /// may be of another version.
    pub fn begin(&mut self) -> Result<Attached> {
        let attached = self.loaded.attach(&self.interface)?;
        info!(interface = self.interface, ?attached, "packet path attached");
        self.attached = true;
        self.loaded.forget_other_versions()?;
        Ok(attached)
    }

    pub fn is_attached(&self) -> bool {
        self.attached
    }

    /// VIPs of the host speaker that this one serves beside.
    pub fn of_first(&self) -> &BTreeSet<Ipv4Addr> {
        &self.of_first
    }

    /// Whether there are others now.
    pub fn read_first(&mut self) -> bool {
        match self.loaded.vips_of_first() {
            Ok(vips) => std::mem::replace(&mut self.of_first, vips.clone()) != vips,
            Err(error) => {
                warn!(error = format!("{error:#}"), "VIPs of the host speaker not read");
                false
            }
        }
    }

    /// Looks, and puts right what it finds.
    pub fn check(&mut self) -> LinkCheck {
        match self.loaded.is_attached(&self.interface, self.ifindex) {
            Ok(true) if self.attached => return LinkCheck::Attached,
            Ok(_) => {}
            Err(error) => {
                warn!(%error, interface = self.interface, "state of the XDP link unknown; checked again");
                return LinkCheck::Attached;
            }
        }
        if self.pause > 0 {
            self.pause -= 1;
            return LinkCheck::Attached;
        }
        match self.loaded.attach(&self.interface) {
            Ok(_) => {
                warn!(interface = self.interface, "third-party change: packet path was detached; attached again");
                self.attached = true;
                LinkCheck::Reattached
            }
            Err(error) => {
                self.pause = PAUSE;
                if !std::mem::take(&mut self.attached) {
                    return LinkCheck::Attached;
                }
                error!(error = format!("{error:#}"), "packet path not attached; VIPs are handed over, retrying");
                LinkCheck::Detached
            }
        }
    }
}
