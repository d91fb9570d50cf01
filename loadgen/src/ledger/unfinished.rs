//! Requests that the run did not see the end of. A ledger of completed ones hides most of a queue.

use crate::{
    join::{Match, Unmatched},
    ledger::{Counts, overflowed},
    record::{Outcome, RequestRecord, RunData},
    report::model,
};

/// Counts and ages them, by the stage each was in when the run ended.
pub(super) fn unfinished(run: &RunData, matches: &[Match<'_>]) -> model::Unfinished {
    let mut by_stage = Counts::new();
    let (mut count, mut total_age) = (0u64, 0u128);
    for (record, one) in run.records.iter().zip(matches) {
        if record.outcome != Outcome::Unfinished {
            continue;
        }
        count += 1;
        total_age += u128::from(run.end.saturating_sub(record.c0));
        *by_stage.entry(stage(run, record, one).to_owned()).or_insert(0) += 1;
    }
    model::Unfinished {
        count,
        mean_age_ms: (count > 0).then(|| total_age as f64 / count as f64 / super::NS_PER_MS),
        by_stage,
    }
}

/// The stage that a request was in at the end of the run: what happened later, until the agent
/// was told to stop, does not count.
fn stage(run: &RunData, record: &RequestRecord, one: &Match<'_>) -> &'static str {
    let reached = |mark: u64| mark != 0 && mark <= run.end;
    let new_connection = record.ordinal == 0;
    let server = match one.server {
        Ok(server) => server,
        Err(reason) => return without_record(run, record, reason),
    };
    if reached(server.s5) {
        return if one.turn.is_some_and(|turn| reached(turn.c4k)) {
            "client_wait"
        } else {
            "response_net"
        };
    }
    if reached(server.s3) {
        "service"
    } else if new_connection && !reached(server.s0) {
        "connect"
    } else if new_connection && !reached(server.s2) {
        "accept_queue"
    } else if reached(server.s1) {
        "unread"
    } else {
        "request_net"
    }
}

fn without_record(run: &RunData, record: &RequestRecord, reason: Unmatched) -> &'static str {
    let windows = run.kernel.as_ref().map_or(&[][..], |kernel| &kernel.windows);
    let unseen = matches!(
        reason,
        Unmatched::NoAddress | Unmatched::NoConnection | Unmatched::NoConnectionInTime
    );
    if record.ordinal > 0 {
        // On a kept connection the service's kernel has nothing to tell until bytes arrive.
        return if reason == Unmatched::NoSuchOrdinal { "request_net" } else { "unknown" };
    }
    if unseen && overflowed(windows, record.c0, run.end) {
        "backlog_overflow"
    } else if unseen && (record.c1 == 0 || record.c1 > run.end) {
        "connect"
    } else {
        "unknown"
    }
}
