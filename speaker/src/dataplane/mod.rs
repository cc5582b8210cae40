//! The packet path of this node: loaded, kept as the view says, counted. Read: loader.rs -> attachment.rs ->
//! sync.rs -> writer.rs -> maps.rs; inbox.rs: what other threads tell; flows.rs and talk.rs: what this node holds, and what the others say; arrivals.rs: after a boot.

pub mod attachment;
mod conntrack_scan;
pub mod inbox;
pub mod loader;
mod maps;
mod report_socket;
pub mod startup_probe;
pub mod sync;
mod writer;

pub use maps::{Counters, ForwardingMaps, LeaseMaps};
