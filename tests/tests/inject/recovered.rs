//! `agent inject recover`, after agents that were killed.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::lab::paths;

use super::support::{Bench, agent_binary};

#[test]
fn what_killed_agents_left_is_gone_after_it_and_stays_gone() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    bench.succeed("add --dev eth0 --netns NS --engine nfqueue --delay 50ms --detach")?;
    for pid in bench.processes() {
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL)?;
    }
    bench.wait_until_stale()?;
    let litter = ["json", "sock", "partial"]
        .map(|ending| format!("/run/dwell/{}-x.{ending}", bench.server()));
    for file in &litter {
        std::fs::write(file, "{")?;
    }
    // Under the capabilities that the systemd unit leaves it.
    let unit = include_str!("../../../agent/systemd/dwell.service");
    let bound = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let bound = bound.unwrap_or_default().to_lowercase().replace("cap_", "+").replace(' ', ",");
    let output = Command::new(paths::system("setpriv")?)
        .args(["--bounding-set", &format!("-all,{bound}"), "--inh-caps=-all", "--no-new-privs"])
        .arg(agent_binary()?)
        .args(["inject", "recover"])
        .output()?;
    let said = String::from_utf8(output.stdout.clone())?;
    ensure!(output.status.success(), "{output:?}");
    let place = format!("eth0 in network namespace {}: cleaned up", bench.server());
    ensure!(said.contains(&place), "{said}");
    for file in &litter {
        ensure!(said.contains(file) && !Path::new(file).exists(), "{file}: {said}");
    }
    assert!(bench.listed()?.is_empty());
    bench.wait_until_clean(&before)?;

    let again = bench.succeed("recover")?;
    ensure!(!again.contains(&bench.server()), "{again}");
    Ok(())
}

#[test]
fn what_is_in_force_is_left_alone() -> Result<()> {
    let bench = Bench::new()?;
    let agent = bench.add("--dev eth0 --netns NS --engine nfqueue --delay 50ms")?;
    let in_force = bench.state()?;
    let said = bench.succeed("recover")?;
    ensure!(!said.contains(&bench.server()), "{said}");
    assert_eq!(bench.state()?, in_force);
    assert_eq!(bench.listed()?[0]["state"], "in_force");
    drop(agent);
    Ok(())
}
