//! A small process that outlives the agent by a moment, to take the agent's qdisc away.
//!
//! It waits on a pipe of which the agent holds the other end. However the agent ends, the pipe
//! closes; the guardian then restores the interface and ends. A clean end takes the same way: there
//! is nothing left to remove then. It comes late where the machine is busy; by then the interface may
//! have another agent's qdisc, which has another handle and is left alone.
//!
//! While it lives it has the name of its qdisc as the address of a Unix socket in the namespace. The
//! kernel frees that with the process, so it tells also an agent that cannot see this one's files
//! that the qdisc is nobody's to remove. Anybody in the namespace can take such a name; they only
//! keep an orphan there.

use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};

use super::link;
use super::qdisc::{self, Before};

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
/// Its arguments, before those that tell what it watches over.
const VERB: [&str; 2] = ["inject", "guardian"];
/// How long a guardian that is let go may take. It has nothing left to do.
const FAREWELL: Duration = Duration::from_secs(1);

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
            .args(VERB)
            .args(["--ward", &ward])
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

    /// Whether it still watches.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + FAREWELL;
        while self.is_alive() {
            if Instant::now() >= deadline {
                // Somebody stopped it, or the machine is that busy.
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether process `pid` is a guardian, of any agent.
#[must_use]
pub fn is_one(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.split(|byte| *byte == 0).skip(1).take(2).eq(VERB.map(str::as_bytes)))
}

/// Whether a guardian watches over the qdisc with handle `own` on interface `index` of the calling
/// thread's namespace.
#[must_use]
pub fn watches(index: i32, own: u32) -> bool {
    address(index, own).and_then(|address| UnixDatagram::unbound()?.connect_addr(&address)).is_ok()
}

fn address(index: i32, own: u32) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("dwell/guardian/{index}/{:x}:", own >> 16))
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
    let _name = UnixDatagram::bind_addr(&address(ward.index, ward.before.own)?);
    io::stdout().write_all(&[READY])?;
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    qdisc::restore(&mut route, ward.index, &ward.before)?;
    Ok(())
}
