//! What a simulated run leaves behind, put down as it happens.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use agent_common::{
    abi::{class, flag},
    wire::{self, DbKind, DbTurn, ServerRequest, ThreadWindow, Window},
};

use super::{FIRST_WORKER, Load, MASTER, NET, RX, SECOND, START, TICK, TX};
use crate::record::{Beyond, KernelData, Outcome, RequestRecord, RunData, RunSpec};

pub(super) struct Sim<'a> {
    load: &'a Load,
    pub(super) end: u64,
    hold_start: u64,
    user_starts: Vec<u64>,
    records: Vec<RequestRecord>,
    pub(super) kernel: KernelData,
    segments: Vec<(u32, usize, u64, u64)>,
    /// Thread, when, accepts, requests, round trips.
    pub(super) seen: Vec<(u32, u64, u64, u64, u64)>,
    queued: Vec<(u64, u64)>,
    next: u64,
    /// User and start of each request, by connection and ordinal.
    begun: HashMap<(u64, u32), (u32, u64)>,
    /// The last request on each user's connection, where connections are kept.
    kept: HashMap<u32, (ServerRequest, u64)>,
}

impl<'a> Sim<'a> {
    pub(super) fn new(load: &'a Load) -> Self {
        let gap = (SECOND as f64 / load.ramp_per_s) as u64;
        let user_starts: Vec<u64> =
            (0..u64::from(load.users)).map(|user| START + user * gap).collect();
        let hold_start = START + u64::from(load.users) * gap;
        let kernel = KernelData {
            started_at: START - SECOND,
            in_force: vec![(START - SECOND, Vec::new())],
            statements: vec![
                "SET TIME ZONE ?".to_owned(),
                "SELECT id, title FROM posts LIMIT ?".to_owned(),
                "SELECT COUNT(*) FROM posts".to_owned(),
            ],
            retransmissions: (load.delay > 0).then(wire::Retransmissions::default),
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

    pub(super) fn first_arrivals(&self) -> BinaryHeap<Reverse<(u64, u32)>> {
        self.user_starts.iter().zip(0..).map(|(&at, user)| Reverse((at, user))).collect()
    }

    /// A request on the user's kept connection, else on a new one: ports come again after a while, as
    /// they do.
    pub(super) fn connect(&mut self, user: u32, c0: u64) -> ServerRequest {
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
    pub(super) fn answer(&mut self, request: &ServerRequest, tid: u32) -> u64 {
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

    pub(super) fn turn(
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

    pub(super) fn segment(&mut self, tid: u32, class: usize, from: u64, to: u64) {
        self.segments.push((tid, class, from, to.min(self.end)));
    }

    pub(super) fn finish(mut self, permanent: &[u32]) -> RunData {
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
                retransmissions: None,
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
