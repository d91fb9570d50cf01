//! The report for a terminal: the story first, then the numbers that it rests on.

use std::fmt::Write as _;
use std::iter;

use super::{
    client,
    model::{Cell, Client, Injection, Kernel, Ledger, Report, Verdict},
    study,
};
use crate::explain::words;

/// Whether to colour, which the caller decides: only where a person looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// Plain text.
    Never,
    /// With ANSI escapes.
    Always,
}

const WIDTH: usize = 96;
const BAR: usize = 30;

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const CYAN: &str = "36";

impl Colour {
    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::Never => text.to_owned(),
            Self::Always => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
        }
    }
}

/// One run, on one screen.
#[must_use]
pub fn cell(cell: &Cell, colour: Colour) -> String {
    let mut out = String::new();
    heading(&mut out, cell, colour);
    if let Some(explanation) = &cell.explanation {
        let verdict = colour.paint(verdict_code(explanation.verdict), verdict(explanation.verdict));
        let _ = writeln!(out, "\n{verdict}");
        for sentence in &explanation.sentences {
            paragraph(&mut out, &clean(sentence), "  ");
        }
        if !explanation.what_if.is_empty() {
            let _ = writeln!(out, "\n{}", colour.paint(BOLD, "What would change it (requests/s)"));
            for one in &explanation.what_if {
                let _ = writeln!(
                    out,
                    "  {:>8}  {}",
                    words::rate(one.predicted_rps),
                    clean(&one.change)
                );
            }
        }
    }
    client(&mut out, cell, colour);
    if let Some(ledger) = &cell.ledger {
        stages(&mut out, ledger, colour);
    }
    if let Some(kernel) = &cell.kernel {
        round_trips(&mut out, kernel, colour);
    }
    validity(&mut out, cell, colour);
    out
}

/// All runs, a line each, with the study's numbers where there are any.
#[must_use]
pub fn table(report: &Report, colour: Colour) -> String {
    let mut out = String::new();
    let name = report.cells.iter().map(|cell| cell.name.chars().count()).max().unwrap_or(4).max(4);
    let head = format!(
        "{:name$}  {:>8} {:>8} {:>9} {:>9} {:>9} {:>8} {:>6}  {}",
        "run", "max/10s", "hold", "predicted", "successes", "p50", "study", "valid", "verdict"
    );
    let _ = writeln!(out, "{}", colour.paint(BOLD, &head));
    for cell in &report.cells {
        let explanation = cell.explanation.as_ref();
        let predicted = explanation.and_then(|explanation| explanation.predicted_rps);
        let latency = cell.client.latency_ms.as_ref();
        let valid = if cell.validity.valid { "yes" } else { "NO" };
        let valid = format!("{valid:>6}");
        let code = if cell.validity.valid { GREEN } else { RED };
        let _ = writeln!(
            out,
            "{:name$}  {:>8} {:>8} {:>9} {:>9} {:>9} {:>8} {}  {}",
            clean(&cell.name),
            or_dash(best(&cell.client)),
            or_dash(cell.client.hold_srps.map(words::rate)),
            or_dash(predicted.map(words::rate)),
            cell.client.successes,
            or_dash(latency.map(|latency| words::ms(latency.p50))),
            or_dash(study::beside(cell).map(|one| format!("{:.1}", one.max_srps))),
            colour.paint(code, &valid),
            explanation.map_or("-", |explanation| verdict(explanation.verdict)),
        );
    }
    out
}

/// The best ten seconds of a run that has ten.
pub(super) fn best(client: &Client) -> Option<String> {
    (!client.is_shorter_than_max()).then(|| format!("{:.1}", client.max_srps))
}

/// The verdict in words.
#[must_use]
pub const fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::WorkersHeldByDatabase => "all workers held, waiting for the database",
        Verdict::WorkersHeldByCpu => "all workers held, computing",
        Verdict::WorkersHeldByLock => "all workers held, waiting for a lock",
        Verdict::WorkersHeldByClients => "all workers held, waiting for clients",
        Verdict::WorkersHeldByOther => "all workers held, asleep or waiting for something else",
        Verdict::EventLoopCpu => "out of processor time",
        Verdict::ExecutorHeldByDatabase => {
            "the threads that talk to the database are busy all the time"
        }
        Verdict::DatabaseCapacity => "the database is out of capacity",
        Verdict::NotSaturated => "not saturated",
        Verdict::LoadGenerator => "the load generator was the limit",
        Verdict::CannotTell => "cannot tell",
    }
}

const fn verdict_code(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::NotSaturated => GREEN,
        Verdict::LoadGenerator | Verdict::CannotTell => YELLOW,
        _ => CYAN,
    }
}

fn heading(out: &mut String, cell: &Cell, colour: Colour) {
    let rate = cell.client.hold_srps.map_or_else(
        || match best(&cell.client) {
            Some(rate) => format!("{rate} requests/s at best"),
            None => format!("{:.1} requests/s", cell.client.max_srps),
        },
        |rate| format!("{} requests/s", words::rate(rate)),
    );
    let name = if cell.name.is_empty() { "run".to_owned() } else { clean(&cell.name) };
    let mut line = format!("{}  {rate}", colour.paint(BOLD, &name));
    for one in in_force(cell) {
        let _ = write!(line, ", {}", clean(&one));
    }
    let _ = writeln!(out, "{line}");
    if let Some(told) = cell.injection.as_ref().and_then(received) {
        paragraph(out, &told, "  ");
    }
}

/// What packets got of it, and what TCP sent again.
fn received(injection: &Injection) -> Option<String> {
    let receipt = injection.receipt.as_ref()?;
    let mut text = format!(
        "{} packets held, median {}, p99 {}, longest {}",
        receipt.packets,
        words::ms(receipt.p50_ms),
        words::ms(receipt.p99_ms),
        words::ms(receipt.max_ms)
    );
    if let Some(backlog) = receipt.largest_backlog {
        let _ = write!(text, ", at most {backlog} at once");
    }
    if let Some(reordered) = receipt.reordered.filter(|&reordered| reordered > 0) {
        let _ = write!(text, "; {reordered} out of order");
    }
    if injection.dropped > 0 {
        let _ = write!(text, "; {} dropped or let through undelayed", injection.dropped);
    }
    if let Some(sent) = &injection.retransmissions {
        let _ = write!(
            text,
            "; TCP sent {} segments again, {} by a retransmission timeout",
            sent.segments, sent.timeouts
        );
    }
    Some(text)
}

/// What was in force: injected for the run, and by others.
pub(super) fn in_force(cell: &Cell) -> Vec<String> {
    let others = cell.in_force.iter().flatten().map(|one| {
        let when = one.change().map_or_else(String::new, |when| format!(" {when}"));
        format!("not by this run: {} on {}{when}", one.words, one.device)
    });
    added(cell).into_iter().chain(others).collect()
}

/// What was injected, where, and for how long if not throughout.
fn added(cell: &Cell) -> Option<String> {
    let injection = cell.injection.as_ref()?;
    let until = injection.until_s.map_or_else(String::new, |seconds| {
        format!(" until {seconds:.1} s: from then on nobody knows what was in force")
    });
    Some(format!(
        "{} added on {} by {}{until}",
        words::ms(injection.requested_ms),
        injection.device,
        injection.engine,
    ))
}

fn client(out: &mut String, cell: &Cell, colour: Colour) {
    let lines = client::lines(&cell.client);
    let _ = writeln!(out, "\n{}", colour.paint(BOLD, "Client"));
    for line in iter::once(lines.load).chain(lines.latency) {
        paragraph(out, &line, "  ");
    }
    if let Some(failed) = lines.failed {
        paragraph(out, &format!("{} {failed}", colour.paint(RED, "failed:")), "  ");
    }
    if let Some(odd) = lines.odd {
        paragraph(out, &odd, "  ");
    }
}

fn stages(out: &mut String, ledger: &Ledger, colour: Colour) {
    if ledger.stages.is_empty() && ledger.unmatched == 0 && ledger.unfinished.count == 0 {
        return;
    }
    let title = format!(
        "Where a request waited (mean of {} joined, completed in the {})",
        ledger.matched,
        clean(&ledger.scope)
    );
    let _ = writeln!(out, "\n{}", colour.paint(BOLD, &title));
    for stage in &ledger.stages {
        let filled = ((stage.share * BAR as f64).round() as usize).min(BAR);
        let bar = colour.paint(CYAN, &"#".repeat(filled)) + &" ".repeat(BAR - filled);
        let line = format!(
            "  {:<17} {:>9} {:>6}  {bar} p99 {}",
            stage.stage,
            words::ms(stage.mean_ms),
            words::percent(stage.share),
            words::ms(stage.p99_ms)
        );
        let _ = writeln!(out, "{line}");
    }
    let unfinished = &ledger.unfinished;
    if unfinished.count > 0 {
        let stages: Vec<String> =
            unfinished.by_stage.iter().map(|(stage, count)| format!("{count} {stage}")).collect();
        let _ = writeln!(
            out,
            "  unfinished: {}, mean age {}: {}",
            unfinished.count,
            or_dash(unfinished.mean_age_ms.map(words::ms)),
            stages.join(", ")
        );
    }
    if ledger.unmatched > 0 {
        let reasons: Vec<String> = ledger
            .unmatched_reasons
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        let _ = writeln!(out, "  not joined: {} ({})", ledger.unmatched, reasons.join(", "));
    }
}

fn round_trips(out: &mut String, kernel: &Kernel, colour: Colour) {
    let Some(total) = kernel.db_round_trips_per_request.filter(|&total| total > 0.0) else {
        return;
    };
    let title = format!("Database round trips ({} per request)", words::mean(total));
    let _ = writeln!(out, "\n{}", colour.paint(BOLD, &title));
    for line in &kernel.db_round_trips {
        let statement = line.statement.as_deref().unwrap_or("");
        let line = format!(
            "  {:>5} x {:<14} {:>9}  {}",
            words::mean(line.per_request),
            line.kind,
            words::ms(line.mean_ms),
            shorten(&clean(statement), WIDTH - 37)
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

fn validity(out: &mut String, cell: &Cell, colour: Colour) {
    let validity = &cell.validity;
    let _ = writeln!(out);
    if validity.valid {
        let _ = write!(out, "{}", colour.paint(GREEN, "Valid"));
        if let Some(ledger) = &cell.ledger {
            let _ = write!(
                out,
                ": {} joined, {} of the time against causality, {} unexplained",
                or_dash(ledger.matched_fraction.map(words::percent)),
                or_dash(ledger.inverted_fraction.map(words::percent)),
                or_dash(ledger.residual_fraction.map(words::percent))
            );
        }
        let _ = writeln!(out, ".");
    } else {
        let _ = writeln!(out, "{}", colour.paint(RED, "INVALID: the numbers prove nothing."));
        for reason in &validity.reasons {
            paragraph(out, &format!("- {}", clean(reason)), "  ");
        }
    }
    for note in &validity.notes {
        paragraph(out, &colour.paint(DIM, &format!("note: {}", clean(note))), "  ");
    }
}

/// Breaks a text into lines. One word that is too long stays whole.
fn paragraph(out: &mut String, text: &str, indent: &str) {
    let mut length = 0;
    for word in text.split(' ') {
        let wide = word.chars().count();
        if length > 0 && length + 1 + wide > WIDTH {
            let _ = writeln!(out);
            length = 0;
        }
        if length == 0 {
            let _ = write!(out, "{indent}{word}");
            length = indent.len() + wide;
        } else {
            let _ = write!(out, " {word}");
            length += 1 + wide;
        }
    }
    let _ = writeln!(out);
}

/// Text from elsewhere may carry control characters; a terminal must not see them.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(3)).collect::<String>() + "..."
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}
