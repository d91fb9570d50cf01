//! Plain text: a line for every second, and at the end what happened in all.

use std::fmt::Write as _;
use std::io::Write;

use super::session::Output;
use crate::model::account::{
    Account, Figures, SlowFigures, Summary, times::TimesFigures, workers::RoleFigures,
};

/// The header is repeated after so many lines.
const HEADER_EVERY: u64 = 20;
/// The last window may be too short for rates.
pub(super) const SHORTEST_S: f64 = 0.5;
/// Lines are no longer than this.
const WIDTH: usize = 100;
/// Slow requests that are listed.
const SLOWEST: usize = 5;

/// A table to a stream.
#[derive(Debug)]
pub(super) struct Table<W> {
    out: W,
    port: u16,
    lines: u64,
}

impl<W: Write> Table<W> {
    /// Of the service on `port`, to `out`.
    pub(super) fn new(out: W, port: u16) -> Self {
        Self { out, port, lines: 0 }
    }
}

impl<W: Write> Output for Table<W> {
    fn window(&mut self, figures: &Figures, _account: &Account) -> anyhow::Result<()> {
        if figures.to_s - figures.from_s < SHORTEST_S {
            return Ok(());
        }
        if self.lines.is_multiple_of(HEADER_EVERY) {
            self.out.write_all(header().as_bytes())?;
        }
        self.lines += 1;
        self.out.write_all(row(figures).as_bytes())?;
        Ok(self.out.flush()?)
    }

    fn notice(&mut self, notice: &str) {
        eprintln!("agent: {notice}");
    }

    fn end(&mut self, summary: &Summary, _ended: &'static str) -> anyhow::Result<()> {
        self.out.write_all(whole(summary, self.port).as_bytes())?;
        Ok(self.out.flush()?)
    }
}

fn header() -> String {
    let first = format!(
        "{:>6} {:>8} {:>8} {:>13} {:>17} {:>17} {:>17} {:>6} {:>5}",
        "time",
        "requests",
        "conns",
        "accept queue",
        "in the queue, ms",
        "unread, ms",
        "service, ms",
        "db per",
        "lost"
    );
    let second = format!(
        "{:>6} {:>8} {:>8} {:>8} {:>4} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>6}",
        "s", "per s", "per s", "mean", "max", "p50", "p99", "p50", "p99", "p50", "p99", "req."
    );
    format!("{first}\n{second}\n")
}

fn row(figures: &Figures) -> String {
    let stages = &figures.stages;
    let mut line = format!(
        "{:>6.0} {:>8.1} {:>8.1} {:>8.1} {:>4}",
        figures.to_s,
        figures.requests.answered_per_s,
        figures.connections.accepted_per_s,
        figures.accept_queue_depth.mean,
        figures.accept_queue_depth.max,
    );
    for times in [&stages.accept_queue, &stages.unread, &stages.service] {
        let _ = write!(line, " {:>8} {:>8}", ms(times.p50_ms), ms(times.p99_ms));
    }
    let per_request =
        figures.database.per_request.map_or_else(|| "-".to_owned(), |per| format!("{per:.1}"));
    let _ = writeln!(line, " {per_request:>6} {:>5}", figures.lost_events);
    line
}

/// Milliseconds with about three digits; `-` for none.
pub(super) fn ms(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(ms) if ms < 9.995 => format!("{ms:.2}"),
        Some(ms) if ms < 99.95 => format!("{ms:.1}"),
        Some(ms) => format!("{ms:.0}"),
    }
}

/// `text` in so many columns, its end replaced where it is longer.
pub(super) fn fit(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(columns.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

pub(super) fn whole(summary: &Summary, port: u16) -> String {
    let figures = &summary.figures;
    let mut out = format!(
        "\nport {port}, {:.1} s; answered requests: {} ({:.1}/s), accepted connections: {} ({:.1}/s)\n\n",
        figures.to_s - figures.from_s,
        figures.requests.answered,
        figures.requests.answered_per_s,
        figures.connections.accepted,
        figures.connections.accepted_per_s,
    );
    let _ = writeln!(
        out,
        "{:<14}{:>9}{:>10}{:>10}{:>10}{:>10}{:>10}",
        "stage, ms", "count", "mean", "p50", "p95", "p99", "max"
    );
    for (name, times) in figures.stages.named() {
        let TimesFigures { count, mean_ms, p50_ms, p95_ms, p99_ms, max_ms } = *times;
        let _ = write!(out, "{name:<14}{count:>9}");
        for value in [mean_ms, p50_ms, p95_ms, p99_ms, max_ms] {
            let _ = write!(out, "{:>10}", ms(value));
        }
        out.push('\n');
    }
    let depth = figures.accept_queue_depth;
    let _ = writeln!(
        out,
        "\naccept queue: {:.1} connections in the mean, {} at most{}",
        depth.mean,
        depth.max,
        match figures.listen_drops {
            0 => String::new(),
            drops => format!("; {drops} handshakes turned away"),
        }
    );
    for role in &figures.threads {
        let _ = writeln!(out, "{}", threads(role));
    }
    database(&mut out, summary);
    slowest(&mut out, &summary.slowest);
    doubts(&mut out, summary);
    out
}

/// `worker threads 1.0: database 93.0 %, cpu 5.0 %, idle 2.0 %`.
fn threads(role: &RoleFigures) -> String {
    let mut shares: Vec<_> = role.time.iter().filter(|(_, share)| **share >= 0.001).collect();
    shares.sort_by(|a, b| b.1.total_cmp(a.1));
    let shares: Vec<String> =
        shares.iter().map(|(class, share)| format!("{class} {:.1} %", **share * 100.0)).collect();
    format!("{} threads {:.1}: {}", role.role, role.threads, shares.join(", "))
}

fn database(out: &mut String, summary: &Summary) {
    let database = &summary.figures.database;
    if let Some(path) = &summary.unix_database {
        let _ = writeln!(
            out,
            "\nThe database is reached over the Unix socket {path}: its round trips are not seen."
        );
    }
    if database.round_trips == 0 {
        let _ = writeln!(out, "\ndatabase: no round trip seen");
        return;
    }
    let per =
        database.per_request.map_or_else(String::new, |per| format!(", {per:.2} per request"));
    let took = database.ms_per_request;
    let took = took.map_or_else(String::new, |took| format!(", {} ms per request", ms(Some(took))));
    let _ = writeln!(out, "\ndatabase: {} round trips{per}{took}", database.round_trips);
    let _ = writeln!(out, "{:>9} {:>8} {:>8}  kind, statement", "per req.", "mean ms", "max ms");
    for line in &database.by_statement {
        let per = line.per_request.map_or_else(|| "-".to_owned(), |per| format!("{per:.2}"));
        let text = line.statement.as_deref().unwrap_or_default();
        let row = format!(
            "{per:>9} {:>8} {:>8}  {:<14}{}",
            ms(Some(line.mean_ms)),
            ms(Some(line.max_ms)),
            line.kind,
            fit(text, WIDTH - 43)
        );
        let _ = writeln!(out, "{}", row.trim_end());
    }
}

fn slowest(out: &mut String, slowest: &[SlowFigures]) {
    if slowest.is_empty() {
        return;
    }
    let _ = writeln!(out, "\nslowest requests");
    for slow in slowest.iter().take(SLOWEST) {
        let stages: Vec<String> = slow
            .stages_ms
            .named()
            .iter()
            .filter_map(|(name, took)| {
                // Too short to be shown.
                let took = took.filter(|took| *took >= 0.005)?;
                Some(format!("{name} {}", ms(Some(took))))
            })
            .collect();
        let database = match &slow.database {
            Some(trips) if trips.is_empty() => String::new(),
            Some(trips) => {
                let took: f64 = trips.iter().map(|trip| trip.ms).sum();
                let count = trips.len() as u64 + slow.more_round_trips;
                format!("; {count} round trips, {} ms", ms(Some(took)))
            }
            None => "; round trips not told apart".to_owned(),
        };
        let _ = writeln!(
            out,
            "{:>9} ms at {:.3} s, {}: {}{database}",
            ms(Some(slow.total_ms)),
            slow.at_s,
            slow.client,
            stages.join(", ")
        );
    }
}

/// What was lost, not seen, or cannot be told for sure; nothing where there is none of it.
fn doubts(out: &mut String, summary: &Summary) {
    let figures = &summary.figures;
    let list = |items: &[(&str, u64)]| -> Option<String> {
        let some: Vec<String> = items
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{name} ({count})"))
            .collect();
        (!some.is_empty()).then(|| some.join(", "))
    };
    let lost: Vec<(&str, u64)> =
        figures.lost.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    let (unseen, ambiguous, left) = (&figures.unseen, &figures.ambiguous, &summary.unfinished);
    let lines = [
        ("lost, so that the figures are of a part", list(&lost)),
        (
            "not seen",
            list(&[
                ("accepts", unseen.accept),
                ("first bytes", unseen.first_byte),
                ("answers", unseen.answer),
            ]),
        ),
        (
            "not told apart",
            list(&[
                ("pipelined requests", ambiguous.pipelined),
                ("requests with marks against causality", ambiguous.inverted),
                ("requests whose thread had several at once", ambiguous.shared_thread),
                ("round trips of no one request", ambiguous.round_trips),
            ]),
        ),
        (
            "without an answer",
            list(&[
                ("requests", figures.requests.unanswered),
                ("connections that nobody accepted", figures.connections.never_accepted),
            ]),
        ),
        (
            "not over at the end",
            list(&[
                ("in the accept queue", left.accept_queue),
                ("without a request", left.request_net),
                ("unread", left.unread),
                ("in service", left.service),
            ]),
        ),
    ];
    let said: Vec<String> =
        lines.into_iter().filter_map(|(what, some)| Some(format!("{what}: {}\n", some?))).collect();
    if !said.is_empty() {
        out.push('\n');
        out.push_str(&said.concat());
    }
}
