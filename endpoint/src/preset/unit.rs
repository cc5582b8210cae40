//! The systemd unit: one for all distributions, since the file has what differs.

/// Its text.
pub const UNIT: &str = include_str!("../../sheave-endpoint.service");
pub const UNIT_PATH: &str = "/etc/systemd/system/sheave-endpoint.service";
/// Where the archive puts the speaker and nft.
pub const LIBRARY: &str = "/usr/local/lib/sheave";
