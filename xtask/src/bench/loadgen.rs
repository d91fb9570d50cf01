//! `cargo xtask bench loadgen`: requests per second of processor time, against oha and wrk.
//!
//! The claim: on kept connections loadgen makes at least as many requests per CPU second as oha,
//! its per-request records and its report included. All load the same nginx by turns, since figures
//! of whole runs drift on a shared machine; each round gives one ratio, and the median decides.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args as ClapArgs;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

use crate::workspace;

const START_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Rounds; each runs every program once
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds that a program runs in each round
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Connections
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4000))]
    connections: u32,
}

/// What a program did in one round.
#[derive(Clone, Copy, Debug)]
struct Sample {
    requests: u64,
    cpu_s: f64,
}

impl Sample {
    fn per_cpu_second(self) -> f64 {
        self.requests as f64 / self.cpu_s
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let oha = oha()?;
    let wrk = workspace::find_program("wrk");
    workspace::run(workspace::cargo().args(["build", "--quiet", "--release", "-p", "loadgen"]))?;
    let loadgen = workspace::target().join("release/loadgen");
    let directory = workspace::target().join("bench");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let server = Server::start(&directory)?;

    println!(
        "{} connections, {} rounds of {} s each; requests per second of user and system time",
        args.connections, args.rounds, args.seconds
    );
    println!(
        "{:>5} {:>12} {:>12} {:>12} {:>16}",
        "round", "loadgen", "oha", "wrk", "loadgen / oha"
    );
    let mut ratios = Vec::new();
    for round in 0..args.rounds {
        let (ours, theirs);
        // Whoever goes first changes from round to round.
        if round % 2 == 0 {
            ours = run_loadgen(&loadgen, &server, args, &directory)?;
            theirs = run_oha(&oha, &server, args)?;
        } else {
            theirs = run_oha(&oha, &server, args)?;
            ours = run_loadgen(&loadgen, &server, args, &directory)?;
        }
        let wrk = match &wrk {
            Some(wrk) => {
                let sample = run_wrk(wrk, &server, args)?;
                format!("{:.0}", sample.per_cpu_second())
            }
            None => "-".to_owned(),
        };
        let ratio = ours.per_cpu_second() / theirs.per_cpu_second();
        println!(
            "{:>5} {:>12.0} {:>12.0} {wrk:>12} {ratio:>16.2}",
            round + 1,
            ours.per_cpu_second(),
            theirs.per_cpu_second(),
        );
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    let median = median(&ratios);
    let (least, most) = (ratios.first().copied(), ratios.last().copied());
    println!(
        "loadgen / oha: median {median:.2}, from {:.2} to {:.2}",
        least.unwrap_or(median),
        most.unwrap_or(median)
    );
    if median < 1.0 {
        bail!("loadgen makes fewer requests per CPU second than oha: {median:.2} of them");
    }
    Ok(())
}

/// Middle of sorted values; their mean where there are two.
fn median(sorted: &[f64]) -> f64 {
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (n, middle) if n % 2 == 1 => sorted[middle],
        (_, middle) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

fn run_loadgen(program: &Path, server: &Server, args: &Args, at: &Path) -> Result<Sample> {
    let report = at.join("loadgen.json");
    let mut command = workspace::command(program);
    command
        .args(["run", &server.url, "--users", &args.connections.to_string()])
        .args(["--hold", &format!("{}s", args.seconds), "--json"])
        .arg(&report)
        .stdout(Stdio::null());
    // 3: two processors shared with the server make no valid run, which matters to marks, not here.
    let (_, cpu_s) = measure(&mut command, &[0, 3])?;
    let text = fs::read_to_string(&report).context("cannot read loadgen's report")?;
    let json: serde_json::Value = serde_json::from_str(&text).context("loadgen's report")?;
    let client = &json["cells"][0]["client"];
    let requests = client["successes"].as_u64().context("loadgen's report has no successes")?;
    if client["requests"].as_u64() != Some(requests) {
        bail!("loadgen met failures: {}", client["failures"]);
    }
    Ok(Sample { requests, cpu_s })
}

fn run_oha(program: &Path, server: &Server, args: &Args) -> Result<Sample> {
    let mut command = workspace::command(program);
    command
        .args(["--no-tui", "--output-format", "json", "-c", &args.connections.to_string()])
        .args(["-z", &format!("{}s", args.seconds), &server.url]);
    let (text, cpu_s) = measure(&mut command, &[0])?;
    let json: serde_json::Value = serde_json::from_str(&text).context("oha's report")?;
    let requests = json["statusCodeDistribution"]["200"]
        .as_u64()
        .with_context(|| format!("oha's report has no count of answers: {text}"))?;
    Ok(Sample { requests, cpu_s })
}

fn run_wrk(program: &Path, server: &Server, args: &Args) -> Result<Sample> {
    let mut command = workspace::command(program);
    command.args(["-t", "1", "-c", &args.connections.to_string()]).args([
        "-d",
        &args.seconds.to_string(),
        &server.url,
    ]);
    let (text, cpu_s) = measure(&mut command, &[0])?;
    let requests = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())
        .with_context(|| format!("wrk told no number of requests: {text}"))?;
    Ok(Sample { requests, cpu_s })
}

/// Runs a command to its end: its output and its processor time in seconds.
fn measure(command: &mut Command, codes: &[i32]) -> Result<(String, f64)> {
    // No other child ends meanwhile, so the difference is this one's.
    let before = children_cpu_s()?;
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", workspace::line(command)))?;
    let cpu_s = children_cpu_s()? - before;
    if !output.status.code().is_some_and(|code| codes.contains(&code)) {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}: {}", workspace::line(command), output.status, stderr.trim());
    }
    Ok((String::from_utf8_lossy(&output.stdout).into_owned(), cpu_s))
}

fn children_cpu_s() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("cannot read processor times")?;
    let seconds = |t: TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// oha, built once into the target directory.
fn oha() -> Result<PathBuf> {
    let root = workspace::target().join("tools");
    let program = root.join("bin/oha");
    if !program.is_file() {
        eprintln!("building oha into {}", root.display());
        let mut command = workspace::cargo();
        command.args(["install", "oha", "--locked", "--quiet", "--root"]).arg(&root);
        workspace::run(&mut command)?;
    }
    Ok(program)
}

/// nginx with one worker on a free port of loopback.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    fn start(directory: &Path) -> Result<Self> {
        let nginx = workspace::find_program("nginx")
            .context("nginx is missing; install it with `apt-get install nginx-light`")?;
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .context("no free port")?
            .port();
        let at = directory.display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("  {name}_temp_path {at}/{name};\n"))
            .collect();
        let text = format!(
            "worker_processes 1;\ndaemon off;\npid {at}/nginx.pid;\nerror_log {at}/error.log;\n\
             events {{ worker_connections 8192; }}\n\
             http {{\n  access_log off;\n  keepalive_requests 1000000000;\n{temporary}  server {{\n    \
             listen 127.0.0.1:{port};\n    location / {{ return 200 \"hello\\n\"; }}\n  }}\n}}\n"
        );
        let config = directory.join("nginx.conf");
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let mut command = workspace::command(nginx);
        command.arg("-e").arg(directory.join("error.log")).arg("-c").arg(&config);
        let process = command.stdin(Stdio::null()).spawn().context("cannot start nginx")?;
        let mut server = Self { process, url: format!("http://127.0.0.1:{port}/") };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = server.process.try_wait().context("cannot watch nginx")? {
                bail!("nginx ended with {status}; see {at}/error.log");
            }
            if begun.elapsed() > START_LIMIT {
                bail!("nginx does not listen after {START_LIMIT:?}; see {at}/error.log");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGTERM, so that the master takes its worker along.
        let pid = nix::unistd::Pid::from_raw(self.process.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.process.wait();
    }
}
