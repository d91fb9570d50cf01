//! Running a part of a test binary in a virtual machine, under another kernel.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Boots Debian's kernel `series` through `cargo xtask vm`, and in it runs the ignored test `name` of
/// the calling binary. Its output is passed on. The variables' names have to begin with `DWELL_`.
///
/// # Errors
/// When the machine does not come up, the test fails, or no such test ran.
pub fn run_ignored_test(
    series: &str,
    timeout_s: u32,
    name: &str,
    variables: &[(&str, String)],
) -> Result<()> {
    let test = std::env::current_exe()?;
    let output = Command::new(xtask()?)
        .args(["vm", "--kernel", series, "--timeout", &timeout_s.to_string(), "--"])
        .arg(test)
        .args(["--ignored", "--exact", name, "--nocapture"])
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .output()
        .context("cannot start xtask")?;
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "in the virtual machine ({series}): {}", output.status);
    ensure!(said.contains("test result: ok. 1 passed; 0 failed"), "another test ran");
    Ok(())
}

/// xtask's binary: `DWELL_XTASK`, else the one beside this test's directory.
fn xtask() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("DWELL_XTASK") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let beside = own.ancestors().nth(2).context("no directory above the test's")?.join("xtask");
    ensure!(beside.is_file(), "{} not found; build it: cargo build -p xtask", beside.display());
    Ok(beside)
}
