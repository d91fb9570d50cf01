//! What packets get of an interface's queueing discipline: the delay that netem really gave, which of
//! them went out of order, and how many it held at once.
//!
//! An object of its own: the injector loads it without the measuring programs. A packet is stamped
//! when it is handed to the discipline and counted when it leaves. netem's duplicates, and segments
//! of a packet that it cut up, are packets of their own without a stamp: they do not count.
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

use agent_common::histogram::{self, COLUMNS, ROWS};
use agent_common::receipt::line;
use aya_ebpf::{
    helpers::generated::bpf_ktime_get_ns,
    macros::{map, raw_tracepoint},
    maps::{Array, LruHashMap, PerCpuArray},
    programs::RawTracePointContext,
};

use crate::{object::constant, reads::read};

/// Packets that may be in the discipline at once; as many as it is told to hold.
const MAX_PACKETS: u32 = 131_072;

/// Cookie of the interfaces' network namespace. Read-only once loaded, like all that follow.
#[unsafe(no_mangle)]
static NETNS: u64 = 0;
/// `sk_buff.dev`
#[unsafe(no_mangle)]
static SKB_DEV: u32 = 0;
/// `net_device.ifindex`
#[unsafe(no_mangle)]
static DEV_IFINDEX: u32 = 0;
/// `net_device.nd_net`
#[unsafe(no_mangle)]
static DEV_NET: u32 = 0;
/// `net.net_cookie`
#[unsafe(no_mangle)]
static NET_COOKIE: u32 = 0;
/// `netdev_queue.dev`
#[unsafe(no_mangle)]
static QUEUE_DEV: u32 = 0;
/// `Qdisc.q.qlen`
#[unsafe(no_mangle)]
static QDISC_LENGTH: u32 = 0;

/// Indices of the interfaces, 0 for none: the one that packets leave by, and the ifb of those that
/// arrive.
#[map]
static DEVICES: Array<u32> = Array::with_max_entries(2, 0);

/// A packet that was handed over.
#[derive(Clone, Copy)]
#[repr(C)]
struct Stamp {
    at: u64,
    /// Its place in the order in which the discipline took packets, 0 until that is known.
    ordinal: u64,
}

/// Each packet by its kernel address. One that was dropped stays until its address is stamped again
/// or its place is wanted.
#[map]
static STAMPS: LruHashMap<u64, Stamp> = LruHashMap::with_max_entries(MAX_PACKETS, 0);

/// The histogram of stays, a row an entry.
#[map]
static STAYS: PerCpuArray<[u64; COLUMNS]> = PerCpuArray::with_max_entries(ROWS as u32, 0);

/// Since when packets count: that of the last change. Those that were handed over before got what was
/// in force then.
#[map]
static SINCE: Array<u64> = Array::with_max_entries(1, 0);

/// The longest stay.
#[map]
static LONGEST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The order of packets, per interface.
#[map]
static LINES: Array<[u64; line::COUNT]> = Array::with_max_entries(2, 0);

/// `net_dev_queue(struct sk_buff *skb)`, before the packet is handed to the discipline
/// (`__dev_queue_xmit`, net/core/dev.c).
#[raw_tracepoint(tracepoint = "net_dev_queue")]
pub fn net_dev_queue(ctx: RawTracePointContext) -> i32 {
    let skb: u64 = ctx.arg(0);
    if of_packet(skb).is_some() {
        let _ = STAMPS.insert(skb, Stamp { at: now(), ordinal: 0 }, 0);
    }
    0
}

/// `qdisc_enqueue(struct Qdisc *qdisc, const struct netdev_queue *txq, struct sk_buff *skb)`: the
/// discipline took a packet, and is still locked (`dev_qdisc_enqueue`, net/core/dev.c), so that the
/// line belongs to this processor. By then the packet's device is overwritten. One that netem loses
/// comes here as well: it takes a number and never leaves.
#[raw_tracepoint(tracepoint = "qdisc_enqueue")]
pub fn qdisc_enqueue(ctx: RawTracePointContext) -> i32 {
    let qdisc: u64 = ctx.arg(0);
    let queue: u64 = ctx.arg(1);
    let skb: u64 = ctx.arg(2);
    let device = read(queue, constant(&raw const QUEUE_DEV));
    let Some(line) = device.and_then(which).and_then(|index| LINES.get_ptr_mut(index)) else {
        return 0;
    };
    let length: u32 = read(qdisc, constant(&raw const QDISC_LENGTH)).unwrap_or(0);
    let line = unsafe { &mut *line };
    line[line::TAKEN] += 1;
    line[line::LARGEST] = line[line::LARGEST].max(u64::from(length));
    if let Some(stamp) = STAMPS.get_ptr_mut(skb) {
        unsafe { (*stamp).ordinal = line[line::TAKEN] };
    }
    0
}

/// `qdisc_dequeue(struct Qdisc *qdisc, const struct netdev_queue *txq, int packets,
/// struct sk_buff *skb)`: a packet, or none, left the discipline (net/sched/sch_generic.c).
#[raw_tracepoint(tracepoint = "qdisc_dequeue")]
pub fn qdisc_dequeue(ctx: RawTracePointContext) -> i32 {
    left(ctx.arg(3));
    0
}

/// `net_dev_start_xmit(const struct sk_buff *skb, const struct net_device *dev)`: for those that left
/// in the wake of another one.
#[raw_tracepoint(tracepoint = "net_dev_start_xmit")]
pub fn net_dev_start_xmit(ctx: RawTracePointContext) -> i32 {
    left(ctx.arg(0));
    0
}

/// Only one processor at a time takes packets out of a discipline (`qdisc_run_begin`).
#[inline(always)]
fn left(skb: u64) {
    let Some(stamp) = STAMPS.get_ptr(skb) else { return };
    let Stamp { at, ordinal } = unsafe { *stamp };
    let stay = now().saturating_sub(at);
    let _ = STAMPS.remove(skb);
    let counts = SINCE.get(0).is_none_or(|since| at >= *since);
    // The address may have been another packet's since ours was dropped.
    let Some(index) = of_packet(skb) else { return };
    if counts {
        count(stay);
    }
    if let Some(line) = LINES.get_ptr_mut(index)
        && ordinal > 0
    {
        let line = unsafe { &mut *line };
        if ordinal < line[line::NEWEST_GONE] {
            line[line::REORDERED] += 1;
        } else {
            line[line::NEWEST_GONE] = ordinal;
        }
    }
}

#[inline(always)]
fn count(stay: u64) {
    let (row, column) = histogram::place(stay);
    if let Some(cells) = STAYS.get_ptr_mut(row as u32)
        && let Some(cell) = unsafe { (*cells).get_mut(column) }
    {
        *cell += 1;
    }
    if let Some(longest) = LONGEST.get_ptr_mut(0)
        && stay > unsafe { *longest }
    {
        unsafe { *longest = stay };
    }
}

/// Which of the interfaces a packet is on its way out of.
#[inline(always)]
fn of_packet(skb: u64) -> Option<u32> {
    which(read(skb, constant(&raw const SKB_DEV))?)
}

/// Which of the interfaces the kernel's `struct net_device` is.
#[inline(always)]
fn which(device: u64) -> Option<u32> {
    let index: u32 = read(device, constant(&raw const DEV_IFINDEX))?;
    let is = |place| DEVICES.get(place).is_some_and(|wanted| *wanted == index);
    let place = if is(0) {
        0
    } else if is(1) {
        1
    } else {
        return None;
    };
    let net: u64 = read(device, constant(&raw const DEV_NET))?;
    let cookie: u64 = read(net, constant(&raw const NET_COOKIE))?;
    (cookie == constant(&raw const NETNS)).then_some(place)
}

#[inline(always)]
fn now() -> u64 {
    unsafe { bpf_ktime_get_ns() }
}
