//! Agents killed at random moments, alone and with their guardians, while they add, hold, change and clear an
//! impairment, on ramps and in paired sessions: nothing is left within a second. `long_storm.rs` does the same
//! for longer.
#![allow(clippy::panic, reason = "a test: what it found goes into the message")]

#[path = "inject/support.rs"]
#[allow(dead_code, reason = "shared with the tests of injection")]
mod inject;
#[path = "storm/rounds.rs"]
mod rounds;
#[path = "serve/support.rs"]
#[allow(dead_code, reason = "shared with the tests of the pairing socket")]
mod support;

/// Of each kind.
const KILLS: usize = 20;

#[test]
fn kill_9_at_any_moment_leaves_nothing_within_a_second() -> anyhow::Result<()> {
    rounds::Storm::new("nfqueue")?.rage(KILLS)
}
