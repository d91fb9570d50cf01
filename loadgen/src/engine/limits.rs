//! The limit on open files.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::EngineError;

/// Descriptors besides the users' sockets: standard streams, reports, event loops, the agent.
const OTHERS: u64 = 64;

/// Raises the soft limit (and, for root, the hard one) until all users fit.
pub(super) fn ensure_open_files(users: u32, threads: u32) -> Result<(), EngineError> {
    let needed = u64::from(users) + 4 * u64::from(threads) + OTHERS;
    let failed = |error: nix::Error| EngineError::Kernel {
        what: "read the limit on open files",
        error: error.into(),
    };
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    if soft >= needed {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_NOFILE, needed, hard.max(needed))
        .map_err(|_| EngineError::OpenFiles { users, needed, limit: hard })
}
