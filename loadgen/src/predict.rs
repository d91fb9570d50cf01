//! What a run with another delay will give, from an undelayed one.
//!
//! A worker that takes one connection at a time serves at most one request per time it is held,
//! `X <= W / H`. Delay `d` on all that leaves the service makes the hold longer by one `d` for each
//! time that the worker waits for an answer to something that it sent, one after the other:
//!
//! ```text
//! H(d) = H(0) + k d
//! X(d) = min(W / H(d), N / (H(d) + c d))
//! ```
//!
//! k is counted in the undelayed run: every database round trip of a hold crosses the delayed
//! direction once, on its way out (connecting too: the SYN is delayed, its answer is not).
//! Terminating has no answer and nobody waits for it. Towards the client nothing is waited for:
//! the handshake is over before accept() returns; its SYN-ACK is delayed, and the client's ACK and
//! request follow together, so the bytes are there or come in the same moment; the response goes
//! into the send buffer. The second bound is N users who each wait for a hold and for the response,
//! and on a new connection for the SYN-ACK before: c is 1 plus the share of requests that were the
//! first on their connection, as the ledger has it.
//!
//! An undelayed run does not show through which interface the service reaches its database; that
//! it is the delayed one is assumed, and said. A delayed run shows it ([`crossing`]): on loopback
//! the answers are delayed too, so a round trip crosses twice and a client waits for `2 c d`.
//!
//! With the 43 ms and 8 round trips of the published sync io_read, that is 1.19 and 0.61 requests
//! per second at 100 and 200 ms; published were 1.2 and 0.6.

pub(crate) mod crossing;

use serde::{Deserialize, Serialize};

use self::crossing::{Crossing, LOOPBACK};
use crate::{
    explain::words,
    report::model::{Cell, Kernel, Model},
};

/// A prediction, written before the run that it is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prediction {
    /// Name of the run it was made from.
    pub from: String,
    /// Delay on everything that leaves the service, milliseconds.
    pub delay_ms: f64,
    /// Throughput; null where only a bound, or nothing, can be said.
    pub predicted_rps: Option<f64>,
    /// Throughput that will not be exceeded; null if nothing can be said.
    pub upper_bound_rps: Option<f64>,
    /// Mean time that a worker will be held per request, milliseconds; null where workers are not
    /// held by one request at a time.
    pub held_ms: Option<f64>,
    /// Times per request that something must cross the delayed direction, one after the other,
    /// while a worker (or, where workers are not held, the request) waits; null if unknown.
    pub crossings: Option<f64>,
    /// What the prediction rests on, or why there is none.
    pub assumptions: Vec<String>,
}

/// Predicts the throughput of `cell`'s service under the same users with `delay_ns` on everything
/// that leaves it. A delay that `cell` itself had is taken out first.
#[must_use]
pub fn predict(cell: &Cell, delay_ns: u64) -> Prediction {
    let delay_ms = delay_ns as f64 / 1e6;
    let nothing = |reason: &str| Prediction {
        from: cell.name.clone(),
        delay_ms,
        predicted_rps: None,
        upper_bound_rps: None,
        held_ms: None,
        crossings: None,
        assumptions: vec![format!("No prediction: {reason}.")],
    };
    let Some(kernel) = &cell.kernel else {
        return nothing("the run was made without the agent, so nobody counted round trips");
    };
    if !cell.validity.valid {
        return nothing("the run it would be made from is invalid");
    }
    let Some(round_trips) = kernel.db_round_trips_per_request else {
        return nothing("the database round trips per request are not known");
    };
    let had_ms = cell.injection.as_ref().map_or(0.0, |injection| injection.requested_ms);
    let way = match Way::of(cell, kernel, had_ms, round_trips) {
        Ok(way) => way,
        Err(reason) => return nothing(&reason),
    };
    let crossings = way.crossings;
    match (kernel.model, &kernel.held_ms) {
        (Some(Model::OneAtATime), Some(held)) => {
            let held_ms = held.mean + crossings * (delay_ms - had_ms);
            if held_ms <= 0.0 {
                return nothing("less delay than the run had leaves no time to be held");
            }
            one_at_a_time(cell, delay_ms, &way, held.mean, held_ms)
        }
        (Some(Model::Concurrent), _) => concurrent(cell, delay_ms, &way),
        _ => nothing("it is not known how the service works on requests"),
    }
}

/// What of a request crosses the delayed interface.
struct Way {
    /// Database round trips of a request, and the delays that it waits for in them.
    round_trips: f64,
    crossings: f64,
    /// Delays that the client waits for outside the hold.
    client: f64,
    /// How that is known.
    known: String,
}

impl Way {
    /// Of a run that had `had_ms` of delay, or why that cannot be said.
    fn of(cell: &Cell, kernel: &Kernel, had_ms: f64, round_trips: f64) -> Result<Self, String> {
        let device = cell.injection.as_ref().map(|injection| injection.device.as_str());
        let way = |factor: f64, client, known: String| Self {
            round_trips,
            crossings: factor * round_trips,
            client,
            known,
        };
        let device = match device {
            Some(device) if had_ms > 0.0 => device,
            Some(LOOPBACK) if round_trips > 0.0 => {
                return Err(format!(
                    "{LOOPBACK} delays both directions, and an undelayed run does not show \
                     whether the database is behind it"
                ));
            }
            _ => {
                let known = "Assumed, as an undelayed run does not show it: every database round \
                             trip leaves through the delayed interface, once.";
                // Without a delay the ledger shows only which connections were kept.
                let client = crossing::of_client(cell.ledger.as_ref(), device.unwrap_or(""), 0.0);
                return Ok(way(1.0, client, known.to_owned()));
            }
        };
        let client = crossing::of_client(cell.ledger.as_ref(), device, had_ms);
        let had = words::ms(had_ms);
        if round_trips <= 0.0 {
            return Ok(way(0.0, client, format!("The same interface, {device}, is delayed.")));
        }
        let judged = Crossing::judge(kernel, device, had_ms);
        let Some(factor) = judged.factor() else {
            return Err(format!(
                "how often a database round trip crosses {device}, delayed by {had} in the run it \
                 would be made from, is not clear from what they took"
            ));
        };
        let times = match judged {
            Crossing::Never => "does not cross",
            Crossing::Twice => "crosses there and back",
            _ => "leaves, once, through",
        };
        Ok(way(
            factor,
            client,
            format!(
                "The same interface is delayed: a database round trip {times} {device}, as \
                 measured with {had} of delay."
            ),
        ))
    }
}

fn one_at_a_time(
    cell: &Cell,
    delay_ms: f64,
    way: &Way,
    before_ms: f64,
    held_ms: f64,
) -> Prediction {
    let workers = workers(cell);
    let by_workers = workers * 1e3 / held_ms;
    let by_users = f64::from(cell.client.users) * 1e3 / (held_ms + way.client * delay_ms);
    let bound = by_workers.min(by_users);
    Prediction {
        from: cell.name.clone(),
        delay_ms,
        predicted_rps: Some(bound),
        upper_bound_rps: Some(bound),
        held_ms: Some(held_ms),
        crossings: Some(way.crossings),
        assumptions: vec![
            format!(
                "A worker was held {} per request, with {:.2} database round trips, one after the \
                 other: {:.2} times something crosses the delayed direction.",
                words::ms(before_ms),
                way.round_trips,
                way.crossings,
            ),
            way.known.clone(),
            format!(
                "Nothing towards the client is waited for while a worker is held: the handshake is \
                 over, the request comes with its last packet, the response fits the send buffer. \
                 The client itself waits for {} per request.",
                words::several(way.client, "delay", "delays"),
            ),
            format!(
                "The number of workers ({workers:.0}), round trips per request and the \
                 database's own speed stay as they were; the users keep the workers busy."
            ),
        ],
    }
}

fn concurrent(cell: &Cell, delay_ms: f64, way: &Way) -> Prediction {
    let per_request_ms = (way.crossings + way.client) * delay_ms;
    let by_users = f64::from(cell.client.users) * 1e3 / per_request_ms;
    let mut assumptions = vec![
        "The service works on many requests at once, so a delay makes each slower and not \
         necessarily fewer: a bound only."
            .to_owned(),
        format!(
            "Each user waits for {:.2} database round trips and for what passes between it and \
             the service, which the delay holds up {} per request (the response, and the handshake \
             of a new connection), one after the other.",
            way.round_trips,
            words::several(way.client, "time", "times"),
        ),
        way.known.clone(),
    ];
    if let Some(rate) = cell.client.hold_srps {
        assumptions.push(format!(
            "A delay adds no capacity: what the service did without it, {} requests per second, \
             is about the most it will do with it.",
            words::rate(rate)
        ));
    }
    Prediction {
        from: cell.name.clone(),
        delay_ms,
        predicted_rps: None,
        upper_bound_rps: (per_request_ms > 0.0).then_some(by_users),
        held_ms: None,
        crossings: Some(way.crossings),
        assumptions,
    }
}

/// Threads that take connections; at least one.
pub(crate) fn workers(cell: &Cell) -> f64 {
    let groups = cell.kernel.iter().flat_map(|kernel| &kernel.thread_groups);
    let takers = groups.filter(|group| group.role != "executor").map(|group| group.threads);
    takers.sum::<f64>().round().max(1.0)
}

#[cfg(test)]
mod tests;
