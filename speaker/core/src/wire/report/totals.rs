//! What a node has counted of the members of the API server endpoint (kind 5 of `super`).
//!
//! ```text
//! port of the addresses (2) | member (4) | connections (8) | bytes (8) | resets (8)
//! ```
//!
//! A file may have more ports and members than a datagram has room for: each datagram has some of the totals, and stands for itself.

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use super::health::in_order;
use super::{NodeName, Reject, piece_len};
use crate::health::totals::{Total, Totals};

const TOTAL: usize = 30;
/// That fit into a datagram beside the longest name.
pub const MAX_TOTALS: usize = piece_len(NodeName::MAX_LEN) / TOTAL;

pub(super) fn encode_totals(totals: &Totals) -> Vec<u8> {
    let mut out = Vec::with_capacity(totals.len() * TOTAL);
    for ((port, member), Total { connections, bytes, resets }) in totals {
        out.extend_from_slice(&port.to_be_bytes());
        out.extend_from_slice(&member.octets());
        [connections, bytes, resets].iter().for_each(|value| out.extend_from_slice(&value.to_be_bytes()));
    }
    out
}

pub(super) fn decode_totals(bytes: &[u8]) -> Result<Totals, Reject> {
    let (entries, rest) = bytes.as_chunks::<TOTAL>();
    if rest.is_empty() { in_order(entries, |entry| Some(total(entry))) } else { Err(Reject::Malformed) }
}

fn total(entry: &[u8; TOTAL]) -> ((u16, Ipv4Addr), Total) {
    let [high, low, a, b, c, d, values @ ..] = entry;
    let value = |number: usize| {
        let (values, _) = values.as_chunks::<8>();
        values.get(number).map_or(0, |value| u64::from_be_bytes(*value))
    };
    let place = (u16::from_be_bytes([*high, *low]), [*a, *b, *c, *d].into());
    (place, Total { connections: value(0), bytes: value(1), resets: value(2) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vector() {
        let total = Total { connections: 258, bytes: 1 << 40, resets: 3 };
        let totals: Totals =
            [((6443, [192, 0, 2, 11].into()), total), ((6443, [192, 0, 2, 12].into()), Total::default())].into();
        let bytes = encode_totals(&totals);
        let expected: [&[u8]; 3] = [
            b"\x19\x2b\xc0\0\x02\x0b\0\0\0\0\0\0\x01\x02\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\x03",
            b"\x19\x2b\xc0\0\x02\x0c",
            &[0; 24],
        ];
        assert_eq!(bytes, expected.concat());
        assert_eq!(decode_totals(&bytes), Ok(totals));
        assert_eq!(decode_totals(&[]), Ok(Totals::new()), "nothing was counted");
        for length in (1..bytes.len()).filter(|length| length % TOTAL != 0) {
            assert_eq!(decode_totals(&bytes[..length]), Err(Reject::Malformed), "{length} bytes");
        }
        let (first, second) = bytes.split_at(TOTAL);
        for bad in [[second, first].concat(), [first, first].concat()] {
            assert_eq!(decode_totals(&bad), Err(Reject::Malformed));
        }
    }
}
