//! `cargo xtask bench`: measures this repository's own programs against what people use today.

mod inject;
mod loadgen;

use anyhow::Result;
use clap::{Args as ClapArgs, Subcommand};

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Requests per CPU second of loadgen, oha and, if installed, wrk
    Loadgen(loadgen::Args),
    /// Delay and throughput of the nfqueue engine beside a bare veth and a proxy that sleeps
    Inject(inject::Args),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Loadgen(args) => loadgen::run(args),
        What::Inject(args) => inject::run(args),
    }
}
