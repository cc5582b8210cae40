//! The packet path of this node: loaded, kept as the view says, counted. Read: loader.rs -> sync.rs -> maps.rs.

mod link;
pub mod loader;
mod maps;
pub mod sync;

pub use maps::{Counters, ForwardingMaps, LeaseMaps};
