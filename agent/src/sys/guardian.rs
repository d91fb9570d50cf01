//! A small process that outlives the agent by a moment, to take the agent's qdisc away.
//!
//! It waits on a pipe of which the agent holds the other end. However the agent ends, the pipe
//! closes; the guardian then restores the interface and ends. A clean end takes the same way: there
//! is nothing left to remove then.

use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};

use super::link;
use super::netem::{self, Before};

/// What a guardian watches over. It is started inside the namespace, so that is not named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ward {
    /// Index of the interface.
    pub index: i32,
    /// How to put it back.
    pub before: Before,
}

const READY: u8 = b'r';

/// The agent's end: dropping it lets the guardian do its work.
#[derive(Debug)]
pub struct Guardian {
    child: Child,
}

impl Guardian {
    /// Starts a guardian in the calling thread's namespace and waits until it watches.
    ///
    /// # Errors
    /// This program cannot be started again, or did not get ready.
    pub fn start(ward: &Ward) -> io::Result<Self> {
        let ward = serde_json::to_string(ward)?;
        let mut child = Command::new("/proc/self/exe")
            .args(["inject", "guardian", "--ward", &ward])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut ready = [0];
        let read = match child.stdout.take() {
            Some(mut stdout) => stdout.read_exact(&mut ready),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        let guardian = Self { child };
        read.map_err(|e| io::Error::other(format!("the guardian process did not get ready: {e}")))?;
        Ok(guardian)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The guardian's own life: announces itself, waits for its standard input to end, and restores the
/// interface.
///
/// # Errors
/// Something could not be restored.
pub fn guard(ward: &str) -> anyhow::Result<()> {
    let ward: Ward = serde_json::from_str(ward)?;
    // A Ctrl-C at the terminal, or its end, is for the agent.
    let mut signals = SigSet::empty();
    for signal in
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE]
    {
        signals.add(signal);
    }
    signals.thread_block()?;
    nix::unistd::setsid()?;
    let mut route = link::open()?;
    io::stdout().write_all(&[READY])?;
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    netem::restore(&mut route, ward.index, &ward.before)?;
    Ok(())
}
