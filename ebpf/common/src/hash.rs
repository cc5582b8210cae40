//! The keyed flow hash: SipHash-1-3 over the 5-tuple, the same in the kernel and in user space.
//!
//! Keyed, so that no client can craft flows that all land on one node. Read first: Aumasson, Bernstein, "SipHash: a fast
//! short-input PRF" (2012), sections 2.1 to 2.4.

/// What is hashed: network byte order throughout.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowTuple {
    pub src: [u8; 4],
    pub dst: [u8; 4],
    pub src_port: [u8; 2],
    pub dst_port: [u8; 2],
    pub proto: u8,
}

impl FlowTuple {
    /// With sessionAffinity ClientIP only the client's address and the VIP choose the row: ports of equal rings lead a client to one node.
    #[inline(always)]
    pub fn client_only(self) -> Self {
        Self { src: self.src, dst: self.dst, ..Self::default() }
    }

    #[inline(always)]
    pub fn hash(&self, key: &[u64; 2]) -> u64 {
        FlowWords::from(*self).hash(key)
    }
}

/// A [`FlowTuple`] as it is hashed, byte 0 lowest: the packet path moves words, not bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowWords {
    /// Source, then destination.
    pub addresses: u64,
    /// Source port, destination port, protocol, three bytes of zero.
    pub ports: u64,
}

impl FlowWords {
    #[inline(always)]
    pub fn new(addresses: u64, [src_port, dst_port]: [[u8; 2]; 2], proto: u8) -> Self {
        let ports = u64::from(u16::from_le_bytes(src_port)) | (u64::from(u16::from_le_bytes(dst_port)) << 16);
        Self { addresses, ports: ports | (u64::from(proto) << 32) }
    }

    /// Both addresses in one word.
    #[inline(always)]
    pub fn addresses(src: [u8; 4], dst: [u8; 4]) -> u64 {
        u64::from(u32::from_le_bytes(src)) | (u64::from(u32::from_le_bytes(dst)) << 32)
    }

    #[inline(always)]
    pub fn src(self) -> [u8; 4] {
        (self.addresses as u32).to_le_bytes()
    }

    #[inline(always)]
    pub fn dst(self) -> [u8; 4] {
        ((self.addresses >> 32) as u32).to_le_bytes()
    }

    #[inline(always)]
    pub fn src_port(self) -> [u8; 2] {
        (self.ports as u16).to_le_bytes()
    }

    #[inline(always)]
    pub fn dst_port(self) -> [u8; 2] {
        ((self.ports >> 16) as u16).to_le_bytes()
    }

    /// The bytes of its [`crate::ServiceKey`], byte 0 lowest.
    #[inline(always)]
    pub fn service_word(self) -> u64 {
        (self.addresses >> 32) | ((self.ports >> 16) << 32)
    }

    /// As [`FlowTuple::client_only`].
    #[inline(always)]
    pub fn client_only(self) -> Self {
        Self { ports: 0, ..self }
    }

    #[inline(always)]
    pub fn hash(self, key: &[u64; 2]) -> u64 {
        siphash13(key, self.addresses, self.ports)
    }
}

impl From<FlowTuple> for FlowWords {
    #[inline(always)]
    fn from(flow: FlowTuple) -> Self {
        Self::new(Self::addresses(flow.src, flow.dst), [flow.src_port, flow.dst_port], flow.proto)
    }
}

/// The row of a hash in a ring of `rows` rows; `None` for an empty ring.
#[inline(always)]
pub fn row_of(hash: u64, rows: u32) -> Option<u32> {
    if rows == 0 { None } else { Some((((hash >> 32) * u64::from(rows)) >> 32) as u32) }
}

/// SipHash-1-3 of the 16 bytes `first`, `second` (little endian).
#[inline(always)]
pub fn siphash13(key: &[u64; 2], first: u64, second: u64) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    // The last block holds the message length in its top byte and no more message bytes.
    for block in [first, second, 16u64 << 56] {
        v[3] ^= block;
        round(&mut v);
        v[0] ^= block;
    }
    v[2] ^= 0xff;
    round(&mut v);
    round(&mut v);
    round(&mut v);
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher as _;

    use proptest::prelude::*;
    use siphasher::sip::SipHasher13;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_the_siphasher_crate(key: [u64; 2], first: u64, second: u64) {
            let mut oracle = SipHasher13::new_with_keys(key[0], key[1]);
            oracle.write(&first.to_le_bytes());
            oracle.write(&second.to_le_bytes());
            prop_assert_eq!(siphash13(&key, first, second), oracle.finish());
        }

        #[test]
        fn a_row_is_always_in_the_ring(hash: u64, rows in 1u32..) {
            prop_assert!(row_of(hash, rows).expect("rows") < rows);
        }

        #[test]
        fn every_field_counts(key: [u64; 2], bytes: [u8; 13], at in 0usize..13, flip in 1u8..) {
            let mut other = bytes;
            other[at] ^= flip;
            prop_assert_ne!(tuple(bytes).hash(&key), tuple(other).hash(&key));
        }

        #[test]
        fn with_affinity_ports_and_protocol_do_not(key: [u64; 2], bytes: [u8; 13], ports: [[u8; 2]; 2], proto: u8) {
            let flow = tuple(bytes);
            let [src_port, dst_port] = ports;
            let other = FlowTuple { src_port, dst_port, proto, ..flow };
            prop_assert_eq!(flow.client_only().hash(&key), other.client_only().hash(&key));
        }
    }

    #[test]
    fn words_name_the_parts_of_the_flow_and_its_service() {
        let flow = tuple([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
        let words = FlowWords::from(flow);
        assert_eq!((words.src(), words.dst()), (flow.src, flow.dst));
        assert_eq!((words.src_port(), words.dst_port()), (flow.src_port, flow.dst_port));
        let key = crate::ServiceKey { addr: flow.dst, port: flow.dst_port, proto: flow.proto, pad: 0 };
        assert_eq!(crate::ServiceKey::from_word(words.service_word()), key);
        assert_eq!(words.client_only(), FlowWords::from(flow.client_only()));
    }

    fn tuple(b: [u8; 13]) -> FlowTuple {
        FlowTuple {
            src: [b[0], b[1], b[2], b[3]],
            dst: [b[4], b[5], b[6], b[7]],
            src_port: [b[8], b[9]],
            dst_port: [b[10], b[11]],
            proto: b[12],
        }
    }

    #[test]
    fn an_empty_ring_has_no_row() {
        assert_eq!(row_of(7, 0), None);
        assert_eq!(row_of(0, 65488), Some(0));
        assert_eq!(row_of(u64::MAX, 65488), Some(65487));
    }
}
