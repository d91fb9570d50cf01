//! How a delay goes with time: `0s:0ms 30s:100ms 60s~0ms` is no delay at first, 100 ms from the
//! thirtieth second on, and then ever less until there is none at the sixtieth.

use std::time::Duration;

use agent_common::duration;
use serde::{Deserialize, Serialize};

use super::impairment::MAX_DELAY;

/// How often the delay changes on a ramp.
pub const RESOLUTION: Duration = Duration::from_millis(10);

/// Points that a schedule may have: more are a program's work, which can call `change` itself.
const MAX_POINTS: usize = 1_000;

/// How the delay gets to a point's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// At once, when its time has come.
    Step,
    /// Evenly from the point before.
    Ramp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    at: Duration,
    delay: Duration,
    way: Way,
}

/// Delays over time. Never empty; begins at 0; times ascend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Schedule {
    points: Vec<Point>,
}

/// Why a text is no schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Nothing in it.
    #[error("the schedule is empty; write one such as `0s:0ms 30s:100ms 60s:0ms`")]
    Empty,
    /// More than [`MAX_POINTS`].
    #[error("the schedule has {0} points, more than {MAX_POINTS}")]
    TooMany(usize),
    /// A word without `:` or `~`.
    #[error(
        "`{0}` is no point of a schedule; write TIME:DELAY for a step (30s:100ms) or TIME~DELAY for \
         a ramp that gets there at TIME (60s~0ms)"
    )]
    NotAPoint(String),
    /// A time or delay that cannot be read.
    #[error("in the schedule's point `{point}`: {source}")]
    Duration {
        /// The word.
        point: String,
        /// What is wrong with it.
        source: duration::ParseError,
    },
    /// More than [`MAX_DELAY`].
    #[error(
        "in the schedule's point `{point}`: a delay above the largest that is taken, {most}",
        most = duration::format(MAX_DELAY)
    )]
    DelayTooLong {
        /// The word.
        point: String,
    },
    /// It begins later than at 0.
    #[error("the schedule begins at {0}; its first point must be at 0s, such as 0s:0ms")]
    LateStart(String),
    /// Nothing to come from.
    #[error("the schedule's first point, `{0}`, cannot be a ramp; write it with a colon")]
    RampFirst(String),
    /// Time goes back or stands still.
    #[error("the schedule goes back in time: `{point}` does not come after {before}")]
    NotAscending {
        /// The word.
        point: String,
        /// The time of the point before.
        before: String,
    },
    /// No delay at any time.
    #[error("every delay of the schedule is zero: nothing would be injected")]
    AllZero,
}

impl Schedule {
    /// Reads points separated by white space or commas.
    ///
    /// # Errors
    /// [`ScheduleError`], naming the point.
    pub fn parse(text: &str) -> Result<Self, ScheduleError> {
        let mut points: Vec<Point> = Vec::new();
        let between = |sign: char| sign.is_whitespace() || sign == ',';
        let words = || text.split(between).filter(|word| !word.is_empty());
        let count = words().count();
        if count > MAX_POINTS {
            return Err(ScheduleError::TooMany(count));
        }
        for word in words() {
            let point = point(word)?;
            match points.last() {
                None if !point.at.is_zero() => {
                    return Err(ScheduleError::LateStart(duration::format(point.at)));
                }
                None if point.way == Way::Ramp => {
                    return Err(ScheduleError::RampFirst(word.to_owned()));
                }
                Some(before) if point.at <= before.at => {
                    let before = duration::format(before.at);
                    return Err(ScheduleError::NotAscending { point: word.to_owned(), before });
                }
                _ => points.push(point),
            }
        }
        match points.iter().map(|point| point.delay).max() {
            None => Err(ScheduleError::Empty),
            Some(Duration::ZERO) => Err(ScheduleError::AllZero),
            Some(_) => Ok(Self { points }),
        }
    }

    /// The delay `since` after the start. The last point's holds for ever.
    #[must_use]
    pub fn delay_at(&self, since: Duration) -> Duration {
        let after = self.points.partition_point(|point| point.at <= since);
        let Some(before) = after.checked_sub(1).map(|index| self.points[index]) else {
            return Duration::ZERO;
        };
        match self.points.get(after) {
            Some(next) if next.way == Way::Ramp => {
                let share = (since - before.at).as_secs_f64() / (next.at - before.at).as_secs_f64();
                let (from, to) = (before.delay.as_nanos() as f64, next.delay.as_nanos() as f64);
                Duration::from_nanos((from + (to - from) * share).round() as u64)
            }
            _ => before.delay,
        }
    }

    /// When the delay is next to be set, after `since`: the next point, or sooner on a ramp, which is
    /// taken in steps of [`RESOLUTION`]. None once it stays as it is.
    #[must_use]
    pub fn next_change(&self, since: Duration) -> Option<Duration> {
        let next = self.points.iter().find(|point| point.at > since)?;
        match next.way {
            Way::Step => Some(next.at),
            Way::Ramp => Some(next.at.min(since + RESOLUTION)),
        }
    }

    /// Which stretch between two points it is `since` after the start: the first is 0.
    #[must_use]
    pub fn phase_at(&self, since: Duration) -> usize {
        self.points.partition_point(|point| point.at <= since).saturating_sub(1)
    }

    /// A stretch between two points in words, as `30s to 60s, 100ms`.
    #[must_use]
    pub fn phase_words(&self, phase: usize) -> String {
        let Some(begin) = self.points.get(phase) else { return String::new() };
        let (at, delay) = (duration::format(begin.at), duration::format(begin.delay));
        match self.points.get(phase + 1) {
            None => format!("from {at} on, {delay}"),
            Some(Point { at: end, way: Way::Step, .. }) => {
                format!("{at} to {}, {delay}", duration::format(*end))
            }
            Some(Point { at: end, way: Way::Ramp, delay: last }) => {
                let (end, last) = (duration::format(*end), duration::format(*last));
                format!("{at} to {end}, {delay} to {last}")
            }
        }
    }

    /// Whether it has a ramp.
    #[must_use]
    pub fn has_ramp(&self) -> bool {
        self.points.iter().any(|point| point.way == Way::Ramp)
    }

    /// The longest delay that it comes to.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.points.iter().map(|point| point.delay).max().unwrap_or_default()
    }

    /// When its last point is reached.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.points.last().map_or(Duration::ZERO, |point| point.at)
    }
}

impl TryFrom<String> for Schedule {
    type Error = ScheduleError;

    fn try_from(text: String) -> Result<Self, ScheduleError> {
        Self::parse(&text)
    }
}

impl From<Schedule> for String {
    fn from(schedule: Schedule) -> Self {
        schedule.to_string()
    }
}

impl std::fmt::Display for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, point) in self.points.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            let sign = if point.way == Way::Step { ':' } else { '~' };
            let (at, delay) = (duration::format(point.at), duration::format(point.delay));
            write!(f, "{space}{at}{sign}{delay}")?;
        }
        Ok(())
    }
}

fn point(word: &str) -> Result<Point, ScheduleError> {
    let split = word.find([':', '~']).ok_or_else(|| ScheduleError::NotAPoint(word.to_owned()))?;
    let (at, delay) = (&word[..split], &word[split + 1..]);
    let way = if word[split..].starts_with(':') { Way::Step } else { Way::Ramp };
    let read = |text| {
        duration::parse(text)
            .map_err(|source| ScheduleError::Duration { point: word.to_owned(), source })
    };
    let point = Point { at: read(at)?, delay: read(delay)?, way };
    if point.delay > MAX_DELAY {
        return Err(ScheduleError::DelayTooLong { point: word.to_owned() });
    }
    Ok(point)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn steps_hold_and_ramps_glide() {
        let schedule = Schedule::parse("0s:0ms 30s:100ms 60s~0ms 70s:20ms").unwrap();
        let at = |s: f64| schedule.delay_at(Duration::from_secs_f64(s));
        assert_eq!((at(0.0), at(29.999)), (ms(0), ms(0)));
        assert_eq!((at(30.0), at(45.0), at(60.0)), (ms(100), ms(50), ms(0)));
        assert_eq!((at(69.9), at(70.0), at(1e6)), (ms(0), ms(20), ms(20)));
        assert_eq!((schedule.longest(), schedule.length()), (ms(100), ms(70_000)));
        assert_eq!(Schedule::parse("0s:0ms,30s:100ms, 60s~0ms,70s:20ms").unwrap(), schedule);
    }

    #[test]
    fn a_ramp_is_taken_in_steps_that_end_at_its_point() {
        let schedule = Schedule::parse("0s:10ms 1s~20ms 3s:0ms").unwrap();
        let next = |at: u64| schedule.next_change(ms(at));
        assert_eq!((next(0), next(10), next(995)), (Some(ms(10)), Some(ms(20)), Some(ms(1000))));
        assert_eq!((next(1000), next(3000)), (Some(ms(3000)), None));
        assert!(schedule.has_ramp() && !Schedule::parse("0s:1ms").unwrap().has_ramp());
    }

    #[test]
    fn a_phase_lasts_from_point_to_point() {
        let schedule = Schedule::parse("0s:10ms 1s~20ms 3s:0ms").unwrap();
        let phases = [0, 999, 1000, 2999, 3000, 9000].map(|at| schedule.phase_at(ms(at)));
        assert_eq!(phases, [0, 0, 1, 1, 2, 2]);
        let words = [0, 1, 2].map(|phase| schedule.phase_words(phase));
        assert_eq!(words, ["0s to 1s, 10ms to 20ms", "1s to 3s, 20ms", "from 3s on, 0s"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("", "empty"),
            ("   ", "empty"),
            ("0s:0ms", "nothing would be injected"),
            ("0s:0ms 30s", "`30s` is no point"),
            ("5s:10ms", "begins at 5s"),
            ("0s~10ms", "cannot be a ramp"),
            ("0s:0ms 30s:100ms 20s:0ms", "`20s:0ms` does not come after 30s"),
            ("0s:0ms 30s:100ms 30s:0ms", "`30s:0ms` does not come after 30s"),
            ("0s:1ms -3s:0ms", "negative"),
            ("0s:1ms 3s:5", "no unit"),
            ("0s:1ms 3s:2h", "`3s:2h`: a delay above"),
        ] {
            let error = Schedule::parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        let many = (0..=MAX_POINTS).map(|n| format!("{n}s:1ms ")).collect::<String>();
        assert_eq!(Schedule::parse(&many), Err(ScheduleError::TooMany(MAX_POINTS + 1)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_and_stays_between_its_points(
            points in prop::collection::vec((1u64..100_000, 0u64..1_000, any::<bool>()), 1..20),
            looks in prop::collection::vec(0u64..3_000_000, 20),
        ) {
            let mut at = 0;
            let mut text = "0s:7ms".to_owned();
            for (gap, delay, ramp) in points {
                at += gap;
                text += &format!(" {at}ms{}{delay}ms", if ramp { '~' } else { ':' });
            }
            let schedule = Schedule::parse(&text).unwrap();
            prop_assert_eq!(Schedule::parse(&schedule.to_string()).unwrap(), schedule.clone());
            for look in looks {
                prop_assert!(schedule.delay_at(ms(look)) <= schedule.longest());
                // Between changes of a step nothing moves.
                if let Some(next) = schedule.next_change(ms(look)) {
                    prop_assert!(next > ms(look));
                } else {
                    prop_assert_eq!(schedule.delay_at(ms(look)), schedule.delay_at(schedule.length()));
                }
            }
        }
    }
}
