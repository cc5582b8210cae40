//! The named counters of one nftables table, read by a filtered dump of objects (`NFT_MSG_GETOBJ`).
//!
//! `nft list counters` reads every table of the node first, kube-proxy's rules included; this reads the counters alone. Figures:
//! bench/README.md. Read first: kernel net/netfilter/nf_tables_api.c, `nf_tables_dump_obj`; include/uapi/linux/netfilter/nf_tables.h.

use std::collections::BTreeMap;
use std::io;

use speaker_core::backend::ruleset::members::Count;

use super::netfilter::{Netfilter, attribute, plain};

/// By the counter's name, of a table of family ip; none if there is no such table. Blocks, with a time limit. A dump
/// that meets a transaction may miss counters.
pub fn read(table: &str) -> io::Result<BTreeMap<String, Count>> {
    let name = [table.as_bytes(), b"\0"].concat();
    let filter = [plain(NFTA_OBJ_TABLE, &name), plain(NFTA_OBJ_TYPE, &NFT_OBJECT_COUNTER.to_be_bytes())].concat();
    let mut counters = BTreeMap::new();
    Netfilter::open()?.request_bounded(GET_OBJECT, libc::NLM_F_DUMP, &filter, MAX_OBJECTS, &mut |object| {
        // A kernel that does not filter gives the objects of all tables.
        if attribute(object, NFTA_OBJ_TABLE) == Some(&name) {
            counters.extend(counter(object));
        }
    })?;
    Ok(counters)
}

/// `None` for what is no counter.
fn counter(object: &[u8]) -> Option<(String, Count)> {
    let kind: [u8; 4] = attribute(object, NFTA_OBJ_TYPE)?.try_into().ok()?;
    let name = std::str::from_utf8(attribute(object, NFTA_OBJ_NAME)?.strip_suffix(b"\0")?).ok()?;
    let data = attribute(object, NFTA_OBJ_DATA)?;
    let value = |of| -> Option<u64> { Some(u64::from_be_bytes(attribute(data, of)?.try_into().ok()?)) };
    let count = Count { packets: value(NFTA_COUNTER_PACKETS)?, bytes: value(NFTA_COUNTER_BYTES)? };
    (u32::from_be_bytes(kind) == NFT_OBJECT_COUNTER).then(|| (name.into(), count))
}

/// Our table has one counter for each `Guard`, and at most 1536 of members. An answer with more objects than this is an error.
const MAX_OBJECTS: usize = 4096;

/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETOBJ.
const GET_OBJECT: u16 = 0x0a13;
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFT_OBJECT_COUNTER: u32 = 1;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;

#[cfg(test)]
mod tests {
    use super::super::netfilter::nested;
    use super::*;

    #[test]
    fn an_object_that_is_cut_or_damaged_is_no_counter() {
        let object = [
            plain(NFTA_OBJ_TABLE, b"sheave\0"),
            plain(NFTA_OBJ_NAME, b"guard_reset\0"),
            plain(NFTA_OBJ_TYPE, &NFT_OBJECT_COUNTER.to_be_bytes()),
            nested(NFTA_OBJ_DATA, &[plain(1, &180_u64.to_be_bytes()), plain(2, &3_u64.to_be_bytes())].concat()),
        ]
        .concat();
        assert_eq!(counter(&object), Some(("guard_reset".into(), Count { packets: 3, bytes: 180 })));
        for length in 0..object.len() {
            assert_eq!(counter(&object[..length]), None, "{length} bytes");
        }
        for at in 0..object.len() {
            for value in [0, 1, 3, 0xff] {
                let mut damaged = object.clone();
                damaged[at] = value;
                // Any input: it does not panic.
                let _ = counter(&damaged);
            }
        }
        let quota = plain(NFTA_OBJ_TYPE, &2_u32.to_be_bytes());
        let other = [&object[..24 + 4], &quota, &object[36..]].concat();
        assert_eq!(counter(&other), None);
    }
}
