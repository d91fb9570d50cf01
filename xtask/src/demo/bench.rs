//! The laboratory with the agent beside it, and what is done in there. Dropping it ends everything.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use tests::lab::{self, Lab, PostgresSpec, Process, Program};

use super::Binaries;
use super::plan::{Cell, RAMP_PER_S, ROUTE, USERS};
use super::progress::Progress;
use crate::workspace;

/// Longest time until the agent's socket is there.
const AGENT_START: Duration = Duration::from_secs(20);
/// How long after its planned end a run may take to write its report.
const REPORT: Duration = Duration::from_secs(60);
/// How often a run is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Ctrl-C, and being told to end.
#[derive(Clone, Debug)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on signals are noted instead of ending this process.
    pub(super) fn new() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signal_hook::flag::register(signal as i32, Arc::clone(&flag))
                .with_context(|| format!("cannot handle {signal}"))?;
        }
        Ok(Self(flag))
    }

    fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("interrupted; nothing is left running");
        }
        Ok(())
    }
}

/// Lets sudo ask for the password now: later it has no input to ask on.
pub(super) fn unlock_sudo() -> Result<()> {
    if lab::user::invoker() == lab::user::root() {
        return Ok(());
    }
    eprintln!("root is needed for network namespaces and for the agent, and for nothing else");
    workspace::run(workspace::command("sudo").arg("-v"))
}

/// Laboratory and agent. Fields are dropped in order: the agent first, it impairs the network.
#[derive(Debug)]
pub(super) struct Bench {
    agent: Option<Process>,
    lab: Lab,
    binaries: Binaries,
    directory: PathBuf,
    interrupt: Interrupt,
}

impl Bench {
    /// Makes the network. Results go to `directory`.
    pub(super) fn new(
        binaries: Binaries,
        directory: PathBuf,
        interrupt: Interrupt,
    ) -> Result<Self> {
        let lab = Lab::new(directory.join("logs"))?;
        Ok(Self { agent: None, lab, binaries, directory, interrupt })
    }

    /// Does what takes long the first time, and starts the agent.
    pub(super) fn prepare(&mut self, spec: &PostgresSpec) -> Result<()> {
        self.lab.start_postgres(spec).map(drop).or_else(|error| self.unless_interrupted(error))?;
        self.start_agent()
    }

    fn start_agent(&mut self) -> Result<()> {
        let socket = self.socket();
        let mut agent = Program::new(&self.binaries.agent)
            .args(["serve", "--socket"])
            .arg(&socket)
            .args(["--allow-uid", &lab::user::invoker().uid.to_string()])
            .args(["--allow-port", &lab::server::PORT.to_string()])
            .args(["--allow-dev", lab::net::DEVICE])
            .args(["--max-delay", "1s"])
            .identity(lab::user::root())
            .stop_signal(Signal::SIGINT)
            .spawn(&self.directory.join("logs/agent.log"))?;
        agent.wait_until(AGENT_START, || socket.exists())?;
        self.agent = Some(agent);
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }

    /// An error that only says that Ctrl-C ended a helper is told as what it is.
    fn unless_interrupted(&self, error: anyhow::Error) -> Result<()> {
        self.interrupt.check()?;
        Err(error)
    }

    /// Starts a fresh database and a fresh server.
    pub(super) fn fresh(&mut self, cell: &Cell, spec: &PostgresSpec) -> Result<()> {
        self.interrupt.check()?;
        self.lab.stop_server();
        self.lab.log_to(self.directory.join("logs").join(cell.stem()))?;
        let started = self
            .lab
            .start_postgres(spec)
            .map(drop)
            .and_then(|()| self.lab.start_server(&cell.app()).map(drop));
        started.or_else(|error| self.unless_interrupted(error))
    }

    /// Runs one cell and returns its report's path.
    pub(super) fn load(
        &mut self,
        cell: &Cell,
        prediction: Option<&Path>,
        progress: &mut Progress,
    ) -> Result<PathBuf> {
        let file = self.directory.join(format!("{}.json", cell.stem()));
        let mut agent = std::ffi::OsString::from("unix:");
        agent.push(self.socket());
        let mut program = self
            .lab
            .outside(&self.binaries.loadgen)
            .stop_signal(Signal::SIGINT)
            .arg("run")
            .arg(self.lab.url(&format!("/{ROUTE}")))
            .args(["--users", &USERS.to_string()])
            .args(["--ramp", &format!("{RAMP_PER_S}/s")])
            .args(["--hold", &cell.hold()])
            .args(["--name", &cell.name(), "--setup", cell.setup, "--route", ROUTE])
            .args(["--db-port", &lab::postgres::PORT.to_string()])
            .arg("--agent")
            .arg(agent)
            .arg("--json")
            .arg(&file);
        if !cell.delay.is_zero() {
            program = program
                .args(["--delay", &format!("{}ms", cell.delay.as_millis())])
                .args(["--delay-dev", lab::net::DEVICE]);
        }
        if let Some(prediction) = prediction {
            program = program.arg("--predicted").arg(prediction);
        }
        let log = self.directory.join("logs").join(cell.stem()).join("loadgen.log");
        let mut loadgen = program.spawn(&log)?;
        let status = self.watch(&mut loadgen, cell.length() + REPORT, progress)?;
        if let Some(agent) = &mut self.agent
            && let Some(status) = agent.ended()?
        {
            bail!("the agent ended: {status}\n{}", lab::process::tail(agent.log()));
        }
        // An invalid run has its report too, and an exit code of its own.
        if !file.exists() || !matches!(status.code(), Some(0 | 3)) {
            bail!("{}: loadgen {status}\n{}", cell.name(), lab::process::tail(&log));
        }
        Ok(file)
    }

    fn watch(
        &mut self,
        loadgen: &mut Process,
        limit: Duration,
        progress: &mut Progress,
    ) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = loadgen.ended()? {
                return Ok(status);
            }
            self.interrupt.check()?;
            if Instant::now() > deadline {
                bail!("loadgen does not end\n{}", lab::process::tail(loadgen.log()));
            }
            progress.tick();
            std::thread::sleep(POLL);
        }
    }

    /// Where the prediction for a cell is.
    pub(super) fn prediction(&self, cell: &Cell) -> PathBuf {
        self.directory.join(format!("prediction-{}.json", cell.stem()))
    }

    /// Predicts a cell from the report of an undelayed one. Where that is invalid nothing is predicted,
    /// which the file and the cell's report then say.
    pub(super) fn predict(&self, base: &Path, cell: &Cell) -> Result<()> {
        let path = self.prediction(cell);
        let output = Program::new(&self.binaries.loadgen)
            .args(["predict", "--from"])
            .arg(base)
            .args(["--delay", &format!("{}ms", cell.delay.as_millis())])
            .arg("--json")
            .arg(&path)
            .output()?;
        if !path.exists() || !matches!(output.status.code(), Some(0 | 3)) {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("no prediction for {}: {} {}", cell.name(), output.status, said.trim());
        }
        Ok(())
    }

    /// Merges reports into report.json and report.html; returns the path of the former.
    pub(super) fn merge(&self, files: &[&Path]) -> Result<PathBuf> {
        let merged = self.directory.join("report.json");
        Program::new(&self.binaries.loadgen)
            .arg("report")
            .args(files.iter().copied())
            .arg("--json")
            .arg(&merged)
            .arg("--html")
            .arg(merged.with_extension("html"))
            .run()?;
        Ok(merged)
    }
}
