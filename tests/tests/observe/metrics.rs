//! `--metrics`, scraped by a real Prometheus.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Observe, command, parse};

const REQUESTS: usize = 7;
const SERVICE: Duration = Duration::from_millis(60);
/// Prometheus starts, scrapes and is asked.
const PATIENCE: Duration = Duration::from_secs(60);

fn program(name: &str) -> Result<PathBuf> {
    let directory = std::env::var_os("DWELL_PROMETHEUS")
        .context("DWELL_PROMETHEUS names no directory: run `cargo xtask test observe`")?;
    Ok(PathBuf::from(directory).join(name))
}

/// A port that is free now.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// GETs a path; the answer's head and body.
fn get(from: SocketAddr, path: &str) -> Result<(String, String)> {
    let mut stream = TcpStream::connect(from)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {from}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    Ok((head.to_owned(), body.to_owned()))
}

/// Debian's Prometheus, which scrapes every second. Killed when dropped.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Prometheus {
    fn start(scraped: SocketAddr) -> Result<Self> {
        let (directory, address) = (tempfile::tempdir()?, free()?);
        let configuration = format!(
            "global: {{ scrape_interval: 1s }}\n\
             scrape_configs:\n- job_name: dwell\n  static_configs: [{{ targets: ['{scraped}'] }}]\n"
        );
        let file = directory.path().join("prometheus.yml");
        std::fs::write(&file, configuration)?;
        let child = Command::new(program("prometheus")?)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start prometheus")?;
        Ok(Self { child, address, _directory: directory })
    }

    /// The value of the only series of a query, once there is one.
    fn value(&self, query: &str) -> Result<f64> {
        let mut path = "/api/v1/query?query=".to_owned();
        for byte in query.bytes() {
            let _ = write!(path, "%{byte:02X}");
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok((_, body)) = get(self.address, &path) {
                let answer: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
                if let Some([one]) = answer["data"]["result"].as_array().map(Vec::as_slice) {
                    let value = one["value"][1].as_str().context("no value")?;
                    return Ok(value.parse()?);
                }
            }
            if Instant::now() > deadline {
                bail!("prometheus knows nothing of {query}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request on a connection of its own, which takes [`SERVICE`].
fn exchange(listener: &TcpListener) -> Result<()> {
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut stream, _) = listener.accept()?;
    client.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    ensure!(stream.read(&mut [0; 64])? > 0, "no request");
    std::thread::sleep(SERVICE);
    Ok(stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?)
}

#[test]
fn a_prometheus_scrapes_it() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let scraped = free()?;
    let port = listener.local_addr()?.port();
    let mut observe =
        Observe::start(&format!("--port {port} --metrics {} --json", scraped.port()))?;
    for _ in 0..REQUESTS {
        exchange(&listener)?;
    }
    // Somebody who asks nothing keeps nobody from asking.
    let _silent = TcpStream::connect(scraped)?;
    while observe.line()?["to_s"].as_f64().is_none_or(|to| to < 2.0) {}

    let prometheus = Prometheus::start(scraped)?;
    assert_eq!(prometheus.value("dwell_stage_seconds_count{stage=\"service\"}")?, 7.0);
    assert_eq!(prometheus.value("dwell_requests_total{outcome=\"answered\"}")?, 7.0);
    assert_eq!(prometheus.value("dwell_connections_total{outcome=\"accepted\"}")?, 7.0);
    let below = |le| format!("dwell_stage_seconds_bucket{{stage=\"service\",le=\"{le}\"}}");
    assert_eq!(prometheus.value(&below("0.05"))?, 0.0);
    assert_eq!(prometheus.value(&below("+Inf"))?, 7.0);
    let sum = prometheus.value("dwell_stage_seconds_sum{stage=\"service\"}")?;
    assert!(sum >= REQUESTS as f64 * SERVICE.as_secs_f64(), "{sum} s");
    assert_eq!(prometheus.value("sum(dwell_lost_events_total)")?, 0.0);
    assert_eq!(prometheus.value("up{job=\"dwell\"}")?, 1.0);

    let (head, body) = get(scraped, "/metrics")?;
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
    let mut check = Command::new(program("promtool")?)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    check.stdin.take().context("no input")?.write_all(body.as_bytes())?;
    let checked = check.wait_with_output()?;
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && said.is_empty(), "promtool: {said}");
    assert!(get(scraped, "/")?.0.starts_with("HTTP/1.1 404"));

    observe.signal(Signal::SIGINT)?;
    let (code, out, log) = observe.end()?;
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(parse(&out)?.1["requests"]["answered"], REQUESTS);
    assert!(TcpStream::connect(scraped).is_err(), "somebody still answers");
    Ok(())
}

#[test]
fn a_port_that_is_taken() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let holds = TcpListener::bind("127.0.0.1:0")?;
    let (port, taken) = (listener.local_addr()?.port(), holds.local_addr()?.port());
    let output = command(&format!("--port {port} --metrics {taken}"))?.output()?;
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains(&format!("cannot serve metrics on 127.0.0.1:{taken}")), "{log}");
    Ok(())
}
