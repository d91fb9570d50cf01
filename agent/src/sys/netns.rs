//! Network namespaces: naming one, and doing something inside it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns, unshare};
use serde::{Deserialize, Serialize};

/// Where `ip netns` keeps the named ones.
pub const NAMED: &str = "/run/netns";

/// Why a namespace cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Nothing of that name.
    #[error("network namespace `{name}` not found; {}", names_text(.existing))]
    NoSuchName {
        /// What was asked for.
        name: String,
        /// The names there are.
        existing: Vec<String>,
    },
    /// A name with a slash in it, or none.
    #[error("`{0}` cannot be the name of a network namespace; see `ip netns list`")]
    BadName(String),
    /// No such process.
    #[error("process {0} not found; give the pid of a running process as this host numbers it")]
    NoSuchProcess(u32),
    /// The kernel refused.
    #[error("cannot {action} network namespace {what}: {source}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// Which namespace.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

fn names_text(existing: &[String]) -> String {
    if existing.is_empty() {
        format!("there are none in {NAMED}; use --pid for one without a name")
    } else {
        format!("there are: {}", existing.join(", "))
    }
}

/// How a namespace was named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// As the one that the agent itself was in.
    Current,
    /// As `ip netns` names it.
    Named(String),
    /// As that of a process.
    Process(u32),
}

impl Origin {
    fn label(&self) -> String {
        match self {
            Self::Current => "current".to_owned(),
            Self::Named(name) => name.clone(),
            Self::Process(pid) => format!("of process {pid}"),
        }
    }

    /// What names it on the command line of another agent, started from the same shell.
    #[must_use]
    pub fn arguments(&self) -> String {
        match self {
            Self::Current => "--pid $$".to_owned(),
            Self::Named(name) => format!("--netns {name}"),
            Self::Process(pid) => format!("--pid {pid}"),
        }
    }
}

/// A network namespace, held open: it lives at least as long as this value.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    inode: u64,
    origin: Origin,
    label: String,
}

impl Netns {
    /// The calling thread's own.
    ///
    /// # Errors
    /// `/proc` is not readable.
    pub fn current() -> Result<Self, NetnsError> {
        let mut current = Self::open("/proc/thread-self/ns/net", Origin::Current)?;
        // For people who read the list in another namespace.
        if Self::of_pid(1).is_ok_and(|first| first.inode == current.inode) {
            "of the host".clone_into(&mut current.label);
        } else if let Some(named) = Self::with_name(current.inode) {
            current.label = named.label;
        }
        Ok(current)
    }

    /// The one that `ip netns` lists with this inode number, by its first name.
    #[must_use]
    pub fn with_name(inode: u64) -> Option<Self> {
        let named = Self::names().into_iter().filter_map(|name| Self::named(&name).ok());
        named.into_iter().find(|named| named.inode == inode)
    }

    /// The one that `ip netns add NAME` made.
    ///
    /// # Errors
    /// There is none of that name; the message lists those there are.
    pub fn named(name: &str) -> Result<Self, NetnsError> {
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(NetnsError::BadName(name.to_owned()));
        }
        let path = format!("{NAMED}/{name}");
        if !std::path::Path::new(&path).exists() {
            return Err(NetnsError::NoSuchName { name: name.to_owned(), existing: Self::names() });
        }
        Self::open(&path, Origin::Named(name.to_owned()))
    }

    /// The one that process `pid` is in.
    ///
    /// # Errors
    /// There is no such process, or it is out of reach.
    pub fn of_pid(pid: u32) -> Result<Self, NetnsError> {
        match Self::open(&format!("/proc/{pid}/ns/net"), Origin::Process(pid)) {
            Err(NetnsError::Refused { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(NetnsError::NoSuchProcess(pid))
            }
            other => other,
        }
    }

    /// Names of the named ones, sorted.
    #[must_use]
    pub fn names() -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(NAMED)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        names
    }

    /// Opens a namespace by path. Whether it is one shows when it is entered.
    fn open(path: &str, origin: Origin) -> Result<Self, NetnsError> {
        let label = origin.label();
        let refused = |action, source| NetnsError::Refused { action, what: label.clone(), source };
        let file = File::open(path).map_err(|e| refused("open", e))?;
        let inode = file.metadata().map_err(|e| refused("look at", e))?.ino();
        Ok(Self { file: Arc::new(file), inode, origin, label })
    }

    /// How it was named.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The same in words: a name, `of the host`, `of process N`, or `current` for one that is neither.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Inode number: equal for two handles on one namespace.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets and children made there
    /// stay in it; the thread ends with `work`, so no other code of this process ever changes its
    /// namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered (that needs root), or the thread cannot be made.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        on_own_thread(&self.label, || {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(|e| self.refused("enter", e.into()))?;
            Ok(work())
        })
    }

    /// Runs `work` on a thread of its own in a new, empty namespace, which ends with it.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_in_scratch<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        on_own_thread("for a trial", || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| NetnsError::Refused {
                action: "make",
                what: "for a trial".to_owned(),
                source: e.into(),
            })?;
            Ok(work())
        })
    }

    fn refused(&self, action: &'static str, source: io::Error) -> NetnsError {
        NetnsError::Refused { action, what: self.label.clone(), source }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn on_own_thread<T: Send>(
    label: &str,
    work: impl FnOnce() -> Result<T, NetnsError> + Send,
) -> Result<T, NetnsError> {
    let refused = |source| NetnsError::Refused { action: "enter", what: label.to_owned(), source };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(refused)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(refused(io::Error::other("the thread inside it panicked"))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn current_is_that_of_this_process() {
        let current = Netns::current().unwrap();
        assert_eq!(current.inode(), Netns::of_pid(std::process::id()).unwrap().inode());
    }

    #[test]
    fn wrong_names_are_named() {
        let error = Netns::named("no-such-namespace-here").unwrap_err().to_string();
        assert!(error.contains("`no-such-namespace-here` not found"), "{error}");
        assert!(matches!(Netns::named("../x"), Err(NetnsError::BadName(_))));
        assert!(matches!(Netns::of_pid(4_194_305), Err(NetnsError::NoSuchProcess(4_194_305))));
    }
}
