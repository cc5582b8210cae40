//! Pure: how many requests are under way at a time. What an API server gets beyond what it answers within the deadline comes too late
//! altogether and is asked for again, so that in the end nothing is written: Services of 1,000 ports are enough for that on a slow machine.

/// Fewer requests after one without an answer, one more after each round of answers: the congestion window of TCP (RFC 5681, section 3.1).
#[derive(Clone, Debug)]
pub struct Pace {
    allowed: usize,
    most: usize,
    /// Since the last change.
    answers: usize,
    cuts: u64,
}

/// When a request began: those of one round slow the pace down once, together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Began(u64);

impl Pace {
    /// At most so many, and at first.
    pub fn new(most: usize) -> Self {
        Pace { allowed: most, most, answers: 0, cuts: 0 }
    }

    pub fn allowed(&self) -> usize {
        self.allowed
    }

    pub fn begin(&self) -> Began {
        Began(self.cuts)
    }

    /// A request got an answer, whichever.
    pub fn answered(&mut self) {
        self.answers += 1;
        if self.answers >= self.allowed && self.allowed < self.most {
            self.allowed += 1;
            self.answers = 0;
        }
    }

    /// A request got no answer in time. True if there are fewer at a time from now on.
    pub fn late(&mut self, Began(cuts): Began) -> bool {
        self.answers = 0;
        if cuts != self.cuts || self.allowed == 1 {
            return false;
        }
        self.cuts += 1;
        self.allowed /= 2;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_without_answers_halves_it_once_and_answers_bring_it_back() {
        let mut pace = Pace::new(8);
        let round = [(); 8].map(|()| pace.begin());
        assert_eq!(round.map(|began| pace.late(began)).iter().filter(|cut| **cut).count(), 1);
        assert_eq!(pace.allowed(), 4);
        (0..4).for_each(|_| pace.answered());
        assert_eq!(pace.allowed(), 5);
        while pace.allowed() > 1 {
            assert!(pace.late(pace.begin()));
        }
        assert!(!pace.late(pace.begin()), "one at a time is the least");
        (0..100).for_each(|_| pace.answered());
        assert_eq!(pace.allowed(), 8);
    }

    /// An API server that works on all it has at once, at the same speed together, and goes on with requests that were given up.
    /// Without the pace it answers nothing in time, ever.
    #[test]
    fn a_slow_api_server_gets_everything_done() {
        // Each takes 600 ms alone; the deadline is 3 s: 8 together never make it.
        let run = |mut pace: Pace, slows: bool| {
            let (mut waiting, mut done, mut working) = (17, 0, Vec::<(f64, u64, Began)>::new());
            for at in 0..120_000_u64 {
                let under_way = working.iter().filter(|(_, began, _)| at < began + 3000).count();
                for _ in under_way..pace.allowed().min(under_way + waiting) {
                    working.push((600.0, at, pace.begin()));
                    waiting -= 1;
                }
                let share = 1.0 / working.len().max(1) as f64;
                for (left, began, ticket) in &mut working {
                    *left -= share;
                    if at == *began + 3000 && *left > 0.0 {
                        waiting += 1;
                        if slows {
                            pace.late(*ticket);
                        }
                    }
                }
                let (over, rest): (Vec<_>, Vec<_>) = working.into_iter().partition(|(left, ..)| *left <= 0.0);
                working = rest;
                for _ in over.iter().filter(|(_, began, _)| at <= began + 3000) {
                    done += 1;
                    if slows {
                        pace.answered();
                    }
                }
                if done == 17 {
                    return at;
                }
            }
            u64::MAX
        };
        let (with, without) = (run(Pace::new(8), true), run(Pace::new(8), false));
        assert!(with < 60_000 && without > 2 * with, "{with} ms with it, {without} ms without");
    }
}
