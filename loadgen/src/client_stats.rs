//! What the client saw: throughput, failures, latency and how they went with time.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::{
    join::completed,
    record::{Outcome, RequestRecord, RunData, latencies},
    report::model::{Client, Latency, SeriesPoint},
};

/// Width of the window of `max_srps`.
const SLIDING_NS: u64 = 10 * SECOND_NS;
/// A shorter last point of the series is part of the one before it.
const SHORTEST_NS: u64 = SECOND_NS / 10;
/// Below this many successes in the hold, `hold_srps` is null.
pub const HOLD_MIN_SUCCESSES: usize = 30;
const SECOND_NS: u64 = 1_000_000_000;
const NS_PER_MS: f64 = 1e6;
pub(crate) const NS_PER_S: f64 = 1e9;

/// The client's part of the report. The users are a closed loop: one that waits does not send, so
/// a latency is that of the requests that were made, not of an offered rate. Of requests beyond the
/// records there are counts and a histogram: the rates over ten seconds and over the hold are of the
/// stretch that was recorded.
#[must_use]
pub fn client(run: &RunData) -> Client {
    let mut ended: Vec<&RequestRecord> =
        run.records.iter().filter(|record| record.outcome != Outcome::Unfinished).collect();
    ended.sort_unstable_by_key(|record| record.c4);
    let mut failures = BTreeMap::new();
    let mut successes = Vec::with_capacity(ended.len());
    for record in &ended {
        match record.outcome {
            Outcome::Success => successes.push(record.c4),
            Outcome::Failed(failure) => {
                *failures.entry(failure.name().to_owned()).or_insert(0) += 1
            }
            Outcome::Unfinished => {}
        }
    }
    let beyond = &run.beyond;
    let mut statuses = beyond.statuses.clone();
    for record in ended.iter().filter(|record| record.outcome.has_response()) {
        *statuses.entry(record.status).or_default() += 1;
    }
    for (name, count) in &beyond.failures {
        *failures.entry((*name).to_owned()).or_insert(0) += count;
    }
    let beyond_peak = beyond.seconds.iter().map(|(_, successes)| *successes).max().unwrap_or(0);
    let series = series(run, &ended);
    Client {
        users: run.spec.users,
        hold_s: run.end.saturating_sub(run.hold_start) as f64 / NS_PER_S,
        requests: ended.len() as u64 + beyond.requests,
        successes: successes.len() as u64 + beyond.successes,
        failures,
        statuses: statuses.into_iter().map(|(code, count)| (code.to_string(), count)).collect(),
        max_srps: max_srps(&successes, run.end.saturating_sub(run.start)),
        peak_1s: peak_1s(&successes, run.start).max(beyond_peak),
        hold_srps: hold_srps(&successes, run.hold_start, run.end),
        latency_ms: latency(
            ended.iter().copied().filter(|record| completed(record)),
            beyond.latency.as_ref(),
        ),
        stale_retries: run.stale_retries,
        series,
    }
}

/// Largest mean rate over any 10 consecutive seconds; over the whole run if that is shorter.
/// `times` in ascending order.
fn max_srps(times: &[u64], run_ns: u64) -> f64 {
    let window = SLIDING_NS.min(run_ns);
    if window == 0 {
        return 0.0;
    }
    let mut most = 0;
    let mut first = 0;
    for (last, &time) in times.iter().enumerate() {
        // The window is open at one end: what is exactly its width apart is not within it.
        while time - times[first] >= window && first < last {
            first += 1;
        }
        most = most.max(last - first + 1);
    }
    most as f64 * NS_PER_S / window as f64
}

/// Largest count within one second of the run, seconds counted from its start.
fn peak_1s(times: &[u64], start: u64) -> u64 {
    let second = |time: &u64| time.saturating_sub(start) / SECOND_NS;
    times.chunk_by(|a, b| second(a) == second(b)).map(<[u64]>::len).max().unwrap_or(0) as u64
}

/// (n - 1) / (last - first), which counting per window would quantise; None below
/// [`HOLD_MIN_SUCCESSES`].
fn hold_srps(times: &[u64], from: u64, to: u64) -> Option<f64> {
    let begin = times.partition_point(|&time| time < from);
    let end = times.partition_point(|&time| time <= to);
    let held = times.get(begin..end)?;
    let (first, last) = (held.first()?, held.last()?);
    if held.len() < HOLD_MIN_SUCCESSES || first == last {
        return None;
    }
    Some((held.len() - 1) as f64 * NS_PER_S / (last - first) as f64)
}

/// Of requests that got a response: what failed took as long as the failure, a refused connection
/// next to nothing.
fn latency<'a>(
    answered: impl Iterator<Item = &'a RequestRecord>,
    beyond: Option<&Histogram<u64>>,
) -> Option<Latency> {
    let mut histogram = latencies()?;
    let mut total = 0u128;
    let (mut longest, mut count) = (0, 0u64);
    for record in answered {
        let ns = latency_ns(record);
        histogram.saturating_record(ns.max(1));
        total += u128::from(ns);
        count += 1;
        longest = longest.max(ns);
    }
    if let Some(beyond) = beyond {
        histogram.add(beyond).ok()?;
        count += beyond.len();
        total += (beyond.mean() * beyond.len() as f64) as u128;
        longest = longest.max(beyond.max());
    }
    if histogram.is_empty() {
        return None;
    }
    let at = |quantile| histogram.value_at_quantile(quantile).min(longest) as f64 / NS_PER_MS;
    Some(Latency {
        mean: total as f64 / count as f64 / NS_PER_MS,
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        max: longest as f64 / NS_PER_MS,
    })
}

/// Time from the start of a request to its end in nanoseconds.
pub(crate) fn latency_ns(record: &RequestRecord) -> u64 {
    record.c4.saturating_sub(record.c0)
}

fn series(run: &RunData, ended: &[&RequestRecord]) -> Vec<SeriesPoint> {
    let mut rest = ended;
    let mut points = Vec::new();
    let spans: Vec<(u64, u64)> = seconds(run.start, run.end).collect();
    for (index, &(from, to)) in spans.iter().enumerate() {
        let last = index + 1 == spans.len();
        let until = if last { usize::MAX } else { index + 1 };
        let beyond = run.beyond.seconds.iter().take(until).skip(index);
        let beyond = beyond.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let within = rest.partition_point(|record| record.c4 < to || to == run.end);
        let (these, later) = rest.split_at(within);
        rest = later;
        let answered = these.iter().filter(|record| completed(record));
        let mut times: Vec<u64> = answered.map(|record| latency_ns(record)).collect();
        times.sort_unstable();
        let successes = these.iter().filter(|record| record.outcome == Outcome::Success).count();
        let span_s = (to - from) as f64 / NS_PER_S;
        points.push(SeriesPoint {
            t_s: (to - run.start) as f64 / NS_PER_S,
            users: run.user_starts.partition_point(|&start| start < to) as u32,
            rps: (these.len() as u64 + beyond.0) as f64 / span_s,
            srps: (successes as u64 + beyond.1) as f64 / span_s,
            p50_ms: quantile(&times, 0.5).map(|ns| ns as f64 / NS_PER_MS),
            p99_ms: quantile(&times, 0.99).map(|ns| ns as f64 / NS_PER_MS),
        });
    }
    points
}

/// The seconds of a run. A run stops a moment after its planned end: what is left over then makes no
/// rate, and belongs to the last second.
fn seconds(start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
    let length = end.saturating_sub(start);
    let left = length % SECOND_NS;
    let whole = length / SECOND_NS;
    let count = if left >= SHORTEST_NS || (whole == 0 && left > 0) { whole + 1 } else { whole };
    (0..count).map(move |second| {
        let from = start + second * SECOND_NS;
        (from, if second + 1 == count { end } else { from + SECOND_NS })
    })
}

/// The smallest value that at least `share` of all do not exceed; `sorted` ascending.
pub(crate) fn quantile(sorted: &[u64], share: f64) -> Option<u64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = SECOND_NS;

    #[test]
    fn the_best_ten_seconds_are_found_between_whole_seconds() {
        // One completion every 1.64 s: ten seconds hold 6 or 7 of them.
        let times: Vec<u64> = (0..30).map(|n| n * 1_640_000_000).collect();
        assert!((max_srps(&times, 60 * S) - 0.7).abs() < 1e-9);
        // A burst that straddles two whole seconds.
        let burst: Vec<u64> = (0..100).map(|n| 19 * S + n * S / 10).collect();
        assert!((max_srps(&burst, 60 * S) - 10.0).abs() < 1e-9);
        assert_eq!(max_srps(&[], 60 * S), 0.0);
    }

    #[test]
    fn a_run_shorter_than_the_window_is_measured_by_its_own_length() {
        assert!((max_srps(&[S, 2 * S, 3 * S], 4 * S) - 0.75).abs() < 1e-9);
        assert_eq!(max_srps(&[], 0), 0.0);
    }

    #[test]
    fn the_hold_rate_is_not_quantised() {
        let times: Vec<u64> = (0..37).map(|n| 5 * S + n * 1_640_000_000).collect();
        let rate = hold_srps(&times, 5 * S, 66 * S).unwrap();
        assert!((rate - 1.0 / 1.64).abs() < 1e-9, "{rate}");
        assert_eq!(hold_srps(&times, 5 * S, 50 * S), None, "only 28 in there");
        assert_eq!(hold_srps(&times, 0, S), None);
    }

    #[test]
    fn the_peak_is_of_whole_seconds_of_the_run() {
        let times = [10 * S, 10 * S + 1, 11 * S - 1, 11 * S, 11 * S + 5, 11 * S + 6];
        assert_eq!(peak_1s(&times, 10 * S), 3);
        assert_eq!(peak_1s(&times, 10 * S - S / 2), 4);
        assert_eq!(peak_1s(&[], 0), 0);
    }

    #[test]
    fn a_moment_after_the_last_second_is_part_of_it() {
        let points = |length| seconds(S, S + length).collect::<Vec<_>>();
        assert_eq!(points(2 * S + S / 1000), [(S, 2 * S), (2 * S, 3 * S + S / 1000)]);
        assert_eq!(points(2 * S), [(S, 2 * S), (2 * S, 3 * S)]);
        assert_eq!(points(S + S / 2), [(S, 2 * S), (2 * S, 2 * S + S / 2)]);
        assert_eq!(points(S / 1000), [(S, S + S / 1000)], "all there is");
        assert_eq!(points(0), []);
    }

    #[test]
    fn every_request_is_in_one_point_of_the_series() {
        let mut run =
            crate::simulate::control(agent_common::abi::class::SLEEP, 20).one_at_a_time(1);
        run.end += 3_000_000;
        let client = client(&run);
        assert_eq!(client.series.len() as u64, (run.end - run.start) / S);
        let mut last = 0.0;
        let mut total = 0.0;
        for point in &client.series {
            total += point.rps * (point.t_s - last);
            last = point.t_s;
        }
        assert!((total - client.requests as f64).abs() < 1e-6, "{total} of {}", client.requests);
    }

    #[test]
    fn latencies_are_of_requests_that_got_a_response() {
        use crate::record::Failure;
        let mut run =
            crate::simulate::control(agent_common::abi::class::SLEEP, 20).one_at_a_time(1);
        let before = client(&run).latency_ms.unwrap();
        let refused = RequestRecord {
            c0: run.end - 1_000,
            c4: run.end - 900,
            outcome: Outcome::Failed(Failure::ConnectRefused),
            ..run.records[0]
        };
        run.records.extend(vec![refused; 10_000]);
        let after = client(&run);
        assert_eq!(after.failures["connect_refused"], 10_000);
        assert_eq!(after.latency_ms.unwrap(), before);
        assert!(after.series.last().unwrap().p50_ms.unwrap() > 1.0, "{:?}", after.series.last());
        run.records.retain(|record| record.outcome == refused.outcome);
        assert_eq!(client(&run).latency_ms, None);
    }

    #[test]
    fn requests_beyond_the_records_are_in_counts_and_latencies() {
        let run = crate::simulate::control(agent_common::abi::class::SLEEP, 20).one_at_a_time(1);
        let whole = client(&run);
        let mut capped = run.clone();
        let rest = capped.records.split_off(capped.records.len() / 2);
        let (unfinished, rest): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|record| record.outcome == Outcome::Unfinished);
        rest.iter().for_each(|record| capped.beyond.count(record, run.start));
        capped.records.extend(unfinished);
        let capped = client(&capped);
        assert_eq!((capped.requests, capped.successes), (whole.requests, whole.successes));
        assert_eq!(capped.peak_1s, whole.peak_1s);
        assert_eq!(whole.statuses, [("200".to_owned(), whole.successes)].into());
        assert_eq!(capped.statuses, whole.statuses);
        let (before, after) =
            (whole.latency_ms.clone().unwrap(), capped.latency_ms.clone().unwrap());
        assert!((before.mean - after.mean).abs() < 0.01 * before.mean, "{after:?}");
        assert!((before.max - after.max).abs() < 0.01 * before.max, "{after:?}");
        // To the three digits of the histograms.
        assert!((before.p50 - after.p50).abs() < 2e-3 * before.p50, "{after:?}");
        assert!((before.p99 - after.p99).abs() < 2e-3 * before.p99, "{after:?}");
        let rates = |client: &Client| client.series.iter().map(|p| p.rps).collect::<Vec<_>>();
        assert_eq!(rates(&capped), rates(&whole));
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let sorted: Vec<u64> = (1..=100).collect();
        assert_eq!(quantile(&sorted, 0.5), Some(50));
        assert_eq!(quantile(&sorted, 0.99), Some(99));
        assert_eq!(quantile(&[7], 0.99), Some(7));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
