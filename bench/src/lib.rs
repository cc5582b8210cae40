//! What the demo and the benchmarks share: the commit, promises and how they are judged, figures, text for a terminal.

pub mod commit;
pub mod measure;
pub mod nft;
pub mod pipe;
pub mod promise;
pub mod screen;
pub mod survival;
pub mod table;
