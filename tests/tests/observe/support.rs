//! `agent observe`, running, and services that it can watch.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The kernel needs a while to take the probes.
const PATIENCE: Duration = Duration::from_secs(30);

/// `agent observe`. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Observe {
    child: Child,
    pub(crate) out: BufReader<ChildStdout>,
    log: BufReader<ChildStderr>,
    /// What it said of the service.
    pub(crate) told: String,
}

impl Observe {
    /// Starts it and waits until the probes are attached.
    pub(crate) fn start(arguments: &str) -> Result<Self> {
        let mut child = command(arguments)?.spawn()?;
        let out = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut log = BufReader::new(child.stderr.take().context("no standard error")?);
        let mut told = String::new();
        while !told.contains("measuring port") {
            ensure!(log.read_line(&mut told)? > 0, "agent observe {arguments}: {told}");
        }
        Ok(Self { child, out, log, told })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id() as i32), signal)?)
    }

    /// The next line of JSON.
    pub(crate) fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure!(self.out.read_line(&mut line)? > 0, "the output has ended");
        Ok(serde_json::from_str(&line)?)
    }

    /// Waits for its end: exit code, what else it printed, and its complaints.
    pub(crate) fn end(mut self) -> Result<(Option<i32>, String, String)> {
        let (mut out, mut log) = (String::new(), String::new());
        self.out.read_to_string(&mut out)?;
        self.log.read_to_string(&mut log)?;
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the agent does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok((self.child.wait()?.code(), out, log))
    }
}

impl Drop for Observe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command, with its output caught.
pub(crate) fn command(arguments: &str) -> Result<Command> {
    let mut command = Command::new(tests::paired::binary("agent")?);
    command
        .arg("observe")
        .args(arguments.split_whitespace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}

/// Lines of JSON: the windows, and the summary.
pub(crate) fn parse(out: &str) -> Result<(Vec<Value>, Value)> {
    let mut lines: Vec<Value> =
        out.lines().map(serde_json::from_str).collect::<Result<_, _>>().context(out.to_owned())?;
    let summary = lines.pop().context("nothing was printed")?;
    ensure!(summary["type"] == "summary", "the last line is {summary}");
    ensure!(lines.iter().all(|line| line["type"] == "window"), "no windows: {out}");
    Ok((lines, summary))
}
