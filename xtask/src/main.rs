//! `cargo xtask`: the repository's own commands, one module per verb.

mod bench;
mod build_ebpf;
mod demo;
mod setup;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "The repository's own commands",
    after_help = "Exit codes: 0 done; 1 an error, a failed test or a figure out of bounds; 2 a wrong \
                  command line.",
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List what is missing on this machine and install it, after asking
    Setup(setup::Args),
    /// Compile the kernel half to target/agent-*.o (nightly, bpf-linker)
    BuildEbpf(build_ebpf::Args),
    /// Show what latency does to a real Django server, and why: six runs, about seven minutes
    Demo(demo::Args),
    /// Measure this repository's own programs
    Bench(bench::Args),
    /// Run every test: unit, privileged in namespaces, and under another kernel
    Test(test::Args),
    /// Run a command as root under another kernel, on a throw-away view of this machine's files
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Setup(args) => done(setup::run(&args)),
        Verb::BuildEbpf(args) => done(build_ebpf::run(&args)),
        Verb::Bench(args) => done(bench::run(&args)),
        Verb::Demo(args) => demo::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Vm(args) => vm::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// For verbs whose only failure is an error.
fn done(outcome: Result<()>) -> Result<ExitCode> {
    outcome.map(|()| ExitCode::SUCCESS)
}
