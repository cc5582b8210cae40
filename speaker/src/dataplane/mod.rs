//! The packet path of this node: loaded, kept as the view says, counted. Read: loader.rs -> attachment.rs ->
//! sync.rs -> writer.rs -> maps.rs; inbox.rs: what other threads tell; flows.rs and talk.rs: what this node holds, and what the others say; arrivals.rs: after a boot.

pub mod arrivals;
pub mod attachment;
pub mod flows;
pub mod inbox;
pub mod loader;
mod maps;
pub mod sync;
mod talk;
mod writer;

pub use maps::{Counters, ForwardingMaps, LeaseMaps};
