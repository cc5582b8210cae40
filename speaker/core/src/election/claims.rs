//! Two nodes claim one VIP and receive each other: which one keeps it.
//!
//! Read first: docs/election.md rule R5. Both sides compute the same from the adverts of both.

use core::cmp::Ordering;

use crate::name::{NodeName, Term, Vip};
use crate::rank;

/// One side of a conflict.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claimant<'a> {
    pub node: &'a NodeName,
    pub term: Term,
    /// Won or kept without receiving any peer.
    pub alone: bool,
    /// Wants a successor.
    pub steps_down: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Keep,
    /// Keep, with a term above the other's: the rival steps down, but was ahead.
    Raise,
    Yield,
}

impl Claimant<'_> {
    /// Higher keeps: among peers before alone, then the higher term, then the better rank.
    pub fn order(self, other: Self, vip: Vip) -> Ordering {
        let won = |claimant: Self| (!claimant.alone, claimant.term);
        let rank = |claimant: Self| rank::weight(vip, claimant.node);
        won(self).cmp(&won(other)).then_with(|| rank(self).cmp(&rank(other))).then_with(|| self.node.cmp(other.node))
    }
}

/// What `own` does about `rival`, which is up. `rival_one_way`: it has not received `own` for a dead interval.
pub(super) fn contest(vip: Vip, own: Claimant<'_>, rival: Claimant<'_>, rival_one_way: bool) -> Outcome {
    let ahead = own.order(rival, vip).is_gt();
    match (own.steps_down, rival.steps_down) {
        (true, false) => return Outcome::Yield,
        (false, true) => return if ahead { Outcome::Keep } else { Outcome::Raise },
        _ => {}
    }
    // R7: a rival that does not receive from us never yields. Except if it receives from no peer at all while we do: then its receive path is
    // broken, and clients do not reach it either.
    if rival_one_way && (own.alone || !rival.alone) {
        return Outcome::Yield;
    }
    if ahead { Outcome::Keep } else { Outcome::Yield }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: Vip = Vip(core::net::Ipv4Addr::new(192, 0, 2, 1));

    fn claimant(node: &NodeName, term: u64) -> Claimant<'_> {
        Claimant { node, term: Term(term), alone: false, steps_down: false }
    }

    #[test]
    fn order_of_claims() {
        let (a, b) = (NodeName::new("a").unwrap(), NodeName::new("b").unwrap());
        let verdict = |own, rival| contest(VIP, own, rival, false);
        assert_eq!(verdict(claimant(&a, 2), claimant(&b, 1)), Outcome::Keep);
        assert_eq!(verdict(claimant(&a, 1), claimant(&b, 2)), Outcome::Yield);
        let alone = Claimant { alone: true, ..claimant(&a, 9) };
        assert_eq!(verdict(alone, claimant(&b, 1)), Outcome::Yield, "a high term won alone");
        assert_eq!(verdict(claimant(&b, 1), alone), Outcome::Keep);
        assert_ne!(verdict(claimant(&a, 1), claimant(&b, 1)), verdict(claimant(&b, 1), claimant(&a, 1)), "a tie");
    }

    #[test]
    fn a_claimant_that_steps_down_yields() {
        let (a, b) = (NodeName::new("a").unwrap(), NodeName::new("b").unwrap());
        let leaving = Claimant { steps_down: true, ..claimant(&a, 9) };
        assert_eq!(contest(VIP, leaving, claimant(&b, 1), false), Outcome::Yield);
        assert_eq!(contest(VIP, claimant(&b, 1), leaving, false), Outcome::Raise);
        assert_eq!(contest(VIP, claimant(&b, 10), leaving, false), Outcome::Keep);
    }

    #[test]
    fn a_one_way_rival_never_yields_so_we_do() {
        let (a, b) = (NodeName::new("a").unwrap(), NodeName::new("b").unwrap());
        assert_eq!(contest(VIP, claimant(&a, 9), claimant(&b, 1), true), Outcome::Yield);
        let alone = Claimant { alone: true, ..claimant(&b, 1) };
        assert_eq!(contest(VIP, claimant(&a, 1), alone, true), Outcome::Keep, "it receives no peer, we do");
        let own_alone = Claimant { alone: true, ..claimant(&a, 9) };
        assert_eq!(contest(VIP, own_alone, alone, true), Outcome::Yield);
    }
}
