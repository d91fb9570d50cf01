//! Whether a packet is one of those that are impaired: reads its headers and asks the filter.
//!
//! ARP, neighbour discovery and the tagged packets of VLAN devices are never in a filter's scope: the
//! first two are about the link, the last are another interface's.

use agent_common::filter::{Filter, ICMP, Packet, TCP, UDP, UNTOLD, V4, V6};
use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_RDONLY_PROG, bpf_hdr_start_off::BPF_HDR_START_NET},
    helpers::generated::{bpf_skb_load_bytes, bpf_skb_load_bytes_relative, bpf_skb_pull_data},
    macros::map,
    maps::Array,
};

const ETH_P_IP: u32 = (0x0800u16).to_be() as u32;
const ETH_P_IPV6: u32 = (0x86DDu16).to_be() as u32;

/// Protocol numbers of IPv6's extension headers (RFC 8200, RFC 4302, RFC 6275).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const ICMPV6: u8 = 58;
/// Extension headers that are followed; nobody sends more.
const MAX_EXTENSIONS: usize = 8;
/// ICMPv6 types of neighbour discovery (RFC 4861).
const NEIGHBOUR_DISCOVERY: core::ops::RangeInclusive<u8> = 133..=137;
/// Bytes that are made readable where headers are not: the longest that are followed, and the link
/// layer's.
const HEADERS: u32 = 512;

/// The rules. Written before any program is attached.
#[map]
static FILTER: Array<Filter> = Array::with_max_entries(1, BPF_F_RDONLY_PROG);

/// Where a program runs, and so how it reads headers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    /// Traffic control: the packet begins with its link-layer header, of whatever length.
    Tc,
    /// A netfilter hook: the packet begins with its network header.
    Netfilter,
}

/// Whether the packet is to be impaired.
#[inline(always)]
pub(crate) fn takes(skb: *mut __sk_buff, at: At) -> bool {
    let Some(filter) = FILTER.get(0) else { return false };
    match packet(skb, at) {
        Some(packet) => filter.takes(&packet),
        None => false,
    }
}

/// None for what is in no filter's scope.
#[inline(always)]
fn packet(skb: *mut __sk_buff, at: At) -> Option<Packet> {
    let (protocol, tagged) = unsafe { ((*skb).protocol, (*skb).vlan_present) };
    if tagged != 0 {
        return None;
    }
    match protocol {
        ETH_P_IP => v4(skb, at),
        ETH_P_IPV6 => v6(skb, at),
        _ => None,
    }
}

#[inline(always)]
fn v4(skb: *mut __sk_buff, at: At) -> Option<Packet> {
    let header: [u8; 12] = load(skb, at, 0)?;
    let addresses: [u32; 2] = load(skb, at, 12)?;
    let mut packet = Packet {
        source: [addresses[0], 0, 0, 0],
        destination: [addresses[1], 0, 0, 0],
        family: V4,
        protocol: header[9],
        ..Packet::default()
    };
    let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    if offset == 0 {
        // With whatever options.
        ports(skb, at, u32::from(header[0] & 0xf) * 4, &mut packet);
    }
    Some(packet)
}

#[inline(always)]
fn v6(skb: *mut __sk_buff, at: At) -> Option<Packet> {
    let mut next: u8 = load(skb, at, 6)?;
    let mut packet = Packet {
        source: load(skb, at, 8)?,
        destination: load(skb, at, 24)?,
        family: V6,
        protocol: UNTOLD,
        ..Packet::default()
    };
    let mut offset = 40u32;
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(next) {
            break;
        }
        let Some(header) = load::<[u8; 4]>(skb, at, offset) else { return Some(packet) };
        let length = u32::from(header[1]);
        if next == FRAGMENT && u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0 {
            if !is_extension(header[0]) {
                packet.protocol = told(header[0]);
            }
            return Some(packet);
        }
        offset += match next {
            FRAGMENT => 8,
            AUTHENTICATION => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        next = header[0];
    }
    if is_extension(next) {
        return Some(packet);
    }
    packet.protocol = told(next);
    if next == ICMPV6 {
        if let Some(kind) = load::<u8>(skb, at, offset)
            && NEIGHBOUR_DISCOVERY.contains(&kind)
        {
            return None;
        }
    } else {
        ports(skb, at, offset, &mut packet);
    }
    Some(packet)
}

#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY)
}

/// ICMP and ICMPv6 are one to a filter, and IPv4's ICMP within IPv6 is neither.
#[inline(always)]
fn told(protocol: u8) -> u8 {
    match protocol {
        ICMPV6 => ICMP,
        ICMP => UNTOLD,
        other => other,
    }
}

#[inline(always)]
fn ports(skb: *mut __sk_buff, at: At, offset: u32, packet: &mut Packet) {
    if packet.protocol != TCP && packet.protocol != UDP {
        return;
    }
    if let Some(ports) = load::<[u16; 2]>(skb, at, offset) {
        packet.source_port = u16::from_be(ports[0]);
        packet.destination_port = u16::from_be(ports[1]);
        packet.has_ports = true;
    }
}

/// Reads from `offset` of the network header.
#[inline(always)]
fn load<T: Copy>(skb: *mut __sk_buff, at: At, offset: u32) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    let (to, len) = (value.as_mut_ptr().cast(), size_of::<T>() as u32);
    let read = match at {
        At::Netfilter => unsafe { bpf_skb_load_bytes(skb.cast(), offset, to, len) },
        At::Tc => {
            let relative = || unsafe {
                bpf_skb_load_bytes_relative(skb.cast(), offset, to, len, BPF_HDR_START_NET)
            };
            // It reads no further than the linear part; headers are seldom elsewhere.
            match relative() {
                0 => 0,
                _ => {
                    let all = unsafe { (*skb).len };
                    unsafe { bpf_skb_pull_data(skb, if all < HEADERS { all } else { HEADERS }) };
                    relative()
                }
            }
        }
    };
    if read == 0 { Some(unsafe { value.assume_init() }) } else { None }
}
