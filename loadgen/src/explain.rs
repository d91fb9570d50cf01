//! Why the throughput is what it is: a verdict, its bound, and the story in sentences with numbers.
//!
//! A server that takes one connection at a time and one that works on many at once fail
//! differently, so they are judged by different rules and told in different words. Where the
//! evidence does not decide, the verdict is `cannot_tell`.

mod concurrent;
mod one_at_a_time;
mod sentences;
pub(crate) mod words;

use agent_common::wire::ErrorCode;

use crate::{
    kernel_stats::KernelStats,
    ledger::{Accounts, Stage},
    predict::{
        Prediction,
        crossing::{self, Crossing},
    },
    record::{KernelData, RunData},
    report::model::{Client, Explanation, Kernel, Ledger, Model, ThreadGroup, Verdict, WhatIf},
    validity,
};

/// From this share of the time on that workers are held, they are the bound.
pub const SATURATED: f64 = 0.90;
/// A wait class decides the verdict from this share of the held time on.
pub const DOMINANT: f64 = 0.50;
/// What was foretold came true if it was measured this close.
const FORETOLD: f64 = 0.05;
/// Below this many requests nothing is decided.
pub const MIN_DECIDING: usize = 10;

/// All that is known of a run.
pub(crate) struct Evidence<'a> {
    pub(crate) run: &'a RunData,
    pub(crate) client: &'a Client,
    pub(crate) stats: &'a KernelStats,
    pub(crate) ledger: &'a Ledger,
    pub(crate) prediction: Option<&'a Prediction>,
    /// Processors online, 0 if unknown.
    pub(crate) cpus: u32,
    /// Delay injected, milliseconds; 0 without.
    pub(crate) delay_ms: f64,
}

impl Evidence<'_> {
    pub(crate) fn kernel(&self) -> &Kernel {
        &self.stats.kernel
    }

    pub(crate) fn users(&self) -> f64 {
        f64::from(self.client.users)
    }

    /// Mean of a stage, milliseconds.
    pub(crate) fn stage_ms(&self, stage: Stage) -> f64 {
        let line = self.ledger.stages.iter().find(|line| line.stage == stage.name());
        line.map_or(0.0, |line| line.mean_ms)
    }

    /// Mean latency of completed requests, milliseconds; 0 if nothing was.
    pub(crate) fn client_mean_ms(&self) -> f64 {
        self.ledger.client_mean_ms.unwrap_or(0.0)
    }

    /// Mean latency of the requests that were joined, whose stages are known, milliseconds; 0 if none
    /// was. A stage is a part of this, and not of [`Self::client_mean_ms`].
    pub(crate) fn joined_mean_ms(&self) -> f64 {
        self.ledger.stages_mean_ms.unwrap_or(0.0)
    }

    /// `A request`, or where only some were joined, which ones.
    fn a_joined_request(&self) -> String {
        if self.ledger.unmatched == 0 {
            return "A request".to_owned();
        }
        format!(
            "Of the {} that were joined with the kernel's timeline ({} were not) one",
            words::number(self.ledger.matched, "request", "requests"),
            self.ledger.unmatched,
        )
    }

    /// Mean length of the accept queue; 0 if it was not seen.
    pub(crate) fn queue_mean(&self) -> f64 {
        self.kernel().accept_queue_depth.as_ref().map_or(0.0, |depth| depth.mean)
    }

    /// The interface that was delayed; empty without.
    pub(crate) fn device(&self) -> &str {
        let impaired = self.run.kernel.as_ref().and_then(|data| data.impaired.as_ref());
        impaired.map_or("", |impaired| impaired.device.as_str())
    }

    /// How often a database round trip crosses the delayed interface.
    pub(crate) fn crossing(&self) -> Crossing {
        match Crossing::judge(self.kernel(), self.device(), self.delay_ms) {
            Crossing::Unclear if self.foretold() => Crossing::Once,
            judged => judged,
        }
    }

    /// Whether workers are held as long as an undelayed run said they would be if every round trip
    /// crossed once, and the delay is large enough to show.
    fn foretold(&self) -> bool {
        let kernel = self.kernel();
        let connects = kernel.db_round_trips.iter().any(|line| line.kind == "tcp_connect");
        let Some(prediction) = self.prediction.filter(|_| !connects) else { return false };
        let (Some(expected), Some(times), Some(held), Some(count)) = (
            prediction.held_ms,
            prediction.crossings,
            kernel.held_ms.as_ref(),
            kernel.db_round_trips_per_request,
        ) else {
            return false;
        };
        let near = |value: f64, expected: f64| (value / expected - 1.0).abs() <= FORETOLD;
        self.device() != crossing::LOOPBACK
            && (prediction.delay_ms - self.delay_ms).abs() < 1e-6
            && near(count, times)
            && near(held.mean, expected)
            && times * self.delay_ms >= DOMINANT * held.mean
    }

    /// When the delay is not known to have been in force any more, nanoseconds; None if it was there
    /// throughout.
    fn delay_ended_at(&self) -> Option<u64> {
        self.run.kernel.as_ref().and_then(|data| data.impaired_until(self.run.end))
    }

    fn delay_ended(&self) -> bool {
        self.delay_ended_at().is_some()
    }

    /// Delay that a request waits for in its database round trips, milliseconds; None if that is
    /// not known.
    pub(crate) fn database_delay_ms(&self) -> Option<f64> {
        let count = self.kernel().db_round_trips_per_request.unwrap_or(0.0);
        if self.delay_ms <= 0.0 || count <= 0.0 {
            return Some(0.0);
        }
        self.crossing().factor().map(|factor| factor * count * self.delay_ms)
    }

    /// Delay that a client waits for outside the hold, milliseconds.
    pub(crate) fn client_delay_ms(&self) -> f64 {
        let times = crossing::of_client(Some(self.ledger), self.device(), self.delay_ms);
        times * self.delay_ms
    }

    /// The threads of a role.
    pub(crate) fn group(&self, executor: bool) -> Option<&ThreadGroup> {
        self.kernel().thread_groups.iter().find(|group| (group.role == "executor") == executor)
    }

    /// Why nothing can be concluded, if so.
    fn undecidable(&self) -> Option<String> {
        let data = self.run.kernel.as_ref();
        if data.is_some_and(|data| data.lost_at.is_some()) {
            return Some("the agent was lost during the run".to_owned());
        }
        if data.is_some_and(|data| !validity::others_changed(self.run, data).is_empty()) {
            return Some("what others did to the service's network changed meanwhile".to_owned());
        }
        let gone = |data: &KernelData| {
            let mut errors = data.errors.iter();
            errors.any(|e| e.code == ErrorCode::TargetGone && e.at_ns <= self.run.end)
        };
        if data.is_some_and(gone) {
            return Some("the service ended during the run".to_owned());
        }
        if validity::stopped_answering(self.run).is_some() {
            return Some("the service stopped answering during the run".to_owned());
        }
        if self.delay_ended() {
            return Some("the delay ended during the run".to_owned());
        }
        if self.kernel().lost_events > 0 {
            return Some(format!("{} kernel events were lost", self.kernel().lost_events));
        }
        if self.stats.answered < MIN_DECIDING {
            return Some(format!(
                "the service answered {} in the hold, and fewer than {MIN_DECIDING} decide nothing",
                words::several(self.stats.answered as f64, "request", "requests")
            ));
        }
        if self.ledger.matched_fraction.is_none_or(|share| share < 0.9) {
            return Some("too few requests could be joined with their kernel timeline".to_owned());
        }
        if self.kernel().model.is_none() {
            return Some(
                "the service neither finishes one connection after the other nor clearly works on \
                 many at once"
                    .to_owned(),
            );
        }
        None
    }
}

/// What bounds the throughput, and by how much.
pub(crate) struct Judgement {
    pub(crate) verdict: Verdict,
    pub(crate) bound_rps: Option<f64>,
}

/// Explains a run.
#[must_use]
pub fn explain(
    run: &RunData,
    client: &Client,
    stats: &KernelStats,
    accounts: &Accounts,
    prediction: Option<&Prediction>,
    cpus: u32,
) -> Explanation {
    let impaired = run.kernel.as_ref().and_then(|data| data.impaired.as_ref());
    let evidence = Evidence {
        run,
        client,
        stats,
        ledger: &accounts.ledger,
        prediction,
        cpus,
        delay_ms: impaired.map_or(0.0, |impaired| impaired.delay_ns as f64 / 1e6),
    };
    let (judgement, mut sentences, what_if) = tell(&evidence);
    if let Some(others) = sentences::of_others(&evidence) {
        sentences.insert(0, others);
    }
    sentences.extend(sentences::failures(&evidence));
    sentences.extend(sentences::on_the_network(&evidence, judgement.verdict));
    sentences.extend(sentences::unfinished(&evidence));
    sentences.extend(sentences::measured(&evidence));
    sentences.extend(sentences::otherwise_than_predicted(&evidence));
    Explanation {
        verdict: judgement.verdict,
        bound_rps: judgement.bound_rps.filter(|rate| rate.is_finite()),
        measured_rps: client.hold_srps,
        predicted_rps: prediction.and_then(|prediction| prediction.predicted_rps),
        predicted_from: prediction.map(|prediction| prediction.from.clone()),
        sentences,
        what_if: what_if.into_iter().filter(|one| one.predicted_rps.is_finite()).collect(),
    }
}

fn tell(evidence: &Evidence<'_>) -> (Judgement, Vec<String>, Vec<WhatIf>) {
    let short = validity::generator_short(evidence.run);
    if !short.is_empty() {
        let judgement = Judgement { verdict: Verdict::LoadGenerator, bound_rps: None };
        let sentence = format!("The load generator was the limit, not the service: {}.", short[0]);
        return (judgement, vec![sentence], Vec::new());
    }
    if let Some(reason) = evidence.undecidable() {
        let judgement = Judgement { verdict: Verdict::CannotTell, bound_rps: None };
        let sentence = format!("What bounds the throughput cannot be told: {reason}.");
        return (judgement, vec![sentence], Vec::new());
    }
    if evidence.kernel().model == Some(Model::OneAtATime) {
        one_at_a_time::tell(evidence)
    } else {
        concurrent::tell(evidence)
    }
}

#[cfg(test)]
mod tests;
