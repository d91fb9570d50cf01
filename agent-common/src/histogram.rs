//! Histograms that are kept in the kernel: where a time falls, and what a cell stands for.
//!
//! A row for each power of two, cut evenly into columns: as in HdrHistogram, the error is a share of
//! the value, here at most 1/512 of it. A row fits a map's value; a program touches one cell.

/// Cells of a row.
pub const COLUMNS: usize = 1 << COLUMN_BITS;
const COLUMN_BITS: u32 = 8;
/// Rows; the last one ends at 2^37 ns, 137 seconds. What is longer counts in its last cell.
pub const ROWS: usize = 30;

/// The row and column of a time in nanoseconds.
#[must_use]
pub const fn place(ns: u64) -> (usize, usize) {
    let exponent = 63 - (ns | 1).leading_zeros();
    if exponent < COLUMN_BITS {
        return (0, ns as usize);
    }
    let row = (exponent - COLUMN_BITS + 1) as usize;
    if row >= ROWS {
        return (ROWS - 1, COLUMNS - 1);
    }
    (row, (ns >> (exponent - COLUMN_BITS)) as usize & (COLUMNS - 1))
}

/// The middle of a cell, nanoseconds.
#[must_use]
pub const fn middle(row: usize, column: usize) -> u64 {
    if row == 0 {
        return column as u64;
    }
    let shift = row - 1;
    (((COLUMNS + column) as u64) << shift) + ((1 << shift) >> 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_meet_without_a_gap() {
        assert_eq!((place(0), place(1), place(255)), ((0, 0), (0, 1), (0, 255)));
        assert_eq!((place(256), place(511), place(512)), ((1, 0), (1, 255), (2, 0)));
        assert_eq!((middle(0, 7), middle(1, 0), middle(2, 0)), (7, 256, 513));
        let last = (ROWS - 1, COLUMNS - 1);
        assert_eq!((place((1 << 37) - 1), place(1 << 37), place(u64::MAX)), (last, last, last));
    }

    proptest! {
        #[test]
        fn a_cell_stands_for_its_times(ns in 0u64..1 << 37) {
            let (row, column) = place(ns);
            prop_assert!(row < ROWS && column < COLUMNS);
            let middle = middle(row, column);
            prop_assert!(middle.abs_diff(ns) <= ns / 512 + 1, "{ns} {middle}");
            // A later time is never in an earlier cell.
            prop_assert!(place(ns + 1) >= place(ns));
        }
    }
}
