//! Which packets are impaired: rules as the agent hands them to the kernel half, and the one place
//! that decides. `no_std`.
//!
//! A packet is taken if no exclusion fits it and an inclusion does, or there are none. Where a packet
//! does not tell what a rule asks for (the later fragments of a datagram have no ports), an inclusion
//! does not fit and an exclusion does: what is in doubt is left alone.

/// Rules of each kind at most.
pub const MAX_RULES: usize = 32;

/// `Rule::family` and `Packet::family`: IPv4.
pub const V4: u8 = 4;
/// IPv6.
pub const V6: u8 = 6;

/// `Rule::protocol` and `Packet::protocol`: ICMP, and ICMPv6 as well.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// Of a packet whose headers do not tell. Reserved by IANA.
pub const UNTOLD: u8 = 255;

/// `Filter::ways`: packets on their way out are judged, whose source is our end.
pub const LEAVING: u32 = 1;
/// Packets on their way in, whose destination is our end. Both on loopback, where each packet does
/// both.
pub const ARRIVING: u32 = 2;

/// An address in network byte order; IPv4 takes the first word.
pub type Address = [u32; 4];

/// What a packet has to be like. Zero leaves a thing open.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The peer's address, as far as `mask` says.
    pub peer: Address,
    /// Ones where the address has to be equal.
    pub mask: Address,
    /// Port of our end, host order.
    pub our_port: u16,
    /// Port of the peer's end.
    pub peer_port: u16,
    /// [`V4`] or [`V6`].
    pub family: u8,
    /// [`TCP`], [`UDP`] or [`ICMP`].
    pub protocol: u8,
    /// Always zero.
    pub pad: u16,
}

/// All rules.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// [`LEAVING`], [`ARRIVING`] or both.
    pub ways: u32,
    /// How many exclusions there are.
    pub exclusions: u32,
    /// How many inclusions there are.
    pub inclusions: u32,
    /// Always zero.
    pub pad: u32,
    /// What is left alone.
    pub exclude: [Rule; MAX_RULES],
    /// What is taken.
    pub include: [Rule; MAX_RULES],
}

/// What is known of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
    pub source: Address,
    /// Where it goes.
    pub destination: Address,
    /// [`V4`] or [`V6`].
    pub family: u8,
    /// [`UNTOLD`] if the headers do not tell; [`ICMP`] for ICMPv6 too.
    pub protocol: u8,
    /// Whether the ports are known: not of later fragments.
    pub has_ports: bool,
    /// Host order.
    pub source_port: u16,
    /// Host order.
    pub destination_port: u16,
}

impl Filter {
    /// Whether a packet is impaired.
    #[inline(always)]
    #[must_use]
    pub fn takes(&self, packet: &Packet) -> bool {
        if any(&self.exclude, self.exclusions, packet, self.ways, true) {
            return false;
        }
        self.inclusions == 0 || any(&self.include, self.inclusions, packet, self.ways, false)
    }
}

#[inline(always)]
fn any(
    rules: &[Rule; MAX_RULES],
    count: u32,
    packet: &Packet,
    ways: u32,
    if_in_doubt: bool,
) -> bool {
    for (index, rule) in rules.iter().enumerate() {
        if index >= count as usize {
            break;
        }
        if ways & LEAVING != 0 && fits(rule, packet, true, if_in_doubt) {
            return true;
        }
        if ways & ARRIVING != 0 && fits(rule, packet, false, if_in_doubt) {
            return true;
        }
    }
    false
}

#[inline(always)]
fn fits(rule: &Rule, packet: &Packet, leaving: bool, if_in_doubt: bool) -> bool {
    if rule.family != 0 {
        let peer = if leaving { &packet.destination } else { &packet.source };
        let other = (peer[0] ^ rule.peer[0]) & rule.mask[0]
            | (peer[1] ^ rule.peer[1]) & rule.mask[1]
            | (peer[2] ^ rule.peer[2]) & rule.mask[2]
            | (peer[3] ^ rule.peer[3]) & rule.mask[3];
        if rule.family != packet.family || other != 0 {
            return false;
        }
    }
    let asks_for_ports = rule.our_port != 0 || rule.peer_port != 0;
    if packet.protocol == UNTOLD {
        return if_in_doubt || rule.protocol == 0 && !asks_for_ports;
    }
    if rule.protocol != 0 && rule.protocol != packet.protocol {
        return false;
    }
    if !asks_for_ports {
        return true;
    }
    if packet.protocol != TCP && packet.protocol != UDP {
        return false;
    }
    if !packet.has_ports {
        return if_in_doubt;
    }
    let (ours, peers) = if leaving {
        (packet.source_port, packet.destination_port)
    } else {
        (packet.destination_port, packet.source_port)
    };
    (rule.our_port == 0 || rule.our_port == ours)
        && (rule.peer_port == 0 || rule.peer_port == peers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> Packet {
        Packet {
            source: [1, 0, 0, 0],
            destination: [2, 0, 0, 0],
            family: V4,
            protocol: TCP,
            has_ports: true,
            source_port: 8000,
            destination_port: 40_000,
        }
    }

    fn filter(ways: u32, include: &[Rule], exclude: &[Rule]) -> Filter {
        let mut filter = Filter {
            ways,
            exclusions: exclude.len() as u32,
            inclusions: include.len() as u32,
            pad: 0,
            exclude: [Rule::default(); MAX_RULES],
            include: [Rule::default(); MAX_RULES],
        };
        filter.exclude[..exclude.len()].copy_from_slice(exclude);
        filter.include[..include.len()].copy_from_slice(include);
        filter
    }

    #[test]
    fn our_end_is_the_source_of_what_leaves() {
        let port = |our_port| Rule { our_port, ..Rule::default() };
        assert!(filter(LEAVING, &[port(8000)], &[]).takes(&packet()));
        assert!(!filter(ARRIVING, &[port(8000)], &[]).takes(&packet()));
        assert!(filter(ARRIVING, &[port(40_000)], &[]).takes(&packet()));
        assert!(filter(LEAVING | ARRIVING, &[port(40_000)], &[]).takes(&packet()));
        assert!(!filter(LEAVING | ARRIVING, &[port(40_001)], &[]).takes(&packet()));
    }

    #[test]
    fn no_rule_takes_all_and_exclusions_win() {
        let all = Rule::default();
        assert!(filter(LEAVING, &[], &[]).takes(&packet()));
        assert!(!filter(LEAVING, &[all], &[all]).takes(&packet()));
        let mine = Rule { our_port: 8000, ..all };
        // On loopback one of the two ends is enough.
        assert!(!filter(LEAVING | ARRIVING, &[], &[mine]).takes(&packet()));
        assert!(filter(ARRIVING, &[], &[mine]).takes(&packet()));
    }

    #[test]
    fn what_is_in_doubt_is_left_alone() {
        let later = Packet { has_ports: false, protocol: UDP, ..packet() };
        let unread = Packet { has_ports: false, protocol: UNTOLD, ..packet() };
        let port = Rule { our_port: 53, ..Rule::default() };
        let udp = Rule { protocol: UDP, ..Rule::default() };
        let peer = Rule { family: V4, peer: [2, 0, 0, 0], mask: [!0, 0, 0, 0], ..Rule::default() };
        for packet in [later, unread] {
            assert!(!filter(LEAVING, &[port], &[]).takes(&packet));
            assert!(!filter(LEAVING, &[], &[port]).takes(&packet));
            assert!(filter(LEAVING, &[peer], &[]).takes(&packet));
        }
        assert!(filter(LEAVING, &[udp], &[]).takes(&later));
        assert!(!filter(LEAVING, &[udp], &[]).takes(&unread));
        assert!(!filter(LEAVING, &[], &[udp]).takes(&unread));
        // No ICMP packet has ports: there is no doubt.
        let ping = Packet { has_ports: false, protocol: ICMP, ..packet() };
        assert!(filter(LEAVING, &[], &[port]).takes(&ping));
    }

    #[test]
    fn families_do_not_mix() {
        // An empty mask: all of a family.
        let v6 = Rule { family: V6, ..Rule::default() };
        assert!(!filter(LEAVING, &[v6], &[]).takes(&packet()));
        assert!(filter(LEAVING, &[v6], &[]).takes(&Packet { family: V6, ..packet() }));
    }
}
