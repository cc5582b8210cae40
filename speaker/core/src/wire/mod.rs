//! What goes over the network, twice: a window on bytes that never judges, then a validated meaning.
//!
//! [`advert`] is the format, [`seal`] what makes it trustworthy, [`reject`] the names of everything that is refused.
pub mod advert;
pub mod reject;
pub mod seal;
