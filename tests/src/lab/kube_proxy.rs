//! What can go wrong with a node's kube-proxy: it ends, it comes back in another mode, its rules vanish.

use std::fs;

use anyhow::{Result, bail};

use super::plan::{Plan, ProxyMode};
use super::process::Recorded;
use super::state::State;
use super::{node, service};

/// Ends the process and keeps it from being started again; its rules stay.
pub fn stop(state: &State, name: &str) -> Result<()> {
    service::stop(state, name, PROGRAM)
}

/// Starts it (anew, if it runs) and returns when the process is there.
pub fn start(state: &State, name: &str) -> Result<()> {
    stop(state, name)?;
    service::start(state, name, PROGRAM).map(drop)
}

/// Starts it anew in a mode. It removes the rules of its previous mode by itself.
pub fn set_mode(state: &State, name: &str, mode: ProxyMode) -> Result<()> {
    node::prepare_kube_proxy(&state.plan, name, mode)?;
    start(state, name)
}

/// Removes its rules behind its back, in whichever mode they are.
pub fn flush(state: &State, name: &str) -> Result<()> {
    let output = node::command(state, name, "sh")?.args(["-c", FLUSH]).output()?;
    if !output.status.success() {
        bail!("flush kube-proxy's rules on {name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The mode in its configuration.
pub fn mode_of(plan: &Plan, name: &str) -> Result<ProxyMode> {
    let text = fs::read_to_string(plan.node_dir(name).join("kube-proxy.yaml"))?;
    let nftables = text.lines().any(|line| line.trim() == "mode: nftables");
    Ok(if nftables { ProxyMode::Nftables } else { ProxyMode::Iptables })
}

pub fn process_of(state: &State, name: &str) -> Result<Option<Recorded>> {
    service::process_of(state, name, PROGRAM)
}

/// Both modes' rules: the tables that kube-proxy has for itself in one, the shared tables' contents in the other.
const FLUSH: &str = "
nft list table ip kube-proxy >/dev/null 2>&1 && { nft delete table ip kube-proxy || exit 1; }
nft list table ip6 kube-proxy >/dev/null 2>&1 && { nft delete table ip6 kube-proxy || exit 1; }
for table in nat filter mangle; do
  iptables -w -t $table -S | grep -q KUBE && { iptables -w -t $table -F && iptables -w -t $table -X || exit 1; }
done
true
";
const PROGRAM: &str = "kube-proxy";
