//! Which connections begin, are accepted and end: s0 and s2, and the accept queue's gauge.

use agent_common::abi::{SocketState, counter, flag, role};
use aya_ebpf::{
    macros::{cgroup_sock_addr, fexit, raw_tracepoint},
    programs::{FExitContext, RawTracePointContext, SockAddrContext},
};

use crate::{
    emit, kernel,
    kernel::tcp,
    maps::{self, QUEUE, SOCKETS, count, session},
    thread, turn,
};

/// `inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`, since
/// 4.16. Runs in softirq for what the peer does, in the caller for connect() and close().
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn inet_sock_set_state(ctx: RawTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    let old = ctx.arg::<u64>(1) as u8;
    let new = ctx.arg::<u64>(2) as u8;
    match (old, new) {
        (tcp::SYN_RECV, tcp::ESTABLISHED) => incoming(sk),
        (tcp::CLOSE, tcp::SYN_SENT) => outgoing(sk),
        (tcp::SYN_SENT, tcp::ESTABLISHED) => connected(sk),
        (tcp::SYN_SENT, tcp::CLOSE) => turn::connect_failed(sk),
        (_, tcp::FIN_WAIT1 | tcp::LAST_ACK | tcp::CLOSE) => finished(sk, 0),
        _ => {}
    }
    0
}

/// `tcp_destroy_sock(struct sock *sk)`, since 4.16: the last that is heard of a socket. State is
/// kept until here: after a reset, accept() and recv() on it still succeed.
#[raw_tracepoint(tracepoint = "tcp_destroy_sock")]
pub fn tcp_destroy_sock(ctx: RawTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    if SOCKETS.get_ptr(sk).is_some() {
        finished(sk, flag::CLOSED);
        forget(sk);
    }
    0
}

/// accept4() with an address buffer asks the new socket for its peer's name, 2 us before it
/// returns. The first time for each socket is s2. Serves kernels without fexit.
#[cgroup_sock_addr(getpeername4)]
pub fn accept_getpeername4(ctx: SockAddrContext) -> i32 {
    accepted_by_name(&ctx)
}

/// As [`accept_getpeername4`], for IPv6 sockets, dual-stack ones included.
#[cgroup_sock_addr(getpeername6)]
pub fn accept_getpeername6(ctx: SockAddrContext) -> i32 {
    accepted_by_name(&ctx)
}

/// `struct sock *inet_csk_accept(struct sock *sk, int flags, int *err, bool kern)` up to 6.9,
/// `(struct sock *sk, struct proto_accept_arg *arg)` since: the helper finds the return value
/// whatever the arguments are.
#[fexit(function = "inet_csk_accept")]
pub fn inet_csk_accept(ctx: FExitContext) -> i32 {
    if let Ok(sk) = ctx.ret::<u64>() {
        accepted(sk);
    }
    0
}

#[inline(always)]
fn accepted_by_name(ctx: &SockAddrContext) -> i32 {
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    accepted(sk as u64);
    // 1 lets the call go on.
    1
}

/// A connection of the service is complete: s0.
#[inline(always)]
fn incoming(sk: u64) {
    if kernel::local_port(sk) != session!(port) {
        return;
    }
    let netns = kernel::netns_cookie(sk);
    if netns != session!(netns) {
        return;
    }
    let now = kernel::now();
    let Some(socket) = follow(sk, role::SERVER, netns) else { return };
    kernel::read_tuple(sk, &mut socket.tuple);
    socket.s0 = now;
    if let Some(gauge) = QUEUE.get_ptr_mut(0) {
        unsafe {
            (*gauge).n_in += 1;
            (*gauge).sum_in = (*gauge).sum_in.wrapping_add(now);
        }
    }
}

/// connect() was called: by the service towards a database, or by the load generator.
#[inline(always)]
fn outgoing(sk: u64) {
    let (tgid, tid) = kernel::current();
    let port = kernel::remote_port(sk);
    let role = if maps::is_db_port(port) && maps::is_service(tgid) {
        role::DATABASE
    } else if port == session!(port) && tgid == session!(client_tgid) {
        role::CLIENT
    } else {
        return;
    };
    let Some(socket) = follow(sk, role, kernel::netns_cookie(sk)) else { return };
    socket.syn = kernel::now();
    socket.tid = tid;
    // The local port is chosen after this; the tuple is taken again once it is connected.
    kernel::read_tuple(sk, &mut socket.tuple);
    if role == role::DATABASE {
        turn::connecting(sk, socket);
    }
}

/// The handshake of an outgoing connection ended well.
#[inline(always)]
fn connected(sk: u64) {
    let Some(socket) = SOCKETS.get_ptr_mut(sk) else { return };
    let socket = unsafe { &mut *socket };
    socket.s0 = kernel::now();
    kernel::read_tuple(sk, &mut socket.tuple);
    socket.rcv_nxt = kernel::payload_end(sk);
    if socket.role == u32::from(role::DATABASE) {
        turn::connected(sk, socket);
    }
}

/// The owner closed the socket, or it was reset: what is in progress will not go on.
#[inline(always)]
fn finished(sk: u64, extra: u32) {
    let Some(socket) = SOCKETS.get_ptr_mut(sk) else { return };
    let socket = unsafe { &mut *socket };
    match socket.role as u8 {
        role::SERVER => {
            // A connection that was reset in the accept queue can still be accepted and read, so
            // an unanswered request is over only when the socket is.
            let answered = socket.s5 != 0;
            let over = extra & flag::CLOSED != 0;
            if socket.s3 != 0 {
                thread::answered(socket.tid, socket.tid, socket.conn);
            }
            if answered || (over && (socket.s3 != 0 || socket.left_queue == 0)) {
                emit::request(socket, extra);
                next_request(socket);
            }
            if over {
                leave_queue(socket, kernel::now());
            }
        }
        role::CLIENT => {
            if socket.s5 != 0 {
                emit::client_turn(socket, extra);
                socket.ordinal += 1;
                socket.s1 = 0;
                socket.s5 = 0;
            }
        }
        _ => turn::closed(sk, extra),
    }
}

/// accept() returned a connection: s2. Later calls for the same socket change nothing, nor does one
/// for a connection that was read before: getpeername() is no accept then.
#[inline(always)]
fn accepted(sk: u64) {
    let Some(socket) = SOCKETS.get_ptr_mut(sk) else { return };
    let socket = unsafe { &mut *socket };
    if socket.role != u32::from(role::SERVER) || socket.left_queue != 0 {
        return;
    }
    let now = kernel::now();
    let (tgid, tid) = kernel::current();
    socket.s2 = now;
    socket.tid = tid;
    leave_queue(socket, now);
    thread::accepted(tgid, tid, socket.conn, now);
}

/// Takes the connection out of the gauge, once.
#[inline(always)]
pub(crate) fn leave_queue(socket: &mut SocketState, now: u64) {
    if socket.left_queue != 0 {
        return;
    }
    socket.left_queue = 1;
    if let Some(gauge) = QUEUE.get_ptr_mut(0) {
        unsafe {
            (*gauge).n_out += 1;
            (*gauge).sum_out = (*gauge).sum_out.wrapping_add(now);
        }
    }
}

/// Clears what belonged to the request that was just reported.
#[inline(always)]
pub(crate) fn next_request(socket: &mut SocketState) {
    socket.ordinal += 1;
    socket.flags &= flag::ADOPTED;
    socket.s1 = 0;
    socket.s3 = 0;
    socket.s4 = 0;
    socket.s5 = 0;
    socket.rx_offset = socket.rx_total;
    socket.tx_offset = socket.tx_total;
}

/// Starts to follow a socket. A full map is counted.
#[inline(always)]
pub(crate) fn follow(sk: u64, role: u8, netns: u64) -> Option<&'static mut SocketState> {
    let Some(socket) = maps::new_socket(sk) else {
        count(counter::LOST_SOCKET);
        return None;
    };
    socket.role = u32::from(role);
    socket.conn = maps::next_connection();
    socket.netns = netns;
    Some(socket)
}

#[inline(always)]
fn forget(sk: u64) {
    let _ = SOCKETS.remove(sk);
    turn::forget(sk);
}
