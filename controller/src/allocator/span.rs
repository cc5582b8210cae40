//! Pure: sorted lists of ranges of numbers.

/// An inclusive range of addresses as numbers; merging may join several entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    pub first: u128,
    pub last: u128,
}

impl Span {
    pub fn contains(self, number: u128) -> bool {
        self.first <= number && number <= self.last
    }
}

/// Sorts, and joins what overlaps or touches.
pub fn merge(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort();
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.first <= last.last.saturating_add(1) => last.last = last.last.max(span.last),
            _ => merged.push(span),
        }
    }
    merged
}

/// What is in `spans` and not in `excluded`; both are merged.
pub fn without(spans: Vec<Span>, excluded: &[Span]) -> Vec<Span> {
    let mut left = spans;
    for hole in excluded {
        let cut = |span: Span| {
            let below = hole.first.checked_sub(1).map(|last| Span { last: last.min(span.last), ..span });
            let above = hole.last.checked_add(1).map(|first| Span { first: first.max(span.first), ..span });
            [below, above].into_iter().flatten().filter(|part| part.first <= part.last)
        };
        left = left.into_iter().flat_map(cut).collect();
    }
    left
}

pub fn overlap(spans: &[Span], others: &[Span]) -> bool {
    spans.iter().any(|a| others.iter().any(|b| a.first <= b.last && b.first <= a.last))
}

/// How many numbers there are in merged spans. No overflow: addresses of hosts are less than half of IPv6.
pub fn count(spans: &[Span]) -> u128 {
    spans.iter().map(|span| span.last - span.first + 1).sum()
}

/// How many of them have this last octet.
pub fn endings(spans: &[Span], octet: u128) -> u128 {
    let up_to = |bound: u128| if bound < octet { 0 } else { (bound - octet) / 256 + 1 };
    spans.iter().map(|span| up_to(span.last) - span.first.checked_sub(1).map_or(0, up_to)).sum()
}
