//! A server that works on many requests at once: an event loop, and perhaps threads that it hands
//! work to. Waits overlap, so a delay costs each request time and not the server its throughput;
//! the queue moves from the backlog into the process, and a short accept queue proves nothing.

mod bounds;
mod story;

use self::{
    bounds::{by_database, cpu_bound, steady_rate, what_if},
    story::{
        cpu_cause, executor_sentence, loop_sentence, overlap_sentence, queue_sentence,
        shape_sentence,
    },
};
use super::{DOMINANT, Evidence, Judgement, sentences::round_trips, words};
use crate::{
    kernel_stats::{Dominant, Serving},
    ledger::Stage,
    report::model::{ThreadGroup, Verdict, WhatIf},
};

/// Up to this share of idle time an event loop counts as busy all the time.
const LOOP_IDLE_MAX: f64 = 0.10;
/// From this share of the processors on, or of one processor per event loop where threads wait for
/// one another, processor time is the bound.
const CORES_BUSY: f64 = 0.85;
/// From this share of its time on a thread is busy with the database.
const EXECUTOR_BUSY: f64 = 0.85;
/// With fewer requests in service than this share of the threads for them, some of those that wait for a
/// lock only wait for work: a pool's queue is a lock to the kernel.
const EXECUTORS_ASKED: f64 = 0.80;
/// The database is slower under load if it takes this many times as long as when hardly anybody
/// asks, delay left out.
const SLOWER: f64 = 2.0;
/// And out of capacity if on average at least so many wait for the same of it at once.
const QUEUED: f64 = 4.0;
/// From so many on it may be.
const QUEUED_PERHAPS: f64 = 1.0;
/// From this mean length of the accept queue on somebody always waits to be taken.
pub(super) const QUEUE_STANDS: f64 = 1.0;
/// A loop with this much idle time could take on more.
const LOOP_IDLE_PLENTY: f64 = 0.20;
/// Of the time of threads that wait neither for work nor for the database, this share is in locks
/// or on the run queue where they fight over processors.
const CONTENDED: f64 = 0.30;

/// What the threads did, in threads: 0.3 is 30 % of one thread's time.
struct Load<'a> {
    /// Threads that accept or read requests.
    takers: &'a ThreadGroup,
    /// What is told of: the event loops, or of other threads those that read requests.
    reading: &'a ThreadGroup,
    executors: Option<&'a ThreadGroup>,
    serving: Serving,
}

impl Load<'_> {
    fn taker(&self, class: &str) -> f64 {
        share(self.reading, class)
    }

    /// The threads that read requests, by what is known of them.
    fn readers(&self) -> &'static str {
        match (self.serving.multiplexes(), self.serving.threads) {
            (true, _) => "the event loop",
            (false, 1) => "the thread that reads requests",
            (false, _) => "the threads that read requests",
        }
    }

    /// The same with a verb.
    fn readers_are(&self) -> String {
        let several = !self.serving.multiplexes() && self.serving.threads != 1;
        format!("{} {}", self.readers(), if several { "are" } else { "is" })
    }

    /// How many there are, where that does not follow the connections: event loops, or a pool.
    fn fixed_threads(&self) -> Option<f64> {
        let fixed = self.serving.multiplexes() || self.serving.lasting;
        fixed.then(|| self.reading.threads.max(1.0))
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
    let serving = evidence.stats.serving;
    let reading = evidence.stats.reading.as_ref().filter(|_| !serving.multiplexes());
    let executors = evidence.group(true);
    let load = Load { takers, reading: reading.unwrap_or(takers), executors, serving };
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
    let loops = load.reading.threads.max(1.0);
    let all_cpus = evidence.cpus > 0 && cores >= CORES_BUSY * f64::from(evidence.cpus);
    let one_each = load
        .fixed_threads()
        .is_some_and(|threads| cores >= CORES_BUSY * threads && load.contention() >= CONTENDED);
    // An event loop that is busy keeps others waiting; a thread of their own does not.
    let busy = idle <= LOOP_IDLE_MAX && (load.serving.multiplexes() || waits_for_thread(evidence));
    let loop_computes = busy && load.taker("cpu") + load.taker("runqueue") >= DOMINANT;
    if loop_computes || all_cpus || one_each {
        return judged(Verdict::EventLoopCpu, cpu_bound(evidence, load), cpu_cause(evidence, load));
    }
    if busy && load.taker("database") >= DOMINANT {
        let (bound, cause) = held_by_database(evidence, load);
        return judged(Verdict::ExecutorHeldByDatabase, bound, cause);
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

/// Whether somebody always waits to be read: no thread is free, or the one there is is busy.
fn waits_for_thread(evidence: &Evidence<'_>) -> bool {
    let queued_ms = evidence.stage_ms(Stage::AcceptQueue) + evidence.stage_ms(Stage::Unread);
    let rate = evidence.stats.answered as f64 / evidence.client.hold_s.max(1e-9);
    evidence.queue_mean() >= QUEUE_STANDS || rate * queued_ms / 1e3 >= QUEUE_STANDS
}

/// The bound and the cause where the threads that read requests wait for the database themselves.
fn held_by_database(evidence: &Evidence<'_>, load: &Load<'_>) -> (Option<f64>, String) {
    let bound = load.fixed_threads().and_then(|threads| by_database(evidence, threads));
    let cause = if load.serving.multiplexes() {
        "The event loop itself waits for the database: while it does, it serves nobody else. Its \
         bound is the time of the round trips."
            .to_owned()
    } else {
        format!(
            "{} waiting for the database, and meanwhile further requests wait to be read.",
            capital(&load.readers_are())
        )
    };
    (bound, cause)
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
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
            "{} between {} and the database, and {} in the process wait for one: {}.",
            words::several(executors, "thread stands", "threads stand"),
            load.readers(),
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
            "{} in the accept queue on average, though {} not busy all the time",
            words::several(depth, "connection stands", "connections stand"),
            load.readers_are(),
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
    if !load.serving.multiplexes() && !waits_for_thread(evidence) {
        return a_thread_for_each(evidence, load).unwrap_or_else(|| {
            cannot_tell(
                "requests find a thread, but the threads are kept waiting by one another or by the \
                 disk"
                    .to_owned(),
            )
        });
    }
    let queued = evidence.stage_ms(Stage::AcceptQueue) + evidence.stage_ms(Stage::Unread);
    let executors_room = !load.few_executors(evidence) || load.executor("idle") >= LOOP_IDLE_PLENTY;
    let idle = least_idle(evidence, load);
    if idle >= LOOP_IDLE_PLENTY && executors_room && queued < DOMINANT * evidence.joined_mean_ms() {
        let unfollowed = unfollowed_ms(evidence, load);
        if unfollowed >= DOMINANT * evidence.joined_mean_ms() {
            return cannot_tell(format!(
                "for {} of the {} in which a request is in service the service neither computes nor \
                 waits for a database that is followed, but for something else: a timer, or another \
                 service, which may be used up. If that is a database, name its port with --db-port",
                words::ms(unfollowed),
                words::ms(evidence.stage_ms(Stage::Service)),
            ));
        }
        let users = words::several(evidence.users(), "user", "users");
        let cause = match steady_rate(evidence) {
            Some(rate) => format!(
                "Nothing is used up: each of {users} waits {} for its answer and then asks again, \
                 and that makes {} requests per second. More users would get more done.",
                words::ms(evidence.client_mean_ms()),
                words::rate(rate),
            ),
            None => format!(
                "Nothing is used up: {} idle {} of the time, and {users} ask for no more.",
                load.readers_are(),
                words::percent(idle)
            ),
        };
        return (Judgement { verdict: Verdict::NotSaturated, bound_rps: None }, cause);
    }
    cannot_tell(
        "neither the threads that read requests, nor others that they hand work to, nor the database \
         were busy all the time"
            .to_owned(),
    )
}

/// Time in service, per request, in which nothing was seen to be done for it, milliseconds.
fn unfollowed_ms(evidence: &Evidence<'_>, load: &Load<'_>) -> f64 {
    let seen = bounds::cpu_ms(evidence, load).unwrap_or(0.0) + evidence.stats.database_ms;
    evidence.stage_ms(Stage::Service) - seen
}

/// Where nobody waits for a thread, and threads do not wait for one another: what the users get is
/// what they ask for. None where they do wait.
fn a_thread_for_each(evidence: &Evidence<'_>, load: &Load<'_>) -> Option<(Judgement, String)> {
    let kept = ["lock", "runqueue", "disk"].map(|class| load.taker(class)).iter().sum::<f64>();
    if kept >= LOOP_IDLE_PLENTY {
        return None;
    }
    let users = words::several(evidence.users(), "user", "users");
    let cause = match steady_rate(evidence) {
        Some(rate) => format!(
            "Nothing is used up: a request finds a thread at once. Each of {users} waits {} for its \
             answer and then asks again, and that makes {} requests per second. Whether there are \
             threads for more users was not seen.",
            words::ms(evidence.client_mean_ms()),
            words::rate(rate),
        ),
        None => format!(
            "Nothing is used up: a request finds a thread at once, and {users} ask for no more."
        ),
    };
    Some((Judgement { verdict: Verdict::NotSaturated, bound_rps: None }, cause))
}

#[cfg(test)]
mod tests;
