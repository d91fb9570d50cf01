//! Finds the service behind an address: its network namespace, its processes, its backlog.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use agent_common::wire;

use super::netns::{Netns, NetnsError};
use crate::model::{
    permission::Place,
    proc_net::{self, Fit, Listener},
};

mod inside;
mod listening;
mod process;
mod serving;
mod wanted;

use inside::Inside;
pub(super) use process::Identity;

pub use listening::{Life, Listening};
pub use process::thread_name;
pub use serving::{Route, Serving, ServingError, serving};
pub use wanted::{Wanted, WantedError, wanted};

/// How many other listeners an error names.
const NAMED_IN_ERRORS: usize = 6;

/// Why no service was found.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// The address belongs to another host.
    #[error(
        "no network namespace on this host has the address {0}: run the agent on the service's host"
    )]
    NotHere(std::net::IpAddr),
    /// The address is here, but nobody listens.
    #[error("nobody listens on {address}; start the service first ({})", nearby(.others))]
    Nobody {
        /// Asked for.
        address: SocketAddr,
        /// What listens in that namespace, with the process's name.
        others: Vec<String>,
    },
    /// More than one namespace has the address and a listener.
    #[error(
        "{address} is ambiguous: somebody listens there in {} network namespaces ({}); run the load \
         generator in the service's namespace, or use an address that only one has",
         .namespaces.len(), .namespaces.join(", ")
    )]
    Ambiguous {
        /// Asked for.
        address: SocketAddr,
        /// What they are called.
        namespaces: Vec<String>,
    },
    /// Somebody listens, but no process can be seen to hold the socket.
    #[error(
        "somebody listens on {0}, but no process on this host holds that socket: is it in another \
         pid namespace, or has it just ended?"
    )]
    NoProcess(SocketAddr),
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

fn nearby(others: &[String]) -> String {
    if others.is_empty() {
        "nothing else listens there".to_owned()
    } else {
        format!("there are: {}", others.join(", "))
    }
}

/// A service that was found.
#[derive(Debug)]
pub struct Service {
    /// Who listens, and where.
    pub listening: Listening,
    /// The address that was asked for.
    pub address: SocketAddr,
    /// Interface that carries the address.
    pub device: String,
    /// Where that interface is.
    pub place: Place,
    /// Whether the peer is in the same network namespace, so that its packets travel over `lo`.
    pub beside_peer: bool,
}

/// The interface that carries `ip` in the calling thread's namespace, if it is local there.
///
/// # Errors
/// The kernel does not tell.
pub fn device_of(ip: std::net::IpAddr) -> std::io::Result<Option<String>> {
    Ok(Inside::look()?.device_of(ip).map(str::to_owned))
}

/// A namespace with what listens in it.
struct Namespace {
    netns: Netns,
    listeners: Vec<Listener>,
}

/// Finds the service that answers on `address` for a process like `peer`.
///
/// # Errors
/// [`DiscoverError`].
pub fn find(address: SocketAddr, peer: Option<u32>) -> Result<Service, DiscoverError> {
    let address = wire::canonical(address);
    let peer_inode = peer.and_then(process::namespace_of);
    let all = namespaces();
    let mut candidates = Vec::new();
    for namespace in &all {
        let listens = namespace.listeners.iter().any(|l| l.fits(address).is_some());
        // The peer's own namespace goes first: what is local there never leaves it.
        let of_peer = Some(namespace.netns.inode()) == peer_inode;
        if listens || of_peer {
            let inside = look(&namespace.netns)?;
            let Some(device) = inside.device_of(address.ip()).map(str::to_owned) else { continue };
            let candidate = Candidate { namespace, inside, device };
            if of_peer {
                candidates = vec![candidate];
                break;
            }
            candidates.push(candidate);
        }
    }
    candidates.retain(|c| c.namespace.listeners.iter().any(|l| l.fits(address).is_some()));
    // Any user can make a namespace that mirrors another. One of the host's own stands above it.
    if candidates.iter().any(|c| c.inside.of_host) {
        candidates.retain(|c| c.inside.of_host);
    }
    if candidates.len() > 1 {
        let namespaces = candidates.iter().map(|c| c.namespace.netns.label().to_owned()).collect();
        return Err(DiscoverError::Ambiguous { address, namespaces });
    }
    match candidates.pop() {
        Some(candidate) => candidate.service(address, peer_inode),
        None => Err(nobody(address, &all, peer_inode)),
    }
}

/// What root may call a network namespace.
fn place(netns: &Netns) -> Place {
    let same = |other: &Netns| other.inode() == netns.inode();
    let names = Netns::names().into_iter();
    Place {
        host: Netns::current().is_ok_and(|current| same(&current)),
        names: names.filter(|name| Netns::named(name).is_ok_and(|named| same(&named))).collect(),
    }
}

struct Candidate<'a> {
    namespace: &'a Namespace,
    inside: Inside,
    device: String,
}

impl Candidate<'_> {
    fn service(
        self,
        address: SocketAddr,
        peer_inode: Option<u64>,
    ) -> Result<Service, DiscoverError> {
        let sockets = best(&self.namespace.listeners, address);
        let netns = &self.namespace.netns;
        Ok(Service {
            listening: Listening::on(netns, &self.inside, sockets)
                .ok_or(DiscoverError::NoProcess(address))?,
            address,
            device: self.device,
            place: place(netns),
            beside_peer: Some(netns.inode()) == peer_inode,
        })
    }
}

/// Sockets that take connections to `address`: those bound to it if there are any. With
/// SO_REUSEPORT there are several.
fn best(listeners: &[Listener], address: SocketAddr) -> HashSet<u64> {
    let of = |fit: Fit| -> HashSet<u64> {
        let fitting = listeners.iter().filter(|l| l.fits(address) == Some(fit));
        fitting.map(|l| l.inode).collect()
    };
    let exact = of(Fit::Exact);
    if exact.is_empty() { of(Fit::Wildcard) } else { exact }
}

/// Every namespace that a process is in or that has a name. A service's sockets may be in one that
/// none of its processes is in.
fn namespaces() -> Vec<Namespace> {
    let mut found = Vec::new();
    let of_processes = process::namespaces();
    for pids in of_processes.values() {
        // The first process that is still there speaks for all.
        found.extend(pids.iter().find_map(|&pid| {
            let listeners = listeners(&format!("/proc/{pid}/net"))?;
            let netns = Netns::of_pid(pid).ok()?;
            // By its name, if it has one: that outlives the process.
            let netns = Netns::with_name(netns.inode()).unwrap_or(netns);
            Some(Namespace { netns, listeners })
        }));
    }
    for netns in Netns::names().iter().filter_map(|name| Netns::named(name).ok()) {
        if !of_processes.contains_key(&netns.inode())
            && let Ok(Some(listeners)) = netns.run(|| listeners("/proc/thread-self/net"))
        {
            found.push(Namespace { netns, listeners });
        }
    }
    found
}

fn listeners(directory: &str) -> Option<Vec<Listener>> {
    let tcp = std::fs::read_to_string(format!("{directory}/tcp")).ok()?;
    // There is no tcp6 where IPv6 is off.
    let tcp6 = std::fs::read_to_string(format!("{directory}/tcp6")).unwrap_or_default();
    Some(proc_net::listeners(&tcp).chain(proc_net::listeners(&tcp6)).collect())
}

fn look(netns: &Netns) -> Result<Inside, DiscoverError> {
    netns
        .run(Inside::look)?
        .map_err(|source| DiscoverError::Look { netns: netns.label().to_owned(), source })
}

/// The error where no namespace has both the address and a listener: which of the two is missing.
fn nobody(address: SocketAddr, all: &[Namespace], peer_inode: Option<u64>) -> DiscoverError {
    let mut here: Vec<&Namespace> = all
        .iter()
        .filter(|namespace| {
            look(&namespace.netns).is_ok_and(|inside| inside.device_of(address.ip()).is_some())
        })
        .collect();
    if here.is_empty() {
        return DiscoverError::NotHere(address.ip());
    }
    if here.iter().any(|namespace| Some(namespace.netns.inode()) == peer_inode) {
        here.retain(|namespace| Some(namespace.netns.inode()) == peer_inode);
    }
    let mut listeners: Vec<Listener> =
        here.iter().flat_map(|namespace| namespace.listeners.iter().copied()).collect();
    // The nearest ports first: a slip of the finger is the usual reason.
    listeners.sort_by_key(|l| (l.address.port().abs_diff(address.port()), l.address));
    listeners.dedup_by_key(|l| l.address);
    listeners.truncate(NAMED_IN_ERRORS);
    let held = process::holders(&listeners.iter().map(|l| l.inode).collect());
    let others = listeners.iter().map(|l| name(l, &held)).collect();
    DiscoverError::Nobody { address, others }
}

/// `127.0.0.1:5432 (postgres)`.
fn name(listener: &Listener, held: &HashMap<u64, Vec<u32>>) -> String {
    let pid = held.get(&listener.inode).and_then(|pids| pids.first());
    match pid.and_then(|&pid| thread_name(pid, pid)) {
        Some(comm) => format!("{} ({comm})", listener.address),
        None => listener.address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_socket_wins_over_the_wildcard() {
        let listener = |address: &str, inode| Listener { address: address.parse().unwrap(), inode };
        let all = [
            listener("0.0.0.0:80", 1),
            listener("10.0.0.1:80", 2),
            listener("10.0.0.1:80", 3),
            listener("10.0.0.1:81", 4),
        ];
        let best = |address: &str| {
            let mut found: Vec<_> =
                super::best(&all, address.parse().unwrap()).into_iter().collect();
            found.sort_unstable();
            found
        };
        assert_eq!(best("10.0.0.1:80"), [2, 3]);
        assert_eq!(best("10.0.0.2:80"), [1]);
        assert!(best("10.0.0.2:81").is_empty());
    }

    #[test]
    fn errors_name_what_listens_nearby() {
        let error = DiscoverError::Nobody {
            address: "10.0.0.1:8000".parse().unwrap(),
            others: vec!["10.0.0.1:8001 (gunicorn)".into()],
        };
        assert_eq!(
            error.to_string(),
            "nobody listens on 10.0.0.1:8000; start the service first (there are: 10.0.0.1:8001 \
             (gunicorn))"
        );
    }
}
