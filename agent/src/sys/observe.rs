//! Loads and attaches the probes of a plan, and reads what they found.

use std::collections::HashMap as StdHashMap;

use agent_common::abi::{
    self, ClientTurn, Hold, QueueGauge, Record, Request, Session, SocketState, ThreadExit,
    ThreadTime, Turn, TurnState, UnixPeer, class, counter, flag, kind, role,
};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray, RingBuf},
    programs::{CgroupAttachMode, CgroupSockAddr, FEntry, FExit, ProgramError, RawTracePoint},
};

use super::{
    btf::{BtfError, KernelTypes},
    facts,
};
use crate::model::{
    plan::{self, Attach, Hook, Plan},
    text::with_causes,
};

mod missed;

#[cfg(ebpf_object_missing)]
compile_error!(
    "the eBPF object is missing: run `cargo xtask build-ebpf` (it says what it needs), then build \
     the agent again"
);

/// The kernel half, as `cargo xtask build-ebpf` made it.
#[cfg(not(ebpf_object_missing))]
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("DWELL_EBPF_OBJECT"));
/// Keeps the compile error above the only one.
#[cfg(ebpf_object_missing)]
pub static OBJECT: &[u8] = &[];

/// Why the probes could not be set up or read.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The kernel's types do not say where its fields are.
    #[error(transparent)]
    Btf(BtfError),
    /// The agent's process ids are not the kernel's.
    #[error(
        "this is a container with process ids of its own, and the probes see those of the host: run \
         the agent on the host, or in a container with the host's pid namespace (--pid=host)"
    )]
    PidNamespace,
    /// The object or a program was refused.
    #[error("the kernel refused the probes: {0}")]
    Load(String),
    /// One program was refused.
    #[error("cannot attach the probe {program} ({hook}): {reason}; `agent doctor` shows the plan")]
    Attach {
        /// Program.
        program: &'static str,
        /// Where it was to go.
        hook: String,
        /// The kernel's reason, verifier log included.
        reason: String,
    },
    /// The plan has no hook for something that is needed.
    #[error("this kernel cannot serve {0}; `agent doctor` says why and what to do")]
    Plan(String),
    /// A map could not be read or written.
    #[error("cannot use the probes' map {map}: {reason}")]
    Map {
        /// Map.
        map: &'static str,
        /// The kernel's reason.
        reason: String,
    },
}

impl ObserveError {
    /// From aya's error on loading an object.
    pub(crate) fn load(error: aya::EbpfError) -> Self {
        Self::Load(chain(&error))
    }

    fn map(map: &'static str) -> impl Fn(MapError) -> Self {
        move |error| Self::Map { map, reason: chain(&error) }
    }
}

/// An error and its causes, of which the verifier's log can be thousands of lines: its end tells
/// what it refused.
fn chain(error: &dyn std::error::Error) -> String {
    const LAST_LINES: usize = 12;
    let text = with_causes(error);
    let lines: Vec<&str> = text.lines().collect();
    match lines.as_slice() {
        [first, .., _] if lines.len() > LAST_LINES + 1 => {
            let end = &lines[lines.len() - LAST_LINES..];
            let head: String = first.chars().take(200).collect();
            format!("{head} ...\n{}", end.join("\n"))
        }
        _ => text,
    }
}

/// What to measure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Cookie of the service's network namespace.
    pub netns_cookie: u64,
    /// Port it listens on.
    pub port: u16,
    /// Ports of its databases; at most [`abi::MAX_DB_PORTS`] are followed.
    pub db_ports: Vec<u16>,
    /// Its processes.
    pub tgids: Vec<u32>,
    /// Process of the load generator, if it runs on this host.
    pub client_tgid: Option<u32>,
}

/// One record of the kernel half.
#[derive(Clone, Debug)]
pub enum Event {
    /// A request on a connection of the service.
    Request(Request),
    /// A turn on a database connection.
    DbTurn(Box<Turn>),
    /// An exchange as the load generator's kernel saw it.
    ClientTurn(ClientTurn),
    /// A thread was held by a connection.
    Hold(Hold),
    /// A thread ended.
    ThreadExit(Box<ThreadExit>),
}

impl Event {
    /// Reads one ring buffer record; None if it is none that this version knows.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let kind = u32::from_ne_bytes(*bytes.first_chunk()?);
        Some(match kind {
            kind::REQUEST => Self::Request(record(bytes)?),
            kind::DB_TURN => Self::DbTurn(Box::new(record(bytes)?)),
            kind::CLIENT_TURN => Self::ClientTurn(record(bytes)?),
            kind::HOLD => Self::Hold(record(bytes)?),
            kind::THREAD_EXIT => Self::ThreadExit(Box::new(record(bytes)?)),
            _ => return None,
        })
    }
}

/// Reads a record from bytes that are at least as long.
#[allow(unsafe_code, reason = "the one place where bytes become records")]
fn record<T: Record>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: the length was checked; `Record` promises that any bytes make a valid T; the read is
    // unaligned.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Probes in place. Dropping it detaches them: the links die with their descriptors, whatever
/// way the agent ends.
pub struct Observer {
    events: RingBuf<MapData>,
    sockets: HashMap<MapData, u64, SocketState>,
    turns: HashMap<MapData, u64, TurnState>,
    processes: HashMap<MapData, u32, u32>,
    threads: HashMap<MapData, u32, ThreadTime>,
    counters: PerCpuArray<MapData, u64>,
    queue: PerCpuArray<MapData, QueueGauge>,
    unix_peers: HashMap<MapData, u64, UnixPeer>,
    // Holds the programs and their links; None once detached.
    ebpf: Option<Ebpf>,
    /// What the kernel skipped, when it was last asked.
    missed: u64,
}

impl Observer {
    /// Makes the plan for this kernel, loads its programs and attaches them.
    ///
    /// # Errors
    /// [`ObserveError`]; nothing stays attached then.
    pub fn attach(target: &Target) -> Result<Self, ObserveError> {
        let facts = facts::gather()?;
        let plan = plan::plan(&facts);
        for needed in ["s0", "s1", "s2", "s3", "s5"] {
            if !plan.serves(needed) {
                return Err(ObserveError::Plan(needed.to_owned()));
            }
        }
        Self::attach_plan(target, &plan)
    }

    /// As [`Observer::attach`], with a plan that is known.
    ///
    /// # Errors
    /// As there.
    pub fn attach_plan(target: &Target, plan: &Plan) -> Result<Self, ObserveError> {
        let offsets = KernelTypes::load()?.offsets()?;
        let mut session = Session {
            netns: target.netns_cookie,
            // Without the entry hook of send, exchanges on a kept connection run together.
            client_tgid: if plan.serves("c3k, c4k") { target.client_tgid.unwrap_or(0) } else { 0 },
            port: target.port,
            ..Session::default()
        };
        for (to, from) in session.db_ports.iter_mut().zip(&target.db_ports) {
            *to = *from;
        }
        let mut ebpf = EbpfLoader::new()
            .override_global("OFFSETS", &offsets, true)
            .override_global("SESSION", &session, true)
            .load(OBJECT)
            .map_err(ObserveError::load)?;

        let mut processes: HashMap<MapData, u32, u32> =
            take(&mut ebpf, "PROCESSES").and_then(|map| convert("PROCESSES", map))?;
        insert_processes(&mut processes, &target.tgids)?;
        // Threads first, connections last: the first request finds every hook in place.
        for hook in plan.hooks.iter().rev() {
            attach(&mut ebpf, hook)?;
        }
        Ok(Self {
            events: take(&mut ebpf, "EVENTS").and_then(|map| convert("EVENTS", map))?,
            sockets: take(&mut ebpf, "SOCKETS").and_then(|map| convert("SOCKETS", map))?,
            turns: take(&mut ebpf, "TURNS").and_then(|map| convert("TURNS", map))?,
            processes,
            threads: take(&mut ebpf, "THREADS").and_then(|map| convert("THREADS", map))?,
            counters: take(&mut ebpf, "COUNTERS").and_then(|map| convert("COUNTERS", map))?,
            queue: take(&mut ebpf, "QUEUE").and_then(|map| convert("QUEUE", map))?,
            unix_peers: take(&mut ebpf, "UNIX_PEERS").and_then(|map| convert("UNIX_PEERS", map))?,
            ebpf: Some(ebpf),
            missed: 0,
        })
    }

    /// Takes further processes into the service.
    ///
    /// # Errors
    /// [`ObserveError::Map`] when there are more than fit.
    pub fn follow(&mut self, tgids: &[u32]) -> Result<(), ObserveError> {
        insert_processes(&mut self.processes, tgids)
    }

    /// Hands every record that waits in the ring buffer to `sink`. Never blocks.
    pub fn drain(&mut self, sink: &mut dyn FnMut(Event)) {
        // At most one buffer's worth, so that a storm cannot keep the caller here.
        let mut budget = abi::RING_BYTES as usize;
        while let Some(item) = self.events.next() {
            if let Some(event) = Event::decode(&item) {
                sink(event);
            }
            budget = budget.saturating_sub(item.len() + 8);
            if budget == 0 {
                break;
            }
        }
    }

    /// Every thread's counters, the interval that is open now closed at `now_ns`.
    #[must_use]
    pub fn threads(&mut self, now_ns: u64) -> Vec<ThreadTime> {
        // Entries can come and go while the map is walked; a key seen twice is kept once.
        let found: StdHashMap<u32, ThreadTime> = self
            .threads
            .iter()
            .filter_map(Result::ok)
            .take(2 * abi::MAX_THREADS as usize)
            .map(|(tid, time)| (tid, close_interval(time, now_ns)))
            .collect();
        found.into_values().collect()
    }

    /// The accept queue's gauge, summed over processors.
    #[must_use]
    pub fn queue(&mut self) -> QueueGauge {
        let mut sum = QueueGauge::default();
        if let Ok(values) = self.queue.get(&0, 0) {
            for value in values.iter() {
                sum.n_in += value.n_in;
                sum.n_out += value.n_out;
                sum.sum_in = sum.sum_in.wrapping_add(value.sum_in);
                sum.sum_out = sum.sum_out.wrapping_add(value.sum_out);
            }
        }
        sum
    }

    /// Every counter, summed over processors. To be called every second or so.
    #[must_use]
    pub fn counters(&mut self) -> [u64; counter::COUNT as usize] {
        let mut sums = [0; counter::COUNT as usize];
        for (index, sum) in (0..).zip(&mut sums) {
            *sum = self.counters.get(&index, 0).map_or(0, |values| values.iter().sum());
        }
        self.missed = self.ebpf.as_ref().map_or(self.missed, missed::missed);
        sums[counter::PROBE_MISSED as usize] = self.missed;
        sums
    }

    /// Detaches the probes and returns what is left: the records that wait, then what is in
    /// progress on every live socket: requests not yet answered or not yet reported, exchanges,
    /// database turns. Not finished ones carry [`flag::UNFINISHED`]. With the probes gone, nothing
    /// can fall between the two.
    #[must_use]
    pub fn outstanding(&mut self) -> Vec<Event> {
        if let Some(ebpf) = self.ebpf.take() {
            self.missed = missed::missed(&ebpf);
        }
        let mut events = Vec::new();
        self.drain(&mut |event| events.push(event));
        let sockets: StdHashMap<u64, SocketState> = self
            .sockets
            .iter()
            .filter_map(Result::ok)
            .take(2 * abi::MAX_SOCKETS as usize)
            .collect();
        let turns: StdHashMap<u64, TurnState> =
            self.turns.iter().filter_map(Result::ok).take(2 * abi::MAX_TURNS as usize).collect();
        events.extend(sockets.values().flat_map(outstanding_exchanges));
        events.extend(turns.into_values().map(|state| state.turn).filter_map(outstanding_turn));
        events
    }

    /// Path of the Unix socket on which the service was seen to wait for a Postgres, if any. To be
    /// called every second or so: it also tells the kernel half to count such waits as `database`
    /// from then on.
    #[must_use]
    pub fn unix_database(&mut self) -> Option<String> {
        let peers: Vec<(u64, UnixPeer)> = self
            .unix_peers
            .iter()
            .filter_map(Result::ok)
            .take(abi::MAX_UNIX_PEERS as usize)
            .collect();
        let mut found = None;
        for (address, mut peer) in peers {
            let end = peer.path.iter().position(|&byte| byte == 0).unwrap_or(peer.path.len());
            let path = String::from_utf8_lossy(&peer.path[..end]).into_owned();
            // The name that Postgres gives its sockets: unix_socket_directories/.s.PGSQL.PORT.
            if !path.contains("/.s.PGSQL.") {
                continue;
            }
            if peer.class != class::DATABASE as u32 {
                peer.class = class::DATABASE as u32;
                // A full or vanished entry only means that its waits stay `other`.
                let _ = self.unix_peers.insert(address, peer, 0);
            }
            found = Some(path);
        }
        found
    }
}

fn insert_processes(
    processes: &mut HashMap<MapData, u32, u32>,
    tgids: &[u32],
) -> Result<(), ObserveError> {
    tgids
        .iter()
        .try_for_each(|tgid| processes.insert(tgid, 0, 0))
        .map_err(ObserveError::map("PROCESSES"))
}

/// Adds the open interval to the counters.
fn close_interval(mut time: ThreadTime, now_ns: u64) -> ThreadTime {
    let index = time.class as usize;
    let open = now_ns.saturating_sub(time.since);
    let blocked = index != class::CPU && index != class::RUNQUEUE;
    let since_wake = if blocked && time.woken >= time.since {
        now_ns.saturating_sub(time.woken).min(open)
    } else {
        0
    };
    if let Some(sum) = time.ns.get_mut(index) {
        *sum += open - since_wake;
    }
    time.ns[class::RUNQUEUE] += since_wake;
    time.since = now_ns;
    time
}

/// What a live socket has not reported yet: an exchange, and the request that came after it.
fn outstanding_exchanges(socket: &SocketState) -> Vec<Event> {
    match u8::try_from(socket.role) {
        Ok(role::CLIENT) if socket.s5 != 0 => vec![Event::ClientTurn(ClientTurn {
            kind: kind::CLIENT_TURN,
            flags: socket.flags,
            conn: socket.conn,
            tuple: socket.tuple,
            ordinal: socket.ordinal,
            pad: 0,
            syn: socket.syn,
            established: socket.s0,
            c3k: socket.s1,
            c4k: socket.s5,
        })],
        Ok(role::SERVER) => outstanding_requests(socket).map(Event::Request).collect(),
        _ => Vec::new(),
    }
}

fn outstanding_requests(socket: &SocketState) -> impl Iterator<Item = Request> {
    let current = Request {
        kind: kind::REQUEST,
        flags: socket.flags,
        conn: socket.conn,
        netns: socket.netns,
        tuple: socket.tuple,
        ordinal: socket.ordinal,
        tid: socket.tid,
        s0: socket.s0,
        s2: socket.s2,
        s1: socket.s1,
        s3: socket.s3,
        s4: socket.s4,
        s5: socket.s5,
        rx_offset: socket.rx_offset,
        rx_bytes: socket.rx_total - socket.rx_offset,
        tx_offset: socket.tx_offset,
        tx_bytes: socket.tx_total - socket.tx_offset,
    };
    // One that was read and answered is finished, though not yet reported: that happens when the
    // next one is read. One that was read and not answered is not finished.
    let read = (socket.s3 != 0).then(|| {
        let unfinished = if socket.s5 == 0 { flag::UNFINISHED } else { 0 };
        Request { flags: current.flags | unfinished, ..current }
    });
    // One that nobody has read yet: its bytes wait, or its connection is new.
    let answered = socket.s3 != 0 && socket.s5 != 0;
    let waits = socket.queued != 0 && (answered || socket.s3 == 0);
    let new = socket.s3 == 0 && socket.ordinal == 0;
    let unread = (waits || new).then(|| Request {
        flags: (current.flags & flag::ADOPTED) | flag::UNFINISHED,
        ordinal: socket.ordinal + u32::from(answered),
        s1: socket.queued,
        s3: 0,
        s4: 0,
        s5: 0,
        rx_offset: socket.rx_total,
        rx_bytes: 0,
        tx_offset: socket.tx_total,
        tx_bytes: 0,
        ..current
    });
    read.into_iter().chain(unread)
}

fn outstanding_turn(mut turn: Turn) -> Option<Event> {
    if turn.sent_first == 0 {
        return None;
    }
    if turn.answered == 0 {
        turn.flags |= flag::UNFINISHED;
    }
    Some(Event::DbTurn(Box::new(turn)))
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, ObserveError> {
    ebpf.take_map(name).ok_or_else(|| ObserveError::Map {
        map: name,
        reason: "it is not in the eBPF object; run `cargo xtask build-ebpf` and build again".into(),
    })
}

fn convert<T: TryFrom<Map, Error = MapError>>(
    name: &'static str,
    map: Map,
) -> Result<T, ObserveError> {
    T::try_from(map).map_err(ObserveError::map(name))
}

fn attach(ebpf: &mut Ebpf, hook: &Hook) -> Result<(), ObserveError> {
    let failed = |reason: String| ObserveError::Attach {
        program: hook.program,
        hook: format!("{:?}", hook.attach),
        reason,
    };
    let program = ebpf
        .program_mut(hook.program)
        .ok_or_else(|| failed("it is not in the eBPF object".to_owned()))?;
    let attached: Result<(), ProgramError> = match hook.attach {
        Attach::RawTracepoint(name) => {
            <&mut RawTracePoint>::try_from(program).and_then(|program| {
                program.load()?;
                program.attach(name).map(drop)
            })
        }
        Attach::FEntry(function) => <&mut FEntry>::try_from(program).and_then(|program| {
            program.load(function, &Btf::from_sys_fs()?)?;
            program.attach().map(drop)
        }),
        Attach::FExit(function) => <&mut FExit>::try_from(program).and_then(|program| {
            program.load(function, &Btf::from_sys_fs()?)?;
            program.attach().map(drop)
        }),
        Attach::CgroupGetpeername => {
            let root = facts::cgroup2_root().map_err(|error| failed(error.to_string()))?;
            <&mut CgroupSockAddr>::try_from(program).and_then(|program| {
                program.load()?;
                // Links stack whatever the mode; any other mode is refused for links.
                program.attach(root, CgroupAttachMode::Single).map(drop)
            })
        }
    };
    attached.map_err(|error| failed(chain(&error)))
}
