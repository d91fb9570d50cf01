//! The groups of `cargo xtask test`.

use std::io::{BufRead as _, BufReader, Write, stdout};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::summary::{Counts, Ran, Summary};
use crate::{build_ebpf, setup, vm, workspace};

/// Packages that are compiled for the host.
const PACKAGES: [&str; 5] = ["agent", "agent-common", "loadgen", "tests", "xtask"];

/// Compiles the object that `agent` embeds.
pub(crate) fn ebpf_object() -> Result<Ran> {
    build_ebpf::build(false)?;
    Ok(Ran::Check)
}

/// The kernel half included.
pub(crate) fn format() -> Result<Ran> {
    workspace::run(workspace::cargo().args(["fmt", "--all", "--check"]))?;
    Ok(Ran::Check)
}

/// Clippy and the workspace's lints on everything that runs on the host.
pub(crate) fn lints() -> Result<Ran> {
    let mut clippy = workspace::cargo();
    clippy.args(["clippy", "--locked", "--quiet", "--all-targets"]);
    packages(&mut clippy, &PACKAGES);
    workspace::run(clippy.args(["--", "-D", "warnings"]))?;
    Ok(Ran::Check)
}

/// Clippy on the kernel half.
pub(crate) fn ebpf_lints() -> Result<Ran> {
    build_ebpf::lint()?;
    Ok(Ran::Check)
}

/// What may be depended on, by deny.toml; without the network.
pub(crate) fn licences() -> Result<Ran> {
    let Some(mut deny) = cargo_deny() else {
        return Ok(Ran::Not("no cargo-deny; `cargo xtask setup audit` builds it".into()));
    };
    workspace::run(deny.args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))?;
    Ok(Ran::Check)
}

/// Known faults of dependencies, from a database that is fetched.
pub(crate) fn advisories() -> Result<Ran> {
    let Some(mut fetch) = cargo_deny() else {
        bail!("no cargo-deny; `cargo xtask setup audit` builds it");
    };
    if workspace::output(fetch.args(["fetch", "db"])).is_err() {
        return Ok(Ran::Not("the advisory database cannot be reached".into()));
    }
    let Some(mut deny) = cargo_deny() else { bail!("cargo-deny has gone") };
    workspace::run(deny.args(["check", "advisories"]))?;
    Ok(Ran::Check)
}

fn cargo_deny() -> Option<Command> {
    setup::cargo_deny().map(|path| {
        let mut command = workspace::command(path);
        command.args(["--locked", "--all-features"]);
        command
    })
}

fn packages(command: &mut Command, names: &[&str]) {
    for name in names {
        command.args(["--package", name]);
    }
}

/// Which tests are wanted.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// A part of the test's name.
    pub(crate) filter: Option<&'a str>,
    /// Also the slow ones.
    pub(crate) long: bool,
}

impl Plan<'_> {
    /// Tests that need no root.
    pub(crate) fn unit(&self) -> Result<Ran> {
        let mut all = workspace::cargo();
        all.args(["test", "--locked", "--no-fail-fast"]);
        packages(&mut all, &PACKAGES[..3]);
        all.args(["--package", "xtask"]);
        // Of `tests`, only the library: its test binaries are the privileged groups.
        let mut lab = workspace::cargo();
        lab.args(["test", "--locked", "--no-fail-fast", "--package", "tests", "--lib"]);
        let mut counts = Counts::default();
        for cargo in [&mut all, &mut lab] {
            counts += tests(cargo.args(self.filter), &mut stdout())?;
        }
        Ok(Ran::Tests(counts))
    }

    /// The binaries of `tests`, each a group: in namespaces on this kernel, then in virtual
    /// machines.
    pub(crate) fn privileged(&self, summary: &mut Summary) {
        let mut built = None;
        summary.group("release build", || {
            let mut cargo = workspace::cargo();
            cargo.args(["build", "--locked", "--release", "--bins"]);
            packages(&mut cargo, &["agent", "loadgen"]);
            workspace::run(&mut cargo)?;
            built = Some(test_binaries()?);
            Ok(Ran::Check)
        });
        let mut binaries = built.unwrap_or_default();
        // Virtual machines last: they take longest to say what went wrong.
        binaries.sort_by_key(|(name, _)| (boots(name), name.clone()));
        let one = self.filter.filter(|filter| binaries.iter().any(|(name, _)| name == filter));
        for (name, path) in binaries {
            let wanted = one.map_or(self.long || !name.starts_with("long"), |one| one == name);
            if !wanted {
                continue;
            }
            summary.group(&name, || {
                if boots(&name) {
                    // As the user, who shall be able to remove it.
                    vm::fetch()?;
                }
                if name == "observe" {
                    setup::prometheus::fetch()?;
                }
                let mut command = test_command(&path)?;
                command.args(self.filter.filter(|_| one.is_none())).arg("--test-threads=1");
                tests(&mut command, &mut stdout()).map(Ran::Tests)
            });
        }
    }
}

/// Whether a test binary, by its name, boots virtual machines.
fn boots(name: &str) -> bool {
    name.strip_prefix("long_").unwrap_or(name).starts_with("vm")
}

/// Compiles the privileged tests; returns their names and binaries.
fn test_binaries() -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = workspace::cargo();
    cargo.args(["test", "--locked", "--package", "tests", "--tests", "--no-run"]);
    cargo.arg("--message-format=json-render-diagnostics");
    cargo.stderr(Stdio::inherit());
    let output = cargo.output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the privileged tests do not compile");
    }
    let messages = String::from_utf8(output.stdout).context("cargo's messages are not UTF-8")?;
    Ok(messages.lines().filter_map(test_binary).collect())
}

/// Reads one of cargo's messages: name and path where it is about an integration test.
fn test_binary(message: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let target = message.get("target")?;
    let is_test = target.get("kind")?.as_array()?.iter().any(|kind| kind == "test");
    let executable = message.get("executable")?.as_str()?;
    is_test.then_some((target.get("name")?.as_str()?.to_owned(), executable.into()))
}

/// A test binary as root, told where the programs under test are.
fn test_command(binary: &PathBuf) -> Result<Command> {
    let release = workspace::target().join("release");
    let xtask = std::env::current_exe().context("cannot tell where xtask itself is")?;
    let variables = [
        ("DWELL_AGENT", release.join("agent")),
        ("DWELL_LOADGEN", release.join("loadgen")),
        ("DWELL_VENV", setup::venv()),
        ("DWELL_XTASK", xtask),
        ("DWELL_PROMETHEUS", setup::prometheus::programs()),
        // sudo replaces the search path.
        ("PATH", std::env::var_os("PATH").unwrap_or_default().into()),
        ("RUST_BACKTRACE", "1".into()),
    ];
    let mut command = setup::as_root("env");
    for (name, value) in variables {
        command.arg(format!("{name}={}", value.display()));
    }
    // Where cargo would start them.
    command.arg(binary).current_dir(workspace::root().join("tests"));
    Ok(command)
}

/// Runs tests with their output passed on, and adds up their results.
///
/// # Errors
/// When the command fails without a failed test to show for it: it did not compile, or was killed.
fn tests(command: &mut Command, show: &mut dyn Write) -> Result<Counts> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", workspace::line(command)))?;
    let stdout = child.stdout.take().context("no output to read")?;
    let mut counts = Counts::default();
    let mut results = 0;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read the tests' output")?;
        let line = String::from_utf8_lossy(&line);
        // A closed standard output must not end the tests half-way.
        let _ = writeln!(show, "{line}");
        if let Some(result) = Counts::parse(&line) {
            counts += result;
            results += 1;
        }
    }
    let status = child.wait().context("cannot wait for the tests")?;
    if !status.success() && counts.failed == 0 {
        bail!("`{}`: {status}", workspace::line(command));
    }
    if results == 0 {
        bail!("`{}` printed no test result", workspace::line(command));
    }
    Ok(counts)
}

#[cfg(test)]
mod unit {
    use super::{boots, test_binary, tests};
    use std::process::Command;

    #[test]
    fn only_integration_tests_are_taken_from_cargo() {
        let message = |kind: &str, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"inject","kind":["{kind}"]}},"executable":{executable}}}"#
            )
        };
        let found = test_binary(&message("test", r#""/t/inject-1""#));
        assert_eq!(found, Some(("inject".into(), "/t/inject-1".into())));
        assert_eq!(test_binary(&message("lib", r#""/t/tests-1""#)), None);
        assert_eq!(test_binary(&message("test", "null")), None);
        assert_eq!(test_binary("warning: unused"), None);
    }

    #[test]
    fn machines_are_booted_by_name() {
        assert_eq!(["vm", "vm_netem", "long_vm_netem"].map(boots), [true; 3]);
        assert_eq!(["inject", "long_storm", "lab"].map(boots), [false; 3]);
    }

    #[test]
    fn a_crash_without_a_failed_test_is_an_error() {
        let shell =
            |script: &str| tests(Command::new("sh").args(["-c", script]), &mut std::io::sink());
        let ok =
            "echo 'test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out'";
        assert_eq!(shell(ok).unwrap().passed, 2);
        assert!(shell(&format!("{ok}; exit 101")).is_err(), "killed half-way");
        assert!(shell("true").is_err(), "no tests at all");
        let failed = ok.replace("0 failed", "3 failed");
        assert_eq!(shell(&format!("{failed}; exit 101")).unwrap().failed, 3);
    }
}
