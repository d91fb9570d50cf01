//! What is told of a span: the fields of a line of `agent observe --json`. Fields may be added,
//! never renamed.

use std::collections::BTreeMap;

use agent_common::abi::Request;
use serde::Serialize;

use super::{
    round_trips::RoundTripFigures, slowest::SlowFigures, stages::PerStage, times::TimesFigures,
    workers::RoleFigures,
};

/// What happened in a span.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Start, seconds since the measurement began.
    pub from_s: f64,
    /// End, likewise.
    pub to_s: f64,
    /// Requests.
    pub requests: Requests,
    /// Connections of clients.
    pub connections: Connections,
    /// How long requests were in each stage.
    pub stages: PerStage<TimesFigures>,
    /// Length of the accept queue.
    pub accept_queue_depth: Depth,
    /// Handshakes that a full backlog turned away, in all of the service's network namespace.
    pub listen_drops: u64,
    /// What the service's threads did.
    pub threads: Vec<RoleFigures>,
    /// Database round trips.
    pub database: RoundTripFigures,
    /// Events lost, in all.
    pub lost_events: u64,
    /// Events lost, by name.
    pub lost: BTreeMap<String, u64>,
    /// Marks that were not seen.
    pub unseen: Unseen,
    /// What cannot be told for sure.
    pub ambiguous: Ambiguous,
}

/// Requests of a span.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Requests {
    /// Answered, and told of in the span.
    pub answered: u64,
    /// The same per second.
    pub answered_per_s: f64,
    /// First read in the span.
    pub read: u64,
    /// Read, and never answered before their connection ended.
    pub unanswered: u64,
    /// Connections on which something was sent before anything was read.
    pub answered_unread: u64,
}

/// Connections of a span.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Connections {
    /// Accepted.
    pub accepted: u64,
    /// The same per second.
    pub accepted_per_s: f64,
    /// Ended before anybody accepted them.
    pub never_accepted: u64,
}

/// Length of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Depth {
    /// Mean over time, exact.
    pub mean: f64,
    /// Largest seen: it is looked at every few milliseconds.
    pub max: u64,
}

/// Marks that were not seen. What they would tell is left out, not guessed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Unseen {
    /// accept() of a connection.
    pub accept: u64,
    /// Arrival of a request's first byte.
    pub first_byte: u64,
    /// The answer of a request that was in service when the measurement began.
    pub answer: u64,
}

/// What cannot be told for sure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ambiguous {
    /// Requests that were sent before the one before them was answered: in no stage.
    pub pipelined: u64,
    /// Requests with a mark before the one that causes it: that stage counts as nothing.
    pub inverted: u64,
    /// Requests whose thread had others at the same time: in every stage, but nobody can tell which
    /// round trips were theirs.
    pub shared_thread: u64,
    /// Round trips that no request can be named for.
    pub round_trips: u64,
}

/// Requests that were not over when the measurement ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Unfinished {
    /// Connections in the accept queue.
    pub accept_queue: u64,
    /// Accepted connections of which no request has come.
    pub request_net: u64,
    /// Requests that nobody has read.
    pub unread: u64,
    /// Requests in service.
    pub service: u64,
}

impl Unfinished {
    pub(super) fn add(&mut self, request: &Request) {
        let fresh = request.ordinal == 0 && request.s0 != 0;
        let stage = match request {
            Request { s3: 1.., .. } => &mut self.service,
            Request { s2: 0, .. } if fresh => &mut self.accept_queue,
            Request { s1: 1.., .. } => &mut self.unread,
            _ => &mut self.request_net,
        };
        *stage += 1;
    }
}

/// What happened in all.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// As for a window.
    #[serde(flatten)]
    pub figures: Figures,
    /// What was not over.
    pub unfinished: Unfinished,
    /// The slowest requests.
    pub slowest: Vec<SlowFigures>,
    /// Losses and oddities by name, non-zero only.
    pub counters: BTreeMap<String, u64>,
    /// Path of a Unix socket through which the service reaches a database, if seen: round trips on
    /// it are not followed.
    pub unix_database: Option<String>,
}
