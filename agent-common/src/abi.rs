//! The boundary between the eBPF programs and the agent.
//!
//! Every type is `repr(C)`, free of implicit padding and valid for any bit pattern, so that a ring
//! buffer record can be read without `unsafe` on the agent's side (see [`Record`]). All times are
//! `bpf_ktime_get_ns`, that is CLOCK_MONOTONIC, in nanoseconds; 0 means "not seen".

use crate::filter::{Filter, MAX_RULES};

/// Bytes of a sent database message that are kept to name the round trip.
pub const PAYLOAD_LEN: usize = 512;
/// Bytes of a received database message that are kept to tell answers apart.
pub const ANSWER_LEN: usize = 8;
/// Bytes of the ring buffer, a power of two and a multiple of the page size.
pub const RING_BYTES: u32 = 16 << 20;
/// Sockets followed at once: server connections, database connections and client sockets.
pub const MAX_SOCKETS: u32 = 65_536;
/// Database connections followed at once, of [`MAX_SOCKETS`].
pub const MAX_TURNS: u32 = 4_096;
/// Threads whose time is accounted at once.
pub const MAX_THREADS: u32 = 4_096;
/// Processes that make up the service under test.
pub const MAX_PROCESSES: u32 = 1_024;
/// Unix sockets told apart at once, of those the service waits on.
pub const MAX_UNIX_PEERS: u32 = 64;
/// Bytes of a Unix socket's path that are kept.
pub const UNIX_PATH_LEN: usize = 104;
/// Database ports that one session can follow.
pub const MAX_DB_PORTS: usize = 4;

/// An IPv4 or IPv6 four-tuple as its owner sees it. IPv4 is stored v4-mapped (`::ffff:a.b.c.d`), so
/// that a dual-stack listener's connections compare equal to their IPv4 clients'.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Address of the socket's owner, network order, v4-mapped for IPv4.
    pub local: [u8; 16],
    /// Address of the peer, network order, v4-mapped for IPv4.
    pub remote: [u8; 16],
    /// Port of the socket's owner, host order.
    pub local_port: u16,
    /// Port of the peer, host order.
    pub remote_port: u16,
    /// Always zero.
    pub pad: u32,
}

/// Who a socket belongs to in the experiment.
pub mod role {
    /// A connection of the service to one of its clients.
    pub const SERVER: u8 = 1;
    /// A connection of the service to its database.
    pub const DATABASE: u8 = 2;
    /// A connection of the paired load generator to the service.
    pub const CLIENT: u8 = 3;
}

/// What a thread is doing, as indices into [`ThreadTime::ns`].
pub mod class {
    /// On a processor.
    pub const CPU: usize = 0;
    /// Runnable, waiting for a processor.
    pub const RUNQUEUE: usize = 1;
    /// Blocked on a database socket, connecting included.
    pub const DATABASE: usize = 2;
    /// Blocked in futex with a request in hand, or in a futex wait with a short timeout.
    pub const LOCK: usize = 3;
    /// Blocked on a client's socket.
    pub const CLIENT_IO: usize = 4;
    /// Blocked on a block device (`in_iowait`).
    pub const DISK: usize = 5;
    /// Sleeping by its own wish (nanosleep). Part of `other` in reports, named there.
    pub const SLEEP: usize = 6;
    /// Blocked on anything else.
    pub const OTHER: usize = 7;
    /// Waiting for work: accept, epoll, poll or select on a listener, or a futex wait that may last,
    /// without a request in hand.
    pub const IDLE: usize = 8;
    /// Number of classes.
    pub const COUNT: usize = 9;
    /// Names in reports, in index order.
    pub const NAMES: [&str; COUNT] =
        ["cpu", "runqueue", "database", "lock", "client_io", "disk", "sleep", "other", "idle"];
}

/// Bits of [`Request::flags`], [`Turn::flags`].
pub mod flag {
    /// The connection was open before the probes were: s0 and s2 are unknown.
    pub const ADOPTED: u32 = 1 << 0;
    /// Not finished when it was reported (the socket is still open, or the run ended).
    pub const UNFINISHED: u32 = 1 << 1;
    /// Bytes of a further request were queued before this one was answered.
    pub const PIPELINED: u32 = 1 << 2;
    /// The first byte's stamp is the return of the sending call: no entry hook on this kernel.
    pub const S4_AT_RETURN: u32 = 1 << 3;
    /// The connection was refused, reset or timed out before it was established.
    pub const CONNECT_FAILED: u32 = 1 << 4;
    /// The payload could not be read from the caller's memory.
    pub const NO_PAYLOAD: u32 = 1 << 5;
    /// The socket was destroyed (this is its last record).
    pub const CLOSED: u32 = 1 << 6;
    /// s1 was taken from the read, since no data_ready was seen for it.
    pub const S1_AT_READ: u32 = 1 << 7;
}

/// First four bytes of every ring buffer record: which record follows.
pub mod kind {
    /// [`super::Request`]
    pub const REQUEST: u32 = 1;
    /// [`super::Turn`] of a database connection.
    pub const DB_TURN: u32 = 2;
    /// [`super::ClientTurn`]
    pub const CLIENT_TURN: u32 = 3;
    /// [`super::Hold`]
    pub const HOLD: u32 = 4;
    /// [`super::ThreadExit`]
    pub const THREAD_EXIT: u32 = 5;
}

/// One request on a connection of the service, complete when the next one starts or at close.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Request {
    /// [`kind::REQUEST`].
    pub kind: u32,
    /// [`flag`] bits.
    pub flags: u32,
    /// Number of the connection, unique within a session.
    pub conn: u64,
    /// Cookie of the network namespace the socket lives in.
    pub netns: u64,
    /// The service's view: `local` is the service.
    pub tuple: Tuple,
    /// Ordinal of the request on its connection, from 0.
    pub ordinal: u32,
    /// Thread that read the request first (kernel pid), else that accepted, else 0.
    pub tid: u32,
    /// Connection established.
    pub s0: u64,
    /// accept() returned it.
    pub s2: u64,
    /// First byte of the request in the receive queue.
    pub s1: u64,
    /// First read of the request's bytes.
    pub s3: u64,
    /// First byte of the response handed to the kernel.
    pub s4: u64,
    /// Last byte of the response handed to the kernel.
    pub s5: u64,
    /// Bytes received on the connection before this request.
    pub rx_offset: u64,
    /// Bytes of this request.
    pub rx_bytes: u64,
    /// Bytes sent on the connection before this response.
    pub tx_offset: u64,
    /// Bytes of this response.
    pub tx_bytes: u64,
}

/// One turn on a database connection: from the first byte sent after a receive to the next send.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// [`kind::DB_TURN`].
    pub kind: u32,
    /// [`flag`] bits.
    pub flags: u32,
    /// Number of the connection, unique within a session.
    pub conn: u64,
    /// The service's view: `remote` is the database.
    pub tuple: Tuple,
    /// Ordinal of the turn on its connection; 0 is the TCP connect.
    pub ordinal: u32,
    /// Thread that sent.
    pub tid: u32,
    /// Client connection that the thread held when it sent, or 0. Right for a synchronous worker
    /// only: an event loop serves others meanwhile.
    pub held_conn: u64,
    /// First byte handed to the kernel (or connect() called).
    pub sent_first: u64,
    /// Last byte handed to the kernel.
    pub sent_last: u64,
    /// First byte of the answer read (or the connection established).
    pub answered: u64,
    /// Last byte of the answer read.
    pub received_last: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes valid in `payload`.
    pub payload_len: u32,
    /// Bytes valid in `answer`.
    pub answer_len: u32,
    /// Head of the bytes sent.
    pub payload: [u8; PAYLOAD_LEN],
    /// Head of the bytes received.
    pub answer: [u8; ANSWER_LEN],
}

/// A turn in progress, as kept in the TURNS map.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TurnState {
    /// The turn so far.
    pub turn: Turn,
    /// Never written. Payload is put together from several buffers, and the verifier, which bounds
    /// the offset and the length of each part but not their sum, must find room for both.
    pub slack: [u8; PAYLOAD_LEN],
}

/// One exchange as the load generator's kernel saw it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientTurn {
    /// [`kind::CLIENT_TURN`].
    pub kind: u32,
    /// [`flag`] bits.
    pub flags: u32,
    /// Number of the connection, unique within a session.
    pub conn: u64,
    /// The client's view: `remote` is the service.
    pub tuple: Tuple,
    /// Ordinal of the exchange on its connection, from 0.
    pub ordinal: u32,
    /// Always zero.
    pub pad: u32,
    /// connect() called.
    pub syn: u64,
    /// The client's socket reached ESTABLISHED.
    pub established: u64,
    /// First byte of the response in the receive queue (c3k).
    pub c3k: u64,
    /// Last byte of the response in the receive queue (c4k).
    pub c4k: u64,
}

/// The time a thread was held by one client connection: from accept() to its next accept or poll.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Hold {
    /// [`kind::HOLD`].
    pub kind: u32,
    /// Kernel pid of the thread.
    pub tid: u32,
    /// The connection.
    pub conn: u64,
    /// accept() returned.
    pub start: u64,
    /// Next accept or poll.
    pub end: u64,
    /// How the time between was spent, by [`class`].
    pub ns: [u64; class::COUNT],
}

/// A socket that the programs follow, as kept in the SOCKETS map under its kernel address. Which
/// fields mean what depends on its role; the agent reads the map at the end of a session to tell
/// what was not finished.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SocketState {
    /// [`role`].
    pub role: u32,
    /// [`flag`] bits of the current request or turn.
    pub flags: u32,
    /// Number of the connection, unique within a session.
    pub conn: u64,
    /// Cookie of the network namespace the socket lives in.
    pub netns: u64,
    /// The owner's view.
    pub tuple: Tuple,
    /// Ordinal of the current request or turn on its connection, from 0.
    pub ordinal: u32,
    /// Thread that accepted it, or read the current request.
    pub tid: u32,
    /// Client: connect() called. Otherwise 0.
    pub syn: u64,
    /// Established.
    pub s0: u64,
    /// Server: accept() returned it.
    pub s2: u64,
    /// Server: oldest byte that arrived since the last read.
    pub queued: u64,
    /// Server: first byte of the current request in the receive queue. Client: c3k.
    pub s1: u64,
    /// Server: first read of the current request.
    pub s3: u64,
    /// Server: first byte of the response handed over.
    pub s4: u64,
    /// Server: last byte of the response handed over. Client: c4k.
    pub s5: u64,
    /// Bytes received before the current request.
    pub rx_offset: u64,
    /// Bytes received in all.
    pub rx_total: u64,
    /// Bytes sent before the current response.
    pub tx_offset: u64,
    /// Bytes sent in all.
    pub tx_total: u64,
    /// Client: sequence number up to which data was seen to arrive.
    pub rcv_nxt: u32,
    /// 1 once the connection has left the accept queue, as far as the gauge is concerned.
    pub left_queue: u32,
}

/// A thread's counters, as kept in the THREADS map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ThreadTime {
    /// Kernel pid of the thread.
    pub tid: u32,
    /// Kernel pid of its process.
    pub tgid: u32,
    /// Class of the interval that is open now.
    pub class: u32,
    /// 1 once the connection that holds the thread was answered, by whichever thread.
    pub hold_answered: u32,
    /// Start of the interval that is open now.
    pub since: u64,
    /// When a waker made the thread runnable, or 0. Written by another processor.
    pub woken: u64,
    /// First time the thread was seen.
    pub first_seen: u64,
    /// Closed intervals, by [`class`].
    pub ns: [u64; class::COUNT],
    /// Voluntary switches.
    pub voluntary: u64,
    /// Involuntary switches.
    pub involuntary: u64,
    /// Connection of the request that the thread read last and nobody has answered yet, or 0.
    pub request_conn: u64,
    /// Connection that holds the thread, or 0.
    pub held_conn: u64,
    /// Since when.
    pub held_since: u64,
    /// `ns` when the hold began.
    pub held_ns: [u64; class::COUNT],
    /// Connections accepted by this thread.
    pub accepts: u64,
    /// Requests it read.
    pub requests: u64,
    /// Database turns it began.
    pub db_turns: u64,
}

/// The peer of a Unix socket on which a thread of the service was seen to wait, as kept in the
/// UNIX_PEERS map under the kernel address of its name. The kernel half notes the path, the agent
/// looks at it and sets the class: comparing text is no work for the scheduler's path.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UnixPeer {
    /// [`class`] of waits on it: `OTHER` until the agent has looked.
    pub class: u32,
    /// Waits so far.
    pub waits: u32,
    /// Head of the path, zero-padded.
    pub path: [u8; UNIX_PATH_LEN],
}

/// A thread's last counters: it has ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ThreadExit {
    /// [`kind::THREAD_EXIT`].
    pub kind: u32,
    /// Always zero.
    pub pad: u32,
    /// When.
    pub at: u64,
    /// The counters, the open interval closed.
    pub time: ThreadTime,
}

/// Per-CPU gauges of the accept queue. With n connections in and out and the sums of the times at
/// which they came and went, the time integral of the queue's length up to T is
/// `T * (n_in - n_out) - sum_in + sum_out`: exact, and mergeable over processors without atomics.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct QueueGauge {
    /// Connections established.
    pub n_in: u64,
    /// Connections accepted, or destroyed before that.
    pub n_out: u64,
    /// Sum of establishment times, wrapping.
    pub sum_in: u64,
    /// Sum of departure times, wrapping.
    pub sum_out: u64,
}

/// Indices into the per-CPU COUNTERS array.
pub mod counter {
    /// Ring buffer full: a request record was lost.
    pub const LOST_REQUEST: u32 = 0;
    /// Ring buffer full: a database turn was lost.
    pub const LOST_DB_TURN: u32 = 1;
    /// Ring buffer full: a client turn was lost.
    pub const LOST_CLIENT_TURN: u32 = 2;
    /// Ring buffer full: a hold or a thread's end was lost.
    pub const LOST_HOLD: u32 = 3;
    /// The socket map was full: a connection went unseen.
    pub const LOST_SOCKET: u32 = 4;
    /// The thread map was full: a thread's time went unseen.
    pub const LOST_THREAD: u32 = 5;
    /// A connection was read before its accept was seen: s2 is missing.
    pub const UNSEEN_ACCEPT: u32 = 6;
    /// A blocked system call's descriptor could not be resolved: counted as `other`.
    pub const UNRESOLVED_WAIT: u32 = 7;
    /// A process of the service could not be followed: the process map was full.
    pub const LOST_PROCESS: u32 = 8;
    /// The kernel skipped a probe that was active on the same processor already. Counted by the
    /// kernel itself, for every socket and thread of the host: some of them may be the service's.
    pub const PROBE_MISSED: u32 = 9;
    /// Number of counters.
    pub const COUNT: u32 = 10;
    /// Names in reports, in index order.
    pub const NAMES: [&str; COUNT as usize] = [
        "request_record",
        "database_turn_record",
        "client_turn_record",
        "hold_record",
        "socket",
        "thread",
        "unseen_accept",
        "unresolved_wait",
        "process",
        "probe_missed",
    ];
    /// Whether a counter means that an event was lost (and the run is invalid).
    pub const IS_LOSS: [bool; COUNT as usize] =
        [true, true, true, true, true, true, false, false, true, false];
}

/// Where the running kernel keeps the fields that the programs read, in bytes from the start of
/// the struct named in each field's prefix, resolved from BTF at start.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Offsets {
    /// `task_struct.pid`
    pub task_pid: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.__state`
    pub task_state: u32,
    /// `task_struct.files`
    pub task_files: u32,
    /// `task_struct.signal`
    pub task_signal: u32,
    /// `signal_struct.live`
    pub signal_live: u32,
    /// Byte that holds the bit-field `task_struct.in_iowait`.
    pub task_in_iowait_byte: u32,
    /// Bit of `task_struct.in_iowait` within that byte.
    pub task_in_iowait_bit: u32,
    /// `files_struct.fdt`
    pub files_fdt: u32,
    /// `fdtable.fd`
    pub fdt_fd: u32,
    /// `fdtable.max_fds`
    pub fdt_max_fds: u32,
    /// `file.private_data`
    pub file_private_data: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `eventpoll.rbr`, the tree of what an epoll set holds.
    pub eventpoll_rbr: u32,
    /// `epitem.rbn`, an item as a node of that tree.
    pub epitem_rbn: u32,
    /// `file` in `epitem.ffd`.
    pub epitem_file: u32,
    /// `rb_node.rb_left`
    pub rb_left: u32,
    /// `rb_node.rb_right`
    pub rb_right: u32,
    /// `inode.i_mode`
    pub inode_mode: u32,
    /// `socket.sk`
    pub socket_sk: u32,
    /// `sock_common.skc_family`
    pub sk_family: u32,
    /// `sock_common.skc_state`
    pub sk_state: u32,
    /// `sock_common.skc_num`
    pub sk_num: u32,
    /// `sock_common.skc_dport`
    pub sk_dport: u32,
    /// `sock_common.skc_rcv_saddr`
    pub sk_rcv_saddr: u32,
    /// `sock_common.skc_daddr`
    pub sk_daddr: u32,
    /// `sock_common.skc_v6_rcv_saddr`
    pub sk_v6_rcv_saddr: u32,
    /// `sock_common.skc_v6_daddr`
    pub sk_v6_daddr: u32,
    /// `sock_common.skc_net`
    pub sk_net: u32,
    /// `net.net_cookie`
    pub net_cookie: u32,
    /// `tcp_sock.rcv_nxt`
    pub tcp_rcv_nxt: u32,
    /// `tcp_sock.copied_seq`
    pub tcp_copied_seq: u32,
    /// `unix_sock.peer`
    pub unix_peer: u32,
    /// `unix_sock.addr`
    pub unix_addr: u32,
    /// `unix_address.name`, whose `sun_path` is 2 bytes in.
    pub unix_address_name: u32,
}

/// What one session measures; constant while its programs are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Session {
    /// Cookie of the service's network namespace.
    pub netns: u64,
    /// Kernel pid of the paired load generator when it runs on this host, else 0.
    pub client_tgid: u32,
    /// Port the service listens on, host order.
    pub port: u16,
    /// Ports of its databases, host order; 0 ends the list.
    pub db_ports: [u16; MAX_DB_PORTS],
    /// Always zero.
    pub pad: u16,
}

/// Marks a type that may be read from raw bytes: `repr(C)`, no padding, any bit pattern valid.
///
/// # Safety
/// The implementer asserts exactly that.
#[allow(unsafe_code, reason = "the marker's contract is about bytes; the impls are all below")]
pub unsafe trait Record: Copy + 'static {}

macro_rules! records {
    ($($t:ty = $size:expr),* $(,)?) => { $(
        // Padding would make the size differ from the sum of the fields.
        const _: () = assert!(core::mem::size_of::<$t>() == $size);
        // SAFETY: repr(C), integers and integer arrays only, no padding (size asserted above).
        #[allow(unsafe_code, reason = "see the SAFETY comment")]
        unsafe impl Record for $t {}
        // SAFETY: as above; aya asks for the same properties.
        #[cfg(feature = "aya")]
        #[allow(unsafe_code, reason = "see the SAFETY comment")]
        unsafe impl aya::Pod for $t {}
    )* };
}

records! {
    Tuple = 40,
    Request = 8 + 8 + 8 + 40 + 8 + 6 * 8 + 4 * 8,
    Turn = 8 + 8 + 40 + 8 + 8 + 4 * 8 + 2 * 8 + 8 + PAYLOAD_LEN + ANSWER_LEN,
    TurnState = core::mem::size_of::<Turn>() + PAYLOAD_LEN,
    ClientTurn = 8 + 8 + 40 + 8 + 4 * 8,
    Hold = 8 + 3 * 8 + class::COUNT * 8,
    SocketState = 8 + 16 + 40 + 8 + 8 * 8 + 4 * 8 + 8,
    ThreadTime = 16 + 3 * 8 + class::COUNT * 8 + 5 * 8 + class::COUNT * 8 + 3 * 8,
    UnixPeer = 8 + UNIX_PATH_LEN,
    ThreadExit = 16 + core::mem::size_of::<ThreadTime>(),
    QueueGauge = 32,
    Offsets = 35 * 4,
    Session = 24,
    Filter = 16 + 2 * MAX_RULES * 40,
}
