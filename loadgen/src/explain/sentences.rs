//! Sentences that do not depend on how a server works on requests.

use super::{Evidence, words};
use crate::{
    in_force::in_force,
    ledger::Stage,
    predict::crossing::Crossing,
    report::model::{Client, InForce, Verdict},
};

/// The network's part of a request is told from this share on, where the service has room.
const NETWORK_WORTH_TELLING: f64 = 0.30;

/// How many round trips per request, and which only set up a connection.
pub(super) fn round_trips(evidence: &Evidence<'_>) -> Option<String> {
    let total = evidence.kernel().db_round_trips_per_request.filter(|&total| total > 0.0)?;
    let lines = &evidence.kernel().db_round_trips;
    let is_setup = |kind: &str| {
        agent_common::wire::DbKind::ALL.iter().any(|one| one.name() == kind && one.is_setup())
    };
    let mut setup = 0.0;
    let mut kinds: Vec<(&str, f64)> = Vec::new();
    for line in lines.iter().filter(|line| is_setup(&line.kind)) {
        setup += line.per_request;
        match kinds.last_mut() {
            Some((kind, sum)) if *kind == line.kind => *sum += line.per_request,
            _ => kinds.push((&line.kind, line.per_request)),
        }
    }
    let round_trips = words::several(total, "database round trip", "database round trips");
    let time = words::ms(evidence.stats.database_ms);
    if setup <= 0.0 {
        return Some(format!("A request makes {round_trips}, {time} in all."));
    }
    let named: Vec<String> = kinds
        .iter()
        .map(|(kind, count)| {
            // Requests that an edge of the hold cuts put a percent or so on the counts.
            let whole = if (count - count.round()).abs() <= 0.02 { count.round() } else { *count };
            match words::mean(whole).as_str() {
                "1" => words::purpose(kind).to_owned(),
                count => format!("{count} x {}", words::purpose(kind)),
            }
        })
        .collect();
    Some(format!(
        "A request makes {round_trips}, {time} in all: {} only set up a connection ({}), {} do \
         the work.",
        words::mean(setup),
        words::list(&named),
        words::mean(total - setup),
    ))
}

/// That the delay is not in the way to the database, if so.
pub(super) fn not_crossed(evidence: &Evidence<'_>) -> Option<String> {
    let count = evidence.kernel().db_round_trips_per_request.filter(|&count| count > 0.0)?;
    if evidence.delay_ms <= 0.0 {
        return None;
    }
    let (device, delay) = (evidence.device(), words::ms(evidence.delay_ms));
    match evidence.crossing() {
        Crossing::Never => Some(format!(
            "They are shorter than the {delay} of delay on {device}: the database's packets do \
             not cross the delayed interface."
        )),
        Crossing::NotEach => Some(format!(
            "Together they take less than {} x {delay}: not all of the database's packets cross \
             the delayed interface, {device}.",
            words::mean(count),
        )),
        Crossing::Once | Crossing::Twice | Crossing::Unclear => None,
    }
}

/// What others had put on the service's network, if anything.
pub(super) fn of_others(evidence: &Evidence<'_>) -> Option<String> {
    let data = evidence.run.kernel.as_ref()?;
    let told = |one: &InForce| {
        let when = one.change().map_or_else(String::new, |when| format!(" {when}"));
        one.sentence() + &when
    };
    let all: Vec<String> = in_force(evidence.run, data)?.iter().map(told).collect();
    (!all.is_empty()).then(|| {
        format!(
            "Somebody else had impaired the service's network, and all that follows is with it: {}.",
            words::list(&all)
        )
    })
}

/// Failures that are worth a sentence: from this share of requests on.
const FAILED: f64 = 0.01;

pub(super) fn failures(evidence: &Evidence<'_>) -> Option<String> {
    let client = evidence.client;
    let failed: u64 = client.failures.values().sum();
    if (failed as f64) < FAILED * client.requests as f64 || failed == 0 {
        return None;
    }
    let named: Vec<String> = client
        .failures
        .iter()
        .map(|(class, count)| {
            let often = most_often(client, class)
                .map_or_else(String::new, |status| format!(", most often {status}"));
            format!("{count} {}{often}", class.replace('_', " "))
        })
        .collect();
    Some(format!(
        "{failed} of {} failed ({}); rates are of successes.",
        words::several(client.requests as f64, "request", "requests"),
        words::list(&named),
    ))
}

/// The HTTP status that a failure class had most often; None where it has none.
fn most_often(client: &Client, class: &str) -> Option<String> {
    let hundreds = class.strip_prefix("http_")?.get(..1)?;
    let of_class = client.statuses.iter().filter(|(code, _)| code.starts_with(hundreds));
    let (code, _) = of_class.max_by_key(|(_, count)| **count)?;
    code.parse().ok().map(words::status)
}

/// Where the service has room, what its users wait for is elsewhere: the network's part, if it is
/// large.
pub(super) fn on_the_network(evidence: &Evidence<'_>, verdict: Verdict) -> Option<String> {
    if !matches!(verdict, Verdict::NotSaturated | Verdict::CannotTell) {
        return None;
    }
    let connect = evidence.stage_ms(Stage::Connect);
    let request = evidence.stage_ms(Stage::RequestNet);
    let response = evidence.stage_ms(Stage::ResponseNet);
    let whole = evidence.joined_mean_ms();
    let network = connect + request + response;
    if whole <= 0.0 || network < NETWORK_WORTH_TELLING * whole {
        return None;
    }
    let delayed = if evidence.delay_ms > 0.0 {
        format!(
            " ({} were added to each packet that leaves the service{})",
            words::ms(evidence.delay_ms),
            if evidence.delay_ended() { " while the delay was in force" } else { "" }
        )
    } else {
        String::new()
    };
    Some(format!(
        "{} takes {}, of which {} pass on the network{delayed}: {} to connect, {} for the request, {} \
         for the response. {}",
        evidence.a_joined_request(),
        words::ms(whole),
        words::ms(network),
        words::ms(connect),
        words::ms(request),
        words::ms(response),
        if connect >= network / 2.0 {
            "Connections kept open between requests would save the first part."
        } else {
            "The service is not what the users wait for."
        },
    ))
}

pub(super) fn unfinished(evidence: &Evidence<'_>) -> Option<String> {
    let unfinished = &evidence.ledger.unfinished;
    let age = unfinished.mean_age_ms?;
    // Each user of a closed loop has one under way. Only those that are older than what got
    // through tell of a queue that the latencies do not show.
    if age <= evidence.client_mean_ms() {
        return None;
    }
    let (stage, most) = unfinished.by_stage.iter().max_by_key(|(_, count)| **count)?;
    Some(format!(
        "When the run ended {} were unfinished, {} old on average, {most} of them in {}: the \
         latencies are those of the requests that got through.",
        words::several(unfinished.count as f64, "request", "requests"),
        words::ms(age),
        stage.replace('_', " "),
    ))
}

/// That the delay was not where the prediction took it to be, if so.
pub(super) fn otherwise_than_predicted(evidence: &Evidence<'_>) -> Option<String> {
    let predicted = evidence.prediction?.crossings.filter(|&times| times > 0.0)?;
    let count = evidence.kernel().db_round_trips_per_request.filter(|&count| count > 0.0)?;
    if evidence.delay_ms <= 0.0 || evidence.delay_ended() {
        return None;
    }
    let times = evidence.crossing().factor()? * count;
    // Far more than what a request more or less at an edge of the hold makes of it.
    ((times - predicted).abs() > 0.5 * predicted).then(|| {
        format!(
            "The prediction took a request to wait for {} crossings of the delayed interface; \
             here it waited for {}.",
            words::mean(predicted),
            words::mean(times),
        )
    })
}

/// Measured beside predicted.
pub(super) fn measured(evidence: &Evidence<'_>) -> Option<String> {
    let prediction = evidence.prediction?;
    if let Some(reason) = &prediction.no_prediction {
        return Some(format!("No prediction was made from {}: {reason}.", prediction.from));
    }
    if let Some(until) = evidence.delay_ended_at() {
        return Some(format!(
            "What was measured is not compared with the prediction from {}: the delay is known to \
             have been in force until {:.1} s only.",
            prediction.from,
            until.saturating_sub(evidence.run.start) as f64 / 1e9,
        ));
    }
    let measured = evidence.client.hold_srps?;
    if let Some(predicted) = prediction.predicted_rps.filter(|&rate| rate > 0.0) {
        return Some(format!(
            "Predicted from {} before this run: {} requests per second. Measured: {} ({:+.1} %).",
            prediction.from,
            words::rate(predicted),
            words::rate(measured),
            // Adding zero turns a negative zero into a positive one.
            (1_000.0 * (measured / predicted - 1.0)).round() / 10.0 + 0.0,
        ));
    }
    let bound = prediction.upper_bound_rps?;
    Some(format!(
        "Predicted from {} before this run: no more than {} requests per second. Measured: {}.",
        prediction.from,
        words::rate(bound),
        words::rate(measured),
    ))
}
