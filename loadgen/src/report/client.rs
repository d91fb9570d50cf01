//! What the client saw, in lines that the text and the page share.

use super::model::Client;
use crate::explain::words;

/// Codes of a class that are told one by one.
const CODES: usize = 3;

/// The lines on a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lines {
    /// Users, successes and rates.
    pub(super) load: String,
    /// Latencies; None if nothing was answered.
    pub(super) latency: Option<String>,
    /// Failures by class; None without.
    pub(super) failed: Option<String>,
    /// Successes that a person may not take for such; None without.
    pub(super) odd: Option<String>,
}

/// Puts a client into words.
pub(super) fn lines(client: &Client) -> Lines {
    let load = format!(
        "{}, {:.0} s hold: {} of {}; {}, {} in one second",
        words::several(f64::from(client.users), "user", "users"),
        client.hold_s,
        words::number(client.successes, "success", "successes"),
        words::number(client.requests, "request", "requests"),
        match client.max_over_s() {
            Some(seconds) if client.is_shorter_than_max() => {
                format!("{:.1}/s over the whole {seconds:.1} s", client.max_srps)
            }
            Some(seconds) => format!("max {:.1}/s over {seconds:.0} s", client.max_srps),
            None => "no second is over".to_owned(),
        },
        client.peak_1s
    );
    let latency = client.latency_ms.as_ref().map(|latency| {
        format!(
            "latency mean {}, p50 {}, p90 {}, p99 {}, max {}",
            words::ms(latency.mean),
            words::ms(latency.p50),
            words::ms(latency.p90),
            words::ms(latency.p99),
            words::ms(latency.max)
        )
    });
    let failed: Vec<String> = client
        .failures
        .iter()
        .map(|(class, count)| match codes(client, class) {
            Some(codes) => format!("{count} {class} ({codes})"),
            None => format!("{count} {class}"),
        })
        .collect();
    let odd = of_statuses(client, |code| !(200..300).contains(&code) && code < 400)
        .map(|codes| format!("{codes}, among the successes: redirects are not followed"));
    Lines { load, latency, failed: (!failed.is_empty()).then(|| failed.join(", ")), odd }
}

/// The HTTP statuses of a failure class, most frequent first; None where it has none.
fn codes(client: &Client, class: &str) -> Option<String> {
    let hundreds = match class {
        "http_4xx" => 4,
        "http_5xx" => 5,
        _ => return None,
    };
    of_statuses(client, |code| code / 100 == hundreds)
}

fn of_statuses(client: &Client, wanted: impl Fn(u16) -> bool) -> Option<String> {
    let mut counts: Vec<(u16, u64)> = client
        .statuses
        .iter()
        .filter_map(|(code, count)| Some((code.parse().ok()?, *count)))
        .filter(|(code, _)| wanted(*code))
        .collect();
    counts.sort_by_key(|&(code, count)| (std::cmp::Reverse(count), code));
    let mut told: Vec<String> = counts
        .iter()
        .take(CODES)
        .map(|(code, count)| format!("{count} x {}", words::status(*code)))
        .collect();
    let others: u64 = counts.iter().skip(CODES).map(|(_, count)| count).sum();
    if others > 0 {
        told.push(format!("{others} others"));
    }
    (!told.is_empty()).then(|| told.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{client_stats::client, simulate};

    fn seen() -> Client {
        client(&simulate::control(agent_common::abi::class::SLEEP, 20).one_at_a_time(1))
    }

    #[test]
    fn failures_name_their_statuses_most_frequent_first() {
        let mut client = seen();
        client.failures = [("http_5xx".to_owned(), 20), ("connect_refused".to_owned(), 2)].into();
        client.statuses =
            [("200", 50), ("302", 7), ("404", 1), ("500", 4), ("501", 12), ("599", 4)]
                .map(|(code, count)| (code.to_owned(), count))
                .into();
        let lines = lines(&client);
        let failed = "2 connect_refused, 20 http_5xx (12 x 501 Not Implemented, 4 x 500 Internal \
                      Server Error, 4 x 599)";
        assert_eq!(lines.failed.unwrap(), failed);
        assert!(lines.odd.unwrap().starts_with("7 x 302 Found, among the successes"));
        client.statuses.insert("503".to_owned(), 1);
        assert!(codes(&client, "http_5xx").unwrap().ends_with("4 x 599, 1 others"));
    }

    #[test]
    fn a_short_run_has_no_best_ten_seconds() {
        let mut client = seen();
        assert!(lines(&client).load.contains("; max 47.6/s over 10 s"), "{}", lines(&client).load);
        client.series.truncate(4);
        assert!(
            lines(&client).load.contains("47.6/s over the whole 4.0 s"),
            "{:?}",
            lines(&client)
        );
        client.series.clear();
        assert!(lines(&client).load.contains("no second"));
    }
}
