//! A server that works on many requests at once: an event loop, and perhaps threads that it hands
//! work to. Waits overlap, so a delay costs each request time and not the server its throughput;
//! the queue moves from the backlog into the process, and a short accept queue proves nothing.

use super::{DOMINANT, Evidence, Judgement, not_crossed, round_trips, words};
use crate::{
    ledger::Stage,
    report::model::{ThreadGroup, Verdict, WhatIf},
};

/// Up to this share of idle time an event loop counts as busy all the time.
pub(super) const LOOP_IDLE_MAX: f64 = 0.10;
/// From this share of the processors on, or of one processor per event loop where threads wait for
/// one another, processor time is the bound.
pub(super) const CORES_BUSY: f64 = 0.85;
/// From this share of its time on a thread is busy with the database.
pub(super) const EXECUTOR_BUSY: f64 = 0.85;
/// With fewer requests in service than this share of the executors, some of those that wait for a
/// lock only wait for work: a pool's queue is a lock to the kernel.
pub(super) const EXECUTORS_ASKED: f64 = 0.80;
/// The database counts as out of capacity if it answers this many times slower than at first.
pub(super) const SLOWER: f64 = 2.0;
/// A loop with this much idle time could take on more.
const LOOP_IDLE_PLENTY: f64 = 0.20;
/// Of the time of threads that wait neither for work nor for the database, this share is in locks
/// or on the run queue where they fight over processors.
const CONTENDED: f64 = 0.30;

/// What the threads did, in threads: 0.3 is 30 % of one thread's time.
struct Load<'a> {
    takers: &'a ThreadGroup,
    executors: Option<&'a ThreadGroup>,
}

impl Load<'_> {
    fn taker(&self, class: &str) -> f64 {
        share(self.takers, class)
    }

    fn executor(&self, class: &str) -> f64 {
        self.executors.map_or(0.0, |group| share(group, class))
    }

    /// Processors used.
    fn cores(&self) -> f64 {
        self.sum(&["cpu"])
    }

    fn sum(&self, classes: &[&str]) -> f64 {
        let of = |group: &ThreadGroup| {
            classes.iter().map(|class| share(group, class)).sum::<f64>() * group.threads
        };
        of(self.takers) + self.executors.map_or(0.0, of)
    }

    /// Share of the time that is neither idle nor the database's in which threads were kept from
    /// running by one another.
    fn contention(&self) -> f64 {
        let kept = self.sum(&["lock", "runqueue"]);
        let running = self.sum(&["cpu"]);
        if kept + running <= 0.0 { 0.0 } else { kept / (kept + running) }
    }
}

fn share(group: &ThreadGroup, class: &str) -> f64 {
    group.time.get(class).copied().unwrap_or(0.0)
}

pub(super) fn tell(evidence: &Evidence<'_>) -> (Judgement, Vec<String>, Vec<WhatIf>) {
    let Some(takers) = evidence.group(false) else {
        let judgement = Judgement { verdict: Verdict::CannotTell, bound_rps: None };
        let sentence = "What bounds the throughput cannot be told: no thread was seen to accept \
                        connections or to read requests.";
        return (judgement, vec![sentence.to_owned()], Vec::new());
    };
    let load = Load { takers, executors: evidence.group(true) };
    let (judgement, cause) = judge(evidence, &load);
    let mut sentences = vec![shape_sentence(evidence, &load), loop_sentence(&load)];
    sentences.extend(executor_sentence(&load));
    sentences.extend(round_trips(evidence));
    sentences.extend(overlap_sentence(evidence));
    sentences.extend(queue_sentence(evidence));
    sentences.push(cause);
    let what_if = what_if(evidence, &load, judgement.verdict);
    (judgement, sentences, what_if)
}

fn judge(evidence: &Evidence<'_>, load: &Load<'_>) -> (Judgement, String) {
    let judged = |verdict, bound_rps, cause| (Judgement { verdict, bound_rps }, cause);
    let idle = load.taker("idle");
    let cores = load.cores();
    let loops = load.takers.threads.max(1.0);
    let all_cpus = evidence.cpus > 0 && cores >= CORES_BUSY * f64::from(evidence.cpus);
    let one_each = cores >= CORES_BUSY * loops && load.contention() >= CONTENDED;
    let loop_computes =
        idle <= LOOP_IDLE_MAX && load.taker("cpu") + load.taker("runqueue") >= DOMINANT;
    if loop_computes || all_cpus || one_each {
        return judged(Verdict::EventLoopCpu, cpu_bound(evidence, load), cpu_cause(evidence, load));
    }
    if idle <= LOOP_IDLE_MAX && load.taker("database") >= DOMINANT {
        let cause = "The event loop itself waits for the database: while it does, it serves \
                     nobody else. Its bound is the time of the round trips."
            .to_owned();
        return judged(Verdict::ExecutorHeldByDatabase, by_database(evidence, loops), cause);
    }
    if (idle <= LOOP_IDLE_MAX && load.taker("lock") >= DOMINANT)
        || (load.executor("lock") >= DOMINANT && executors_asked(evidence, load))
    {
        let cause = "The threads wait for a lock most of the time, and little is computed \
                     meanwhile: whoever holds that lock is the bound."
            .to_owned();
        return judged(Verdict::WorkersHeldByLock, None, cause);
    }
    database(evidence, load).unwrap_or_else(|| rest(evidence, load))
}

/// Whether there is about as much in service as there are executors.
fn executors_asked(evidence: &Evidence<'_>, load: &Load<'_>) -> bool {
    let executors = load.executors.map_or(0.0, |group| group.threads);
    evidence.stats.in_service_mean >= EXECUTORS_ASKED * executors
}

/// Whether the database, or the way to it, is the bound.
fn database(evidence: &Evidence<'_>, load: &Load<'_>) -> Option<(Judgement, String)> {
    let inside = evidence.stats.in_service_mean;
    let open = evidence.kernel().db_open_mean;
    let executors = load.executors.map_or(0.0, |group| group.threads);
    let few = executors > 0.0 && executors <= DOMINANT * inside;
    if few && load.executor("database") >= EXECUTOR_BUSY && load.executor("idle") <= LOOP_IDLE_MAX {
        let bound = by_database(evidence, executors);
        let cause = format!(
            "{} between the event loop and the database, and {} in the process wait for one: {}.",
            words::several(executors, "thread stands", "threads stand"),
            words::several((inside - executors).max(0.0), "request", "requests"),
            bound.map_or_else(
                || "that is the bound".to_owned(),
                |rate| format!(
                    "{executors:.0} / {} = {} requests per second is the bound",
                    words::ms(evidence.stats.database_ms),
                    words::rate(rate)
                )
            ),
        );
        return Some((
            Judgement { verdict: Verdict::ExecutorHeldByDatabase, bound_rps: bound },
            cause,
        ));
    }
    let dominant = evidence.stats.dominant.as_ref()?;
    let waiting = inside > 0.0 && open / inside >= DOMINANT;
    if !waiting || dominant.hold_ms < SLOWER * dominant.first_ms {
        return None;
    }
    let name = dominant.statement.as_ref().map_or_else(
        || words::purpose(dominant.kind.name()).to_owned(),
        |text| format!("`{text}`"),
    );
    let cause = format!(
        "The database is out of capacity: {name} took {} when the first users came and {} on \
         average in the hold. All that ask for it at once only wait longer.",
        words::ms(dominant.first_ms),
        words::ms(dominant.hold_ms),
    );
    Some((Judgement { verdict: Verdict::ExecutorHeldByDatabase, bound_rps: None }, cause))
}

fn rest(evidence: &Evidence<'_>, load: &Load<'_>) -> (Judgement, String) {
    let queued = evidence.stage_ms(Stage::AcceptQueue) + evidence.stage_ms(Stage::Unread);
    let mean = evidence.ledger.client_mean_ms;
    if load.taker("idle") >= LOOP_IDLE_PLENTY && queued < DOMINANT * mean {
        let users = evidence.users();
        let bound = (mean > 0.0).then(|| users * 1e3 / mean);
        let cause = format!(
            "Nothing is used up: each of {} waits {} for its answer and then asks again, and that \
             makes {} requests per second. More users would get more done.",
            words::several(users, "user", "users"),
            words::ms(mean),
            bound.map_or_else(|| "few".to_owned(), words::rate),
        );
        return (Judgement { verdict: Verdict::NotSaturated, bound_rps: bound }, cause);
    }
    let cause = "What bounds the throughput cannot be told: neither the event loop, nor the \
                 threads it hands work to, nor the database was busy all the time."
        .to_owned();
    (Judgement { verdict: Verdict::CannotTell, bound_rps: None }, cause)
}

/// Threads / time per request with the database.
fn by_database(evidence: &Evidence<'_>, threads: f64) -> Option<f64> {
    let ms = evidence.stats.database_ms;
    (ms > 0.0).then(|| threads.max(1.0) * 1e3 / ms)
}

/// Processor milliseconds per answered request.
fn cpu_ms(evidence: &Evidence<'_>, load: &Load<'_>) -> Option<f64> {
    let hold_ms = evidence.client.hold_s * 1e3;
    let answered = evidence.stats.answered as f64;
    let ms = load.cores() * hold_ms / answered;
    (ms.is_finite() && ms > 0.0).then_some(ms)
}

fn cpu_bound(evidence: &Evidence<'_>, load: &Load<'_>) -> Option<f64> {
    // As many processors as it gets to use now; the loop alone cannot use more than one.
    cpu_ms(evidence, load).map(|ms| load.cores().max(load.takers.threads.max(1.0)) * 1e3 / ms)
}

fn cpu_cause(evidence: &Evidence<'_>, load: &Load<'_>) -> String {
    let ms = cpu_ms(evidence, load).map_or_else(String::new, |ms| {
        format!(" A request takes {} of processor time.", words::ms(ms))
    });
    format!(
        "Processor time is used up: {} in use on average, and threads that want one spend {} of \
         their time kept from running.{ms}",
        words::several(load.cores(), "processor", "processors"),
        words::percent(load.contention()),
    )
}

fn shape_sentence(evidence: &Evidence<'_>, load: &Load<'_>) -> String {
    format!(
        "{} every connection as it comes and works on many requests at once: {} in progress on \
         average.",
        words::several(load.takers.threads.max(1.0), "event loop takes", "event loops take"),
        words::several(evidence.stats.in_service_mean, "request", "requests"),
    )
}

fn loop_sentence(load: &Load<'_>) -> String {
    let parts = parts(load.takers);
    format!("The event loop's time: {}.", words::list(&parts))
}

fn executor_sentence(load: &Load<'_>) -> Option<String> {
    let executors = load.executors?;
    Some(format!(
        "It hands database work to other threads, {} at once on average; their time: {}.",
        words::mean(executors.threads),
        words::list(&parts(executors)),
    ))
}

/// What threads did, most first, without the crumbs.
fn parts(group: &ThreadGroup) -> Vec<String> {
    let mut classes: Vec<(&String, &f64)> = group.time.iter().collect();
    classes.sort_by(|a, b| b.1.total_cmp(a.1));
    classes
        .into_iter()
        .filter(|(_, share)| **share >= 0.02)
        .map(|(class, share)| format!("{} {}", words::percent(*share), words::doing(class)))
        .collect()
}

fn overlap_sentence(evidence: &Evidence<'_>) -> Option<String> {
    evidence.kernel().db_round_trips_per_request.filter(|&count| count > 0.0)?;
    let open = words::several(evidence.kernel().db_open_mean, "was open", "were open");
    let overlap = format!("Of these round trips {open} at once on average: their waits overlap");
    Some(match evidence.database_delay_ms().filter(|&ms| ms > 0.0) {
        Some(longer) => format!(
            "{overlap}, so {} of delay makes each request about {} longer while the others go on.",
            words::ms(evidence.delay_ms),
            words::ms(longer),
        ),
        None => not_crossed(evidence)
            .map_or_else(|| format!("{overlap}."), |not| format!("{overlap}. {not}")),
    })
}

fn queue_sentence(evidence: &Evidence<'_>) -> Option<String> {
    let depth = evidence.kernel().accept_queue_depth.mean;
    let accept = evidence.stage_ms(Stage::AcceptQueue);
    let unread = evidence.stage_ms(Stage::Unread);
    let service = evidence.stage_ms(Stage::Service);
    if evidence.ledger.stages.is_empty() {
        return None;
    }
    Some(format!(
        "Users wait inside the process, not in front of it: {} in the accept queue ({} per \
         request), {} until the request was read, then {} until it was answered.",
        words::mean(depth),
        words::ms(accept),
        words::ms(unread),
        words::ms(service),
    ))
    .filter(|_| service >= accept + unread)
    .or_else(|| {
        Some(format!(
            "Requests wait before anybody looks at them: {} in the accept queue ({} connections on \
             average) and {} unread, against {} of work.",
            words::ms(accept),
            words::mean(depth),
            words::ms(unread),
            words::ms(service),
        ))
    })
}

fn what_if(evidence: &Evidence<'_>, load: &Load<'_>, verdict: Verdict) -> Vec<WhatIf> {
    let mut changes = Vec::new();
    let measured = evidence.client.hold_srps;
    let mean = evidence.ledger.client_mean_ms;
    let setup = evidence.stats.setup_ms;
    match verdict {
        Verdict::NotSaturated if setup > 0.02 * mean && setup < mean => changes.push(WhatIf {
            change: "database connections kept open from request to request, the same users"
                .to_owned(),
            predicted_rps: evidence.users() * 1e3 / (mean - setup),
        }),
        Verdict::EventLoopCpu => {
            if let (Some(rate), Some(ms)) = (measured, cpu_ms(evidence, load))
                && evidence.cpus > 1
            {
                let most = f64::from(evidence.cpus) * 1e3 / ms;
                changes.push(WhatIf {
                    change: "twice as many event loops, in processes of their own".to_owned(),
                    predicted_rps: (2.0 * rate).min(most),
                });
            }
        }
        Verdict::ExecutorHeldByDatabase => {
            let executors = load.executors.map_or(0.0, |group| group.threads);
            let few = executors > 0.0 && executors <= DOMINANT * evidence.stats.in_service_mean;
            let database = evidence.stats.database_ms;
            if few && setup > 0.0 && setup < database {
                changes.push(WhatIf {
                    change: "database connections kept open from request to request".to_owned(),
                    predicted_rps: executors * 1e3 / (database - setup),
                });
            }
        }
        _ => {}
    }
    changes
}
