//! How long packets stay in an interface's queueing discipline: the delay that netem really gave.
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

use agent_common::histogram::{self, COLUMNS, ROWS};
use aya_ebpf::{
    helpers::{bpf_probe_read_kernel, generated::bpf_ktime_get_ns},
    macros::{map, raw_tracepoint},
    maps::{LruHashMap, PerCpuArray},
    programs::RawTracePointContext,
};

/// Packets that may be in the discipline at once; as many as it is told to hold.
const MAX_PACKETS: u32 = 131_072;

/// Index of the interface. Read-only once loaded, like all that follow.
#[unsafe(no_mangle)]
static DEVICE: u32 = 0;
/// Cookie of its network namespace.
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

/// When each packet was handed over, by its kernel address. One that was dropped stays until its
/// address is stamped again or its place is wanted.
#[map]
static STAMPS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(MAX_PACKETS, 0);

/// The histogram of stays, a row an entry.
#[map]
static STAYS: PerCpuArray<[u64; COLUMNS]> = PerCpuArray::with_max_entries(ROWS as u32, 0);

/// The longest stay.
#[map]
static LONGEST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// `net_dev_queue(struct sk_buff *skb)`, before the packet is handed to the discipline
/// (`__dev_queue_xmit`, net/core/dev.c).
#[raw_tracepoint(tracepoint = "net_dev_queue")]
pub fn net_dev_queue(ctx: RawTracePointContext) -> i32 {
    let skb: u64 = ctx.arg(0);
    if is_ours(skb) {
        let _ = STAMPS.insert(skb, now(), 0);
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

#[inline(always)]
fn left(skb: u64) {
    let Some(stamp) = STAMPS.get_ptr(skb) else { return };
    let stay = now().saturating_sub(unsafe { *stamp });
    let _ = STAMPS.remove(skb);
    // The address may have been another packet's since ours was dropped.
    if !is_ours(skb) {
        return;
    }
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

/// Whether a packet is on its way out of the interface.
#[inline(always)]
fn is_ours(skb: u64) -> bool {
    let of = || -> Option<bool> {
        let dev: u64 = read(skb, constant(&raw const SKB_DEV))?;
        let index: u32 = read(dev, constant(&raw const DEV_IFINDEX))?;
        if index != constant(&raw const DEVICE) {
            return Some(false);
        }
        let net: u64 = read(dev, constant(&raw const DEV_NET))?;
        let cookie: u64 = read(net, constant(&raw const NET_COOKIE))?;
        Some(cookie == unsafe { core::ptr::read_volatile(&raw const NETNS) })
    };
    of().unwrap_or(false)
}

#[inline(always)]
fn read<T: Copy>(base: u64, offset: u32) -> Option<T> {
    unsafe { bpf_probe_read_kernel((base as usize + offset as usize) as *const T) }.ok()
}

/// Volatile, or the compiler would fold the zero that stands in the object file.
#[inline(always)]
fn constant(place: *const u32) -> u32 {
    unsafe { core::ptr::read_volatile(place) }
}

#[inline(always)]
fn now() -> u64 {
    unsafe { bpf_ktime_get_ns() }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
