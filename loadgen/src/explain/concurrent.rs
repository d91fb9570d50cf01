//! A server that works on many requests at once: an event loop, and perhaps threads that it hands
//! work to. Waits overlap, so a delay costs each request time and not the server its throughput;
//! the queue moves from the backlog into the process, and a short accept queue proves nothing.

use super::{DOMINANT, Evidence, Judgement, not_crossed, round_trips, words};
use crate::{
    kernel_stats::Dominant,
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
/// With fewer requests in service than this share of the threads for them, some of those that wait for a
/// lock only wait for work: a pool's queue is a lock to the kernel.
pub(super) const EXECUTORS_ASKED: f64 = 0.80;
/// The database is slower under load if it takes this many times as long as when hardly anybody
/// asks, delay left out.
pub(super) const SLOWER: f64 = 2.0;
/// And out of capacity if on average at least so many wait for the same of it at once.
pub(super) const QUEUED: f64 = 4.0;
/// From so many on it may be.
const QUEUED_PERHAPS: f64 = 1.0;
/// From this mean length of the accept queue on somebody always waits to be taken.
pub(super) const QUEUE_STANDS: f64 = 1.0;
/// N / R is told where it is this close to what was measured: elsewhere there is no steady state.
const STEADY: f64 = 0.05;
/// What a change gives is told if it is more than what there is by this share.
const WORTH_TELLING: f64 = 0.02;
/// With so many threads waiting for a processor on average, none is left over.
const PROCESSORS_TAKEN: f64 = 1.0;
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

    fn executor_threads(&self) -> f64 {
        self.executors.map_or(0.0, |group| group.threads)
    }

    /// Whether requests share fewer executors than there are of them.
    fn few_executors(&self, evidence: &Evidence<'_>) -> bool {
        let executors = self.executor_threads();
        executors > 0.0 && executors <= DOMINANT * evidence.stats.in_service_mean
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
    if (idle <= LOOP_IDLE_MAX && load.taker("lock") >= DOMINANT && asked(evidence, loops))
        || (load.executor("lock") >= DOMINANT && asked(evidence, load.executor_threads()))
    {
        let cause = "The threads wait for a lock most of the time, and little is computed \
                     meanwhile: whoever holds that lock is the bound."
            .to_owned();
        return judged(Verdict::WorkersHeldByLock, None, cause);
    }
    database(evidence, load).unwrap_or_else(|| rest(evidence, load))
}

/// Whether there is about as much in service as there are threads for it.
fn asked(evidence: &Evidence<'_>, threads: f64) -> bool {
    evidence.stats.in_service_mean >= EXECUTORS_ASKED * threads
}

/// Whether the database, or the way to it, is the bound.
fn database(evidence: &Evidence<'_>, load: &Load<'_>) -> Option<(Judgement, String)> {
    let inside = evidence.stats.in_service_mean;
    let executors = load.executor_threads();
    if load.few_executors(evidence)
        && load.executor("database") >= EXECUTOR_BUSY
        && load.executor("idle") <= LOOP_IDLE_MAX
    {
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
    let slower = Slower::of(evidence)?;
    let open = evidence.kernel().db_open_mean;
    let waiting = inside > 0.0 && open / inside >= DOMINANT;
    // Without threads of their own it is the loop's round trips that are open.
    let held = load.executors.is_none() || load.executor("database") >= DOMINANT;
    if !waiting || !held || slower.queued < QUEUED {
        return None;
    }
    let cause = format!(
        "The database is out of capacity: {} took {} while hardly anybody asked and {} in the hold \
         (medians{}), where {} wait for it at once. All that ask at once only wait longer.",
        slower.name,
        words::ms(slower.alone_ms),
        words::ms(slower.hold_ms),
        if slower.delay_ms > 0.0 { ", delay left out" } else { "" },
        words::mean(slower.queued),
    );
    Some((Judgement { verdict: Verdict::DatabaseCapacity, bound_rps: None }, cause))
}

/// That the database takes much longer for something when much is asked of it. Delay on the way is
/// left out, as far as it is known; where it is not, less is claimed.
struct Slower {
    name: String,
    alone_ms: f64,
    hold_ms: f64,
    delay_ms: f64,
    /// How many wait for it at once, mean over the hold.
    queued: f64,
}

impl Slower {
    fn of(evidence: &Evidence<'_>) -> Option<Self> {
        let dominant: &Dominant = evidence.stats.dominant.as_ref()?;
        let delay_ms = evidence.crossing().factor().unwrap_or(0.0) * evidence.delay_ms;
        let work = |ms: f64| (ms - delay_ms).max(0.0);
        let (alone_ms, hold_ms) = (work(dominant.alone_ms), work(dominant.hold_ms));
        // A median of a few may come out low by chance; that nine of ten do does not.
        let scatters = dominant.alone_most_ms > dominant.hold_ms;
        if hold_ms <= 0.0 || hold_ms < SLOWER * alone_ms || scatters {
            return None;
        }
        let name = dominant.statement.as_ref().map_or_else(
            || words::purpose(dominant.kind.name()).to_owned(),
            |text| format!("`{text}`"),
        );
        let queued = dominant.open_mean * work(dominant.mean_ms) / dominant.mean_ms;
        Some(Self { name, alone_ms, hold_ms, delay_ms, queued })
    }
}

/// Share of the time that the least idle of the threads that read requests is idle: where a pool
/// reads them, the thread that only accepts is idle always and says nothing.
fn least_idle(evidence: &Evidence<'_>, load: &Load<'_>) -> f64 {
    let readers = &evidence.stats.readers;
    // With fewer requests than readers, some of those that wait for a lock only wait for work.
    let waits_for_work = !asked(evidence, readers.len() as f64);
    readers
        .iter()
        .map(|reader| reader.idle + if waits_for_work { reader.lock } else { 0.0 })
        .min_by(f64::total_cmp)
        .unwrap_or_else(|| load.taker("idle"))
}

/// Nothing is known to be the bound: whether the service has room, or nothing can be said.
fn rest(evidence: &Evidence<'_>, load: &Load<'_>) -> (Judgement, String) {
    if load.taker("runqueue") >= DOMINANT {
        let judgement =
            Judgement { verdict: Verdict::EventLoopCpu, bound_rps: cpu_bound(evidence, load) };
        return (judgement, cpu_cause(evidence, load));
    }
    let cannot_tell = |why: String| {
        let cause = format!("What bounds the throughput cannot be told: {why}.");
        (Judgement { verdict: Verdict::CannotTell, bound_rps: None }, cause)
    };
    let depth = evidence.queue_mean();
    if depth >= QUEUE_STANDS {
        return cannot_tell(format!(
            "{} in the accept queue on average, though the event loop is not busy all the time",
            words::several(depth, "connection stands", "connections stand")
        ));
    }
    if let Some(slower) = Slower::of(evidence).filter(|slower| slower.queued >= QUEUED_PERHAPS) {
        return cannot_tell(format!(
            "{} took {} while hardly anybody asked and {} in the hold, but too few wait for it to \
             say that the database is out of capacity",
            slower.name,
            words::ms(slower.alone_ms),
            words::ms(slower.hold_ms)
        ));
    }
    let queued = evidence.stage_ms(Stage::AcceptQueue) + evidence.stage_ms(Stage::Unread);
    let executors_room = !load.few_executors(evidence) || load.executor("idle") >= LOOP_IDLE_PLENTY;
    let idle = least_idle(evidence, load);
    if idle >= LOOP_IDLE_PLENTY && executors_room && queued < DOMINANT * evidence.joined_mean_ms() {
        let users = words::several(evidence.users(), "user", "users");
        let cause = match steady_rate(evidence) {
            Some(rate) => format!(
                "Nothing is used up: each of {users} waits {} for its answer and then asks again, \
                 and that makes {} requests per second. More users would get more done.",
                words::ms(evidence.client_mean_ms()),
                words::rate(rate),
            ),
            None => format!(
                "Nothing is used up: the event loop is idle {} of the time, and {users} ask for no \
                 more.",
                words::percent(idle)
            ),
        };
        return (Judgement { verdict: Verdict::NotSaturated, bound_rps: None }, cause);
    }
    cannot_tell(
        "neither the event loop, nor the threads it hands work to, nor the database was busy all \
         the time"
            .to_owned(),
    )
}

/// N / R, where the run was in a steady state: nothing older than what got through, and the rate is
/// what was measured.
fn steady_rate(evidence: &Evidence<'_>) -> Option<f64> {
    let mean = Some(evidence.client_mean_ms()).filter(|&ms| ms > 0.0)?;
    let measured = evidence.client.hold_srps?;
    let age = evidence.ledger.unfinished.mean_age_ms.unwrap_or(0.0);
    let rate = evidence.users() * 1e3 / mean;
    (age <= mean && (rate / measured - 1.0).abs() <= STEADY).then_some(rate)
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

/// What the event loops could do if each had a processor to itself and nothing else changed, the
/// database's own work included. None where that says no more than what was measured, or where others
/// have the processors.
fn cpu_bound(evidence: &Evidence<'_>, load: &Load<'_>) -> Option<f64> {
    let ms = cpu_ms(evidence, load)?;
    let loops = load.takers.threads.max(1.0);
    let bound = (loops * 1e3 / ms).min(processors_bound(evidence, load));
    let measured = evidence.client.hold_srps?;
    let room = load.cores() < loops && load.sum(&["runqueue"]) < PROCESSORS_TAKEN;
    (room && bound > (1.0 + STEADY) * measured).then_some(bound)
}

/// Requests per second for which the processors of this host suffice, where the database, alone
/// with each request, needs one of them all the time it works on it; infinite if they are not known.
/// Where more than that was measured the database is not such, and only the service's own work counts.
fn processors_bound(evidence: &Evidence<'_>, load: &Load<'_>) -> f64 {
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

/// Requests per second at which the busiest event loop, as busy per request as now, is never idle.
fn loop_bound(evidence: &Evidence<'_>, load: &Load<'_>) -> f64 {
    let busy = 1.0 - least_idle(evidence, load);
    evidence.client.hold_srps.filter(|_| busy > 0.0).map_or(f64::INFINITY, |rate| rate / busy)
}

fn cpu_cause(evidence: &Evidence<'_>, load: &Load<'_>) -> String {
    let ms = cpu_ms(evidence, load).map_or_else(String::new, |ms| {
        format!(" A request takes {} of processor time.", words::ms(ms))
    });
    let cores = words::several(load.cores(), "processor", "processors");
    let kept = words::percent(load.contention());
    if load.sum(&["runqueue"]) > load.cores() {
        return format!(
            "Processor time is used up, and by others on this host as well: the service got {cores} \
             on average, and its threads that wanted one spent {kept} of their time kept from \
             running.{ms}"
        );
    }
    format!(
        "Processor time is used up: {cores} in use on average, and threads that want one spend \
         {kept} of their time kept from running.{ms}"
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
    let depth = evidence.queue_mean();
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
        Verdict::EventLoopCpu if load.sum(&["runqueue"]) < PROCESSORS_TAKEN => add(
            "twice as many event loops, in processes of their own",
            if evidence.cpus > 1 {
                (2.0 * measured).min(processors_bound(evidence, load))
            } else {
                measured
            },
        ),
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
