//! Who asked for an impairment.

use std::ffi::OsString;

use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};

use crate::sys::peer::Peer;

/// What `/proc/self/loginuid` holds for a process that nobody logged in for.
const NOBODY_LOGGED_IN: u32 = u32::MAX;
/// Characters of a command that are kept.
const MAX_COMMAND: usize = 1000;

/// Somebody, or something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum By {
    /// Somebody who typed a command.
    Command {
        /// The user, before sudo.
        uid: u32,
        /// Name of the user; None if the uid has none.
        user: Option<String>,
        /// What was typed.
        command: String,
    },
    /// A load generator that is paired with `agent serve`.
    Session {
        /// Its user.
        uid: u32,
        /// Name of the user; None if the uid has none.
        user: Option<String>,
        /// Its process; None if it is in another pid namespace.
        pid: Option<u32>,
    },
}

impl By {
    /// Whoever started this process.
    #[must_use]
    pub fn this_command() -> Self {
        let words: Vec<OsString> = std::env::args_os().collect();
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        let uid = logged_in().or_else(before_sudo).unwrap_or_else(|| Uid::current().as_raw());
        Self::Command {
            uid,
            user: name(uid),
            command: words.join(" ").chars().take(MAX_COMMAND).collect(),
        }
    }

    /// The peer of a pairing session.
    #[must_use]
    pub fn session(peer: Peer) -> Self {
        Self::Session { uid: peer.uid, user: name(peer.uid), pid: peer.pid }
    }

    /// Whether a report may speak of the impairment, which nobody else may change then.
    #[must_use]
    pub fn is_session(&self) -> bool {
        matches!(self, Self::Session { .. })
    }
}

/// The user who logged in, whatever became of them since (loginuid of the audit system).
fn logged_in() -> Option<u32> {
    let uid = std::fs::read_to_string("/proc/self/loginuid").ok()?.trim().parse().ok()?;
    (uid != NOBODY_LOGGED_IN).then_some(uid)
}

fn before_sudo() -> Option<u32> {
    std::env::var("SUDO_UID").ok()?.parse().ok()
}

fn name(uid: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name)
}

impl std::fmt::Display for By {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Command { uid, user, .. } | Self::Session { uid, user, .. }) = self;
        match user {
            Some(user) => f.write_str(user)?,
            None => write!(f, "uid {uid}")?,
        }
        match self {
            Self::Session { pid: Some(pid), .. } => write!(f, " (paired, pid {pid})"),
            Self::Session { pid: None, .. } => f.write_str(" (paired)"),
            Self::Command { .. } => Ok(()),
        }
    }
}
