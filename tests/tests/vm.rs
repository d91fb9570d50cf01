//! Under Debian's 6.1 kernel, where netem, fentry and tp_btf exist and the sock tracepoints do not:
//! the same agent binary does the whole job, and leaves nothing.
//!
//! The test boots a virtual machine through `cargo xtask vm`, and in it runs this very binary with
//! the ignored tests that are meant for it.
#![allow(clippy::panic, reason = "a test: what it found goes into the message")]

#[path = "inject/support.rs"]
#[allow(dead_code, reason = "shared with the tests of injection")]
mod inject;
#[path = "vm/inside.rs"]
mod inside;
#[path = "vm/killed.rs"]
mod killed;
#[path = "vm/state.rs"]
mod state;
#[path = "serve/support.rs"]
#[allow(dead_code, reason = "shared with the tests of the pairing socket")]
mod support;

use anyhow::Result;
use tests::lab::{Lab, PostgresSpec, paths};
use tests::vm;

/// Rows of the posts table: the marks do not depend on it, and emulation is slow.
const ROWS: u32 = 1_000;

/// What runs in the machine, in one boot.
const INSIDE: [&str; 3] = [
    "inside::the_whole_job",
    "killed::a_killed_agent_leaves_nothing_within_a_second",
    "killed::what_is_another_agents_is_left_alone",
];

#[test]
fn the_agent_injects_and_measures_under_6_1() -> Result<()> {
    // Made here, where it takes a second; the machine sees this one's files.
    let mut lab = Lab::new(paths::scratch().join("logs/vm-template"))?;
    lab.start_postgres(&PostgresSpec::study(ROWS))?;
    drop(lab);

    vm::run_ignored_tests("6.1", 600, &INSIDE, &[])
}
