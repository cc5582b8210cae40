//! What is counted.

/// What became of packets; lists are by extra hops.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    /// Of living flows, while all was calm.
    pub calm: [u64; 5],
    /// The same while something was going on: known; and not.
    pub busy: [u64; 5],
    pub busy_lost: u64,
    /// Lost at any time because more nodes than a row can name had flows of it.
    pub overflow: u64,
    /// Lost although nothing had happened for a while: a node had another table;
    pub differing: u64,
    /// somewhere no speaker ran;
    pub leaderless: u64,
    /// none of these.
    pub calm_lost: u64,
    /// Of flows that have ended: a reset.
    pub refused: [u64; 5],
    pub opened: u64,
    /// SYNs that no pod got, while a ready one was there; and all was calm.
    pub unopened: u64,
    pub calm_unopened: u64,
    /// SYNs that a pod got which did not listen: another did, for a while; and none did.
    pub refused_starts: u64,
    pub starts_alone: u64,
    /// Packets of living flows whose node was cut off: no node answered, and they were refused.
    pub unanswered: u64,
    pub cut_refused: u64,
}

impl Sums {
    /// Packets of living flows that did not arrive.
    pub fn lost(&self) -> u64 {
        self.busy_lost + self.overflow + self.differing + self.leaderless + self.calm_lost
    }

    pub fn add(&mut self, other: &Sums) {
        let lists = [(&mut self.calm, &other.calm), (&mut self.busy, &other.busy), (&mut self.refused, &other.refused)];
        for (list, other) in lists {
            list.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
        }
        self.unanswered += other.unanswered;
        self.cut_refused += other.cut_refused;
        self.busy_lost += other.busy_lost;
        self.overflow += other.overflow;
        self.differing += other.differing;
        self.leaderless += other.leaderless;
        self.calm_lost += other.calm_lost;
        self.opened += other.opened;
        self.unopened += other.unopened;
        self.calm_unopened += other.calm_unopened;
        self.refused_starts += other.refused_starts;
        self.starts_alone += other.starts_alone;
    }
}
