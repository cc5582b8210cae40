//! What the demo and the benchmarks share: promises and how they are judged, figures, text for a terminal.

pub mod promise;
pub mod screen;
pub mod survival;
pub mod table;
