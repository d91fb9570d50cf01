//! An impairment that goes with time.

use std::time::{Duration, Instant};

use agent::model::schedule::Schedule;
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use tests::lab::Side;

use super::support::{Bench, Echo, median, round_trips};

const ON: &str = "--dev eth0 --netns NS --engine nfqueue";
/// Without blanks the bench can give it as one word.
const COURSE: &str = "0s:0ms,1s:60ms,2s:60ms,4s~0ms";
/// How much later than this test the agent may have begun to follow it.
const LATE: Duration = Duration::from_millis(200);
/// Longest round trip beyond the delay.
const SLOW: Duration = Duration::from_millis(30);

fn s(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

#[test]
fn on_off_and_a_ramp_within_one_run() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    let echo = Echo::start(&bench, Side::Outside, bench.network.outside_v4().into())?;
    let agent = bench.add(&format!("{ON} --schedule {COURSE} --for 5s"))?;
    let (start, mut trips) = (Instant::now(), Vec::new());
    while start.elapsed() < s(4.6) {
        let sent = start.elapsed();
        trips.push((sent, round_trips(&bench, Side::Server, echo.address, 1)?[0]));
    }
    let between = |from: f64, to: f64| -> Result<Duration> {
        let mut some: Vec<Duration> = trips
            .iter()
            .filter(|(sent, _)| (s(from)..s(to)).contains(sent))
            .map(|(_, took)| *took)
            .collect();
        some.sort_unstable();
        ensure!(!some.is_empty(), "nothing was sent from {from} s to {to} s");
        Ok(median(&some))
    };
    let off = between(0.0, 0.7)?;
    let on = between(1.2, 1.8)?;
    let again = between(4.2, 4.6)?;
    println!("off {off:?}, on {on:?}, off again {again:?}");
    ensure!(off < SLOW && again < SLOW, "off {off:?}, off again {again:?}");
    ensure!(on >= s(0.06) && on < s(0.06) + SLOW, "on {on:?}");

    let schedule = Schedule::parse(COURSE)?;
    let gliding: Vec<_> =
        trips.iter().filter(|(sent, _)| (s(2.0)..s(4.0)).contains(sent)).collect();
    for (sent, took) in &gliding {
        let least = schedule.delay_at(*sent + LATE);
        ensure!(*took >= least, "sent at {sent:?}: {took:?} where {least:?} is due at least");
    }
    let (high, low) = (between(2.1, 2.5)?, between(3.3, 3.7)?);
    println!("{} round trips on the ramp, early {high:?}, late {low:?}", gliding.len());
    ensure!(high > low + s(0.01), "early {high:?}, late {low:?}");

    let (code, said, complaint) = agent.end()?;
    println!("{said}");
    assert_eq!((code, complaint.as_str()), (Some(0), ""), "{said}");
    for words in ["0s to 1s, 0s: ", "1s to 2s, 60ms: ", "2s to 4s, 60ms to 0s: ", "cleared: "] {
        ensure!(said.contains(words), "no `{words}` in {said}");
    }
    let line = said.lines().find(|line| line.starts_with("1s to 2s")).context("no phase")?;
    let shown = line.split("median ").nth(1).and_then(|rest| rest.split(' ').next());
    let shown: f64 = shown.context("no median")?.parse()?;
    ensure!((60.0..60.0 + SLOW.as_secs_f64() * 1e3).contains(&shown), "{line}");
    bench.wait_until_clean(&before)?;
    Ok(())
}

#[test]
fn killed_on_a_ramp_it_leaves_nothing() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    let agent = bench.add(&format!("{ON} --schedule 0s:0ms,60s~6s"))?;
    std::thread::sleep(s(0.5));
    let listed = bench.listed()?;
    let now = listed[0]["impairment"]["delay_ns"].as_u64();
    ensure!(now.is_some_and(|ns| (1..3_000_000_000).contains(&ns)), "{listed:?}");
    agent.signal(Signal::SIGKILL)?;
    drop(agent);
    bench.wait_until_clean(&before)?;
    let echo = Echo::start(&bench, Side::Outside, bench.network.outside_v4().into())?;
    ensure!(median(&round_trips(&bench, Side::Server, echo.address, 5)?) < SLOW);
    Ok(())
}

#[test]
fn a_schedule_is_not_changed_from_outside() -> Result<()> {
    let bench = Bench::new()?;
    let agent = bench.add(&format!("{ON} --schedule 0s:10ms,60s:20ms"))?;
    let output = bench.run("change --dev eth0 --netns NS --delay 1ms")?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && said.contains("follows a schedule"), "{said}");
    assert_eq!(bench.listed()?[0]["impairment"]["delay_ns"], 10_000_000);
    drop(agent);
    Ok(())
}

#[test]
fn a_schedule_that_makes_no_sense_is_one_error() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    for (words, why) in [
        ("--schedule 0s:0ms,30s:100ms,20s:0ms", "goes back in time"),
        ("--schedule 0s:0ms", "nothing would be injected"),
        ("--schedule 5s:10ms", "must be at 0s"),
        ("--schedule 0s:10ms,1s:2h", "above the largest"),
        ("--schedule 0s:10ms --delay 5ms", "cannot be used with"),
        ("--schedule 0s:10ms --jitter 5ms", "meant relative to one delay"),
    ] {
        let output = bench.run(&format!("add {ON} {words}"))?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(!output.status.success() && said.contains(why), "{words}: {said}");
        assert_eq!(said.matches("error: ").count(), 1, "{said}");
    }
    assert_eq!(bench.state()?, before);
    Ok(())
}
