//! The speaker's XDP link on a node, found at its pin: is it attached, and what happens when it is not.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ebpf_object::link as pinned;

use super::plan::UPLINK;
use super::state::Node;

/// Where the speaker pins the link of the uplink, seen from outside of the node's mounts.
pub fn link(node: &Node) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root/sys/fs/bpf/sheave/link-{UPLINK}", node.init.pid))
}

/// Whether a link is pinned here that is attached to a device.
pub fn attached(pin: &Path) -> Result<bool> {
    let interface = pinned::interface_of(pin).with_context(|| pin.display().to_string())?;
    Ok(interface.is_some_and(|index| index != 0))
}

/// Detaches by force: the pin stays, and names a link that is attached to nothing.
pub fn detach(pin: &Path) -> Result<()> {
    pinned::detach(pin).with_context(|| pin.display().to_string())
}
