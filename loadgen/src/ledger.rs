//! Where requests waited: marks become stages, and what was not finished is listed by stage.
//!
//! The stages are of requests that were completed in the hold, the same ones as `hold_srps`; of
//! the whole run where fewer than [`MIN_REQUESTS`] were.

mod stages;
mod unfinished;

use std::collections::BTreeMap;

use agent_common::wire::Window;

pub use stages::{Split, Stage, Timeline, split};

use crate::{
    client_stats::quantile,
    join::{self, Match},
    record::{RequestRecord, RunData},
    report::model,
};

/// Below this many requests completed in the hold, the ledger is of the whole run.
pub const MIN_REQUESTS: usize = 30;
/// A connection that the service's kernel completed this long after connect() had returned lost
/// the last packet of its handshake.
const LATE_ESTABLISHED_NS: u64 = 100_000_000;
const NS_PER_MS: f64 = 1e6;

/// The ledger and what the explanation needs beside it.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// The report's part.
    pub ledger: model::Ledger,
    /// matched / completed over the whole run, None if nothing completed.
    pub run_matched_fraction: Option<f64>,
}

/// One matched request.
#[derive(Clone, Copy, Debug)]
struct Entry {
    split: Split,
    latency_ns: u64,
    new_connection: bool,
    dropped_handshake: bool,
}

/// Closes the ledger of a run. `matches` is the join of its records.
#[must_use]
pub fn close(run: &RunData, matches: &[Match<'_>]) -> Accounts {
    let windows = run.kernel.as_ref().map_or(&[][..], |kernel| &kernel.windows);
    let completed =
        || run.records.iter().zip(matches).filter(|(record, _)| join::completed(record));
    let held = |record: &RequestRecord| (run.hold_start..=run.end).contains(&record.c4);
    let in_hold = completed().filter(|(record, _)| held(record)).count();
    let (scope, everything) = if in_hold >= MIN_REQUESTS { ("hold", false) } else { ("run", true) };
    let scoped: Vec<_> = completed().filter(|(record, _)| everything || held(record)).collect();

    let mut entries: Vec<Entry> =
        scoped.iter().filter_map(|(record, one)| entry(record, one, windows)).collect();
    take_out_overflow(&mut entries);

    let client_total: u128 = scoped.iter().map(|(record, _)| u128::from(time_ns(record))).sum();
    let matched_total: u128 = entries.iter().map(|entry| u128::from(entry.latency_ns)).sum();
    let stages_total: u128 = entries.iter().map(|entry| entry.split.total()).sum();
    let inverted: u128 = entries.iter().map(|entry| u128::from(entry.split.inverted_ns)).sum();
    let (matched, unmatched) = (entries.len(), scoped.len() - entries.len());
    let run_completed = completed().count();
    let run_matched = completed().filter(|(_, one)| one.server.is_ok()).count();

    let ledger = model::Ledger {
        scope: scope.to_owned(),
        matched: matched as u64,
        unmatched: unmatched as u64,
        matched_fraction: fraction(matched, scoped.len()),
        unmatched_reasons: join::reasons(scoped.iter().map(|(_, one)| *one)),
        inverted_fraction: (matched > 0).then(|| ratio(inverted, matched_total)),
        residual_fraction: (client_total > 0)
            .then(|| (client_total as f64 - stages_total as f64) / client_total as f64),
        client_wait_known: fraction(
            entries.iter().filter(|entry| entry.split.client_wait_known).count(),
            matched,
        ),
        unfinished: unfinished::unfinished(run, matches),
        stages: stage_lines(&entries, stages_total),
        client_mean_ms: mean_ms(client_total, scoped.len()),
        stages_mean_ms: mean_ms(stages_total, matched),
        new_connections: fraction(
            entries.iter().filter(|entry| entry.new_connection).count(),
            matched,
        ),
    };
    Accounts { ledger, run_matched_fraction: fraction(run_matched, run_completed) }
}

/// Where the ledger of a request begins. One that was sent again on a new connection, since the kept
/// one turned out closed, begins with that connection: no kernel has a timeline of the first attempt,
/// and it was no handshake.
const fn start_ns(record: &RequestRecord) -> u64 {
    if record.ordinal == 0 && record.connection_start > record.c0 {
        record.connection_start
    } else {
        record.c0
    }
}

/// The time of a request that the ledger accounts for.
fn time_ns(record: &RequestRecord) -> u64 {
    record.c4.saturating_sub(start_ns(record))
}

fn entry(record: &RequestRecord, one: &Match<'_>, windows: &[Window]) -> Option<Entry> {
    let server = one.server.ok()?;
    let new_connection = record.ordinal == 0;
    let start = start_ns(record);
    let timeline = Timeline {
        c0: start,
        s0: if new_connection { server.s0 } else { start },
        s2: if new_connection { server.s2 } else { start },
        s1: server.s1,
        s3: server.s3,
        s4: server.s4,
        s5: server.s5,
        c4k: one.turn.map_or(0, |turn| turn.c4k),
        c4: record.c4,
    };
    let sent_again =
        record.syn_retransmits > 0 || server.s0.saturating_sub(record.c1) > LATE_ESTABLISHED_NS;
    Some(Entry {
        split: split(&timeline),
        latency_ns: time_ns(record),
        new_connection,
        dropped_handshake: new_connection && sent_again && overflowed(windows, start, server.s0),
    })
}

/// Whether the service's kernel turned handshakes away at some time between two moments.
fn overflowed(windows: &[Window], from: u64, to: u64) -> bool {
    let first = windows.partition_point(|window| window.to_ns < from);
    windows[first..]
        .iter()
        .take_while(|window| window.from_ns <= to)
        .any(|window| window.listen_overflows > 0)
}

/// Moves what a full backlog cost from `connect` to `backlog_overflow`. A request is affected if
/// its handshake was visibly sent again (the client counted SYN retransmissions, or the service's
/// kernel completed the connection long after connect() had returned) while the kernel counted
/// connections turned away; the part is what its connect took beyond the median of those that were
/// not. Where all were affected, beyond the fastest.
fn take_out_overflow(entries: &mut [Entry]) {
    let connect = |entry: &Entry| entry.split.get(Stage::Connect);
    let mut normal: Vec<u64> = entries
        .iter()
        .filter(|entry| entry.new_connection && !entry.dropped_handshake)
        .map(connect)
        .collect();
    normal.sort_unstable();
    let affected = || entries.iter().filter(|entry| entry.dropped_handshake);
    let usual = quantile(&normal, 0.5).or_else(|| affected().map(connect).min());
    let Some(usual) = usual else { return };
    for entry in entries.iter_mut().filter(|entry| entry.dropped_handshake) {
        entry.split.move_overflow(usual);
    }
}

fn stage_lines(entries: &[Entry], total: u128) -> Vec<model::Stage> {
    if entries.is_empty() {
        return Vec::new();
    }
    let mut times = Vec::with_capacity(entries.len());
    Stage::ALL
        .iter()
        .map(|&stage| {
            times.clear();
            times.extend(entries.iter().map(|entry| entry.split.get(stage)));
            times.sort_unstable();
            let sum: u128 = times.iter().map(|&ns| u128::from(ns)).sum();
            let at = |share| quantile(&times, share).unwrap_or(0) as f64 / NS_PER_MS;
            model::Stage {
                stage: stage.name().to_owned(),
                mean_ms: sum as f64 / entries.len() as f64 / NS_PER_MS,
                p50_ms: at(0.5),
                p99_ms: at(0.99),
                share: ratio(sum, total),
            }
        })
        .collect()
}

/// Numbers by name, for a part of the report.
pub(crate) type Counts = BTreeMap<String, u64>;

fn fraction(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn ratio(part: u128, whole: u128) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn mean_ms(total_ns: u128, count: usize) -> Option<f64> {
    (count > 0).then(|| total_ns as f64 / count as f64 / NS_PER_MS)
}

#[cfg(test)]
mod tests;
