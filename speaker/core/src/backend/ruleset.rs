//! The text of the nftables table, for one transaction (`nft -f -`).
use alloc::string::String;

use super::Plan;

/// Name of the nftables table (family ip).
pub const TABLE: &str = "sheave";

/// The transaction that brings the table to this plan, whatever is there.
pub fn render(plan: &Plan) -> String {
    let _ = plan;
    String::new()
}
