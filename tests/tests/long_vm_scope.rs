//! Only some packets with netem, on Debian's 6.12 kernel.
#![allow(clippy::panic, reason = "a test: what it found goes into the message")]

#[path = "inject/support.rs"]
#[allow(dead_code, reason = "shared with the tests of injection")]
mod inject;
#[path = "scope/netem.rs"]
mod netem;

#[test]
fn netem_is_for_some_packets_under_6_12() -> anyhow::Result<()> {
    tests::vm::run_ignored_tests("6.12", 600, &["netem::only_what_is_in_scope_waits"], &[])
}
