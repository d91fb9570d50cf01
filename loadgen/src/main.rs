//! `loadgen`: emulates users and explains the throughput they get. See [`loadgen::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    loadgen::cli::main(std::env::args_os())
}
