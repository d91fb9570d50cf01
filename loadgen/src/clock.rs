//! The clocks of the load generator: the only place that reads them.

use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in nanoseconds: the clock of every mark, on both sides of the socket.
#[must_use]
pub fn now_ns() -> u64 {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Processor time of the calling thread in nanoseconds.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    read(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

/// Time that the calling thread was runnable without a processor, in nanoseconds; None where the
/// kernel keeps no scheduler statistics.
#[must_use]
pub fn thread_runqueue_ns() -> Option<u64> {
    parse_schedstat(&std::fs::read_to_string("/proc/thread-self/schedstat").ok()?)
}

/// Neither clock can fail on Linux: both ids are always valid.
fn read(clock: ClockId) -> u64 {
    clock_gettime(clock)
        .map_or(0, |t| t.tv_sec().cast_unsigned() * 1_000_000_000 + t.tv_nsec().cast_unsigned())
}

/// Second field of `/proc/PID/schedstat` (Documentation/scheduler/sched-stats.rst).
fn parse_schedstat(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_goes_forward_and_counts_nanoseconds() {
        let before = now_ns();
        std::thread::sleep(std::time::Duration::from_millis(5));
        let elapsed = now_ns() - before;
        assert!((5_000_000..2_000_000_000).contains(&elapsed), "{elapsed}");
    }

    #[test]
    fn thread_clock_counts_work_and_not_sleep() {
        let before = thread_cpu_ns();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let wall = now_ns();
        let slept = thread_cpu_ns() - before;
        assert!(slept < 10_000_000, "{slept}");
        // However little of a processor this thread gets, its clock counts what it got.
        while thread_cpu_ns() - before < slept + 2_000_000 {
            assert!(now_ns() - wall < 30_000_000_000, "the clock stands still");
        }
        assert!(now_ns() - wall >= 2_000_000, "faster than time");
    }

    #[test]
    fn schedstat_holds_the_wait_second() {
        assert_eq!(parse_schedstat("123 456 7\n"), Some(456));
        assert_eq!(parse_schedstat("123"), None);
    }
}
