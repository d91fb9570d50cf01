//! Closed-loop users over plain sockets: every user sends, waits for the response, sends again.
//!
//! One event loop per thread owns its users for the whole run, so nothing is shared or allocated on
//! the way of a request but its record. A connection is kept as long as the server keeps it. Rules
//! that a reader of the numbers should know:
//!
//! - A kept connection that turns out closed when the next request comes, which shows within a round
//!   trip, is not a failure: like browsers and curl, the user sends the request once more on a new
//!   connection. Its `c0` stays where the first attempt began, and [`Outcome::stale_retries`] counts
//!   it. A connection lost later, with the request in the server's hands, is a failed request.
//! - Of the requests beyond [`MAX_RECORDS`] only counts and a histogram are kept.
//! - After a failed connect the user waits [`CONNECT_BACKOFF_NS`]; after any other failure it goes
//!   on at once.
//! - Redirects are answers: they are not followed.

mod limits;
mod live;
mod user;
mod worker;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::net::TcpStream;

use crate::clock;
use crate::http::RequestSpec;
use crate::record::{Beyond, RequestRecord};
use crate::schedule::Schedule;

pub use live::{Live, Span};

/// How long a user rests after a failed connect, so that a closed port is not hammered.
pub const CONNECT_BACKOFF_NS: u64 = 10_000_000;

/// Records that a run keeps, over all threads. One has 192 bytes, so they take 768 MB; joining them
/// takes some 50 bytes of each more.
pub const MAX_RECORDS: usize = 4_000_000;
const _: () = assert!(size_of::<RequestRecord>() <= 192);

/// What the engine needs to know.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Address to connect to.
    pub target: SocketAddr,
    /// What every user sends.
    pub request: RequestSpec,
    /// Who starts when, and when all stop.
    pub schedule: Schedule,
    /// Event loops; users are dealt out to them in turn.
    pub threads: u32,
    /// Longest time from `c0` to the last byte of the response; None: no limit.
    pub timeout: Option<Duration>,
    /// Records to keep, [`MAX_RECORDS`] but in tests.
    pub max_records: usize,
}

/// Why the engine could not run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Too many users for the limit on open files.
    #[error(
        "{users} users need {needed} open files, the limit is {limit}: raise it with \
         `ulimit -n {needed}` or run fewer users"
    )]
    OpenFiles {
        /// Users asked for.
        users: u32,
        /// Descriptors needed.
        needed: u64,
        /// The hard limit.
        limit: u64,
    },
    /// The kernel refused something the event loop needs.
    #[error("cannot {what}: {error}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        error: std::io::Error,
    },
    /// A thread ended without a result.
    #[error("an engine thread crashed; its requests are lost")]
    Crashed,
}

/// What the users leave behind.
#[derive(Debug, Default)]
pub struct Outcome {
    /// First user started.
    pub start: u64,
    /// Last user started; equal to `end` if some never were.
    pub hold_start: u64,
    /// The users were stopped.
    pub end: u64,
    /// When each user was started, by its number.
    pub user_starts: Vec<u64>,
    /// Requests begun, in order of `c4`.
    pub records: Vec<RequestRecord>,
    /// Those that ended after there was no room for more.
    pub beyond: Beyond,
    /// Longest time spent on one batch of events, nanoseconds, over all threads.
    pub loop_busy_max: u64,
    /// Share of the run that a thread was on a processor: the busiest one's.
    pub cpu_share: f64,
    /// Share of the run that a thread waited for a processor: the worst one's.
    pub runqueue_share: f64,
    /// Requests sent again since the server had closed the kept connection.
    pub stale_retries: u64,
    /// System errors behind failed connects and resets, as worded by the system.
    pub system_errors: BTreeMap<String, u64>,
    /// Connections of unfinished requests: dropping them closes them.
    pub open: Vec<TcpStream>,
}

/// A run in progress.
#[derive(Debug)]
pub struct Running {
    threads: Vec<JoinHandle<Result<Outcome, EngineError>>>,
    users: u32,
    start: u64,
    end: u64,
    stop: Arc<AtomicBool>,
    live: Arc<Live>,
}

/// Starts the users.
///
/// # Errors
/// [`EngineError`] if the limit on open files is too low or a thread cannot be made.
pub fn start(plan: Plan) -> Result<Running, EngineError> {
    limits::ensure_open_files(plan.schedule.users(), plan.threads)?;
    let stop = Arc::new(AtomicBool::new(false));
    let live = Arc::new(Live::default());
    let users = plan.schedule.users();
    let start = clock::now_ns();
    let end = start.saturating_add(plan.schedule.end());
    let count = plan.threads.clamp(1, users.max(1));
    let plan = Arc::new(plan);
    let mut threads = Vec::with_capacity(count as usize);
    for index in 0..count {
        let share = worker::Share {
            plan: Arc::clone(&plan),
            offset: index,
            step: count,
            start,
            end,
            stop: Arc::clone(&stop),
            live: Arc::clone(&live),
        };
        let thread = std::thread::Builder::new()
            .name(format!("engine-{index}"))
            .spawn(move || worker::run(&share))
            .map_err(|error| EngineError::Kernel { what: "start an engine thread", error })?;
        threads.push(thread);
    }
    Ok(Running { threads, users, start, end, stop, live })
}

impl Running {
    /// When the first user was started, nanoseconds.
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// When the run ends by plan, nanoseconds.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// What happens meanwhile.
    #[must_use]
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Stops all users now; [`Running::join`] then returns soon.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether every thread has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Waits for the end and puts the threads' shares together.
    ///
    /// # Errors
    /// The first thread's error; the others are stopped then.
    pub fn join(self) -> Result<Outcome, EngineError> {
        let mut parts = Vec::with_capacity(self.threads.len());
        let mut failure = None;
        for thread in self.threads {
            match thread.join().map_err(|_| EngineError::Crashed).flatten() {
                Ok(part) => parts.push(part),
                Err(error) => {
                    self.stop.store(true, Ordering::Relaxed);
                    failure.get_or_insert(error);
                }
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(merge(self.start, self.users, parts)),
        }
    }
}

/// Puts the threads' shares together; user `i` of thread `t` of `n` has the number `t + i * n`.
fn merge(start: u64, users: u32, parts: Vec<Outcome>) -> Outcome {
    let most = parts.iter().map(|part| part.user_starts.len()).max().unwrap_or(0);
    let user_starts: Vec<u64> = (0..most)
        .flat_map(|row| parts.iter().filter_map(move |part| part.user_starts.get(row)))
        .copied()
        .collect();
    let mut whole = Outcome { start, user_starts, ..Outcome::default() };
    for part in parts {
        whole.end = whole.end.max(part.end);
        if whole.records.is_empty() {
            whole.records = part.records;
        } else {
            whole.records.extend_from_slice(&part.records);
        }
        whole.loop_busy_max = whole.loop_busy_max.max(part.loop_busy_max);
        whole.cpu_share = whole.cpu_share.max(part.cpu_share);
        whole.runqueue_share = whole.runqueue_share.max(part.runqueue_share);
        whole.stale_retries += part.stale_retries;
        whole.beyond.add(&part.beyond);
        for (text, count) in part.system_errors {
            *whole.system_errors.entry(text).or_default() += count;
        }
        whole.open.extend(part.open);
    }
    // One thread's records are in order but for requests that failed within one look at the clock.
    if !whole.records.is_sorted_by_key(|record| record.c4) {
        whole.records.sort_by_key(|record| record.c4);
    }
    let all_started = whole.user_starts.len() == users as usize;
    let last = whole.user_starts.iter().copied().max();
    whole.hold_start = last.filter(|_| all_started).unwrap_or(whole.end);
    whole
}

#[cfg(test)]
#[path = "engine/tests.rs"]
mod tests;
