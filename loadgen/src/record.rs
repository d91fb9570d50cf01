//! What a run leaves behind: the client's own stamps of every request, and all that the agent sent.
//!
//! Pure data. `engine` and `pair` fill it; `join`, `ledger` and `explain` read it. All times are
//! CLOCK_MONOTONIC of this host in nanoseconds; 0 means that the mark was not reached.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use agent_common::wire;
use hdrhistogram::Histogram;

/// Why a request failed. Names in reports: [`Failure::name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Failure {
    /// connect() was refused.
    ConnectRefused,
    /// connect() timed out.
    ConnectTimeout,
    /// The connection was reset while connecting.
    ConnectReset,
    /// Any other connect error (no route, out of ports, ...).
    ConnectOther,
    /// No whole response within the timeout.
    ReadTimeout,
    /// The connection was reset or closed before the response was whole.
    ReadReset,
    /// Status 400 to 499.
    Http4xx,
    /// Status 500 to 599.
    Http5xx,
    /// The bytes were no HTTP/1.x response.
    BadResponse,
}

impl Failure {
    /// The name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::ConnectReset => "connect_reset",
            Self::ConnectOther => "connect_other",
            Self::ReadTimeout => "read_timeout",
            Self::ReadReset => "read_reset",
            Self::Http4xx => "http_4xx",
            Self::Http5xx => "http_5xx",
            Self::BadResponse => "bad_response",
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A whole response with a status below 400.
    Success,
    /// Anything else that ended.
    Failed(Failure),
    /// The run ended first.
    Unfinished,
}

impl Outcome {
    /// Whether a whole response came, success or not.
    #[must_use]
    pub const fn has_response(self) -> bool {
        matches!(self, Self::Success | Self::Failed(Failure::Http4xx | Failure::Http5xx))
    }
}

/// One request as the client saw it.
#[derive(Clone, Copy, Debug)]
pub struct RequestRecord {
    /// Number of the emulated user, from 0.
    pub user: u32,
    /// The client socket's own address, as getsockname() tells after connect(); port 0 if the
    /// connection never had one.
    pub local: SocketAddr,
    /// The address it connected to.
    pub remote: SocketAddr,
    /// connect() was called on this request's connection. Equal to `c0` on a new connection.
    pub connection_start: u64,
    /// Ordinal on the connection, from 0. At 0 the connection is new and `connect` is a stage.
    pub ordinal: u32,
    /// Bytes sent on the connection before this request.
    pub tx_offset: u64,
    /// Bytes of this request.
    pub tx_bytes: u64,
    /// Bytes received on the connection before this response.
    pub rx_offset: u64,
    /// Bytes of this response so far.
    pub rx_bytes: u64,
    /// Start: before connect() on a new connection, before the first send on a kept one.
    pub c0: u64,
    /// connect() returned (the socket became writable without error).
    pub c1: u64,
    /// Last byte of the request handed to the kernel.
    pub c2: u64,
    /// First byte of the response read.
    pub c3: u64,
    /// Last byte of the response read, or when the failure was known, or the end of the run.
    pub c4: u64,
    /// SYN retransmissions, from TCP_INFO (`tcpi_total_retrans` read right after connect).
    pub syn_retransmits: u8,
    /// HTTP status, 0 if none.
    pub status: u16,
    /// How it ended.
    pub outcome: Outcome,
}

/// Requests that ended when there was no room for further records.
#[derive(Clone, Debug, Default)]
pub struct Beyond {
    /// How many.
    pub requests: u64,
    /// Of which successes.
    pub successes: u64,
    /// Of which failures, by class.
    pub failures: BTreeMap<&'static str, u64>,
    /// Of those that got a response, by HTTP status.
    pub statuses: BTreeMap<u16, u64>,
    /// Latency of those that got a response, nanoseconds; None if none did.
    pub latency: Option<Histogram<u64>>,
    /// How many ended, and how many of them were successes, in each second of the run.
    pub seconds: Vec<(u64, u64)>,
}

/// Latencies are kept to 3 digits from 1 us up to an hour; a longer one counts as an hour.
const LATENCY_NS: (u64, u64) = (1_000, 3_600_000_000_000);

/// An empty histogram of latencies in nanoseconds; None cannot happen, the bounds being fixed.
#[must_use]
pub fn latencies() -> Option<Histogram<u64>> {
    Histogram::new_with_bounds(LATENCY_NS.0, LATENCY_NS.1, 3).ok()
}

impl Beyond {
    /// Counts a request of a run that began at `start`.
    pub(crate) fn count(&mut self, record: &RequestRecord, start: u64) {
        self.requests += 1;
        let success = u64::from(record.outcome == Outcome::Success);
        self.successes += success;
        if let Outcome::Failed(failure) = record.outcome {
            *self.failures.entry(failure.name()).or_default() += 1;
        }
        if record.outcome.has_response() {
            *self.statuses.entry(record.status).or_default() += 1;
            if self.latency.is_none() {
                self.latency = latencies();
            }
            if let Some(latency) = &mut self.latency {
                latency.saturating_record(record.c4.saturating_sub(record.c0).max(1));
            }
        }
        let second = (record.c4.saturating_sub(start) / 1_000_000_000) as usize;
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, (0, 0));
        }
        self.seconds[second].0 += 1;
        self.seconds[second].1 += success;
    }

    /// Adds those of another thread.
    pub(crate) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.successes += other.successes;
        for (name, count) in &other.failures {
            *self.failures.entry(name).or_default() += count;
        }
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        match (&mut self.latency, &other.latency) {
            // Same bounds, so it always fits.
            (Some(mine), Some(theirs)) => {
                let _ = mine.add(theirs);
            }
            (mine, theirs) => *mine = mine.take().or_else(|| theirs.clone()),
        }
        let most = self.seconds.len().max(other.seconds.len());
        self.seconds.resize(most, (0, 0));
        for (mine, theirs) in self.seconds.iter_mut().zip(&other.seconds) {
            mine.0 += theirs.0;
            mine.1 += theirs.1;
        }
    }
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSpec {
    /// Name of the cell, such as `sync/io_read/100ms`.
    pub name: String,
    /// Setup, such as `sync`; free text.
    pub setup: Option<String>,
    /// Route, such as `io_read`; free text.
    pub route: Option<String>,
    /// URL.
    pub url: String,
    /// HTTP method.
    pub method: String,
    /// Users at the top of the ramp.
    pub users: u32,
    /// Users started per second; 0: all at once.
    pub ramp_per_s: f64,
    /// Length of the hold in nanoseconds.
    pub hold_ns: u64,
    /// Delay asked of the agent in nanoseconds, None if it was not asked for any.
    pub delay_ns: Option<u64>,
}

/// All that a run leaves behind.
#[derive(Clone, Debug)]
pub struct RunData {
    /// What was asked for.
    pub spec: RunSpec,
    /// First user started.
    pub start: u64,
    /// Last user started: the hold begins.
    pub hold_start: u64,
    /// The hold ended and the users were stopped. Earlier than planned after Ctrl-C.
    pub end: u64,
    /// When each user was started, in order.
    pub user_starts: Vec<u64>,
    /// Requests that were begun, in order of `c4`, unfinished ones included.
    pub records: Vec<RequestRecord>,
    /// Those for which there was no room among the records.
    pub beyond: Beyond,
    /// Requests sent again, since the kept connection turned out closed.
    pub stale_retries: u64,
    /// Largest time that a ready socket waited in the load generator's own event loop, measured
    /// as the time spent on one batch of events, and its mean, nanoseconds.
    pub loop_busy_max: u64,
    /// Share of the run that the engine's threads were on a processor, per thread (0 to 1).
    pub engine_cpu_share: f64,
    /// Share of the run that they waited for one, from /proc/thread-self/schedstat.
    pub engine_runqueue_share: f64,
    /// True if Ctrl-C ended the run.
    pub interrupted: bool,
    /// What the agent sent; None without `--agent`.
    pub kernel: Option<KernelData>,
}

/// All that the agent sent in one session.
#[derive(Clone, Debug, Default)]
pub struct KernelData {
    /// The service as found.
    pub targeted: Option<wire::Targeted>,
    /// The probes were attached.
    pub started_at: u64,
    /// The impairment in force.
    pub impaired: Option<wire::Impaired>,
    /// Requests, complete.
    pub requests: Vec<wire::ServerRequest>,
    /// Requests not finished at Stop.
    pub unfinished: Vec<wire::ServerRequest>,
    /// The client's kernel's view.
    pub client_turns: Vec<wire::ClientTurn>,
    /// Database round trips.
    pub db_turns: Vec<wire::DbTurn>,
    /// Text of each statement; the index is the statement's number.
    pub statements: Vec<String>,
    /// Times worker threads were held.
    pub holds: Vec<wire::Hold>,
    /// One per second or so.
    pub windows: Vec<wire::Window>,
    /// The closing sums; None if the agent was lost.
    pub totals: Option<wire::Totals>,
    /// When the agent was lost, if it was.
    pub lost_at: Option<u64>,
    /// Records of the agent's for which there was no room.
    pub dropped_records: u64,
    /// Packets that the injector dropped or let through undelayed.
    pub injector_dropped: u64,
    /// What TCP sent again while the service was measured; None where it was not counted.
    pub retransmissions: Option<wire::Retransmissions>,
    /// What the impairment did, if its end was told.
    pub cleared: Option<wire::Cleared>,
    /// Errors that the agent told of, in the order in which they came.
    pub errors: Vec<AgentError>,
    /// Notices from the agent, as it worded them.
    pub notices: Vec<String>,
    /// What impaired the service's network that the agent did not put there for this run, from when
    /// on: one item for the start of the measurement, and one for each change.
    pub in_force: Vec<(u64, Vec<wire::Other>)>,
}

impl KernelData {
    /// From when on the impairment is not known to have been in force in a run that ended at `end`:
    /// the agent was lost, or told that it had ended. None if it was there throughout.
    #[must_use]
    pub fn impaired_until(&self, end: u64) -> Option<u64> {
        let ended = self.errors.iter().filter(|error| error.code == wire::ErrorCode::Kernel);
        let told = ended.map(|error| error.at_ns);
        self.impaired.as_ref()?;
        self.lost_at.into_iter().chain(told).filter(|&at| at <= end).min()
    }
}

/// Something that went wrong on the agent's side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentError {
    /// When we heard of it, nanoseconds.
    pub at_ns: u64,
    /// What kind of thing.
    pub code: wire::ErrorCode,
    /// The agent's own sentence.
    pub message: String,
}
