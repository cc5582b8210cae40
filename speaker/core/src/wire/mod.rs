//! What goes over the network, twice: a window on bytes that never judges, then a validated meaning.
//!
//! [`advert`] and [`report`] are the formats, [`seal`] what makes them trustworthy, [`reject`] the names of all refusals.
pub mod advert;
pub mod pace;
pub mod reject;
pub mod report;
pub mod seal;
