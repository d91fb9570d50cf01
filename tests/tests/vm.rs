//! Under Debian's 6.1 kernel, where netem, fentry and tp_btf exist and the sock tracepoints do not:
//! the same agent binary does the whole job, and leaves nothing.
//!
//! The test boots a virtual machine through `cargo xtask vm`, and in it runs this very binary with
//! the ignored test `inside`.
#![allow(clippy::panic, reason = "a test: what it found goes into the message")]

#[path = "inject/support.rs"]
#[allow(dead_code, reason = "shared with the tests of injection")]
mod inject;
#[path = "vm/inside.rs"]
mod inside;
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

#[test]
fn the_agent_injects_and_measures_under_6_1() -> Result<()> {
    // Made here, where it takes a second; the machine sees this one's files.
    let mut lab = Lab::new(paths::scratch().join("logs/vm-template"))?;
    lab.start_postgres(&PostgresSpec::study(ROWS))?;
    drop(lab);

    vm::run_ignored_test("6.1", 1200, "inside::the_whole_job", &[])
}
