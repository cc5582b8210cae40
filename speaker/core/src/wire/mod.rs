//! What goes over the network, twice: a window on bytes that never judges, then a validated meaning.
pub mod advert;
