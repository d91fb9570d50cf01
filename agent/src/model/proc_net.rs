//! Reads what `/proc/PID/net` says of a network namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// State column of a listening socket.
const LISTEN: &str = "0A";
/// State column of an established connection.
const ESTABLISHED: &str = "01";

/// A listening TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens. A v4-mapped address is given as IPv4.
    pub address: SocketAddr,
    /// Inode of the socket, as in `/proc/PID/fd`.
    pub inode: u64,
}

/// How well a listener fits an address that a client connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// It takes any address of the namespace.
    Wildcard,
    /// It takes exactly this address: the kernel prefers it.
    Exact,
}

impl Listener {
    /// Whether it takes connections to `wanted`, provided the address is its namespace's.
    #[must_use]
    pub fn fits(&self, wanted: SocketAddr) -> Option<Fit> {
        let wanted = SocketAddr::new(wanted.ip().to_canonical(), wanted.port());
        if self.address.port() != wanted.port() {
            return None;
        }
        if self.address.ip() == wanted.ip() {
            return Some(Fit::Exact);
        }
        // `::` takes IPv4 as well unless IPV6_V6ONLY is set, which /proc does not tell.
        let wildcard =
            self.address.ip().is_unspecified() && (self.address.is_ipv6() || wanted.is_ipv4());
        wildcard.then_some(Fit::Wildcard)
    }
}

/// The listening sockets of `/proc/PID/net/tcp` or `tcp6`. Lines that cannot be read are skipped.
pub fn listeners(text: &str) -> impl Iterator<Item = Listener> {
    text.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        if state != LISTEN {
            return None;
        }
        let inode = fields.nth(5)?.parse().ok()?;
        Some(Listener { address: address(local)?, inode })
    })
}

/// An established TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// This end. A v4-mapped address is given as IPv4.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Inode of the socket, as in `/proc/PID/fd`.
    pub inode: u64,
}

/// The established connections of `/proc/PID/net/tcp` or `tcp6`. Lines that cannot be read are
/// skipped.
pub fn connections(text: &str) -> impl Iterator<Item = Connection> {
    text.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (local, remote, state, inode) =
            (fields.get(1)?, fields.get(2)?, fields.get(3)?, fields.get(9)?);
        (*state == ESTABLISHED).then_some(())?;
        Some(Connection {
            local: address(local)?,
            remote: address(remote)?,
            inode: inode.parse().ok()?,
        })
    })
}

/// `0100007F:1F90`: the words of the address in the host's order, the port in network order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok();
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?.to_ne_bytes()).into(),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?.to_ne_bytes());
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

/// `TcpExt: ListenDrops` of `/proc/PID/net/netstat`.
#[must_use]
pub fn listen_drops(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let names = lines.next()?.split_ascii_whitespace();
    let values = lines.next()?.split_ascii_whitespace();
    names.zip(values).find(|(name, _)| *name == "ListenDrops")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 0100007F:1F90 00000000:0000 0A 00000000:00000003 00:00000000 00000000  1000        0 76219 1 0000000000000000 100 0 0 10 0\n   1: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000  1000        0 0 1 0000000000000000 20 4 30 10 -1\n   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0000000000000000 100 0 0 10 0\n";
    const TCP6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 00000000000000000000000000000000:1F91 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0 100 0 0 10 0\n   1: B80D01200000000000000000010000FE:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 13 1 0 100 0 0 10 0\n   2: 0000000000000000FFFF00000100007F:1F92 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 14 1 0 100 0 0 10 0\n";

    #[test]
    #[cfg(target_endian = "little")]
    fn listeners_are_read() {
        let found: Vec<_> = listeners(TCP).chain(listeners(TCP6)).collect();
        let expected = [
            ("127.0.0.1:8080", 76219),
            ("0.0.0.0:22", 11),
            ("[::]:8081", 12),
            ("[2001:db8::fe00:1]:80", 13),
            ("127.0.0.1:8082", 14),
        ];
        assert_eq!(found.len(), expected.len());
        for (listener, (address, inode)) in found.iter().zip(expected) {
            assert_eq!(listener.address, address.parse().unwrap());
            assert_eq!(listener.inode, inode);
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn connections_are_read() {
        let found: Vec<_> = connections(TCP).chain(connections(TCP6)).collect();
        let [one] = found[..] else { panic!("{found:?}") };
        assert_eq!(one.local, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(one.remote, "127.0.0.1:54321".parse().unwrap());
        assert_eq!(one.inode, 0);
    }

    #[test]
    fn fits() {
        let listener = |address: &str| Listener { address: address.parse().unwrap(), inode: 1 };
        for (listens, wanted, fit) in [
            ("10.0.0.1:80", "10.0.0.1:80", Some(Fit::Exact)),
            ("10.0.0.1:80", "[::ffff:10.0.0.1]:80", Some(Fit::Exact)),
            ("10.0.0.1:80", "10.0.0.1:81", None),
            ("10.0.0.1:80", "10.0.0.2:80", None),
            ("0.0.0.0:80", "10.0.0.2:80", Some(Fit::Wildcard)),
            ("0.0.0.0:80", "[fe80::1]:80", None),
            ("[::]:80", "10.0.0.2:80", Some(Fit::Wildcard)),
            ("[::]:80", "[fe80::1]:80", Some(Fit::Wildcard)),
        ] {
            assert_eq!(listener(listens).fits(wanted.parse().unwrap()), fit, "{listens} {wanted}");
        }
    }

    #[test]
    fn listen_drops_are_found_by_name() {
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPX\nTcpExt: 1 22 33 4\nIpExt: A\nIpExt: 5\n";
        assert_eq!(listen_drops(text), Some(33));
        assert_eq!(listen_drops("TcpExt: A\n"), None);
        assert_eq!(listen_drops("TcpExt: A\nTcpExt: 1\n"), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(\\PC*\n){0,4}") {
            let _ = listeners(&text).count();
            let _ = connections(&text).count();
            let _ = listen_drops(&text);
        }
    }
}
