//! Base chains of other tables that drop what none of their own rules accepts, on the way to a pod.
//!
//! Each base chain at a hook judges a packet anew, and an accept ends its own chain alone: what our chains let through, such a chain may
//! still drop, and nothing that we could add overrules it. Only chains are listed, not rules: whether a rule of theirs accepts our
//! packets is not known. Read first: nft(8), "accept"; kernel include/uapi/linux/netfilter/nf_tables.h, `nft_chain_attributes`.

use std::fmt;
use std::io;
use std::path::Path;

use speaker_core::backend::place::is_ours;

use super::legacy_iptables;
use super::netfilter::{self, attribute, number};

/// A base chain whose policy is drop, on the way of a forwarded IPv4 packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    pub family: &'static str,
    pub table: String,
    pub name: String,
    /// `None`: the chain FORWARD of iptables-legacy, which nftables does not have.
    pub handle: Option<u64>,
    pub hook: &'static str,
    pub priority: i32,
}

impl Chain {
    /// iptables' chain FORWARD. Docker and ufw set its policy; kube-proxy in iptables mode has a rule there that accepts our packets by
    /// their mark (`speaker_core::backend::ruleset`).
    pub fn is_iptables_forward(&self) -> bool {
        (self.family, self.table.as_str(), self.name.as_str()) == ("ip", "filter", "FORWARD") && self.handle.is_some()
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, table, name, handle, hook, priority } = self;
        write!(f, "chain {name} of table {family} {table} (hook {hook}, priority {priority}, ")?;
        match handle {
            Some(handle) => write!(f, "handle {handle})"),
            None => f.write_str("iptables-legacy)"),
        }
    }
}

/// Remembers what it found, until the ruleset has changed: a node with many Services has tens of thousands of chains.
#[derive(Debug, Default)]
pub struct ForeignChains {
    found: Option<(u32, Vec<Chain>)>,
}

impl ForeignChains {
    /// Of this thread's network namespace. Blocks, with a time limit.
    pub fn read(&mut self) -> io::Result<Vec<Chain>> {
        let generation = netfilter::generation()?;
        if let Some((of, chains)) = &self.found
            && *of == generation
        {
            return Ok(chains.iter().cloned().chain(in_legacy_iptables()?).collect());
        }
        let mut chains = Vec::new();
        netfilter::dump(GET_CHAIN, MAX_CHAINS, &mut |family, attributes| chains.extend(dropping(family, attributes)))?;
        chains.retain(|chain| !(chain.family == "ip" && is_ours(&chain.table)));
        chains.sort();
        self.found = Some((generation, chains.clone()));
        chains.extend(in_legacy_iptables()?);
        Ok(chains)
    }
}

/// Where kube-proxy has its rules in this variant of iptables, it accepts our packets by their mark.
fn in_legacy_iptables() -> io::Result<Option<Chain>> {
    if !legacy_iptables::has_table(Path::new("/proc"), "filter")? {
        return Ok(None);
    }
    let filter = legacy_iptables::Table::read("filter")?;
    let (table, name) = ("filter".into(), "FORWARD".into());
    let chain = Chain { family: "ip", table, name, handle: None, hook: "forward", priority: 0 };
    Ok((filter.drops_forwarded() && filter.accepted_mark("KUBE-FORWARD").is_none()).then_some(chain))
}

/// `None` for what is no base chain, lets everything pass, or is elsewhere.
fn dropping(family: u8, chain: &[u8]) -> Option<Chain> {
    let text = |value: &[u8]| Some(String::from_utf8_lossy(value.strip_suffix(b"\0")?).into_owned());
    let hook = attribute(chain, NFTA_CHAIN_HOOK)?;
    let policy = number(attribute(chain, NFTA_CHAIN_POLICY)).ok()?;
    let family = FAMILIES.iter().find(|(number, _)| *number == family)?.1;
    let at = number(attribute(hook, NFTA_HOOK_HOOKNUM)).ok()?;
    let hook_name = HOOKS.iter().find(|(number, _)| *number == at)?.1;
    let handle: [u8; 8] = attribute(chain, NFTA_CHAIN_HANDLE)?.try_into().ok()?;
    (policy == NF_DROP).then_some(Chain {
        family,
        table: text(attribute(chain, NFTA_CHAIN_TABLE)?)?,
        name: text(attribute(chain, NFTA_CHAIN_NAME)?)?,
        handle: Some(u64::from_be_bytes(handle)),
        hook: hook_name,
        priority: number(attribute(hook, NFTA_HOOK_PRIORITY)).ok()?.cast_signed(),
    })
}

/// NFPROTO_INET and NFPROTO_IPV4.
const FAMILIES: [(u8, &str); 2] = [(1, "inet"), (2, "ip")];
/// NF_INET_PRE_ROUTING and NF_INET_FORWARD: what a packet to a pod passes before it leaves the node's own stack.
const HOOKS: [(u32, &str); 2] = [(0, "prerouting"), (2, "forward")];
const NF_DROP: u32 = 0;
/// kube-proxy has some chains for each service port and endpoint. An answer with more is an error.
const MAX_CHAINS: usize = 1 << 20;

/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN.
const GET_CHAIN: u16 = 0x0a04;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_HANDLE: u16 = 2;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn run(program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn nft(text: &str) -> String {
        run("nft", &["--handle", text])
    }

    /// The handle that nft prints.
    fn handle(table: &str, chain: &str) -> u64 {
        let listing = nft(&format!("list chain {table} {chain}"));
        let line = listing.lines().find(|line| line.contains(&format!("chain {chain} "))).expect("it is listed");
        line.rsplit("handle ").next().unwrap().trim().parse().unwrap()
    }

    #[test]
    fn chains_that_drop_by_policy_on_the_way_to_a_pod_are_named() {
        let test = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs CAP_SYS_ADMIN");
            let mut chains = ForeignChains::default();
            assert_eq!(chains.read().unwrap(), []);

            // As firewalld: the policy is accept, and what is translated passes.
            nft("add table inet firewalld");
            nft("add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy accept; }");
            nft("add rule inet firewalld filter_FORWARD ct status dnat accept");
            nft("add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited");
            // Ours; those at other hooks and of other families.
            nft("add table ip sheave");
            nft("add chain ip sheave forward { type filter hook forward priority -120; policy drop; }");
            nft("add table inet host");
            nft("add chain inet host input { type filter hook input priority 0; policy drop; }");
            nft("add chain inet host plain");
            nft("add table ip6 six");
            nft("add chain ip6 six forward { type filter hook forward priority 0; policy drop; }");
            assert_eq!(chains.read().unwrap(), []);

            // As ufw and Docker, with iptables; and somebody's.
            run("iptables-nft", &["-P", "FORWARD", "DROP"]);
            let ufw = chains.read().unwrap();
            assert!(ufw.len() == 1 && ufw[0].is_iptables_forward(), "{ufw:?}");
            let at = handle("ip filter", "FORWARD");
            let text = format!("chain FORWARD of table ip filter (hook forward, priority 0, handle {at})");
            assert_eq!(ufw[0].to_string(), text);
            nft("add table inet somebody");
            nft("add chain inet somebody spare");
            nft("add chain inet somebody early { type filter hook prerouting priority -300; policy drop; }");
            let both = chains.read().unwrap();
            let at = handle("inet somebody", "early");
            let text = format!("chain early of table inet somebody (hook prerouting, priority -300, handle {at})");
            assert_eq!(both.iter().map(Chain::to_string).collect::<Vec<_>>(), [text, ufw[0].to_string()]);
            assert!(!both[0].is_iptables_forward());
            assert_eq!(chains.read().unwrap(), both, "the ruleset has not changed");

            nft("flush ruleset");
            assert_eq!(chains.read().unwrap(), []);
        };
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_policy_of_iptables_legacy_that_drops_is_named() {
        let test = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs CAP_SYS_ADMIN");
            let mut chains = ForeignChains::default();
            let mut found = || chains.read().unwrap().iter().map(Chain::to_string).collect::<Vec<_>>();
            let legacy = |arguments: &str| run("iptables-legacy", &arguments.split(' ').collect::<Vec<_>>());
            legacy("-A FORWARD -s 192.0.2.1 -j DROP");
            legacy("-P INPUT DROP");
            assert!(found().is_empty(), "the policy is accept");
            let text = "chain FORWARD of table ip filter (hook forward, priority 0, iptables-legacy)";
            legacy("-P FORWARD DROP");
            assert_eq!((found(), found()), (vec![text.to_owned()], vec![text.to_owned()]));
            // As kube-proxy in iptables mode.
            legacy("-N KUBE-FORWARD");
            assert_eq!(found().len(), 1, "by which mark it accepts is not known");
            legacy("-A KUBE-FORWARD -m mark --mark 0x20/0x20 -j ACCEPT");
            assert!(found().is_empty());
            legacy("-F KUBE-FORWARD");
            legacy("-X KUBE-FORWARD");
            assert_eq!(found().len(), 1);
            legacy("-P FORWARD ACCEPT");
            assert!(found().is_empty());
        };
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_chain_that_is_cut_or_damaged_is_none() {
        use super::super::netfilter::{nested, plain};

        let hook = [plain(1, &2_u32.to_be_bytes()), plain(2, &(-5_i32).to_be_bytes())].concat();
        let chain = [
            plain(NFTA_CHAIN_TABLE, b"t\0"),
            plain(NFTA_CHAIN_HANDLE, &7_u64.to_be_bytes()),
            plain(NFTA_CHAIN_NAME, b"c\0"),
            nested(NFTA_CHAIN_HOOK, &hook),
            plain(NFTA_CHAIN_POLICY, &NF_DROP.to_be_bytes()),
        ]
        .concat();
        let whole = dropping(2, &chain).expect("a base chain");
        assert_eq!((whole.priority, whole.handle, whole.hook), (-5, Some(7), "forward"));
        assert_eq!(dropping(10, &chain), None, "IPv6");
        for length in 0..chain.len() {
            assert_eq!(dropping(2, &chain[..length]), None, "{length} bytes");
        }
        for at in 0..chain.len() {
            for value in [0, 1, 3, 0xff] {
                let mut damaged = chain.clone();
                damaged[at] = value;
                // Any input: it does not panic.
                let _ = dropping(2, &damaged);
            }
        }
    }
}
