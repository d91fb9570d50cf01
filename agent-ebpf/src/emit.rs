//! Output. Nothing here wakes the agent: it drains the ring buffer on a timer, since a wake-up
//! from sched_switch would pre-empt the very thread that is measured.

use agent_common::abi::{
    ClientTurn, Hold, Request, SocketState, ThreadExit, ThreadTime, Turn, class, counter, kind,
};
use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;

use crate::maps::{EVENTS, count};

const QUIET: u64 = BPF_RB_NO_WAKEUP as u64;

/// Reports the request in progress on a server's connection, `extra` flags added.
#[inline(always)]
pub(crate) fn request(socket: &SocketState, extra: u32) {
    let Some(mut entry) = EVENTS.reserve::<Request>(0) else {
        return count(counter::LOST_REQUEST);
    };
    let to = entry.as_mut_ptr();
    // Field by field: a whole Request would not fit beside the callers' own stack.
    unsafe {
        (*to).kind = kind::REQUEST;
        (*to).flags = socket.flags | extra;
        (*to).conn = socket.conn;
        (*to).netns = socket.netns;
        (*to).tuple = socket.tuple;
        (*to).ordinal = socket.ordinal;
        (*to).tid = socket.tid;
        (*to).s0 = socket.s0;
        (*to).s2 = socket.s2;
        (*to).s1 = socket.s1;
        (*to).s3 = socket.s3;
        (*to).s4 = socket.s4;
        (*to).s5 = socket.s5;
        (*to).rx_offset = socket.rx_offset;
        (*to).rx_bytes = socket.rx_total - socket.rx_offset;
        (*to).tx_offset = socket.tx_offset;
        (*to).tx_bytes = socket.tx_total - socket.tx_offset;
    }
    entry.submit(QUIET);
}

/// Reports the exchange in progress on a client's connection.
#[inline(always)]
pub(crate) fn client_turn(socket: &SocketState, extra: u32) {
    let Some(mut entry) = EVENTS.reserve::<ClientTurn>(0) else {
        return count(counter::LOST_CLIENT_TURN);
    };
    let to = entry.as_mut_ptr();
    unsafe {
        (*to).kind = kind::CLIENT_TURN;
        (*to).flags = socket.flags | extra;
        (*to).conn = socket.conn;
        (*to).tuple = socket.tuple;
        (*to).ordinal = socket.ordinal;
        (*to).pad = 0;
        (*to).syn = socket.syn;
        (*to).established = socket.s0;
        (*to).c3k = socket.s1;
        (*to).c4k = socket.s5;
    }
    entry.submit(QUIET);
}

/// Reports a database turn.
#[inline(always)]
pub(crate) fn turn(turn: &Turn) {
    if EVENTS.output::<Turn>(turn, QUIET).is_err() {
        count(counter::LOST_DB_TURN);
    }
}

/// Reports that a connection no longer holds a thread.
#[inline(always)]
pub(crate) fn hold(thread: &ThreadTime, end: u64) {
    let Some(mut entry) = EVENTS.reserve::<Hold>(0) else { return count(counter::LOST_HOLD) };
    let to = entry.as_mut_ptr();
    unsafe {
        (*to).kind = kind::HOLD;
        (*to).tid = thread.tid;
        (*to).conn = thread.held_conn;
        (*to).start = thread.held_since;
        (*to).end = end;
        let mut i = 0;
        while i < class::COUNT {
            (*to).ns[i] = thread.ns[i] - thread.held_ns[i];
            i += 1;
        }
    }
    entry.submit(QUIET);
}

/// Reports a thread's last counters.
#[inline(always)]
pub(crate) fn thread_exit(thread: &ThreadTime, at: u64) {
    let Some(mut entry) = EVENTS.reserve::<ThreadExit>(0) else { return count(counter::LOST_HOLD) };
    let to = entry.as_mut_ptr();
    unsafe {
        (*to).kind = kind::THREAD_EXIT;
        (*to).pad = 0;
        (*to).at = at;
        (*to).time = *thread;
    }
    entry.submit(QUIET);
}
