//! The database round trips: one turn is what is sent until an answer came, and that answer.

use agent_common::abi::{ANSWER_LEN, PAYLOAD_LEN, SocketState, Turn, counter, flag, kind};
use aya_ebpf::helpers::{bpf_probe_read_user, generated};

use crate::{
    emit, kernel,
    maps::{self, TURNS, count},
    thread,
};

/// System calls that carry bytes, x86-64.
mod nr {
    pub(crate) const READ: i64 = 0;
    pub(crate) const WRITE: i64 = 1;
    pub(crate) const READV: i64 = 19;
    pub(crate) const WRITEV: i64 = 20;
    pub(crate) const SENDTO: i64 = 44;
    pub(crate) const RECVFROM: i64 = 45;
    pub(crate) const SENDMSG: i64 = 46;
    pub(crate) const RECVMSG: i64 = 47;
}

/// connect() was called: the first turn is the handshake.
#[inline(always)]
pub(crate) fn connecting(sk: u64, socket: &SocketState) {
    let Some(turn) = follow(sk, socket) else { return };
    begin(turn, socket.syn);
    turn.sent_last = socket.syn;
}

/// The connection was open before the probes were; its first write begins now. Ordinal 0 is left
/// to handshakes.
#[inline(always)]
pub(crate) fn adopted(sk: u64, socket: &SocketState, extra: u32) {
    let Some(turn) = follow(sk, socket) else { return };
    turn.ordinal = 1;
    turn.flags = flag::ADOPTED | extra;
    begin(turn, kernel::now());
}

/// The turn of a followed connection.
#[inline(always)]
fn of(sk: u64) -> Option<&'static mut Turn> {
    TURNS.get_ptr_mut(sk).map(|state| unsafe { &mut (*state).turn })
}

#[inline(always)]
fn follow(sk: u64, socket: &SocketState) -> Option<&'static mut Turn> {
    let Some(state) = maps::new_turn(sk) else {
        count(counter::LOST_SOCKET);
        return None;
    };
    let turn = &mut state.turn;
    turn.kind = kind::DB_TURN;
    turn.conn = socket.conn;
    turn.tuple = socket.tuple;
    Some(turn)
}

/// The handshake is done.
#[inline(always)]
pub(crate) fn connected(sk: u64, socket: &SocketState) {
    let Some(turn) = of(sk) else { return };
    turn.tuple = socket.tuple;
    turn.answered = socket.s0;
    turn.received_last = socket.s0;
    emit::turn(turn);
    reset(turn);
}

/// The handshake failed.
#[inline(always)]
pub(crate) fn connect_failed(sk: u64) {
    let Some(turn) = of(sk) else { return };
    turn.flags |= flag::CONNECT_FAILED;
    turn.received_last = kernel::now();
    emit::turn(turn);
    reset(turn);
}

/// A write call is about to queue bytes: the first after an answer begin a turn.
#[inline(always)]
pub(crate) fn sending(sk: u64) {
    let Some(turn) = of(sk) else { return };
    if turn.answered != 0 {
        emit::turn(turn);
        reset(turn);
    }
    if turn.sent_first == 0 {
        begin(turn, kernel::now());
    }
}

/// A write call returned.
#[inline(always)]
pub(crate) fn sent(sk: u64, bytes: u64) {
    let Some(turn) = of(sk) else { return };
    let now = kernel::now();
    // Where sending() runs, it has begun the turn. An answer that was read while this very call was
    // still sending leaves `sent_last` unset.
    if turn.answered != 0 && turn.sent_last != 0 {
        emit::turn(turn);
        reset(turn);
    }
    if turn.sent_first == 0 {
        begin(turn, now);
        turn.flags |= flag::S4_AT_RETURN;
    }
    turn.sent_last = now;
    turn.tx_bytes += bytes;
    if turn.payload_len == 0 {
        turn.payload_len = gather::<PAYLOAD_LEN>(turn.payload.as_mut_ptr(), bytes);
        if turn.payload_len == 0 {
            turn.flags |= flag::NO_PAYLOAD;
        }
    }
}

/// A read call returned bytes of the answer.
#[inline(always)]
pub(crate) fn received(sk: u64, bytes: u64) {
    let Some(turn) = of(sk) else { return };
    if turn.sent_first == 0 {
        return;
    }
    let now = kernel::now();
    if turn.answered == 0 {
        turn.answered = now;
        turn.answer_len = gather::<ANSWER_LEN>(turn.answer.as_mut_ptr(), bytes);
    }
    turn.received_last = now;
    turn.rx_bytes += bytes;
}

/// The connection was closed: a turn in progress is reported as it stands.
#[inline(always)]
pub(crate) fn closed(sk: u64, extra: u32) {
    let Some(turn) = of(sk) else { return };
    if turn.sent_first != 0 {
        turn.flags |= extra | flag::CLOSED;
        emit::turn(turn);
        reset(turn);
    }
}

#[inline(always)]
pub(crate) fn forget(sk: u64) {
    let _ = TURNS.remove(sk);
}

#[inline(always)]
fn begin(turn: &mut Turn, now: u64) {
    let (tgid, tid) = kernel::current();
    turn.tid = tid;
    turn.held_conn = thread::turn_begun(tgid, tid);
    turn.sent_first = now;
}

/// Makes room for the next turn. Payload bytes stay: their length says how many count.
#[inline(always)]
fn reset(turn: &mut Turn) {
    turn.flags &= flag::ADOPTED;
    turn.ordinal += 1;
    turn.tid = 0;
    turn.held_conn = 0;
    turn.sent_first = 0;
    turn.sent_last = 0;
    turn.answered = 0;
    turn.received_last = 0;
    turn.tx_bytes = 0;
    turn.rx_bytes = 0;
    turn.payload_len = 0;
    turn.answer_len = 0;
}

/// Buffers of one call that are looked at: node-postgres sends Parse, Bind, Describe and Execute as
/// one each.
const PARTS: u64 = 4;

/// struct iovec (include/uapi/linux/uio.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct Part {
    base: u64,
    length: u64,
}

/// Where the current read or write call has its bytes, in the caller's memory.
enum Buffers {
    One(Part),
    /// Address and length of an array of struct iovec.
    Vector(u64, u64),
}

#[inline(always)]
fn buffers() -> Option<Buffers> {
    let call = kernel::syscall()?;
    match call.number {
        nr::READ | nr::WRITE | nr::SENDTO | nr::RECVFROM => {
            Some(Buffers::One(Part { base: call.rsi, length: call.rdx }))
        }
        nr::READV | nr::WRITEV => Some(Buffers::Vector(call.rsi, call.rdx)),
        nr::SENDMSG | nr::RECVMSG => {
            // struct user_msghdr: name, namelen and padding, then the iovec and its length.
            let [vector, count]: [u64; 2] = user(call.rsi + 16)?;
            Some(Buffers::Vector(vector, count))
        }
        _ => None,
    }
}

#[inline(always)]
fn user<T: Copy>(address: u64) -> Option<T> {
    unsafe { bpf_probe_read_user(address as *const T) }.ok()
}

/// Copies the head of the `bytes` that the current call carried to `to`, never anything that lies
/// behind a buffer's end. Returns how many it copied, at most `LIMIT`.
///
/// `to` must have `LIMIT` bytes, and for the verifier, which adds up the largest offset and the
/// largest length, be followed by as many again within the same map value.
#[inline(always)]
fn gather<const LIMIT: usize>(to: *mut u8, bytes: u64) -> u32 {
    let limit = LIMIT as u64;
    let wanted = if bytes > limit { limit } else { bytes };
    let Some(buffers) = buffers() else { return 0 };
    let count = match buffers {
        Buffers::One(_) => 1,
        Buffers::Vector(_, count) => count,
    };
    let mut filled = 0;
    let mut index = 0;
    while index < PARTS && index < count && filled < wanted {
        let part = match buffers {
            Buffers::One(part) => part,
            Buffers::Vector(vector, _) => match user(vector + index * 16) {
                Some(part) => part,
                None => break,
            },
        };
        let left = wanted - filled;
        let length = if part.length > left { left } else { part.length };
        // Hidden from the optimiser, which would fold these checks into the ones above and leave
        // the verifier without bounds on the registers it passes.
        let at = core::hint::black_box(filled);
        let length = core::hint::black_box(length);
        if at >= limit || length > limit {
            break;
        }
        if length != 0 {
            let into = unsafe { to.add(at as usize) };
            let copied = unsafe {
                generated::bpf_probe_read_user(into.cast(), length as u32, part.base as *const _)
            };
            if copied != 0 {
                break;
            }
        }
        filled = at + length;
        index += 1;
    }
    filled as u32
}
