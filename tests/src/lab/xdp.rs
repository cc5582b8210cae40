//! A trivial XDP program on the switch's side of every node's cable.
//!
//! XDP_TX into a veth whose peer has no XDP program loses the frame silently (seen on Linux 6.18, GRO on or off). Two
//! instructions that pass everything cure it. Raw bpf(2) and netlink: iproute2 wants an ELF file or a pinned program.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail};

/// Attaches the pass program in driver mode to a device of the calling thread's network namespace.
pub fn attach_pass(device: &str) -> Result<()> {
    let program = load_pass().context("load the XDP pass program")?;
    let index = nix::net::if_::if_nametoindex(device).with_context(|| format!("device {device}"))?;
    set_link_xdp(index, program.as_raw_fd()).with_context(|| format!("attach the XDP pass program to {device}"))
}

fn load_pass() -> Result<OwnedFd> {
    // r0 = XDP_PASS; exit.
    let instructions: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];
    let licence = c"Dual MIT/GPL";
    let mut attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_XDP,
        instruction_count: 2,
        instructions: instructions.as_ptr() as u64,
        licence: licence.as_ptr() as u64,
        ..LoadAttributes::default()
    };
    attributes.name[..12].copy_from_slice(b"sheave_pass\0");
    // SAFETY: the attributes outlive the call, their pointers too; the size is that of the structure.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<LoadAttributes>()) };
    if result < 0 {
        bail!("bpf(BPF_PROG_LOAD): {}", std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(result)?) })
}

/// RTM_SETLINK with IFLA_XDP { fd, flags = driver mode }.
fn set_link_xdp(index: u32, program: RawFd) -> Result<()> {
    let request = SetLink {
        length: u32::try_from(size_of::<SetLink>())?,
        kind: libc::RTM_SETLINK,
        flags: u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK)?,
        sequence: 1,
        port: 0,
        family: [0; 4],
        index,
        device_flags: [0; 2],
        outer: [20, IFLA_XDP | NLA_F_NESTED],
        fd_header: [8, IFLA_XDP_FD],
        fd: program,
        mode_header: [8, IFLA_XDP_FLAGS],
        mode: XDP_FLAGS_DRV_MODE,
    };
    // SAFETY: plain system calls; the buffers outlive them and have the sizes given.
    unsafe {
        let raw = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE);
        if raw < 0 {
            bail!("netlink socket: {}", std::io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(raw);
        if libc::send(socket.as_raw_fd(), (&raw const request).cast(), size_of::<SetLink>(), 0) < 0 {
            bail!("netlink send: {}", std::io::Error::last_os_error());
        }
        let mut answer = [0u8; 512];
        let length = libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0);
        if length < 20 {
            bail!("netlink answer of {length} bytes");
        }
        // nlmsghdr (16 bytes), then the error number, negative, 0 for an acknowledgement.
        let code = i32::from_ne_bytes(answer[16..20].try_into()?);
        if code != 0 {
            bail!("{}", std::io::Error::from_raw_os_error(-code));
        }
    }
    Ok(())
}

#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    program_flags: u32,
    name: [u8; 16],
}

#[repr(C)]
struct SetLink {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
    family: [u8; 4],
    index: u32,
    device_flags: [u32; 2],
    outer: [u16; 2],
    fd_header: [u16; 2],
    fd: i32,
    mode_header: [u16; 2],
    mode: u32,
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TYPE_XDP: u32 = 6;
const IFLA_XDP: u16 = 43;
const NLA_F_NESTED: u16 = 1 << 15;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_FLAGS: u16 = 3;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
