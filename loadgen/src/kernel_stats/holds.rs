//! The times that worker threads were held by one connection.

use std::collections::{BTreeMap, HashMap};

use agent_common::{abi::class, wire};

use super::{CONCURRENT, MIN_REQUESTS, NS_PER_MS, ONE_AT_A_TIME, Span, threads::Threads};
use crate::{
    client_stats::quantile,
    record::KernelData,
    report::model::{Held, Model},
};

/// All holds, and whether they cover what the service does for a request.
pub(super) struct Holds<'a> {
    all: &'a [wire::Hold],
    unfinished: &'a [wire::ServerRequest],
    hold: Span,
    /// Requests answered within each hold, in its order.
    requests: Vec<u32>,
    covered: usize,
    answered: usize,
}

/// A hold that lies within the hold of the run and in which requests were answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whole<'a> {
    pub(super) hold: &'a wire::Hold,
    pub(super) requests: u32,
}

impl<'a> Holds<'a> {
    pub(super) fn of(data: &'a KernelData, hold: Span) -> Self {
        let mut by_connection: HashMap<u64, Vec<usize>> = HashMap::new();
        for (index, one) in data.holds.iter().enumerate() {
            by_connection.entry(one.conn).or_default().push(index);
        }
        let mut requests = vec![0; data.holds.len()];
        let (mut covered, mut answered) = (0, 0);
        for request in data.requests.iter().filter(|request| hold.contains(request.s5)) {
            answered += 1;
            let candidates = by_connection.get(&request.conn).map_or(&[][..], Vec::as_slice);
            let covering = candidates.iter().find(|&&index| {
                let one = &data.holds[index];
                one.tid == request.tid && one.start <= request.s3 && request.s5 <= one.end
            });
            if let Some(&index) = covering {
                covered += 1;
                requests[index] += 1;
            }
        }
        let unfinished = &data.unfinished;
        Self { all: &data.holds, unfinished, hold, requests, covered, answered }
    }

    /// How the service works, told by whether holds cover requests from read to answer.
    pub(super) fn model(&self) -> Option<Model> {
        if self.answered < MIN_REQUESTS {
            return None;
        }
        let share = self.covered as f64 / self.answered as f64;
        if share >= ONE_AT_A_TIME {
            Some(Model::OneAtATime)
        } else if share <= CONCURRENT {
            Some(Model::Concurrent)
        } else {
            None
        }
    }

    pub(super) fn whole(&self) -> Vec<Whole<'a>> {
        let within = |one: &wire::Hold| one.start >= self.hold.from && one.end <= self.hold.to;
        self.all
            .iter()
            .zip(&self.requests)
            .filter(|(one, requests)| **requests > 0 && within(one))
            .map(|(hold, &requests)| Whole { hold, requests })
            .collect()
    }

    /// Share of their time that the threads which accept were held. The last hold of a thread has
    /// no end yet when the run ends: a thread with an unfinished request is held from that one's
    /// accept on (on a kept connection, from its first read on). Of any other that lives to the end,
    /// the time after its last known hold counts by the share so far.
    pub(super) fn held_share(&self, threads: &Threads) -> f64 {
        let mut held: HashMap<u32, (u64, u64)> = HashMap::new();
        for one in self.all {
            let (sum, until) = held.entry(one.tid).or_insert((0, self.hold.from));
            *sum += self.hold.overlap(one.start, one.end);
            *until = (*until).max(one.end.min(self.hold.to));
        }
        for request in self.unfinished.iter().filter(|request| request.s2 != 0) {
            let from = if request.ordinal == 0 { request.s2 } else { request.s3 };
            if from == 0 || from > self.hold.to {
                continue;
            }
            let (sum, until) = held.entry(request.tid).or_insert((0, self.hold.from));
            // One at a time: what was before the last known hold ended is in it.
            *sum += self.hold.overlap(from.max(*until), self.hold.to);
            *until = self.hold.to;
        }
        let (mut held_ns, mut alive_ns) = (0.0, 0.0);
        for (tid, alive, to_the_end) in threads.acceptor_times() {
            alive_ns += alive;
            let Some(&(sum, until)) = held.get(&tid) else { continue };
            let rest = if to_the_end { (self.hold.to - until) as f64 } else { 0.0 };
            let known = alive - rest;
            let share = if known > 0.0 { (sum as f64 / known).min(1.0) } else { 0.0 };
            held_ns += sum as f64 + share * rest;
        }
        if alive_ns > 0.0 { held_ns / alive_ns } else { 0.0 }
    }
}

fn per_request(whole: &Whole<'_>) -> u64 {
    (whole.hold.end - whole.hold.start) / u64::from(whole.requests)
}

/// Distribution of the time held per request.
pub(super) fn held(whole: &[Whole<'_>]) -> Option<Held> {
    let mut times: Vec<u64> = whole.iter().map(per_request).collect();
    times.sort_unstable();
    let at = |share| quantile(&times, share).map(|ns| ns as f64 / NS_PER_MS);
    Some(Held { mean: mean(whole, |hold| hold.end - hold.start)?, p50: at(0.5)?, p99: at(0.99)? })
}

/// Mean time held per request by wait class.
pub(super) fn by_class(whole: &[Whole<'_>]) -> Option<BTreeMap<String, f64>> {
    class::NAMES
        .iter()
        .enumerate()
        .map(|(index, name)| Some(((*name).to_owned(), mean(whole, |hold| hold.ns[index])?)))
        .collect()
}

/// Mean of `ns` per request in milliseconds.
fn mean(whole: &[Whole<'_>], ns: impl Fn(&wire::Hold) -> u64) -> Option<f64> {
    let requests: u64 = whole.iter().map(|one| u64::from(one.requests)).sum();
    let total: u128 = whole.iter().map(|one| u128::from(ns(one.hold))).sum();
    (requests > 0).then(|| total as f64 / requests as f64 / NS_PER_MS)
}
