//! What connections survive: all changes of the serving nodes, under open connections, beside the path that a cluster has today
//! under the very same fault.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! # use sheave_tests::{lab::Lab, scenario::{self, survive}};
//! let scene = scenario::deploy(&Lab::attach("lab")?, 2)?;
//! let scenario = survive::SCENARIOS.iter().find(|one| one.name == "drain of each node").unwrap();
//! let survival = (scenario.run)(&scene, &survive::Setup::default())?;
//! println!("{} of {}", survival.sheave.alive, survival.sheave.eligible);
//! # Ok(())
//! # }
//! ```
//!
//! How it counts. Two addresses with the same pods behind them: Sheave's, and one that a node answers for and kube-proxy forwards
//! ([`today`]). Each has its own connections, and clients that open new ones. At the end every pod sends its greeting: a
//! connection is *eligible* if its pod, started when it was started then, is still there, or served other connections after this
//! one had ended; it must be alive. The pods of the others are gone: they must have ended, by the server's FIN or by a reset; a
//! silent one is a defect. New connections may fail within 300 ms of a fault without notice (a loss of power, a kill); else
//! never.
//!
//! Read: [`watch`] (the clients) → [`judge`] (what became of their connections), [`datagrams`] (and of their UDP flows), [`causes`] (why new ones failed) → [`whole`] (what must be true before) →
//! [`workload`] (the Deployment) → the scenarios in [`nodes`], [`pods`], [`drain`], [`speakers`], [`tables`], [`late`],
//! [`addresses`], [`announced`], [`placed`], [`deleted`], [`stuck`], [`random`]; [`version`], which `make bench-upgrade` alone makes happen.

pub mod addresses;
pub mod announced;
pub mod causes;
pub mod datagrams;
pub mod deleted;
pub mod drain;
mod draw;
pub mod judge;
pub mod late;
pub mod nodes;
pub mod placed;
pub mod pods;
pub mod random;
mod slices;
pub mod speakers;
pub mod stuck;
pub mod tables;
pub mod today;
pub mod version;
pub mod watch;
pub mod whole;
mod witness;
pub mod workload;

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::deploy::Scene;
pub use datagrams::Datagrams;
pub use judge::Side;
use watch::Watch;

/// What the caller chooses.
#[derive(Clone, Debug)]
pub struct Setup {
    pub connections: u16,
    /// Also measure the path that a cluster has today.
    pub compare: bool,
    /// Which repetition this is, from 0: some scenarios strike another node each time.
    pub repetition: usize,
    /// How long random changes go on.
    pub minutes: f64,
    /// Of random changes; each repetition adds its number.
    pub seed: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self { connections: 200, compare: true, repetition: 0, minutes: 10.0, seed: 1 }
    }
}

/// What clients saw of one scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Survival {
    pub sheave: Side,
    pub today: Option<Side>,
    /// What else was measured: name with unit → value.
    pub figures: BTreeMap<String, f64>,
    /// What happened, with seconds from the first fault.
    pub story: Vec<String>,
    /// What did not come about within its time although clients were watched to the end.
    pub trouble: Option<String>,
}

/// A scenario by its name.
#[derive(Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    /// Of the lab it needs.
    pub nodes: u8,
    /// Short ones are repeated as often as requested, long ones once.
    pub repeated: bool,
    pub run: fn(&Scene, &Setup) -> Result<Survival>,
}

/// In the order of the list in issue 4; then what it does not name.
pub const SCENARIOS: [Scenario; 42] = [
    scenario("node back after 5 s", nodes::back_after_5_s),
    scenario("node back after 30 s", nodes::back_after_30_s),
    scenario("node unreachable for 2 s", nodes::unreachable_for_2_s),
    scenario("three nodes, one after the other", nodes::one_after_the_other),
    Scenario { nodes: 5, ..scenario("owner and another node at once", nodes::two_at_once) },
    scenario("6 to 12 to 3 pods", pods::scaled),
    Scenario { nodes: 5, ..scenario("44 to 36 pods", pods::scaled_across_ring_sizes) },
    scenario("rolling update", pods::rolled),
    scenario("owner lost in a rolling update", pods::rolled_while_owner_is_lost),
    scenario("drain of each node", drain::each_node),
    scenario("speakers restarted in turn", speakers::in_turn),
    scenario("speakers killed at once", speakers::killed_at_once),
    scenario("speakers deleted at once", speakers::deleted_at_once),
    scenario("speakers upgraded", speakers::upgraded),
    scenario("kube-proxy restarted", tables::kube_proxy_restarted),
    scenario("kube-proxy changes its mode", tables::kube_proxy_mode),
    scenario("kube-proxy's rules flushed", tables::kube_proxy_flushed),
    scenario("nftables table deleted", tables::nft_deleted),
    scenario("XDP link detached", tables::xdp_detached),
    scenario("XDP pin removed", tables::xdp_unpinned),
    scenario("API lost on one node, pods scaled", late::scaled),
    scenario("API lost on one node, pods rolled", late::rolled),
    scenario("to no pods and back", pods::to_none_and_back),
    scenario("no pod ready for a while", pods::none_ready_and_back),
    scenario("session affinity on and off", pods::affinity),
    scenario("selector to other pods and back", pods::selector),
    scenario("selector to no pods and back", pods::selector_of_none),
    scenario("speaker killed where kube-proxy's rules are gone", speakers::without_kube_proxy),
    scenario("speaker frozen, pods rolled", speakers::frozen_while_rolled),
    scenario("node back beside a frozen speaker", nodes::back_beside_a_frozen_speaker),
    scenario("MAC address of the owner changes", addresses::mac_of_owner),
    scenario("MAC address of another node changes", addresses::mac_of_backend),
    scenario("MAC address changes without multicast", addresses::mac_without_multicast),
    scenario("IP address of a node changes", addresses::ip_of_node),
    scenario("forged ARP for every node", addresses::forged_arp),
    scenario("owner deleted and registered again", deleted::owner),
    scenario("disk full, speaker killed", stuck::disk_full),
    scenario("multicast filtered on the switch", addresses::multicast_filtered),
    scenario("speakers of two nodes parted", addresses::two_parted),
    scenario("nft held while a node is lost", stuck::nft_held),
    scenario("nft refused, pods replaced", stuck::nft_refused),
    Scenario { repeated: false, ..scenario("random changes", random::changes) },
];

const fn scenario(name: &'static str, run: fn(&Scene, &Setup) -> Result<Survival>) -> Scenario {
    Scenario { name, nodes: 3, repeated: true, run }
}

/// Makes the cluster whole, watches clients while `work` makes things happen, and judges.
fn survive(
    scene: &Scene,
    setup: &Setup,
    options: watch::Options,
    work: impl FnOnce(&mut Watch<'_>) -> Result<()>,
) -> Result<Survival> {
    whole::make_whole(scene, options.flags)?;
    observe(scene, setup, options, work)
}

/// Watches clients of a cluster that is whole while `work` makes things happen, and judges.
pub fn observe(
    scene: &Scene,
    setup: &Setup,
    options: watch::Options,
    work: impl FnOnce(&mut Watch<'_>) -> Result<()>,
) -> Result<Survival> {
    let mut watch = Watch::start(scene, setup, options)?;
    let worked = work(&mut watch);
    // What the clients saw is worth more than a sentence about what was waited for.
    let mut survival = watch.finish()?;
    survival.trouble = worked.err().map(|error| format!("{error:#}"));
    Ok(survival)
}
