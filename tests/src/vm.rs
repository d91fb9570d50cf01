//! Running a part of a test binary in a virtual machine, under another kernel.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Boots Debian's kernel `series` through `cargo xtask vm`, and in it runs these ignored tests of
/// the calling binary, one after the other. Their output is passed on. The variables' names have to
/// begin with `DWELL_`.
///
/// # Errors
/// When the machine does not come up, a test fails, or others than these ran.
pub fn run_ignored_tests(
    series: &str,
    timeout_s: u32,
    names: &[&str],
    variables: &[(&str, String)],
) -> Result<()> {
    let test = std::env::current_exe()?;
    let output = Command::new(xtask()?)
        .args(["vm", "--kernel", series, "--timeout", &timeout_s.to_string(), "--"])
        .arg(test)
        .args(["--ignored", "--exact", "--nocapture", "--test-threads=1"])
        .args(names)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .output()
        .context("cannot start xtask")?;
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "in the virtual machine ({series}): {}", output.status);
    let passed = format!("test result: ok. {} passed; 0 failed", names.len());
    ensure!(said.contains(&passed), "other tests ran");
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
