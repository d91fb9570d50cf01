//! Changing netem in place: packets in it stay.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use tests::lab::{Side, paths};

use crate::held_over;
use crate::inject::{Bench, Echo, difference, round_trips};

const ON: &str = "--dev eth0 --netns NS";

/// Runs inside a virtual machine.
pub(crate) fn check() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    know_the_other_side(&bench)?;
    let agent = bench.add(&format!("{ON} --engine netem --delay 10s --direction both"))?;
    let mut told = String::new();
    held_over::all_come(&bench.network, Duration::from_secs(10), || {
        told = bench.succeed(&format!("change {ON} --delay 10ms"))?;
        Ok(())
    })?;
    println!("{told}");
    let listed = bench.listed()?;
    assert_eq!(listed[0]["impairment"]["delay_ns"], 10_000_000, "{listed:?}");
    assert_eq!(listed[0]["dropped"], 0, "{listed:?}");
    drop(agent);
    bench.wait_until_cleared(&before)?;

    let agent = bench.add(&format!("{ON} --engine netem --delay 10s"))?;
    held_over::all_come(&bench.network, Duration::from_secs(10), || {
        bench.succeed(&format!("change {ON} --delay 10ms")).map(drop)
    })?;
    let listed = bench.listed()?;
    let receipt = &listed[0]["receipt"];
    ensure!(receipt["packets"].as_u64().is_some_and(|n| (200..400).contains(&n)), "{listed:?}");
    ensure!(receipt["max_ns"].as_u64() < Some(9_000_000_000), "those of before count: {receipt}");
    a_table_stays(&bench)?;
    drop(agent);
    bench.wait_until_cleared(&before)?;
    a_ramp_follows_and_leaves_nothing(&bench, &before)
}

/// The guardian clears behind an agent that is killed between two of hundreds of changes.
fn a_ramp_follows_and_leaves_nothing(bench: &Bench, before: &str) -> Result<()> {
    let forgets =
        "add --dev eth0 --netns NS --engine netem --schedule 0s:0ms,9s~1s --loss-state 1%";
    let said = String::from_utf8(bench.run(forgets)?.stderr)?;
    ensure!(said.contains("begins --loss-state anew"), "{said}");
    assert_eq!(difference(before, &bench.state()?), "");

    let agent = bench.add(&format!("{ON} --engine netem --schedule 0s:0ms,600s~50s"))?;
    let mut seen = Vec::new();
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(300));
        let listed = bench.listed()?;
        seen.push(listed[0]["impairment"]["delay_ns"].as_u64());
    }
    println!("on the ramp: {seen:?}");
    ensure!(seen.is_sorted_by(|a, b| a < b), "it does not go up: {seen:?}");
    agent.signal(Signal::SIGKILL)?;
    drop(agent);
    bench.wait_until_cleared(before)
}

/// netem delays ARP as well, and what waits for an answer is dropped early.
fn know_the_other_side(bench: &Bench) -> Result<()> {
    let address = bench.network.outside_v4();
    let echo = Echo::start(bench, Side::Outside, address.into())?;
    round_trips(bench, Side::Server, echo.address, 1)?;
    let output = Command::new(paths::system("ip")?)
        .args(["-n", &bench.server(), "neigh", "change", &address.to_string()])
        .args(["dev", "eth0", "nud", "permanent"])
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// A kernel can be told another table, and none no more.
fn a_table_stays(bench: &Bench) -> Result<()> {
    for shape in ["normal", "pareto"] {
        let jitter = format!("--delay 50ms --jitter 5ms --distribution {shape}");
        bench.succeed(&format!("change {ON} {jitter}"))?;
    }
    bench.succeed(&format!("change {ON} --delay 30ms"))?;
    let output = bench.run(&format!("change {ON} --delay 20ms --jitter 5ms"))?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success(), "a table was passed over: {said}");
    ensure!(said.contains("cannot be changed to uniform jitter"), "{said}");
    assert_eq!(bench.listed()?[0]["impairment"]["delay_ns"], 30_000_000);
    Ok(())
}
