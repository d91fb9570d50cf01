//! `cargo xtask build-ebpf`: compiles the kernel half with nightly and bpf-linker.
//!
//! The objects go to `target/*.o`, where `agent/build.rs` looks for them. They are written only when
//! their bytes changed, so that an unchanged kernel half does not rebuild the agent.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::setup::{self, Need};
use crate::workspace;

const TARGET: &str = "bpfel-unknown-none";
/// What measures, and what injects: loaded apart from each other.
const OBJECTS: [&str; 4] = ["agent-ebpf", "agent-redirect", "agent-receipt", "agent-retransmit"];

/// Arguments of `cargo xtask build-ebpf`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Compile again even when nothing changed
    #[arg(long)]
    force: bool,
}

/// Brings what is missing, compiles the objects and says where they are.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::Build], false)?;
    for object in build(args.force)? {
        let bytes = std::fs::metadata(&object)?.len();
        println!("{} ({bytes} bytes)", object.display());
    }
    Ok(())
}

/// Compiles the objects; returns their paths.
///
/// # Errors
/// When nightly, rust-src or a fitting bpf-linker is missing (with the command that brings it), or
/// when the code does not compile.
pub(crate) fn build(force: bool) -> Result<Vec<PathBuf>> {
    if cfg!(target_endian = "big") {
        bail!("only little-endian machines are supported: the wire format and the BPF target are");
    }
    if force {
        let mut clean = workspace::cargo_nightly();
        clean
            .args(["clean", "--quiet", "--package", "agent-ebpf", "--target-dir"])
            .arg(directory());
        workspace::run(&mut clean)?;
    }
    workspace::run(&mut cargo("build")?).context("the eBPF objects were not built")?;
    OBJECTS
        .iter()
        .map(|name| {
            let built = directory().join(TARGET).join("release").join(name);
            let object = workspace::target().join(format!("{name}.o"));
            copy_if_changed(&built, &object)?;
            Ok(object)
        })
        .collect()
}

/// Runs clippy on the kernel half; any warning is an error.
///
/// # Errors
/// As for [`build`].
pub(crate) fn lint() -> Result<()> {
    workspace::run(cargo("clippy")?.args(["--", "-D", "warnings"]))
}

/// A target directory of its own: cargo holds a lock on one for as long as it builds.
fn directory() -> PathBuf {
    workspace::target().join("ebpf-build")
}

fn cargo(verb: &str) -> Result<Command> {
    let linker = setup::bpf_linker(&setup::nightly()?)?;
    let mut cargo = workspace::cargo_nightly();
    cargo
        .args([verb, "--package", "agent-ebpf", "--release", "--target", TARGET])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(directory())
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&linker).join("\x1f"));
    Ok(cargo)
}

/// Compiler flags: BTF for maps and programs needs debug information, and the architecture picks
/// the register layout that probes see.
fn flags(linker: &Path) -> Vec<String> {
    vec![
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        "-Cdebuginfo=2".into(),
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".into(),
    ]
}

fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if std::fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    // Renamed into place: a concurrent build of the agent never sees half an object.
    let partial = to.with_extension("o.partial");
    std::fs::write(&partial, new)
        .and_then(|()| std::fs::rename(&partial, to))
        .with_context(|| format!("cannot write {}", to.display()))
}
