//! As `storm.rs`, for longer: 500 kills.
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
const KILLS: usize = 72;

#[test]
fn kill_9_at_any_moment_leaves_nothing_within_a_second() -> anyhow::Result<()> {
    rounds::Storm::new("nfqueue")?.rage(KILLS)
}
