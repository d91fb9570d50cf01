//! The slowest requests, each with the database round trips that its thread made meanwhile.

use std::collections::{HashMap, VecDeque};

use agent_common::{
    abi::{Request, Turn},
    wire::{self, DbKind},
};
use serde::Serialize;

use super::{
    round_trips::{Statement, Statements},
    stages::{PerStage, Taken},
};

/// Requests kept.
const KEPT: usize = 10;
/// Round trips kept of one request.
const MAX_TURNS: usize = 64;
/// Round trips remembered until the record of their request comes.
const RECENT_TURNS: usize = 8_192;
/// Threads of which the last requests are remembered, to see whether they overlap.
const MAX_THREADS: usize = 4_096;
/// Requests remembered of each thread.
const RECENT_REQUESTS: usize = 16;
const NS_PER_MS: f64 = 1e6;

/// A slow request, in milliseconds from its beginning.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlowFigures {
    /// When it began, seconds since the measurement did.
    pub at_s: f64,
    /// Its client.
    pub client: String,
    /// Thread that read it.
    pub tid: u32,
    /// From its connection's establishment (on a kept connection, its first byte's arrival) to the
    /// last byte of the response.
    pub total_ms: f64,
    /// How long it was in each stage.
    pub stages_ms: PerStage<Option<f64>>,
    /// The round trips that its thread made for it; null where the thread had several requests at
    /// once, so that nobody can tell whose they were.
    pub database: Option<Vec<SlowTurn>>,
    /// Round trips beyond those that are listed.
    pub more_round_trips: u64,
}

/// A round trip of a slow request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlowTurn {
    /// Kind.
    pub kind: &'static str,
    /// Text, as in the sums.
    pub statement: Option<String>,
    /// When it began, milliseconds since the request did.
    pub from_ms: f64,
    /// How long it took, milliseconds.
    pub ms: f64,
}

#[derive(Clone, Copy, Debug)]
struct Trip {
    conn: u64,
    tid: u32,
    kind: DbKind,
    statement: Statement,
    from_ns: u64,
    ns: u64,
}

#[derive(Clone, Debug)]
struct Slow {
    request: Request,
    stages: PerStage<Option<u64>>,
    from_ns: u64,
    trips: Vec<Trip>,
    more: u64,
}

impl Slow {
    fn total_ns(&self) -> u64 {
        self.request.s5.saturating_sub(self.from_ns)
    }

    /// Takes a round trip if the thread made it for this request, as far as one can tell.
    fn offer(&mut self, trip: &Trip) {
        let within = (self.request.s3..=self.request.s5).contains(&trip.from_ns);
        if trip.conn != self.request.conn || trip.tid != self.request.tid || !within {
            return;
        }
        if self.trips.len() < MAX_TURNS {
            self.trips.push(*trip);
        } else {
            self.more += 1;
        }
    }
}

/// Finds the slowest requests.
#[derive(Debug, Default)]
pub(super) struct Slowest {
    /// The slowest first.
    kept: Vec<Slow>,
    recent: VecDeque<Trip>,
    threads: HashMap<u32, Thread>,
}

/// The last requests of a thread, from read to answer.
#[derive(Debug, Default)]
struct Thread {
    requests: VecDeque<(u64, u64, u64)>,
    /// It had several at once.
    shared: bool,
}

impl Slowest {
    /// Takes a round trip of a thread while it held a connection. They may come before or after the
    /// request that they belong to.
    pub(super) fn trip(&mut self, turn: &Turn, kind: DbKind, statement: Statement, ns: u64) {
        let trip = Trip {
            conn: turn.held_conn,
            tid: turn.tid,
            kind,
            statement,
            from_ns: turn.sent_first,
            ns,
        };
        self.kept.iter_mut().for_each(|slow| slow.offer(&trip));
        if self.recent.len() == RECENT_TURNS {
            self.recent.pop_front();
        }
        self.recent.push_back(trip);
    }

    /// Takes an answered request. Whether its thread had another one at the same time.
    pub(super) fn request(&mut self, request: &Request, taken: &Taken) -> bool {
        let shared = self.overlaps(request);
        let from_ns = match taken.ns.accept_queue {
            Some(_) => request.s0,
            None if taken.unseen_first_byte || taken.unseen_accept => request.s3,
            None => request.s1,
        };
        let mut slow =
            Slow { request: *request, stages: taken.ns, from_ns, trips: Vec::new(), more: 0 };
        let place = self.kept.partition_point(|other| other.total_ns() >= slow.total_ns());
        if place < KEPT {
            self.recent.iter().for_each(|trip| slow.offer(trip));
            self.kept.insert(place, slow);
            self.kept.truncate(KEPT);
        }
        shared
    }

    fn overlaps(&mut self, request: &Request) -> bool {
        if self.threads.len() >= MAX_THREADS && !self.threads.contains_key(&request.tid) {
            self.threads.clear();
        }
        let thread = self.threads.entry(request.tid).or_default();
        let overlaps = thread
            .requests
            .iter()
            .any(|&(conn, s3, s5)| conn != request.conn && s3 < request.s5 && request.s3 < s5);
        thread.shared |= overlaps;
        if thread.requests.len() == RECENT_REQUESTS {
            thread.requests.pop_front();
        }
        thread.requests.push_back((request.conn, request.s3, request.s5));
        overlaps
    }

    /// Whether a thread was seen to have several requests at once.
    pub(super) fn shared(&self, tid: u32) -> bool {
        self.threads.get(&tid).is_some_and(|thread| thread.shared)
    }

    /// What is told of them, the slowest first; times count from `start_ns`.
    pub(super) fn figures(&self, statements: &Statements, start_ns: u64) -> Vec<SlowFigures> {
        self.kept.iter().map(|slow| self.tell(slow, statements, start_ns)).collect()
    }

    fn tell(&self, slow: &Slow, statements: &Statements, start_ns: u64) -> SlowFigures {
        let ms = |ns: u64| ns as f64 / NS_PER_MS;
        let tuple = &slow.request.tuple;
        let mut trips = slow.trips.clone();
        trips.sort_by_key(|trip| trip.from_ns);
        let turn = |trip: &Trip| SlowTurn {
            kind: trip.kind.name(),
            statement: statements.text(trip.statement).map(str::to_owned),
            from_ms: ms(trip.from_ns.saturating_sub(slow.from_ns)),
            ms: ms(trip.ns),
        };
        let shared = self.shared(slow.request.tid);
        SlowFigures {
            // A kept connection may have had its byte before the measurement began.
            at_s: (i128::from(slow.from_ns) - i128::from(start_ns)) as f64 / 1e9,
            client: wire::address(tuple.remote, tuple.remote_port).to_string(),
            tid: slow.request.tid,
            total_ms: ms(slow.total_ns()),
            stages_ms: slow.stages.map(|ns| ns.map(ms)),
            database: (!shared).then(|| trips.iter().map(turn).collect()),
            more_round_trips: if shared { 0 } else { slow.more },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::account::stages::take_apart;

    fn request(conn: u64, tid: u32, s3: u64, s5: u64) -> Request {
        Request { conn, tid, s0: s3 - 20, s2: s3 - 10, s1: s3 - 5, s3, s5, ..Request::default() }
    }

    fn turn(held_conn: u64, tid: u32, sent_first: u64) -> Turn {
        Turn {
            kind: 0,
            flags: 0,
            conn: 99,
            tuple: agent_common::abi::Tuple::default(),
            ordinal: 0,
            tid,
            held_conn,
            sent_first,
            sent_last: 0,
            answered: 0,
            received_last: 0,
            tx_bytes: 0,
            rx_bytes: 0,
            payload_len: 0,
            answer_len: 0,
            payload: [0; agent_common::abi::PAYLOAD_LEN],
            answer: [0; agent_common::abi::ANSWER_LEN],
        }
    }

    fn take(slowest: &mut Slowest, request: &Request) -> bool {
        slowest.request(request, &take_apart(request))
    }

    #[test]
    fn the_slowest_are_kept_in_order() {
        let mut slowest = Slowest::default();
        for length in (1..=50).rev().chain(51..=100) {
            take(&mut slowest, &request(length, 1, 1_000 * length, 1_000 * length + length));
        }
        let figures = slowest.figures(&Statements::default(), 0);
        let totals: Vec<f64> = figures.iter().map(|slow| slow.total_ms * NS_PER_MS).collect();
        let expected: Vec<f64> = (0..KEPT as u64).map(|at| (120 - at) as f64).collect();
        assert_eq!(totals, expected);
    }

    #[test]
    fn round_trips_find_their_request_early_and_late() {
        let mut slowest = Slowest::default();
        let statements = Statements::default();
        let trip = |slowest: &mut Slowest, conn, tid, at| {
            slowest.trip(&turn(conn, tid, at), DbKind::Query, Statement::None, 5);
        };
        trip(&mut slowest, 7, 1, 110);
        // Another connection's, another thread's, and one that closes up after the answer.
        trip(&mut slowest, 8, 1, 120);
        trip(&mut slowest, 7, 2, 130);
        trip(&mut slowest, 7, 1, 400);
        assert!(!take(&mut slowest, &request(7, 1, 100, 300)));
        trip(&mut slowest, 7, 1, 200);
        let [slow] = &slowest.figures(&statements, 0)[..] else { panic!("{slowest:?}") };
        let from: Vec<f64> =
            slow.database.as_ref().unwrap().iter().map(|t| t.from_ms * NS_PER_MS).collect();
        assert_eq!(from, [30.0, 120.0], "counted from s0");
        assert_eq!(slow.stages_ms.service, Some(200.0 / NS_PER_MS));
    }

    #[test]
    fn a_thread_with_several_requests_at_once_makes_nobodys_round_trips() {
        let mut slowest = Slowest::default();
        slowest.trip(&turn(7, 1, 110), DbKind::Query, Statement::None, 5);
        assert!(!take(&mut slowest, &request(7, 1, 100, 300)));
        assert!(!take(&mut slowest, &request(9, 2, 100, 300)), "another thread");
        assert!(take(&mut slowest, &request(8, 1, 200, 400)));
        let figures = slowest.figures(&Statements::default(), 0);
        let told: Vec<_> = figures.iter().map(|slow| (slow.tid, slow.database.is_some())).collect();
        assert_eq!(told.iter().filter(|one| **one == (1, false)).count(), 2, "{told:?}");
        assert!(told.contains(&(2, true)));
    }

    #[test]
    fn memory_is_bounded() {
        let mut slowest = Slowest::default();
        for at in 0..20_000_u32 {
            slowest.trip(&turn(1, 1, 60), DbKind::Query, Statement::None, 5);
            take(&mut slowest, &request(1, at, 50, 100));
        }
        assert!(slowest.recent.len() <= RECENT_TURNS && slowest.threads.len() <= MAX_THREADS);
        assert!(slowest.kept.iter().all(|slow| slow.trips.len() <= MAX_TURNS));
    }
}
