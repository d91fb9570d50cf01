//! The options of `agent inject add` that say which packets are impaired, made into a filter.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::options::read;
use crate::inject::error::InjectError;
use crate::model::filter::{PacketFilter, Protocol, Selection};
use crate::sys::discover::{Route, serving};
use crate::sys::netns::Netns;

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
    /// Only the clients of the server that listens on this port: as --port PORT --protocol tcp, once
    /// it is seen to listen.
    #[arg(long, value_name = "PORT", conflicts_with_all = OWN, allow_hyphen_values = true)]
    service_clients: Option<String>,
    /// Only the database connections of the server that listens on this port: TCP to a --db-port.
    /// Those of other processes of the namespace to the same port are impaired as well.
    #[arg(long, value_name = "PORT", conflicts_with_all = OWN, allow_hyphen_values = true)]
    #[arg(conflicts_with = "service_clients")]
    service_db: Option<String>,
    /// Port of that server's database [default: 5432].
    #[arg(long, value_name = "PORT", requires = "service_db", allow_hyphen_values = true)]
    db_port: Vec<String>,
}

/// What the options that name a server say themselves.
const OWN: [&str; 3] = ["port", "peer_port", "protocol"];
/// PostgreSQL's.
const DB_PORT: u16 = 5432;

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
        let mut filter = PacketFilter { only, not };
        if let Some(text) = &self.service_clients {
            filter.only.ports = vec![read("--service-clients", text, port)?];
            filter.only.protocols = vec![Protocol::Tcp];
        }
        if let Some(text) = &self.service_db {
            read("--service-db", text, port)?;
            filter.only.peer_ports = match all("--db-port", &self.db_port, port)? {
                none if none.is_empty() => vec![DB_PORT],
                given => given,
            };
            filter.only.protocols = vec![Protocol::Tcp];
        }
        filter.check()?;
        Ok(filter)
    }

    /// Looks at the server that was named, if one was, and says what is in the scope and not its own.
    ///
    /// # Errors
    /// Nobody listens there, or none of what was asked for can come by `device`.
    pub(super) fn see_server(
        &self,
        filter: &PacketFilter,
        netns: &Netns,
        device: &str,
    ) -> Result<Option<String>, InjectError> {
        if let Some(text) = &self.service_clients {
            let server = serving(netns, read("--service-clients", text, port)?)?;
            if device != "lo" && server.listens.iter().all(IpAddr::is_loopback) {
                return Err(InjectError::OtherInterface {
                    what: format!("the clients of {}", server.name),
                    device: device.to_owned(),
                    others: "lo".to_owned(),
                });
            }
            return Ok(Some(format!("these are the clients of {}", server.name)));
        }
        let Some(text) = &self.service_db else { return Ok(None) };
        let server = serving(netns, read("--service-db", text, port)?)?;
        let databases = |routes: &[Route]| -> Vec<Route> {
            let is_database = |route: &&Route| filter.only.peer_ports.contains(&route.to.port());
            routes.iter().filter(is_database).cloned().collect()
        };
        let (its, others) = (databases(&server.opened), databases(&server.others));
        let ways: BTreeSet<&str> = its.iter().filter_map(|route| route.device.as_deref()).collect();
        if !ways.is_empty() && !ways.contains(device) {
            return Err(InjectError::OtherInterface {
                what: format!("the database connections of {}", server.name),
                device: device.to_owned(),
                others: ways.into_iter().collect::<Vec<_>>().join(", "),
            });
        }
        let to: BTreeSet<String> = its.iter().map(|route| route.to.to_string()).collect();
        let now = match its.len() {
            0 => "none is open now".to_owned(),
            n => format!("{n} open now, to {}", to.into_iter().collect::<Vec<_>>().join(", ")),
        };
        Ok(Some(format!(
            "these are the database connections of {} ({now}), and those of other processes of this \
             namespace to the same port ({} open now)",
            server.name,
            others.len()
        )))
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
