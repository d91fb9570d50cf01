//! Starting the agent, looking at what it leaves, and measuring round trips.

pub(crate) mod kills;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent::sys::netns::Netns;
use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::lab::{Network, Side, paths};

/// Environment variable that marks the processes of one test: children inherit it.
const MARK: &str = "DWELL_TEST_MARK";

/// The agent's binary: `DWELL_AGENT`, else the one beside this test's directory.
pub(crate) fn agent_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("DWELL_AGENT") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let beside = own.ancestors().nth(2).context("no directory above the test's")?.join("agent");
    ensure!(beside.is_file(), "{} not found; build it: cargo build -p agent", beside.display());
    Ok(beside)
}

/// A network, and agents that impair its server side.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) network: Network,
    mark: String,
}

impl Bench {
    pub(crate) fn new() -> Result<Self> {
        let network = Network::new()?;
        let mark = network.name(Side::Server);
        let bench = Self { network, mark };
        // The carrier of a new veth shows up to a second late.
        let deadline = Instant::now() + Duration::from_secs(5);
        while bench.state()?.matches("mtu 1500 qdisc noqueue state UP").count() < 2 {
            ensure!(Instant::now() < deadline, "the network does not come up: {}", bench.state()?);
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(bench)
    }

    pub(crate) fn server(&self) -> String {
        self.network.name(Side::Server)
    }

    /// `agent inject` with these arguments; `NS` stands for the server's namespace.
    pub(crate) fn command(&self, arguments: &str) -> Result<Command> {
        let mut command = Command::new(agent_binary()?);
        let server = self.server();
        command
            .arg("inject")
            .args(arguments.split_whitespace().map(|a| if a == "NS" { &server } else { a }))
            .env(MARK, &self.mark)
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, arguments: &str) -> Result<Output> {
        Ok(self.command(arguments)?.output()?)
    }

    /// Runs it to its end, which must be a good one. Returns what it printed.
    pub(crate) fn succeed(&self, arguments: &str) -> Result<String> {
        let output = self.run(arguments)?;
        ensure!(output.status.success(), "agent inject {arguments}: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs `add` in the foreground and waits until the delay is in force.
    pub(crate) fn add(&self, arguments: &str) -> Result<Foreground> {
        let mut child = self
            .command(&format!("add {arguments}"))?
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut told = String::new();
        while !told.contains("end it with") {
            if lines.read_line(&mut told)? == 0 {
                bail!("agent inject add {arguments}: {:?}", child.wait_with_output()?);
            }
        }
        Ok(Foreground { child, lines, told })
    }

    /// Everything that an impairment could have changed, in both namespaces.
    pub(crate) fn state(&self) -> Result<String> {
        let mut state = String::new();
        for side in [Side::Server, Side::Outside] {
            let name = self.network.name(side);
            for command in ["ip -d link", "tc -d qdisc show", "nft list ruleset"] {
                let (program, arguments) = command.split_once(' ').unwrap_or((command, ""));
                let output = Command::new(paths::system("ip")?)
                    .args(["netns", "exec", &name])
                    .arg(paths::system(program)?)
                    .args(arguments.split_whitespace())
                    .output()?;
                ensure!(output.status.success(), "{command} in {name}: {output:?}");
                state += &format!("== {name}: {command}\n");
                state += &String::from_utf8(output.stdout)?;
            }
            let queues = self.inside(side, || {
                fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_queue")
            })?;
            state += &format!("== {name}: queues\n{}", queues.unwrap_or_default());
        }
        Ok(state)
    }

    /// Processes of this bench's agents.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let wanted = format!("{MARK}={}", self.mark);
        let is_ours = |pid: &u32| {
            fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|all| all.split(|b| *b == 0).any(|one| one == wanted.as_bytes()))
        };
        fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(is_ours)
            .collect()
    }

    /// Waits until everything is as `before` and no process is left; fails if a look that began
    /// after a second still finds something. Returns how long it took, the look included.
    pub(crate) fn wait_until_clean(&self, before: &str) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let looked = start.elapsed();
            let (state, processes) = (self.state()?, self.processes());
            if state == before && processes.is_empty() {
                return Ok(start.elapsed());
            }
            if looked > Duration::from_secs(1) {
                bail!(
                    "left after a second: processes {processes:?}, state\n{state}\nnot\n{before}"
                );
            }
        }
    }

    /// As [`Self::wait_until_clean`], where a second is not a promise: in an emulated machine.
    #[allow(dead_code, reason = "not every file of tests needs it")]
    pub(crate) fn wait_until_cleared(&self, before: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            let state = self.state()?;
            if state == before && self.processes().is_empty() {
                return Ok(());
            }
            let left = difference(before, &state);
            ensure!(start.elapsed() < Duration::from_secs(20), "left: {left}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until every entry is of a process that is gone. One that is ending has lost its memory,
    /// environment included, and is still there for a moment.
    pub(crate) fn wait_until_stale(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let listed = self.listed()?;
            if listed.iter().all(|line| line["state"] == "stale") {
                return Ok(());
            }
            ensure!(start.elapsed() < Duration::from_secs(5), "not stale: {listed:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What `list --json` says about this bench's server namespace.
    pub(crate) fn listed(&self) -> Result<Vec<serde_json::Value>> {
        let all: Vec<serde_json::Value> = serde_json::from_str(&self.succeed("list --json")?)?;
        let server = self.server();
        Ok(all.into_iter().filter(|line| line["netns"] == server.as_str()).collect())
    }

    /// Runs `work` inside a namespace.
    pub(crate) fn inside<T: Send>(&self, side: Side, work: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(Netns::named(&self.network.name(side))?.run(work)?)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
        // The registry's stale entries, if a test failed half-way.
        let _ = self.run("clear --netns NS");
    }
}

/// The lines in which two states differ.
pub(crate) fn difference(before: &str, after: &str) -> String {
    let only = |sign: &str, these: &str, those: &str| -> String {
        let lines = these.lines().filter(|line| !those.lines().any(|other| other == *line));
        lines.map(|line| format!("\n{sign} {line}")).collect()
    };
    only("-", before, after) + &only("+", after, before)
}

/// `agent inject add` in the foreground. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Foreground {
    pub(crate) child: Child,
    lines: BufReader<ChildStdout>,
    pub(crate) told: String,
}

impl Foreground {
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id() as i32), signal)?)
    }

    /// Waits for its end: exit code, the rest of what it printed, and its complaints.
    pub(crate) fn end(mut self) -> Result<(Option<i32>, String, String)> {
        let (mut out, mut err) = (String::new(), String::new());
        std::io::Read::read_to_string(&mut self.lines, &mut out)?;
        if let Some(mut pipe) = self.child.stderr.take() {
            std::io::Read::read_to_string(&mut pipe, &mut err)?;
        }
        Ok((self.child.wait()?.code(), out, err))
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A thread that returns every datagram. Ends when dropped.
pub(crate) struct Echo {
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub(crate) fn start(bench: &Bench, side: Side, address: IpAddr) -> Result<Self> {
        let socket = bench.inside(side, || UdpSocket::bind((address, 0)))??;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let (address, stop) = (socket.local_addr()?, Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..len], from);
                }
            }
        });
        Ok(Self { address, stop, thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Sends `count` datagrams to `to`, each after the answer to the one before, and returns the times
/// that the answers took, sorted.
pub(crate) fn round_trips(
    bench: &Bench,
    side: Side,
    to: SocketAddr,
    count: u32,
) -> Result<Vec<Duration>> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = bench.inside(side, || UdpSocket::bind((any, 0)))??;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut times = Vec::new();
    for number in 0..count {
        let (start, mut answer) = (Instant::now(), [0; 64]);
        socket.send(&number.to_ne_bytes())?;
        let len = socket.recv(&mut answer).context("no answer within 5 s")?;
        times.push(start.elapsed());
        ensure!(answer[..len] == number.to_ne_bytes(), "another answer than to {number}");
    }
    times.sort_unstable();
    Ok(times)
}

pub(crate) fn median(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() / 2]
}
