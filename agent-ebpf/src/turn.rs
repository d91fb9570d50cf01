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
pub(crate) fn adopted(sk: u64, socket: &SocketState) {
    let Some(turn) = follow(sk, socket) else { return };
    turn.ordinal = 1;
    turn.flags = flag::ADOPTED;
    begin(turn, kernel::now());
}

#[inline(always)]
fn follow(sk: u64, socket: &SocketState) -> Option<&'static mut Turn> {
    let Some(turn) = maps::new_turn(sk) else {
        count(counter::LOST_SOCKET);
        return None;
    };
    turn.kind = kind::DB_TURN;
    turn.conn = socket.conn;
    turn.tuple = socket.tuple;
    Some(turn)
}

/// The handshake is done.
#[inline(always)]
pub(crate) fn connected(sk: u64, socket: &SocketState) {
    let Some(turn) = TURNS.get_ptr_mut(sk) else { return };
    let turn = unsafe { &mut *turn };
    turn.tuple = socket.tuple;
    turn.answered = socket.s0;
    turn.received_last = socket.s0;
    emit::turn(turn);
    reset(turn);
}

/// The handshake failed.
#[inline(always)]
pub(crate) fn connect_failed(sk: u64) {
    let Some(turn) = TURNS.get_ptr_mut(sk) else { return };
    let turn = unsafe { &mut *turn };
    turn.flags |= flag::CONNECT_FAILED;
    turn.received_last = kernel::now();
    emit::turn(turn);
    reset(turn);
}

/// A write call is about to queue bytes: the first after an answer begin a turn.
#[inline(always)]
pub(crate) fn sending(sk: u64) {
    let Some(turn) = TURNS.get_ptr_mut(sk) else { return };
    let turn = unsafe { &mut *turn };
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
    let Some(turn) = TURNS.get_ptr_mut(sk) else { return };
    let turn = unsafe { &mut *turn };
    let now = kernel::now();
    if turn.sent_first == 0 {
        begin(turn, now);
        turn.flags |= flag::S4_AT_RETURN;
    }
    turn.sent_last = now;
    turn.tx_bytes += bytes;
    if turn.payload_len == 0 {
        let length = if bytes > PAYLOAD_LEN as u64 { PAYLOAD_LEN as u64 } else { bytes };
        match user_buffer() {
            Some(from) if copy(turn.payload.as_mut_ptr(), length, PAYLOAD_LEN as u64, from) => {
                turn.payload_len = length as u32;
            }
            _ => turn.flags |= flag::NO_PAYLOAD,
        }
    }
}

/// A read call returned bytes of the answer.
#[inline(always)]
pub(crate) fn received(sk: u64, bytes: u64) {
    let Some(turn) = TURNS.get_ptr_mut(sk) else { return };
    let turn = unsafe { &mut *turn };
    if turn.sent_first == 0 {
        return;
    }
    let now = kernel::now();
    if turn.answered == 0 {
        turn.answered = now;
        let length = if bytes > ANSWER_LEN as u64 { ANSWER_LEN as u64 } else { bytes };
        if let Some(from) = user_buffer()
            && copy(turn.answer.as_mut_ptr(), length, ANSWER_LEN as u64, from)
        {
            turn.answer_len = length as u32;
        }
    }
    turn.received_last = now;
    turn.rx_bytes += bytes;
}

/// The connection was closed: a turn in progress is reported as it stands.
#[inline(always)]
pub(crate) fn closed(sk: u64, extra: u32) {
    let Some(turn) = TURNS.get_ptr_mut(sk) else { return };
    let turn = unsafe { &mut *turn };
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

/// Where the current read or write call has its bytes, in the caller's memory.
#[inline(always)]
fn user_buffer() -> Option<u64> {
    let call = kernel::syscall()?;
    match call.number {
        nr::READ | nr::WRITE | nr::SENDTO | nr::RECVFROM => Some(call.rsi),
        nr::READV | nr::WRITEV => user(call.rsi),
        nr::SENDMSG | nr::RECVMSG => {
            // struct user_msghdr: name, namelen and padding, then the iovec.
            let vector = user(call.rsi + 16)?;
            user(vector)
        }
        _ => None,
    }
}

#[inline(always)]
fn user(address: u64) -> Option<u64> {
    unsafe { bpf_probe_read_user(address as *const u64) }.ok()
}

/// Copies at most `limit` bytes from the caller's memory.
#[inline(always)]
fn copy(to: *mut u8, length: u64, limit: u64, from: u64) -> bool {
    // Hidden from the optimiser, which would fold this check into the caller's and leave the
    // verifier without a bound on the register it passes.
    let length = core::hint::black_box(length);
    if length == 0 || length > limit {
        return false;
    }
    unsafe { generated::bpf_probe_read_user(to.cast(), length as u32, from as *const _) == 0 }
}
