//! What packets got: how long each was held, and which were never told of.

use std::collections::VecDeque;

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

    /// Forgets all.
    pub fn start_over(&mut self) {
        self.histogram.reset();
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

    /// Takes one packet back that was counted by mistake.
    fn take_back(&mut self, held_ns: u64) {
        let value = held_ns.clamp(1, HIGHEST_NS);
        // It is in there, so it can be taken out.
        let mut one = self.histogram.clone();
        one.reset();
        one.saturating_record(value);
        let _ = self.histogram.subtract(&one);
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

/// Verdicts of which the kernel may still say that it had no such packets any more: it drops what is
/// queued when an interface goes down or somebody's hook goes.
#[derive(Debug)]
pub struct Verdicts {
    recent: VecDeque<Verdict>,
    next: u32,
}

impl Default for Verdicts {
    /// Numbers begin at 1: requests that nobody counts have 0.
    fn default() -> Self {
        Self { recent: VecDeque::new(), next: 1 }
    }
}

#[derive(Debug)]
struct Verdict {
    first: u32,
    /// One number for all packets, or one for each.
    together: bool,
    /// None for those that do not count.
    held_ns: Vec<Option<u64>>,
}

/// The kernel answers at once, only the answer is read later: by then this many others may have
/// been given.
const RECENT: usize = 1024;

impl Verdicts {
    /// The number for the next verdict on `packets` packets; if not `together`, the first of as many.
    pub fn number(&mut self, packets: usize, together: bool) -> u32 {
        let first = self.next;
        self.next = first.wrapping_add(if together { 1 } else { packets as u32 });
        first
    }

    /// From now on no packet that was let go before is taken back out of anybody's times.
    pub fn start_over(&mut self) {
        let all = self.recent.iter_mut().flat_map(|verdict| &mut verdict.held_ns);
        all.for_each(|held| *held = None);
    }

    /// Counts the packets of the verdict `first` as held for these times; None is for one that does
    /// not count.
    pub fn given(
        &mut self,
        first: u32,
        together: bool,
        held_ns: Vec<Option<u64>>,
        times: &mut HeldTimes,
    ) {
        held_ns.iter().flatten().for_each(|held| times.record(*held));
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(Verdict { first, together, held_ns });
    }

    /// Takes the packets of verdict `number` back, since the kernel had them no more; how many that
    /// were. None if the verdict is not known (yet).
    pub fn failed(&mut self, number: u32, times: &mut HeldTimes) -> Option<u64> {
        self.recent.iter_mut().rev().find_map(|verdict| {
            let offset = number.wrapping_sub(verdict.first) as usize;
            let gone = match (verdict.together, offset) {
                (true, 0) => std::mem::take(&mut verdict.held_ns),
                (false, at) => vec![*verdict.held_ns.get(at)?],
                _ => return None,
            };
            gone.iter().flatten().for_each(|held| times.take_back(*held));
            Some(gone.len() as u64)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_that_were_gone_are_taken_back() {
        let (mut verdicts, mut times) = (Verdicts::default(), HeldTimes::new().unwrap());
        let all = verdicts.number(3, true);
        verdicts.given(all, true, [5_000, 6_000, 7_000].map(Some).into(), &mut times);
        let each = verdicts.number(2, false);
        verdicts.given(each, false, [8_000, 9_000_000].map(Some).into(), &mut times);
        assert_eq!(times.receipt().packets, 5);
        assert_eq!(verdicts.failed(each + 1, &mut times), Some(1));
        assert!(times.receipt().p99_ns < 9_000);
        assert_eq!(verdicts.failed(all, &mut times), Some(3));
        assert_eq!(times.receipt().packets, 1);
        assert_eq!(verdicts.failed(each + 2, &mut times), None);
    }

    #[test]
    fn what_does_not_count_is_not_taken_back_either() {
        let (mut verdicts, mut times) = (Verdicts::default(), HeldTimes::new().unwrap());
        let old = verdicts.number(1, true);
        verdicts.given(old, true, vec![Some(5_000)], &mut times);
        times.start_over();
        verdicts.start_over();
        let new = verdicts.number(2, true);
        verdicts.given(new, true, vec![None, Some(5_000)], &mut times);
        assert_eq!(verdicts.failed(old, &mut times), Some(1));
        assert_eq!(times.receipt().packets, 1);
        assert_eq!(verdicts.failed(new, &mut times), Some(2));
        assert_eq!(times.receipt().packets, 0);
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
}
