//! A distribution of times, in bounded memory.

use hdrhistogram::{CreationError, Histogram};
use serde::Serialize;

/// Below this, times are not told apart.
const LOWEST_NS: u64 = 1_000;
/// Longer times count as this long in the quantiles; the largest is exact all the same.
const HIGHEST_NS: u64 = 3_600_000_000_000;
const NS_PER_MS: f64 = 1e6;
/// Upper ends of buckets that are counted exactly, for those who add up histograms of several places.
pub const BOUNDS_NS: [u64; 18] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
];

/// Times to three significant digits, with their exact sum and maximum.
#[derive(Clone, Debug)]
pub struct Times {
    histogram: Histogram<u64>,
    buckets: [u64; BOUNDS_NS.len()],
    sum_ns: u128,
    max_ns: u64,
}

/// What is told of them, in milliseconds. All but the count are null where there were none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TimesFigures {
    /// How many.
    pub count: u64,
    /// Mean.
    pub mean_ms: Option<f64>,
    /// Median.
    pub p50_ms: Option<f64>,
    /// 95th percentile.
    pub p95_ms: Option<f64>,
    /// 99th percentile.
    pub p99_ms: Option<f64>,
    /// Largest.
    pub max_ms: Option<f64>,
}

impl Times {
    /// None yet.
    ///
    /// # Errors
    /// Never in practice: the bounds are constant and valid.
    pub fn new() -> Result<Self, CreationError> {
        let histogram = Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, 3)?;
        Ok(Self { histogram, buckets: [0; BOUNDS_NS.len()], sum_ns: 0, max_ns: 0 })
    }

    /// Counts one.
    pub fn record(&mut self, ns: u64) {
        self.histogram.saturating_record(ns.min(HIGHEST_NS));
        if let Some(count) = self.buckets.get_mut(BOUNDS_NS.partition_point(|bound| *bound < ns)) {
            *count += 1;
        }
        self.sum_ns += u128::from(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.histogram.reset();
        self.buckets = [0; BOUNDS_NS.len()];
        self.sum_ns = 0;
        self.max_ns = 0;
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// All of them, nanoseconds.
    #[must_use]
    pub fn sum_ns(&self) -> u128 {
        self.sum_ns
    }

    /// How many are within each of [`BOUNDS_NS`] and beyond the one before; those beyond the last are
    /// in none.
    #[must_use]
    pub fn buckets(&self) -> &[u64] {
        &self.buckets
    }

    /// What they are.
    #[must_use]
    pub fn figures(&self) -> TimesFigures {
        let count = self.histogram.len();
        if count == 0 {
            return TimesFigures::default();
        }
        let ms = |ns: u64| Some(ns as f64 / NS_PER_MS);
        // A bucket speaks for its upper end, which may lie beyond the largest of all.
        let at = |quantile| {
            ms(self.histogram.value_at_quantile(quantile).min(self.max_ns).min(HIGHEST_NS))
        };
        TimesFigures {
            count,
            mean_ms: Some(self.sum_ns as f64 / count as f64 / NS_PER_MS),
            p50_ms: at(0.5),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            max_ms: ms(self.max_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_is_told_of_none() {
        let mut times = Times::new().unwrap();
        assert_eq!(times.figures(), TimesFigures::default());
        times.record(5_000_000);
        times.clear();
        assert_eq!(times.figures(), TimesFigures::default());
    }

    proptest! {
        /// Against the sorted list: the value at rank ceil(q n), within three digits, or a
        /// microsecond.
        #[test]
        fn quantiles_are_those_of_the_list(
            mut list in proptest::collection::vec(0..2 * HIGHEST_NS, 1..200),
        ) {
            let mut times = Times::new().unwrap();
            list.iter().for_each(|&ns| times.record(ns));
            list.sort_unstable();
            let figures = times.figures();
            prop_assert_eq!(figures.count, list.len() as u64);
            let mut below = 0;
            for (bound, count) in BOUNDS_NS.iter().zip(times.buckets()) {
                below += count;
                prop_assert_eq!(below, list.iter().filter(|ns| *ns <= bound).count() as u64);
            }
            for (quantile, got) in
                [(0.5, figures.p50_ms), (0.95, figures.p95_ms), (0.99, figures.p99_ms)]
            {
                let rank = (quantile * list.len() as f64).ceil() as usize;
                let expected = list[rank - 1].min(HIGHEST_NS) as f64;
                let got = got.unwrap() * NS_PER_MS;
                prop_assert!((got - expected).abs() <= 1_100.0 + expected / 1_000.0, "{got} {expected}");
            }
            prop_assert_eq!(figures.max_ms.unwrap(), list[list.len() - 1] as f64 / NS_PER_MS);
            let mean = list.iter().map(|&ns| ns as f64).sum::<f64>() / list.len() as f64 / NS_PER_MS;
            prop_assert!((figures.mean_ms.unwrap() - mean).abs() <= mean * 1e-9);
        }
    }
}
