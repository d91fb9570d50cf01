//! The report contract, schema version 1: fields may be added, never renamed; absent parts are
//! null. `docs/report.schema.json` is its JSON Schema. Times are milliseconds, rates per second.

mod impairment;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use impairment::{Achieved, InForce, Injection, Receipt, Retransmissions};

/// Version of the contract.
pub const SCHEMA_VERSION: u32 = 1;

/// One or more runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Program that wrote it.
    pub tool: Tool,
    /// Machine it ran on.
    pub host: Host,
    /// One per run.
    pub cells: Vec<Cell>,
}

/// Program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// `loadgen`.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// Machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Kernel release.
    pub kernel: String,
    /// Processors online.
    pub cpus: u32,
    /// Model name of the first processor.
    pub cpu_model: String,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Name, such as `sync/io_read/100ms`.
    pub name: String,
    /// Setup, such as `sync`.
    pub setup: Option<String>,
    /// Route, such as `io_read`.
    pub route: Option<String>,
    /// Delay asked for, 0 for none; null without an agent.
    pub delay_ms: Option<f64>,
    /// What was injected; null without an impairment.
    pub injection: Option<Injection>,
    /// What others had put on the service's network meanwhile; null where the agent did not tell
    /// (added to schema version 1).
    #[serde(default)]
    pub in_force: Option<Vec<InForce>>,
    /// What the client saw.
    pub client: Client,
    /// What the kernel saw; null without an agent.
    pub kernel: Option<Kernel>,
    /// Where requests waited; null without an agent.
    pub ledger: Option<Ledger>,
    /// Why the throughput is what it is; null without an agent.
    pub explanation: Option<Explanation>,
    /// Whether the run can be believed.
    pub validity: Validity,
}

/// What the client saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Client {
    /// Users at the top of the ramp.
    pub users: u32,
    /// Length of the hold.
    pub hold_s: f64,
    /// Requests that ended.
    pub requests: u64,
    /// Of which successes.
    pub successes: u64,
    /// Of which failures, by class.
    pub failures: BTreeMap<String, u64>,
    /// Requests that were sent again on a new connection, since the kept one turned out closed when
    /// they came (added to schema version 1).
    #[serde(default)]
    pub stale_retries: u64,
    /// Responses by HTTP status, of successes and failures (added to schema version 1).
    #[serde(default)]
    pub statuses: BTreeMap<String, u64>,
    /// Largest mean of successes over any 10 consecutive seconds, or over the whole run if that is
    /// shorter: [`Client::max_over_s`].
    pub max_srps: f64,
    /// Largest count of successes in one second.
    pub peak_1s: u64,
    /// (n - 1) / (last - first completion) of successes in the hold; null below 30.
    pub hold_srps: Option<f64>,
    /// Latency of requests that got a response, success or not, over the whole run; null if none did.
    pub latency_ms: Option<Latency>,
    /// One per second.
    pub series: Vec<SeriesPoint>,
}

/// Seconds over which `max_srps` is a mean, in a run that is long enough.
const MAX_OVER_S: f64 = 10.0;

impl Client {
    /// Seconds over which `max_srps` is a mean; None if the run has no length.
    #[must_use]
    pub fn max_over_s(&self) -> Option<f64> {
        self.series.last().map(|point| point.t_s.min(MAX_OVER_S))
    }

    /// Whether the run is shorter than that, so that `max_srps` is its mean.
    #[must_use]
    pub fn is_shorter_than_max(&self) -> bool {
        self.max_over_s().is_none_or(|seconds| seconds < MAX_OVER_S)
    }
}

/// Latency.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

/// One second of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeriesPoint {
    /// Seconds from the start, at the end of the second.
    pub t_s: f64,
    /// Users active.
    pub users: u32,
    /// Requests that ended.
    pub rps: f64,
    /// Successes.
    pub srps: f64,
    /// Median latency of those that got a response; null if none did.
    pub p50_ms: Option<f64>,
    /// 99th percentile of the same; null if none did.
    pub p99_ms: Option<f64>,
}

/// What the kernel saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Requests seen by the probes.
    pub requests: u64,
    /// Events lost.
    pub lost_events: u64,
    /// Round trips per request in the hold; null if it cannot be said.
    pub db_round_trips_per_request: Option<f64>,
    /// The same by kind and statement.
    pub db_round_trips: Vec<DbRoundTrip>,
    /// Share of the worker threads' time by wait class, in the hold; `other` includes sleep.
    pub worker_time: BTreeMap<String, f64>,
    /// Time a worker was held per request; null where a worker is not held by one at a time.
    pub held_ms: Option<Held>,
    /// Length of the accept queue in the hold; null if it was not seen.
    pub accept_queue_depth: Option<QueueDepth>,
    /// Threads counted as workers: those that accepted, read requests or began database round
    /// trips; the mean number alive at once, rounded up (added to schema version 1).
    pub worker_threads: u32,
    /// Losses and oddities by name, non-zero only (added to schema version 1).
    pub counters: BTreeMap<String, u64>,
    /// How the service works on requests; null if it cannot be told (added to schema version 1).
    pub model: Option<Model>,
    /// Time that a worker was held per request by wait class, milliseconds, `sleep` apart from
    /// `other`; null where `held_ms` is (added to schema version 1).
    pub held_by_class_ms: Option<BTreeMap<String, f64>>,
    /// The worker threads by what they do (added to schema version 1).
    pub thread_groups: Vec<ThreadGroup>,
    /// Database round trips that were open at once, mean over the hold (added to schema version 1).
    pub db_open_mean: f64,
}

/// How a service works on requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Model {
    /// A worker takes a connection, finishes with it, takes the next.
    OneAtATime,
    /// Connections are accepted while others are in progress.
    Concurrent,
}

/// Threads of one role.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThreadGroup {
    /// `worker` (accepts or reads requests), `event_loop` (the same, and one was seen to have several
    /// in hand at once) or `executor` (neither, but talks to the database).
    pub role: String,
    /// Threads alive at once, mean over the hold.
    pub threads: f64,
    /// Share of their time by wait class, `sleep` apart from `other`.
    pub time: BTreeMap<String, f64>,
}

/// Round trips of one kind and statement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DbRoundTrip {
    /// Kind, one of the vocabulary.
    pub kind: String,
    /// Normalised statement; null where the kind has none.
    pub statement: Option<String>,
    /// How many per request.
    pub per_request: f64,
    /// Mean duration.
    pub mean_ms: f64,
}

/// Distribution of the time a worker is held.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
}

/// Length of the accept queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueDepth {
    /// Mean over time.
    pub mean: f64,
    /// Largest seen.
    pub max: u64,
}

/// Where requests waited.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// Whose requests: `hold`, those completed in the hold, as in `hold_srps`; `run`, all that were
    /// completed, since fewer than 30 were in the hold (added to schema version 1).
    pub scope: String,
    /// Completed requests joined with their kernel timeline.
    pub matched: u64,
    /// Completed requests that could not be joined.
    pub unmatched: u64,
    /// matched / (matched + unmatched); null if nothing completed.
    pub matched_fraction: Option<f64>,
    /// Why the others could not be joined (added to schema version 1).
    pub unmatched_reasons: BTreeMap<String, u64>,
    /// Time of marks that were early against causality / total time; null if none matched.
    pub inverted_fraction: Option<f64>,
    /// (client mean - stages mean, unmatched time added) / client mean; null if nothing completed.
    pub residual_fraction: Option<f64>,
    /// Share of matched requests whose `client_wait` was measured; of the others it is 0, and
    /// `response_net` ends when the client read the response; null if none matched (added to
    /// schema version 1).
    pub client_wait_known: Option<f64>,
    /// Requests the run did not see the end of.
    pub unfinished: Unfinished,
    /// The stages in causal order.
    pub stages: Vec<Stage>,
    /// Mean latency of completed requests, of one that was sent again from its new connection on;
    /// null if nothing completed.
    pub client_mean_ms: Option<f64>,
    /// Sum of the stages' means; null if none matched.
    pub stages_mean_ms: Option<f64>,
    /// Share of matched requests that were the first on their connection; null if none matched
    /// (added to schema version 1).
    #[serde(default)]
    pub new_connections: Option<f64>,
}

/// Requests not finished at the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unfinished {
    /// How many.
    pub count: u64,
    /// Their mean age; null if there are none.
    pub mean_age_ms: Option<f64>,
    /// How many by the stage they were in.
    pub by_stage: BTreeMap<String, u64>,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Name, one of the vocabulary.
    pub stage: String,
    /// Mean over matched requests.
    pub mean_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Share of the sum.
    pub share: f64,
}

/// What bounds the throughput.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All workers are held, mostly blocked on database round trips.
    WorkersHeldByDatabase,
    /// All workers are held, mostly computing or waiting for a processor.
    WorkersHeldByCpu,
    /// All workers are held, mostly waiting for a lock.
    WorkersHeldByLock,
    /// All workers are held, mostly blocked on their clients' sockets.
    WorkersHeldByClients,
    /// All workers are held, mostly asleep or blocked on something else.
    WorkersHeldByOther,
    /// The event loop, or the threads it hands work to, are out of processor time.
    EventLoopCpu,
    /// The threads that talk to the database for an event loop are busy all the time.
    ExecutorHeldByDatabase,
    /// The database takes longer the more is asked of it at once, and much is (added to schema
    /// version 1).
    DatabaseCapacity,
    /// Workers are idle part of the time: the users do not offer more.
    NotSaturated,
    /// The load generator was the limit.
    LoadGenerator,
    /// The evidence does not decide.
    CannotTell,
}

/// Why the throughput is what it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// What bounds the throughput.
    pub verdict: Verdict,
    /// Throughput that the bound allows; null if it cannot be told.
    pub bound_rps: Option<f64>,
    /// Measured throughput in the hold.
    pub measured_rps: Option<f64>,
    /// Throughput predicted before this run, from another.
    pub predicted_rps: Option<f64>,
    /// Name of the run it was predicted from.
    pub predicted_from: Option<String>,
    /// The story.
    pub sentences: Vec<String>,
    /// What would change it.
    pub what_if: Vec<WhatIf>,
}

/// One change and what it would give.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WhatIf {
    /// The change, in words.
    pub change: String,
    /// Throughput expected then.
    pub predicted_rps: f64,
}

/// Whether a run can be believed. Thresholds: module `validity`, fixed before any run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validity {
    /// False: the numbers stand but prove nothing.
    pub valid: bool,
    /// Why not.
    pub reasons: Vec<String>,
    /// What to know that does not make it invalid (added to schema version 1).
    pub notes: Vec<String>,
}
