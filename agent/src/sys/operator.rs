//! The SSH session that the operator types in: the connection that must not be impaired by mistake.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::process;
use crate::model::proc_net::{self, Connection};

/// What the process at the server's end of an SSH session is called: OpenSSH before and since 9.8,
/// and Dropbear.
const SERVERS: [&str; 3] = ["sshd", "sshd-session", "dropbear"];
/// Shells, multiplexers and sudo lie between; more than this is a loop.
const MAX_ANCESTORS: usize = 64;

/// A session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its connection; `remote` is where the operator sits.
    pub connection: Connection,
    /// Inode of the network namespace that it is in.
    pub netns_inode: u64,
}

/// The SSH session that this process was started from, if any. The environment's SSH_CONNECTION is
/// not asked: sudo removes it.
#[must_use]
pub fn ssh_session() -> Option<Session> {
    let mut pid = std::process::id();
    for _ in 0..MAX_ANCESTORS {
        pid = process::stat(pid).map(|stat| stat.parent).filter(|parent| *parent > 0)?;
        if let Some(session) = session_of(pid) {
            return Some(session);
        }
    }
    None
}

fn session_of(pid: u32) -> Option<Session> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let comm = String::from_utf8_lossy(&comm).into_owned();
    if !SERVERS.contains(&comm.trim_end()) {
        return None;
    }
    let sockets: HashSet<u64> = fs::read_dir(format!("/proc/{pid}/fd"))
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let link = fs::read_link(entry.path()).ok()?;
            link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        })
        .collect();
    let table = |name: &str| fs::read_to_string(format!("/proc/{pid}/net/{name}")).ok();
    let (tcp, tcp6) = (table("tcp").unwrap_or_default(), table("tcp6").unwrap_or_default());
    let connection = proc_net::connections(&tcp)
        .chain(proc_net::connections(&tcp6))
        .find(|connection| sockets.contains(&connection.inode))?;
    let netns_inode = fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino();
    Some(Session { connection, netns_inode })
}
