//! Finds a service by its port or one of its processes, when no address is known.

use std::collections::HashSet;

use super::{
    NAMED_IN_ERRORS, Namespace,
    listening::Listening,
    look, name, namespaces, nearby,
    process::{self, describe},
};
use crate::{
    model::{proc_net::Listener, text},
    sys::netns::{Netns, NetnsError},
};

/// Why no service was found.
#[derive(Debug, thiserror::Error)]
pub enum WantedError {
    /// No such process.
    #[error("there is no process {0}; see `ps -e`")]
    NoSuchProcess(u32),
    /// It does not listen at all.
    #[error(
        "process {pid} ({comm}) listens on no TCP port: name the process that does, or its port with \
         --port"
    )]
    ListensNot {
        /// The process.
        pid: u32,
        /// What it is called.
        comm: String,
    },
    /// It listens, but not there.
    #[error("process {pid} ({comm}) does not listen on port {port}, but on {}", list(.ports))]
    ListensElsewhere {
        /// The process.
        pid: u32,
        /// What it is called.
        comm: String,
        /// The port that was asked for.
        port: u16,
        /// Those that it has.
        ports: Vec<u16>,
    },
    /// It listens on several ports.
    #[error("process {pid} ({comm}) listens on several ports: choose one of them with --port ({})",
        list(.ports))]
    SeveralPorts {
        /// The process.
        pid: u32,
        /// What it is called.
        comm: String,
        /// They.
        ports: Vec<u16>,
    },
    /// Nobody listens.
    #[error("nobody listens on port {port}; start the service first ({})", nearby(.others))]
    Nobody {
        /// The port that was asked for.
        port: u16,
        /// What listens on this host, with the process's name.
        others: Vec<String>,
    },
    /// Services of several namespaces listen there.
    #[error(
        "port {port} is ambiguous: somebody listens there in {} network namespaces ({}); choose one \
         with --pid, by a process that listens",
        .who.len(), .who.join(", ")
    )]
    Ambiguous {
        /// The port that was asked for.
        port: u16,
        /// Namespace and process of each.
        who: Vec<String>,
    },
    /// Somebody listens, but no process can be seen to hold the socket.
    #[error(
        "somebody listens on port {0}, but no process on this host holds that socket: is it in \
         another pid namespace, or has it just ended?"
    )]
    NoProcess(u16),
    /// A namespace cannot be looked at.
    #[error(transparent)]
    Look(#[from] super::DiscoverError),
    /// The agent's own namespace cannot be told.
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

fn list(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// Which service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Whoever listens on this port: in the agent's own network namespace if anybody does there,
    /// else in the only other one.
    Port(u16),
    /// Whoever shares the listening sockets of this process, of this port if it has several.
    Process(u32, Option<u16>),
}

/// Finds who listens, and on which port.
///
/// # Errors
/// [`WantedError`].
pub fn wanted(wanted: Wanted) -> Result<(Listening, u16), WantedError> {
    let all = namespaces();
    let (namespace, port, sockets) = match wanted {
        Wanted::Port(port) => on_port(&all, port)?,
        Wanted::Process(pid, port) => of_process(&all, pid, port)?,
    };
    let inside = look(&namespace.netns)?;
    let listening = Listening::on(&namespace.netns, &inside, sockets);
    Ok((listening.ok_or(WantedError::NoProcess(port))?, port))
}

type Found<'a> = (&'a Namespace, u16, HashSet<u64>);

/// The sockets of a namespace that listen on a port, on whichever address.
fn sockets(namespace: &Namespace, port: u16) -> HashSet<u64> {
    let there = namespace.listeners.iter().filter(|l| l.address.port() == port);
    there.map(|listener| listener.inode).collect()
}

fn of_process(all: &[Namespace], pid: u32, port: Option<u16>) -> Result<Found<'_>, WantedError> {
    let held = process::sockets(pid).ok_or(WantedError::NoSuchProcess(pid))?;
    let comm = text::printable(&describe(pid).comm);
    let of = |namespace: &Namespace| -> Vec<Listener> {
        namespace.listeners.iter().filter(|l| held.contains(&l.inode)).copied().collect()
    };
    let mut ports: Vec<u16> = all.iter().flat_map(of).map(|l| l.address.port()).collect();
    ports.sort_unstable();
    ports.dedup();
    let port = match (port, &ports[..]) {
        (_, []) => return Err(WantedError::ListensNot { pid, comm }),
        (Some(port), _) if ports.contains(&port) => port,
        (Some(port), _) => return Err(WantedError::ListensElsewhere { pid, comm, port, ports }),
        (None, [port]) => *port,
        (None, _) => return Err(WantedError::SeveralPorts { pid, comm, ports }),
    };
    // Its sockets may be in a namespace that it is not in.
    let place = all.iter().find(|namespace| of(namespace).iter().any(|l| l.address.port() == port));
    let namespace = place.ok_or(WantedError::NoProcess(port))?;
    // Whoever else listens on that port there is measured with it: the probes go by port.
    Ok((namespace, port, sockets(namespace, port)))
}

fn on_port(all: &[Namespace], port: u16) -> Result<Found<'_>, WantedError> {
    let own = Netns::current()?.inode();
    let mut there: Vec<&Namespace> =
        all.iter().filter(|namespace| !sockets(namespace, port).is_empty()).collect();
    // What a client on this host would reach goes first.
    if there.iter().any(|namespace| namespace.netns.inode() == own) {
        there.retain(|namespace| namespace.netns.inode() == own);
    }
    match there[..] {
        [] => Err(WantedError::Nobody { port, others: others(all, port) }),
        [namespace] => Ok((namespace, port, sockets(namespace, port))),
        _ => {
            Err(WantedError::Ambiguous { port, who: there.iter().map(|n| who(n, port)).collect() })
        }
    }
}

/// The namespace and a process that listens there: `shop: pid 812 (gunicorn)`.
fn who(namespace: &Namespace, port: u16) -> String {
    let label = namespace.netns.label();
    let held = process::holders(&sockets(namespace, port));
    match held.values().flatten().min() {
        Some(&pid) => format!("{label}: pid {pid} ({})", text::printable(&describe(pid).comm)),
        None => label.to_owned(),
    }
}

/// What listens anywhere, the nearest ports first: a slip of the finger is the usual reason.
fn others(all: &[Namespace], port: u16) -> Vec<String> {
    let mut listeners: Vec<Listener> =
        all.iter().flat_map(|namespace| namespace.listeners.iter().copied()).collect();
    listeners.sort_by_key(|l| (l.address.port().abs_diff(port), l.address));
    listeners.dedup_by_key(|l| l.address);
    listeners.truncate(NAMED_IN_ERRORS);
    let held = process::holders(&listeners.iter().map(|l| l.inode).collect());
    listeners.iter().map(|l| text::printable(&name(l, &held))).collect()
}
