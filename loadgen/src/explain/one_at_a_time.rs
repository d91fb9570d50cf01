//! A server whose workers take a connection, finish with it and take the next. While a worker
//! waits, nobody else is served, and everybody else stands in the accept queue.

use super::{
    DOMINANT, Evidence, Judgement, SATURATED,
    concurrent::QUEUE_STANDS,
    sentences::{not_crossed, round_trips},
    words,
};
use crate::{
    ledger::Stage,
    predict::crossing::Crossing,
    report::model::{Verdict, WhatIf},
};

/// Numbers of workers that are tried.
const WORKERS: [f64; 3] = [2.0, 4.0, 8.0];
/// Of a thread's time per request, what is told of one wait class.
const WORTH_TELLING: f64 = 0.02;

/// The parts of the time that a worker is held, milliseconds per request.
struct Held {
    workers: f64,
    total: f64,
    classes: Vec<(String, f64)>,
}

impl Held {
    fn of(evidence: &Evidence<'_>) -> Option<Self> {
        let kernel = evidence.kernel();
        let total = kernel.held_ms.as_ref()?.mean;
        let mut classes: Vec<(String, f64)> =
            kernel.held_by_class_ms.as_ref()?.clone().into_iter().collect();
        classes.sort_by(|a, b| b.1.total_cmp(&a.1));
        let workers = evidence.stats.acceptors.max(1) as f64;
        (total > 0.0).then_some(Self { workers, total, classes })
    }

    fn ms(&self, class: &str) -> f64 {
        self.classes.iter().find(|(name, _)| name == class).map_or(0.0, |(_, ms)| *ms)
    }

    fn share(&self, classes: &[&str]) -> f64 {
        classes.iter().map(|class| self.ms(class)).sum::<f64>() / self.total
    }

    /// W / H: what this many workers can serve.
    fn bound(&self, held_ms: f64) -> f64 {
        self.workers * 1e3 / held_ms
    }
}

pub(super) fn tell(evidence: &Evidence<'_>) -> (Judgement, Vec<String>, Vec<WhatIf>) {
    let Some(held) = Held::of(evidence).filter(|_| evidence.stats.holds >= super::MIN_DECIDING)
    else {
        let judgement = Judgement { verdict: Verdict::CannotTell, bound_rps: None };
        let sentence = format!(
            "What bounds the throughput cannot be told: a worker was seen from accept to the next \
             accept for {} only.",
            words::several(evidence.stats.holds as f64, "request", "requests")
        );
        return (judgement, vec![sentence], Vec::new());
    };
    let verdict = verdict(evidence, &held);
    let decided = verdict != Verdict::CannotTell || evidence.stats.held_share >= SATURATED;
    let bound_rps = decided.then(|| held.bound(held.total));
    let judgement = Judgement { verdict, bound_rps };
    let mut sentences = vec![held_sentence(evidence, &held), time_sentence(&held)];
    sentences.extend(round_trips(evidence));
    sentences.extend(crossings(evidence));
    sentences.push(queue_sentence(evidence));
    sentences.push(bound_sentence(evidence, &held, verdict));
    (judgement, sentences, what_if(evidence, &held, verdict))
}

fn verdict(evidence: &Evidence<'_>, held: &Held) -> Verdict {
    if evidence.stats.held_share < SATURATED {
        // Idle workers and a queue in front of them contradict each other.
        let queue_stands = evidence.queue_mean() >= QUEUE_STANDS;
        return if queue_stands { Verdict::CannotTell } else { Verdict::NotSaturated };
    }
    let causes = [
        (Verdict::WorkersHeldByDatabase, held.share(&["database"])),
        (Verdict::WorkersHeldByCpu, held.share(&["cpu", "runqueue"])),
        (Verdict::WorkersHeldByLock, held.share(&["lock"])),
        (Verdict::WorkersHeldByClients, held.share(&["client_io"])),
        (Verdict::WorkersHeldByOther, held.share(&["sleep", "disk", "other", "idle"])),
    ];
    causes
        .into_iter()
        .find(|(_, share)| *share >= DOMINANT)
        .map_or(Verdict::CannotTell, |(verdict, _)| verdict)
}

fn held_sentence(evidence: &Evidence<'_>, held: &Held) -> String {
    let workers = words::several(held.workers, "worker takes", "workers each take");
    let is = if held.workers == 1.0 { "is" } else { "are" };
    format!(
        "{workers} one request at a time, from accept to close, and {is} held {} by \
         each. Held, that is busy or blocked: {} of the time.",
        words::ms(held.total),
        words::percent(evidence.stats.held_share.min(1.0)),
    )
}

fn time_sentence(held: &Held) -> String {
    let parts: Vec<String> = held
        .classes
        .iter()
        .filter(|(_, ms)| ms / held.total >= WORTH_TELLING)
        .map(|(class, ms)| {
            let share = words::percent(ms / held.total);
            format!("{share} ({}) {}", words::ms(*ms), words::doing(class))
        })
        .collect();
    format!("While held a worker spends {}.", words::list(&parts))
}

fn crossings(evidence: &Evidence<'_>) -> Option<String> {
    let count = evidence.kernel().db_round_trips_per_request.filter(|&count| count > 0.0)?;
    if evidence.delay_ms <= 0.0 {
        return None;
    }
    let whole = words::ms(evidence.database_delay_ms().unwrap_or(0.0));
    match evidence.crossing() {
        Crossing::Once => {}
        Crossing::Twice => {
            let delay = words::ms(evidence.delay_ms);
            return Some(format!(
                "Each of them crosses {}, delayed by {delay}, there and back, one after the \
                 other: {} x 2 x {delay} = {whole} of pure delay per request, with the worker \
                 blocked.",
                evidence.device(),
                words::mean(count),
            ));
        }
        Crossing::Never | Crossing::NotEach | Crossing::Unclear => return not_crossed(evidence),
    }
    Some(format!(
        "Each of them crosses the link that is delayed by {} once, one after the other: {} x {} = \
         {whole} of pure delay per request, with the worker blocked.",
        words::ms(evidence.delay_ms),
        words::mean(count),
        words::ms(evidence.delay_ms),
    ))
}

fn queue_sentence(evidence: &Evidence<'_>) -> String {
    let (depth, waited) = (evidence.queue_mean(), evidence.stage_ms(Stage::AcceptQueue));
    let most = evidence.kernel().accept_queue_depth.as_ref().map_or(0, |depth| depth.max);
    if depth < QUEUE_STANDS {
        return format!(
            "Hardly anybody waited for a worker: {} in the accept queue on average, {} per request.",
            words::several(depth, "connection", "connections"),
            words::ms(waited),
        );
    }
    format!(
        "Meanwhile {} stood in the accept queue (at most {}), connected but not yet taken: a \
         request that got through had waited there {} of its {}.",
        words::several(depth, "user", "users"),
        most,
        words::ms(waited),
        words::ms(evidence.joined_mean_ms()),
    )
}

fn bound_sentence(evidence: &Evidence<'_>, held: &Held, verdict: Verdict) -> String {
    let workers = words::several(held.workers, "worker", "workers");
    let bound = words::rate(held.bound(held.total));
    let measured = evidence
        .client
        .hold_srps
        .map_or_else(String::new, |rate| format!(" Measured: {}.", words::rate(rate)));
    let idle = 1.0 - evidence.stats.held_share;
    if verdict == Verdict::CannotTell && evidence.stats.held_share < SATURATED {
        return format!(
            "What bounds the throughput cannot be told: a worker is idle {} of the time, and yet {} \
             in the accept queue.{measured}",
            words::percent(idle),
            words::several(evidence.queue_mean(), "connection stands", "connections stand"),
        );
    }
    let formula = format!("{workers} / {} = {bound} requests per second", words::ms(held.total));
    if verdict == Verdict::NotSaturated {
        return format!(
            "The workers could do {formula}; {} do not ask for more.{measured}",
            words::several(evidence.users(), "user", "users")
        );
    }
    format!("No more can be served than {formula}, however many users come.{measured}")
}

fn what_if(evidence: &Evidence<'_>, held: &Held, verdict: Verdict) -> Vec<WhatIf> {
    let mut changes = Vec::new();
    if matches!(verdict, Verdict::NotSaturated | Verdict::CannotTell) {
        return changes;
    }
    let client_delay = evidence.client_delay_ms();
    let users = |held_ms: f64, delay_ms: f64| evidence.users() * 1e3 / (held_ms + delay_ms);
    let cpu_bound = cpu_bound(evidence, held);
    let database_bound = database_bound(evidence);
    let mut add = |change: String, workers: f64, held_ms: f64, delay_ms: f64| {
        let mut rate = (workers * 1e3 / held_ms).min(users(held_ms, delay_ms)).min(cpu_bound);
        if workers > held.workers {
            rate = rate.min(database_bound);
        }
        changes.push(WhatIf { change, predicted_rps: rate });
    };

    let setup = evidence.stats.setup_ms;
    if setup >= WORTH_TELLING * held.total && setup < held.total {
        let what = "database connections kept open from request to request".to_owned();
        add(what, held.workers, held.total - setup, client_delay);
    }
    let delay = evidence.database_delay_ms().unwrap_or(0.0);
    if delay > 0.0 && delay < held.total {
        let what = format!("no added delay instead of {}", words::ms(evidence.delay_ms));
        // Nor does the client wait for any then.
        add(what, held.workers, held.total - delay, 0.0);
    }
    // Workers that wait for one another, or for a processor, do not become faster by company.
    let waiting = verdict != Verdict::WorkersHeldByLock;
    let database = verdict == Verdict::WorkersHeldByDatabase;
    let keeps_up = if database { ", if the database keeps up" } else { "" };
    for times in WORKERS.iter().filter(|_| waiting) {
        let workers = held.workers * times;
        // One step beyond the bound tells that there is nothing more to have.
        let before = workers / 2.0 * 1e3 / held.total;
        if before < cpu_bound.min(database_bound) && workers <= evidence.users() {
            let change = format!("{workers:.0} workers instead of {:.0}{keeps_up}", held.workers);
            add(change, workers, held.total, client_delay);
        }
    }
    if let Some(rate) = asynchronous(evidence, held, verdict) {
        changes.push(WhatIf {
            change: format!(
                "{} that {} many requests at once (async){}",
                words::several(held.workers, "worker", "workers"),
                if held.workers == 1.0 { "works on" } else { "work on" },
                if database { ", the database no faster than now" } else { "" },
            ),
            predicted_rps: rate.min(users(held.total, client_delay)),
        });
    }
    changes
}

/// Requests per second for which the processors suffice; infinite where that is not known. Time
/// on the run queue is left out: it is the neighbours' doing.
fn cpu_bound(evidence: &Evidence<'_>, held: &Held) -> f64 {
    let cpu = held.ms("cpu");
    if evidence.cpus == 0 || cpu <= 0.0 {
        f64::INFINITY
    } else {
        f64::from(evidence.cpus) * 1e3 / cpu
    }
}

/// Time per request that the database works itself, without the delay on the way to it.
fn database_work_ms(evidence: &Evidence<'_>) -> f64 {
    // What is not known to be delay counts as work: that promises less.
    (evidence.stats.database_ms - evidence.database_delay_ms().unwrap_or(0.0)).max(0.0)
}

/// Requests per second for which a database suffices that has as many processors as this host and
/// needs one of them all the time it works on a request: no more is promised of more workers.
fn database_bound(evidence: &Evidence<'_>) -> f64 {
    let work = database_work_ms(evidence);
    if evidence.cpus == 0 || work <= 0.0 {
        f64::INFINITY
    } else {
        f64::from(evidence.cpus) * 1e3 / work
    }
}

/// What overlapping the waits would give: the processor time of a request in one worker, and the
/// database's own work, which is taken to be done for one request at a time as it is now. The
/// delay overlaps. None where waiting is not what the workers do.
fn asynchronous(evidence: &Evidence<'_>, held: &Held, verdict: Verdict) -> Option<f64> {
    let overlaps = matches!(
        verdict,
        Verdict::WorkersHeldByDatabase
            | Verdict::WorkersHeldByClients
            | Verdict::WorkersHeldByOther
    );
    let database = database_work_ms(evidence);
    let most = (held.ms("cpu") / held.workers).max(database / held.workers);
    (overlaps && most > 0.0).then(|| 1e3 / most)
}
