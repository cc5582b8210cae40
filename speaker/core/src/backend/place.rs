//! Which of two speakers of a node: a member of the API server endpoint may have one more, for Services (docs/decisions/0016).
//!
//! Each has maps, a program and tables of its own, so that neither can take anything from the other. A packet meets those of the first one,
//! then those of the second one; their VIPs differ.

use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;

use super::ruleset::{self, ALL_TABLES, CONNTRACK_HOOK_TABLE, TABLE};

/// Of a speaker on its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// No other one serves.
    #[default]
    Alone,
    /// The host speaker: a second one may serve beside it.
    First,
    /// Beside the host speaker.
    Second,
}

impl Place {
    /// Its nftables table, family ip.
    pub const fn table(self) -> &'static str {
        match self {
            Self::Alone | Self::First => TABLE,
            Self::Second => SECOND_TABLE,
        }
    }

    /// The two tables that it makes.
    pub const fn tables(self) -> [&'static str; 2] {
        match self {
            Self::Alone | Self::First => [TABLE, CONNTRACK_HOOK_TABLE],
            Self::Second => [SECOND_TABLE, SECOND_CONNTRACK_HOOK_TABLE],
        }
    }

    /// All that are its own or left behind: those that it removes.
    pub fn removable(self) -> Vec<&'static str> {
        let second = [SECOND_TABLE, SECOND_CONNTRACK_HOOK_TABLE];
        match self {
            Self::Alone => ALL_TABLES.into_iter().chain(second).collect(),
            Self::First => ALL_TABLES.into(),
            Self::Second => second.into(),
        }
    }

    /// That of family arp, for the addresses of nodes.
    pub const fn arp_table(self) -> &'static str {
        match self {
            Self::Alone | Self::First => ARP_TABLE,
            Self::Second => SECOND_ARP_TABLE,
        }
    }

    /// Of family arp: those that it removes.
    pub const fn removable_of_arp(self) -> &'static [&'static str] {
        match self {
            Self::Alone => &[ARP_TABLE, SECOND_ARP_TABLE],
            Self::First => &[ARP_TABLE],
            Self::Second => &[SECOND_ARP_TABLE],
        }
    }

    /// A transaction of [`ruleset`], which names [`TABLE`], for its own tables.
    pub fn renamed(self, text: &str) -> Cow<'_, str> {
        match self {
            Self::Alone | Self::First => text.into(),
            // Nothing else of the text begins so: names of chains and sets follow the table's.
            Self::Second => text.replace("ip sheave", "ip sheave-services").into(),
        }
    }

    /// The transaction that removes the tables. One that does not exist is no error.
    pub fn delete(self) -> String {
        ruleset::delete_tables(&self.removable())
    }
}

/// Every table that one of two speakers makes or has made.
pub fn is_ours(table: &str) -> bool {
    Place::Alone.removable().contains(&table)
}

/// Name of the second speaker's table.
pub const SECOND_TABLE: &str = "sheave-services";
/// And of its [`CONNTRACK_HOOK_TABLE`].
pub const SECOND_CONNTRACK_HOOK_TABLE: &str = "sheave-services-conntrack-hook";
/// Of family arp (`backend/arp_guard.rs` of the speaker). Not called like a table of family ip: third-party changes are told apart by the
/// name.
const ARP_TABLE: &str = "sheave-neighbours";
const SECOND_ARP_TABLE: &str = "sheave-services-neighbours";

#[cfg(test)]
mod tests {
    use super::super::tests::{plan, ready};
    use super::*;
    use crate::backend::ruleset::{replace, update};

    /// In a transaction of either kind, and nowhere a name of the other's.
    #[test]
    fn a_second_speaker_writes_its_own_tables_alone() {
        let (few, many) = (plan([ready("a", 1)]), plan([ready("a", 1), ready("a", 2), ready("b", 3)]));
        for text in [replace(&many), update(&few, &many).expect("they differ"), ruleset::delete()] {
            let tables = |text: &str| text.matches("ip sheave").count();
            let named = tables(&text);
            assert!(named > 0 && text.matches("sheave").count() == named, "{text}");
            let second = Place::Second.renamed(&text);
            assert_eq!((second.matches("ip sheave-services").count(), tables(&second)), (named, named), "{second}");
            assert_eq!(Place::Alone.renamed(&text), text);
            assert_eq!(Place::First.renamed(&text), text);
        }
    }

    #[test]
    fn each_removes_its_own_and_who_is_alone_what_a_second_one_left() {
        let [first, second] = [Place::First, Place::Second].map(Place::removable);
        assert!(first.iter().all(|table| !second.contains(table)));
        assert_eq!(Place::Alone.removable(), [first, second].concat());
        for place in [Place::Alone, Place::First, Place::Second] {
            assert!(
                place.tables().iter().all(|table| place.removable().contains(table) && is_ours(table)),
                "{place:?}"
            );
            assert_eq!(place.tables()[0], place.table());
            assert!(place.removable_of_arp().contains(&place.arp_table()));
        }
        assert!(!is_ours("kube-proxy"));
    }
}
