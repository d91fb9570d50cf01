//! rtnetlink messages about network devices: those that make the helper bridge's, and what a dump
//! says of one. Layouts: `linux/rtnetlink.h`, `linux/if_link.h`, `linux/veth.h`.

use super::nlmsg::{Attrs, array, find, read_u32, text};

/// `RTM_NEWLINK`.
pub const NEWLINK: u16 = 16;
/// `RTM_DELLINK`.
pub const DELLINK: u16 = 17;
/// `RTM_GETLINK`.
pub const GETLINK: u16 = 18;

/// Length of `struct ifinfomsg`.
pub const IFINFOMSG: usize = 16;
/// `ARPHRD_ETHER`: frames begin with an Ethernet header.
pub const ARPHRD_ETHER: u16 = 1;
/// `ARPHRD_LOOPBACK`: what leaves arrives.
pub const ARPHRD_LOOPBACK: u16 = 772;
/// Largest MTU of a veth.
const MTU_MAX: u32 = 65_535;

const IFF_UP: u32 = 0x1;
const IFF_NOARP: u32 = 0x80;

/// `IFLA_*`.
mod attr {
    pub(super) const IFNAME: u16 = 3;
    pub(super) const MTU: u16 = 4;
    pub(super) const MASTER: u16 = 10;
    pub(super) const TXQLEN: u16 = 13;
    pub(super) const LINKINFO: u16 = 18;
    pub(super) const STATS64: u16 = 23;
    pub(super) const AF_SPEC: u16 = 26;
    pub(super) const NET_NS_FD: u16 = 28;
    pub(super) const LINK_NETNSID: u16 = 37;
    pub(super) const GSO_MAX_SEGS: u16 = 40;
    pub(super) const GSO_MAX_SIZE: u16 = 41;
    pub(super) const TARGET_NETNSID: u16 = 46;
}

const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const INFO_SLAVE_KIND: u16 = 4;
const INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;
const BR_MCAST_SNOOPING: u16 = 23;
const BR_NF_CALL_IPTABLES: u16 = 36;
const BR_NF_CALL_IP6TABLES: u16 = 37;
const BRPORT_STATE: u16 = 1;
const BRPORT_MODE: u16 = 4;
const BRPORT_LEARNING: u16 = 8;
const BRPORT_UNICAST_FLOOD: u16 = 9;
const BR_STATE_FORWARDING: u8 = 3;
const AF_INET6: u16 = 10;
const INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_NONE: u8 = 1;

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: i32,
    /// Its name.
    pub name: String,
    /// Length of its transmit queue in packets. Adding a qdisc to an interface without one sets it
    /// to 1000 (`net/sched/sch_api.c`, qdisc_create).
    pub tx_queue_len: u32,
    /// What it is a part of, if it is.
    pub master: Option<Master>,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// What its frames begin with (`ARPHRD_*`).
    pub hardware: u16,
    /// Largest segments that it takes whole.
    pub gso: Gso,
    /// Whether it is a bridge's port that forwards.
    pub forwarding: bool,
    /// Of a veth whose peer is in another namespace: what that namespace is called here.
    pub peer_netnsid: Option<u32>,
    /// What went through it.
    pub counters: Counters,
}

/// What an interface is a part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    /// Index of that interface.
    pub index: i32,
    /// Its kind, such as `bridge`, `bond` or `vrf`; empty if it has none.
    pub kind: String,
}

/// Limits of segmentation offload; 0 where the kernel does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gso {
    /// Bytes.
    pub max_bytes: u32,
    /// Segments.
    pub max_segments: u32,
}

impl Gso {
    /// The kernel's limits for a device that sets none.
    const DEFAULT: Self = Self { max_bytes: 65_536, max_segments: 65_535 };
}

/// A device's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets dropped either way.
    pub dropped: u64,
}

/// A `struct ifinfomsg` that names an interface; 0 is none in particular.
#[must_use]
pub fn about(index: i32) -> Attrs {
    with_flags(index, 0)
}

fn with_flags(index: i32, flags: u32) -> Attrs {
    let mut bytes = [0; IFINFOMSG];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    // Only these flags change.
    bytes[12..16].copy_from_slice(&flags.to_ne_bytes());
    Attrs::new().raw(&bytes)
}

/// Asks for the interfaces of another namespace, by what it is called in the asking one.
#[must_use]
pub fn all_in(netnsid: u32) -> Attrs {
    about(0).put_u32(attr::TARGET_NETNSID, netnsid)
}

/// Sets the length of a transmit queue.
#[must_use]
pub fn set_tx_queue_len(index: i32, packets: u32) -> Attrs {
    about(index).put_u32(attr::TXQLEN, packets)
}

/// Makes a device of a kind that needs no more to be said, such as `ifb`.
#[must_use]
pub fn new_device(name: &str, kind: &str) -> Attrs {
    about(0)
        .put_text(attr::IFNAME, name)
        .put_nested(attr::LINKINFO, Attrs::new().put_text(INFO_KIND, kind))
}

/// Makes a bridge whose packets meet the IP families' netfilter hooks and that asks nobody about
/// multicast groups.
#[must_use]
pub fn new_bridge(name: &str) -> Attrs {
    let data = Attrs::new()
        .put(BR_MCAST_SNOOPING, &[0])
        .put(BR_NF_CALL_IPTABLES, &[1])
        .put(BR_NF_CALL_IP6TABLES, &[1]);
    let info = Attrs::new().put_text(INFO_KIND, "bridge").put_nested(INFO_DATA, data);
    about(0)
        .put_text(attr::IFNAME, name)
        .put_u32(attr::MTU, MTU_MAX)
        .put_nested(attr::LINKINFO, info)
}

/// Makes a veth pair: one end here, by index and name, and `peer` in the namespace that the file descriptor `netns`
/// stands for. Both take segments as large as `gso` says, and no less than the default.
#[must_use]
pub fn new_veth(here: (i32, &str), peer: &str, netns: u32, gso: Gso) -> Attrs {
    let end = |attrs: Attrs, name: &str| {
        attrs
            .put_text(attr::IFNAME, name)
            .put_u32(attr::MTU, MTU_MAX)
            .put_u32(attr::GSO_MAX_SIZE, gso.max_bytes.max(Gso::DEFAULT.max_bytes))
            .put_u32(attr::GSO_MAX_SEGS, gso.max_segments.max(Gso::DEFAULT.max_segments))
    };
    let peer = end(about(0), peer).put_u32(attr::NET_NS_FD, netns);
    let info = Attrs::new()
        .put_text(INFO_KIND, "veth")
        .put_nested(INFO_DATA, Attrs::new().put_nested(VETH_INFO_PEER, peer));
    end(about(here.0), here.1).put_nested(attr::LINKINFO, info)
}

/// Makes an interface a port of a bridge.
#[must_use]
pub fn set_master(index: i32, bridge: i32) -> Attrs {
    about(index).put(attr::MASTER, &bridge.to_ne_bytes())
}

/// A port that sends everything back to where it came from.
#[must_use]
pub fn set_reflecting_port(index: i32) -> Attrs {
    let data = Attrs::new()
        .put(BRPORT_MODE, &[1])
        .put(BRPORT_LEARNING, &[0])
        .put(BRPORT_UNICAST_FLOOD, &[1]);
    let info = Attrs::new().put_text(INFO_SLAVE_KIND, "bridge").put_nested(INFO_SLAVE_DATA, data);
    about(index).put_nested(attr::LINKINFO, info)
}

/// No IPv6 address of its own making.
#[must_use]
pub fn set_no_ipv6_address(index: i32) -> Attrs {
    let inet6 = Attrs::new().put(INET6_ADDR_GEN_MODE, &[ADDR_GEN_NONE]);
    about(index).put_nested(attr::AF_SPEC, Attrs::new().put_nested(AF_INET6, inet6))
}

/// Up, without ARP.
#[must_use]
pub fn set_up(index: i32) -> Attrs {
    with_flags(index, IFF_UP | IFF_NOARP)
}

impl Link {
    /// Reads the body of an [`NEWLINK`] message.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let attributes = body.get(IFINFOMSG..)?;
        let number =
            |kind| find(attributes, kind).and_then(|value| read_u32(value, 0)).unwrap_or(0);
        Some(Self {
            index: array(body, 4).map(i32::from_ne_bytes)?,
            name: text(find(attributes, attr::IFNAME)?),
            tx_queue_len: number(attr::TXQLEN),
            master: master(attributes),
            mtu: number(attr::MTU),
            hardware: array(body, 2).map(u16::from_ne_bytes)?,
            gso: Gso {
                max_bytes: number(attr::GSO_MAX_SIZE),
                max_segments: number(attr::GSO_MAX_SEGS),
            },
            forwarding: port_state(attributes) == Some(BR_STATE_FORWARDING),
            peer_netnsid: find(attributes, attr::LINK_NETNSID).and_then(|id| read_u32(id, 0)),
            counters: find(attributes, attr::STATS64).and_then(counters).unwrap_or_default(),
        })
    }
}

fn master(attributes: &[u8]) -> Option<Master> {
    let index = array(find(attributes, attr::MASTER)?, 0).map(i32::from_ne_bytes)?;
    let kind = find(attributes, attr::LINKINFO).and_then(|info| find(info, INFO_SLAVE_KIND));
    Some(Master { index, kind: kind.map(text).unwrap_or_default() })
}

fn port_state(attributes: &[u8]) -> Option<u8> {
    let port = find(find(attributes, attr::LINKINFO)?, INFO_SLAVE_DATA)?;
    find(port, BRPORT_STATE)?.first().copied()
}

/// The first fields of a `struct rtnl_link_stats64`: packets in and out, bytes, errors, drops.
fn counters(stats: &[u8]) -> Option<Counters> {
    let at = |index: usize| array(stats, index * 8).map(u64::from_ne_bytes);
    Some(Counters { rx_packets: at(0)?, tx_packets: at(1)?, dropped: at(6)?.checked_add(at(7)?)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dumped_link_is_read() {
        let mut stats = [0u8; 200];
        for (index, value) in [(0, 5u64), (1, 4), (6, 1), (7, 2)] {
            stats[index * 8..index * 8 + 8].copy_from_slice(&value.to_ne_bytes());
        }
        let port = Attrs::new().put(BRPORT_STATE, &[BR_STATE_FORWARDING]);
        let info = Attrs::new().put_text(INFO_SLAVE_KIND, "bridge");
        let mut header = [0; IFINFOMSG];
        header[2..4].copy_from_slice(&ARPHRD_ETHER.to_ne_bytes());
        header[4..8].copy_from_slice(&7i32.to_ne_bytes());
        let body = Attrs::new()
            .raw(&header)
            .put_text(attr::IFNAME, "eth7")
            .put_u32(attr::TXQLEN, 1000)
            .put_u32(attr::MTU, 1500)
            .put_u32(attr::MASTER, 4)
            .put_u32(attr::GSO_MAX_SIZE, 65_536)
            .put_u32(attr::LINK_NETNSID, 3)
            .put(attr::STATS64, &stats)
            .put_nested(attr::LINKINFO, info.put_nested(INFO_SLAVE_DATA, port));
        let expected = Link {
            index: 7,
            name: "eth7".to_owned(),
            tx_queue_len: 1000,
            master: Some(Master { index: 4, kind: "bridge".to_owned() }),
            mtu: 1500,
            hardware: ARPHRD_ETHER,
            gso: Gso { max_bytes: 65_536, max_segments: 0 },
            forwarding: true,
            peer_netnsid: Some(3),
            counters: Counters { rx_packets: 5, tx_packets: 4, dropped: 3 },
        };
        assert_eq!(Link::parse(body.as_bytes()), Some(expected));
        assert_eq!(Link::parse(about(7).as_bytes()), None);
        assert_eq!(Link::parse(&[]), None);
    }

    #[test]
    fn both_ends_of_a_pair_take_what_the_device_takes() {
        let large = Gso { max_bytes: 200_000, max_segments: 10 };
        let message = new_veth((5, "a"), "b", 9, large);
        let attributes = &message.as_bytes()[IFINFOMSG..];
        let data = find(find(attributes, attr::LINKINFO).unwrap(), INFO_DATA).unwrap();
        let peer = &find(data, VETH_INFO_PEER).unwrap()[IFINFOMSG..];
        for (end, name) in [(attributes, "a"), (peer, "b")] {
            assert_eq!(text(find(end, attr::IFNAME).unwrap()), name);
            let number = |kind| read_u32(find(end, kind).unwrap(), 0);
            assert_eq!(number(attr::GSO_MAX_SIZE), Some(200_000));
            assert_eq!(number(attr::GSO_MAX_SEGS), Some(65_535));
            assert_eq!(number(attr::MTU), Some(65_535));
        }
        assert_eq!(read_u32(find(peer, attr::NET_NS_FD).unwrap(), 0), Some(9));
    }
}
