//! Database round trips.

use std::collections::{BTreeMap, HashMap, HashSet};

use agent_common::{
    abi::flag,
    wire::{DbKind, DbTurn},
};

use super::{NS_PER_MS, Span, holds::Whole};
use crate::{client_stats::quantile, record::KernelData, report::model::DbRoundTrip};

/// Round trips of a kind that show what it takes while hardly anybody asks.
const FEW: usize = 30;

/// Round trips of the requests that are counted, by kind and statement.
pub(super) struct Turns {
    requests: usize,
    sums: BTreeMap<(DbKind, Option<u32>), Sum>,
}

#[derive(Clone, Copy, Default)]
struct Sum {
    count: u64,
    ns: u128,
}

/// The round trip that lost most time, in all, to others that were asked for at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Dominant {
    /// Kind.
    pub kind: DbKind,
    /// Normalised text, if it has one.
    pub statement: Option<String>,
    /// Median while hardly anybody asked, milliseconds, delay included: see [`alone`].
    pub alone_ms: f64,
    /// Most of those, nine of ten, took no longer than this, milliseconds.
    pub alone_most_ms: f64,
    /// Median in the hold, milliseconds, delay included.
    pub hold_ms: f64,
    /// Mean in the hold, milliseconds, delay included.
    pub mean_ms: f64,
    /// How many of it were open at once, mean over the hold.
    pub open_mean: f64,
}

/// What the database takes while hardly anybody asks.
#[derive(Clone, Debug, Default)]
pub(super) struct Alone {
    pub(super) dominant: Option<Dominant>,
    /// Of all round trips answered in the hold, nanoseconds.
    pub(super) total_ns: f64,
}

/// From the first byte sent to the first byte of the answer; None without an answer.
fn duration_ns(turn: &DbTurn) -> Option<u64> {
    let no_round_trip = flag::UNFINISHED | flag::CONNECT_FAILED;
    (turn.answered != 0 && turn.flags & no_round_trip == 0)
        .then(|| turn.answered.saturating_sub(turn.sent_first))
}

impl Turns {
    fn of<'a>(requests: usize, turns: impl Iterator<Item = &'a DbTurn>) -> Self {
        let mut sums: BTreeMap<_, Sum> = BTreeMap::new();
        for turn in turns {
            let Some(ns) = duration_ns(turn) else { continue };
            let sum = sums.entry((turn.kind, turn.statement)).or_default();
            sum.count += 1;
            sum.ns += u128::from(ns);
        }
        Self { requests, sums }
    }

    /// How many per request.
    pub(super) fn per_request(&self) -> Option<f64> {
        let count: u64 = self.sums.values().map(|sum| sum.count).sum();
        (self.requests > 0).then(|| count as f64 / self.requests as f64)
    }

    /// Time per request of all, and of those that only set up a connection, milliseconds.
    pub(super) fn time_ms(&self) -> (f64, f64) {
        if self.requests == 0 {
            return (0.0, 0.0);
        }
        let (mut all, mut setup) = (0, 0);
        for ((kind, _), sum) in &self.sums {
            all += sum.ns;
            if kind.is_setup() {
                setup += sum.ns;
            }
        }
        let per_request = |ns: u128| ns as f64 / self.requests as f64 / NS_PER_MS;
        (per_request(all), per_request(setup))
    }

    /// One line per kind and statement, in the order of a connection's life.
    pub(super) fn lines(&self, statements: &[String]) -> Vec<DbRoundTrip> {
        if self.requests == 0 {
            return Vec::new();
        }
        self.sums
            .iter()
            .map(|((kind, statement), sum)| DbRoundTrip {
                kind: kind.name().to_owned(),
                statement: text(statements, *statement),
                per_request: sum.count as f64 / self.requests as f64,
                mean_ms: sum.ns as f64 / sum.count as f64 / NS_PER_MS,
            })
            .collect()
    }
}

fn text(statements: &[String], id: Option<u32>) -> Option<String> {
    statements.get(id? as usize).cloned()
}

/// The round trips that a thread made while held, of whole holds only.
pub(super) fn per_hold(data: &KernelData, whole: &[Whole<'_>]) -> Turns {
    let holds: HashMap<(u64, u32), &Whole<'_>> =
        whole.iter().map(|one| ((one.hold.conn, one.hold.tid), one)).collect();
    let within = |turn: &&DbTurn| {
        holds
            .get(&(turn.held_conn, turn.tid))
            .is_some_and(|one| (one.hold.start..=one.hold.end).contains(&turn.sent_first))
    };
    let requests = whole.iter().map(|one| one.requests as usize).sum();
    Turns::of(requests, data.db_turns.iter().filter(within))
}

/// Round trips answered in the hold, for as many requests as were answered in it.
pub(super) fn per_answer(data: &KernelData, answered: usize, hold: Span) -> Turns {
    Turns::of(answered, data.db_turns.iter().filter(|turn| hold.contains(turn.answered)))
}

/// How long a round trip was open within the hold. One without an answer counts until the end.
fn open_ns(turn: &DbTurn, hold: Span) -> u128 {
    let until = match turn.answered {
        0 if turn.flags & flag::UNFINISHED != 0 => hold.to,
        0 => turn.received_last,
        answered => answered,
    };
    u128::from(hold.overlap(turn.sent_first, until))
}

fn mean_over(total_ns: u128, hold: Span) -> f64 {
    if hold.length() == 0 { 0.0 } else { total_ns as f64 / hold.length() as f64 }
}

/// Round trips open at once, mean over the hold.
pub(super) fn open_mean(data: &KernelData, hold: Span) -> f64 {
    mean_over(data.db_turns.iter().map(|turn| open_ns(turn, hold)).sum(), hold)
}

/// Distinct threads that began one in the hold.
pub(super) fn threads(data: &KernelData, hold: Span) -> usize {
    let begun = data.db_turns.iter().filter(|turn| hold.contains(turn.sent_first));
    begun.map(|turn| turn.tid).collect::<HashSet<_>>().len()
}

/// What the round trips of the hold would take if hardly anybody asked, and which of them loses
/// most by company. A delay on the way is in both sides of that difference, and so in neither.
pub(super) fn alone(data: &KernelData, hold: Span) -> Alone {
    let mut kinds: BTreeMap<(DbKind, Option<u32>), Vec<&DbTurn>> = BTreeMap::new();
    for turn in &data.db_turns {
        kinds.entry((turn.kind, turn.statement)).or_default().push(turn);
    }
    let mut alone = Alone::default();
    let mut most = 0.0;
    for ((kind, statement), turns) in kinds {
        let within = turns.iter().filter(|turn| hold.contains(turn.answered));
        let mut times: Vec<u64> = within.filter_map(|turn| duration_ns(turn)).collect();
        times.sort_unstable();
        let hold_ns = quantile(&times, 0.5);
        let (Some((alone_ns, most_ns)), Some(hold_ns)) = (undisturbed(&turns), hold_ns) else {
            continue;
        };
        let expected = alone_ns as f64 * times.len() as f64;
        let sum = times.iter().map(|&ns| u128::from(ns)).sum::<u128>() as f64;
        alone.total_ns += expected.min(sum);
        if sum - expected > most {
            most = sum - expected;
            alone.dominant = Some(Dominant {
                kind,
                statement: text(&data.statements, statement),
                alone_ms: alone_ns as f64 / NS_PER_MS,
                alone_most_ms: most_ns as f64 / NS_PER_MS,
                hold_ms: hold_ns as f64 / NS_PER_MS,
                mean_ms: sum / times.len() as f64 / NS_PER_MS,
                open_mean: mean_over(turns.iter().map(|turn| open_ns(turn, hold)).sum(), hold),
            });
        }
    }
    alone
}

/// Median and 90th percentile of the first [`FEW`] of the run, when the users were few, or of as many that were sent
/// while the fewest of their kind were open, whichever is less. A median, not the shortest: times
/// scatter, and the shortest of a few says nothing of the others.
fn undisturbed(turns: &[&DbTurn]) -> Option<(u64, u64)> {
    let mut sent: Vec<(u64, u64)> =
        turns.iter().filter_map(|turn| Some((turn.sent_first, duration_ns(turn)?))).collect();
    sent.sort_unstable();
    let mut ends: Vec<u64> = sent.iter().map(|(at, ns)| at + ns).collect();
    ends.sort_unstable();
    let mut by_company: Vec<(usize, u64, u64)> = sent
        .iter()
        .enumerate()
        .map(|(before, &(at, ns))| (before - ends.partition_point(|&end| end <= at), at, ns))
        .collect();
    by_company.sort_unstable();
    let of_few = |times: &mut dyn Iterator<Item = u64>| {
        let mut times: Vec<u64> = times.take(FEW).collect();
        times.sort_unstable();
        Some((quantile(&times, 0.5)?, quantile(&times, 0.9)?))
    };
    let first = of_few(&mut sent.iter().map(|(_, ns)| *ns))?;
    let fewest = of_few(&mut by_company.iter().map(|(_, _, ns)| *ns))?;
    Some(first.min(fewest))
}
