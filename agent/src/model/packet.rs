//! The length of a packet on the line, from what a netfilter queue shows of it.

/// Length of an Ethernet header.
const ETHERNET: u32 = 14;
const PROTOCOL_TCP: u8 = 6;
const UDP_HEADER: u32 = 8;

/// Bytes of the headers of IP and of TCP or UDP that `ip` begins with; None if it is too short or
/// something else. Extension headers of IPv6 are not followed.
#[must_use]
pub fn headers_bytes(ip: &[u8]) -> Option<u32> {
    let first = *ip.first()?;
    let (network, protocol) = match first >> 4 {
        4 => (u32::from(first & 0xf) * 4, *ip.get(9)?),
        6 => (40, *ip.get(6)?),
        _ => return None,
    };
    if protocol != PROTOCOL_TCP {
        return Some(network + UDP_HEADER);
    }
    let data_offset = *ip.get(network as usize + 12)? >> 4;
    Some(network + u32::from(data_offset) * 4)
}

/// Bytes on the line of a packet of `ip_bytes`, its Ethernet header included. With
/// `segment_header_bytes`, it is many segments behind one header, and each of them, full up to
/// `mtu`, gets one: as netem counts (`qdisc_pkt_len_init`, net/core/dev.c).
#[must_use]
pub fn wire_bytes(ip_bytes: u32, segment_header_bytes: Option<u32>, mtu: u32) -> u64 {
    let whole = u64::from(ip_bytes + ETHERNET);
    let Some(header) = segment_header_bytes else { return whole };
    let segment = mtu.saturating_sub(header).max(1);
    let segments = ip_bytes.saturating_sub(header).div_ceil(segment);
    whole + u64::from(segments.saturating_sub(1)) * u64::from(header + ETHERNET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_measured() {
        let mut tcp = [0; 60];
        (tcp[0], tcp[9], tcp[32]) = (0x45, PROTOCOL_TCP, 0x80);
        assert_eq!(headers_bytes(&tcp), Some(52));
        let mut six = [0; 80];
        (six[0], six[6], six[52]) = (0x60, PROTOCOL_TCP, 0x50);
        assert_eq!(headers_bytes(&six), Some(60));
        let mut udp = [0; 28];
        (udp[0], udp[9]) = (0x46, 17);
        assert_eq!(headers_bytes(&udp), Some(32));
        assert_eq!(headers_bytes(&tcp[..20]), None);
        assert_eq!(headers_bytes(&[]), None);
    }

    #[test]
    fn each_segment_has_its_headers() {
        assert_eq!(wire_bytes(1500, None, 1500), 1514);
        // Three segments of 1448 bytes: 3 x 1514.
        assert_eq!(wire_bytes(52 + 3 * 1448, Some(52), 1500), 3 * 1514);
        // And one of a single byte.
        assert_eq!(wire_bytes(52 + 3 * 1448 + 1, Some(52), 1500), 3 * 1514 + 67);
        assert_eq!(wire_bytes(0, Some(52), 0), 14);
    }
}
