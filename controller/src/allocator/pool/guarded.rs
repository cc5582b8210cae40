//! Pure: what a pool contains and no Service may have.

use std::collections::BTreeMap;

use sheave_api::Refusal;

use super::{Pool, Span, span};
use crate::guards::GuardSet;

impl Pool {
    /// How many of its addresses are guarded, by reason; not those that its settings exclude anyway.
    pub fn guarded(&self, guards: &GuardSet) -> BTreeMap<Refusal, u128> {
        let mut counts: BTreeMap<Refusal, u128> = BTreeMap::new();
        for (first, last, reason) in self.spans_v4().flat_map(|(first, last)| guards.spans(first, last)) {
            let span = [Span { first: first.into(), last: last.into() }];
            let left_out = if self.avoid_buggy { span::endings(&span, 0) + span::endings(&span, 255) } else { 0 };
            *counts.entry(reason).or_default() += span::count(&span) - left_out;
        }
        counts.retain(|_, count| *count > 0);
        counts
    }

    /// Its spans of IPv4 addresses, lowest first.
    pub fn spans_v4(&self) -> impl Iterator<Item = (u32, u32)> {
        self.v4.iter().filter_map(|span| u32::try_from(span.first).ok().zip(u32::try_from(span.last).ok()))
    }
}
