//! `cargo xtask demo`: latency against a real Django server, and why its throughput fell.
//!
//! Two setups, one route, three delays. The undelayed run of a setup comes first, its prediction
//! for the others is written to disk, then they are run. Each run has a fresh database and a fresh
//! server. The load generator judges validity; nothing is run again or adjusted.

mod bench;
mod plan;
mod progress;
mod story;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests::lab::PostgresSpec;

use crate::setup::{self, Need};
use crate::{build_ebpf, workspace};
use bench::{Bench, Interrupt};
use plan::{Cell, PLAN, ROWS};
use progress::Progress;

/// Exit code when a run is invalid: its numbers prove nothing.
const INVALID: u8 = 3;

/// Arguments of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Install what is missing without asking; CI=true in the environment does the same
    #[arg(long, short)]
    yes: bool,
}

/// A finished cell: its file and what is in it.
#[derive(Debug)]
struct Done {
    cell: Cell,
    file: PathBuf,
    report: Value,
}

/// Runs the demo.
///
/// # Errors
/// When something is missing or fails, or after Ctrl-C; nothing is left running either way.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let begun = Instant::now();
    setup::ensure(&[Need::Build, Need::Lab], args.yes)?;
    bench::unlock_sudo()?;
    let binaries = build()?;

    let interrupt = Interrupt::new()?;
    let directory = workspace::target().join("demo");
    empty(&directory)?;
    let mut progress = Progress::new(PLAN.iter().map(Cell::length).collect());
    let mut bench = Bench::new(binaries, directory.clone(), interrupt)?;
    progress.note("making the database, once per machine, if it is not there yet");
    bench.prepare(&PostgresSpec::study(ROWS))?;

    let mut done: Vec<Done> = Vec::new();
    for cell in PLAN {
        progress.begin(&cell.name());
        let prediction = (!cell.delay.is_zero()).then(|| bench.prediction(&cell));
        bench.fresh(&cell, &PostgresSpec::study(ROWS))?;
        let file = bench.load(&cell, prediction.as_deref(), &mut progress)?;
        let report = read(&file)?;
        progress.end(&story::line(&report));
        if cell.delay.is_zero() {
            // On disk before the cells that it is about are run.
            for later in PLAN.iter().filter(|one| one.setup == cell.setup && !one.delay.is_zero()) {
                bench.predict(&file, later)?;
            }
        }
        done.push(Done { cell, file, report });
    }
    let merged = bench.merge(&done.iter().map(|one| one.file.as_path()).collect::<Vec<_>>())?;
    drop(bench);

    println!("\n{}", story::table(&done));
    println!("{}", story::why(&done));
    println!("report   {}", merged.display());
    println!("         {}", merged.with_extension("html").display());
    println!("logs     {}", directory.join("logs").display());
    println!("took     {}", progress::minutes(begun.elapsed()));
    let invalid =
        done.iter().any(|one| one.report.pointer("/validity/valid") != Some(&true.into()));
    Ok(if invalid { ExitCode::from(INVALID) } else { ExitCode::SUCCESS })
}

/// The programs that the demo runs, both built with optimisation.
#[derive(Debug)]
struct Binaries {
    agent: PathBuf,
    loadgen: PathBuf,
}

fn build() -> Result<Binaries> {
    build_ebpf::build(false)?;
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--release", "--package", "agent", "--package", "loadgen"]);
    workspace::run(&mut cargo)?;
    let release = workspace::target().join("release");
    Ok(Binaries { agent: release.join("agent"), loadgen: release.join("loadgen") })
}

/// Results of an earlier demo must not be taken for this one's.
fn empty(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot empty {}", directory.display()));
        }
        _ => {}
    }
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))
}

/// The only cell of a report.
fn read(file: &Path) -> Result<Value> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut report: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is no JSON", file.display()))?;
    match report.pointer_mut("/cells/0") {
        Some(cell) => Ok(cell.take()),
        None => anyhow::bail!("{} holds no run", file.display()),
    }
}
