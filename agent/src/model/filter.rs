//! Which packets of an interface are impaired: by peer, port and protocol.
//!
//! Kinds are joined by "and", several of one kind by "or", and an exclusion of any kind wins.
//! [`agent_common::filter`] decides on each packet.

mod check;
mod cidr;
mod words;

use std::net::{IpAddr, SocketAddr};

use agent_common::filter::{self, Filter, LEAVING, MAX_RULES, Packet, Rule};
use serde::{Deserialize, Serialize};

pub use check::FilterError;
pub use cidr::{Cidr, CidrError};

use super::impairment::Direction;

/// Which packets; [`Default`] is all. "Ours" is the side of the impaired interface's namespace,
/// "peer" the other, whichever way a packet goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PacketFilter {
    /// What a packet has to be like: as one says in each kind that says anything.
    #[serde(default)]
    pub only: Selection,
    /// What is left alone: what is as any one of these says.
    #[serde(default)]
    pub not: Selection,
}

/// Values of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// Addresses of the peer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Cidr>,
    /// Ports of our end, TCP and UDP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// Ports of the peer's end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peer_ports: Vec<u16>,
    /// Protocols.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protocols: Vec<Protocol>,
}

/// A protocol that a filter can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6, but for neighbour discovery, which is never filtered.
    Icmp,
}

impl Protocol {
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => filter::TCP,
            Self::Udp => filter::UDP,
            Self::Icmp => filter::ICMP,
        }
    }
}

impl Selection {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Every combination of one of each kind.
    fn combinations(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for peer in choices(&self.peers) {
            for our_port in choices(&self.ports) {
                for peer_port in choices(&self.peer_ports) {
                    for protocol in choices(&self.protocols) {
                        let rule = Rule {
                            our_port: our_port.copied().unwrap_or(0),
                            peer_port: peer_port.copied().unwrap_or(0),
                            protocol: protocol.map_or(0, |protocol| protocol.number()),
                            ..Rule::default()
                        };
                        rules.push(peer.map_or(rule, |peer| peer.narrow(rule)));
                    }
                }
            }
        }
        rules
    }

    /// How many combinations there are.
    fn count(&self) -> usize {
        let Self { peers, ports, peer_ports, protocols } = self;
        [peers.len(), ports.len(), peer_ports.len(), protocols.len()]
            .into_iter()
            .fold(1, |product: usize, len| product.saturating_mul(len.max(1)))
    }

    /// One rule for each value.
    fn each(&self) -> Vec<Rule> {
        let any = Rule::default();
        let peers = self.peers.iter().map(|peer| peer.narrow(any));
        let ports = self.ports.iter().map(|&our_port| Rule { our_port, ..any });
        let peer_ports = self.peer_ports.iter().map(|&peer_port| Rule { peer_port, ..any });
        let protocols = self.protocols.iter().map(|p| Rule { protocol: p.number(), ..any });
        peers.chain(ports).chain(peer_ports).chain(protocols).collect()
    }
}

/// The values, or one that is left open.
fn choices<T>(values: &[T]) -> Vec<Option<&T>> {
    if values.is_empty() { vec![None] } else { values.iter().map(Some).collect() }
}

impl PacketFilter {
    /// Whether it lets every packet be impaired.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.only.is_empty() && self.not.is_empty()
    }

    /// The rules for packets that go `ways` ([`filter::LEAVING`], [`filter::ARRIVING`] or both).
    ///
    /// # Errors
    /// More rules than there is room for.
    pub fn rules(&self, ways: u32) -> Result<Filter, FilterError> {
        // Counted first: a product can be beyond all memory.
        if self.only.count() > MAX_RULES {
            return Err(FilterError::TooMany(self.only.count()));
        }
        let include = if self.only.is_empty() { vec![] } else { self.only.combinations() };
        let exclude = self.not.each();
        let (include, inclusions) = table(&include)?;
        let (exclude, exclusions) = table(&exclude)?;
        Ok(Filter { ways, exclusions, inclusions, pad: 0, exclude, include })
    }

    /// Whether an impairment in this direction takes packets of a TCP connection.
    #[must_use]
    pub fn takes_connection(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        direction: Direction,
    ) -> bool {
        let packet = |from: SocketAddr, to: SocketAddr| {
            let (family, source) = address(from.ip());
            let (_, destination) = address(to.ip());
            Packet {
                source,
                destination,
                family,
                protocol: filter::TCP,
                has_ports: true,
                source_port: from.port(),
                destination_port: to.port(),
            }
        };
        let takes = |ways, packet| self.rules(ways).is_ok_and(|rules| rules.takes(&packet));
        direction.leaves() && takes(LEAVING, packet(local, remote))
            || direction.arrives() && takes(filter::ARRIVING, packet(remote, local))
    }
}

fn table(rules: &[Rule]) -> Result<([Rule; MAX_RULES], u32), FilterError> {
    let mut table = [Rule::default(); MAX_RULES];
    let room = table.get_mut(..rules.len()).ok_or(FilterError::TooMany(rules.len()))?;
    room.copy_from_slice(rules);
    Ok((table, rules.len() as u32))
}

/// Family and words of an address.
fn address(ip: IpAddr) -> (u8, filter::Address) {
    match ip.to_canonical() {
        IpAddr::V4(ip) => (filter::V4, [u32::from_ne_bytes(ip.octets()), 0, 0, 0]),
        IpAddr::V6(ip) => {
            let mut words = [0; 4];
            for (word, bytes) in words.iter_mut().zip(ip.octets().as_chunks::<4>().0) {
                *word = u32::from_ne_bytes(*bytes);
            }
            (filter::V6, words)
        }
    }
}

#[cfg(test)]
mod tests;
