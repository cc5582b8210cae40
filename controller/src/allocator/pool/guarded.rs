//! Pure: what a pool contains and no Service may have.

use std::collections::BTreeMap;

use sheave_api::Refusal;

use super::{Pool, Span, span};
use crate::family::Family;
use crate::guards::GuardSet;

impl Pool {
    /// How many of its addresses of a family are guarded, by reason; not those that its settings exclude anyway.
    pub fn guarded(&self, family: Family, guards: &GuardSet) -> BTreeMap<Refusal, u128> {
        let mut counts: BTreeMap<Refusal, u128> = BTreeMap::new();
        let buggy = self.avoid_buggy && family == Family::V4;
        let guarded = self.spans(family).iter().flat_map(|span| guards.spans(span.first, span.last));
        for (first, last, reason) in guarded {
            let span = [Span { first, last }];
            let left_out = if buggy { span::endings(&span, 0) + span::endings(&span, 255) } else { 0 };
            *counts.entry(reason).or_default() += span::count(&span) - left_out;
        }
        counts.retain(|_, count| *count > 0);
        counts
    }

    /// Its spans of IPv4 addresses as numbers of IPv4, lowest first.
    pub fn spans_v4(&self) -> impl Iterator<Item = (u32, u32)> {
        self.v4.iter().map(|span| (span.first as u32, span.last as u32))
    }
}
