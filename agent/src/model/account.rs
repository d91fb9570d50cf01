//! What a service did in a span of time, told from its own kernel alone: no load generator.
//!
//! A request counts when its record comes: when the next one on its connection is read, or the
//! connection is closed. On kept connections that is one request late.

mod exposition;
mod figures;
pub mod round_trips;
mod slowest;
pub mod stages;
mod sums;
pub mod times;
pub mod workers;

use agent_common::{
    abi::{Request, Turn, flag},
    wire::Window,
};
use hdrhistogram::CreationError;

pub use figures::{Ambiguous, Connections, Depth, Figures, Requests, Summary, Unfinished, Unseen};
pub use slowest::{SlowFigures, SlowTurn};

use super::{
    aggregate::{self, Counters},
    postgres::{Decoded, Decoder},
};
use round_trips::{Statements, duration_ns};
use slowest::Slowest;
use stages::take_apart;
use sums::Sums;
use workers::Workers;

/// Adds up windows, and all of them.
#[derive(Debug)]
pub struct Account {
    start_ns: u64,
    window: Sums,
    total: Sums,
    /// Start and end of the window that was closed last.
    last: (u64, u64),
    decoder: Decoder,
    statements: Statements,
    slowest: Slowest,
    workers: Workers,
    unfinished: Unfinished,
    terminates: u64,
}

impl Account {
    /// Nothing yet, at `start_ns`.
    ///
    /// # Errors
    /// Never in practice: the bounds of the distributions are constant and valid.
    pub fn new(start_ns: u64) -> Result<Self, CreationError> {
        Ok(Self {
            start_ns,
            window: Sums::new()?,
            total: Sums::new()?,
            last: (start_ns, start_ns),
            decoder: Decoder::default(),
            statements: Statements::default(),
            slowest: Slowest::default(),
            workers: Workers::default(),
            unfinished: Unfinished::default(),
            terminates: 0,
        })
    }

    /// A request, over or (at the end of the measurement) not.
    pub fn request(&mut self, request: &Request) {
        if request.flags & flag::UNFINISHED != 0 {
            self.unfinished.add(request);
            return;
        }
        let taken = take_apart(request);
        let whole = taken.is_answered() && !taken.pipelined;
        let shared = whole && self.slowest.request(request, &taken);
        for sums in [&mut self.window, &mut self.total] {
            sums.request(&taken, shared);
        }
    }

    /// A turn on a database connection.
    pub fn turn(&mut self, turn: &Turn) {
        let (kind, text) = match self.decoder.turn(turn) {
            Decoded::RoundTrip { kind, statement } => (kind, statement),
            Decoded::Terminate => {
                self.terminates += 1;
                return;
            }
        };
        let Some(ns) = duration_ns(turn) else { return };
        let statement = self.statements.named(text);
        let nobodys = turn.held_conn == 0 || self.slowest.shared(turn.tid);
        if turn.held_conn != 0 {
            self.slowest.trip(turn, kind, statement, ns);
        }
        for sums in [&mut self.window, &mut self.total] {
            sums.round_trips.record(kind, statement, ns);
            sums.ambiguous.round_trips += u64::from(nobodys);
        }
    }

    /// A window of the service's threads, its accept queue and the losses; several with the same
    /// end belong together. [`Self::close`] is due after the last of them.
    pub fn window(&mut self, window: &Window) {
        let first = window.to_ns != self.last.1;
        self.last = (window.from_ns, window.to_ns);
        let mut threads = workers::RoleTimes::default();
        let mut earlier = workers::RoleTimes::default();
        self.workers.window(window, &mut threads, &mut earlier);
        for sums in [&mut self.window, &mut self.total] {
            sums.window(window, first, &threads);
        }
        self.total.rest.threads.add_all(&earlier);
    }

    /// What happened in the window that [`Self::window`] told of. The next one begins.
    pub fn close(&mut self) -> Figures {
        let figures = self.window.figures(&self.statements, self.seconds(self.last));
        self.window.clear();
        figures
    }

    /// What happened so far.
    #[must_use]
    pub fn total(&self) -> Figures {
        self.total.figures(&self.statements, self.seconds((self.start_ns, self.last.1)))
    }

    /// The slowest requests so far.
    #[must_use]
    pub fn slowest(&self) -> Vec<SlowFigures> {
        self.slowest.figures(&self.statements, self.start_ns)
    }

    /// The end: what happened in all. `counters` are the kernel half's last.
    #[must_use]
    pub fn summary(&self, counters: &Counters, unix_database: Option<String>) -> Summary {
        let odd = self.decoder.oddities();
        let ours = [
            ("database_terminate", self.terminates),
            ("unknown_prepared", odd.unknown_prepared),
            ("undecoded_database_turn", odd.undecoded),
            ("unkept_prepared", odd.unkept_prepared),
        ];
        let kernels = aggregate::nonzero(counters).into_iter().map(|one| (one.name, one.count));
        let ours = ours.into_iter().map(|(name, count)| (name.to_owned(), count));
        Summary {
            figures: self.total(),
            unfinished: self.unfinished,
            slowest: self.slowest(),
            counters: kernels.chain(ours.filter(|(_, count)| *count > 0)).collect(),
            unix_database: unix_database.map(|path| super::text::printable(&path)),
        }
    }

    /// As seconds since the measurement began.
    fn seconds(&self, (from_ns, to_ns): (u64, u64)) -> (f64, f64) {
        let of = |ns: u64| ns.saturating_sub(self.start_ns) as f64 / 1e9;
        (of(from_ns), of(to_ns))
    }
}

#[cfg(test)]
mod tests;
