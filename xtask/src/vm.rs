//! `cargo xtask vm -- COMMAND`: runs a command as root under another kernel.
//!
//! QEMU emulates the machine in software, so this works where there is no KVM and nothing in it may
//! be measured for speed. The virtual machine sees the host's files; whatever it writes is kept in
//! memory and gone afterwards. It has no network but its own.

mod initramfs;
mod kernel;
mod machine;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use crate::setup::{self, Need};
use crate::workspace;

pub(crate) use machine::Job;

/// What Debian 12 ships: the oldest kernel that is supported.
const DEFAULT_SERIES: &str = "6.1";
/// What the tests boot.
const TESTED_SERIES: [&str; 2] = [DEFAULT_SERIES, "6.12"];

/// Arguments of `cargo xtask vm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Debian kernel series, such as 6.1 or 6.12
    #[arg(long, default_value = DEFAULT_SERIES, value_name = "SERIES")]
    kernel: String,
    /// Give up after this many seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
    /// What to run, as root, in the current directory (default: say which kernel it is)
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs the command; the exit code is the command's own.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    setup::ensure(&[Need::Vm], false)?;
    let command = if args.command.is_empty() {
        vec!["uname".into(), "-a".into()]
    } else {
        args.command.clone()
    };
    let job = Job {
        command,
        directory: std::env::current_dir()?,
        environment: forwarded_environment(),
        timeout: Duration::from_secs(args.timeout),
    };
    let status = boot_and_run(&args.kernel, &job)?;
    Ok(ExitCode::from(status))
}

/// Boots the newest Debian kernel of a series and runs one job in it; returns its exit status.
///
/// # Errors
/// When the kernel cannot be had, the machine does not come up or ends without a status, or the
/// time is over. The message names the console's log and holds its last lines.
pub(crate) fn boot_and_run(series: &str, job: &Job) -> Result<u8> {
    let kernel = kernel::prepare(series, &directory())?;
    machine::run(&kernel, job, &directory())
}

/// Fetches the kernels that tests boot, unless they are there.
///
/// # Errors
/// When one cannot be had.
pub(crate) fn fetch() -> Result<()> {
    TESTED_SERIES.iter().try_for_each(|series| kernel::prepare(series, &directory()).map(drop))
}

/// Where kernels and console logs are kept.
fn directory() -> PathBuf {
    workspace::target().join("vm")
}

/// What a job gets from the caller's environment: search path, logging, and our own variables.
fn forwarded_environment() -> Vec<(String, String)> {
    let wanted = |name: &str| {
        ["PATH", "CI", "LANG", "RUST_BACKTRACE", "RUST_LOG"].contains(&name)
            || name.starts_with("DWELL_")
    };
    std::env::vars().filter(|(name, _)| wanted(name)).collect()
}
