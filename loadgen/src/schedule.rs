//! Which user starts when. Pure: times are nanoseconds after the start of the run.

/// The shape of a run: users come one by one at a steady rate, then all stay for the hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    users: u32,
    per_second: f64,
    hold_ns: u64,
}

impl Schedule {
    /// `per_second` 0 starts everybody at once.
    #[must_use]
    pub const fn new(users: u32, per_second: f64, hold_ns: u64) -> Self {
        Self { users, per_second, hold_ns }
    }

    /// Number of users in all.
    #[must_use]
    pub const fn users(&self) -> u32 {
        self.users
    }

    /// When user `user`, counted from 0, starts: `user / per_second` seconds after the first.
    #[must_use]
    pub fn start_of(&self, user: u32) -> u64 {
        if self.per_second > 0.0 {
            (f64::from(user) / self.per_second * 1e9).round() as u64
        } else {
            0
        }
    }

    /// When the last user starts and the hold begins.
    #[must_use]
    pub fn hold_start(&self) -> u64 {
        self.start_of(self.users.saturating_sub(1))
    }

    /// When the run ends.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.hold_start().saturating_add(self.hold_ns)
    }

    /// How many users of those numbered `offset`, `offset + step`, ... are due at `elapsed`.
    #[must_use]
    pub fn due(&self, elapsed: u64, offset: u32, step: u32) -> u32 {
        let mine = self.users.saturating_sub(offset).div_ceil(step);
        // Starts never go back, so a binary search over this thread's users does.
        let (mut low, mut high) = (0, mine);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.start_of(offset + middle * step) <= elapsed {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn five_per_second_takes_a_hundred_seconds_for_five_hundred() {
        let schedule = Schedule::new(500, 5.0, 80 * S);
        assert_eq!(schedule.start_of(0), 0);
        assert_eq!(schedule.start_of(1), S / 5);
        assert_eq!(schedule.hold_start(), 499 * S / 5);
        assert_eq!(schedule.end(), 499 * S / 5 + 80 * S);
        assert_eq!(schedule.due(S, 0, 1), 6);
    }

    #[test]
    fn no_rate_starts_all_at_once() {
        let schedule = Schedule::new(7, 0.0, S);
        assert_eq!(schedule.due(0, 0, 1), 7);
        assert_eq!((schedule.hold_start(), schedule.end()), (0, S));
    }

    proptest! {
        #[test]
        fn starts_never_go_back_and_threads_share_all_users(
            users in 1u32..2000, rate in 0.1f64..1e4, step in 1u32..9, at in 0.0f64..1.2,
        ) {
            let schedule = Schedule::new(users, rate, S);
            for user in 1..users {
                prop_assert!(schedule.start_of(user) >= schedule.start_of(user - 1));
            }
            let elapsed = (schedule.hold_start() as f64 * at) as u64;
            let expected = (0..users).filter(|u| schedule.start_of(*u) <= elapsed).count();
            let due: u32 = (0..step).map(|offset| schedule.due(elapsed, offset, step)).sum();
            prop_assert_eq!(due as usize, expected);
        }
    }
}
