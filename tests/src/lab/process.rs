//! Running programs as guards: ended with all their children.

use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::paths;
use super::program::Program;
use super::user::{self, Identity};

/// How long a program may take to end before it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// How often a state is looked at while waiting for it.
const POLL: Duration = Duration::from_millis(10);
/// How much of a log goes into an error.
const TAIL_LINES: usize = 25;

/// A running program. Ended when dropped, with everything in its process group.
#[derive(Debug)]
pub struct Process {
    pub(super) child: Child,
    pub(super) pid: Pid,
    pub(super) identity: Identity,
    pub(super) stop: Signal,
    pub(super) name: String,
    pub(super) log: PathBuf,
}

impl Process {
    /// Its process id; also the id of its process group.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// The file that holds its output.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, or None while it runs.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Waits until `ready` holds.
    ///
    /// # Errors
    /// When it ends before, or when it takes longer than `limit`; the message holds the log's end.
    pub fn wait_until(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !ready() {
            if let Some(status) = self.ended()? {
                bail!("{} ended before it was ready: {status}\n{}", self.name, tail(&self.log));
            }
            if Instant::now() > deadline {
                bail!("{} not ready after {} s\n{}", self.name, limit.as_secs(), tail(&self.log));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Sends a signal to its process group.
    ///
    /// # Errors
    /// When the kernel refuses or the group is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let me = user::invoker();
        if me.uid.is_root() || me == self.identity {
            return killpg(self.pid, signal)
                .with_context(|| format!("cannot send {signal} to {}", self.name));
        }
        Program::new(paths::system("kill")?)
            .arg(format!("-{}", signal.as_str().trim_start_matches("SIG")))
            .arg("--")
            .arg(format!("-{}", self.pid))
            .identity(self.identity)
            .run()
            .map(drop)
    }

    /// Asks it to end, waits, and kills what is left. Returns how it ended.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            self.kill_group();
            return Ok(status);
        }
        // To the program alone: its children are its own to end in order.
        let _ = self.signal_leader();
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if let Some(status) = self.ended()? {
                self.kill_group();
                return Ok(status);
            }
            std::thread::sleep(POLL);
        }
        self.kill_group();
        self.child.wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    fn signal_leader(&self) -> Result<()> {
        let me = user::invoker();
        if me.uid.is_root() || me == self.identity {
            return Ok(nix::sys::signal::kill(self.pid, self.stop)?);
        }
        self.signal(self.stop)
    }

    fn kill_group(&self) {
        // ESRCH, nobody left, is the good case.
        let _ = self.signal(Signal::SIGKILL);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
        }
    }
}

/// The end of a log, for errors.
#[must_use]
pub fn tail(log: &Path) -> String {
    let text = match std::fs::read(log) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return format!("{}: {error}", log.display()),
    };
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    if lines.is_empty() {
        return format!("{} is empty", log.display());
    }
    format!("end of {}:\n  {}", log.display(), lines[from..].join("\n  "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::lab::program::Program;

    fn shell(script: &str) -> Program {
        Program::new("/bin/sh").args(["-c", script])
    }

    #[test]
    fn dropping_a_process_ends_its_children_that_ignore_signals_too() {
        let directory = tempfile::tempdir().unwrap();
        let child = directory.path().join("child");
        // The child ignores the signal and outlives its parent.
        let script = format!(
            "(trap '' TERM; sh -c 'echo $PPID' > {0}.new; mv {0}.new {0}; while :; do sleep 1; done) & wait",
            child.display()
        );
        let mut process = shell(&script).spawn(&directory.path().join("log")).unwrap();
        process.wait_until(Duration::from_secs(10), || child.exists()).unwrap();
        let child: i32 = std::fs::read_to_string(&child).unwrap().trim().parse().unwrap();
        let group = nix::unistd::getpgid(Some(Pid::from_raw(child))).unwrap();
        assert_eq!(group, process.pid, "the child left the group");
        drop(process);
        // Killed; who adopted it may take a moment to reap it.
        let gone = || {
            std::fs::read_to_string(format!("/proc/{child}/stat"))
                .map_or(true, |stat| stat.contains(") Z "))
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        while !gone() {
            assert!(Instant::now() < deadline, "{child} still runs");
            std::thread::sleep(POLL);
        }
    }

    #[test]
    fn a_process_that_ends_before_it_is_ready_is_an_error_with_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let mut process =
            shell("echo port taken; exit 1").spawn(&directory.path().join("log")).unwrap();
        let error = process.wait_until(Duration::from_secs(10), || false).unwrap_err().to_string();
        assert!(error.contains("ended before it was ready"), "{error}");
        assert!(error.contains("port taken"), "{error}");
    }

    #[test]
    fn the_tail_of_a_log_is_its_last_lines() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        std::fs::write(&log, "").unwrap();
        assert!(tail(&log).ends_with("is empty"));
        let lines: Vec<String> = (1..=40).map(|number| format!("line {number}.")).collect();
        std::fs::write(&log, lines.join("\n")).unwrap();
        let tail = tail(&log);
        assert!(tail.contains("line 40.") && tail.contains("line 16."), "{tail}");
        assert!(!tail.contains("line 15."), "{tail}");
    }
}
