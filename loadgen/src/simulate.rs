//! Small simulated servers that leave behind exactly what a run would: tests know every mark, and
//! so what the analysis has to say.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use agent_common::{
    abi::{class, flag},
    wire::{self, DbKind, DbTurn, ServerRequest, ThreadWindow, Window},
};

use crate::record::{Beyond, KernelData, Outcome, RequestRecord, RunData, RunSpec};

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000 * MS;
/// One way between client and service, undelayed.
pub(crate) const NET: u64 = 30_000;
/// What a hook or a wake-up takes.
pub(crate) const TICK: u64 = 5_000;
const START: u64 = 1_000 * SECOND;
const TX: u64 = 120;
const RX: u64 = 4_096;
const MASTER: u32 = 100;
const FIRST_WORKER: u32 = 101;
const FIRST_EXECUTOR: u32 = 10_000;

/// Something that a worker does for a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Spends time in a wait class.
    Spend(usize, u64),
    /// A database round trip: kind, statement, time that the database takes.
    Turn(DbKind, Option<u32>, u64),
}

/// A closed-loop run.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) name: &'static str,
    pub(crate) setup: &'static str,
    pub(crate) users: u32,
    pub(crate) ramp_per_s: f64,
    pub(crate) hold_s: u64,
    /// On everything that leaves the service.
    pub(crate) delay: u64,
    pub(crate) steps: Vec<Step>,
    /// Connections of clients are kept from request to request (event loops only).
    pub(crate) keep_alive: bool,
}

/// The study's io_read on a sync worker: 43 ms, of which the database 36.
pub(crate) fn io_read(name: &'static str, setup: &'static str, delay_ms: u64) -> Load {
    let mut steps = vec![Step::Spend(class::CPU, 3 * MS)];
    let setup_trips = [
        (DbKind::TcpConnect, 50_000),
        (DbKind::SslRequest, 300_000),
        (DbKind::Startup, 1_200_000),
        (DbKind::Auth, 1_500_000),
        (DbKind::Auth, 1_450_000),
    ];
    steps.extend(setup_trips.map(|(kind, ns)| Step::Turn(kind, None, ns)));
    steps.push(Step::Turn(DbKind::SessionSetup, Some(0), 200_000));
    steps.push(Step::Turn(DbKind::Query, Some(1), 1_300_000));
    steps.push(Step::Spend(class::CPU, 2 * MS));
    steps.push(Step::Turn(DbKind::Query, Some(2), 30 * MS));
    steps.push(Step::Spend(class::CPU, 2 * MS));
    Load {
        name,
        setup,
        users: 100,
        ramp_per_s: 10.0,
        hold_s: 60,
        delay: delay_ms * MS,
        steps,
        keep_alive: false,
    }
}

/// A server without a database that spends its time in one wait class.
pub(crate) fn control(class: usize, ms: u64) -> Load {
    let steps = vec![Step::Spend(class::CPU, MS), Step::Spend(class, ms * MS)];
    Load {
        name: "control",
        setup: "sync",
        users: 20,
        ramp_per_s: 10.0,
        hold_s: 20,
        delay: 0,
        steps,
        keep_alive: false,
    }
}

impl Load {
    /// Time that a worker takes over a request.
    pub(crate) fn held(&self) -> u64 {
        let step = |step: &Step| match step {
            Step::Spend(_, ns) => *ns,
            Step::Turn(_, _, ns) => ns + self.delay,
        };
        self.steps.iter().map(step).sum::<u64>() + 4 * TICK
    }

    /// Number of database round trips of a request.
    pub(crate) fn turns(&self) -> usize {
        self.steps.iter().filter(|step| matches!(step, Step::Turn(..))).count()
    }

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

struct Sim<'a> {
    load: &'a Load,
    end: u64,
    hold_start: u64,
    user_starts: Vec<u64>,
    records: Vec<RequestRecord>,
    kernel: KernelData,
    segments: Vec<(u32, usize, u64, u64)>,
    /// Thread, when, accepts, requests, round trips.
    seen: Vec<(u32, u64, u64, u64, u64)>,
    queued: Vec<(u64, u64)>,
    next: u64,
    /// User and start of each request, by connection and ordinal.
    begun: HashMap<(u64, u32), (u32, u64)>,
    /// The last request on each user's connection, where connections are kept.
    kept: HashMap<u32, (ServerRequest, u64)>,
}

impl<'a> Sim<'a> {
    fn new(load: &'a Load) -> Self {
        let gap = (SECOND as f64 / load.ramp_per_s) as u64;
        let user_starts: Vec<u64> =
            (0..u64::from(load.users)).map(|user| START + user * gap).collect();
        let hold_start = START + u64::from(load.users) * gap;
        let kernel = KernelData {
            started_at: START - SECOND,
            statements: vec![
                "SET TIME ZONE ?".to_owned(),
                "SELECT id, title FROM posts LIMIT ?".to_owned(),
                "SELECT COUNT(*) FROM posts".to_owned(),
            ],
            impaired: (load.delay > 0).then(|| wire::Impaired {
                engine: "nfqueue".to_owned(),
                device: "eth0".to_owned(),
                delay_ns: load.delay,
                at_ns: START - SECOND / 2,
            }),
            ..KernelData::default()
        };
        Self {
            load,
            end: hold_start + load.hold_s * SECOND,
            hold_start,
            user_starts,
            records: Vec::new(),
            kernel,
            segments: Vec::new(),
            seen: Vec::new(),
            queued: Vec::new(),
            next: 0,
            begun: HashMap::new(),
            kept: HashMap::new(),
        }
    }

    fn first_arrivals(&self) -> BinaryHeap<Reverse<(u64, u32)>> {
        self.user_starts.iter().zip(0..).map(|(&at, user)| Reverse((at, user))).collect()
    }

    /// A request on the user's kept connection, else on a new one: ports come again after a while, as
    /// they do.
    fn connect(&mut self, user: u32, c0: u64) -> ServerRequest {
        if let Some((last, start)) = self.kept.get(&user).copied() {
            let request = ServerRequest {
                ordinal: last.ordinal + 1,
                s1: c0 + NET,
                s3: 0,
                s4: 0,
                s5: 0,
                rx_offset: last.rx_offset + TX,
                tx_offset: last.tx_offset + RX,
                ..last
            };
            self.begun.insert((request.conn, request.ordinal), (user, c0));
            self.kept.insert(user, (request, start));
            return request;
        }
        self.next += 1;
        let port = 30_000 + (self.next % 997) as u16;
        self.begun.insert((self.next, 0), (user, c0));
        let s0 = c0 + 3 * NET + self.load.delay;
        ServerRequest {
            conn: self.next,
            client: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), port),
            server: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 8000),
            ordinal: 0,
            tid: 0,
            flags: 0,
            s0,
            s2: 0,
            s1: s0 + TICK,
            s3: 0,
            s4: 0,
            s5: 0,
            rx_offset: 0,
            rx_bytes: TX,
            tx_offset: 0,
            tx_bytes: RX,
        }
    }

    /// Records what both sides saw; returns when the client had its answer.
    fn answer(&mut self, request: &ServerRequest, tid: u32) -> u64 {
        let (user, c0) = self.begun[&(request.conn, request.ordinal)];
        let new = request.ordinal == 0;
        let start = if new { c0 } else { self.kept[&user].1 };
        if self.load.keep_alive {
            self.kept.insert(user, (*request, start));
        }
        let answered = request.s5 != 0;
        let c4k = request.s5 + NET + self.load.delay;
        let c4 = c4k + TICK;
        let done = answered && c4 <= self.end;
        self.records.push(RequestRecord {
            user,
            local: request.client,
            remote: request.server,
            connection_start: start,
            ordinal: request.ordinal,
            tx_offset: request.rx_offset,
            tx_bytes: TX,
            rx_offset: request.tx_offset,
            rx_bytes: if done { RX } else { 0 },
            c0,
            c1: if new { request.s0 - NET } else { 0 },
            c2: if new { request.s0 - NET + 1_000 } else { c0 + 1_000 },
            c3: if done { c4 } else { 0 },
            c4: if done { c4 } else { self.end },
            syn_retransmits: 0,
            status: if done { 200 } else { 0 },
            outcome: if done { Outcome::Success } else { Outcome::Unfinished },
        });
        if new {
            self.queued.push((request.s0, if request.s2 == 0 { self.end } else { request.s2 }));
        }
        if done {
            self.kernel.client_turns.push(wire::ClientTurn {
                client: request.client,
                server: request.server,
                ordinal: request.ordinal,
                flags: flag::CLOSED,
                syn: start + 1_000,
                established: request.s0 - NET,
                c3k: c4k,
                c4k,
            });
        }
        let mut seen = ServerRequest { tid, ..*request };
        if answered && request.s5 <= self.end {
            self.kernel.requests.push(seen);
        } else {
            seen.flags |= flag::UNFINISHED;
            for mark in
                [&mut seen.s0, &mut seen.s2, &mut seen.s1, &mut seen.s3, &mut seen.s4, &mut seen.s5]
            {
                if *mark > self.end {
                    *mark = 0;
                }
            }
            if seen.s0 != 0 {
                self.kernel.unfinished.push(seen);
            }
        }
        c4
    }

    fn turn(
        &mut self,
        tid: u32,
        held_conn: u64,
        conn: u64,
        step: usize,
        (kind, statement): (DbKind, Option<u32>),
        (sent_first, answered): (u64, u64),
    ) {
        let open = answered > self.end;
        if sent_first > self.end {
            return;
        }
        self.kernel.db_turns.push(DbTurn {
            conn,
            ordinal: step as u32,
            tid,
            held_conn,
            kind,
            statement,
            flags: if open { flag::UNFINISHED } else { 0 },
            sent_first,
            answered: if open { 0 } else { answered },
            received_last: if open { 0 } else { answered },
            tx_bytes: 40,
            rx_bytes: 60,
        });
    }

    fn segment(&mut self, tid: u32, class: usize, from: u64, to: u64) {
        self.segments.push((tid, class, from, to.min(self.end)));
    }

    fn finish(mut self, permanent: &[u32]) -> RunData {
        self.records.sort_by_key(|record| record.c4);
        let windows = self.windows(permanent);
        self.kernel.windows = windows;
        self.kernel.totals = Some(wire::Totals {
            requests: self.kernel.requests.len() as u64,
            counters: Vec::new(),
            lost_events: 0,
            peer_slow: 0,
            unix_database: None,
        });
        let load = self.load;
        RunData {
            spec: RunSpec {
                name: load.name.to_owned(),
                setup: Some(load.setup.to_owned()),
                route: Some("io_read".to_owned()),
                url: "http://10.0.0.2:8000/io_read".to_owned(),
                method: "GET".to_owned(),
                users: load.users,
                ramp_per_s: load.ramp_per_s,
                hold_ns: load.hold_s * SECOND,
                delay_ns: Some(load.delay).filter(|&delay| delay > 0),
            },
            start: START,
            hold_start: self.hold_start,
            end: self.end,
            user_starts: self.user_starts,
            records: self.records,
            beyond: Beyond::default(),
            stale_retries: 0,
            loop_busy_max: 50_000,
            engine_cpu_share: 0.02,
            engine_runqueue_share: 0.001,
            interrupted: false,
            kernel: Some(self.kernel),
        }
    }

    /// One per second. Permanent threads are idle where nothing else is known; so is a master that
    /// never does any work.
    fn windows(&self, permanent: &[u32]) -> Vec<Window> {
        let seconds = ((self.end - START) / SECOND) as usize;
        let place = |at: u64| ((at.saturating_sub(START)) / SECOND) as usize;
        let mut windows: Vec<Window> = (0..seconds)
            .map(|second| Window {
                from_ns: START + second as u64 * SECOND,
                to_ns: START + (second as u64 + 1) * SECOND,
                threads: Vec::new(),
                queue_mean: 0.0,
                queue_max: 0,
                lost: Vec::new(),
                listen_overflows: 0,
                injector_dropped: 0,
            })
            .collect();
        let mut threads: Vec<std::collections::BTreeMap<u32, ThreadWindow>> =
            vec![std::collections::BTreeMap::new(); seconds];
        let fresh = |tid: u32| ThreadWindow {
            tid,
            tgid: FIRST_WORKER,
            comm: "server".to_owned(),
            ns: [0; class::COUNT],
            voluntary: 0,
            involuntary: 0,
            accepts: 0,
            requests: 0,
            db_turns: 0,
        };
        for &(tid, class, from, to) in &self.segments {
            for second in place(from)..=place(to.max(from)).min(seconds.saturating_sub(1)) {
                let window = &windows[second];
                let part = to.min(window.to_ns).saturating_sub(from.max(window.from_ns));
                threads[second].entry(tid).or_insert_with(|| fresh(tid)).ns[class] += part;
            }
        }
        for &(tid, at, accepts, requests, db_turns) in &self.seen {
            if let Some(second) = threads.get_mut(place(at)) {
                let thread = second.entry(tid).or_insert_with(|| fresh(tid));
                thread.accepts += accepts;
                thread.requests += requests;
                thread.db_turns += db_turns;
            }
        }
        for second in &mut threads {
            for &tid in permanent.iter().chain([&MASTER]) {
                let thread = second.entry(tid).or_insert_with(|| fresh(tid));
                let known: u64 = thread.ns.iter().sum();
                thread.ns[class::IDLE] += SECOND.saturating_sub(known);
            }
        }
        for (window, threads) in windows.iter_mut().zip(threads) {
            window.threads = threads.into_values().collect();
            let (from, to) = (window.from_ns, window.to_ns);
            let area: u64 = self
                .queued
                .iter()
                .map(|&(in_, out)| out.min(to).saturating_sub(in_.max(from)))
                .sum();
            window.queue_mean = area as f64 / SECOND as f64;
            window.queue_max = window.queue_mean.ceil() as u64;
        }
        windows
    }
}
