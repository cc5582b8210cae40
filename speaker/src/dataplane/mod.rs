//! The packet path of this node: loaded, kept as the view has it, counted. Read: loader.rs -> attachment.rs -> sync.rs ->
//! writer.rs -> maps.rs; inbox.rs: messages of other threads; conntrack_scan.rs and report_socket.rs: the reports of this node
//! and of the others; startup_probe.rs: after a boot; pod_probes.rs: new pods.

pub mod attachment;
pub mod conntrack_scan;
pub mod inbox;
pub mod loader;
mod maps;
mod pod_probes;
mod report_socket;
pub mod startup_probe;
pub mod sync;
mod writer;

#[cfg(test)]
pub use maps::tests as map_tests;
pub use maps::{Counters, ForwardingMaps, LeaseMaps};
