//! `cargo xtask setup`: what the repository needs from the machine, by purpose.
//!
//! Everything is looked for by what it does (a program, a Python module), not by package, so that a
//! machine that has it by other means is left alone. Only apt-get runs as root.

mod ebpf;
mod install;
mod item;
pub(crate) mod package;
pub(crate) mod prometheus;
mod python;

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, Result, bail};

pub(crate) use ebpf::{bpf_linker, cargo_deny, nightly};
use install::Step;
pub(crate) use install::{as_root, update_package_lists};
use item::Item;
pub(crate) use python::venv;

/// Arguments of `cargo xtask setup`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Install without asking; CI=true in the environment does the same
    #[arg(long, short)]
    yes: bool,
    /// What the machine is to be used for
    #[arg(value_enum, default_values = ["build", "lint", "lab", "vm"], value_name = "PURPOSE")]
    purposes: Vec<Need>,
}

/// A purpose, with its own set of requirements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Need {
    /// Compile everything, the kernel half included
    Build,
    /// Run a server against a database in namespaces and watch it: demo, privileged tests
    Lab,
    /// Boot other kernels
    Vm,
    /// Check the code of the kernel half (nightly's clippy)
    Lint,
    /// Check licences and advisories of dependencies (cargo-deny: minutes to build)
    Audit,
}

/// Lists what is missing and installs it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let missing = missing(&args.purposes)?;
    if missing.is_empty() {
        println!("nothing is missing");
        return Ok(());
    }
    install_missing(&missing, args.yes)
}

/// Makes sure that the machine serves these purposes; asks before it installs anything
/// unless `yes`.
///
/// # Errors
/// When something is missing and could not, or was not to be, installed.
pub(crate) fn ensure(needs: &[Need], yes: bool) -> Result<()> {
    let missing = missing(needs)?;
    if missing.is_empty() { Ok(()) } else { install_missing(&missing, yes) }
}

fn missing(needs: &[Need]) -> Result<Vec<Item>> {
    let mut missing = Vec::new();
    for need in needs {
        for item in item::items(*need)? {
            if !item.present() && !missing.contains(&item) {
                missing.push(item);
            }
        }
    }
    Ok(missing)
}

fn install_missing(missing: &[Item], yes: bool) -> Result<()> {
    eprintln!("missing:");
    for item in missing {
        eprintln!("  {item}");
    }
    if install::needs_fresh_lists(missing) {
        carry_out(&[Step::FreshLists], yes)?;
    }
    carry_out(&install::plan(missing)?, yes)?;
    // What an installer claims is not taken on trust.
    let still: Vec<String> =
        missing.iter().filter(|item| !item.present()).map(ToString::to_string).collect();
    if !still.is_empty() {
        bail!("still missing after installing: {}", still.join("; "));
    }
    Ok(())
}

fn carry_out(plan: &[Step], yes: bool) -> Result<()> {
    eprintln!("to be run:");
    for step in plan {
        eprintln!("  {step}");
    }
    if !yes && !agreed()? {
        bail!("nothing was installed");
    }
    plan.iter().try_for_each(Step::run)
}

fn agreed() -> Result<bool> {
    if std::env::var("CI").is_ok_and(|value| value == "true" || value == "1") {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() {
        bail!(
            "something is missing and there is no terminal to ask on; run: cargo xtask setup --yes"
        );
    }
    eprint!("go ahead? [Y/n] ");
    std::io::stderr().flush().ok();
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "" | "y" | "Y" | "yes"))
}
