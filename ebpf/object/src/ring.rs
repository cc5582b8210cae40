//! Rings: one array per service port, made complete and then put into `RINGS` with one write.
//!
//! aya creates and swaps inner maps; what it lacks is the batch update (Linux 5.6), without which a ring of 65521 rows costs
//! as many system calls. Read first: include/uapi/linux/bpf.h, `BPF_MAP_UPDATE_BATCH`.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::{Array, IterableMap as _, MapData, MapError};
use ebpf_common::{MAX_ROWS, Row};

/// A new ring with these rows, not yet visible to the program. Put it in place with `ArrayOfMaps::set(slot, &ring, 0)`: packets
/// see the old ring or the new one, never a mixture. Then the handle may be dropped: the outer map holds the ring.
pub fn create_ring(rows: &[Row]) -> Result<Array<MapData, u32>, RingError> {
    let count =
        u32::try_from(rows.len()).ok().filter(|count| *count <= MAX_ROWS).ok_or(RingError::TooLong(rows.len()))?;
    let ring = Array::<_, u32>::create(count + 1, BPF_F_INNER_MAP)?;
    let keys: Vec<u32> = (0..=count).collect();
    let values: Vec<u32> = std::iter::once(count).chain(rows.iter().map(|row| row.0)).collect();
    update_batch(&ring, &keys, &values).map_err(RingError::Fill)?;
    Ok(ring)
}

#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error("a ring of {0} rows: the limit is {MAX_ROWS}")]
    TooLong(usize),
    #[error("creating a ring: {0}")]
    Create(#[from] MapError),
    #[error("filling a ring with BPF_MAP_UPDATE_BATCH: {0}")]
    Fill(#[source] io::Error),
}

fn update_batch(ring: &Array<MapData, u32>, keys: &[u32], values: &[u32]) -> io::Result<()> {
    debug_assert_eq!(keys.len(), values.len());
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: keys.len() as u32,
        map_fd: ring.map().fd().as_fd().as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: `attr` has the layout of `union bpf_attr`'s batch member; the kernel reads `count` keys and values and writes
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

const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
/// Lets arrays of any length stand in one outer map (Linux 5.10). Part of the flags that must equal the template's.
const BPF_F_INNER_MAP: u32 = 1 << 12;
