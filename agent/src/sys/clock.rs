//! The clock that all marks share.

use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in nanoseconds, as `bpf_ktime_get_ns` gives it.
#[must_use]
pub fn monotonic_ns() -> u64 {
    // The call cannot fail with this clock and a valid pointer; see clock_gettime(2).
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_nsec().unsigned_abs()
    })
}
