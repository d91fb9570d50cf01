//! Whether a run can be believed. The thresholds were fixed before the first run, and no run may
//! change them: an invalid run is reported as such.

mod retransmissions;

use agent_common::wire::ErrorCode;

use crate::{
    in_force::in_force,
    ledger::{Accounts, Stage},
    record::{KernelData, Outcome, RunData},
    report::model::{Kernel, Validity},
};

/// At least this share of completed requests must be joined with their kernel timeline.
pub const MATCHED_MIN: f64 = 0.99;
/// At most this share of the time may be marks that contradict causality.
pub const INVERTED_MAX: f64 = 0.02;
/// At most this share of the client's time may be missing from the stages, or too much in them.
pub const RESIDUAL_MAX: f64 = 0.02;
/// At most this share of the time may be the load generator's own lateness.
pub const CLIENT_WAIT_MAX: f64 = 0.02;
/// At most this share of the run may an engine thread of the load generator wait for a processor.
pub const ENGINE_RUNQUEUE_MAX: f64 = 0.10;
/// At most this share of the run may an engine thread of the load generator compute.
pub const ENGINE_CPU_MAX: f64 = 0.95;
/// So many failures in a row, for so long at least, and for so many times the mean time between two
/// successes: the service has stopped answering.
const FAILED_SINCE_MIN: usize = 10;
const SILENCE_MIN_NS: u64 = 500_000_000;
const SILENCE_GAPS: u64 = 5;
/// Below this share of requests with a measured `client_wait` that is told.
const CLIENT_WAIT_KNOWN_MIN: f64 = 0.99;

/// Whether the load generator was out of processor time: why, if so.
#[must_use]
pub fn generator_short(run: &RunData) -> Vec<String> {
    let mut reasons = Vec::new();
    if run.engine_runqueue_share > ENGINE_RUNQUEUE_MAX {
        reasons.push(format!(
            "the load generator waited for a processor {} of the time (at most {}): give it more \
             processors, or fewer users",
            percent(run.engine_runqueue_share),
            percent(ENGINE_RUNQUEUE_MAX)
        ));
    }
    if run.engine_cpu_share > ENGINE_CPU_MAX {
        reasons.push(format!(
            "the load generator computed {} of the time (at most {}): the service may be faster \
             than it",
            percent(run.engine_cpu_share),
            percent(ENGINE_CPU_MAX)
        ));
    }
    reasons
}

/// Judges a run.
#[must_use]
pub fn judge(run: &RunData, kernel: Option<&Kernel>, accounts: Option<&Accounts>) -> Validity {
    let mut reasons = Vec::new();
    let mut notes = Vec::new();
    if run.interrupted {
        reasons.push("the run was interrupted before its end".to_owned());
    }
    let count = |outcome: fn(Outcome) -> bool| {
        run.records.iter().filter(|record| outcome(record.outcome)).count()
    };
    let succeeded = count(|outcome| outcome == Outcome::Success);
    if !run.records.is_empty() && succeeded == 0 && run.beyond.successes == 0 {
        reasons.push(format!(
            "no request succeeded: {} failed and {} were not answered; see the failures above, \
             and the URL",
            count(|outcome| matches!(outcome, Outcome::Failed(_))),
            count(|outcome| outcome == Outcome::Unfinished),
        ));
    }
    if run.beyond.requests > 0 {
        reasons.push(format!(
            "{} requests ended after {} had been recorded and were only counted: make the run \
             shorter, or take fewer users",
            run.beyond.requests,
            run.records.len()
        ));
    }
    reasons.extend(stopped_answering(run));
    reasons.extend(generator_short(run));
    if let Some(data) = &run.kernel {
        if let Some(at) = data.lost_at {
            let seconds = at.saturating_sub(run.start) as f64 / 1e9;
            reasons.push(format!(
                "kernel side lost at {seconds:.1} s: the agent ended or its socket closed"
            ));
        }
        if data.dropped_records > 0 {
            reasons.push(format!(
                "{} of the agent's records found no room: make the run shorter, or take fewer users",
                data.dropped_records
            ));
        }
        if data.injector_dropped > 0 {
            reasons.push(format!(
                "the injector dropped or let through undelayed {} packets: its queue was full",
                data.injector_dropped
            ));
        }
        reasons.extend(others_changed(run, data));
        retransmissions::judge(run, data, &mut reasons, &mut notes);
        agent_errors(run, data, &mut reasons, &mut notes);
        notes.extend(data.notices.iter().cloned());
        if let Some(path) = data.totals.as_ref().and_then(|totals| totals.unix_database.as_ref()) {
            notes.push(format!(
                "the service reaches its database through the Unix socket {path}: no packet \
                 engine can delay that"
            ));
        }
    }
    if let Some(kernel) = kernel.filter(|kernel| kernel.lost_events > 0) {
        reasons.push(format!(
            "{} kernel events were lost: what they would have shown is missing",
            kernel.lost_events
        ));
    }
    let missed = kernel.and_then(|kernel| kernel.counters.get("probe_missed")).copied();
    if let Some(missed) = missed.filter(|&missed| missed > 0) {
        notes.push(format!(
            "the kernel skipped a probe {missed} times, since it was at work on the same processor: \
             of any connection of the host, so that marks of this service may be among them"
        ));
    }
    if let Some(accounts) = accounts {
        ledger(accounts, &mut reasons, &mut notes);
    }
    Validity { valid: reasons.is_empty(), reasons, notes }
}

/// Whether the service failed everybody from some moment on: the rate is that of the time before.
pub(crate) fn stopped_answering(run: &RunData) -> Option<String> {
    let ended = |wanted: fn(Outcome) -> bool| {
        run.records.iter().filter(move |record| wanted(record.outcome)).map(|record| record.c4)
    };
    let successes = || ended(|outcome| outcome == Outcome::Success);
    let (first, last) = (successes().min()?, successes().max()?);
    let failed = ended(|outcome| matches!(outcome, Outcome::Failed(_)));
    let failed_since = failed.filter(|&at| at > last).count();
    let waiting = run.records.iter().filter(|one| one.outcome == Outcome::Unfinished).count();
    let successful = run.records.iter().filter(|one| one.outcome == Outcome::Success);
    let longest = successful.map(|one| one.c4.saturating_sub(one.c0)).max().unwrap_or(0);
    let gap = (last - first) / (successes().count().max(2) as u64 - 1);
    let silence = run.end.saturating_sub(last);
    let silent = silence >= SILENCE_MIN_NS && silence >= SILENCE_GAPS * gap;
    let seconds = silence as f64 / 1e9;
    if silent && failed_since >= FAILED_SINCE_MIN {
        return Some(format!(
            "no request succeeded in the last {seconds:.1} s, and {failed_since} failed: has the \
             service ended, or what it depends on?"
        ));
    }
    // Without a time-out, requests to a service that hangs do not fail.
    let hangs = silent && waiting > 0 && silence >= SILENCE_GAPS * longest;
    hangs.then(|| {
        format!(
            "no request succeeded in the last {seconds:.1} s, and {waiting} still wait for an answer, \
             where the slowest before took {:.1} s: does the service hang?",
            longest as f64 / 1e9
        )
    })
}

/// What others began or ended in mid-run: two experiments in one.
pub(crate) fn others_changed(run: &RunData, data: &KernelData) -> Vec<String> {
    let all = in_force(run, data).unwrap_or_default();
    all.iter()
        .filter_map(|one| {
            let when = one.change()?;
            Some(format!("somebody else impaired the service's network {when}: {}", one.sentence()))
        })
        .collect()
}

/// What the agent told of. A service that ended or a delay that did, before the users were stopped,
/// makes the rest of the run another experiment; what went wrong afterwards does not touch it.
fn agent_errors(
    run: &RunData,
    data: &KernelData,
    reasons: &mut Vec<String>,
    notes: &mut Vec<String>,
) {
    for error in &data.errors {
        let seconds = error.at_ns.saturating_sub(run.start) as f64 / 1e9;
        let told = format!("the agent reports at {seconds:.1} s: {}", error.message);
        let breaks = match error.code {
            ErrorCode::TargetGone | ErrorCode::Kernel => error.at_ns <= run.end,
            ErrorCode::Busy | ErrorCode::Forbidden | ErrorCode::Invalid | ErrorCode::NoTarget => {
                false
            }
        };
        if breaks { reasons.push(told) } else { notes.push(told) }
    }
}

fn ledger(accounts: &Accounts, reasons: &mut Vec<String>, notes: &mut Vec<String>) {
    let ledger = &accounts.ledger;
    let worst = [ledger.matched_fraction, accounts.run_matched_fraction]
        .into_iter()
        .flatten()
        .reduce(f64::min);
    match worst {
        None => reasons.push("no request was completed: there is nothing to explain".to_owned()),
        Some(share) if share < MATCHED_MIN => reasons.push(format!(
            "only {} of the completed requests could be joined with their kernel timeline (at \
             least {})",
            percent(share),
            percent(MATCHED_MIN)
        )),
        Some(_) => {}
    }
    if let Some(share) = ledger.inverted_fraction.filter(|&share| share > INVERTED_MAX) {
        reasons.push(format!(
            "kernel marks contradict causality by {} of the time (at most {})",
            percent(share),
            percent(INVERTED_MAX)
        ));
    }
    if let Some(share) = ledger.residual_fraction.filter(|share| share.abs() > RESIDUAL_MAX) {
        reasons.push(format!(
            "the stages differ from the client's time by {} (at most {})",
            percent(share),
            percent(RESIDUAL_MAX)
        ));
    }
    let waited = ledger.stages.iter().find(|stage| stage.stage == Stage::ClientWait.name());
    if let Some(stage) = waited.filter(|stage| stage.share > CLIENT_WAIT_MAX) {
        reasons.push(format!(
            "the load generator was late to read: {} of the time (at most {}); give it an idle \
             processor, or fewer users",
            percent(stage.share),
            percent(CLIENT_WAIT_MAX)
        ));
    }
    if let Some(known) = ledger.client_wait_known.filter(|&known| known < CLIENT_WAIT_KNOWN_MIN) {
        notes.push(format!(
            "client_wait was measured for {} of the requests; for the others it is part of \
             response_net",
            percent(known)
        ));
    }
    if ledger.scope == "run" && ledger.matched + ledger.unmatched > 0 {
        notes.push(format!(
            "fewer than {} requests were completed in the hold: the ledger is of the whole run",
            crate::ledger::MIN_REQUESTS
        ));
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests;
