//! The speaker's XDP link on a node, found at its pin: is it attached, and what happens when it is not.
//!
//! Read first: include/uapi/linux/bpf.h, `BPF_OBJ_GET`, `BPF_OBJ_GET_INFO_BY_FD`, `BPF_LINK_DETACH`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::plan::UPLINK;
use super::state::Node;

/// Where the speaker pins the link of the uplink, seen from outside of the node's mounts.
pub fn link(node: &Node) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root/sys/fs/bpf/sheave/link-{UPLINK}", node.init.pid))
}

/// Whether a link is pinned here that is attached to a device.
pub fn attached(pin: &Path) -> Result<bool> {
    let link = match open(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| pin.display().to_string()),
    };
    let mut info = LinkInfo::default();
    let mut attributes = InfoByFd {
        descriptor: link.as_raw_fd(),
        length: u32::try_from(size_of::<LinkInfo>())?,
        info: (&raw mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes).context("ask for the link's device")?;
    Ok(info.device != 0)
}

/// Detaches by force: the pin stays, and names a link that is attached to nothing.
pub fn detach(pin: &Path) -> Result<()> {
    let link = open(pin).with_context(|| pin.display().to_string())?;
    bpf(BPF_LINK_DETACH, &mut Detach { descriptor: link.as_raw_fd() }).context("detach the link").map(drop)
}

fn open(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attributes = ObjectGet { path: path.as_ptr() as u64, ..ObjectGet::default() };
    let descriptor = bpf(BPF_OBJ_GET, &mut attributes)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: each caller passes the member of `union bpf_attr` that belongs to the command; what it points to outlives the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as i32) }
}

#[repr(C)]
#[derive(Default)]
struct ObjectGet {
    path: u64,
    descriptor: u32,
    flags: u32,
}

#[repr(C)]
struct InfoByFd {
    descriptor: i32,
    length: u32,
    info: u64,
}

#[repr(C)]
struct Detach {
    descriptor: i32,
}

/// The beginning of `struct bpf_link_info`, with the XDP member of its union.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    device: u32,
    rest: [u32; 3],
}

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_DETACH: libc::c_long = 34;
