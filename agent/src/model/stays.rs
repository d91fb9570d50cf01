//! A receipt from a histogram that was kept in the kernel.

use agent_common::histogram::{COLUMNS, middle};

use super::impairment::Receipt;

/// What packets got, from the sums of all processors' rows and the longest stay.
#[must_use]
pub fn receipt(rows: &[[u64; COLUMNS]], longest_ns: u64) -> Receipt {
    let packets = rows.iter().flatten().sum();
    // The middle of the longest one's cell may lie beyond it.
    let at = |share| quantile(rows, packets, share).min(longest_ns);
    Receipt { packets, p50_ns: at(0.5), p99_ns: at(0.99), max_ns: longest_ns }
}

/// The smallest cell that at least `share` of all do not exceed; 0 if there are none.
fn quantile(rows: &[[u64; COLUMNS]], packets: u64, share: f64) -> u64 {
    let rank = (packets as f64 * share).ceil().max(1.0) as u64;
    let mut seen = 0;
    for (row, cells) in rows.iter().enumerate() {
        for (column, count) in cells.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return middle(row, column);
            }
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use agent_common::histogram::{ROWS, place};

    use super::*;

    fn rows(times: impl IntoIterator<Item = u64>) -> Vec<[u64; COLUMNS]> {
        let mut rows = vec![[0; COLUMNS]; ROWS];
        for ns in times {
            let (row, column) = place(ns);
            rows[row][column] += 1;
        }
        rows
    }

    #[test]
    fn median_tail_and_longest_are_those_of_the_packets() {
        let times = (1..=1000).map(|n| n * 100_000);
        let receipt = receipt(&rows(times), 100_000_000);
        assert_eq!((receipt.packets, receipt.max_ns), (1000, 100_000_000));
        assert!(receipt.p50_ns.abs_diff(50_000_000) <= 50_000_000 / 512 + 1, "{receipt:?}");
        assert!(receipt.p99_ns.abs_diff(99_000_000) <= 99_000_000 / 512 + 1, "{receipt:?}");
    }

    #[test]
    fn none_and_one_are_told_rightly() {
        let none = Receipt { packets: 0, p50_ns: 0, p99_ns: 0, max_ns: 0 };
        assert_eq!(receipt(&rows([]), 0), none);
        let one = receipt(&rows([100_000_001]), 100_000_001);
        assert_eq!((one.packets, one.max_ns), (1, 100_000_001));
        assert!(one.p99_ns <= one.max_ns && one.p50_ns == one.p99_ns, "{one:?}");
    }
}
