//! The packet path of this node: loaded, kept as the view says, counted. Read: loader.rs -> attachment.rs ->
//! sync.rs -> maps.rs; flows.rs and talk.rs: what this node holds, and what the others say; arrivals.rs: after a boot.

pub mod arrivals;
pub mod attachment;
mod flows;
pub mod loader;
mod maps;
pub mod sync;
mod talk;

pub use maps::{Counters, ForwardingMaps, LeaseMaps};
