//! What a person sees while a run lasts: one line that changes on a terminal, one every ten seconds
//! elsewhere. Pure: the caller prints.

use std::fmt::Write as _;

use crate::engine::Span;

const SECOND_NS: u64 = 1_000_000_000;

/// Where a run stands.
#[derive(Clone, Debug)]
pub struct Moment {
    /// Until the end by plan, nanoseconds.
    pub left_ns: u64,
    /// Users started.
    pub users: u32,
    /// Users at the top of the ramp.
    pub users_in_all: u32,
    /// What happened since the last line.
    pub span: Span,
    /// How long that is, nanoseconds.
    pub span_ns: u64,
    /// Failures since the start.
    pub failures: u64,
    /// The agent was lost.
    pub agent_lost: bool,
}

/// How often a line is due, nanoseconds.
#[must_use]
pub const fn interval_ns(terminal: bool) -> u64 {
    if terminal { SECOND_NS } else { 10 * SECOND_NS }
}

/// The line, without its end.
#[must_use]
pub fn line(moment: &Moment, colour: bool) -> String {
    let per_second = |count: u64| count as f64 * 1e9 / moment.span_ns.max(1) as f64;
    let mut out = format!(
        "{:>4} s left  {}/{} users  {} req/s  {} ok/s",
        moment.left_ns.div_ceil(SECOND_NS),
        moment.users,
        moment.users_in_all,
        rate(per_second(moment.span.requests)),
        rate(per_second(moment.span.successes)),
    );
    // Writing into a string cannot fail.
    let _ = match (moment.failures, colour) {
        (1.., true) => write!(out, "  \x1b[31m{} failed\x1b[0m", moment.failures),
        _ => write!(out, "  {} failed", moment.failures),
    };
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        let value = moment.span.quantile_ms(quantile).map_or_else(|| "-".to_owned(), latency);
        let _ = write!(out, "  {name} {value}");
    }
    if moment.agent_lost {
        out.push_str(if colour { "  \x1b[33magent lost\x1b[0m" } else { "  agent lost" });
    }
    out
}

fn rate(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn latency(ms: f64) -> String {
    match ms {
        ..10.0 => format!("{ms:.2} ms"),
        ..1000.0 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Failure, Outcome};

    fn moment() -> Moment {
        let mut span = Span::default();
        for _ in 0..9 {
            span.count(1_500_000, Outcome::Success);
        }
        span.count(2_500_000_000, Outcome::Failed(Failure::Http5xx));
        Moment {
            left_ns: 31_500_000_000,
            users: 3,
            users_in_all: 5,
            span,
            span_ns: 2 * SECOND_NS,
            failures: 1,
            agent_lost: false,
        }
    }

    #[test]
    fn a_line_tells_where_the_run_stands() {
        assert_eq!(
            line(&moment(), false),
            "  32 s left  3/5 users  5.0 req/s  4.5 ok/s  1 failed  p50 1.50 ms  p99 2.5 s"
        );
    }

    #[test]
    fn nothing_yet_is_a_dash_and_a_lost_agent_shows() {
        let moment = Moment { span: Span::default(), agent_lost: true, ..moment() };
        assert!(line(&moment, false).ends_with("1 failed  p50 -  p99 -  agent lost"));
    }

    #[test]
    fn colour_is_only_where_it_was_asked_for() {
        assert!(!line(&moment(), false).contains('\x1b'));
        assert!(line(&moment(), true).contains("\x1b[31m1 failed\x1b[0m"));
    }
}
