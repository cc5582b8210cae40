//! Step 2: may this node act on a packet to a VIP, and which peer sent it?

use ebpf_common::{Config, Verdict};

use crate::parse::Link;
use crate::tables::Tables;

/// Only with a configuration, and only frames for our own MAC address (after a takeover a switch floods the old owner's frames to
/// all ports). Returns the slot of the node that sent the frame, 0 for any other sender.
#[inline(always)]
pub fn admit<'a>(tables: &'a impl Tables, link: &Link) -> Result<(&'a Config, u16), Verdict> {
    let config = tables.config().ok_or(Verdict::NotReady)?;
    if config.self_slot == 0 {
        return Err(Verdict::NotReady);
    }
    if link.dst.mac() != config.mac {
        return Err(Verdict::NotOurMac);
    }
    Ok((config, tables.peer(link.src).unwrap_or_default()))
}
