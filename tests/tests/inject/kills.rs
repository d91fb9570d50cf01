//! Kills an agent at a moment that nobody chose.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Bench;

const SEED: &str = "DWELL_STORM_SEED";
const ARGUMENTS: &str = "--dev eth0 --netns NS --delay 50ms";

/// Numbers that differ from run to run; the seed is printed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new() -> Result<Self> {
        // A seed in the environment makes the kills of an earlier run again.
        let seed = match std::env::var(SEED) {
            Ok(seed) => seed.parse().context(SEED)?,
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64,
        };
        println!("{SEED}={seed}");
        Ok(Self(seed | 1))
    }

    /// A time from 0 to `most`.
    pub(crate) fn up_to(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.next() as f64 / u64::MAX as f64)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn next(&mut self) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// How long it takes to add and to clear here: a moment of either is to be hit.
pub(crate) fn add_and_clear(bench: &Bench) -> Result<(Duration, Duration)> {
    let started = Instant::now();
    let agent = bench.add(ARGUMENTS)?;
    let adding = started.elapsed();
    let started = Instant::now();
    agent.signal(Signal::SIGINT)?;
    agent.end()?;
    let clearing = started.elapsed();
    println!("adding takes {adding:?}, clearing {clearing:?}");
    Ok((adding, clearing))
}

/// Starts an agent and kills it: while it adds, in force, or while it clears.
pub(crate) fn kill_once(
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
