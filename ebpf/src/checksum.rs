//! The Internet checksum. Read first: RFC 1071 (the sum), RFC 1624 (changing a sum with what it covers).

/// The ones' complement sum of 16-bit big-endian words, not folded. An odd last byte counts as the high half of a word.
#[inline(always)]
pub fn sum<const N: usize>(bytes: &[u8; N]) -> u32 {
    let mut sum = 0;
    let mut at = 0;
    while at < N {
        let low = if at + 1 < N { bytes[at + 1] } else { 0 };
        sum += u32::from(u16::from_be_bytes([bytes[at], low]));
        at += 2;
    }
    sum
}

/// Folds the carries and inverts: what goes into the header.
#[inline(always)]
pub fn finish(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// The checksum after one covered word changed from `old` to `new`: RFC 1624 equation 3.
#[inline(always)]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    finish(u32::from(!checksum) + u32::from(!old) + u32::from(new))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        // RFC 1071 section 3: 0001 f203 f4f5 f6f7 sums to ddf2 (after folding).
        assert_eq!(finish(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), !0xddf2);
    }

    #[test]
    fn the_example_of_rfc_1624() {
        // RFC 1624 section 4: HC = 0xDD2F, m = 0x5555, m' = 0x3285 gives 0x0000.
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn an_odd_byte_is_the_high_half() {
        assert_eq!(sum(&[0x12, 0x34, 0x56]), 0x1234 + 0x5600);
    }

    proptest! {
        #[test]
        fn an_updated_checksum_is_the_computed_one(mut bytes: [u8; 20], new: u16) {
            bytes[10..12].fill(0);
            let before = finish(sum(&bytes));
            let old = u16::from_be_bytes([bytes[8], bytes[9]]);
            bytes[8..10].copy_from_slice(&new.to_be_bytes());
            let computed = finish(sum(&bytes));
            let updated = update(before, old, new);
            // +0 and -0 are the same sum; the two ways may name them differently only if everything summed is zero.
            prop_assert!(updated == computed || (updated ^ computed) == 0xffff);
            bytes[10..12].copy_from_slice(&updated.to_be_bytes());
            prop_assert_eq!(finish(sum(&bytes)), 0);
        }
    }
}
