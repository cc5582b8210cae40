//! What can happen to a cluster with Sheave, each as a function on a running lab. A scenario makes one thing happen and
//! returns a report of what clients saw; it judges nothing. The demo, the benchmark and the end-to-end tests judge.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! # use sheave_tests::{lab::Lab, scenario};
//! let scene = scenario::deploy(&Lab::attach("lab")?, 2)?;         // pool, pods on every node, Service, owner
//! let report = scenario::owner_loss(&scene, 200)?;                // the owner's node loses power under 200 connections
//! println!("{} of {}", report.observed.connections.alive, report.observed.connections.eligible);
//! scenario::restore(&scene, &report.lost)?;                       // power again; waits until the cluster is whole
//! # Ok(())
//! # }
//! ```
//!
//! Read: [`deploy`](mod@deploy) (what every scenario stands on) → [`settle`](mod@settle) (what must be true before a fault) →
//! [`measure`] (how it counts) → [`waits`] (whether the machine was too busy to judge) → the scenarios: [`node_loss`], [`speaker`],
//! [`address`], [`affinity`](mod@affinity), [`controller`], [`heartbeat`], [`keys`], [`baseline`](mod@baseline), [`clusters`], [`conflict`](mod@conflict), [`outside`](mod@outside), [`resources`](mod@resources), [`segment`], [`speaker_states`](mod@speaker_states), [`uninstall`](mod@uninstall); all changes of the serving nodes,
//! under open connections: [`survive`].

pub mod address;
pub mod affinity;
pub mod api;
pub mod baseline;
pub mod clusters;
pub mod conflict;
pub mod controller;
pub mod deploy;
pub mod figures;
mod gratuitous;
pub mod heartbeat;
pub mod http;
pub mod inside;
pub mod keys;
pub mod leftovers;
pub mod logs;
pub mod measure;
pub mod node_loss;
pub mod odd_objects;
pub mod outside;
pub mod pods;
pub mod resources;
pub mod segment;
pub mod settle;
pub mod speaker;
pub mod speaker_states;
pub mod survive;
pub mod uninstall;
pub mod waits;

pub use address::{client_address, first_answer};
pub use affinity::session_affinity;
pub use baseline::baseline;
pub use conflict::conflict;
pub use controller::{controller_failover, pool_exhaustion};
pub use deploy::{Owner, Scene, deploy};
pub use figures::Figures;
pub use heartbeat::forged_heartbeats;
pub use keys::{keys_awaited, keys_replaced};
pub use leftovers::leftovers;
pub use measure::Observed;
pub use node_loss::{NodeLoss, api_server_down_then_owner_loss, other_node_loss, owner_loss, restore};
pub use odd_objects::odd_objects;
pub use outside::{outside, translator_loss, virtual_node};
pub use resources::resources;
pub use segment::whole_segment;
pub use settle::settle;
pub use speaker::{SpeakerFault, graceful_delete, speaker_kill, speaker_restarts, speaker_stop_and_cont};
pub use speaker_states::speaker_states;
pub use uninstall::uninstall;
pub use waits::InTime;
