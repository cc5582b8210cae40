//! The clients that nftables keeps with their pods, read by a dump of set elements (`NFT_MSG_GETSETELEM`).
//!
//! `nft list set` reads every table of the node first; this reads one set. Read first: kernel net/netfilter/nf_tables_api.c,
//! `nf_tables_dump_set`; include/uapi/linux/netfilter/nf_tables.h.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use speaker_core::backend::affinity::{ClientSet, Clients};

use super::netfilter::{Netfilter, attribute, attributes, plain};

/// The clients of a set of this table; `None`: there is no such set. Blocks, with a time limit. A dump that meets new flows may miss
/// some of their clients.
pub fn read(table: &str, set: &ClientSet) -> io::Result<Option<Clients>> {
    let text = |name: &str| [name.as_bytes(), b"\0"].concat();
    let which = [plain(NFTA_LIST_TABLE, &text(table)), plain(NFTA_LIST_SET, &text(&set.name()))].concat();
    let mut clients = Clients::new();
    let read = Netfilter::open()?.request(GET_ELEMENTS, libc::NLM_F_DUMP, &which, &mut |message| {
        let list = attribute(message, NFTA_LIST_ELEMENTS).unwrap_or_default();
        clients.extend(attributes(list).filter_map(|(_, element)| client(element)));
    });
    match read {
        Ok(()) => Ok(Some(clients)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `None` for what is no client, or has no end.
fn client(element: &[u8]) -> Option<(Ipv4Addr, Duration)> {
    let key: [u8; 4] = attribute(attribute(element, NFTA_ELEMENT_KEY)?, NFTA_DATA_VALUE)?.try_into().ok()?;
    let left: [u8; 8] = attribute(element, NFTA_ELEMENT_EXPIRATION)?.try_into().ok()?;
    Some((key.into(), Duration::from_millis(u64::from_be_bytes(left))))
}

/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETSETELEM.
const GET_ELEMENTS: u16 = 0x0a0d;
const NFTA_LIST_TABLE: u16 = 1;
const NFTA_LIST_SET: u16 = 2;
const NFTA_LIST_ELEMENTS: u16 = 3;
const NFTA_ELEMENT_KEY: u16 = 1;
const NFTA_ELEMENT_EXPIRATION: u16 = 5;
const NFTA_DATA_VALUE: u16 = 1;

#[cfg(test)]
mod tests {
    use super::super::netfilter::nested;
    use super::*;

    #[test]
    fn an_element_that_is_cut_or_damaged_does_no_harm() {
        let element = [
            nested(NFTA_ELEMENT_KEY, &plain(NFTA_DATA_VALUE, &[192, 0, 2, 5])),
            plain(4, &10_800_000_u64.to_be_bytes()),
            plain(NFTA_ELEMENT_EXPIRATION, &7_000_u64.to_be_bytes()),
        ]
        .concat();
        assert_eq!(client(&element), Some(([192, 0, 2, 5].into(), Duration::from_secs(7))));
        for length in 0..element.len() {
            assert_eq!(client(&element[..length]), None, "{length} bytes");
        }
        let two = [nested(1, &element), nested(1, &element)].concat();
        assert_eq!(attributes(&two).filter_map(|(_, element)| client(element)).count(), 2);
        for at in 0..two.len() {
            for value in [0, 1, 3, 0xff] {
                let mut damaged = two.clone();
                damaged[at] = value;
                // Any input: it ends, and does not panic.
                let _ = attributes(&damaged).filter_map(|(_, element)| client(element)).count();
            }
        }
    }
}
