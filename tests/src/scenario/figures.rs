//! Figures of several repetitions.

use serde::{Deserialize, Serialize};

/// The spread of one quantity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub n: usize,
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Figures {
    /// `None` of no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (n, middle) = (sorted.len(), sorted.len() / 2);
        let median =
            if n % 2 == 1 { sorted[middle] } else { (sorted.get(middle.checked_sub(1)?)? + sorted[middle]) / 2.0 };
        Some(Self { n, min: sorted[0], median, max: sorted[n - 1] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert_eq!(Figures::of([]), None);
        assert_eq!(Figures::of([3.0]), Some(Figures { n: 1, min: 3.0, median: 3.0, max: 3.0 }));
        assert_eq!(Figures::of([4.0, 1.0, 2.0, 9.0]), Some(Figures { n: 4, min: 1.0, median: 3.0, max: 9.0 }));
    }
}
