//! The results in words: a line per run, the table beside the study's, and why.

use std::fmt::Write as _;

use serde_json::Value;

use super::Done;
use super::plan::{RAMP_PER_S, USERS};

/// What one run gave.
pub(super) fn line(report: &Value) -> String {
    let mut text = format!("{} requests/s in the hold", number(report, "/client/hold_srps", 2));
    if let Some(predicted) = report.pointer("/explanation/predicted_rps").and_then(Value::as_f64) {
        let _ = write!(text, ", {predicted:.2} predicted");
    }
    let reasons = reasons(report);
    if !reasons.is_empty() {
        let _ = write!(text, "; INVALID: {}", reasons.join("; "));
    }
    text
}

/// The table, beside the study's numbers.
pub(super) fn table(done: &[Done]) -> String {
    let mut text = format!(
        "Successful requests per second, {USERS} users at {RAMP_PER_S} per second (the study: 500 at 5)\n\n\
         {:<14} {:>7}  {:>9} {:>9} {:>10}  {:>9} {:>9}  {}\n",
        "setup", "delay", "max 10 s", "hold", "predicted", "successes", "the study", "verdict"
    );
    for Done { cell, report, .. } in done {
        let valid = reasons(report).is_empty();
        let verdict = report.pointer("/explanation/verdict").and_then(Value::as_str);
        let _ = writeln!(
            text,
            "{:<14} {:>4} ms  {:>9} {:>9} {:>10}  {:>9} {:>9.1}  {}{}",
            cell.setup,
            cell.delay.as_millis(),
            number(report, "/client/max_srps", 1),
            number(report, "/client/hold_srps", 2),
            number(report, "/explanation/predicted_rps", 2),
            number(report, "/client/successes", 0),
            cell.published_max_srps,
            verdict.unwrap_or("-").replace('_', " "),
            if valid { "" } else { ", INVALID" }
        );
    }
    for Done { cell, report, .. } in done {
        for reason in reasons(report) {
            let _ = writeln!(text, "{} is invalid: {reason}", cell.name());
        }
    }
    text
}

/// Why: for each setup, how far it fell, and what its slowest run says.
pub(super) fn why(done: &[Done]) -> String {
    let mut parts = Vec::new();
    let mut setups: Vec<&str> = done.iter().map(|one| one.cell.setup).collect();
    setups.dedup();
    for setup in setups {
        let cells: Vec<&Done> = done.iter().filter(|one| one.cell.setup == setup).collect();
        let (Some(first), Some(last)) = (cells.first(), cells.last()) else { continue };
        let mut text = format!("{}\n", fall(setup, first, last));
        let sentences = last.report.pointer("/explanation/sentences").and_then(Value::as_array);
        for sentence in sentences.into_iter().flatten().filter_map(Value::as_str) {
            text.push_str(&wrapped(sentence));
        }
        parts.push(text);
    }
    parts.join("\n")
}

/// A sentence in lines of at most 98 characters where its words allow, indented.
fn wrapped(sentence: &str) -> String {
    let mut text = String::new();
    let mut width = 0;
    for word in sentence.split_whitespace() {
        let length = word.chars().count();
        if width == 0 || width + 1 + length > 98 {
            text.push_str(if width == 0 { "  " } else { "\n    " });
            width = if width == 0 { 2 } else { 4 };
        } else {
            text.push(' ');
            width += 1;
        }
        text.push_str(word);
        width += length;
    }
    text.push('\n');
    text
}

fn fall(setup: &str, first: &Done, last: &Done) -> String {
    let rate = |one: &Done| one.report.pointer("/client/hold_srps").and_then(Value::as_f64);
    let delay = last.cell.delay.as_millis();
    match (rate(first), rate(last)) {
        (Some(before), Some(after)) if after > 0.0 => format!(
            "{setup}: {before:.2} requests/s without delay, {after:.2} with {delay} ms, {:.0} % of it.",
            100.0 * after / before
        ),
        _ => format!("{setup}: too few requests completed to compare 0 and {delay} ms."),
    }
}

fn reasons(report: &Value) -> Vec<String> {
    if report.pointer("/validity/valid") == Some(&Value::Bool(true)) {
        return Vec::new();
    }
    let listed = report.pointer("/validity/reasons").and_then(Value::as_array);
    let mut reasons: Vec<String> =
        listed.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    if reasons.is_empty() {
        reasons.push("the report does not say that it is valid".to_owned());
    }
    reasons
}

/// A number of the report with so many digits after the point, or a dash.
fn number(report: &Value, pointer: &str, digits: usize) -> String {
    match report.pointer(pointer).and_then(Value::as_f64) {
        Some(number) => format!("{number:.digits$}"),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_tells_what_was_predicted_and_why_a_run_is_invalid() {
        let good = json!({
            "client": {"hold_srps": 1.2041}, "explanation": {"predicted_rps": 1.19},
            "validity": {"valid": true, "reasons": []}
        });
        assert_eq!(line(&good), "1.20 requests/s in the hold, 1.19 predicted");
        let bad = json!({
            "client": {"hold_srps": null}, "explanation": null,
            "validity": {"valid": false, "reasons": ["7 events lost"]}
        });
        assert_eq!(line(&bad), "- requests/s in the hold; INVALID: 7 events lost");
    }

    #[test]
    fn sentences_are_wrapped_between_words_and_lose_none() {
        let sentence = "Each request waits. ".repeat(20);
        let text = wrapped(&sentence);
        assert!(text.lines().count() > 3 && text.lines().all(|line| line.len() <= 98), "{text}");
        assert!(text.split_whitespace().eq(sentence.split_whitespace()));
    }

    #[test]
    fn a_report_without_a_judgement_is_not_valid() {
        assert!(line(&json!({})).contains("INVALID"));
    }
}
