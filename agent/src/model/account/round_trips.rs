//! Database round trips by kind and statement, in bounded memory.

use std::collections::{BTreeMap, HashMap};

use agent_common::{
    abi::{Turn, flag},
    wire::DbKind,
};
use serde::Serialize;

use crate::model::text;

/// Different statements that are told apart. What comes later counts under [`OTHERS`].
pub const MAX_STATEMENTS: usize = 500;
/// Lines that are told of; the rest, by kind, under [`OTHERS`].
const MAX_LINES: usize = 40;
/// The name of the statements that have none of their own.
pub const OTHERS: &str = "(other statements)";
const NS_PER_MS: f64 = 1e6;

/// A statement that round trips are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Statement {
    /// None was seen.
    None,
    /// One of those in [`Statements`].
    Known(u32),
    /// One of too many.
    Other,
}

/// The texts of statements.
#[derive(Debug, Default)]
pub struct Statements {
    ids: HashMap<String, u32>,
    texts: Vec<String>,
}

impl Statements {
    /// The statement with this text, which may hold anything; told apart and kept as a terminal may
    /// be given it.
    pub fn named(&mut self, text: Option<String>) -> Statement {
        let Some(text) = text.map(|text| text::printable(&text)) else { return Statement::None };
        if let Some(id) = self.ids.get(&text) {
            return Statement::Known(*id);
        }
        if self.texts.len() == MAX_STATEMENTS {
            return Statement::Other;
        }
        let id = self.texts.len() as u32;
        self.texts.push(text.clone());
        self.ids.insert(text, id);
        Statement::Known(id)
    }

    /// Its text.
    #[must_use]
    pub fn text(&self, statement: Statement) -> Option<&str> {
        match statement {
            Statement::None => None,
            Statement::Known(id) => self.texts.get(id as usize).map(String::as_str),
            Statement::Other => Some(OTHERS),
        }
    }
}

/// From the first byte sent to the first byte of the answer read; None without an answer.
#[must_use]
pub fn duration_ns(turn: &Turn) -> Option<u64> {
    let no_round_trip = flag::UNFINISHED | flag::CONNECT_FAILED;
    (turn.answered != 0 && turn.flags & no_round_trip == 0)
        .then(|| turn.answered.saturating_sub(turn.sent_first))
}

/// Round trips by kind and statement.
#[derive(Clone, Debug, Default)]
pub struct RoundTrips {
    sums: BTreeMap<(DbKind, Statement), Sum>,
}

/// Round trips of one kind and statement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// How many.
    pub count: u64,
    /// All of them, nanoseconds.
    pub total_ns: u128,
    /// The largest, nanoseconds.
    pub max_ns: u64,
}

impl Sum {
    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.total_ns += other.total_ns;
        self.max_ns = self.max_ns.max(other.max_ns);
    }
}

/// What is told of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RoundTripFigures {
    /// How many.
    pub round_trips: u64,
    /// How many for each answered request; null where there was none.
    pub per_request: Option<f64>,
    /// Time in them for each answered request, milliseconds.
    pub ms_per_request: Option<f64>,
    /// Time in all of them, milliseconds.
    pub total_ms: f64,
    /// By kind and statement, what took most time first.
    pub by_statement: Vec<StatementFigures>,
}

/// Round trips of one kind and statement.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StatementFigures {
    /// Kind.
    pub kind: &'static str,
    /// Text, literals removed, control characters escaped; null where none was seen.
    pub statement: Option<String>,
    /// How many.
    pub count: u64,
    /// How many for each answered request.
    pub per_request: Option<f64>,
    /// Time in all of them, milliseconds.
    pub total_ms: f64,
    /// Mean, milliseconds.
    pub mean_ms: f64,
    /// Largest, milliseconds.
    pub max_ms: f64,
}

impl RoundTrips {
    /// Counts one.
    pub fn record(&mut self, kind: DbKind, statement: Statement, ns: u64) {
        let one = Sum { count: 1, total_ns: u128::from(ns), max_ns: ns };
        self.sums.entry((kind, statement)).or_default().add(&one);
    }

    /// Those of each kind and statement.
    pub fn sums(&self) -> impl Iterator<Item = (DbKind, Statement, &Sum)> {
        self.sums.iter().map(|((kind, statement), sum)| (*kind, *statement, sum))
    }

    /// What they are, for so many answered requests.
    #[must_use]
    pub fn figures(&self, statements: &Statements, answered: u64) -> RoundTripFigures {
        let per = |amount: f64| (answered > 0).then(|| amount / answered as f64);
        let ms = |ns: u128| ns as f64 / NS_PER_MS;
        let mut all = Sum::default();
        self.sums.values().for_each(|sum| all.add(sum));

        let mut lines: Vec<_> = self.sums.iter().map(|(key, sum)| (*key, *sum)).collect();
        lines.sort_by_key(|(key, sum)| (std::cmp::Reverse(sum.total_ns), *key));
        let mut rest: BTreeMap<(DbKind, Statement), Sum> = BTreeMap::new();
        for ((kind, _), sum) in lines.split_off(lines.len().min(MAX_LINES)) {
            rest.entry((kind, Statement::Other)).or_default().add(&sum);
        }
        lines.extend(rest);
        let by_statement = lines
            .into_iter()
            .map(|((kind, statement), sum)| StatementFigures {
                kind: kind.name(),
                statement: statements.text(statement).map(str::to_owned),
                count: sum.count,
                per_request: per(sum.count as f64),
                total_ms: ms(sum.total_ns),
                mean_ms: ms(sum.total_ns) / sum.count as f64,
                max_ms: sum.max_ns as f64 / NS_PER_MS,
            })
            .collect();
        RoundTripFigures {
            round_trips: all.count,
            per_request: per(all.count as f64),
            ms_per_request: per(ms(all.total_ns)),
            total_ms: ms(all.total_ns),
            by_statement,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_by_time_and_per_request() {
        let (mut trips, mut statements) = (RoundTrips::default(), Statements::default());
        let select = statements.named(Some("select $1\u{1b}[2J".into()));
        for ns in [2_000_000, 4_000_000] {
            trips.record(DbKind::Query, select, ns);
        }
        trips.record(DbKind::TcpConnect, Statement::None, 1_000_000);
        let figures = trips.figures(&statements, 2);
        assert_eq!((figures.round_trips, figures.per_request), (3, Some(1.5)));
        assert_eq!((figures.total_ms, figures.ms_per_request), (7.0, Some(3.5)));
        let first = &figures.by_statement[0];
        assert_eq!(first.statement.as_deref(), Some("select $1\\u{1b}[2J"));
        assert_eq!((first.count, first.mean_ms, first.max_ms), (2, 3.0, 4.0));
        assert_eq!(figures.by_statement[1].kind, "tcp_connect");
        assert_eq!(trips.figures(&statements, 0).per_request, None);
    }

    proptest! {
        /// However many statements there are, memory and lines are bounded and nothing is lost.
        #[test]
        fn no_round_trip_is_lost(
            texts in proptest::collection::vec((0..2_000_u32, 0..1_000_000_u64), 1..1_500),
        ) {
            let (mut trips, mut statements) = (RoundTrips::default(), Statements::default());
            for (text, ns) in &texts {
                let statement = statements.named(Some(format!("select {text}")));
                trips.record(DbKind::Query, statement, *ns);
            }
            let figures = trips.figures(&statements, 1);
            prop_assert!(statements.texts.len() <= MAX_STATEMENTS);
            prop_assert!(figures.by_statement.len() <= MAX_LINES + 1);
            prop_assert_eq!(figures.round_trips, texts.len() as u64);
            let counts: u64 = figures.by_statement.iter().map(|line| line.count).sum();
            prop_assert_eq!(counts, texts.len() as u64);
            let total: f64 = figures.by_statement.iter().map(|line| line.total_ms).sum();
            prop_assert!((total - figures.total_ms).abs() < 1e-6);
        }
    }
}
