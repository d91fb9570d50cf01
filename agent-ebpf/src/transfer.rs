//! When bytes arrive, are read and are sent: s1, s3, s4, s5 of the service, c3k and c4k of the
//! load generator, and the ends of database turns.

use agent_common::abi::{SocketState, counter, flag, role};
use aya_ebpf::{
    macros::{fentry, fexit, raw_tracepoint},
    programs::{FEntryContext, FExitContext, RawTracePointContext},
};

use crate::{
    connection::{self, leave_queue, next_request},
    emit, kernel,
    maps::{self, SOCKETS, count, session},
    thread, turn,
};

/// `MSG_PEEK`
const MSG_PEEK: u64 = 2;

/// `sk_data_ready(const struct sock *sk)`, since 6.2: bytes, a FIN or a connection were queued.
#[raw_tracepoint(tracepoint = "sk_data_ready")]
pub fn sk_data_ready(ctx: RawTracePointContext) -> i32 {
    arrived(ctx.arg(0));
    0
}

/// `void sock_def_readable(struct sock *sk)`: what sk_data_ready points to unless a protocol on
/// top replaced it. Always called through that pointer, so never inlined.
#[fentry(function = "sock_def_readable")]
pub fn sock_def_readable(ctx: FEntryContext) -> i32 {
    arrived(ctx.arg(0));
    0
}

/// `sock_recv_length(struct sock *sk, int ret, int flags)`, since 6.4: a read call returned.
#[raw_tracepoint(tracepoint = "sock_recv_length")]
pub fn sock_recv_length(ctx: RawTracePointContext) -> i32 {
    let ret = ctx.arg::<u64>(1) as i32;
    let flags: u64 = ctx.arg(2);
    if ret > 0 && flags & MSG_PEEK == 0 {
        received(ctx.arg(0), ret as u64);
    }
    0
}

/// `int tcp_recvmsg(struct sock *sk, struct msghdr *msg, size_t len, int flags, int *addr_len)`
#[fexit(function = "tcp_recvmsg")]
pub fn tcp_recvmsg(ctx: FExitContext) -> i32 {
    let ret = ctx.arg::<u64>(5) as i32;
    let flags: u64 = ctx.arg(3);
    if ret > 0 && flags & MSG_PEEK == 0 {
        received(ctx.arg(0), ret as u64);
    }
    0
}

/// `sock_send_length(struct sock *sk, int ret, int flags)`, since 6.4: a write call returned.
#[raw_tracepoint(tracepoint = "sock_send_length")]
pub fn sock_send_length(ctx: RawTracePointContext) -> i32 {
    let ret = ctx.arg::<u64>(1) as i32;
    if ret > 0 {
        sent(ctx.arg(0), ret as u64);
    }
    0
}

/// `int tcp_sendmsg(struct sock *sk, struct msghdr *msg, size_t size)`
#[fexit(function = "tcp_sendmsg")]
pub fn tcp_sendmsg_exit(ctx: FExitContext) -> i32 {
    let ret = ctx.arg::<u64>(3) as i32;
    if ret > 0 {
        sent(ctx.arg(0), ret as u64);
    }
    0
}

/// `tcp_sendmsg_locked(const struct sock *sk, const struct msghdr *msg, const struct sk_buff *skb,
/// int size_goal)`, since 6.17: bytes are about to be put into a packet.
#[raw_tracepoint(tracepoint = "tcp_sendmsg_locked")]
pub fn tcp_sendmsg_locked(ctx: RawTracePointContext) -> i32 {
    sending(ctx.arg(0));
    0
}

/// The entry of the same call as [`tcp_sendmsg_exit`].
#[fentry(function = "tcp_sendmsg")]
pub fn tcp_sendmsg_entry(ctx: FEntryContext) -> i32 {
    sending(ctx.arg(0));
    0
}

/// Bytes were queued on a socket. Runs under its lock, so never twice at once for one socket.
#[inline(always)]
fn arrived(sk: u64) {
    let Some(socket) = SOCKETS.get_ptr_mut(sk) else { return };
    let socket = unsafe { &mut *socket };
    match socket.role as u8 {
        role::SERVER => {
            // The oldest stamp stays until a read takes it.
            if socket.queued == 0 && kernel::unread(sk) > 0 {
                socket.queued = kernel::now();
            }
        }
        role::CLIENT => {
            let end = kernel::payload_end(sk);
            if end.wrapping_sub(socket.rcv_nxt) as i32 > 0 {
                let now = kernel::now();
                socket.rcv_nxt = end;
                if socket.s1 == 0 {
                    socket.s1 = now;
                }
                socket.s5 = now;
            }
        }
        _ => {}
    }
}

/// A read returned bytes.
#[inline(always)]
fn received(sk: u64, bytes: u64) {
    let Some(socket) = SOCKETS.get_ptr_mut(sk) else { return adopt(sk, bytes) };
    let socket = unsafe { &mut *socket };
    match socket.role as u8 {
        role::SERVER => request_read(socket, bytes),
        role::DATABASE => turn::received(sk, bytes),
        _ => {}
    }
}

/// The service read bytes of a request; the first after an answer begin the next request.
#[inline(always)]
fn request_read(socket: &mut SocketState, bytes: u64) {
    let now = kernel::now();
    if socket.s5 != 0 {
        // Bytes that arrived before the answer began were sent without waiting for it.
        // Where only the return of the send is known, that cannot be told.
        let pipelined = socket.queued != 0
            && socket.queued < socket.s4
            && socket.flags & flag::S4_AT_RETURN == 0;
        emit::request(socket, if pipelined { flag::PIPELINED } else { 0 });
        next_request(socket);
        if pipelined {
            socket.flags |= flag::PIPELINED;
        }
    }
    if socket.s3 == 0 {
        let (tgid, tid) = kernel::current();
        socket.s3 = now;
        if socket.tid != tid {
            // The thread that accepted handed the connection over.
            thread::answered(socket.tid, tid, socket.conn);
        }
        socket.tid = tid;
        socket.s1 = socket.queued;
        if socket.queued == 0 {
            socket.s1 = now;
            socket.flags |= flag::S1_AT_READ;
        }
        if socket.left_queue == 0 {
            leave_queue(socket, now);
            count(counter::UNSEEN_ACCEPT);
        }
        thread::request_read(tgid, tid, socket.conn);
    }
    socket.queued = 0;
    socket.rx_total += bytes;
}

/// A read on a connection that is not followed: if it is the service's, it was open before the
/// probes were, and is followed from here.
#[inline(always)]
fn adopt(sk: u64, bytes: u64) {
    let family = kernel::family(sk);
    if family != kernel::AF_INET && family != kernel::AF_INET6 {
        return;
    }
    if kernel::local_port(sk) != session!(port) {
        return;
    }
    let (tgid, _) = kernel::current();
    if !maps::is_service(tgid) || kernel::netns_cookie(sk) != session!(netns) {
        return;
    }
    let Some(socket) = connection::follow(sk, role::SERVER, session!(netns)) else { return };
    kernel::read_tuple(sk, &mut socket.tuple);
    socket.flags = flag::ADOPTED;
    socket.left_queue = 1;
    request_read(socket, bytes);
}

/// A write on a connection that is not followed: if it goes to a database of the service, it was
/// open before the probes were, and is followed from here.
#[inline(always)]
fn adopt_database(sk: u64, extra: u32) {
    if !maps::is_db_port(kernel::remote_port(sk)) {
        return;
    }
    let (tgid, _) = kernel::current();
    if !maps::is_service(tgid) {
        return;
    }
    let Some(socket) = connection::follow(sk, role::DATABASE, kernel::netns_cookie(sk)) else {
        return;
    };
    kernel::read_tuple(sk, &mut socket.tuple);
    socket.flags = flag::ADOPTED;
    turn::adopted(sk, socket, extra);
}

/// As [`adopt_database`], where only the return of the send is known.
#[inline(always)]
fn adopt_sent(sk: u64, bytes: u64) {
    let family = kernel::family(sk);
    if family == kernel::AF_INET || family == kernel::AF_INET6 {
        adopt_database(sk, flag::S4_AT_RETURN);
        turn::sent(sk, bytes);
    }
}

/// A write call is about to queue bytes.
#[inline(always)]
fn sending(sk: u64) {
    let Some(socket) = SOCKETS.get_ptr_mut(sk) else { return adopt_database(sk, 0) };
    let socket = unsafe { &mut *socket };
    match socket.role as u8 {
        role::SERVER => {
            if socket.s4 == 0 && socket.s3 != 0 {
                socket.s4 = kernel::now();
            }
        }
        role::DATABASE => turn::sending(sk),
        _ => {
            // The answer to the last request was complete, or this one would not be sent.
            if socket.s5 != 0 {
                emit::client_turn(socket, 0);
                socket.ordinal += 1;
                socket.s1 = 0;
                socket.s5 = 0;
            }
        }
    }
}

/// A write call returned.
#[inline(always)]
fn sent(sk: u64, bytes: u64) {
    let Some(socket) = SOCKETS.get_ptr_mut(sk) else { return adopt_sent(sk, bytes) };
    let socket = unsafe { &mut *socket };
    match socket.role as u8 {
        role::SERVER => {
            socket.tx_total += bytes;
            if socket.s3 == 0 {
                return;
            }
            let now = kernel::now();
            if socket.s4 == 0 {
                socket.s4 = now;
                socket.flags |= flag::S4_AT_RETURN;
            }
            socket.s5 = now;
            let (_, tid) = kernel::current();
            thread::answered(socket.tid, tid, socket.conn);
        }
        role::DATABASE => turn::sent(sk, bytes),
        _ => {}
    }
}
