//! The pinned XDP link: is it still attached? And the program behind another one: is it still there? System calls that aya lacks, for
//! the speaker that repairs them and for the tests that break them.
//!
//! Read first: include/uapi/linux/bpf.h, `BPF_OBJ_GET`, `BPF_OBJ_GET_INFO_BY_FD`, `BPF_LINK_DETACH` and `struct bpf_link_info`; kernel net/core/dev.c,
//! `bpf_xdp_link_fill_link_info`: a link that was detached by force, or whose device is gone, names interface 0.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The interface of the link that is pinned here: 0 if it is attached to none. `None`: nothing is pinned here.
pub fn interface_of(pin: &Path) -> io::Result<Option<u32>> {
    match open(pin) {
        Ok(link) => info(&link).map(|info| Some(info.ifindex)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The id of the first program in the array of programs that is pinned here; `None`: it has none, or nothing is pinned here.
pub fn program_in(pin: &Path) -> io::Result<Option<u32>> {
    let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let array = match open(pin) {
        Ok(array) => array,
        Err(error) if absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let (key, mut id) = (0_u32, 0_u32);
    let mut attr = Element {
        map_fd: array.as_raw_fd() as u32,
        pad: 0,
        key: (&raw const key) as u64,
        value: (&raw mut id) as u64,
        flags: 0,
    };
    match bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) {
        Ok(_) => Ok(Some(id)),
        Err(error) if absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Detaches by force, as a third party does: the pin stays, and names a link that is attached to nothing. The speaker never does
/// this.
pub fn detach(pin: &Path) -> io::Result<()> {
    let link = open(pin)?;
    bpf(BPF_LINK_DETACH, &mut Detach { link_fd: link.as_raw_fd() as u32 }).map(drop)
}

fn open(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attr = ObjGet { pathname: path.as_ptr() as u64, ..ObjGet::default() };
    let fd = bpf(BPF_OBJ_GET, &mut attr)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn info(link: &OwnedFd) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let mut attr = InfoByFd {
        bpf_fd: link.as_raw_fd() as u32,
        info_len: size_of::<LinkInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<i32> {
    // SAFETY: each caller passes the member of `union bpf_attr` that belongs to the command; what it points to outlives the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut T, size_of::<T>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as i32) }
}

#[repr(C)]
#[derive(Default)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
struct Detach {
    link_fd: u32,
}

/// The beginning of `struct bpf_link_info`, with the XDP member of its union.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    ifindex: u32,
    rest: [u32; 3],
}

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_DETACH: libc::c_long = 34;
