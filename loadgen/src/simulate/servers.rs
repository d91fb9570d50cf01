//! Servers that work through a load.

use std::{cmp::Reverse, collections::BinaryHeap};

use agent_common::{
    abi::class,
    wire::{self, DbKind, ServerRequest},
};

use super::{FIRST_EXECUTOR, FIRST_WORKER, Load, START, Step, TICK, sim::Sim};
use crate::record::RunData;

impl Load {
    /// Runs it against `workers` that take one connection at a time.
    pub(crate) fn one_at_a_time(&self, workers: usize) -> RunData {
        let mut sim = Sim::new(self);
        let mut free: Vec<u64> = vec![START; workers];
        let mut arrivals = sim.first_arrivals();
        while let Some(Reverse((c0, user))) = arrivals.pop() {
            if c0 >= sim.end {
                continue;
            }
            let mut request = sim.connect(user, c0);
            let worker = (0..workers).min_by_key(|&worker| free[worker]).unwrap();
            let tid = FIRST_WORKER + worker as u32;
            let s2 = request.s0.max(free[worker]) + TICK;
            request.s2 = s2;
            request.s3 = s2.max(request.s1) + TICK;
            sim.segment(tid, class::CPU, s2, request.s3);
            let mut now = request.s3;
            let mut ns = [0; class::COUNT];
            for (step, what) in self.steps.iter().enumerate() {
                let (class, until) = match *what {
                    Step::Spend(class, ns) => (class, now + ns),
                    Step::Turn(kind, statement, ns) => {
                        let until = now + ns + self.delay;
                        let conn = request.conn;
                        sim.turn(
                            tid,
                            conn,
                            conn + 1_000_000,
                            step,
                            (kind, statement),
                            (now, until),
                        );
                        (class::DATABASE, until)
                    }
                };
                sim.segment(tid, class, now, until);
                ns[class] += until - now;
                now = until;
            }
            request.s4 = now;
            request.s5 = now + TICK;
            let end = request.s5 + TICK;
            sim.segment(tid, class::CPU, now, end);
            ns[class::CPU] += end - now + (request.s3 - s2);
            free[worker] = end;
            if end <= sim.end {
                let conn = request.conn;
                sim.kernel.holds.push(wire::Hold { tid, conn, start: s2, end, ns });
            }
            sim.seen.push((tid, s2, 1, 1, self.turns() as u64));
            arrivals.push(Reverse((sim.answer(&request, tid) + TICK, user)));
        }
        let tids: Vec<u32> = (0..workers as u32).map(|worker| FIRST_WORKER + worker).collect();
        sim.finish(&tids)
    }

    /// Runs it on one event loop that hands database work to a thread per request. The database
    /// answers queries one after the other; what the loop computes is done one after the other.
    pub(crate) fn concurrent(&self) -> RunData {
        let mut sim = Sim::new(self);
        let (mut loop_free, mut database_free) = (START, START);
        let mut requests: Vec<(ServerRequest, u32)> = Vec::new();
        // When, then a new user's request (index past the end) or a step of a known one.
        let mut events: BinaryHeap<Reverse<(u64, usize, usize, u32)>> = sim
            .first_arrivals()
            .into_iter()
            .map(|Reverse((c0, user))| Reverse((c0, usize::MAX, 0, user)))
            .collect();
        while let Some(Reverse((now, index, step, user))) = events.pop() {
            if now >= sim.end {
                continue;
            }
            if index == usize::MAX {
                let request = sim.connect(user, now);
                requests.push((request, user));
                events.push(Reverse((request.s1, requests.len() - 1, 0, user)));
                continue;
            }
            let executor = FIRST_EXECUTOR + index as u32;
            let request = &mut requests[index].0;
            if step == 0 && request.s3 == 0 {
                let at = now.max(loop_free);
                let new = request.ordinal == 0;
                if new {
                    request.s2 = at + TICK;
                }
                request.s3 = at + 2 * TICK;
                loop_free = at + 2 * TICK;
                sim.segment(FIRST_WORKER, class::CPU, at, loop_free);
                let hold = wire::Hold {
                    tid: FIRST_WORKER,
                    conn: request.conn,
                    start: request.s2,
                    end: request.s2 + 1,
                    ns: [0; class::COUNT],
                };
                if new {
                    sim.kernel.holds.push(hold);
                }
                sim.seen.push((FIRST_WORKER, at, u64::from(new), 1, 0));
            }
            let now = now.max(request.s3);
            let until = match self.steps.get(step) {
                Some(&Step::Spend(class::CPU, ns)) => {
                    let at = now.max(loop_free);
                    loop_free = at + ns;
                    sim.segment(FIRST_WORKER, class::CPU, at, loop_free);
                    loop_free
                }
                Some(&Step::Spend(class, ns)) => {
                    sim.segment(executor, class, now, now + ns);
                    now + ns
                }
                Some(&Step::Turn(kind, statement, ns)) => {
                    let arrives = now + self.delay;
                    let until = if kind == DbKind::Query {
                        database_free = database_free.max(arrives) + ns;
                        database_free
                    } else {
                        arrives + ns
                    };
                    let conn = index as u64 + 1_000_000;
                    sim.turn(executor, 0, conn, step, (kind, statement), (now, until));
                    sim.segment(executor, class::DATABASE, now, until);
                    sim.seen.push((executor, now, 0, 0, 1));
                    until
                }
                None => {
                    request.s4 = now;
                    request.s5 = now + TICK;
                    let request = *request;
                    let next = sim.answer(&request, FIRST_WORKER) + TICK;
                    events.push(Reverse((next, usize::MAX, 0, user)));
                    continue;
                }
            };
            events.push(Reverse((until, index, step + 1, user)));
        }
        for (request, _) in requests.iter().filter(|(request, _)| request.s5 == 0) {
            sim.answer(request, FIRST_WORKER);
        }
        sim.finish(&[FIRST_WORKER])
    }
}
