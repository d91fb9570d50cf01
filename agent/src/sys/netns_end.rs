//! Whether a network namespace is over for everybody but us.
//!
//! The sockets of an impairment and its guardian keep a namespace, and with it the interfaces in it,
//! long after its name and its last process are gone: somebody has to let go first.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use super::discover::Identity;
use super::guardian;
use super::netns::{NAMED, Netns, Origin};
use super::process::pids;

/// What a namespace lives on. Does not hold it open.
#[derive(Debug)]
pub struct Presence {
    inode: u64,
    lives_on: LivesOn,
}

#[derive(Debug)]
enum LivesOn {
    /// The namespace of the agent: it ends with that.
    Us,
    /// A file in [`NAMED`].
    Name(String),
    /// A process, and after it any other that is in there.
    Process(Option<Identity>),
}

impl Presence {
    /// That of a namespace that is there now.
    #[must_use]
    pub fn of(netns: &Netns) -> Self {
        let lives_on = match netns.origin() {
            Origin::Current => LivesOn::Us,
            Origin::Named(name) => LivesOn::Name(name.clone()),
            Origin::Process(pid) => LivesOn::Process(Identity::of(*pid)),
        };
        Self { inode: netns.inode(), lives_on }
    }

    /// Whether it is over: its name is gone or names another, or nobody but agents is in it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        match &self.lives_on {
            LivesOn::Us => false,
            LivesOn::Name(name) => match fs::metadata(format!("{NAMED}/{name}")) {
                Ok(now) => now.ino() != self.inode,
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            },
            LivesOn::Process(process) => {
                !process.as_ref().is_some_and(Identity::alive) && !self.is_inhabited()
            }
        }
    }

    fn is_inhabited(&self) -> bool {
        let inside = |pid: &u32| {
            fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|now| now.ino() == self.inode)
        };
        let ours = |pid: &u32| *pid == std::process::id() || guardian::is_one(*pid);
        pids().iter().any(|pid| inside(pid) && !ours(pid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_ends_with_its_name_or_its_last_process() {
        let here = Netns::current().unwrap();
        let inode = here.inode();
        assert!(!Presence::of(&here).is_over());
        assert!(!Presence::of(&Netns::of_pid(std::process::id()).unwrap()).is_over());
        // The process is gone, but others (at least whoever started this test) are in there.
        let left = Presence { inode, lives_on: LivesOn::Process(None) };
        assert!(!left.is_over());
        let deserted = Presence { inode: 1, lives_on: LivesOn::Process(None) };
        assert!(deserted.is_over());
        let unnamed = Presence { inode, lives_on: LivesOn::Name("no-such-namespace-here".into()) };
        assert!(unnamed.is_over());
    }
}
