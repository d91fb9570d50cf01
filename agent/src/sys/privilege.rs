//! What the agent keeps of root's capabilities once it is set up.

use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};

/// What a session needs: probes and impairments come and go with it.
const KEPT: [Capability; 8] = [
    // Load programs and make maps (BPF), attach them to tracepoints and read kernel memory in them
    // (PERFMON).
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    // Qdiscs, nft tables, queues, virtual interfaces; programs on cgroups and interfaces.
    Capability::CAP_NET_ADMIN,
    // Enter a network namespace, make one.
    Capability::CAP_SYS_ADMIN,
    // See the namespaces and descriptors of other users' processes (PTRACE), whose directories in
    // /proc are their own (READ_SEARCH).
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_READ_SEARCH,
    // Let the threads that release packets run at once.
    Capability::CAP_SYS_NICE,
    // Locked memory for maps, on kernels that count it so.
    Capability::CAP_SYS_RESOURCE,
];

/// What a measurement needs once it runs; the probes are held by their descriptors.
const OBSERVING: [Capability; 3] = [
    // Enter the service's network namespace, for its count of refused handshakes.
    Capability::CAP_SYS_ADMIN,
    // See who holds the service's sockets, whoever's processes they are.
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_READ_SEARCH,
];

/// Gives up every capability that a session does not need, for this thread and all that it makes,
/// other programs included. Never more than there are already.
///
/// `socket` is removed at the end: where its directory is another user's, that takes
/// `CAP_DAC_OVERRIDE`, which is kept then.
///
/// # Errors
/// The kernel does not let go of them, as without `CAP_SETPCAP`.
pub fn keep_what_sessions_need(socket: &Path) -> Result<(), CapsError> {
    keep_only(&needed(socket))
}

/// As [`keep_what_sessions_need`], for an agent whose probes are attached and which attaches no more
/// of them.
///
/// # Errors
/// As there.
pub fn keep_what_observing_needs() -> Result<(), CapsError> {
    keep_only(&OBSERVING.into_iter().collect())
}

fn keep_only(keep: &CapsHashSet) -> Result<(), CapsError> {
    for capability in caps::read(None, CapSet::Bounding)?.difference(keep) {
        caps::drop(None, CapSet::Bounding, *capability)?;
    }
    caps::clear(None, CapSet::Ambient)?;
    for set in [CapSet::Effective, CapSet::Inheritable, CapSet::Permitted] {
        let left: CapsHashSet = caps::read(None, set)?.intersection(keep).copied().collect();
        caps::set(None, set, &left)?;
    }
    Ok(())
}

fn needed(socket: &Path) -> CapsHashSet {
    use std::os::unix::fs::MetadataExt as _;
    let directory = socket.parent().filter(|parent| !parent.as_os_str().is_empty());
    let owner = std::fs::metadata(directory.unwrap_or(Path::new("."))).map(|found| found.uid());
    let others = !matches!(owner, Ok(0));
    KEPT.into_iter().chain(others.then_some(Capability::CAP_DAC_OVERRIDE)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing is missing there, and nothing too much.
    #[test]
    fn the_systemd_unit_bounds_it_to_what_it_keeps_and_what_it_starts_with() {
        let unit = include_str!("../../systemd/dwell.service");
        let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
        let given: CapsHashSet =
            line.unwrap().split(' ').map(|name| name.parse().unwrap()).collect();
        let at_first = [Capability::CAP_SETPCAP, Capability::CAP_CHOWN];
        assert_eq!(given, KEPT.into_iter().chain(at_first).collect());
        assert!(unit.contains("\nExecStopPost=/usr/local/bin/agent inject recover\n"));
    }

    #[test]
    fn a_socket_in_a_users_directory_can_still_be_removed() {
        assert!(!needed(Path::new("/run/dwell.sock")).contains(&Capability::CAP_DAC_OVERRIDE));
        let gone = Path::new("/no/such/directory/dwell.sock");
        assert!(needed(gone).contains(&Capability::CAP_DAC_OVERRIDE));
    }
}
