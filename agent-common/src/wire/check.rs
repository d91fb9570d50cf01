//! Bounds that a decoded message must keep. The frame's limit bounds memory; these bound what the
//! other side does with it.

use super::{MAX_BATCH, MAX_OTHERS, MAX_TEXT, ToAgent, ToLoadgen};
use crate::abi::MAX_DB_PORTS;

/// A message is well formed but holds too much.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {got} is over the limit of {limit}")]
pub struct OverLimit {
    /// Which part.
    pub what: &'static str,
    /// How much it holds.
    pub got: usize,
    /// How much it may hold.
    pub limit: usize,
}

fn within(what: &'static str, got: usize, limit: usize) -> Result<(), OverLimit> {
    if got <= limit { Ok(()) } else { Err(OverLimit { what, got, limit }) }
}

fn text(what: &'static str, text: &str) -> Result<(), OverLimit> {
    within(what, text.len(), MAX_TEXT)
}

fn batch<T>(what: &'static str, items: &[T]) -> Result<(), OverLimit> {
    within(what, items.len(), MAX_BATCH)
}

impl ToAgent {
    /// Checks every text and list against its limit.
    ///
    /// # Errors
    /// [`OverLimit`], naming the part.
    pub fn check(&self) -> Result<(), OverLimit> {
        match self {
            Self::Hello(hello) => hello.check(),
            Self::Target(request) => within("database ports", request.db_ports.len(), MAX_DB_PORTS),
            Self::Impair(request) => {
                text("bytes of the interface's name", request.device.as_deref().unwrap_or(""))
            }
            Self::Start | Self::Renew | Self::Clear | Self::Stop | Self::Bye => Ok(()),
        }
    }
}

impl ToLoadgen {
    /// Checks every text and list against its limit.
    ///
    /// # Errors
    /// [`OverLimit`], naming the part.
    pub fn check(&self) -> Result<(), OverLimit> {
        match self {
            Self::Hello(hello) => hello.check(),
            Self::Targeted(targeted) => {
                batch("processes", &targeted.processes)?;
                for process in &targeted.processes {
                    text("bytes of a process's name", &process.comm)?;
                    text("bytes of a command line", &process.cmdline)?;
                }
                batch("lines of the probe plan", &targeted.plan)?;
                for line in &targeted.plan {
                    text("bytes of a mark", &line.mark)?;
                    text("bytes of a hook", line.hook.as_deref().unwrap_or(""))?;
                    text("bytes of a reason", line.reason.as_deref().unwrap_or(""))?;
                }
                text("bytes of the interface's name", &targeted.device)
            }
            Self::Impaired(impaired) => {
                text("bytes of the engine's name", &impaired.engine)?;
                text("bytes of the interface's name", &impaired.device)
            }
            Self::Requests(items) | Self::Unfinished(items) => batch("requests", items),
            Self::ClientTurns(items) => batch("client turns", items),
            Self::DbTurns(items) => batch("database turns", items),
            Self::Holds(items) => batch("holds", items),
            Self::Statement { text: statement, .. } => text("bytes of a statement", statement),
            Self::Window(window) => {
                batch("threads", &window.threads)?;
                for thread in &window.threads {
                    text("bytes of a thread's name", &thread.comm)?;
                }
                batch("counters", &window.lost)?;
                window.lost.iter().try_for_each(|count| text("bytes of a counter", &count.name))
            }
            Self::Stopped(totals) => {
                batch("counters", &totals.counters)?;
                totals.counters.iter().try_for_each(|c| text("bytes of a counter", &c.name))?;
                text("bytes of a path", totals.unix_database.as_deref().unwrap_or(""))
            }
            Self::InForce { others, .. } => {
                within("impairments of others", others.len(), MAX_OTHERS)?;
                for other in others {
                    text("bytes of the interface's name", &other.device)?;
                    text("bytes of a direction", &other.direction)?;
                    text("bytes of the engine's name", &other.engine)?;
                    text("bytes of an impairment", &other.words)?;
                }
                Ok(())
            }
            Self::Error(reply) => text("bytes of an error", &reply.message),
            Self::Notice(notice) => text("bytes of a notice", notice),
            Self::Started { .. } | Self::Cleared(_) | Self::Bye => Ok(()),
        }
    }
}

impl super::Hello {
    fn check(&self) -> Result<(), OverLimit> {
        text("bytes of the tool's name", &self.tool)?;
        text("bytes of the boot id", &self.boot_id)?;
        text("bytes of the kernel's release", &self.kernel)
    }
}
