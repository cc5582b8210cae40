//! What goes over the network, twice: a window on bytes that never judges, then a validated meaning.
//!
//! [`advert`] and [`holdings`] are the formats, [`seal`] what makes them trustworthy, [`reject`] the names of everything that is refused.
pub mod advert;
pub mod reject;
pub mod report;
pub mod seal;
