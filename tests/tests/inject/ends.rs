//! However it ends, nothing is left.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use agent::sys::link;
use agent::sys::netlink::Conn;
use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use tests::lab::Side;

use super::support::{Bench, Echo, Foreground, difference, round_trips};

#[test]
fn ctrl_c_sigterm_and_hangup_clear() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let agent = bench.add("--dev eth0 --netns NS --delay 100ms")?;
        assert!(agent.told.contains("eth0") && agent.told.contains("100ms"), "{}", agent.told);
        assert_ne!(bench.state()?, before, "nothing is in force");
        agent.signal(signal)?;
        let (code, said, complaint) = agent.end()?;
        assert_eq!((code, complaint.as_str()), (Some(0), ""), "{signal}");
        assert!(said.starts_with("cleared: "), "{said}");
        assert_eq!(difference(&before, &bench.state()?), "", "{signal}");
        assert!(bench.processes().is_empty());
        assert!(bench.listed()?.is_empty());
    }
    Ok(())
}

#[test]
fn detached_it_is_listed_and_cleared_by_others() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    let told = bench.succeed("add --dev eth0 --netns NS --delay 100ms --detach")?;
    let lines = bench.listed()?;
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line = &lines[0];
    assert_eq!((&line["device"], &line["state"]), (&"eth0".into(), &"in_force".into()));
    assert_eq!(line["delay_ns"], 100_000_000);
    let pid = line["pid"].as_u64().context("no pid")?;
    assert!(told.contains(&format!("held by process {pid}")), "{told}");
    assert!(bench.processes().contains(&u32::try_from(pid)?));
    assert!(bench.succeed("list")?.contains(&bench.server()));

    let said = bench.succeed("clear --netns NS --dev eth0")?;
    assert!(said.contains("cleared; "), "{said}");
    bench.wait_until_clean(&before)?;
    assert!(bench.listed()?.is_empty());
    let again = bench.run("clear --netns NS --dev eth0")?;
    assert_eq!(again.status.code(), Some(1));
    Ok(())
}

#[test]
fn another_process_can_clear_what_runs_in_the_foreground() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    let agent = bench.add("--dev eth0 --netns NS --delay 100ms")?;
    bench.succeed("clear --netns NS")?;
    let (code, said, _) = agent.end()?;
    assert_eq!(code, Some(0));
    assert!(said.starts_with("cleared by another command: "), "{said}");
    bench.wait_until_clean(&before)?;
    Ok(())
}

#[test]
fn an_interface_that_vanishes_ends_it_with_an_error() -> Result<()> {
    let bench = Bench::new()?;
    let agent = bench.add("--dev eth0 --netns NS --delay 100ms")?;
    let started = Instant::now();
    let status = std::process::Command::new(tests::lab::paths::system("ip")?)
        .args(["-n", &bench.server(), "link", "delete", "eth0"])
        .status()?;
    assert!(status.success());
    let (code, _, complaint) = agent.end()?;
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(code, Some(1));
    assert!(complaint.contains("interface `eth0` vanished"), "{complaint}");
    assert!(bench.listed()?.is_empty() && bench.processes().is_empty());
    assert!(!bench.state()?.contains("dwell_"), "a table is left");
    Ok(())
}

/// `ip netns delete` takes the name; sockets of the agent would keep the rest for ever.
#[test]
fn a_namespace_that_is_deleted_ends_it_with_an_error() -> Result<()> {
    let bench = Bench::new()?;
    let agent = bench.add("--dev eth0 --netns NS --delay 100ms")?;
    ip(&["netns", "delete", &bench.server()])?;
    ended_with_its_namespace(&bench, agent, &bench.server())
}

/// The process that named it is gone, and nobody but agents is left in there: one that came with a
/// guardian, or another.
#[test]
fn a_namespace_whose_last_process_ends_ends_it_with_an_error() -> Result<()> {
    let bench = Bench::new()?;
    let mut last = std::process::Command::new(tests::lab::paths::system("ip")?)
        .args(["netns", "exec", &bench.server(), "sleep", "600"])
        .spawn()?;
    let witness = std::process::Command::new(tests::lab::paths::system("ip")?)
        .args(["netns", "exec", &bench.server(), "sleep", "600"])
        .spawn();
    // `ip` becomes the sleep in there.
    let inside = |pid: u32| {
        let inode = bench.inside(Side::Server, agent::sys::netns::Netns::current)??.inode();
        anyhow::Ok(agent::sys::netns::Netns::of_pid(pid)?.inode() == inode)
    };
    let mut witness = witness?;
    while !inside(last.id())? || !inside(witness.id())? {
        thread::sleep(Duration::from_millis(5));
    }
    let place = format!("--dev eth0 --pid {} --delay 100ms", last.id());
    let mut agent = bench.add(&place)?;
    last.kill()?;
    last.wait()?;
    thread::sleep(Duration::from_millis(1200));
    let outlived = agent.child.try_wait()?.is_none();
    witness.kill()?;
    witness.wait()?;
    assert!(outlived, "ended while another process was in the namespace");
    ended_with_its_namespace(&bench, agent, &format!("of process {}", last.id()))
}

fn ended_with_its_namespace(bench: &Bench, agent: Foreground, named: &str) -> Result<()> {
    let started = Instant::now();
    let (code, _, complaint) = agent.end()?;
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(code, Some(1), "{complaint}");
    assert!(complaint.contains(&format!("network namespace {named} ended")), "{complaint}");
    assert!(bench.processes().is_empty());
    let all = bench.succeed("list --json")?;
    assert!(!all.contains(&format!("\"{named}\"")), "{all}");
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    let status =
        std::process::Command::new(tests::lab::paths::system("ip")?).args(arguments).status()?;
    anyhow::ensure!(status.success(), "ip {arguments:?}: {status}");
    Ok(())
}

/// It has another name now, and maybe something else has the old one.
#[test]
fn an_interface_that_was_renamed_is_cleared_by_its_new_name() -> Result<()> {
    let bench = Bench::new()?;
    let server = bench.server();
    let agent = bench.add("--dev eth0 --netns NS --delay 100ms")?;
    ip(&["-n", &server, "link", "set", "eth0", "down"])?;
    ip(&["-n", &server, "link", "set", "eth0", "name", "front"])?;
    ip(&["-n", &server, "link", "add", "eth0", "type", "bridge"])?;
    let other = bench.run("clear --netns NS --dev eth0")?;
    let complaint = String::from_utf8(other.stderr)?;
    assert_eq!(other.status.code(), Some(1), "cleared what is another interface now");
    assert!(complaint.contains("nothing is injected on interface `eth0`"), "{complaint}");
    bench.succeed("clear --netns NS --dev front")?;
    assert_eq!(agent.end()?.0, Some(0));
    assert!(bench.listed()?.is_empty() && bench.processes().is_empty());
    Ok(())
}

/// Whether a terminal's stop reaches a process shows in its mask: to stop the whole terminal of this
/// test would prove nothing more.
#[test]
fn ctrl_z_does_not_turn_a_delay_into_an_outage() -> Result<()> {
    let bench = Bench::new()?;
    let echo = Echo::start(&bench, Side::Server, bench.network.server_v4().into())?;
    let agent = bench.add("--dev eth0 --netns NS --delay 50ms")?;
    for process in bench.processes() {
        for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
            let status = std::fs::read_to_string(thread?.path().join("status"))?;
            let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t"));
            let blocked = u64::from_str_radix(blocked.context("no SigBlk")?.trim(), 16)?;
            for signal in [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU] {
                let bit = 1 << (signal as u64 - 1);
                assert_ne!(blocked & bit, 0, "{signal} is not blocked:\n{status}");
            }
        }
    }
    agent.signal(Signal::SIGTSTP)?;
    thread::sleep(Duration::from_millis(50));
    let times = round_trips(&bench, Side::Outside, echo.address, 3)?;
    assert!(times[0] >= Duration::from_millis(50), "{times:?}");
    agent.signal(Signal::SIGINT)?;
    assert_eq!(agent.end()?.0, Some(0));
    Ok(())
}

/// More news than the socket has room for: the one that matters is lost among them.
#[test]
fn an_interface_that_vanishes_unheard_is_missed_all_the_same() -> Result<()> {
    let bench = Bench::new()?;
    let server = bench.server();
    bench.inside(Side::Server, || {
        let events = Conn::open_link_events()?;
        let mut route = link::open()?;
        let links = link::list(&mut route)?;
        let index = links.iter().find(|link| link.name == "eth0").context("no eth0")?.index;
        let mut flood = || (0..1000).try_for_each(|n| link::set_tx_queue_len(&mut route, 1, n));
        flood()?;
        assert!(!link::went_away(&events, index)?);
        flood()?;
        ip(&["-n", &server, "link", "delete", "eth0"])?;
        assert!(link::went_away(&events, index)?);
        anyhow::Ok(())
    })?
}

#[test]
fn a_detach_that_is_interrupted_leaves_nothing() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    for after_ms in [0, 2, 5, 10, 20, 40] {
        let mut child = bench
            .command("add --dev eth0 --netns NS --delay 100ms --detach")?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        thread::sleep(Duration::from_millis(after_ms));
        // Killed before it could hand over: what it started ends. Killed after: it is cleared.
        child.kill()?;
        let handed_over = child.wait()?.success();
        thread::sleep(Duration::from_millis(300));
        if handed_over {
            bench.succeed("clear --netns NS")?;
        }
        bench.wait_until_clean(&before).with_context(|| format!("after {after_ms} ms"))?;
    }
    Ok(())
}
