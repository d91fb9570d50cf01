//! `agent`: injects network latency and measures, in the kernel, where every request waited.

use std::process::ExitCode;

use agent::inject::InjectError;
use agent::{doctor, inject, model::text, observe, serve};
use clap::{Parser, Subcommand};

/// What clap ends with where the command line makes no sense.
const USAGE: u8 = 2;

#[derive(Debug, Parser)]
#[command(
    name = "agent",
    version,
    about,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done; 1 failed, or for `doctor`: this machine cannot do the main job; \
                  2 the command line makes no sense."
)]
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
        eprintln!("error: {}", text::with_causes(error.as_ref()));
        if error.downcast_ref().is_some_and(InjectError::is_usage) {
            return ExitCode::from(USAGE);
        }
        ExitCode::FAILURE
    })
}
