//! The disk of a node's state directory is full: a small file system is mounted over it, with what the directory held, and filled.

use anyhow::{Result, bail};

use super::node;
use super::state::State;

/// What runs keeps the directory that it has; a container that starts gets the full one.
pub fn fill(state: &State, name: &str) -> Result<()> {
    script(state, name, FILL)
}

/// The directory of before is back, with what was written to the small one meanwhile. Nothing happens if that is not there.
pub fn free(state: &State, name: &str) -> Result<()> {
    script(state, name, FREE)
}

fn script(state: &State, name: &str, script: &str) -> Result<()> {
    let output = node::command(state, name, "sh")?.args(["-ec", script]).output()?;
    if !output.status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// `dd` ends with an error when nothing more fits, which is intended: no room for a single byte is left.
const FILL: &str = "
mkdir -p /run/full /var/lib/sheave
mount -t tmpfs -o size=4m,mode=0755 full /run/full
cp -a /var/lib/sheave/. /run/full/
dd if=/dev/zero of=/run/full/filler bs=4k status=none 2>/dev/null && { echo 'the disk is not full' >&2; exit 1; }
mount --bind /run/full /var/lib/sheave
umount /run/full
";
const FREE: &str = "
mountpoint -q /var/lib/sheave || exit 0
rm -f /var/lib/sheave/filler
mkdir -p /run/disk
mount --bind /var/lib /run/disk
cp -a /var/lib/sheave/. /run/disk/sheave/
umount /run/disk
umount --lazy /var/lib/sheave
";
