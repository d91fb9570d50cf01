//! Kills at moments that nobody chose, round after round: each leaves everything as it was.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::lab::Side;
use tests::programs;

use crate::inject::kills::Dice;
use crate::inject::{Bench, Echo, difference, round_trips};
use crate::support::Agent;

const SECOND: Duration = Duration::from_secs(1);
/// Longer than any round.
const LEASE: Duration = Duration::from_secs(60);
const DELAY: Duration = Duration::from_millis(50);

/// When the kill comes, or whom it meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// While an impairment is put into force.
    Adding,
    /// While it is there.
    InForce,
    /// While another command changes it.
    Changing,
    /// While it follows a ramp.
    Ramp,
    /// While it is taken away.
    Clearing,
    /// At any moment of a paired session.
    Paired,
    /// Agent and guardian at once, by their control group, at any moment of the others.
    Group,
}

/// One command, from its beginning to its end.
const ALONE: [Kind; 5] = [Kind::Adding, Kind::InForce, Kind::Changing, Kind::Ramp, Kind::Clearing];
pub(crate) const KINDS: [Kind; 7] =
    [ALONE[0], ALONE[1], ALONE[2], ALONE[3], ALONE[4], Kind::Paired, Kind::Group];

/// Everything that a round needs.
pub(crate) struct Storm {
    bench: Bench,
    echo: Echo,
    listener: TcpListener,
    group: PathBuf,
    dice: Dice,
    engine: String,
    adding: Duration,
    clearing: Duration,
    /// Whether the kernel keeps what an agent and its guardian leave, until the next command.
    kept: bool,
    before: String,
}

impl Storm {
    /// In namespaces of its own.
    pub(crate) fn new(engine: &str) -> Result<Self> {
        let bench = Bench::new()?;
        let echo = Echo::start(&bench, Side::Server, bench.network.server_v4().into())?;
        let any = SocketAddr::new(bench.network.server_v4().into(), 0);
        let listener = bench.inside(Side::Server, || TcpListener::bind(any))??;
        let group = cgroup2()?.join(bench.server());
        fs::create_dir(&group).with_context(|| group.display().to_string())?;
        round_trips(&bench, Side::Outside, echo.address, 1)?;
        let before = dump(&bench)?;
        let mut storm = Self {
            bench,
            echo,
            listener,
            group,
            dice: Dice::new()?,
            engine: engine.to_owned(),
            adding: Duration::ZERO,
            clearing: Duration::ZERO,
            kept: engine == "netem",
            before,
        };
        (storm.adding, storm.clearing) = crate::inject::kills::add_and_clear(&storm.bench)?;
        storm.clean(Instant::now(), &BTreeSet::new())?;
        Ok(storm)
    }

    /// So many kills of each kind, in turn.
    pub(crate) fn rage(&mut self, each: usize) -> Result<()> {
        let (started, mut slowest) = (Instant::now(), Duration::ZERO);
        for number in 0..each * KINDS.len() {
            let kind = KINDS[number % KINDS.len()];
            let took = self.round(kind).with_context(|| format!("round {number}, {kind:?}"))?;
            slowest = slowest.max(took);
        }
        // The registry's files cannot vanish by themselves: they are seen to be stale, and removed.
        self.bench.succeed("clear --netns NS")?;
        ensure!(self.bench.listed()?.is_empty(), "entries are left");
        ensure!(difference(&self.before, &dump(&self.bench)?).is_empty(), "not as before");
        let kills = each * KINDS.len();
        println!("{kills} kills in {:?}, slowest clean-up {slowest:?}", started.elapsed());
        Ok(())
    }

    fn round(&mut self, kind: Kind) -> Result<Duration> {
        let (moment, killed, programs) = match kind {
            Kind::Group => {
                let when = ALONE[self.dice.below(ALONE.len())];
                self.kill(when, true)?
            }
            Kind::Paired => self.paired()?,
            _ => self.kill(kind, false)?,
        };
        if kind == Kind::Group && self.kept {
            // Nobody is left to do it; the next command does, whatever it is.
            ensure!(self.bench.processes().is_empty(), "{moment}: a process survived");
            self.bench.succeed("add --dev lo --netns NS --delay 1ms --for 1ms")?;
        }
        let took = self.clean(killed, &programs).with_context(|| moment.clone())?;
        // Traffic flows, and undelayed.
        let trip = round_trips(&self.bench, Side::Outside, self.echo.address, 3)?[0];
        ensure!(trip < DELAY, "{moment}: packets take {trip:?}");
        println!("{kind:?}: {moment}: clean after {took:?}");
        Ok(took)
    }

    /// One `add`, killed: itself, or its whole control group.
    fn kill(&mut self, when: Kind, group: bool) -> Result<(String, Instant, BTreeSet<u32>)> {
        let what = match when {
            // A change every 10 ms.
            Kind::Ramp => "--schedule 0s:20ms,60s~80ms",
            _ => "--delay 50ms",
        };
        let mut child = self
            .bench
            .command(&format!("add --dev eth0 --netns NS {what} --engine {}", self.engine))?
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        if group {
            // Its guardian is born into it.
            fs::write(self.group.join("cgroup.procs"), child.id().to_string())?;
        }
        let wait = match when {
            Kind::Adding => self.dice.up_to(self.adding * 5 / 4),
            // It starts, asks and is answered in about that time.
            Kind::Changing => self.dice.up_to(self.adding),
            Kind::Clearing => self.dice.up_to(self.clearing * 5 / 4),
            _ => self.dice.up_to(SECOND / 10),
        };
        if when != Kind::Adding {
            in_force(&mut child)?;
        }
        if when == Kind::Clearing {
            kill(Pid::from_raw(child.id() as i32), Signal::SIGINT)?;
        }
        let mut changer = None;
        if when == Kind::Changing {
            let mut change = self.bench.command("change --dev eth0 --netns NS --delay 30ms")?;
            changer = Some(change.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        }
        // Packets are held when the kill comes.
        let probe =
            self.bench.inside(Side::Outside, || std::net::UdpSocket::bind("0.0.0.0:0"))??;
        probe.connect(self.echo.address)?;
        let _ = probe.send(b"held");
        std::thread::sleep(wait);
        let programs = programs::of_process(child.id()).unwrap_or_default();
        if group {
            fs::write(self.group.join("cgroup.kill"), "1")?;
        } else {
            child.kill()?;
        }
        let killed = Instant::now();
        child.wait()?;
        if let Some(mut changer) = changer {
            changer.wait()?;
        }
        Ok((format!("{wait:?} {when:?}, group: {group}"), killed, programs))
    }

    /// A session that measures and delays, killed with its agent.
    fn paired(&mut self) -> Result<(String, Instant, BTreeSet<u32>)> {
        let place = tempfile::tempdir()?;
        let agent = Agent::start_in(place, "--allow-dev eth0", &self.bench.server())?;
        let address = self.listener.local_addr()?;
        let wait = self.dice.up_to(self.adding * 4);
        let (killed, programs) = std::thread::scope(|scope| -> Result<_> {
            scope.spawn(|| {
                // Whatever step the kill meets fails.
                let session = || -> Result<()> {
                    let mut client = agent.pair()?;
                    client.target(address)?;
                    client.impair(DELAY, LEASE)?;
                    client.start()?;
                    client.ends()
                };
                let _ = session();
            });
            std::thread::sleep(wait);
            let programs = programs::of_process(agent.pid()).unwrap_or_default();
            agent.signal(Signal::SIGKILL)?;
            Ok((Instant::now(), programs))
        })?;
        drop(agent);
        Ok((format!("{wait:?} after the agent listened"), killed, programs))
    }

    /// Waits until everything is as before; a look that began a second after the kill must find it so.
    fn clean(&self, killed: Instant, programs: &BTreeSet<u32>) -> Result<Duration> {
        loop {
            let looked = killed.elapsed();
            let (state, processes) = (dump(&self.bench)?, self.bench.processes());
            let left: Vec<_> = programs.intersection(&programs::loaded()?).copied().collect();
            if state == self.before && processes.is_empty() && left.is_empty() {
                return Ok(looked);
            }
            ensure!(
                looked < SECOND,
                "after a second: processes {processes:?}, programs {left:?}{}",
                difference(&self.before, &state)
            );
        }
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        let _ = fs::write(self.group.join("cgroup.kill"), "1");
        // The group is empty a moment after its last process was reaped.
        for _ in 0..100 {
            if fs::remove_dir(&self.group).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Reads until the impairment is in force.
fn in_force(child: &mut Child) -> Result<()> {
    use std::io::{BufRead as _, BufReader};
    let mut lines = BufReader::new(child.stdout.as_mut().context("no standard output")?);
    let mut told = String::new();
    while !told.contains("end it with") {
        ensure!(lines.read_line(&mut told)? > 0, "it ended: {told}");
    }
    Ok(())
}

/// Links, qdiscs, filters, nft tables and queues of both namespaces. The filters are those of the
/// interface that is impaired.
fn dump(bench: &Bench) -> Result<String> {
    let mut state = bench.state()?;
    for parent in ["ingress", "egress"] {
        let output = std::process::Command::new(tests::lab::paths::system("tc")?)
            .args(["-n", &bench.server(), "filter", "show", "dev", "eth0", parent])
            .output()?;
        state += &format!("== filters, {parent}\n{}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(state)
}

fn cgroup2() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .and_then(|fields| fields.get(1).map(PathBuf::from))
        .context("no cgroup2 mount")
}
