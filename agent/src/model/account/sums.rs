//! Sums over a span of time.

use std::collections::BTreeMap;

use agent_common::wire::Window;
use hdrhistogram::CreationError;

use super::{
    figures::{Ambiguous, Connections, Depth, Figures, Requests, Unseen},
    round_trips::{RoundTrips, Statements},
    stages::{Outcome, PerStage, Taken},
    times::Times,
    workers::RoleTimes,
};

/// Everything that is added up.
#[derive(Debug)]
pub(super) struct Sums {
    pub(super) stages: PerStage<Times>,
    pub(super) rest: Rest,
    pub(super) round_trips: RoundTrips,
    pub(super) ambiguous: Ambiguous,
}

/// What has no memory of its own.
#[derive(Debug, Default)]
pub(super) struct Rest {
    pub(super) span_ns: u64,
    pub(super) requests: Requests,
    pub(super) connections: Connections,
    pub(super) threads: RoleTimes,
    /// Connection-nanoseconds in the accept queue.
    pub(super) queue_ns: f64,
    pub(super) queue_max: u64,
    pub(super) listen_drops: u64,
    pub(super) lost: BTreeMap<String, u64>,
    pub(super) unseen: Unseen,
}

impl Sums {
    pub(super) fn new() -> Result<Self, CreationError> {
        let stages = PerStage {
            accept_queue: Times::new()?,
            request_net: Times::new()?,
            unread: Times::new()?,
            service: Times::new()?,
        };
        Ok(Self {
            stages,
            rest: Rest::default(),
            round_trips: RoundTrips::default(),
            ambiguous: Ambiguous::default(),
        })
    }

    /// Back to nothing; the distributions keep their memory.
    pub(super) fn clear(&mut self) {
        self.stages.each_mut().into_iter().for_each(Times::clear);
        self.rest = Rest::default();
        self.round_trips = RoundTrips::default();
        self.ambiguous = Ambiguous::default();
    }

    /// A request that is over; whether its thread had others at the same time.
    pub(super) fn request(&mut self, taken: &Taken, shared: bool) {
        for (times, (_, ns)) in self.stages.each_mut().into_iter().zip(taken.ns.named()) {
            if let Some(ns) = ns {
                times.record(*ns);
            }
        }
        let rest = &mut self.rest;
        match taken.outcome {
            Outcome::Answered => rest.requests.answered += 1,
            Outcome::Unanswered => rest.requests.unanswered += 1,
            Outcome::AnswerUnseen => rest.unseen.answer += 1,
            Outcome::AnsweredUnread => rest.requests.answered_unread += 1,
            Outcome::NeverAccepted => rest.connections.never_accepted += 1,
        }
        rest.unseen.accept += u64::from(taken.unseen_accept);
        rest.unseen.first_byte += u64::from(taken.unseen_first_byte);
        self.ambiguous.pipelined += u64::from(taken.pipelined);
        self.ambiguous.inverted += u64::from(taken.inverted);
        self.ambiguous.shared_thread += u64::from(shared);
    }

    /// A window, and its threads' time by role. `first` of those that belong together.
    pub(super) fn window(&mut self, window: &Window, first: bool, threads: &RoleTimes) {
        let rest = &mut self.rest;
        let span_ns = window.to_ns.saturating_sub(window.from_ns);
        if first {
            rest.span_ns += span_ns;
        }
        rest.queue_ns += window.queue_mean * span_ns as f64;
        rest.queue_max = rest.queue_max.max(window.queue_max);
        rest.listen_drops += window.listen_overflows;
        for lost in &window.lost {
            *rest.lost.entry(lost.name.clone()).or_default() += lost.count;
        }
        for thread in &window.threads {
            rest.requests.read += thread.requests;
            rest.connections.accepted += thread.accepts;
        }
        rest.threads.add_all(threads);
    }

    pub(super) fn figures(&self, statements: &Statements, (from_s, to_s): (f64, f64)) -> Figures {
        let rest = &self.rest;
        let per_s = |count: u64| match rest.span_ns {
            0 => 0.0,
            span_ns => count as f64 / (span_ns as f64 / 1e9),
        };
        let answered = rest.requests.answered;
        let mut requests = rest.requests.clone();
        requests.answered_per_s = per_s(answered);
        let mut connections = rest.connections.clone();
        connections.accepted_per_s = per_s(connections.accepted);
        Figures {
            from_s,
            to_s,
            requests,
            connections,
            stages: self.stages.map(Times::figures),
            accept_queue_depth: Depth {
                mean: if rest.span_ns == 0 { 0.0 } else { rest.queue_ns / rest.span_ns as f64 },
                max: rest.queue_max,
            },
            listen_drops: rest.listen_drops,
            threads: rest.threads.figures(rest.span_ns),
            database: self.round_trips.figures(statements, answered),
            lost_events: rest.lost.values().sum(),
            lost: rest.lost.clone(),
            unseen: rest.unseen.clone(),
            ambiguous: self.ambiguous.clone(),
        }
    }
}
