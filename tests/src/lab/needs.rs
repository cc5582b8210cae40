//! What a lab needs of the machine, checked before anything is created: a missing program is named with its package.

use std::path::Path;

use anyhow::{Result, bail};

/// An error that lists everything that is missing.
pub fn check() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the lab makes network namespaces and mounts: run it as root");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&path).collect();
    let found = |program: &str| {
        if program.starts_with('/') {
            return Path::new(program).exists();
        }
        let system = ["/usr/sbin", "/sbin"].map(Path::new);
        folders.iter().map(|folder| folder.as_path()).chain(system).any(|folder| folder.join(program).exists())
    };
    let missing: Vec<_> = PROGRAMS.iter().filter(|(program, _)| !found(program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> =
        missing.iter().map(|(program, package)| format!("{program} (Debian package {package})")).collect();
    bail!("missing: {}", names.join(", "))
}

const PROGRAMS: [(&str, &str); 14] = [
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("ethtool", "ethtool"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("runc", "runc"),
    ("/usr/lib/cni/ptp", "containernetworking-plugins"),
    ("openssl", "openssl"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("hostname", "hostname"),
    ("bash", "bash"),
];
