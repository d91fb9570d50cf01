//! Database round trips.

use std::collections::{BTreeMap, HashMap, HashSet};

use agent_common::{
    abi::flag,
    wire::{DbKind, DbTurn},
};

use super::{NS_PER_MS, Span, holds::Whole};
use crate::{record::KernelData, report::model::DbRoundTrip};

/// First round trips of a kind that show what it takes while hardly anybody is there.
const FIRST: usize = 10;

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

/// The round trip that took most time in all.
#[derive(Clone, Debug, PartialEq)]
pub struct Dominant {
    /// Kind.
    pub kind: DbKind,
    /// Normalised text, if it has one.
    pub statement: Option<String>,
    /// The shortest of the first ones of the run, milliseconds.
    pub first_ms: f64,
    /// Mean in the hold, milliseconds.
    pub hold_ms: f64,
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

/// Round trips open at once, mean over the hold. One without an answer counts until the end.
pub(super) fn open_mean(data: &KernelData, hold: Span) -> f64 {
    if hold.length() == 0 {
        return 0.0;
    }
    let open = |turn: &DbTurn| {
        let until = match turn.answered {
            0 if turn.flags & flag::UNFINISHED != 0 => hold.to,
            0 => turn.received_last,
            answered => answered,
        };
        u128::from(hold.overlap(turn.sent_first, until))
    };
    data.db_turns.iter().map(open).sum::<u128>() as f64 / hold.length() as f64
}

/// Distinct threads that began one in the hold.
pub(super) fn threads(data: &KernelData, hold: Span) -> usize {
    let begun = data.db_turns.iter().filter(|turn| hold.contains(turn.sent_first));
    begun.map(|turn| turn.tid).collect::<HashSet<_>>().len()
}

/// The kind and statement that took most time in the hold, and what it took when the run began.
pub(super) fn dominant(data: &KernelData, hold: Span) -> Option<Dominant> {
    let all = Turns::of(1, data.db_turns.iter().filter(|turn| hold.contains(turn.answered)));
    let ((kind, statement), sum) = all.sums.iter().max_by_key(|(_, sum)| sum.ns)?;
    let mut same: Vec<(u64, u64)> = data
        .db_turns
        .iter()
        .filter(|turn| turn.kind == *kind && turn.statement == *statement)
        .filter_map(|turn| Some((turn.sent_first, duration_ns(turn)?)))
        .collect();
    same.sort_unstable();
    let first = same.iter().take(FIRST).map(|(_, ns)| *ns).min()?;
    Some(Dominant {
        kind: *kind,
        statement: text(&data.statements, *statement),
        first_ms: first as f64 / NS_PER_MS,
        hold_ms: sum.ns as f64 / sum.count as f64 / NS_PER_MS,
    })
}
