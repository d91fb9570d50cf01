//! A client inside the laboratory's outside namespace, with the probes of this process around it:
//! what the kernel half reports of requests whose every step the test knows.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use agent::{
    model::plan::Plan,
    sys::observe::{Event, Observer, Target},
};
use agent_common::{
    abi::{ClientTurn, Hold, Request, ThreadTime, Turn, class, counter},
    wire,
};
use anyhow::{Context as _, Result, bail};
use nix::{sched::CloneFlags, time::ClockId};

use crate::lab::{Lab, Side, server};

/// CLOCK_MONOTONIC in nanoseconds.
///
/// # Panics
/// Never on Linux.
#[must_use]
pub fn now_ns() -> u64 {
    let now = ClockId::CLOCK_MONOTONIC.now().unwrap_or_else(|_| unreachable!("a Linux clock"));
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// What to subtract from CLOCK_REALTIME to get CLOCK_MONOTONIC, in nanoseconds: packet captures
/// and strace stamp the former. The closest of several readings.
#[must_use]
pub fn realtime_offset_ns() -> i128 {
    let read = || {
        let before = i128::from(now_ns());
        let real = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as i128);
        let after = i128::from(now_ns());
        (after - before, real - (before + after) / 2)
    };
    (0..32).map(|_| read()).min_by_key(|&(width, _)| width).map_or(0, |(_, offset)| offset)
}

/// Runs `work` on a thread of its own inside one of the laboratory's namespaces.
///
/// # Errors
/// When the namespace cannot be entered, or `work` fails.
pub fn inside<T: Send>(
    lab: &Lab,
    side: Side,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    inside_path(&lab.network().path(side), work)
}

fn inside_path<T: Send>(path: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let namespace = File::open(path).with_context(|| format!("{}", path.display()))?;
    thread::scope(|scope| {
        scope
            .spawn(move || {
                nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET)
                    .context("cannot enter the namespace: root is needed")?;
                work()
            })
            .join()
            .unwrap_or_else(|_| bail!("the thread inside the namespace panicked"))
    })
}

/// Cookie of one of the laboratory's namespaces.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn netns_cookie(lab: &Lab, side: Side) -> Result<u64> {
    inside(lab, side, || Ok(agent::sys::netns_cookie::current()?))
}

/// Everything that the kernel half reported.
#[derive(Debug, Default)]
pub struct Seen {
    /// Requests.
    pub requests: Vec<Request>,
    /// Database turns.
    pub turns: Vec<Turn>,
    /// Exchanges of the client.
    pub client_turns: Vec<ClientTurn>,
    /// Times a thread was held.
    pub holds: Vec<Hold>,
    /// Every thread's counters at the end, ended threads included.
    pub threads: Vec<ThreadTime>,
    /// Counters at the end.
    pub counters: [u64; counter::COUNT as usize],
    /// Path of a Postgres's Unix socket, if one was waited on.
    pub unix_database: Option<String>,
}

impl Seen {
    fn take(&mut self, event: Event) {
        match event {
            Event::Request(request) => self.requests.push(request),
            Event::DbTurn(turn) => self.turns.push(*turn),
            Event::ClientTurn(turn) => self.client_turns.push(turn),
            Event::Hold(hold) => self.holds.push(hold),
            Event::ThreadExit(exit) => self.threads.push(exit.time),
        }
    }

    /// Asserts that nothing was lost.
    ///
    /// # Panics
    /// When something was.
    pub fn assert_nothing_lost(&self) {
        for (index, &count) in self.counters.iter().enumerate() {
            assert!(
                !counter::IS_LOSS[index] || count == 0,
                "{} {} events lost",
                count,
                counter::NAMES[index]
            );
        }
    }
}

/// Attaches the probes to the laboratory's server, runs `work`, and returns what both saw.
///
/// # Errors
/// When the probes cannot be attached, or `work` fails.
pub fn observe<T>(lab: &Lab, work: impl FnOnce() -> Result<T>) -> Result<(T, Seen)> {
    let server = lab.server().context("no server runs")?;
    let tgids = family(server.process().pid())?;
    let target = Target {
        netns_cookie: netns_cookie(lab, Side::Server)?,
        port: server::PORT,
        db_ports: vec![crate::lab::postgres::PORT],
        tgids,
        client_tgid: Some(std::process::id()),
    };
    observe_target(&target, work)
}

/// As [`observe`], for any target.
///
/// # Errors
/// As there.
pub fn observe_target<T>(target: &Target, work: impl FnOnce() -> Result<T>) -> Result<(T, Seen)> {
    watch(Observer::attach(target)?, work)
}

/// As [`observe_target`], with a plan of the test's own.
///
/// # Errors
/// As there.
pub fn observe_plan<T>(
    target: &Target,
    plan: &Plan,
    work: impl FnOnce() -> Result<T>,
) -> Result<(T, Seen)> {
    watch(Observer::attach_plan(target, plan)?, work)
}

fn watch<T>(mut observer: Observer, work: impl FnOnce() -> Result<T>) -> Result<(T, Seen)> {
    let done = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&done);
    let drain = thread::spawn(move || {
        let mut seen = Seen::default();
        while !stop.load(Ordering::Acquire) {
            observer.drain(&mut |event| seen.take(event));
            let _ = observer.unix_database();
            thread::sleep(Duration::from_millis(5));
        }
        // The server closes, and the kernel forgets, a moment after the client has its answer.
        thread::sleep(Duration::from_millis(300));
        observer.drain(&mut |event| seen.take(event));
        let threads = observer.threads(now_ns());
        seen.threads.extend(threads);
        seen.counters = observer.counters();
        seen.unix_database = observer.unix_database();
        for event in observer.outstanding() {
            seen.take(event);
        }
        seen
    });
    let worked = work();
    done.store(true, Ordering::Release);
    let seen = drain.join().map_err(|_| anyhow::anyhow!("the draining thread panicked"))?;
    Ok((worked?, seen))
}

/// A process and all that descend from it.
///
/// # Errors
/// When it has ended.
pub fn family(pid: u32) -> Result<Vec<u32>> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        let path = format!("/proc/{parent}/task/{parent}/children");
        let children = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    Ok(found)
}

/// One request as the test's own client saw it, CLOCK_MONOTONIC nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// The client's address.
    pub local: SocketAddr,
    /// Before connect().
    pub c0: u64,
    /// connect() returned.
    pub c1: u64,
    /// The request was handed over.
    pub c2: u64,
    /// The answer was read, to its end.
    pub c4: u64,
    /// Bytes of the answer.
    pub bytes: u64,
}

/// One GET on a new connection, read until the server closes it. To be called inside the outside
/// namespace.
///
/// # Errors
/// When the connection fails or the answer is not 200.
pub fn get(server: SocketAddr, path: &str) -> Result<Exchange> {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n").into_bytes();
    let c0 = now_ns();
    let mut stream = TcpStream::connect(server)?;
    let c1 = now_ns();
    stream.set_nodelay(true)?;
    stream.write_all(&request)?;
    let c2 = now_ns();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let c4 = now_ns();
    if !answer.starts_with(b"HTTP/1.1 200") {
        bail!("the server answered {}", String::from_utf8_lossy(&answer[..answer.len().min(200)]));
    }
    Ok(Exchange { local: stream.local_addr()?, c0, c1, c2, c4, bytes: answer.len() as u64 })
}

/// Requests of one client, by its address.
#[must_use]
pub fn request_of(seen: &Seen, client: SocketAddr) -> Vec<&Request> {
    seen.requests
        .iter()
        .filter(|request| wire::address(request.tuple.remote, request.tuple.remote_port) == client)
        .collect()
}

/// Share of a thread's time by class, over all that was accounted.
#[must_use]
pub fn shares(thread: &ThreadTime) -> [f64; class::COUNT] {
    let total: u64 = thread.ns.iter().sum();
    thread.ns.map(|ns| ns as f64 / total.max(1) as f64)
}
