//! Which members an administrator has taken out: they keep their connections, and get no new ones.
//!
//! A record for each member, made on any node, kept by all of them on disk, and sent with every health report. The newest counts. So a
//! member may be drained that is off, or that runs no speaker, and a node that lost its disk gets the records back. A record is newer than
//! those that its maker knew, whatever the clock says.

use alloc::collections::BTreeMap;
use core::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// What is wanted of a member. In this order the later one counts if two are of the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Wish {
    /// New connections, if it answers.
    #[default]
    Serve,
    /// No new ones, while another member takes them.
    Drain,
    /// None at all.
    DrainByForce,
}

/// The later one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Drain {
    /// When it was made: milliseconds of the wall clock.
    pub at: u64,
    pub wish: Wish,
}

/// By the address of the member.
pub type Drains = BTreeMap<Ipv4Addr, Drain>;

/// Records that are kept: as many members as a file has at most.
pub const MAX: usize = 32;

/// Why a member is not drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    NoMember,
    /// All others are drained, or no other answers on this port.
    LastMember {
        port: u16,
    },
    /// Records of members that are gone take the room.
    TooMany,
}

impl Wish {
    pub const fn number(self) -> u8 {
        match self {
            Self::Serve => 0,
            Self::Drain => 1,
            Self::DrainByForce => 2,
        }
    }

    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Serve),
            1 => Some(Self::Drain),
            2 => Some(Self::DrainByForce),
            _ => None,
        }
    }
}

/// What is wanted of this member.
pub fn wish(drains: &Drains, member: Ipv4Addr) -> Wish {
    drains.get(&member).map_or(Wish::Serve, |drain| drain.wish)
}

/// A record that outranks the one that is known.
pub fn newer(drains: &Drains, member: Ipv4Addr, wish: Wish, wall_millis: u64) -> Drain {
    let known = drains.get(&member).map_or(0, |drain| drain.at.saturating_add(1));
    Drain { at: wall_millis.max(known), wish }
}

/// Takes what is newer. Whether anything was.
pub fn merge(drains: &mut Drains, others: &Drains) -> bool {
    let mut changed = false;
    for (member, theirs) in others {
        let takes = match drains.get(member) {
            Some(ours) => ours < theirs,
            None => drains.len() < MAX,
        };
        if takes {
            drains.insert(*member, *theirs);
            changed = true;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
    const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 12);

    fn drains(records: &[(Ipv4Addr, u64, Wish)]) -> Drains {
        records.iter().map(|(member, at, wish)| (*member, Drain { at: *at, wish: *wish })).collect()
    }

    #[test]
    fn in_whatever_order_records_come_the_same_ones_count() {
        let one = drains(&[(A, 7, Wish::Drain), (B, 9, Wish::Serve)]);
        let two = drains(&[(A, 8, Wish::Serve), (B, 9, Wish::DrainByForce)]);
        let all = drains(&[(A, 8, Wish::Serve), (B, 9, Wish::DrainByForce)]);
        for [first, second] in [[&one, &two], [&two, &one]] {
            let mut merged = Drains::new();
            assert!(merge(&mut merged, first));
            merge(&mut merged, second);
            assert_eq!(merged, all);
            assert!(!merge(&mut merged, first) && !merge(&mut merged, second), "nothing is new");
        }
    }

    /// An hour slow, and its administrator's word is the last one nevertheless.
    #[test]
    fn a_record_is_newer_than_those_that_were_known() {
        let known = drains(&[(A, 3_600_000, Wish::Drain)]);
        let made = newer(&known, A, Wish::Serve, 5);
        assert_eq!(made, Drain { at: 3_600_001, wish: Wish::Serve });
        let mut merged = known.clone();
        assert!(merge(&mut merged, &[(A, made)].into()));
        assert_eq!((wish(&merged, A), wish(&merged, B)), (Wish::Serve, Wish::Serve));
        assert_eq!(newer(&known, B, Wish::Drain, 5).at, 5);
    }

    #[test]
    fn records_are_bounded() {
        let many: Drains =
            (0..100).map(|last| ([192, 0, 2, last].into(), Drain { at: 1, wish: Wish::Drain })).collect();
        let mut merged = Drains::new();
        assert!(merge(&mut merged, &many));
        assert_eq!(merged.len(), MAX);
        let newest = many.keys().map(|member| (*member, Drain { at: 2, wish: Wish::Serve })).collect();
        assert!(merge(&mut merged, &newest));
        assert!(merged.len() == MAX && merged.values().all(|drain| drain.at == 2));
        for wish in [Wish::Serve, Wish::Drain, Wish::DrainByForce] {
            assert_eq!(Wish::from_number(wish.number()), Some(wish));
        }
        assert_eq!(Wish::from_number(3), None);
    }
}
