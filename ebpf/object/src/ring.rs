//! Rings: an array each, made complete and then put into `RINGS`, many with one system call.
//!
//! aya creates inner maps and swaps single slots; what it lacks is the batch update. Without it a ring of 65488 rows costs as many
//! system calls, and every swapped slot waits for an RCU grace period of its own (16 ms measured on 6.18: 1.6 s for a hundred
//! services, where a lost node wants all rings changed at once). Read first: include/uapi/linux/bpf.h, `BPF_MAP_UPDATE_BATCH`;
//! kernel/bpf/syscall.c, `maybe_wait_bpf_programs`.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::{Array, IterableMap as _, MapData, MapError};
use ebpf_common::{MAX_ROWS, RING_WORDS, Row, pack};

/// A ring as its owner in user space holds it.
pub type Ring = Array<MapData, [u64; RING_WORDS]>;

/// A new ring with these rows, not yet visible to the program: see [`put_rings`].
pub fn create_ring(rows: &[Row]) -> Result<Ring, RingError> {
    if rows.len() > MAX_ROWS as usize {
        return Err(RingError::TooLong(rows.len()));
    }
    let values = pack(rows);
    let count = values.len() as u32;
    let ring = Ring::create(count, BPF_F_INNER_MAP)?;
    let keys: Vec<u32> = (0..count).collect();
    update_batch(ring.map(), &keys, &values).map_err(RingError::Fill)?;
    Ok(ring)
}

/// Puts rings into their slots of `RINGS` (`outer`). Each slot changes at once: a packet sees its old ring or its new one, never a
/// mixture. Returns when no packet can still see an old one. The handles may be dropped then: the outer map holds the rings.
///
/// All slots wait for one grace period together where the kernel has the batch update for maps of maps (Linux 5.19), else for one
/// each.
pub fn put_rings(outer: &MapData, rings: &[(u32, &Ring)]) -> Result<(), RingError> {
    if rings.is_empty() {
        return Ok(());
    }
    let slots: Vec<u32> = rings.iter().map(|(slot, _)| *slot).collect();
    let fds: Vec<u32> = rings.iter().map(|(_, ring)| descriptor(ring.map())).collect();
    match update_batch(outer, &slots, &fds) {
        Err(error) if matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EINVAL)) => {}
        done => return done.map_err(RingError::Put),
    }
    for (slot, fd) in slots.iter().zip(&fds) {
        update(outer, slot, fd).map_err(RingError::Put)?;
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error("a ring of {0} rows: the limit is {MAX_ROWS}")]
    TooLong(usize),
    #[error("creating a ring: {0}")]
    Create(#[from] MapError),
    #[error("filling a ring: {0}")]
    Fill(#[source] io::Error),
    #[error("putting rings in place: {0}")]
    Put(#[source] io::Error),
}

fn descriptor(map: &MapData) -> u32 {
    map.fd().as_fd().as_raw_fd() as u32
}

/// `V` is as long as the values of the map.
fn update_batch<V: aya::Pod>(map: &MapData, keys: &[u32], values: &[V]) -> io::Result<()> {
    assert_eq!(keys.len(), values.len());
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: keys.len() as u32,
        map_fd: descriptor(map),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: `attr` has the layout of the `batch` member of `union bpf_attr`; the kernel reads `count` keys and values and writes
    // `count` back, all of which outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_BATCH, &raw mut attr, size_of::<BatchAttr>()) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    if attr.count as usize != keys.len() {
        return Err(io::Error::other(format!("{} of {} elements written", attr.count, keys.len())));
    }
    Ok(())
}

fn update(map: &MapData, key: &u32, value: &u32) -> io::Result<()> {
    let attr = ElementAttr {
        map_fd: descriptor(map),
        pad: 0,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_ref(value) as u64,
        flags: 0,
    };
    // SAFETY: `attr` has the layout of the element member of `union bpf_attr`; the kernel reads one key and one value.
    let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_ELEM, &raw const attr, size_of::<ElementAttr>()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The `batch` member of `union bpf_attr`.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The member of `union bpf_attr` for single elements.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
/// Lets arrays of any length stand in one outer map (Linux 5.10). Part of the flags that must equal the template's.
const BPF_F_INNER_MAP: u32 = 1 << 12;
/// The kernel's own number for "not supported" (include/linux/errno.h), which leaks out of the bpf system call.
const ENOTSUPP: i32 = 524;
