//! A filter in words.

use std::fmt::{self, Display};

use super::{PacketFilter, Protocol, Selection};

impl Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

/// `packets with peer 10.0.0.0/8 and our port 80 or 81, but not with ...`.
impl Display for PacketFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (only, not) = (kinds(&self.only, " and "), kinds(&self.not, " or "));
        match (only.as_str(), not.as_str()) {
            ("", "") => f.write_str("all packets"),
            ("", not) => write!(f, "all packets but those with {not}"),
            (only, "") => write!(f, "packets with {only}"),
            (only, not) => write!(f, "packets with {only}, but not with {not}"),
        }
    }
}

fn kinds(selection: &Selection, between: &str) -> String {
    let Selection { peers, ports, peer_ports, protocols } = selection;
    let all = [
        values("peer", peers),
        values("our port", ports),
        values("the peer's port", peer_ports),
        values("protocol", protocols),
    ];
    all.into_iter().flatten().collect::<Vec<_>>().join(between)
}

fn values<T: Display>(kind: &str, values: &[T]) -> Option<String> {
    let texts: Vec<String> = values.iter().map(T::to_string).collect();
    (!texts.is_empty()).then(|| format!("{kind} {}", texts.join(" or ")))
}
