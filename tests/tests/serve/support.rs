//! An agent that serves, and a load generator's end of the socket.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use agent_common::wire::{
    self, ErrorReply, Frames, Hello, ImpairRequest, TargetRequest, Targeted, ToAgent, ToLoadgen,
};
use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::inject::agent_binary;

/// The kernel needs a while to take the probes.
const PATIENCE: Duration = Duration::from_secs(30);

/// `agent serve`. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Agent {
    child: Child,
    log: BufReader<ChildStderr>,
    directory: TempDir,
}

impl Agent {
    /// Starts it with these arguments and waits until it listens.
    pub(crate) fn start(arguments: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        // Other users must get as far as the socket.
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
        Self::start_in(directory, arguments, "")
    }

    /// As [`Self::start`], in a directory that exists; children inherit `DWELL_TEST_MARK`.
    pub(crate) fn start_in(directory: TempDir, arguments: &str, mark: &str) -> Result<Self> {
        let mut child = command(&directory.path().join("agent.sock"), arguments)?
            .env("DWELL_TEST_MARK", mark)
            .stderr(Stdio::piped())
            .spawn()?;
        let mut log = BufReader::new(child.stderr.take().context("no standard error")?);
        let mut told = String::new();
        while !told.contains("listening on") {
            ensure!(log.read_line(&mut told)? > 0, "agent serve {arguments}: {told}");
        }
        Ok(Self { child, log, directory })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn connect(&self) -> Result<Client> {
        Client::new(UnixStream::connect(self.socket())?)
    }

    /// A client that has said hello.
    pub(crate) fn pair(&self) -> Result<Client> {
        let mut client = self.connect()?;
        client.greet()?;
        Ok(client)
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id() as i32), signal)?)
    }

    /// Waits for its end: exit code, the rest of its log, and its directory.
    pub(crate) fn end(mut self) -> Result<(Option<i32>, String, TempDir)> {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the agent does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut log = String::new();
        self.log.read_to_string(&mut log)?;
        let code = self.child.wait()?.code();
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir()?);
        Ok((code, log, directory))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `agent serve --socket SOCKET ARGUMENTS`.
pub(crate) fn command(socket: &Path, arguments: &str) -> Result<Command> {
    let mut command = Command::new(agent_binary()?);
    command
        .arg("serve")
        .arg("--socket")
        .arg(socket)
        .args(arguments.split_whitespace())
        .stdin(Stdio::null());
    Ok(command)
}

/// A load generator's end.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    frames: Frames,
    preamble: bool,
    /// Records and windows that came before a reply.
    pub(crate) records: Vec<ToLoadgen>,
}

impl Client {
    fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, frames: Frames::default(), preamble: false, records: Vec::new() })
    }

    pub(crate) fn greet(&mut self) -> Result<Hello> {
        self.stream.write_all(&wire::preamble())?;
        self.send(&ToAgent::Hello(hello(wire::VERSION)))?;
        match self.reply()? {
            Some(ToLoadgen::Hello(hello)) => Ok(hello),
            other => bail!("no hello but {other:?}"),
        }
    }

    pub(crate) fn send(&mut self, message: &ToAgent) -> Result<()> {
        let mut bytes = Vec::new();
        wire::encode(message, &mut bytes)?;
        Ok(self.stream.write_all(&bytes)?)
    }

    /// The next message; None at the end.
    pub(crate) fn receive(&mut self) -> Result<Option<ToLoadgen>> {
        if !self.preamble {
            let mut preamble = [0; 8];
            self.stream.read_exact(&mut preamble).context("no preamble")?;
            wire::read_preamble(preamble)?;
            self.preamble = true;
        }
        loop {
            if let Some(body) = self.frames.next_frame()? {
                let message: ToLoadgen = wire::decode(body)?;
                message.check()?;
                return Ok(Some(message));
            }
            let mut buffer = [0; 65_536];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(bytes) => self.frames.push(&buffer[..bytes]),
                // It closed before it had read all of ours.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error).context("the agent says nothing"),
            }
        }
    }

    /// The next message that answers something; records are kept.
    pub(crate) fn reply(&mut self) -> Result<Option<ToLoadgen>> {
        use ToLoadgen as T;
        loop {
            match self.receive()? {
                Some(
                    record @ (T::Requests(_)
                    | T::ClientTurns(_)
                    | T::Statement { .. }
                    | T::DbTurns(_)
                    | T::Holds(_)
                    | T::Window(_)
                    | T::Unfinished(_)
                    | T::Notice(_)
                    | T::InForce { .. }),
                ) => self.records.push(record),
                other => return Ok(other),
            }
        }
    }

    /// Sends a message that must be refused.
    pub(crate) fn refused(&mut self, message: &ToAgent) -> Result<ErrorReply> {
        self.send(message)?;
        self.error()
    }

    /// What was told of others' impairments, each time, and not asked for here before.
    pub(crate) fn in_force(&mut self) -> Vec<Vec<wire::Other>> {
        let mut told = Vec::new();
        self.records.retain(|record| match record {
            ToLoadgen::InForce { others, .. } => {
                told.push(others.clone());
                false
            }
            _ => true,
        });
        told
    }

    pub(crate) fn error(&mut self) -> Result<ErrorReply> {
        match self.reply()? {
            Some(ToLoadgen::Error(reply)) => Ok(reply),
            other => bail!("no error but {other:?}"),
        }
    }

    /// Expects the farewell.
    pub(crate) fn ends(&mut self) -> Result<()> {
        match (self.reply()?, self.reply()?) {
            (Some(ToLoadgen::Bye), None) => Ok(()),
            other => bail!("no farewell but {other:?}"),
        }
    }

    pub(crate) fn target(&mut self, address: SocketAddr) -> Result<Targeted> {
        self.send(&target(address))?;
        match self.reply()? {
            Some(ToLoadgen::Targeted(targeted)) => Ok(targeted),
            other => bail!("not targeted: {other:?}"),
        }
    }

    pub(crate) fn start(&mut self) -> Result<u64> {
        self.send(&ToAgent::Start)?;
        match self.reply()? {
            Some(ToLoadgen::Started { at_ns }) => Ok(at_ns),
            other => bail!("not started: {other:?}"),
        }
    }

    pub(crate) fn impair(&mut self, delay: Duration, lease: Duration) -> Result<wire::Impaired> {
        self.send(&impair(None, delay, lease))?;
        match self.reply()? {
            Some(ToLoadgen::Impaired(impaired)) => Ok(impaired),
            other => bail!("not impaired: {other:?}"),
        }
    }

    pub(crate) fn stop(&mut self) -> Result<wire::Totals> {
        self.send(&ToAgent::Stop)?;
        match self.reply()? {
            Some(ToLoadgen::Stopped(totals)) => Ok(totals),
            other => bail!("not stopped: {other:?}"),
        }
    }
}

pub(crate) fn hello(version: u16) -> Hello {
    Hello { tool: "test".into(), version, boot_id: String::new(), kernel: String::new() }
}

pub(crate) fn target(address: SocketAddr) -> ToAgent {
    ToAgent::Target(TargetRequest { address, db_ports: vec![5432] })
}

pub(crate) fn impair(device: Option<&str>, delay: Duration, lease: Duration) -> ToAgent {
    ToAgent::Impair(ImpairRequest {
        device: device.map(str::to_owned),
        delay_ns: delay.as_nanos() as u64,
        lease_ms: lease.as_millis() as u32,
    })
}
