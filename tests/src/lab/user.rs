//! Who runs what: root for namespaces, the invoking user for programs, never root for Postgres.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use nix::unistd::{Gid, Uid, User};

use super::paths;

/// An unprivileged or privileged identity to run a program as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: Uid,
    /// Group.
    pub gid: Gid,
}

/// Whoever invoked this program.
#[must_use]
pub fn invoker() -> Identity {
    Identity { uid: Uid::effective(), gid: Gid::effective() }
}

/// Root.
#[must_use]
pub fn root() -> Identity {
    Identity { uid: Uid::from_raw(0), gid: Gid::from_raw(0) }
}

/// Who Postgres runs as: the invoking user, or Debian's `postgres` when that is root.
///
/// # Errors
/// When root invokes and there is no user `postgres`.
pub fn database() -> Result<Identity> {
    if !Uid::effective().is_root() {
        return Ok(invoker());
    }
    let user = User::from_name("postgres").context("cannot read the user database")?.context(
        "no user `postgres`, and Postgres refuses to run as root; install Debian's `postgresql`",
    )?;
    Ok(Identity { uid: user.uid, gid: user.gid })
}

/// What comes before a command that needs root: nothing for root, else sudo, which must not ask
/// (its input is not ours): `sudo -v` once beforehand.
///
/// # Errors
/// When not root and there is no sudo.
pub fn as_root() -> Result<Vec<PathBuf>> {
    if Uid::effective().is_root() {
        return Ok(Vec::new());
    }
    let sudo = paths::system("sudo").context("making network namespaces needs root")?;
    Ok(vec![sudo, "-n".into(), "--".into()])
}
