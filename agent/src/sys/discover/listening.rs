//! Who holds listening sockets, and what becomes of them.

use std::collections::HashSet;

use agent_common::wire::Process;

use super::{
    inside::Inside,
    process::{self, Identity},
};
use crate::{model::proc_net, sys::netns::Netns};

/// Listening sockets and those who serve them. Holds their network namespace open.
#[derive(Debug)]
pub struct Listening {
    /// Their network namespace.
    pub netns: Netns,
    /// Number of that namespace.
    pub cookie: u64,
    /// The processes that hold one of them.
    pub processes: Vec<Process>,
    /// Length that listen() was given, capped by somaxconn; 0 if unknown.
    pub backlog: u32,
    identities: Vec<Identity>,
    sockets: HashSet<u64>,
}

/// What has become of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It serves on.
    Same,
    /// Other processes hold its sockets now: [`Service::processes`] names them.
    TakenOver,
    /// Nobody holds its sockets.
    Gone,
}

/// The processes that hold any of these sockets. Under socket activation the init process does too,
/// but it does not serve.
fn holders(sockets: &HashSet<u64>) -> (Vec<Process>, Vec<Identity>) {
    let mut pids: Vec<u32> = process::holders(sockets).into_values().flatten().collect();
    pids.sort_unstable();
    pids.dedup();
    if pids.len() > 1 {
        pids.retain(|&pid| pid != 1);
    }
    pids.into_iter().filter_map(|pid| Some((process::describe(pid), Identity::of(pid)?))).unzip()
}

impl Listening {
    /// Those who hold `sockets` of a namespace; None if no process is seen to.
    pub(super) fn on(netns: &Netns, inside: &Inside, sockets: HashSet<u64>) -> Option<Self> {
        let (processes, identities) = holders(&sockets);
        if processes.is_empty() {
            return None;
        }
        let backlog = sockets.iter().filter_map(|inode| inside.backlogs.get(inode)).min();
        Some(Self {
            cookie: inside.cookie,
            processes,
            backlog: backlog.copied().unwrap_or(0),
            netns: netns.clone(),
            identities,
            sockets,
        })
    }

    /// Process ids of all that hold the listening sockets now.
    #[must_use]
    pub fn current_processes(&self) -> Vec<u32> {
        holders(&self.sockets).0.iter().map(|process| process.pid).collect()
    }

    /// Whether somebody still listens. A service that replaced all its processes but kept its
    /// socket goes on.
    pub fn life(&mut self) -> Life {
        if self.identities.iter().any(Identity::alive) {
            return Life::Same;
        }
        let (processes, identities) = holders(&self.sockets);
        if processes.is_empty() {
            return Life::Gone;
        }
        self.processes = processes;
        self.identities = identities;
        Life::TakenOver
    }

    /// ListenDrops of its namespace; None if the kernel does not tell.
    #[must_use]
    pub fn listen_drops(&self) -> Option<u64> {
        // Not through one of its processes: its sockets may be elsewhere.
        let read = || std::fs::read_to_string("/proc/thread-self/net/netstat").ok();
        proc_net::listen_drops(&self.netns.run(read).ok()??)
    }
}
