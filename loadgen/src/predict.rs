//! What a run with another delay will give, from an undelayed one.
//!
//! A worker that takes one connection at a time serves at most one request per time it is held,
//! `X <= W / H`. Delay `d` on all that leaves the service makes the hold longer by one `d` for each
//! time that the worker waits for an answer to something that it sent, one after the other:
//!
//! ```text
//! H(d) = H(0) + k d
//! X(d) = min(W / H(d), N / (H(d) + n + c d))
//! ```
//!
//! k is counted in the undelayed run: every database round trip of a hold crosses the delayed
//! direction once, on its way out (connecting too: the SYN is delayed, its answer is not).
//! Terminating has no answer and nobody waits for it. Towards the client nothing is waited for:
//! the handshake is over before accept() returns; its SYN-ACK is delayed, and the client's ACK and
//! request follow together, so the bytes are there or come in the same moment; the response goes
//! into the send buffer. The second bound is N users who each wait for a hold, for the network as it
//! is without the delay (n), and for the delay of the response, and on a new connection of the SYN-ACK
//! before: c is 1 plus the share of requests that were the first on their connection, as the ledger
//! has it.
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
    ledger::Stage,
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
    /// What the prediction rests on.
    pub assumptions: Vec<String>,
    /// Why there is neither a throughput nor a bound; null where there is one.
    #[serde(default)]
    pub no_prediction: Option<String>,
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
        assumptions: Vec::new(),
        no_prediction: Some(reason.to_owned()),
    };
    let Some(kernel) = &cell.kernel else {
        return nothing("the run was made without the agent, so nobody counted round trips");
    };
    if !cell.validity.valid {
        let why = cell.validity.reasons.join("; ");
        return nothing(&format!("the run it would be made from is invalid: {why}"));
    }
    if let Some(other) = cell.in_force.iter().flatten().next() {
        return nothing(&format!(
            "in the run it would be made from somebody else had impaired the service's network, and \
             how much of the time is due to that is not known: {}; take that away and measure again",
            other.sentence()
        ));
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
            let network_ms = network_ms(cell, way.client * had_ms);
            one_at_a_time(
                cell,
                delay_ms,
                &way,
                &Times { before_ms: held.mean, held_ms, network_ms },
            )
        }
        (Some(Model::Concurrent), _) => concurrent(cell, delay_ms, &way).unwrap_or_else(|| {
            nothing(
                "the service works on many requests at once, and nothing that a request waits for \
                 crosses the delayed interface: no bound follows",
            )
        }),
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
    /// How that is known; None where there is nothing to know.
    known: Option<String>,
}

impl Way {
    /// Of a run that had `had_ms` of delay, or why that cannot be said.
    fn of(cell: &Cell, kernel: &Kernel, had_ms: f64, round_trips: f64) -> Result<Self, String> {
        let device = cell.injection.as_ref().map(|injection| injection.device.as_str());
        let way = |factor: f64, client, known: Option<String>| Self {
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
                return Ok(way(1.0, client, (round_trips > 0.0).then(|| known.to_owned())));
            }
        };
        let client = crossing::of_client(cell.ledger.as_ref(), device, had_ms);
        let had = words::ms(had_ms);
        if round_trips <= 0.0 {
            let known = format!("The same interface, {device}, is delayed.");
            return Ok(way(0.0, client, Some(known)));
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
            Some(format!(
                "The same interface is delayed: a database round trip {times} {device}, as \
                 measured with {had} of delay."
            )),
        ))
    }
}

/// Times per request, milliseconds.
struct Times {
    /// A worker was held.
    before_ms: f64,
    /// It will be.
    held_ms: f64,
    /// The client waited for the network, without the delay.
    network_ms: f64,
}

/// Mean time that a client waited for the network in `cell`, without the `delay_ms` that it waited for
/// there, milliseconds.
fn network_ms(cell: &Cell, delay_ms: f64) -> f64 {
    let stages = cell.ledger.iter().flat_map(|ledger| &ledger.stages);
    let network = [Stage::Connect, Stage::RequestNet, Stage::ResponseNet].map(Stage::name);
    let waited = stages.filter(|stage| network.contains(&stage.stage.as_str()));
    (waited.map(|stage| stage.mean_ms).sum::<f64>() - delay_ms).max(0.0)
}

fn one_at_a_time(cell: &Cell, delay_ms: f64, way: &Way, times: &Times) -> Prediction {
    let workers = workers(cell);
    let by_workers = workers * 1e3 / times.held_ms;
    let client_ms = times.network_ms + way.client * delay_ms;
    let by_users = f64::from(cell.client.users) * 1e3 / (times.held_ms + client_ms);
    let bound = by_workers.min(by_users);
    let client = format!(
        "Nothing towards the client is waited for while a worker is held: the handshake is over, the \
         request comes with its last packet, the response fits the send buffer. The client itself \
         waits for {} per request.",
        words::several(way.client, "delay", "delays"),
    );
    let mut assumptions = vec![held_as_before(way, times.before_ms)];
    assumptions.extend(way.known.clone());
    assumptions.extend(alone(cell));
    assumptions.push(client);
    assumptions.extend(limit(cell, workers, times.held_ms, client_ms, (by_workers, by_users)));
    Prediction {
        from: cell.name.clone(),
        delay_ms,
        predicted_rps: Some(bound),
        upper_bound_rps: Some(bound),
        held_ms: Some(times.held_ms),
        crossings: Some(way.crossings),
        assumptions,
        no_prediction: None,
    }
}

/// How long a worker was held, and how often it waits for the delay meanwhile.
fn held_as_before(way: &Way, before_ms: f64) -> String {
    let held = words::ms(before_ms);
    if way.round_trips <= 0.0 {
        return format!(
            "A worker was held {held} per request, without a database round trip: it waits for \
             nothing that the delay holds up, and will be held as long."
        );
    }
    let made = words::several(
        way.round_trips,
        "database round trip",
        "database round trips, one after \
         the other",
    );
    if way.crossings <= 0.0 {
        return format!(
            "A worker was held {held} per request, with {made}: none of it waits for the delay, and \
             it will be held as long."
        );
    }
    format!(
        "A worker was held {held} per request, with {made}: {} something crosses the delayed \
         direction.",
        words::several(way.crossings, "time", "times"),
    )
}

/// That nobody else impaired the network was told, or has to be assumed.
fn alone(cell: &Cell) -> Option<String> {
    cell.in_force.is_none().then(|| {
        "Whether somebody else impaired the service's network in that run was not told: assumed is \
         that nobody did."
            .to_owned()
    })
}

/// Two limits this close, as a share of the lower one, are both felt.
const CLOSE: f64 = 0.25;

/// Which of the two limits it is, and what stays as it was.
fn limit(
    cell: &Cell,
    workers: f64,
    held_ms: f64,
    client_ms: f64,
    (by_workers, by_users): (f64, f64),
) -> Vec<String> {
    let workers = words::several(workers, "worker", "workers");
    let users = words::several(f64::from(cell.client.users), "user", "users");
    let (held, client) = (words::ms(held_ms), words::ms(client_ms));
    let of_workers =
        format!("{workers} / {held} = {} requests per second", words::rate(by_workers));
    let of_users = format!(
        "{users} / ({held} held + {client} on the network) = {} requests per second",
        words::rate(by_users)
    );
    let mut said = vec![if by_users < by_workers {
        format!(
            "The users are the limit: {of_users}. The workers would do {of_workers}; more users get \
             more done up to there."
        )
    } else {
        format!(
            "The workers are the limit: {of_workers}. The users could ask for more: {of_users}."
        )
    }];
    if (by_users - by_workers).abs() <= CLOSE * by_users.min(by_workers) {
        said.push(
            "The two limits are close: where users happen to come together, or requests differ, \
             somewhat less comes out than either."
                .to_owned(),
        );
    }
    said.push(format!(
        "The number of workers ({workers}) and of users, the round trips per request and the database's \
         own speed stay as they were."
    ));
    said
}

/// None if a request waits for no delay: then nothing is bounded by it.
fn concurrent(cell: &Cell, delay_ms: f64, way: &Way) -> Option<Prediction> {
    let per_request_ms = (way.crossings + way.client) * delay_ms;
    if per_request_ms <= 0.0 {
        return None;
    }
    let by_users = f64::from(cell.client.users) * 1e3 / per_request_ms;
    let trips = if way.round_trips > 0.0 {
        format!(
            "{} and for ",
            words::several(way.round_trips, "database round trip", "database round trips")
        )
    } else {
        String::new()
    };
    let mut assumptions = vec![
        "The service works on many requests at once, so a delay makes each slower and not \
         necessarily fewer: a bound only."
            .to_owned(),
        format!(
            "Each user waits for {trips}what passes between it and the service, which the delay \
             holds up {} per request (the response, and the handshake of a new connection), one \
             after the other: {} / {} is the bound.",
            words::several(way.client, "time", "times"),
            words::several(f64::from(cell.client.users), "user", "users"),
            words::ms(per_request_ms),
        ),
    ];
    assumptions.extend(way.known.clone());
    assumptions.extend(alone(cell));
    let undelayed = cell.injection.as_ref().is_none_or(|injection| injection.requested_ms <= 0.0);
    if let Some(rate) = cell.client.hold_srps.filter(|_| undelayed) {
        assumptions.push(format!(
            "A delay adds no capacity: what the service did without it, {} requests per second, \
             is about the most it will do with it.",
            words::rate(rate)
        ));
    }
    Some(Prediction {
        from: cell.name.clone(),
        delay_ms,
        predicted_rps: None,
        upper_bound_rps: Some(by_users),
        held_ms: None,
        crossings: Some(way.crossings),
        assumptions,
        no_prediction: None,
    })
}

/// Threads that take connections; at least one.
pub(crate) fn workers(cell: &Cell) -> f64 {
    let groups = cell.kernel.iter().flat_map(|kernel| &kernel.thread_groups);
    let takers = groups.filter(|group| group.role != "executor").map(|group| group.threads);
    takers.sum::<f64>().round().max(1.0)
}

#[cfg(test)]
mod tests;
