//! `agent`: injects network latency and measures, in the kernel, where every request waited.

use std::process::ExitCode;

use agent::{doctor, inject, observe, serve};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "agent", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Doctor(doctor::Args),
    Inject(inject::Args),
    Observe(observe::Args),
    Serve(serve::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Doctor(args) => doctor::run(&args),
        Command::Inject(args) => inject::run(&args),
        Command::Observe(args) => observe::run(&args),
        Command::Serve(args) => serve::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
