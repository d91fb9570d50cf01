//! A server in a given network namespace, by its port: where it listens, and the connections that it
//! opened itself.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use super::inside::Inside;
use super::{NAMED_IN_ERRORS, listeners, name, nearby, process};
use crate::model::proc_net::{self, Connection, Listener};
use crate::sys::netns::{Netns, NetnsError};

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// Nobody listens.
    #[error(
        "nobody listens on port {port} in network namespace {netns}; start the server first ({})",
        nearby(.others)
    )]
    Nobody {
        /// The port that was asked for.
        port: u16,
        /// Where.
        netns: String,
        /// What listens there, with the process's name.
        others: Vec<String>,
    },
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The namespace cannot be looked at.
    #[error("cannot look about in network namespace {netns}: {source}")]
    Look {
        /// What it is called.
        netns: String,
        /// The kernel's reason.
        source: std::io::Error,
    },
}

/// A server.
#[derive(Debug)]
pub struct Serving {
    /// Its main process's name; its port if no process is seen to hold the socket.
    pub name: String,
    /// Where it listens.
    pub listens: Vec<IpAddr>,
    /// Connections that its processes opened, with the interface that each goes through if that can
    /// be told.
    pub opened: Vec<Route>,
    /// Those of every other process of the namespace.
    pub others: Vec<Route>,
}

/// A connection, and its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub to: SocketAddr,
    /// Interface that carries its own address; `lo` if the other end is here as well.
    pub device: Option<String>,
}

/// Who listens on `port` in `netns`.
///
/// # Errors
/// [`ServingError`].
pub fn serving(netns: &Netns, port: u16) -> Result<Serving, ServingError> {
    let look = |source| ServingError::Look { netns: netns.label().to_owned(), source };
    let (listening, connections, inside) = netns
        .run(|| {
            let directory = "/proc/thread-self/net";
            let table = |name| std::fs::read_to_string(format!("{directory}/{name}"));
            let tcp = table("tcp")?;
            // There is no tcp6 where IPv6 is off.
            let tcp6 = table("tcp6").unwrap_or_default();
            let both = proc_net::connections(&tcp).chain(proc_net::connections(&tcp6));
            let connections: Vec<Connection> = both.collect();
            std::io::Result::Ok((
                listeners(directory).unwrap_or_default(),
                connections,
                Inside::look()?,
            ))
        })?
        .map_err(look)?;
    let (ours, others): (Vec<Listener>, Vec<Listener>) =
        listening.into_iter().partition(|listener| listener.address.port() == port);
    if ours.is_empty() {
        return Err(ServingError::Nobody {
            port,
            netns: netns.label().to_owned(),
            others: names(others, port),
        });
    }
    let taken: HashSet<u16> =
        ours.iter().chain(&others).map(|listener| listener.address.port()).collect();
    // What comes from a port that somebody listens on was accepted.
    let opened: Vec<Connection> = connections
        .into_iter()
        .filter(|connection| !taken.contains(&connection.local.port()))
        .collect();
    let sockets = ours.iter().map(|listener| listener.inode);
    let held = process::holders(&sockets.clone().chain(opened.iter().map(|c| c.inode)).collect());
    let pids: HashSet<u32> =
        sockets.filter_map(|inode| held.get(&inode)).flatten().copied().collect();
    let of_server = |connection: &Connection| {
        held.get(&connection.inode).is_some_and(|by| by.iter().any(|pid| pids.contains(pid)))
    };
    let (opened, others): (Vec<Connection>, Vec<Connection>) =
        opened.into_iter().partition(of_server);
    let routes = |all: Vec<Connection>| all.iter().map(|c| route(c, &inside)).collect();
    Ok(Serving {
        name: ours.first().map(|listener| name(listener, &held)).unwrap_or_default(),
        listens: ours.iter().map(|listener| listener.address.ip()).collect(),
        opened: routes(opened),
        others: routes(others),
    })
}

fn route(connection: &Connection, inside: &Inside) -> Route {
    let here = inside.device_of(connection.remote.ip()).map(|_| "lo");
    let device = here.or_else(|| inside.device_of(connection.local.ip()));
    Route { to: connection.remote, device: device.map(str::to_owned) }
}

/// The nearest ports first: a slip of the finger is the usual reason.
fn names(mut others: Vec<Listener>, port: u16) -> Vec<String> {
    others.sort_by_key(|l| (l.address.port().abs_diff(port), l.address));
    others.dedup_by_key(|l| l.address);
    others.truncate(NAMED_IN_ERRORS);
    let held = process::holders(&others.iter().map(|l| l.inode).collect());
    others.iter().map(|l| name(l, &held)).collect()
}
