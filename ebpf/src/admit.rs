//! Step 2: may this node do anything about a packet to a VIP?

use ebpf_common::{Config, Verdict};

use crate::parse::Link;
use crate::tables::Tables;

/// Only when we know who we are, only frames for our own MAC address (after a takeover a switch floods the old owner's frames
/// to everybody), and never a packet that another node's dispatcher has sent: two nodes with different rings must not play
/// ping-pong.
#[inline(always)]
pub fn admit<'a>(tables: &'a impl Tables, link: &Link) -> Result<&'a Config, Verdict> {
    let config = tables.config().ok_or(Verdict::NotReady)?;
    if config.self_slot == 0 {
        return Err(Verdict::NotReady);
    }
    if link.dst != config.mac {
        return Err(Verdict::NotOurMac);
    }
    if tables.is_peer(link.src) {
        return Err(Verdict::FromPeer);
    }
    Ok(config)
}
