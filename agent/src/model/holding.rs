//! Packets that wait for their time: first in, first out, since the delay is the same for each.

use std::collections::VecDeque;

use hdrhistogram::Histogram;

use super::impairment::Receipt;

/// Packets held, oldest first. Times are nanoseconds of one monotonic clock.
#[derive(Debug)]
pub struct Holding {
    delay_ns: u64,
    packets: VecDeque<(u32, u64)>,
}

/// Packets whose time has come.
#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    /// Number of the last of them: all up to it may go.
    pub last_id: u32,
    /// When each had arrived.
    pub arrivals: Vec<u64>,
}

impl Holding {
    /// None yet; each will wait for `delay_ns`.
    #[must_use]
    pub fn new(delay_ns: u64) -> Self {
        Self { delay_ns, packets: VecDeque::new() }
    }

    /// Takes packets in, in the order of their numbers.
    pub fn extend(&mut self, packets: impl IntoIterator<Item = (u32, u64)>) {
        self.packets.extend(packets);
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// When the oldest is due.
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        self.packets.front().map(|(_, arrival)| arrival.saturating_add(self.delay_ns))
    }

    /// Gives up those that are due at `now`, and no more than `most` of them.
    pub fn take_due(&mut self, now: u64, most: usize) -> Option<Due> {
        let horizon = now.checked_sub(self.delay_ns)?;
        let count =
            self.packets.iter().take(most).take_while(|(_, arrival)| *arrival <= horizon).count();
        self.take(count)
    }

    /// Gives up all of them, due or not.
    pub fn take_all(&mut self) -> Option<Due> {
        self.take(self.packets.len())
    }

    fn take(&mut self, count: usize) -> Option<Due> {
        let last_id = self.packets.get(count.checked_sub(1)?)?.0;
        let arrivals = self.packets.drain(..count).map(|(_, arrival)| arrival).collect();
        Some(Due { last_id, arrivals })
    }
}

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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn packets_leave_when_due_and_in_order() {
        let mut holding = Holding::new(100);
        holding.extend([(1, 1_000), (2, 1_010), (3, 1_200)]);
        assert_eq!(holding.next_due(), Some(1_100));
        assert_eq!(holding.take_due(1_099, 9), None);
        assert_eq!(
            holding.take_due(1_110, 9),
            Some(Due { last_id: 2, arrivals: vec![1_000, 1_010] })
        );
        assert_eq!(holding.next_due(), Some(1_300));
        assert_eq!(holding.take_all(), Some(Due { last_id: 3, arrivals: vec![1_200] }));
        assert!(holding.is_empty());
        assert_eq!(holding.take_all(), None);
        assert_eq!(holding.take_due(u64::MAX, 9), None);
    }

    #[test]
    fn no_more_leave_at_once_than_asked() {
        let mut holding = Holding::new(0);
        holding.extend((1..=5).map(|id| (id, 0)));
        assert_eq!(holding.take_due(1, 2).map(|due| due.last_id), Some(2));
        assert_eq!(holding.take_due(1, 2).map(|due| due.last_id), Some(4));
    }

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

    proptest! {
        #[test]
        fn none_is_early_lost_or_out_of_order(
            gaps in prop::collection::vec(0u64..50, 1..100),
            delay in 0u64..200,
            steps in prop::collection::vec(1u64..100, 1..200),
        ) {
            let mut holding = Holding::new(delay);
            let mut arrival = 0;
            let arrivals: Vec<u64> = gaps.iter().map(|gap| { arrival += gap; arrival }).collect();
            holding.extend((1..).zip(arrivals.iter().copied()));
            let (mut now, mut out) = (0, Vec::new());
            for step in steps {
                now += step;
                while let Some(due) = holding.take_due(now, 3) {
                    prop_assert!(due.arrivals.iter().all(|arrival| arrival + delay <= now));
                    out.extend(due.arrivals);
                    prop_assert_eq!(due.last_id as usize, out.len());
                }
                prop_assert!(holding.next_due().is_none_or(|due| due > now));
            }
            out.extend(holding.take_all().into_iter().flat_map(|due| due.arrivals));
            prop_assert_eq!(out, arrivals);
        }
    }
}
