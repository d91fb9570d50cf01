//! Tests of the decisions, against what the models promise.

use proptest::prelude::*;

use super::*;
use crate::model::netem::{self, LossModel, Probability, Slot};

const PACKETS: u32 = 200_000;

fn share(fraction: f64) -> Probability {
    Probability::from_fraction(fraction)
}

fn options() -> NetemOptions {
    NetemOptions { limit_packets: 1000, ..NetemOptions::default() }
}

fn scheduler(options: &NetemOptions, table: Option<&[i16]>, seed: u64) -> Scheduler {
    Scheduler::new(options, table, seed).unwrap()
}

/// Fates of packets that come a second apart, so that none is held.
fn fates(mut scheduler: Scheduler, packets: u32) -> impl Iterator<Item = (u64, Fate)> {
    (1..=u64::from(packets)).map(move |number| {
        let now = number * 1_000_000_000;
        (now, scheduler.decide(now, 1000, 0, None))
    })
}

fn losses(options: &NetemOptions, seed: u64) -> Vec<bool> {
    fates(scheduler(options, None, seed), PACKETS).map(|(_, fate)| fate == Fate::Lost).collect()
}

fn delays(options: &NetemOptions, table: Option<&[i16]>, packets: u32) -> Vec<i64> {
    fates(scheduler(options, table, 11), packets)
        .map(|(now, fate)| match fate {
            Fate::At(due) => due as i64 - now as i64,
            other => panic!("{other:?}"),
        })
        .collect()
}

/// Checks a share of losses against its expectation: within three standard errors, which a model
/// with memory makes larger by `inflation` (its integrated autocorrelation).
fn assert_share(lost: &[bool], expected: f64, inflation: f64) {
    let n = lost.len() as f64;
    let measured = lost.iter().filter(|lost| **lost).count() as f64 / n;
    let error = (expected * (1.0 - expected) * inflation / n).sqrt();
    let off = (measured - expected) / error;
    assert!(off.abs() <= 3.0, "{measured} is {off} standard errors from {expected}");
}

#[test]
fn random_loss_is_as_frequent_as_asked() {
    for (seed, probability) in [(1, 0.001), (2, 0.01), (3, 0.3)] {
        let mut options = options();
        options.loss.probability = share(probability);
        assert_share(&losses(&options, seed), probability, 1.0);
    }
    let mut all = options();
    all.loss.probability = share(1.0);
    assert!(losses(&all, 4).iter().all(|lost| *lost));
}

/// A chain that enters loss with `enter` and leaves it with `leave` has lag-1 correlation
/// 1 - enter - leave, and its standard error grows by (1 + c) / (1 - c).
fn inflation(enter: f64, leave: f64) -> f64 {
    let c = 1.0 - enter - leave;
    (1.0 + c) / (1.0 - c)
}

/// Length of the runs of losses.
fn bursts(lost: &[bool]) -> Vec<usize> {
    lost.split(|lost| !lost).map(<[bool]>::len).filter(|len| *len > 0).collect()
}

#[test]
fn simple_gilbert_loses_in_bursts_as_long_as_asked() {
    // p, r; all is lost in the bad state (1 - h = 1) and nothing in the good one (1 - k = 0).
    let (p, r) = (0.01, 0.25);
    let mut options = options();
    options.loss_model =
        Some(LossModel::GilbertElliot([share(p), share(r), share(0.0), share(0.0)]));
    let lost = losses(&options, 5);
    assert_share(&lost, p / (p + r), inflation(p, r));
    let bursts = bursts(&lost);
    let mean = lost.iter().filter(|lost| **lost).count() as f64 / bursts.len() as f64;
    // Geometric: mean 1 / r, standard deviation sqrt(1 - r) / r.
    let error = (1.0 - r).sqrt() / r / (bursts.len() as f64).sqrt();
    assert!((mean - 1.0 / r).abs() <= 3.0 * error, "{mean} against {}", 1.0 / r);
}

#[test]
fn gilbert_elliot_loses_in_both_states() {
    // In the bad state 1 - h = 0.5 are lost, in the good one 1 - k = 0.02.
    let (p, r, h, k1) = (0.02, 0.2, 0.5, 0.02);
    let mut options = options();
    options.loss_model = Some(LossModel::GilbertElliot([share(p), share(r), share(h), share(k1)]));
    let bad = p / (p + r);
    let expected = bad * (1.0 - h) + (1.0 - bad) * k1;
    // Losses are less correlated than the states are.
    let states = bad * (1.0 - bad) * (1.0 - h - k1).powi(2);
    let correlated = states / (expected * (1.0 - expected));
    let grown = 1.0 + correlated * (inflation(p, r) - 1.0);
    assert_share(&losses(&options, 6), expected, grown);
}

#[test]
fn the_four_state_chain_spends_its_time_as_its_equations_say() {
    // p13, p31, p32, p14, p23.
    let p = [0.03, 0.3, 0.1, 0.01, 0.4];
    let mut options = options();
    options.loss_model = Some(LossModel::FourState(p.map(share)));
    // Stationary probabilities by power iteration over the chain 1, 2, 3, 4.
    let [p13, p31, p32, p14, p23] = p;
    let rows = [
        [1.0 - p13 - p14, 0.0, p13, p14],
        [0.0, 1.0 - p23, p23, 0.0],
        [p31, p32, 1.0 - p31 - p32, 0.0],
        [1.0, 0.0, 0.0, 0.0],
    ];
    let step = |from: [f64; 4]| -> [f64; 4] {
        std::array::from_fn(|to| (0..4).map(|state| from[state] * rows[state][to]).sum())
    };
    let stationary = (0..10_000).fold([0.25; 4], |from, _| step(from));
    let expected = stationary[2] + stationary[3];
    // Integrated autocorrelation of being lost, exactly: sum over lags of P(lost, lost later).
    let variance = expected * (1.0 - expected);
    let mut ahead = [0.0, 0.0, stationary[2], stationary[3]];
    let mut grown = 1.0;
    for _ in 0..1000 {
        ahead = step(ahead);
        grown += 2.0 * (ahead[2] + ahead[3] - expected * expected) / variance;
    }
    assert_share(&losses(&options, 7), expected, grown);
}

#[test]
fn without_loss_nothing_is_lost() {
    let mut model = options();
    model.loss_model =
        Some(LossModel::GilbertElliot([share(0.1), share(0.1), share(1.0), share(0.0)]));
    for options in [options(), model] {
        assert!(losses(&options, 8).iter().all(|lost| !lost));
    }
}

/// Largest distance between the distribution of `sample` and that of `expected`, each sorted.
fn distance(sample: &[i64], expected: &[i64]) -> f64 {
    let below = |of: &[i64], x: i64| of.partition_point(|v| *v <= x) as f64 / of.len() as f64;
    let points = sample.iter().chain(expected);
    points.map(|x| (below(sample, *x) - below(expected, *x)).abs()).fold(0.0, f64::max)
}

/// Kolmogorov-Smirnov at a significance of 0.1 %, for `n` draws from a known distribution.
fn assert_distributed(mut sample: Vec<i64>, mut expected: Vec<i64>) {
    sample.sort_unstable();
    expected.sort_unstable();
    let (distance, bound) = (distance(&sample, &expected), 1.95 / (sample.len() as f64).sqrt());
    assert!(distance <= bound, "{distance} against {bound}");
}

/// A skewed table, as a user's file may hold.
fn table() -> Vec<i16> {
    (0..4096).map(|i| ((f64::from(i) / 4096.0).powi(3) * 24_000.0) as i16 - 6_000).collect()
}

#[test]
fn jitter_follows_the_table() {
    let options = NetemOptions { latency_ns: 50_000_000, jitter_ns: 3_000_000, ..options() };
    let table = table();
    let deviation = |v: &i16| (f64::from(*v) * 3_000_000.0 / TABLE_SCALE as f64).round() as i64;
    let expected = table.iter().map(|v| 50_000_000 + deviation(v)).collect();
    assert_distributed(delays(&options, Some(&table), 20_000), expected);
}

#[test]
fn jitter_without_a_table_is_uniform() {
    let options = NetemOptions { latency_ns: 50_000_000, jitter_ns: 5_000_000, ..options() };
    let expected = (0..10_000).map(|i| 45_000_000 + i * 1_000).collect();
    let delays = delays(&options, None, 20_000);
    assert!(delays.iter().all(|delay| (45_000_000..55_000_000).contains(delay)));
    assert_distributed(delays, expected);
}

/// Only of a jitter this large: netem takes the remainder of correlated numbers, of which little is
/// left to resemble when that is by less.
#[test]
fn jitter_may_resemble_the_one_before() {
    let options = NetemOptions {
        latency_ns: 5_000_000_000,
        jitter_ns: i64::from(i32::MAX),
        delay_correlation: share(0.75),
        ..options()
    };
    let delays = delays(&options, None, 50_000);
    let mean = delays.iter().sum::<i64>() as f64 / delays.len() as f64;
    let product = |lag: usize| -> f64 {
        delays
            .iter()
            .zip(&delays[lag..])
            .map(|(a, b)| (*a as f64 - mean) * (*b as f64 - mean))
            .sum()
    };
    let measured = product(1) / product(0);
    assert!((measured - 0.75).abs() < 0.02, "{measured}");
}

#[test]
fn every_gap_th_packet_goes_ahead() {
    let options = NetemOptions { latency_ns: 10_000_000, reorder_gap: 5, ..options() };
    let ahead: Vec<bool> =
        fates(scheduler(&options, None, 1), 20).map(|(_, fate)| fate == Fate::Front).collect();
    let expected: Vec<bool> = (1..=20).map(|number| number % 5 == 0).collect();
    assert_eq!(ahead, expected);
}

#[test]
fn a_share_of_packets_goes_ahead() {
    let mut options = NetemOptions { latency_ns: 10_000_000, reorder_gap: 1, ..options() };
    options.reorder.probability = share(0.25);
    let ahead: Vec<bool> =
        fates(scheduler(&options, None, 9), PACKETS).map(|(_, fate)| fate == Fate::Front).collect();
    assert_share(&ahead, 0.25, 1.0);
}

#[test]
fn a_rate_spaces_packets_by_their_lengths() {
    let rate = netem::Rate { bytes_per_s: 1_000_000, packet_overhead: 20, ..Default::default() };
    let options = NetemOptions { latency_ns: 5_000_000, rate: Some(rate), ..options() };
    let mut scheduler = scheduler(&options, None, 1);
    // 980 + 20 bytes at 1 MB/s take 1 ms each; the first also waits for the delay.
    let (mut last, mut dues) = (None, Vec::new());
    for held in 0..4 {
        let Fate::At(due) = scheduler.decide(1_000_000_000, 980, held, last) else { panic!() };
        last = Some(due);
        dues.push(due - 1_000_000_000);
    }
    assert_eq!(dues, [6_000_000, 7_000_000, 8_000_000, 9_000_000]);
}

#[test]
fn cells_are_paid_whole() {
    let rate = netem::Rate {
        bytes_per_s: 1_000_000_000,
        packet_overhead: 0,
        cell_bytes: 48,
        cell_overhead: 5,
    };
    // 100 bytes need three cells of 53.
    assert_eq!(transmit_ns(&rate, 100), 159);
    assert_eq!(transmit_ns(&rate, 96), 106);
    let shrunk = netem::Rate { packet_overhead: -200, cell_bytes: 0, ..rate };
    assert_eq!(transmit_ns(&shrunk, 100), 0);
}

#[test]
fn the_limit_drops() {
    let options = NetemOptions { limit_packets: 3, latency_ns: 1, ..options() };
    let mut scheduler = scheduler(&options, None, 1);
    assert!(matches!(scheduler.decide(0, 0, 2, None), Fate::At(1)));
    assert_eq!(scheduler.decide(0, 0, 3, None), Fate::Full);
}

#[test]
fn a_seed_repeats_and_another_differs() {
    let mut options = options();
    options.loss.probability = share(0.5);
    assert_eq!(losses(&options, 1), losses(&options, 1));
    assert_ne!(losses(&options, 1), losses(&options, 2));
    options.prng_seed = Some(1);
    assert_eq!(losses(&options, 5), losses(&options, 6));
}

#[test]
fn what_it_cannot_do_is_refused_with_a_sentence() {
    let base = options();
    let with = |change: &dyn Fn(&mut NetemOptions)| {
        let mut options = base;
        change(&mut options);
        Scheduler::new(&options, None, 0).unwrap_err().to_string()
    };
    for (said, word) in [
        (with(&|o| o.duplicate.probability = share(0.1)), "cannot duplicate packets"),
        (with(&|o| o.corrupt.probability = share(0.1)), "cannot corrupt packets"),
        (with(&|o| o.slot = Some(Slot::default())), "cannot deliver in slots"),
        (with(&|o| o.ecn = true), "cannot mark packets (ecn)"),
    ] {
        assert!(said.contains(word) && said.contains("--engine netem"), "{said}");
    }
    assert!(with(&|o| o.latency_ns = -1).contains("negative"));
    assert_eq!(Scheduler::new(&base, Some(&[]), 0).unwrap_err(), Unable::Table(0));
}

proptest! {
    #[test]
    fn no_option_makes_time_go_wrong(
        latency in 0..i64::MAX, jitter in 0..i64::MAX, table: Option<[i16; 7]>,
        now: u64, bytes in 0..1u64 << 40, last: Option<u64>, seed: u64,
        rate in prop::option::of((1u64.., any::<i32>(), any::<u32>(), any::<i32>())),
    ) {
        let rate = rate.map(|(bytes_per_s, packet_overhead, cell_bytes, cell_overhead)| {
            netem::Rate { bytes_per_s, packet_overhead, cell_bytes, cell_overhead }
        });
        let options =
            NetemOptions { latency_ns: latency, jitter_ns: jitter, rate, ..options() };
        let mut scheduler = scheduler(&options, table.as_ref().map(|t| &t[..]), seed);
        prop_assert!(matches!(scheduler.decide(now, bytes, 0, last), Fate::At(_)));
    }
}
