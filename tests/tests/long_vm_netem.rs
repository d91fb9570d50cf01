//! As `vm_netem.rs`, with ten times as many combinations of options.
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

use anyhow::Result;
use inject as support;

/// Combinations that are tried.
const COUNT: u32 = 200;

#[test]
fn netem_is_what_tc_makes_it_under_6_1() -> Result<()> {
    conformance::boot("6.1", COUNT)
}

#[test]
fn netem_is_what_tc_makes_it_under_6_12() -> Result<()> {
    conformance::boot("6.12", COUNT)
}
