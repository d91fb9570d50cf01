//! `cargo xtask bench inject`: what a delay by the nfqueue engine is like, in one run beside a bare
//! veth and a TCP proxy that sleeps.
//!
//! Everything crosses one veth pair between two namespaces. The delay is on what leaves the
//! server's: a round trip takes it once. Bulk is one TCP connection from the server.
//!
//! The claims, checked at the end: at 5 to 200 ms and 2,000 small packets per second a round trip is
//! at most 0.3 ms over the delay at the median and 2 ms at p99; one connection carries 1 GB/s
//! through 1 ms and 100 MB/s through 20 ms.
//!
//! The proxy carries more in bulk, and that is its fault: it ends TCP beside the server, so that no
//! connection feels the line that it pretends to be. Its connects are not delayed at all, and its
//! queue holds 32 MB where TCP's own window holds 4.

mod measure;
mod proxy;

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args as ClapArgs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tests::lab::net::DEVICE;
use tests::lab::{Network, Side};

use self::measure::{Place, Trips};
use crate::{build_ebpf, setup, workspace};

const DELAYS_MS: [u64; 5] = [1, 5, 20, 100, 200];
/// Most that a round trip may take over the delay, milliseconds: median and p99.
const TRIP_CLAIM: (f64, f64) = (0.3, 2.0);
/// Delays at which that is claimed.
const TRIP_CLAIM_FROM_MS: u64 = 5;
/// Least that one connection must carry: delay in milliseconds, megabytes per second.
const BULK_CLAIMS: [(u64, f64); 2] = [(1, 1000.0), (20, 100.0)];

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Seconds of each measurement, after a warm-up
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Only these delays, in milliseconds
    #[arg(long, value_name = "MS", num_args = 1.., value_delimiter = ',')]
    delays: Vec<u64>,
    /// The agent to measure; built if not given
    #[arg(long, hide = true)]
    agent: Option<PathBuf>,
}

/// What one way of delaying did at one delay.
#[derive(Debug)]
struct Row {
    name: &'static str,
    delay_ms: u64,
    udp: Option<Trips>,
    tcp: Trips,
    connect_ms: f64,
    bulk_mb_s: f64,
    note: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let agent = match &args.agent {
        Some(agent) => agent.clone(),
        None => build()?,
    };
    if !geteuid().is_root() {
        // Only entering namespaces needs it, but every end is in one.
        let own =
            std::env::current_exe().context("cannot find this program")?.display().to_string();
        let mut command = setup::as_root(&own);
        command.args(std::env::args_os().skip(1)).arg("--agent").arg(&agent);
        return workspace::run(&mut command);
    }
    let lasts = Duration::from_secs(args.seconds);
    let delays = if args.delays.is_empty() { DELAYS_MS.to_vec() } else { args.delays.clone() };
    let network = Network::new()?;
    let ends = Ends {
        server: Place::new(&network.path(Side::Server))?,
        outside: Place::new(&network.path(Side::Outside))?,
        address: SocketAddr::new(network.server_v4().into(), 0),
        lasts,
    };
    // The carrier of a new veth shows up to a second late.
    std::thread::sleep(Duration::from_millis(1500));

    println!(
        "{} small messages a second for {} s; what round trips took over the delay, ms; one \
         connection in bulk, {}\n",
        measure::RATE,
        args.seconds,
        measure::CONGESTION
    );
    println!(
        "{:>8} {:<16} {:>8} {:>8} {:>9} {:>9} {:>8} {:>10} {:>8} {:>9}",
        "delay",
        "by",
        "udp p50",
        "p99",
        "udp lost",
        "tcp p50",
        "p99",
        "connect ms",
        "MB/s",
        "of bare"
    );
    let mut rows = vec![ends.row("bare veth", 0, Measured::Directly)?];
    show(&rows, 0);
    for delay_ms in delays {
        let running = Agent::start(&agent, &network.name(Side::Server), delay_ms)?;
        let mut row = ends.row("dwell nfqueue", delay_ms, Measured::Directly)?;
        row.note = running.end()?;
        rows.push(row);
        show(&rows, rows.len() - 1);
        rows.push(ends.row("sleeping proxy", delay_ms, Measured::ByProxy)?);
        show(&rows, rows.len() - 1);
    }
    println!();
    for row in rows.iter().filter(|row| !row.note.is_empty()) {
        println!("{:>5} ms, by the agent's own account: {}", row.delay_ms, row.note);
    }
    println!();
    for pair in rows[1..].chunks_exact(2) {
        let ratio = pair[0].bulk_mb_s / pair[1].bulk_mb_s;
        println!(
            "{:>5} ms: nfqueue carries {ratio:.2} times what the proxy does",
            pair[0].delay_ms
        );
    }
    check(&rows)
}

fn build() -> Result<PathBuf> {
    build_ebpf::build(false)?;
    workspace::run(workspace::cargo().args(["build", "--quiet", "--release", "-p", "agent"]))?;
    Ok(workspace::target().join("release/agent"))
}

fn show(rows: &[Row], index: usize) {
    let row = &rows[index];
    let ms = |value: f64| format!("{value:.3}");
    let udp = |of: fn(&Trips) -> String| row.udp.as_ref().map_or_else(|| "-".to_owned(), of);
    println!(
        "{:>5} ms {:<16} {:>8} {:>8} {:>9} {:>9} {:>8} {:>10.3} {:>8.0} {:>8.1}%",
        row.delay_ms,
        row.name,
        udp(|trips| format!("{:.3}", trips.over_ms(0.5))),
        udp(|trips| format!("{:.3}", trips.over_ms(0.99))),
        udp(|trips| trips.lost.to_string()),
        ms(row.tcp.over_ms(0.5)),
        ms(row.tcp.over_ms(0.99)),
        row.connect_ms,
        row.bulk_mb_s,
        100.0 * row.bulk_mb_s / rows[0].bulk_mb_s,
    );
}

fn check(rows: &[Row]) -> Result<()> {
    let mut broken = Vec::new();
    for row in rows.iter().filter(|row| row.name == "dwell nfqueue") {
        if let Some(udp) = row.udp.as_ref().filter(|_| row.delay_ms >= TRIP_CLAIM_FROM_MS) {
            let (median, p99) = (udp.over_ms(0.5), udp.over_ms(0.99));
            if median > TRIP_CLAIM.0 || p99 > TRIP_CLAIM.1 || udp.lost > 0 {
                broken.push(format!(
                    "at {} ms round trips are {median:.3} ms over at the median and {p99:.3} ms at \
                     p99, {} lost",
                    row.delay_ms, udp.lost
                ));
            }
        }
        let least = BULK_CLAIMS.iter().find(|(delay, _)| *delay == row.delay_ms);
        if let Some((delay, least)) = least.filter(|(_, least)| row.bulk_mb_s < *least) {
            broken.push(format!("at {delay} ms bulk is {:.0} MB/s, not {least}", row.bulk_mb_s));
        }
    }
    if broken.is_empty() { Ok(()) } else { bail!("{}", broken.join("; ")) }
}

/// Whether the client reaches the server itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measured {
    Directly,
    ByProxy,
}

/// Where the ends are.
#[derive(Debug)]
struct Ends {
    server: Place,
    outside: Place,
    address: SocketAddr,
    lasts: Duration,
}

impl Ends {
    fn row(&self, name: &'static str, delay_ms: u64, how: Measured) -> Result<Row> {
        let delay = Duration::from_millis(delay_ms);
        let udp = match how {
            Measured::Directly => {
                Some(measure::udp(&self.server, &self.outside, self.address, delay, self.lasts)?)
            }
            Measured::ByProxy => None,
        };
        // A proxy stands beside the server, in its namespace.
        let through = |address: SocketAddr| match how {
            Measured::Directly => Ok(address),
            Measured::ByProxy => self.server.inside(move || proxy::start(address, delay))?,
        };
        let echo = self.server.inside(|| measure::tcp_echo(self.address))??;
        let (tcp, connect) = measure::tcp(&self.outside, through(echo)?, delay, self.lasts)?;
        let source = self.server.inside(|| measure::bulk_source(self.address))??;
        let bulk_mb_s = measure::bulk(&self.outside, through(source)?, self.lasts)?;
        let connect_ms = connect.as_secs_f64() * 1e3;
        Ok(Row { name, delay_ms, udp, tcp, connect_ms, bulk_mb_s, note: String::new() })
    }
}

/// `agent inject add` in the foreground.
#[derive(Debug)]
struct Agent {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Agent {
    fn start(program: &Path, netns: &str, delay_ms: u64) -> Result<Self> {
        let mut child = workspace::command(program)
            .args(["inject", "add", "--engine", "nfqueue", "--dev", DEVICE, "--netns", netns])
            .args(["--delay", &format!("{delay_ms}ms")])
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the agent")?;
        let lines = child.stdout.take().context("the agent has no standard output")?;
        let mut agent = Self { child, lines: BufReader::new(lines) };
        let mut line = String::new();
        while !line.contains("end it with") {
            line.clear();
            if agent.lines.read_line(&mut line)? == 0 {
                bail!("the agent could not inject");
            }
        }
        Ok(agent)
    }

    /// Ends it; what it says of its packets.
    fn end(mut self) -> Result<String> {
        kill(self.pid(), Signal::SIGINT).context("cannot end the agent")?;
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the agent ended with {status}");
        }
        Ok(line.trim().trim_start_matches("cleared: ").to_owned())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = kill(self.pid(), Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}
