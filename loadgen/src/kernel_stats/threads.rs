//! What the worker threads did with their time.

use std::collections::{BTreeMap, HashMap};

use agent_common::{abi::class, wire::Window};

use super::Span;
use crate::report::model::{Model, ThreadGroup};

/// A thread is judged alone if it was there for this share of the hold.
const MOST: f64 = 0.5;

/// What a thread that reads requests did with its time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reader {
    /// Share that it was idle.
    pub idle: f64,
    /// Share that it waited for a lock: for work, in a pool that hands it out behind one.
    pub lock: f64,
}

/// The threads that did the service's work, with their time in the hold.
pub(super) struct Threads {
    list: HashMap<u32, Thread>,
    hold_ns: f64,
    /// Where the last window that reaches into the hold ends.
    until: u64,
}

#[derive(Default)]
struct Thread {
    ns: [f64; class::COUNT],
    accepts: u64,
    requests: u64,
    db_turns: u64,
    /// Where the last window in the hold with it ends.
    until: u64,
}

impl Thread {
    fn total(&self) -> f64 {
        self.ns.iter().sum()
    }

    /// Takes connections or reads requests.
    fn accepts(&self) -> bool {
        self.accepts + self.requests > 0
    }
}

impl Threads {
    /// A thread is a worker if it accepted, read a request or began a round trip at any time in
    /// `run`, which leaves out masters and helpers but not a worker that one long request kept
    /// busy all through the hold. A window that lies partly in the hold counts for that part.
    pub(super) fn of(windows: &[Window], run: Span, hold: Span) -> Self {
        let mut list: HashMap<u32, Thread> = HashMap::new();
        let mut until = 0;
        for window in windows {
            let length = window.to_ns.saturating_sub(window.from_ns);
            if length == 0 || run.overlap(window.from_ns, window.to_ns) == 0 {
                continue;
            }
            let part = hold.overlap(window.from_ns, window.to_ns) as f64 / length as f64;
            if part > 0.0 {
                until = until.max(window.to_ns);
            }
            for seen in &window.threads {
                let thread = list.entry(seen.tid).or_default();
                for (sum, ns) in thread.ns.iter_mut().zip(seen.ns) {
                    *sum += ns as f64 * part;
                }
                if part > 0.0 {
                    thread.until = thread.until.max(window.to_ns);
                }
                thread.accepts += seen.accepts;
                thread.requests += seen.requests;
                thread.db_turns += seen.db_turns;
            }
        }
        list.retain(|_, thread| (thread.accepts() || thread.db_turns > 0) && thread.total() > 0.0);
        Self { list, hold_ns: hold.length() as f64, until }
    }

    /// Threads that accept or read requests: each one's number, its time in the hold in
    /// nanoseconds, and whether it was there to the end.
    pub(super) fn acceptor_times(&self) -> impl Iterator<Item = (u32, f64, bool)> {
        let all = self.list.iter().filter(|(_, thread)| thread.accepts());
        all.map(|(&tid, thread)| (tid, thread.total(), thread.until == self.until))
    }

    /// Such threads alive at once, mean over the hold; at least 1. Workers that are recycled have
    /// many numbers, but no more than their time.
    pub(super) fn acceptors(&self) -> usize {
        let all = self.list.values().filter(|thread| thread.accepts());
        alive(all, self.hold_ns).round().max(1.0) as usize
    }

    /// Threads alive at once, mean over the hold.
    pub(super) fn alive(&self) -> f64 {
        alive(self.list.values(), self.hold_ns)
    }

    /// Threads that read requests and were there for most of the hold.
    pub(super) fn readers(&self) -> Vec<Reader> {
        let there = |thread: &&Thread| thread.requests > 0 && thread.total() >= MOST * self.hold_ns;
        let share = |thread: &Thread, class: usize| thread.ns[class] / thread.total();
        self.list
            .values()
            .filter(there)
            .map(|thread| Reader {
                idle: share(thread, class::IDLE),
                lock: share(thread, class::LOCK),
            })
            .collect()
    }

    /// Whether a thread was there for most of the hold.
    pub(super) fn lasts(&self, tid: u32) -> bool {
        self.list.get(&tid).is_some_and(|thread| thread.total() >= MOST * self.hold_ns)
    }

    /// The threads that read requests as a group, whatever else they do.
    pub(super) fn reading(&self) -> Option<ThreadGroup> {
        let members = || self.list.values().filter(|thread| thread.requests > 0);
        members().next()?;
        Some(ThreadGroup {
            role: "worker".to_owned(),
            threads: alive(members(), self.hold_ns),
            time: shares(members()),
        })
    }

    /// Share of all their time by wait class, `sleep` within `other`.
    pub(super) fn shares(&self) -> BTreeMap<String, f64> {
        let mut shares = shares(self.list.values());
        if let Some(sleep) = shares.remove(class::NAMES[class::SLEEP]) {
            *shares.entry(class::NAMES[class::OTHER].to_owned()).or_insert(0.0) += sleep;
        }
        shares
    }

    /// The threads by what they do. Event loops are what was seen to multiplex.
    pub(super) fn groups(&self, model: Option<Model>, multiplexes: bool) -> Vec<ThreadGroup> {
        let taker = match model {
            Some(Model::Concurrent) if multiplexes => "event_loop",
            _ => "worker",
        };
        [(taker, true), ("executor", false)]
            .into_iter()
            .filter_map(|(role, accepts)| {
                let members = || self.list.values().filter(|thread| thread.accepts() == accepts);
                members().next()?;
                Some(ThreadGroup {
                    role: role.to_owned(),
                    threads: alive(members(), self.hold_ns),
                    time: shares(members()),
                })
            })
            .collect()
    }
}

fn alive<'a>(threads: impl Iterator<Item = &'a Thread>, hold_ns: f64) -> f64 {
    if hold_ns <= 0.0 {
        return 0.0;
    }
    // Windows are read one thread after the other: a thread that lived throughout comes out a hair
    // off one.
    let alive = threads.map(Thread::total).sum::<f64>() / hold_ns;
    if (alive - alive.round()).abs() < 0.02 * alive.max(1.0) { alive.round() } else { alive }
}

fn shares<'a>(threads: impl Iterator<Item = &'a Thread>) -> BTreeMap<String, f64> {
    let mut sums = [0.0; class::COUNT];
    for thread in threads {
        for (sum, ns) in sums.iter_mut().zip(thread.ns) {
            *sum += ns;
        }
    }
    let total: f64 = sums.iter().sum();
    if total <= 0.0 {
        return BTreeMap::new();
    }
    class::NAMES.iter().zip(sums).map(|(name, ns)| ((*name).to_owned(), ns / total)).collect()
}
