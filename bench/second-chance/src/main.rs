//! The measurements behind docs/decisions/0009: three ways to forward a packet of another node's flow, in one run.
//!
//! `cargo run --release -p second-chance-bench`, as root; about a minute. It makes network namespaces of its own and removes them.
//! (a) a filter chain behind conntrack and nft's `dup` (what Sheave does), (b) a nat chain, a connection mark and a policy route,
//! (c) a map of known flows in XDP.

mod cost;
mod node;
mod stress;
mod traffic;
mod world;

fn main() -> anyhow::Result<()> {
    cost::stack()?;
    cost::program()?;
    stress::syn_flood()?;
    stress::ack_flood()?;
    stress::table_full()?;
    stress::replacement()
}
