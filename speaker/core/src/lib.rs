//! The speaker's pure machines: no socket, no clock, no thread, no tokio; the contract is [`machine::Machine`].
//!
//! Flow (ii), who owns a VIP: `view` → `eligibility` → `election` → `announce`; `liveness` beside it decides whose kernel lives.
//! Flow (iii), where packets go: `forwarding` → `backend`; `reports` beside it are what nodes report of their flows.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod announce;
pub mod attributes;
pub mod backend;
pub mod backoff;
pub mod conflict;
pub mod dhcp;
pub mod election;
pub mod eligibility;
pub mod forwarding;
pub mod health;
pub mod liveness;
pub mod machine;
pub mod name;
pub mod probe;
pub mod rank;
pub mod readiness;
pub mod reports;
pub mod resolve;
pub mod rotation;
pub mod staleness;
pub mod startup;
pub mod time;
pub mod timer;
pub mod traffic_state;
pub mod unicast;
pub mod unverified;
pub mod view;
pub mod wire;
