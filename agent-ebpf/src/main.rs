//! The kernel half of Dwell. One file per question asked of the kernel:
//!
//! - [`connection`]: which connections begin, are accepted and end (s0, s2).
//! - [`transfer`]: when their bytes arrive, are read and are sent (s1, s3, s4, s5, c3k, c4k).
//! - [`turn`]: the database round trips.
//! - [`thread`]: what every thread of the service does with its time.
//! - [`wait`]: on what a thread that goes to sleep is going to wait.
//!
//! Maps and constants are in [`maps`], reads of kernel memory in [`kernel`], output in [`emit`].
//! Which of the programs are loaded is the agent's probe plan.
#![no_std]
#![no_main]
#![allow(
    unsafe_code,
    clippy::undocumented_unsafe_blocks,
    clippy::missing_safety_doc,
    unreachable_pub,
    reason = "the verifier checks every access (kernel.rs and maps.rs say what it cannot), and programs \
              are public to the loader"
)]

mod connection;
mod emit;
mod kernel;
mod maps;
mod object;
mod thread;
mod transfer;
mod turn;
mod wait;
