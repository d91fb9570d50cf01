//! The real `agent serve` and the real `loadgen`, paired, in the laboratory.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::{Lab, Process, Program, Side, user};

/// Path of one of the repository's programs: `DWELL_AGENT` or `DWELL_LOADGEN`, else the one beside
/// the test's own directory.
///
/// # Errors
/// When it was not built; the message says how.
pub fn binary(name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(format!("DWELL_{}", name.to_uppercase())) {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let beside = own.ancestors().nth(2).context("no directory above the test's")?.join(name);
    ensure!(beside.is_file(), "{} not found; build it: cargo build -p {name}", beside.display());
    Ok(beside)
}

/// An agent that serves. Ended when dropped.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    socket: PathBuf,
}

impl Agent {
    /// Starts it and waits for its socket.
    ///
    /// # Errors
    /// When it does not come up; the message holds its log.
    pub fn start(logs: &std::path::Path, arguments: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(logs)?;
        let socket = logs.join("agent.sock");
        let _ = std::fs::remove_file(&socket);
        let mut process = Program::new(binary("agent")?)
            .identity(user::root())
            .args(["serve", "--socket"])
            .arg(&socket)
            .args(arguments.iter().copied())
            .spawn(&logs.join("agent.log"))?;
        process.wait_until(Duration::from_secs(20), || socket.exists())?;
        Ok(Self { process, socket })
    }

    /// Its process.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What `loadgen --agent` takes.
    #[must_use]
    pub fn address(&self) -> String {
        format!("unix:{}", self.socket.display())
    }
}

/// How a run of the load generator ended.
#[derive(Debug)]
pub struct Run {
    /// Exit code.
    pub code: Option<i32>,
    /// Standard output and error.
    pub text: String,
    /// The report, if one was written.
    pub report: Option<Value>,
}

impl Run {
    /// The report's only cell.
    ///
    /// # Errors
    /// When there is none; the message holds what was printed.
    pub fn cell(&self) -> Result<&Value> {
        self.report
            .as_ref()
            .and_then(|report| report.pointer("/cells/0"))
            .with_context(|| format!("no report; exit code {:?}\n{}", self.code, self.text))
    }
}

/// `loadgen run` from the outside, to its end.
///
/// # Errors
/// When it cannot be started.
pub fn run(lab: &Lab, path: &str, name: &str, arguments: &[&str]) -> Result<Run> {
    let file = lab.logs().join(format!("{name}.json"));
    let _ = std::fs::remove_file(&file);
    let output = Program::new(binary("loadgen")?)
        .within(lab.network(), Side::Outside)
        .identity(user::root())
        .arg("run")
        .arg(lab.url(path))
        .args(["--name", name, "--json"])
        .arg(&file)
        .args(arguments.iter().copied())
        .output()?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text += &String::from_utf8_lossy(&output.stderr);
    let report = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Ok(Run { code: output.status.code(), text, report })
}
