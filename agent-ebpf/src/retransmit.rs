//! What TCP sends again, of the connections of one network namespace that leave by one interface.
//!
//! An object of its own: the injector loads it with either engine. Nothing here runs unless TCP
//! changes its congestion state or sends something again.
#![no_std]
#![no_main]
#![allow(
    unsafe_code,
    clippy::undocumented_unsafe_blocks,
    clippy::missing_safety_doc,
    missing_docs,
    unreachable_pub,
    reason = "the verifier checks every access, and programs are public to the loader, which gives them \
              an entry point without documentation"
)]

mod object;
mod reads;

use agent_common::receipt::retransmit::{COUNT, PROBES, SEGMENTS, SYNACKS, TIMEOUTS};
use aya_ebpf::{
    macros::{map, raw_tracepoint},
    maps::PerCpuArray,
    programs::RawTracePointContext,
};

use crate::{object::constant, reads::read};

/// `TCP_CA_Recovery` and `TCP_CA_Loss` (include/uapi/linux/tcp.h).
const RECOVERY: u8 = 3;
const LOSS: u8 = 4;
/// `ICSK_TIME_LOSS_PROBE` (include/net/inet_connection_sock.h).
const LOSS_PROBE: u8 = 5;
const AF_INET: u16 = 2;
/// `::1`, in the order of the wire.
const IPV6_LOOPBACK: [u64; 2] = [0, 1u64.to_be()];

/// Index of the interface. Read-only once loaded, like all that follow.
#[unsafe(no_mangle)]
static DEVICE: u32 = 0;
/// 1 if that is the loopback interface.
#[unsafe(no_mangle)]
static IS_LOOPBACK: u32 = 0;
/// Cookie of its network namespace.
#[unsafe(no_mangle)]
static NETNS: u64 = 0;
/// 1 if `tcp_retransmit_skb` also tells what could not be sent.
#[unsafe(no_mangle)]
static TELLS_ERRORS: u32 = 0;
/// `sock_common.skc_net`, and so on.
#[unsafe(no_mangle)]
static SK_NET: u32 = 0;
#[unsafe(no_mangle)]
static SK_DADDR: u32 = 0;
#[unsafe(no_mangle)]
static SK_RCV_SADDR: u32 = 0;
#[unsafe(no_mangle)]
static SK_V6_DADDR: u32 = 0;
#[unsafe(no_mangle)]
static SK_V6_RCV_SADDR: u32 = 0;
/// `sock.sk_dst_cache`
#[unsafe(no_mangle)]
static SK_DST: u32 = 0;
/// `dst_entry.dev`
#[unsafe(no_mangle)]
static DST_DEV: u32 = 0;
/// `net_device.ifindex`
#[unsafe(no_mangle)]
static DEV_IFINDEX: u32 = 0;
/// `net.net_cookie`
#[unsafe(no_mangle)]
static NET_COOKIE: u32 = 0;
/// `inet_connection_sock.icsk_pending`
#[unsafe(no_mangle)]
static PENDING: u32 = 0;
/// `inet_connection_sock.icsk_ca_state`, five bits from this one on.
#[unsafe(no_mangle)]
static CA_STATE_BIT: u32 = 0;
/// `tcp_skb_cb.tcp_gso_segs` within `sk_buff.cb`.
#[unsafe(no_mangle)]
static SKB_SEGMENTS: u32 = 0;
/// `request_sock.rsk_ops`, `request_sock_ops.family`
#[unsafe(no_mangle)]
static REQUEST_OPS: u32 = 0;
#[unsafe(no_mangle)]
static OPS_FAMILY: u32 = 0;

/// What is counted, see [`agent_common::receipt::retransmit`].
#[map]
static COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNT, 0);

/// `tcp_retransmit_skb(const struct sock *sk, const struct sk_buff *skb)`: segments were sent again
/// (`__tcp_retransmit_skb`, net/ipv4/tcp_output.c). Newer kernels also tell, by a third argument, of
/// those that could not be, such as one whose first copy has not left this host yet.
#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn tcp_retransmit_skb(ctx: RawTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    let skb: u64 = ctx.arg(1);
    if constant(&raw const TELLS_ERRORS) != 0 && ctx.arg::<i32>(2) != 0 {
        return 0;
    }
    if !is_ours(sk) {
        return 0;
    }
    let segments = read::<u16>(skb, constant(&raw const SKB_SEGMENTS)).map_or(1, u64::from).max(1);
    count(SEGMENTS, segments);
    if pending(sk) == LOSS_PROBE && !matches!(ca_state(sk), RECOVERY | LOSS) {
        count(PROBES, segments);
    }
    0
}

/// `tcp_cong_state_set(struct sock *sk, const u8 ca_state)`: a retransmission timeout enters Loss,
/// whether the segment can then be sent again or its first copy is still held on this host. The timer
/// is marked as done before (`tcp_write_timer_handler`, net/ipv4/tcp_timer.c), which tells it from a
/// smaller MTU (`tcp_simple_retransmit`).
#[raw_tracepoint(tracepoint = "tcp_cong_state_set")]
pub fn tcp_cong_state_set(ctx: RawTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    if ctx.arg::<u8>(1) == LOSS && pending(sk) == 0 && is_ours(sk) {
        count(TIMEOUTS, 1);
    }
    0
}

/// `tcp_retransmit_synack(const struct sock *sk, const struct request_sock *req)`: by its timer, or
/// since the client's own had sent the SYN again.
#[raw_tracepoint(tracepoint = "tcp_retransmit_synack")]
pub fn tcp_retransmit_synack(ctx: RawTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    let request: u64 = ctx.arg(1);
    if in_namespace(sk) && is_local(request) == (constant(&raw const IS_LOOPBACK) != 0) {
        count(SEGMENTS, 1);
        count(SYNACKS, 1);
    }
    0
}

#[inline(always)]
fn pending(sk: u64) -> u8 {
    // Unknown is no timer.
    read(sk, constant(&raw const PENDING)).unwrap_or(u8::MAX)
}

#[inline(always)]
fn ca_state(sk: u64) -> u8 {
    let bit = constant(&raw const CA_STATE_BIT);
    read::<u8>(sk, bit / 8).map_or(u8::MAX, |byte| (byte >> (bit % 8)) & 0x1f)
}

/// Whether a connection leaves by the interface. One that has lost its route counts: it may.
#[inline(always)]
fn is_ours(sk: u64) -> bool {
    if !in_namespace(sk) {
        return false;
    }
    let index = || -> Option<u32> {
        let route: u64 = read(sk, constant(&raw const SK_DST)).filter(|route| *route != 0)?;
        let device: u64 = read(route, constant(&raw const DST_DEV))?;
        read(device, constant(&raw const DEV_IFINDEX))
    };
    index().is_none_or(|index| index == constant(&raw const DEVICE))
}

#[inline(always)]
fn in_namespace(sk: u64) -> bool {
    let net: Option<u64> = read(sk, constant(&raw const SK_NET));
    net.and_then(|net| read::<u64>(net, constant(&raw const NET_COOKIE)))
        == Some(constant(&raw const NETNS))
}

/// Whether a connection that is being made is one of this host with itself. A request has no route,
/// so that its addresses have to tell.
#[inline(always)]
fn is_local(request: u64) -> bool {
    let ops: u64 = read(request, constant(&raw const REQUEST_OPS)).unwrap_or(0);
    if read::<i32>(ops, constant(&raw const OPS_FAMILY)) == Some(i32::from(AF_INET)) {
        let remote: u32 = read(request, constant(&raw const SK_DADDR)).unwrap_or(0);
        let local: u32 = read(request, constant(&raw const SK_RCV_SADDR)).unwrap_or(0);
        return remote == local || u32::from_be(remote) >> 24 == 127;
    }
    let remote = ipv6(request, constant(&raw const SK_V6_DADDR));
    let local = ipv6(request, constant(&raw const SK_V6_RCV_SADDR));
    remote == local || remote == IPV6_LOOPBACK
}

#[inline(always)]
fn ipv6(request: u64, offset: u32) -> [u64; 2] {
    [read(request, offset).unwrap_or(0), read(request, offset + 8).unwrap_or(0)]
}

#[inline(always)]
fn count(which: u32, by: u64) {
    if let Some(counter) = COUNTS.get_ptr_mut(which) {
        unsafe { *counter += by };
    }
}
