//! Processes: which there are, what they hold, whether they still live.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

use agent_common::wire::Process;

use crate::model::text;
use crate::sys::process::{pids, stat};

/// Longest command line that is kept, in bytes: all of a message's processes must fit its frame.
const MAX_CMDLINE: usize = 200;
/// Processes remembered per network namespace, in case the first ones end meanwhile.
const WITNESSES: usize = 8;

/// A process that is told apart from a later one of the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sys) struct Identity {
    pid: u32,
    start: u64,
}

impl Identity {
    /// The process that has this pid now.
    pub(in crate::sys) fn of(pid: u32) -> Option<Self> {
        Some(Self { pid, start: stat(pid)?.started })
    }

    /// Whether it still runs.
    pub(in crate::sys) fn alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }
}

/// Every network namespace that a process is in, by inode, with some of its processes.
pub(super) fn namespaces() -> HashMap<u64, Vec<u32>> {
    let mut found: HashMap<u64, Vec<u32>> = HashMap::new();
    for pid in pids() {
        if let Some(inode) = namespace_of(pid) {
            let witnesses = found.entry(inode).or_default();
            if witnesses.len() < WITNESSES {
                witnesses.push(pid);
            }
        }
    }
    found
}

/// Inode of the network namespace of a process.
pub(super) fn namespace_of(pid: u32) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/net")).ok().map(|file| file.ino())
}

/// Which processes hold which of these sockets.
pub(super) fn holders(inodes: &HashSet<u64>) -> HashMap<u64, Vec<u32>> {
    let mut found: HashMap<u64, Vec<u32>> = HashMap::new();
    for pid in pids() {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Ok(link) = fs::read_link(entry.path()) else { continue };
            let Some(inode) = link.to_str().and_then(socket_inode) else { continue };
            if inodes.contains(&inode) {
                let pids = found.entry(inode).or_default();
                if pids.last() != Some(&pid) {
                    pids.push(pid);
                }
            }
        }
    }
    found
}

/// Inodes of the sockets that a process holds; None if there is no such process.
pub(super) fn sockets(pid: u32) -> Option<HashSet<u64>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let inode = |path| socket_inode(fs::read_link(path).ok()?.to_str()?);
    Some(entries.filter_map(|entry| inode(entry.path())).collect())
}

/// `socket:[123]`.
fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// A thread's name.
pub fn thread_name(tgid: u32, tid: u32) -> Option<String> {
    let name = fs::read(format!("/proc/{tgid}/task/{tid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end().to_owned())
}

/// What a process is called.
pub(super) fn describe(pid: u32) -> Process {
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = String::from_utf8_lossy(&cmdline).replace('\0', " ");
    let cmdline = text::within(words.trim_end().to_owned(), MAX_CMDLINE);
    Process { pid, comm: thread_name(pid, pid).unwrap_or_default(), cmdline }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_another_of_its_pid_does_not() {
        let me = Identity::of(std::process::id()).unwrap();
        assert!(me.alive());
        assert!(!Identity { start: me.start + 1, ..me }.alive());
        assert_eq!(describe(me.pid).pid, me.pid);
        assert!(!describe(me.pid).cmdline.is_empty());
    }

    #[test]
    fn a_name_of_any_bytes_is_found() {
        // Its name is that of its file, cut to 15 bytes: here within a character.
        let here = tempfile::tempdir().unwrap();
        let path = here.path().join("dienstleistungä");
        std::os::unix::fs::symlink("/bin/sleep", &path).unwrap();
        let mut child = std::process::Command::new(&path).args(["60"; 200]).spawn().unwrap();
        let found = (Identity::of(child.id()), describe(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        let (identity, process) = found;
        assert_eq!(identity.map(|identity| identity.pid), Some(child.id()));
        assert!(process.comm == "dienstleistung\u{fffd}", "{process:?}");
        assert!(process.cmdline.len() <= MAX_CMDLINE, "{process:?}");
    }

    #[test]
    fn an_ended_child_is_not_alive_even_before_it_is_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let identity = Identity::of(child.id()).unwrap();
        assert!(identity.alive());
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while identity.alive() && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(!identity.alive());
        child.wait().unwrap();
    }

    #[test]
    fn sockets_are_found_with_their_holders() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let link =
            fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&socket)));
        let inode = socket_inode(link.unwrap().to_str().unwrap()).unwrap();
        let found = holders(&HashSet::from([inode]));
        assert_eq!(found[&inode], [std::process::id()]);
    }
}
