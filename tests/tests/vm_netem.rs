//! netem against tc: whatever combination of options is asked for, the kernel holds after our engine
//! what it holds after the same tc command. On both of Debian's kernels, one boot each.
//!
//! `long_vm_netem.rs` does the same with more combinations.
#![allow(clippy::panic, reason = "a test: what it found goes into the message")]

#[path = "netem/cases.rs"]
mod cases;
#[path = "netem/changes.rs"]
mod changes;
#[path = "netem/conformance.rs"]
mod conformance;
#[path = "netem/directions.rs"]
mod directions;
#[path = "inject/held_over.rs"]
mod held_over;
#[path = "inject/support.rs"]
#[allow(dead_code, reason = "shared with the tests of injection")]
mod inject;
#[path = "netem/replaced.rs"]
mod replaced;
#[path = "inject/retransmissions.rs"]
mod retransmissions;
#[path = "netem/tables.rs"]
mod tables;

use anyhow::Result;
use inject as support;

/// Combinations that are tried.
const COUNT: u32 = 20;

#[test]
fn netem_is_what_tc_makes_it_under_6_1() -> Result<()> {
    conformance::boot("6.1", COUNT)
}

#[test]
fn netem_is_what_tc_makes_it_under_6_12() -> Result<()> {
    conformance::boot("6.12", COUNT)
}
