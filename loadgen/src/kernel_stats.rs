//! What the service's kernel saw in the hold: database round trips, what the workers did with
//! their time, how long they were held, how long the accept queue was.

mod holds;
mod serving;
mod threads;
mod turns;

use agent_common::abi::flag;

use crate::{
    record::{KernelData, RunData},
    report::model::{self, Model, QueueDepth},
};

/// Below this many requests answered in the hold, it is not said how the service works.
pub const MIN_REQUESTS: usize = 5;
/// From this share of requests on that a hold covers from read to answer, workers take one
/// connection at a time.
pub const ONE_AT_A_TIME: f64 = 0.9;
/// Up to this share they do not.
pub const CONCURRENT: f64 = 0.5;
pub(crate) const NS_PER_MS: f64 = 1e6;

/// A stretch of time in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Span {
    pub(crate) fn contains(self, time: u64) -> bool {
        (self.from..=self.to).contains(&time)
    }

    pub(crate) fn length(self) -> u64 {
        self.to.saturating_sub(self.from)
    }

    /// How long the stretch from `from` to `to` lies within.
    pub(crate) fn overlap(self, from: u64, to: u64) -> u64 {
        self.to.min(to).saturating_sub(self.from.max(from))
    }
}

/// The report's part, and what the explanation needs beside it.
#[derive(Clone, Debug)]
pub struct KernelStats {
    /// The report's part.
    pub kernel: model::Kernel,
    /// Requests that the service answered in the hold.
    pub answered: usize,
    /// Requests that were read and not yet answered, mean over the hold.
    pub in_service_mean: f64,
    /// Threads that accept or read requests, alive at once, mean over the hold; at least 1. A
    /// worker that is replaced by another now and then is one.
    pub acceptors: usize,
    /// Share of the time of such threads in which they were held by a connection.
    pub held_share: f64,
    /// Whole holds that `held_ms` is the mean of.
    pub holds: usize,
    /// Time per request in round trips that only set up a connection, milliseconds.
    pub setup_ms: f64,
    /// Time per request in all round trips, milliseconds.
    pub database_ms: f64,
    /// The round trip that lost most time to others asked for at once, if any did.
    pub dominant: Option<turns::Dominant>,
    /// Time per request that its round trips would take if hardly anybody asked, milliseconds,
    /// delay included.
    pub database_alone_ms: f64,
    /// Of each thread that read requests and was there for most of the hold, the shares of its time
    /// that it was idle, and that it waited for a lock.
    pub readers: Vec<Reader>,
    /// Distinct threads that began round trips in the hold.
    pub database_threads: usize,
    /// How the threads that read requests were seen to serve.
    pub serving: Serving,
    /// Those threads, without such that only accept; None if none was seen.
    pub reading: Option<model::ThreadGroup>,
}

pub use serving::Serving;
pub use threads::Reader;
pub use turns::Dominant;

/// The kernel's part of the report. Rates and shares are over the hold; requests belong to it by
/// s5. Where workers take one connection at a time, round trips and held time are taken from the
/// holds that lie wholly within it, so that no edge cuts one.
#[must_use]
pub fn kernel(run: &RunData, data: &KernelData) -> KernelStats {
    let hold = Span { from: run.hold_start, to: run.end };
    let answered = data.requests.iter().filter(|request| hold.contains(request.s5)).count();
    let holds = holds::Holds::of(data, hold);
    let model = holds.model();
    let one_at_a_time = model == Some(Model::OneAtATime);
    let threads = threads::Threads::of(&data.windows, Span { from: run.start, to: run.end }, hold);
    let whole = holds.whole();
    let turns = if one_at_a_time {
        turns::per_hold(data, &whole)
    } else {
        turns::per_answer(data, answered, hold)
    };
    let lost = data.totals.as_ref().map_or_else(
        || data.windows.iter().flat_map(|window| &window.lost).map(|lost| lost.count).sum(),
        |totals| totals.lost_events + totals.peer_slow,
    );
    let (database_ms, setup_ms) = turns.time_ms();
    let alone = turns::alone(data, hold);
    let serving = Serving::of(data, &threads, hold);
    let kernel = model::Kernel {
        requests: data.requests.len() as u64,
        lost_events: lost,
        db_round_trips_per_request: turns.per_request(),
        db_round_trips: turns.lines(&data.statements),
        worker_time: threads.shares(),
        held_ms: if one_at_a_time { holds::held(&whole) } else { None },
        accept_queue_depth: queue_depth(data, hold),
        worker_threads: threads.alive().ceil() as u32,
        counters: counters(data),
        model,
        held_by_class_ms: if one_at_a_time { holds::by_class(&whole) } else { None },
        thread_groups: threads.groups(model, serving.multiplexes()),
        db_open_mean: turns::open_mean(data, hold),
    };
    KernelStats {
        kernel,
        answered,
        in_service_mean: in_service_mean(data, hold),
        acceptors: threads.acceptors(),
        held_share: holds.held_share(&threads),
        holds: whole.len(),
        setup_ms,
        database_ms,
        dominant: alone.dominant,
        database_alone_ms: alone.total_ns / answered.max(1) as f64 / NS_PER_MS,
        readers: threads.readers(),
        database_threads: turns::threads(data, hold),
        serving,
        reading: threads.reading(),
    }
}

/// None without a window.
fn queue_depth(data: &KernelData, hold: Span) -> Option<QueueDepth> {
    let (mut weighted, mut total, mut max) = (0.0, 0u64, 0);
    let mut last = None;
    for window in &data.windows {
        let ns = hold.overlap(window.from_ns, window.to_ns);
        // Further windows of one span hold nothing but threads.
        if ns == 0 || last == Some((window.from_ns, window.to_ns)) {
            continue;
        }
        last = Some((window.from_ns, window.to_ns));
        weighted += window.queue_mean * ns as f64;
        total += ns;
        max = max.max(window.queue_max);
    }
    (total > 0).then(|| QueueDepth { mean: weighted / total as f64, max })
}

/// Requests in progress, mean over the hold: the sum of their times from read to answer. One that
/// ended without an answer counts for nothing: when it was given up is not known.
fn in_service_mean(data: &KernelData, hold: Span) -> f64 {
    if hold.length() == 0 {
        return 0.0;
    }
    let all = data.requests.iter().chain(&data.unfinished).filter(|request| request.s3 != 0);
    let total: u128 = all
        .map(|request| {
            let end = match request.s5 {
                0 if request.flags & flag::UNFINISHED != 0 => hold.to,
                0 => request.s3,
                answered => answered,
            };
            u128::from(hold.overlap(request.s3, end))
        })
        .sum();
    total as f64 / hold.length() as f64
}

fn counters(data: &KernelData) -> std::collections::BTreeMap<String, u64> {
    let mut counters = std::collections::BTreeMap::new();
    let sums = data.totals.iter().flat_map(|totals| &totals.counters);
    let spans = data.windows.iter().flat_map(|window| &window.lost);
    // Without the closing sums, those of the windows that came are better than none.
    let from_windows = data.totals.is_none();
    for count in sums.chain(spans.filter(|_| from_windows)) {
        *counters.entry(count.name.clone()).or_insert(0) += count.count;
    }
    if let Some(slow) = data.totals.as_ref().map(|totals| totals.peer_slow).filter(|&n| n > 0) {
        counters.insert("peer_slow".to_owned(), slow);
    }
    counters
}

#[cfg(test)]
mod tests;
