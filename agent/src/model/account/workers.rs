//! What the threads of the service did with their time.

use std::collections::{BTreeMap, HashMap};

use agent_common::{
    abi::class,
    wire::{ThreadWindow, Window},
};
use serde::Serialize;

/// What a thread is for, told by what it has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// It accepts connections or reads requests.
    Worker,
    /// It asks the database and reads no requests.
    Executor,
}

impl Role {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Worker, Self::Executor];

    /// The name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Executor => "executor",
        }
    }
}

/// Time by [`class`], nanoseconds.
pub type ByClass = [u64; class::COUNT];

/// Time of the threads of each role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoleTimes([ByClass; 2]);

impl RoleTimes {
    /// Of one role.
    #[must_use]
    pub const fn of(&self, role: Role) -> &ByClass {
        &self.0[role as usize]
    }

    fn add(&mut self, role: Role, ns: &ByClass) {
        for (sum, ns) in self.0[role as usize].iter_mut().zip(ns) {
            *sum += ns;
        }
    }

    /// Adds those of another span.
    pub fn add_all(&mut self, other: &Self) {
        Role::ALL.into_iter().for_each(|role| self.add(role, other.of(role)));
    }

    /// What is told of them, over a span of this length.
    #[must_use]
    pub fn figures(&self, span_ns: u64) -> Vec<RoleFigures> {
        let of = |role: Role| {
            let times = self.of(role);
            let total: u64 = times.iter().sum();
            (total > 0).then(|| RoleFigures {
                role: role.name(),
                threads: if span_ns == 0 { 0.0 } else { total as f64 / span_ns as f64 },
                time: shares(times),
            })
        };
        Role::ALL.into_iter().filter_map(of).collect()
    }
}

/// The threads of one role.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoleFigures {
    /// `worker` or `executor`.
    pub role: &'static str,
    /// How many were alive at once, mean.
    pub threads: f64,
    /// Share of their time by wait class; `sleep` is part of `other`.
    pub time: BTreeMap<&'static str, f64>,
}

fn shares(times: &ByClass) -> BTreeMap<&'static str, f64> {
    let total: u64 = times.iter().sum();
    let mut shares = BTreeMap::new();
    for (index, ns) in times.iter().enumerate() {
        let shown = if index == class::SLEEP { class::OTHER } else { index };
        *shares.entry(class::NAMES[shown]).or_insert(0.0) += *ns as f64 / total as f64;
    }
    shares
}

#[derive(Debug)]
struct Thread {
    role: Option<Role>,
    /// Its time before it had a role.
    before: ByClass,
    seen_ns: u64,
}

/// Tells the threads apart.
#[derive(Debug, Default)]
pub struct Workers {
    threads: HashMap<(u32, u32), Thread>,
    last_ns: u64,
}

impl Workers {
    /// Adds the time of a window's threads to `times`, and to `earlier` what threads that get a role
    /// in it did before: that is part of no window, and of the whole.
    pub fn window(&mut self, window: &Window, times: &mut RoleTimes, earlier: &mut RoleTimes) {
        if window.to_ns != self.last_ns {
            // Every live thread is in every window: those that were not in the last one have ended.
            let last_ns = self.last_ns;
            self.threads.retain(|_, thread| thread.seen_ns == last_ns);
            self.last_ns = window.to_ns;
        }
        for seen in &window.threads {
            let key = (seen.tgid, seen.tid);
            let thread = self.threads.entry(key).or_insert_with(|| Thread {
                role: None,
                before: [0; class::COUNT],
                seen_ns: 0,
            });
            thread.seen_ns = window.to_ns;
            thread.role = role(thread.role, seen);
            match thread.role {
                Some(role) => {
                    earlier.add(role, &std::mem::take(&mut thread.before));
                    times.add(role, &seen.ns);
                }
                None => thread.before.iter_mut().zip(seen.ns).for_each(|(sum, ns)| *sum += ns),
            }
        }
    }
}

fn role(before: Option<Role>, seen: &ThreadWindow) -> Option<Role> {
    if before == Some(Role::Worker) || seen.accepts + seen.requests > 0 {
        Some(Role::Worker)
    } else if before == Some(Role::Executor) || seen.db_turns > 0 {
        Some(Role::Executor)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(tid: u32, cpu: u64, sleep: u64) -> ThreadWindow {
        let mut ns = [0; class::COUNT];
        ns[class::CPU] = cpu;
        ns[class::SLEEP] = sleep;
        ThreadWindow {
            tid,
            tgid: 1,
            comm: String::new(),
            ns,
            voluntary: 0,
            involuntary: 0,
            accepts: 0,
            requests: 0,
            db_turns: 0,
        }
    }

    fn window(to_ns: u64, threads: Vec<ThreadWindow>) -> Window {
        Window {
            from_ns: to_ns - 100,
            to_ns,
            threads,
            queue_mean: 0.0,
            queue_max: 0,
            lost: vec![],
            listen_overflows: 0,
            injector_dropped: 0,
            retransmissions: None,
        }
    }

    #[test]
    fn a_thread_that_becomes_a_worker_was_one_before() {
        let (mut workers, mut times) = (Workers::default(), RoleTimes::default());
        let mut earlier = RoleTimes::default();
        workers.window(
            &window(100, vec![thread(2, 30, 70), thread(3, 100, 0)]),
            &mut times,
            &mut earlier,
        );
        assert!(times.figures(100).is_empty(), "nobody has done anything yet");
        let reads = ThreadWindow { requests: 1, ..thread(2, 100, 0) };
        workers.window(&window(200, vec![reads, thread(3, 100, 0)]), &mut times, &mut earlier);
        workers.window(
            &window(300, vec![thread(2, 100, 0), thread(3, 100, 0)]),
            &mut times,
            &mut earlier,
        );
        assert_eq!(earlier.of(Role::Worker).iter().sum::<u64>(), 100);
        times.add_all(&earlier);
        let [worker] = &times.figures(300)[..] else { panic!("{times:?}") };
        assert_eq!((worker.role, worker.threads), ("worker", 1.0));
        assert!((worker.time["cpu"] - 230.0 / 300.0).abs() < 1e-9);
        assert!((worker.time["other"] - 70.0 / 300.0).abs() < 1e-9);
        assert!((worker.time.values().sum::<f64>() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn an_executor_asks_and_does_not_read() {
        let (mut workers, mut times) = (Workers::default(), RoleTimes::default());
        let mut earlier = RoleTimes::default();
        let asks = ThreadWindow { db_turns: 1, ..thread(2, 10, 0) };
        workers.window(&window(100, vec![asks]), &mut times, &mut earlier);
        assert_eq!(times.figures(100)[0].role, "executor");
        assert_eq!(times.of(Role::Worker), &[0; class::COUNT]);
    }

    #[test]
    fn ended_threads_are_forgotten() {
        let (mut workers, mut times) = (Workers::default(), RoleTimes::default());
        let mut earlier = RoleTimes::default();
        for at in 1..1_000_u32 {
            let reads = ThreadWindow { requests: 1, ..thread(at, 1, 0) };
            workers.window(&window(u64::from(at) * 100, vec![reads]), &mut times, &mut earlier);
            assert!(workers.threads.len() <= 2);
        }
        assert_eq!(times.of(Role::Worker)[class::CPU], 999);
    }

    #[test]
    fn the_parts_of_a_window_belong_together() {
        let (mut workers, mut times) = (Workers::default(), RoleTimes::default());
        let mut earlier = RoleTimes::default();
        for at in [100, 200] {
            let requests = u64::from(at == 100);
            for tid in [2, 3] {
                let seen = ThreadWindow { requests, ..thread(tid, 10, 0) };
                workers.window(&window(at, vec![seen]), &mut times, &mut earlier);
            }
        }
        assert_eq!(times.of(Role::Worker)[class::CPU], 40);
    }
}
