//! The way of an impaired packet: off the device into our veth, and from there back to the device;
//! and, where only some packets are impaired, which.
//!
//! An object of its own: the injector loads it without the measuring programs and their maps. The two
//! that redirect are attached by tcx links (Linux 6.6), which end with the agent.
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
mod scope;

use aya_ebpf::{
    bindings::tcx_action_base::TCX_NEXT,
    helpers::generated::bpf_redirect,
    macros::{classifier, socket_filter},
    programs::{SkBuffContext, TcContext},
};

use crate::{object::constant, scope::At};

const ETH_P_IP: u32 = (0x0800u16).to_be() as u32;
const ETH_P_IPV6: u32 = (0x86DDu16).to_be() as u32;

/// Index of the impaired device. Read-only once loaded.
#[unsafe(no_mangle)]
static DEVICE: u32 = 0;
/// Index of our veth beside it.
#[unsafe(no_mangle)]
static VETH: u32 = 0;
/// Whether only some packets are impaired, 0 or 1.
#[unsafe(no_mangle)]
static FILTERED: u32 = 0;

/// Whether the helper bridge can hold it: plain IPv4 and IPv6. A VLAN device passes its packets down
/// here tagged; they would cross the bridge without a stop.
#[inline(always)]
fn can_be_held(ctx: &TcContext) -> bool {
    let (protocol, tagged) = unsafe { ((*ctx.skb.skb).protocol, (*ctx.skb.skb).vlan_present) };
    tagged == 0 && (protocol == ETH_P_IP || protocol == ETH_P_IPV6)
}

/// At the device's egress: what did not come from our veth goes there. `sch_handle_egress`,
/// net/core/dev.c.
#[classifier]
pub fn redirect_away(ctx: TcContext) -> i32 {
    let veth = constant(&raw const VETH);
    let came_from = unsafe { (*ctx.skb.skb).ingress_ifindex };
    if came_from == veth || !can_be_held(&ctx) {
        return TCX_NEXT;
    }
    if constant(&raw const FILTERED) != 0 && !scope::takes(ctx.skb.skb, At::Tc) {
        return TCX_NEXT;
    }
    unsafe { bpf_redirect(veth, 0) as i32 }
}

/// At our veth's ingress: back to the device. `sch_handle_ingress`, net/core/dev.c.
#[classifier]
pub fn redirect_back(ctx: TcContext) -> i32 {
    if !can_be_held(&ctx) {
        return TCX_NEXT;
    }
    unsafe { bpf_redirect(constant(&raw const DEVICE), 0) as i32 }
}

/// For a filter of traffic control: -1 is a match, 0 is none. `cls_bpf_classify`,
/// net/sched/cls_bpf.c.
#[classifier]
pub fn picked(ctx: TcContext) -> i32 {
    if scope::takes(ctx.skb.skb, At::Tc) { -1 } else { 0 }
}

/// For the rule that queues packets: those it returns other than 0 for. `bpf_mt_v1`,
/// net/netfilter/xt_bpf.c.
#[socket_filter]
pub fn queued(ctx: SkBuffContext) -> i64 {
    i64::from(scope::takes(ctx.skb.skb, At::Netfilter))
}
