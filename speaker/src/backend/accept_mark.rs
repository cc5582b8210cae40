//! The mark by which kube-proxy in iptables mode accepts forwarded packets: `--iptables-masquerade-bit`, read from its own rule.
//!
//! Read first: Kubernetes pkg/proxy/iptables/proxier.go (chain KUBE-FORWARD), kernel include/uapi/linux/netfilter/nf_tables.h and xt_mark.h.
//! iptables-nft up to 1.8.10 writes the match as xtables' own, later versions as expressions of nftables.

use std::io;
use std::path::Path;

use super::legacy_iptables;
use super::netfilter::{Netfilter, attribute, attributes, found, number, plain};

/// `None`: there is no such rule in this thread's network namespace. Blocks, with a time limit. `proc`: where the file system is mounted.
pub fn read(proc: &Path) -> io::Result<Option<u32>> {
    let name = |name: &str| [name.as_bytes(), b"\0"].concat();
    let chain = [plain(NFTA_RULE_TABLE, &name(TABLE)), plain(NFTA_RULE_CHAIN, &name(CHAIN))].concat();
    let mut mark = None;
    let mut each = |entry: &[u8]| {
        if let Some(rule) = attribute(entry, NFTA_RULE_EXPRESSIONS) {
            mark = mark.or_else(|| accepted(rule));
        }
    };
    found(Netfilter::open()?.request(GET_RULE, libc::NLM_F_DUMP, &chain, &mut each))?;
    if mark.is_none() && legacy_iptables::has_table(proc, TABLE)? {
        mark = legacy_iptables::Table::read(TABLE)?.accepted_mark(CHAIN);
    }
    Ok(mark)
}

/// Of a rule that accepts what has one bit set in its mark.
fn accepted(expressions: &[u8]) -> Option<u32> {
    let (mut of_mark, mut mask, mut mark, mut accepts) = (false, None, None, false);
    for (_, expression) in attributes(expressions) {
        let Some(data) = attribute(expression, NFTA_EXPR_DATA) else { continue };
        let value = |kind| attribute(attribute(data, kind)?, NFTA_DATA_VALUE)?.try_into().ok().map(u32::from_ne_bytes);
        match attribute(expression, NFTA_EXPR_NAME)? {
            b"match\0" if attribute(data, NFTA_MATCH_NAME) == Some(b"mark\0") => {
                mark = one_bit(attribute(data, NFTA_MATCH_INFO)?);
            }
            b"meta\0" => of_mark = number(attribute(data, NFTA_META_KEY)).ok() == Some(NFT_META_MARK),
            b"bitwise\0" if of_mark => mask = value(NFTA_BITWISE_MASK),
            b"cmp\0" if of_mark && number(attribute(data, NFTA_CMP_OP)).ok() == Some(NFT_CMP_EQ) => {
                mark = value(NFTA_CMP_DATA).filter(|mark| mask == Some(*mark) && mark.is_power_of_two());
            }
            b"immediate\0" => {
                let verdict = attribute(attribute(data, NFTA_IMMEDIATE_DATA)?, NFTA_DATA_VERDICT)?;
                accepts = number(attribute(verdict, NFTA_VERDICT_CODE)).ok() == Some(NF_ACCEPT);
            }
            _ => {}
        }
    }
    mark.filter(|_| accepts)
}

/// Of `xt_mark_mtinfo1`: mark, mask, whether it is inverted.
pub fn one_bit(info: &[u8]) -> Option<u32> {
    let number = |at: usize| info.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let mark: u32 = number(0)?;
    (number(4)? == mark && mark.is_power_of_two() && *info.get(8)? == 0).then_some(mark)
}

const TABLE: &str = "filter";
const CHAIN: &str = "KUBE-FORWARD";
/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE.
const GET_RULE: u16 = 0x0a07;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_MATCH_NAME: u16 = 1;
const NFTA_MATCH_INFO: u16 = 3;
const NFTA_META_KEY: u16 = 2;
const NFT_META_MARK: u32 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_CMP_OP: u16 = 2;
const NFT_CMP_EQ: u32 = 0;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NF_ACCEPT: u32 = 1;

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::backend::service_proxy::tests::run;

    /// By both variants of iptables, among kube-proxy's other rules; and as later versions of iptables-nft write it.
    #[test]
    fn the_mark_is_that_of_kube_proxys_rule() {
        let test = || {
            for (iptables, bit) in
                [("iptables-nft", 14), ("iptables-nft", 5), ("iptables-legacy", 14), ("iptables-legacy", 31)]
            {
                unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs CAP_SYS_ADMIN");
                let mark = 1_u32 << bit;
                assert_eq!(read(Path::new("/proc")).unwrap(), None);
                run(&format!("{iptables} -N KUBE-FORWARD"));
                run(&format!("{iptables} -A FORWARD -m mark --mark 0x80/0x80 -j ACCEPT"));
                run(&format!("{iptables} -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP"));
                run(&format!("{iptables} -A KUBE-FORWARD -m mark ! --mark 0x80/0x80 -j ACCEPT"));
                run(&format!("{iptables} -A KUBE-FORWARD -m mark --mark 0x80/0x80 -j DROP"));
                assert_eq!(read(Path::new("/proc")).unwrap(), None, "none of these");
                run(&format!(
                    "{iptables} -A KUBE-FORWARD -m comment --comment rules -m mark --mark {mark:#x}/{mark:#x} -j ACCEPT"
                ));
                run(&format!("{iptables} -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"));
                run(&format!("{iptables} -N OTHER"));
                run(&format!("{iptables} -A OTHER -m mark --mark 0x20000/0x20000 -j ACCEPT"));
                assert_eq!(read(Path::new("/proc")).unwrap(), Some(mark), "{iptables}");
            }
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs CAP_SYS_ADMIN");
            run("nft add table ip filter");
            run("nft add chain ip filter KUBE-FORWARD");
            run("nft add rule ip filter KUBE-FORWARD meta mark & 0x80 == 0x80 counter drop");
            assert_eq!(read(Path::new("/proc")).unwrap(), None);
            run("nft add rule ip filter KUBE-FORWARD meta mark & 0x80000 == 0x80000 counter accept");
            assert_eq!(read(Path::new("/proc")).unwrap(), Some(0x80000));
        };
        std::thread::spawn(test).join().unwrap();
    }
}
