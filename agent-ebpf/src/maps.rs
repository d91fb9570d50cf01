//! Every map and every constant that the agent sets before loading.

use agent_common::abi::{
    self, Offsets, QueueGauge, Session, SocketState, ThreadTime, TurnState, UnixPeer, counter,
};
use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};

/// Field offsets of the running kernel. Read-only once loaded: the verifier sees constants.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = unsafe { core::mem::zeroed() };

/// What this session measures. Read-only once loaded.
#[unsafe(no_mangle)]
static SESSION: Session = unsafe { core::mem::zeroed() };

/// One offset.
macro_rules! offset {
    ($field:ident) => {
        $crate::object::constant(unsafe { &raw const (*$crate::maps::offsets()).$field }) as usize
    };
}
pub(crate) use offset;

/// One field of the session.
macro_rules! session {
    ($field:ident) => {
        $crate::object::constant(unsafe { &raw const (*$crate::maps::session_constants()).$field })
    };
}
pub(crate) use session;

#[inline(always)]
pub(crate) fn offsets() -> *const Offsets {
    &raw const OFFSETS
}

#[inline(always)]
pub(crate) fn session_constants() -> *const Session {
    &raw const SESSION
}

#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(abi::RING_BYTES, 0);

/// Sockets that are followed, by kernel address.
#[map]
pub(crate) static SOCKETS: HashMap<u64, SocketState> =
    HashMap::with_max_entries(abi::MAX_SOCKETS, 0);

/// The turn in progress of each database socket, by kernel address.
#[map]
pub(crate) static TURNS: HashMap<u64, TurnState> = HashMap::with_max_entries(abi::MAX_TURNS, 0);

/// Threads of the service, by kernel pid.
#[map]
pub(crate) static THREADS: HashMap<u32, ThreadTime> =
    HashMap::with_max_entries(abi::MAX_THREADS, 0);

/// Processes of the service, by kernel pid; the value means nothing.
#[map]
pub(crate) static PROCESSES: HashMap<u32, u32> = HashMap::with_max_entries(abi::MAX_PROCESSES, 0);

#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);

#[map]
pub(crate) static QUEUE: PerCpuArray<QueueGauge> = PerCpuArray::with_max_entries(1, 0);

/// Numbers for connections, one sequence per processor.
#[map]
static CONNECTIONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Zeroes to insert from, never written: the values are too large for the stack, and a scratch
/// value could be overwritten by a program that interrupts this one.
#[map]
static BLANK_SOCKET: Array<SocketState> = Array::with_max_entries(1, 0);
#[map]
static BLANK_TURN: Array<TurnState> = Array::with_max_entries(1, 0);
#[map]
static BLANK_THREAD: Array<ThreadTime> = Array::with_max_entries(1, 0);
#[map]
static BLANK_PEER: Array<UnixPeer> = Array::with_max_entries(1, 0);

/// Unix sockets the service waits on, by the kernel address of their peer's name.
#[map]
pub(crate) static UNIX_PEERS: HashMap<u64, UnixPeer> =
    HashMap::with_max_entries(abi::MAX_UNIX_PEERS, 0);

/// Adds one to a counter of this processor.
#[inline(always)]
pub(crate) fn count(index: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(index) {
        unsafe { *value += 1 };
    }
}

/// A number for a connection that no other of this session has; never 0.
#[inline(always)]
pub(crate) fn next_connection() -> u64 {
    let Some(sequence) = CONNECTIONS.get_ptr_mut(0) else { return 0 };
    let cpu = unsafe { aya_ebpf::helpers::generated::bpf_get_smp_processor_id() };
    unsafe {
        *sequence += 1;
        *sequence << 16 | u64::from(cpu & 0xffff)
    }
}

/// Whether the service owns this process.
#[inline(always)]
pub(crate) fn is_service(tgid: u32) -> bool {
    PROCESSES.get_ptr(tgid).is_some()
}

/// Whether a port is one of the service's databases'.
#[inline(always)]
pub(crate) fn is_db_port(port: u16) -> bool {
    let ports = session!(db_ports);
    port != 0 && (port == ports[0] || port == ports[1] || port == ports[2] || port == ports[3])
}

/// Puts a zeroed value under `key` and gives it to be filled in; None if the map is full.
macro_rules! insert_blank {
    ($name:ident, $map:ident, $blank:ident, $key:ty, $value:ty) => {
        #[inline(always)]
        pub(crate) fn $name(key: $key) -> Option<&'static mut $value> {
            let blank = $blank.get_ptr(0)?;
            $map.insert(key, unsafe { &*blank }, 0).ok()?;
            $map.get_ptr_mut(key).map(|value| unsafe { &mut *value })
        }
    };
}

insert_blank!(new_socket, SOCKETS, BLANK_SOCKET, u64, SocketState);
insert_blank!(new_turn, TURNS, BLANK_TURN, u64, TurnState);
insert_blank!(new_thread, THREADS, BLANK_THREAD, u32, ThreadTime);
insert_blank!(new_unix_peer, UNIX_PEERS, BLANK_PEER, u64, UnixPeer);
