//! Whose rules translate Services on this node: kube-proxy's mode, by what it has put into the kernel.
//!
//! Nothing is listed: each mode has one thing that the others have not, which is asked for by its name. Read first: Kubernetes
//! pkg/proxy/nftables/proxier.go (table), pkg/proxy/iptables/proxier.go (the filter table's chain; IPVS mode has one of that name in
//! nat only), pkg/proxy/ipvs/proxier.go (device).

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::legacy_iptables;
use super::netfilter::{self, plain};

/// A mode of kube-proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    Nftables,
    Iptables,
    Ipvs,
}

impl Mode {
    /// As kube-proxy's `--proxy-mode` has it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
        }
    }
}

/// The modes whose rules are in this thread's network namespace. More than one: while kube-proxy changes its mode, or because it left
/// something behind. Blocks, with a time limit. `devices`: the names of all; `proc`: where the file system is mounted.
pub fn modes(devices: &BTreeSet<String>, proc: &Path) -> io::Result<BTreeSet<Mode>> {
    let name = |name: &str| [name.as_bytes(), b"\0"].concat();
    let table = plain(NFTA_TABLE_NAME, &name(NFT_TABLE));
    let chain = [plain(NFTA_CHAIN_TABLE, &name(IPTABLES_TABLE)), plain(NFTA_CHAIN_NAME, &name(IPTABLES_CHAIN))];
    let found = [
        (Mode::Nftables, netfilter::exists(GET_TABLE, &table)?),
        (Mode::Iptables, netfilter::exists(GET_CHAIN, &chain.concat())? || is_in_legacy_iptables(proc)?),
        (Mode::Ipvs, devices.contains(IPVS_DEVICE)),
    ];
    Ok(found.into_iter().filter(|(_, found)| *found).map(|(mode, _)| mode).collect())
}

/// Rules of `iptables-legacy`, which nftables does not show.
fn is_in_legacy_iptables(proc: &Path) -> io::Result<bool> {
    Ok(legacy_iptables::has_table(proc, IPTABLES_TABLE)?
        && legacy_iptables::Table::read(IPTABLES_TABLE)?.has_chain(IPTABLES_CHAIN))
}

const NFT_TABLE: &str = "kube-proxy";
const IPTABLES_TABLE: &str = "filter";
const IPTABLES_CHAIN: &str = "KUBE-SERVICES";
const IPVS_DEVICE: &str = "kube-ipvs0";

/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE and _GETCHAIN.
const GET_TABLE: u16 = 0x0a01;
const GET_CHAIN: u16 = 0x0a04;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;

#[cfg(test)]
pub(super) mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// A program and its words, without a shell; it must succeed.
    pub fn run(command: &str) {
        let mut words = command.split(' ');
        let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn found(devices: &[&str]) -> Vec<Mode> {
        let devices = devices.iter().map(|name| (*name).to_owned()).collect();
        modes(&devices, Path::new("/proc")).unwrap().into_iter().collect()
    }

    /// With the programs that kube-proxy runs, in both variants of iptables.
    #[test]
    fn a_mode_is_known_by_what_is_in_the_kernel() {
        let test = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs CAP_SYS_ADMIN");
            assert_eq!(found(&["lo", "eth0"]), []);
            // IPVS mode's own, and the canary that iptables mode leaves behind.
            run("iptables-nft -t nat -N KUBE-SERVICES");
            run("iptables-nft -t mangle -N KUBE-PROXY-CANARY");
            assert_eq!(found(&["lo", "kube-ipvs0"]), [Mode::Ipvs]);
            run("iptables-nft -N KUBE-SERVICES");
            assert_eq!(found(&["lo"]), [Mode::Iptables]);
            run("nft add table ip kube-proxy");
            assert_eq!(found(&["lo"]), [Mode::Nftables, Mode::Iptables]);
            run("iptables-nft -X KUBE-SERVICES");
            assert_eq!(found(&["lo"]), [Mode::Nftables]);
            run("nft delete table ip kube-proxy");
            run("iptables-legacy -N KUBE-SERVICES-NOT");
            assert_eq!(found(&["lo"]), [], "another chain");
            run("iptables-legacy -N KUBE-SERVICES");
            run("iptables-legacy -A FORWARD -j KUBE-SERVICES");
            assert_eq!(found(&["lo"]), [Mode::Iptables]);
        };
        std::thread::spawn(test).join().unwrap();
    }
}
