//! However it ends, nothing is left.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::lab::Side;

use super::support::{Bench, Echo, difference, round_trips};

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

const ARGUMENTS: &str = "--dev eth0 --netns NS --delay 50ms";

/// Numbers that differ from run to run; the seed is printed.
struct Dice(u64);

impl Dice {
    fn new() -> Result<Self> {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
        println!("seed {seed}");
        Ok(Self(seed | 1))
    }

    /// A time from 0 to `most`.
    fn up_to(&mut self, most: Duration) -> Duration {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        most.mul_f64(self.0 as f64 / u64::MAX as f64)
    }
}

#[test]
fn kill_9_at_any_moment_leaves_nothing_within_a_second() -> Result<()> {
    const KILLS: usize = 20;
    let bench = Bench::new()?;
    let echo = Echo::start(&bench, Side::Server, bench.network.server_v4().into())?;
    let before = bench.state()?;
    let (mut dice, done) = (Dice::new()?, AtomicBool::new(false));
    // How long it takes to add and to clear here: a moment of either is to be hit.
    let started = Instant::now();
    let agent = bench.add(ARGUMENTS)?;
    let adding = started.elapsed();
    let started = Instant::now();
    agent.signal(Signal::SIGINT)?;
    agent.end()?;
    let clearing = started.elapsed();
    println!("adding takes {adding:?}, clearing {clearing:?}");
    let mut slowest = Duration::ZERO;
    thread::scope(|scope| {
        // Packets are held when the kill comes; some are lost with it.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = round_trips(&bench, Side::Outside, echo.address, 1);
            }
        });
        let kills = (0..KILLS).try_for_each(|number| {
            let moment = kill_once(&bench, number, &mut dice, adding, clearing)?;
            let took = bench.wait_until_clean(&before).with_context(|| moment.clone())?;
            println!("{moment}: clean after {took:?}");
            slowest = slowest.max(took);
            anyhow::Ok(())
        });
        done.store(true, Ordering::Relaxed);
        kills
    })?;
    println!("{KILLS} kills, slowest clean-up {slowest:?}");

    // The registry's files cannot vanish by themselves: they are seen to be stale, and removed.
    assert!(bench.listed()?.iter().all(|line| line["state"] == "stale"));
    bench.succeed("clear --netns NS")?;
    assert!(bench.listed()?.is_empty());
    Ok(())
}

/// Starts an agent and kills it: while it adds, in force, or while it clears.
fn kill_once(
    bench: &Bench,
    number: usize,
    dice: &mut Dice,
    adding: Duration,
    clearing: Duration,
) -> Result<String> {
    let (moment, mut child, agent);
    match number % 3 {
        0 => {
            let wait = dice.up_to(adding * 5 / 4);
            moment = format!("{wait:?} after the start");
            child = bench
                .command(&format!("add {ARGUMENTS}"))?
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            thread::sleep(wait);
            child.kill()?;
            child.wait()?;
            return Ok(moment);
        }
        1 => {
            let wait = dice.up_to(Duration::from_millis(300));
            moment = format!("{wait:?} in force");
            agent = bench.add(ARGUMENTS)?;
            thread::sleep(wait);
        }
        _ => {
            let wait = dice.up_to(clearing * 5 / 4);
            moment = format!("{wait:?} after Ctrl-C");
            agent = bench.add(ARGUMENTS)?;
            agent.signal(Signal::SIGINT)?;
            thread::sleep(wait);
        }
    }
    kill(Pid::from_raw(agent.child.id() as i32), Signal::SIGKILL)?;
    agent.end()?;
    Ok(moment)
}
