//! What a server that works on many requests at once could do at most, as it is and changed.

use super::{Load, least_idle};
use crate::{
    explain::Evidence,
    report::model::{Verdict, WhatIf},
};

/// N / R is told where it is this close to what was measured: elsewhere there is no steady state.
const STEADY: f64 = 0.05;
/// What a change gives is told if it is more than what there is by this share.
const WORTH_TELLING: f64 = 0.02;
/// With so many threads waiting for a processor on average, none is left over.
const PROCESSORS_TAKEN: f64 = 1.0;

/// N / R, where the run was in a steady state: nothing older than what got through, and the rate is
/// what was measured.
pub(super) fn steady_rate(evidence: &Evidence<'_>) -> Option<f64> {
    let mean = Some(evidence.client_mean_ms()).filter(|&ms| ms > 0.0)?;
    let measured = evidence.client.hold_srps?;
    let age = evidence.ledger.unfinished.mean_age_ms.unwrap_or(0.0);
    let rate = evidence.users() * 1e3 / mean;
    (age <= mean && (rate / measured - 1.0).abs() <= STEADY).then_some(rate)
}

/// Threads / time per request with the database.
pub(super) fn by_database(evidence: &Evidence<'_>, threads: f64) -> Option<f64> {
    let ms = evidence.stats.database_ms;
    (ms > 0.0).then(|| threads.max(1.0) * 1e3 / ms)
}

/// Processor milliseconds per answered request.
pub(super) fn cpu_ms(evidence: &Evidence<'_>, load: &Load<'_>) -> Option<f64> {
    let hold_ms = evidence.client.hold_s * 1e3;
    let answered = evidence.stats.answered as f64;
    let ms = load.cores() * hold_ms / answered;
    (ms.is_finite() && ms > 0.0).then_some(ms)
}

/// What the threads that there are could do if each had a processor to itself and nothing else changed, the
/// database's own work included. None where that says no more than what was measured, or where others
/// have the processors.
pub(super) fn cpu_bound(evidence: &Evidence<'_>, load: &Load<'_>) -> Option<f64> {
    let ms = cpu_ms(evidence, load)?;
    // Where threads come and go with the connections their number is no bound.
    let threads = load.fixed_threads().unwrap_or(f64::INFINITY);
    let bound = (threads * 1e3 / ms).min(processors_bound(evidence, load));
    let measured = evidence.client.hold_srps?;
    let room =
        bound.is_finite() && load.cores() < threads && load.sum(&["runqueue"]) < PROCESSORS_TAKEN;
    (room && bound > (1.0 + STEADY) * measured).then_some(bound)
}

/// Requests per second for which the processors of this host suffice, where the database, alone
/// with each request, needs one of them all the time it works on it; infinite if they are not known.
/// Where more than that was measured the database is not such, and only the service's own work counts.
pub(super) fn processors_bound(evidence: &Evidence<'_>, load: &Load<'_>) -> f64 {
    let database =
        (evidence.stats.database_alone_ms - evidence.database_delay_ms().unwrap_or(0.0)).max(0.0);
    let own = cpu_ms(evidence, load).unwrap_or(0.0);
    let bound = |work: f64| {
        if evidence.cpus == 0 || work <= 0.0 {
            f64::INFINITY
        } else {
            f64::from(evidence.cpus) * 1e3 / work
        }
    };
    let with_database = bound(own + database);
    let refuted =
        evidence.client.hold_srps.is_some_and(|rate| rate > (1.0 + STEADY) * with_database);
    if refuted { bound(own) } else { with_database }
}

/// Requests per second at which the busiest event loop, as busy per request as now, is never idle;
/// infinite where there is none.
pub(super) fn loop_bound(evidence: &Evidence<'_>, load: &Load<'_>) -> f64 {
    if !load.serving.multiplexes() {
        return f64::INFINITY;
    }
    let busy = 1.0 - least_idle(evidence, load);
    evidence.client.hold_srps.filter(|_| busy > 0.0).map_or(f64::INFINITY, |rate| rate / busy)
}

pub(super) fn what_if(evidence: &Evidence<'_>, load: &Load<'_>, verdict: Verdict) -> Vec<WhatIf> {
    let mut changes = Vec::new();
    let Some(measured) = evidence.client.hold_srps else { return changes };
    let mut add = |change: &str, rate: f64| {
        if rate > (1.0 + WORTH_TELLING) * measured {
            changes.push(WhatIf { change: change.to_owned(), predicted_rps: rate });
        }
    };
    let mean = evidence.client_mean_ms();
    let setup = evidence.stats.setup_ms;
    // No more than the loop, or the processors with the database's own work, have to give.
    let most = loop_bound(evidence, load).min(processors_bound(evidence, load));
    match verdict {
        Verdict::NotSaturated if setup > WORTH_TELLING * mean && setup < mean => add(
            "database connections kept open from request to request, the same users",
            (evidence.users() * 1e3 / (mean - setup)).min(most),
        ),
        Verdict::EventLoopCpu
            if load.fixed_threads().is_some() && load.sum(&["runqueue"]) < PROCESSORS_TAKEN =>
        {
            add(
                if load.serving.multiplexes() {
                    "twice as many event loops, in processes of their own"
                } else {
                    "twice as many threads that read requests, in processes of their own"
                },
                if evidence.cpus > 1 {
                    (2.0 * measured).min(processors_bound(evidence, load))
                } else {
                    measured
                },
            )
        }
        Verdict::ExecutorHeldByDatabase if load.few_executors(evidence) => {
            let database = evidence.stats.database_ms;
            if setup > 0.0 && setup < database {
                let rate = load.executor_threads() * 1e3 / (database - setup);
                add("database connections kept open from request to request", rate.min(most));
            }
        }
        _ => {}
    }
    changes
}
