//! The built eBPF program as bytes, how user space fills its rings, and what became of its link.
//!
//! A crate of its own, so that the speaker and the packet tests use the same object and it is built once, by build.rs.

pub mod link;
mod ring;

pub use ring::{Ring, RingError, create_ring, put_rings};

/// The ELF object. Empty if the workspace was built with `SHEAVE_SKIP_EBPF=1`: see [`object`].
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sheave.o"));

/// The ELF object, or the reason why there is none.
pub fn object() -> Result<&'static [u8], NotBuilt> {
    if OBJECT.is_empty() { Err(NotBuilt) } else { Ok(OBJECT) }
}

/// This program was built without its eBPF part.
#[derive(Debug, thiserror::Error)]
#[error("this program was built with SHEAVE_SKIP_EBPF=1 and carries no eBPF object; build it again without")]
pub struct NotBuilt;
