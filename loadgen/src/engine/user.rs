//! One emulated user: a connection and the request on it, as a state machine over readiness.
//!
//! Readiness is edge-triggered: a socket is registered once, and a read that leaves room in the
//! buffer has emptied the socket (epoll(7), question 9), so the usual request costs one write, one
//! read and its share of an epoll_wait.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::sys::socket::getsockopt;
use nix::{getsockopt_impl, sockopt_impl};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::body::Template;
use crate::clock::now_ns;
use crate::http::{Eof, Parser, RequestSpec};
use crate::record::{Failure, Outcome, RequestRecord};

sockopt_impl!(
    /// `struct tcp_info` as far as every supported kernel has it.
    TcpInfo,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    libc::tcp_info
);

/// A handshake faster than this has lost no SYN: the first retransmission takes at least TCP_RTO_MIN
/// (200 ms, include/net/tcp.h), by default a second.
const SYN_RETRANSMIT_FLOOR_NS: u64 = 100_000_000;

/// What a loss may take to be found beyond 1.5 handshakes: the server's kernel, and our own loop.
const STALE_GRACE_NS: u64 = 5_000_000;

const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// What users of one thread share.
pub(super) struct Surroundings<'a> {
    pub(super) target: SocketAddr,
    pub(super) address: SockAddr,
    pub(super) head: bool,
    pub(super) close: bool,
    pub(super) registry: &'a Registry,
    pub(super) buffer: Box<[u8]>,
    pub(super) random: fastrand::Rng,
    pub(super) errors: BTreeMap<String, u64>,
}

impl Surroundings<'_> {
    fn note(&mut self, error: &std::io::Error) {
        *self.errors.entry(error.to_string()).or_default() += 1;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not started, or resting after a failed connect.
    Idle,
    Connecting,
    /// A request is on its way out or its response on its way in.
    Active,
}

/// What became of a user's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing more until the socket is ready.
    Pending,
    /// The request ended; [`User::record`] is complete.
    Ended,
    /// The server had closed the kept connection when the request came.
    Stale,
}

pub(super) struct User {
    token: Token,
    phase: Phase,
    stream: Option<TcpStream>,
    template: Template,
    written: usize,
    parser: Parser,
    tx_total: u64,
    rx_total: u64,
    retried: bool,
    /// What the handshake of the connection took.
    handshake_ns: u64,
    record: RequestRecord,
}

impl User {
    pub(super) fn new(number: u32, token: Token, target: SocketAddr, spec: &RequestSpec) -> Self {
        Self {
            token,
            phase: Phase::Idle,
            stream: None,
            template: spec.template.clone(),
            written: 0,
            parser: Parser::default(),
            tx_total: 0,
            rx_total: 0,
            retried: false,
            handshake_ns: 0,
            record: RequestRecord {
                user: number,
                local: NOWHERE,
                remote: target,
                connection_start: 0,
                ordinal: 0,
                tx_offset: 0,
                tx_bytes: 0,
                rx_offset: 0,
                rx_bytes: 0,
                c0: 0,
                c1: 0,
                c2: 0,
                c3: 0,
                c4: 0,
                syn_retransmits: 0,
                status: 0,
                outcome: Outcome::Unfinished,
            },
        }
    }

    /// The request at hand.
    pub(super) const fn record(&self) -> &RequestRecord {
        &self.record
    }

    /// A request is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.phase != Phase::Idle
    }

    /// Sends the next request, on the kept connection if there is one.
    pub(super) fn begin(&mut self, around: &mut Surroundings<'_>) -> Step {
        self.template.shuffle(&mut around.random);
        self.retried = false;
        self.clear();
        if self.stream.is_none() {
            let now = now_ns();
            self.record.c0 = now;
            return self.connect(now, around);
        }
        self.phase = Phase::Active;
        self.record.ordinal += 1;
        self.record.tx_offset = self.tx_total;
        self.record.rx_offset = self.rx_total;
        self.record.c0 = now_ns();
        self.write(around)
    }

    /// Sends the request at hand again on a new connection; `c0` stays.
    pub(super) fn again(&mut self, around: &mut Surroundings<'_>) -> Step {
        self.retried = true;
        self.stream = None;
        self.clear();
        self.connect(now_ns(), around)
    }

    /// Ends the request at hand since its time is up.
    pub(super) fn time_out(&mut self, now: u64) -> Step {
        let failure = match self.phase {
            Phase::Connecting => Failure::ConnectTimeout,
            _ => Failure::ReadTimeout,
        };
        self.end(now, Outcome::Failed(failure), false)
    }

    /// The run is over: the record of the request at hand, if there is one, and the open socket.
    pub(super) fn give_up(mut self, now: u64) -> (Option<RequestRecord>, Option<TcpStream>) {
        let busy = self.is_busy();
        self.record.c4 = now;
        self.record.status = self.parser.status();
        self.record.outcome = Outcome::Unfinished;
        (busy.then_some(self.record), self.stream)
    }

    /// Goes on as far as the socket's readiness allows.
    pub(super) fn advance(&mut self, event: &Event, around: &mut Surroundings<'_>) -> Step {
        let lost = event.is_read_closed() || event.is_error();
        match self.phase {
            Phase::Idle => Step::Pending,
            Phase::Connecting if event.is_writable() || lost => self.connected(around),
            Phase::Connecting => Step::Pending,
            Phase::Active => {
                if self.written < self.template.bytes().len() && event.is_writable() {
                    let step = self.write(around);
                    if step != Step::Pending {
                        return step;
                    }
                }
                if event.is_readable() || lost { self.read(lost, around) } else { Step::Pending }
            }
        }
    }

    fn clear(&mut self) {
        self.written = 0;
        self.parser.reset();
        let record = &mut self.record;
        (record.c1, record.c2, record.c3, record.c4) = (0, 0, 0, 0);
        (record.tx_bytes, record.rx_bytes) = (0, 0);
        record.status = 0;
    }

    fn connect(&mut self, now: u64, around: &mut Surroundings<'_>) -> Step {
        self.phase = Phase::Connecting;
        (self.tx_total, self.rx_total) = (0, 0);
        let record = &mut self.record;
        (record.ordinal, record.tx_offset, record.rx_offset) = (0, 0, 0);
        (record.local, record.connection_start, record.syn_retransmits) = (NOWHERE, now, 0);
        match open(around) {
            Ok(socket) => self.connect_socket(socket, around),
            Err(error) => self.connect_failed(&error, around),
        }
    }

    fn connect_socket(&mut self, socket: Socket, around: &mut Surroundings<'_>) -> Step {
        // Making the socket is not the handshake.
        let now = now_ns();
        if !self.retried {
            self.record.c0 = now;
        }
        self.record.connection_start = now;
        if let Err(error) = socket.connect(&around.address)
            && error.raw_os_error() != Some(libc::EINPROGRESS)
        {
            return self.connect_failed(&error, around);
        }
        let mut stream = TcpStream::from_std(socket.into());
        let both = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = around.registry.register(&mut stream, self.token, both) {
            return self.connect_failed(&error, around);
        }
        self.stream = Some(stream);
        Step::Pending
    }

    fn connected(&mut self, around: &mut Surroundings<'_>) -> Step {
        let Some(stream) = &self.stream else { return Step::Pending };
        if let Some(error) = stream.take_error().unwrap_or_else(Some) {
            return self.connect_failed(&error, around);
        }
        self.record.c1 = now_ns();
        self.handshake_ns = self.record.c1 - self.record.connection_start;
        self.record.local = stream.local_addr().unwrap_or(NOWHERE);
        if self.record.c1 - self.record.connection_start > SYN_RETRANSMIT_FLOOR_NS
            && let Ok(info) = getsockopt(stream, TcpInfo)
        {
            self.record.syn_retransmits = info.tcpi_total_retrans.min(255) as u8;
        }
        self.phase = Phase::Active;
        self.write(around)
    }

    fn connect_failed(&mut self, error: &std::io::Error, around: &mut Surroundings<'_>) -> Step {
        let failure = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED) => Failure::ConnectRefused,
            Some(Errno::ETIMEDOUT) => Failure::ConnectTimeout,
            Some(Errno::ECONNRESET) => Failure::ConnectReset,
            _ => Failure::ConnectOther,
        };
        around.note(error);
        self.end(now_ns(), Outcome::Failed(failure), false)
    }

    fn write(&mut self, around: &mut Surroundings<'_>) -> Step {
        let Some(stream) = &mut self.stream else { return Step::Pending };
        let bytes = self.template.bytes();
        while self.written < bytes.len() {
            match stream.write(&bytes[self.written..]) {
                Ok(sent) => {
                    self.written += sent;
                    self.record.tx_bytes += sent as u64;
                    self.tx_total += sent as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Step::Pending,
                Err(error) => return self.lost(Some(&error), around),
            }
        }
        self.record.c2 = now_ns();
        Step::Pending
    }

    /// Reads what is there. `closing`: no further edge will tell of the end of the stream.
    fn read(&mut self, closing: bool, around: &mut Surroundings<'_>) -> Step {
        loop {
            let Some(stream) = &mut self.stream else { return Step::Pending };
            let read = stream.read(&mut around.buffer);
            let now = now_ns();
            match read {
                Ok(0) => {
                    return match self.parser.eof() {
                        Eof::Complete => self.answered(now, false),
                        Eof::Truncated => self.lost(None, around),
                    };
                }
                Ok(count) => {
                    if self.record.rx_bytes == 0 {
                        self.record.c3 = now;
                    }
                    self.rx_total += count as u64;
                    match self.parser.feed(&around.buffer[..count], around.head) {
                        Ok(used) => self.record.rx_bytes += used as u64,
                        Err(_) => {
                            self.record.rx_bytes += count as u64;
                            return self.end(now, Outcome::Failed(Failure::BadResponse), false);
                        }
                    }
                    if self.parser.is_done() {
                        // Bytes beyond the response answer nothing: not a connection to keep.
                        let clean = self.rx_total == self.record.rx_offset + self.record.rx_bytes;
                        let sent = self.written == self.template.bytes().len();
                        return self.answered(now, clean && sent && !closing && !around.close);
                    }
                    if count < around.buffer.len() && !closing {
                        return Step::Pending;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Step::Pending,
                Err(error) => return self.lost(Some(&error), around),
            }
        }
    }

    /// The response is whole.
    fn answered(&mut self, now: u64, clean: bool) -> Step {
        let outcome = match self.parser.status() {
            ..400 => Outcome::Success,
            400..500 => Outcome::Failed(Failure::Http4xx),
            500..600 => Outcome::Failed(Failure::Http5xx),
            600.. => Outcome::Failed(Failure::BadResponse),
        };
        self.end(now, outcome, clean && self.parser.keep_alive())
    }

    /// Whether the server had closed the kept connection before the request came, as far as that can
    /// be told: the answer to bytes for a closed socket comes back within a round trip. A loss that
    /// is found later ends a request that the server had, and may have worked on.
    fn is_stale(&self, now: u64) -> bool {
        let record = &self.record;
        let sent = if record.c2 == 0 { record.c0 } else { record.c2 };
        let soon = self.handshake_ns * 3 / 2 + STALE_GRACE_NS;
        record.ordinal > 0 && record.rx_bytes == 0 && now.saturating_sub(sent) <= soon
    }

    /// The connection ended before the response did.
    fn lost(&mut self, error: Option<&std::io::Error>, around: &mut Surroundings<'_>) -> Step {
        if self.is_stale(now_ns()) {
            return Step::Stale;
        }
        if let Some(error) = error {
            around.note(error);
        }
        self.end(now_ns(), Outcome::Failed(Failure::ReadReset), false)
    }

    fn end(&mut self, now: u64, outcome: Outcome, keep: bool) -> Step {
        self.record.c4 = now;
        self.record.status = self.parser.status();
        self.record.outcome = outcome;
        self.phase = Phase::Idle;
        if !keep {
            self.stream = None;
        }
        Step::Ended
    }
}

fn open(around: &Surroundings<'_>) -> std::io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(around.target), kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}
