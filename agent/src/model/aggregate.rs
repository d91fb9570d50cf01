//! Counters that only grow, as spans: what every thread did and how long the accept queue was
//! between one look and the next.

use std::collections::{HashMap, HashSet};

use agent_common::{
    abi::{QueueGauge, ThreadExit, ThreadTime, class, counter},
    wire::{Count, MAX_BATCH, Retransmissions, ThreadWindow, Window},
};

/// Counters of the kernel half, by [`counter`].
pub type Counters = [u64; counter::COUNT as usize];

/// What was read at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// When.
    pub at_ns: u64,
    /// Every live thread, its open interval closed at `at_ns`.
    pub threads: Vec<ThreadTime>,
    /// The accept queue.
    pub queue: QueueGauge,
    /// Losses and oddities.
    pub counters: Counters,
    /// ListenDrops of the service's namespace, which holds every ListenOverflow; None if unknown.
    pub listen_drops: Option<u64>,
    /// Packets that the injector dropped or let through undelayed.
    pub injector_dropped: u64,
    /// What TCP sent again since the impairment began; None where it is not counted.
    pub retransmissions: Option<Retransmissions>,
}

/// A thread is known by its id and when it was first seen: ids come again.
type Key = (u32, u64);

/// Makes windows of snapshots.
#[derive(Debug)]
pub struct Aggregator {
    last: Snapshot,
    /// What was reported of every live thread. Not the last snapshot itself: an interval that was
    /// still open may be booked differently when it closes, and nothing is reported twice.
    reported: HashMap<Key, ThreadTime>,
    exits: Vec<ThreadTime>,
    gone: HashSet<Key>,
    names: HashMap<Key, String>,
    queue_max: u64,
}

impl Aggregator {
    /// Starts at `first`: what was counted before does not belong to any window.
    #[must_use]
    pub fn new(first: Snapshot) -> Self {
        let reported = first.threads.iter().map(|time| (key(time), *time)).collect();
        Self {
            queue_max: length(&first.queue),
            last: first,
            reported,
            exits: Vec::new(),
            gone: HashSet::new(),
            names: HashMap::new(),
        }
    }

    /// A thread ended; its last counters count in the next window.
    pub fn thread_exit(&mut self, exit: &ThreadExit) {
        self.exits.push(exit.time);
    }

    /// The queue was looked at.
    pub fn sample_queue(&mut self, queue: &QueueGauge) {
        self.queue_max = self.queue_max.max(length(queue));
    }

    /// Start of the window that is open.
    #[must_use]
    pub fn since_ns(&self) -> u64 {
        self.last.at_ns
    }

    /// Closes the window that is open. `name` tells a thread's name from its process and itself;
    /// it is asked once per thread. More than [`MAX_BATCH`] threads come as further windows of the
    /// same span, which hold nothing but threads.
    pub fn close(
        &mut self,
        now: Snapshot,
        mut name: impl FnMut(u32, u32) -> Option<String>,
    ) -> Vec<Window> {
        self.sample_queue(&now.queue);
        let mut threads = Vec::with_capacity(now.threads.len() + self.exits.len());
        for time in std::mem::take(&mut self.exits) {
            threads.extend(self.thread(&time, &mut name));
            self.reported.remove(&key(&time));
            self.names.remove(&key(&time));
            self.gone.insert(key(&time));
        }
        // A snapshot may still hold a thread of which the end was read before.
        let live: HashSet<Key> = now.threads.iter().map(key).collect();
        self.gone.retain(|key| live.contains(key));
        for time in &now.threads {
            if !self.gone.contains(&key(time)) {
                threads.extend(self.thread(time, &mut name));
            }
        }
        threads.sort_unstable_by_key(|thread| (thread.tgid, thread.tid));

        let mut rest = threads.split_off(threads.len().min(MAX_BATCH));
        let first = Window {
            from_ns: self.last.at_ns,
            to_ns: now.at_ns,
            threads,
            queue_mean: self.queue_mean(&now),
            queue_max: std::mem::replace(&mut self.queue_max, length(&now.queue)),
            lost: losses(&self.last.counters, &now.counters),
            listen_overflows: match (self.last.listen_drops, now.listen_drops) {
                (Some(before), Some(after)) => after.saturating_sub(before),
                _ => 0,
            },
            injector_dropped: now.injector_dropped.saturating_sub(self.last.injector_dropped),
            retransmissions: now
                .retransmissions
                .map(|sent| sent.since(self.last.retransmissions.unwrap_or_default())),
        };
        let mut windows = vec![first];
        while !rest.is_empty() {
            let more = rest.split_off(rest.len().min(MAX_BATCH));
            windows.push(Window {
                from_ns: self.last.at_ns,
                to_ns: now.at_ns,
                threads: std::mem::replace(&mut rest, more),
                queue_mean: 0.0,
                queue_max: 0,
                lost: Vec::new(),
                listen_overflows: 0,
                injector_dropped: 0,
                retransmissions: None,
            });
        }
        // A namespace that could not be read this time is measured from the last time it could.
        let listen_drops = now.listen_drops.or(self.last.listen_drops);
        self.last = Snapshot { threads: Vec::new(), listen_drops, ..now };
        windows
    }

    /// What a thread did since it was last reported; None if nothing.
    fn thread(
        &mut self,
        time: &ThreadTime,
        name: &mut impl FnMut(u32, u32) -> Option<String>,
    ) -> Option<ThreadWindow> {
        let before = self.reported.entry(key(time)).or_insert_with(|| ThreadTime {
            tid: time.tid,
            tgid: time.tgid,
            first_seen: time.first_seen,
            ..ThreadTime::default()
        });
        let mut ns = [0; class::COUNT];
        for ((ns, before), now) in ns.iter_mut().zip(&mut before.ns).zip(time.ns) {
            *ns = since(before, now);
        }
        let window = ThreadWindow {
            tid: time.tid,
            tgid: time.tgid,
            comm: String::new(),
            ns,
            voluntary: since(&mut before.voluntary, time.voluntary),
            involuntary: since(&mut before.involuntary, time.involuntary),
            accepts: since(&mut before.accepts, time.accepts),
            requests: since(&mut before.requests, time.requests),
            db_turns: since(&mut before.db_turns, time.db_turns),
        };
        if ns.iter().all(|&ns| ns == 0) {
            return None;
        }
        let comm = self
            .names
            .entry(key(time))
            .or_insert_with(|| name(time.tgid, time.tid).unwrap_or_else(|| "(ended)".to_owned()));
        Some(ThreadWindow { comm: comm.clone(), ..window })
    }

    /// Mean length over time of the queue since the last window, from the difference of the time
    /// integrals (see [`QueueGauge`]).
    fn queue_mean(&self, now: &Snapshot) -> f64 {
        let span = now.at_ns.saturating_sub(self.last.at_ns);
        if span == 0 {
            return 0.0;
        }
        let before = integral(&self.last.queue, self.last.at_ns);
        // The gauge moves while it is read, so an empty queue can come out a hair below zero.
        let area = integral(&now.queue, now.at_ns).wrapping_sub(before) as i64;
        area.max(0) as f64 / span as f64
    }
}

fn key(time: &ThreadTime) -> Key {
    (time.tid, time.first_seen)
}

/// What `counter` grew by; `before` then stands where it was reported to.
fn since(before: &mut u64, now: u64) -> u64 {
    let grown = now.saturating_sub(*before);
    *before = now.max(*before);
    grown
}

/// Connections in the queue.
fn length(queue: &QueueGauge) -> u64 {
    queue.n_in.saturating_sub(queue.n_out)
}

/// Connection-nanoseconds spent in the queue up to `at_ns`, modulo 2^64.
fn integral(queue: &QueueGauge, at_ns: u64) -> u64 {
    at_ns
        .wrapping_mul(queue.n_in.wrapping_sub(queue.n_out))
        .wrapping_sub(queue.sum_in)
        .wrapping_add(queue.sum_out)
}

/// Losses between two looks, by name.
fn losses(before: &Counters, now: &Counters) -> Vec<Count> {
    let grown: Counters = std::array::from_fn(|index| match counter::IS_LOSS[index] {
        true => now[index].saturating_sub(before[index]),
        false => 0,
    });
    nonzero(&grown)
}

/// Every counter that is not zero.
#[must_use]
pub fn nonzero(counters: &Counters) -> Vec<Count> {
    counter::NAMES
        .iter()
        .zip(counters)
        .filter(|(_, count)| **count > 0)
        .map(|(name, count)| Count { name: (*name).to_owned(), count: *count })
        .collect()
}

/// Events lost in all.
#[must_use]
pub fn lost(counters: &Counters) -> u64 {
    counter::IS_LOSS.iter().zip(counters).filter(|(loss, _)| **loss).map(|(_, count)| count).sum()
}

#[cfg(test)]
mod tests;
