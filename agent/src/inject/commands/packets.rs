//! The options of `agent inject add` that say which packets are impaired, made into a filter.

use super::options::read;
use crate::inject::error::InjectError;
use crate::model::filter::{PacketFilter, Protocol, Selection};

#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "Which packets (all, unless said)")]
pub(super) struct Packets {
    /// Only those to or from this address or range: 10.0.0.5, 10.0.0.0/8, 2001:db8::/32; 0.0.0.0/0
    /// is all of IPv4, ::/0 all of IPv6. Repeatable, as are all that follow.
    #[arg(long, value_name = "CIDR", allow_hyphen_values = true)]
    peer: Vec<String>,
    /// Only those of this port at the interface's side, TCP and UDP.
    #[arg(long, value_name = "PORT", allow_hyphen_values = true)]
    port: Vec<String>,
    /// Only those of this port at the peer's side.
    #[arg(long, value_name = "PORT", allow_hyphen_values = true)]
    peer_port: Vec<String>,
    /// Only those of this protocol. icmp is ICMPv6 as well, but for neighbour discovery.
    #[arg(long, value_enum, value_name = "PROTOCOL")]
    protocol: Vec<Protocol>,
    /// Not those to or from this address or range.
    #[arg(long, value_name = "CIDR", allow_hyphen_values = true)]
    not_peer: Vec<String>,
    /// Not those of this port at the interface's side.
    #[arg(long, value_name = "PORT", allow_hyphen_values = true)]
    not_port: Vec<String>,
    /// Not those of this port at the peer's side.
    #[arg(long, value_name = "PORT", allow_hyphen_values = true)]
    not_peer_port: Vec<String>,
    /// Not those of this protocol.
    #[arg(long, value_enum, value_name = "PROTOCOL")]
    not_protocol: Vec<Protocol>,
}

impl Packets {
    /// Reads what was given, and checks that it makes sense.
    pub(super) fn filter(&self) -> Result<PacketFilter, InjectError> {
        let only = Selection {
            peers: all("--peer", &self.peer, str::parse)?,
            ports: all("--port", &self.port, port)?,
            peer_ports: all("--peer-port", &self.peer_port, port)?,
            protocols: self.protocol.clone(),
        };
        let not = Selection {
            peers: all("--not-peer", &self.not_peer, str::parse)?,
            ports: all("--not-port", &self.not_port, port)?,
            peer_ports: all("--not-peer-port", &self.not_peer_port, port)?,
            protocols: self.not_protocol.clone(),
        };
        let filter = PacketFilter { only, not };
        filter.check()?;
        Ok(filter)
    }
}

fn all<T, E: std::fmt::Display>(
    option: &'static str,
    texts: &[String],
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Vec<T>, InjectError> {
    texts.iter().map(|text| read(option, text, &parse)).collect()
}

/// Port 0 is told by the filter's check.
fn port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number.ok_or_else(|| format!("`{text}` is not a port; give a number from 1 to 65535"))
}
