//! The boundary between the agent and the load generator: messages of the pairing socket.
//!
//! Each side first writes an 8-byte [`preamble`]; then frames follow: a little-endian `u32` length
//! (at most [`MAX_FRAME`]) and that many bytes of postcard, one [`ToAgent`] or [`ToLoadgen`].
//! `docs/protocol.md` describes the exchange.
//!
//! All times are CLOCK_MONOTONIC of the agent's host in nanoseconds, 0 where a mark was not seen.

mod check;
mod codec;
mod retransmissions;

pub use check::OverLimit;
pub use codec::{FrameError, Frames, decode, encode, preamble, read_preamble};
pub use retransmissions::Retransmissions;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Version of the protocol. A peer with another version is refused with a message that names both.
pub const VERSION: u16 = 1;
/// Largest frame body in bytes. A longer one is a protocol error.
pub const MAX_FRAME: usize = 256 << 10;
/// Longest string of any message in bytes.
pub const MAX_TEXT: usize = 4096;
/// Most records in one batch message.
pub const MAX_BATCH: usize = 512;
/// Most impairments of others in one message; the agent leaves out what is beyond.
pub const MAX_OTHERS: usize = 32;

/// What the load generator says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToAgent {
    /// First message.
    Hello(Hello),
    /// Which service to measure.
    Target(TargetRequest),
    /// Load the probes and begin to report.
    Start,
    /// Impair the service's network while the lease lasts.
    Impair(ImpairRequest),
    /// Renews the lease of everything this pair has set; due before `lease_ms` has passed.
    Renew,
    /// End the impairment now.
    Clear,
    /// Stop measuring: the agent sends what is outstanding, then [`ToLoadgen::Stopped`].
    Stop,
    /// The load generator is leaving.
    Bye,
}

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToLoadgen {
    /// Answer to Hello.
    Hello(Hello),
    /// Answer to Target: what was found.
    Targeted(Targeted),
    /// Answer to Start.
    Started {
        /// When the last probe was attached.
        at_ns: u64,
    },
    /// Answer to Impair.
    Impaired(Impaired),
    /// Answer to Clear.
    Cleared(Cleared),
    /// Requests, complete. Order within a connection is kept.
    Requests(Vec<ServerRequest>),
    /// Exchanges as the load generator's own kernel saw them.
    ClientTurns(Vec<ClientTurn>),
    /// Text of a database statement, sent before its first use.
    Statement {
        /// Number that [`DbTurn::statement`] refers to.
        id: u32,
        /// Normalised text, literals removed.
        text: String,
    },
    /// Database round trips.
    DbTurns(Vec<DbTurn>),
    /// Times that worker threads were held.
    Holds(Vec<Hold>),
    /// What happened in about one second.
    Window(Window),
    /// At Stop: requests that were not finished.
    Unfinished(Vec<ServerRequest>),
    /// Answer to Stop; nothing more comes for this start.
    Stopped(Totals),
    /// Refusal or failure. The session goes on unless the socket closes.
    Error(ErrorReply),
    /// Something worth telling the user that is no failure.
    Notice(String),
    /// The agent is leaving.
    Bye,
    /// Impairments on interfaces of the service's network namespace that are not this pair's, all of
    /// them: after Started, and whenever they have changed since.
    InForce {
        /// When it was looked.
        at_ns: u64,
        /// What there was.
        others: Vec<Other>,
    },
}

/// An impairment that somebody else put there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Other {
    /// Interface.
    pub device: String,
    /// `egress`, `ingress` or `both`.
    pub direction: String,
    /// `netem` or `nfqueue`.
    pub engine: String,
    /// The impairment in words, such as `delayed by 100ms`.
    pub words: String,
    /// Delay, nanoseconds, without its random part.
    pub delay_ns: u64,
    /// Agent that holds it; None if it is no agent's, as netem that somebody added with tc.
    pub pid: Option<u32>,
}

/// Who speaks, and by which clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Program and version, such as `loadgen 0.1.0`.
    pub tool: String,
    /// Protocol version, [`VERSION`].
    pub version: u16,
    /// `/proc/sys/kernel/random/boot_id`: equal on both sides means one kernel and one clock.
    pub boot_id: String,
    /// Kernel release, such as `6.18.0`.
    pub kernel: String,
}

/// The service to measure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRequest {
    /// Address and port that the load generator will connect to.
    pub address: SocketAddr,
    /// Ports of the service's databases.
    pub db_ports: Vec<u16>,
}

/// The service as found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targeted {
    /// Cookie of its network namespace.
    pub netns: u64,
    /// Its processes.
    pub processes: Vec<Process>,
    /// Mark and the hook that serves it, or why none does.
    pub plan: Vec<PlanLine>,
    /// Length that listen() was given, capped by somaxconn.
    pub backlog: u32,
    /// Interface in its namespace that an impairment would be put on when none is named.
    pub device: String,
}

/// One process of the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id in the agent's pid namespace.
    pub pid: u32,
    /// `/proc/PID/comm`.
    pub comm: String,
    /// Command line, shortened.
    pub cmdline: String,
}

/// One line of the probe plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanLine {
    /// What is measured: a mark such as `s3`, or `wait_classes`, `db_payload`.
    pub mark: String,
    /// The hook that serves it; None if unavailable.
    pub hook: Option<String>,
    /// Why it is unavailable, and what to do.
    pub reason: Option<String>,
}

/// An impairment asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImpairRequest {
    /// Interface in the service's namespace; None: the one that [`Targeted::device`] names.
    pub device: Option<String>,
    /// Delay added to everything that leaves the interface, nanoseconds.
    pub delay_ns: u64,
    /// The impairment ends when nothing was heard for this long.
    pub lease_ms: u32,
}

/// An impairment in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Impaired {
    /// `netem` or `nfqueue`.
    pub engine: String,
    /// Interface.
    pub device: String,
    /// Delay as the engine has it, nanoseconds.
    pub delay_ns: u64,
    /// In force since.
    pub at_ns: u64,
}

/// What an impairment did, told when it has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleared {
    /// When it was gone.
    pub at_ns: u64,
    /// Packets that the engine dropped or let through undelayed, since its queue was full.
    pub dropped: u64,
    /// What packets really got; None where it could not be measured, as in all that follow.
    pub held: Option<Held>,
    /// Packets that went later than one that had come after them.
    pub reordered: Option<u64>,
    /// Most packets that were held at once.
    pub largest_backlog: Option<u64>,
    /// What TCP sent again.
    pub retransmissions: Option<Retransmissions>,
}

/// Times that packets were held by an impairment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Packets held and let go.
    pub packets: u64,
    /// Median, nanoseconds; 0 if there were no packets.
    pub p50_ns: u64,
    /// 99th percentile, nanoseconds.
    pub p99_ns: u64,
    /// Longest, nanoseconds.
    pub max_ns: u64,
}

/// One request as the service's kernel saw it. See the vocabulary for s0 to s5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRequest {
    /// Number of the connection within the session.
    pub conn: u64,
    /// Address of the client.
    pub client: SocketAddr,
    /// Address of the service, as its socket sees it.
    pub server: SocketAddr,
    /// Ordinal on the connection, from 0.
    pub ordinal: u32,
    /// Thread that read it, or 0.
    pub tid: u32,
    /// [`crate::abi::flag`] bits.
    pub flags: u32,
    /// Connection established.
    pub s0: u64,
    /// accept() returned.
    pub s2: u64,
    /// First byte of the request queued.
    pub s1: u64,
    /// First read.
    pub s3: u64,
    /// First byte of the response handed over.
    pub s4: u64,
    /// Last byte of the response handed over.
    pub s5: u64,
    /// Bytes received before this request on the connection.
    pub rx_offset: u64,
    /// Bytes of this request.
    pub rx_bytes: u64,
    /// Bytes sent before this response on the connection.
    pub tx_offset: u64,
    /// Bytes of this response.
    pub tx_bytes: u64,
}

/// One exchange as the load generator's kernel saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientTurn {
    /// The load generator's own address.
    pub client: SocketAddr,
    /// Address it connected to.
    pub server: SocketAddr,
    /// Ordinal on the connection, from 0.
    pub ordinal: u32,
    /// [`crate::abi::flag`] bits.
    pub flags: u32,
    /// connect() called.
    pub syn: u64,
    /// Established on the client's side.
    pub established: u64,
    /// First byte of the response queued.
    pub c3k: u64,
    /// Last byte of the response queued.
    pub c4k: u64,
}

/// Kind of a database round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DbKind {
    /// TCP handshake.
    TcpConnect,
    /// Postgres SSLRequest (or GSSENCRequest) and its one-byte answer.
    SslRequest,
    /// TLS handshake or encrypted traffic that cannot be named.
    Tls,
    /// Startup message.
    Startup,
    /// Password or SASL exchange.
    Auth,
    /// SET, SHOW and the like.
    SessionSetup,
    /// BEGIN or START TRANSACTION.
    Begin,
    /// Any other statement.
    Query,
    /// COMMIT.
    Commit,
    /// ROLLBACK.
    Rollback,
    /// Anything that has another shape.
    Other,
}

impl DbKind {
    /// Every kind, in the order of a connection's life.
    pub const ALL: [Self; 11] = [
        Self::TcpConnect,
        Self::SslRequest,
        Self::Tls,
        Self::Startup,
        Self::Auth,
        Self::SessionSetup,
        Self::Begin,
        Self::Query,
        Self::Commit,
        Self::Rollback,
        Self::Other,
    ];

    /// The name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TcpConnect => "tcp_connect",
            Self::SslRequest => "ssl_request",
            Self::Tls => "tls",
            Self::Startup => "startup",
            Self::Auth => "auth",
            Self::SessionSetup => "session_setup",
            Self::Begin => "begin",
            Self::Query => "query",
            Self::Commit => "commit",
            Self::Rollback => "rollback",
            Self::Other => "other",
        }
    }

    /// Whether the round trip only sets up the connection: reusing connections would save it.
    #[must_use]
    pub const fn is_setup(self) -> bool {
        matches!(
            self,
            Self::TcpConnect
                | Self::SslRequest
                | Self::Tls
                | Self::Startup
                | Self::Auth
                | Self::SessionSetup
        )
    }
}

/// One database round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DbTurn {
    /// Number of the database connection.
    pub conn: u64,
    /// Ordinal on it; 0 is the TCP connect.
    pub ordinal: u32,
    /// Thread that sent.
    pub tid: u32,
    /// Client connection that the thread held when it sent, 0 if none.
    pub held_conn: u64,
    /// What it was.
    pub kind: DbKind,
    /// Number of its statement, if it has one.
    pub statement: Option<u32>,
    /// [`crate::abi::flag`] bits.
    pub flags: u32,
    /// First byte sent.
    pub sent_first: u64,
    /// First byte of the answer read; 0 if there was none.
    pub answered: u64,
    /// Last byte of the answer read.
    pub received_last: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Bytes received.
    pub rx_bytes: u64,
}

/// The time a worker thread was held by one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Thread.
    pub tid: u32,
    /// Connection.
    pub conn: u64,
    /// accept() returned.
    pub start: u64,
    /// Next accept or poll.
    pub end: u64,
    /// Time by [`crate::abi::class`].
    pub ns: [u64; crate::abi::class::COUNT],
}

/// A span of about one second. More than [`MAX_BATCH`] threads come as further windows of the same
/// span, which hold nothing but threads: sum over them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Start.
    pub from_ns: u64,
    /// End.
    pub to_ns: u64,
    /// Time of every thread of the service within the span.
    pub threads: Vec<ThreadWindow>,
    /// Mean length of the accept queue, over time.
    pub queue_mean: f64,
    /// Largest length seen (sampled at every drain of the ring buffer).
    pub queue_max: u64,
    /// Events lost in the span, by name, non-zero only.
    pub lost: Vec<Count>,
    /// ListenDrops of the service's namespace in the span: SYNs and final ACKs that a full backlog
    /// turned away. ListenOverflows are among them, so the two are not added.
    pub listen_overflows: u64,
    /// Packets that the injector dropped or let through because its queue was full.
    pub injector_dropped: u64,
    /// What TCP sent again in the span; None where nothing is impaired, or it is not counted.
    pub retransmissions: Option<Retransmissions>,
}

/// One thread within a [`Window`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadWindow {
    /// Kernel pid of the thread.
    pub tid: u32,
    /// Kernel pid of its process.
    pub tgid: u32,
    /// `/proc/TGID/task/TID/comm`.
    pub comm: String,
    /// Time by [`crate::abi::class`], nanoseconds.
    pub ns: [u64; crate::abi::class::COUNT],
    /// Voluntary switches.
    pub voluntary: u64,
    /// Involuntary switches.
    pub involuntary: u64,
    /// Connections accepted.
    pub accepts: u64,
    /// Requests read.
    pub requests: u64,
    /// Database turns begun.
    pub db_turns: u64,
}

/// A named count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Name, as in [`crate::abi::counter::NAMES`].
    pub name: String,
    /// How many.
    pub count: u64,
}

/// Sums of a session, sent at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Requests sent.
    pub requests: u64,
    /// Every counter that is not zero: losses and oddities.
    pub counters: Vec<Count>,
    /// Events lost in all.
    pub lost_events: u64,
    /// Records that were dropped because the peer read too slowly.
    pub peer_slow: u64,
    /// Path of a Unix socket through which the service reaches a database, if seen.
    pub unix_database: Option<String>,
}

/// Why something was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// Kind of failure.
    pub code: ErrorCode,
    /// A sentence that names the thing and the fix.
    pub message: String,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorCode {
    /// Another pair is active.
    Busy,
    /// Root's command line does not allow it.
    Forbidden,
    /// The message does not fit the session's state, or its content is out of range.
    Invalid,
    /// Nobody listens there.
    NoTarget,
    /// The kernel refused or lacks something.
    Kernel,
    /// The service's process ended.
    TargetGone,
}

/// The address as the other side would write it: v4-mapped IPv6 becomes IPv4.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Turns an address of [`crate::abi::Tuple`] into its canonical form.
#[must_use]
pub fn address(bytes: [u8; 16], port: u16) -> SocketAddr {
    canonical(SocketAddr::new(IpAddr::from(bytes), port))
}
