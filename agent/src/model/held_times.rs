//! What packets got: how long each was held, and which were never told of.

use hdrhistogram::Histogram;

use super::impairment::Receipt;

/// Finds numbers that were skipped: packets that the kernel numbered and then let through, since
/// there was no room to tell of them. Numbers wrap at 2^32.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gaps {
    last: Option<u32>,
}

impl Gaps {
    /// How many numbers lie between the previous one and `id`.
    pub fn before(&mut self, id: u32) -> u64 {
        // The kernel's first number is 1.
        let skipped = id.wrapping_sub(self.last.unwrap_or(0)).wrapping_sub(1);
        self.last = Some(id);
        u64::from(skipped)
    }
}

/// Times that packets were held, to three significant digits, up to two minutes.
#[derive(Clone, Debug)]
pub struct HeldTimes {
    histogram: Histogram<u64>,
}

const HIGHEST_NS: u64 = 120_000_000_000;

impl HeldTimes {
    /// None yet.
    ///
    /// # Errors
    /// Never in practice: the bounds are constant and valid.
    pub fn new() -> Result<Self, hdrhistogram::CreationError> {
        Histogram::new_with_bounds(1_000, HIGHEST_NS, 3).map(|histogram| Self { histogram })
    }

    /// Counts one packet.
    pub fn record(&mut self, held_ns: u64) {
        self.histogram.saturating_record(held_ns.max(1));
    }

    /// Counts those of another one too.
    pub fn add(&mut self, other: &Self) {
        // Both have the same bounds, so it fits.
        let _ = self.histogram.add(&other.histogram);
    }

    /// What packets got.
    #[must_use]
    pub fn receipt(&self) -> Receipt {
        let at = |quantile| {
            if self.histogram.is_empty() { 0 } else { self.histogram.value_at_quantile(quantile) }
        };
        Receipt {
            packets: self.histogram.len(),
            p50_ns: at(0.5),
            p99_ns: at(0.99),
            max_ns: self.histogram.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_numbers_are_counted_across_the_wrap() {
        let mut gaps = Gaps::default();
        let skipped: Vec<u64> = [1, 2, 5, 6].map(|id| gaps.before(id)).into();
        assert_eq!(skipped, [0, 0, 2, 0]);
        let mut late = Gaps { last: Some(u32::MAX - 1) };
        assert_eq!([u32::MAX, 0, 2].map(|id| late.before(id)), [0, 0, 1]);
        assert_eq!(Gaps::default().before(3), 2);
    }

    #[test]
    fn a_receipt_tells_median_tail_and_count() {
        let mut times = HeldTimes::new().unwrap();
        assert_eq!(times.receipt(), Receipt { packets: 0, p50_ns: 0, p99_ns: 0, max_ns: 0 });
        for _ in 0..98 {
            times.record(100_000_000);
        }
        times.record(150_000_000);
        times.record(200_000_000);
        let receipt = times.receipt();
        assert_eq!(receipt.packets, 100);
        assert!(receipt.p50_ns.abs_diff(100_000_000) <= 100_000, "{receipt:?}");
        assert!(receipt.p99_ns.abs_diff(150_000_000) <= 150_000, "{receipt:?}");
        assert!(receipt.max_ns.abs_diff(200_000_000) <= 200_000, "{receipt:?}");
    }
}
