//! However it ends, it says what it saw, and nothing is left in the kernel.

use std::io::{BufRead as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use tests::{observed::now_ns, programs};

use crate::support::{Observe, parse};

/// A second, for the kernel to take away what the agent had.
const SECOND: Duration = Duration::from_secs(1);

/// A listener of this process, and an agent that measures it.
fn watched(arguments: &str) -> Result<(TcpListener, Observe)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    Ok((listener, Observe::start(&format!("--port {port} {arguments}"))?))
}

fn gone(programs: &std::collections::BTreeSet<u32>) -> Result<()> {
    let start = Instant::now();
    loop {
        let looked = start.elapsed();
        let left: Vec<_> = programs.intersection(&programs::loaded()?).copied().collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(looked < SECOND, "left after a second: programs {left:?}");
    }
}

#[test]
fn signals_end_it_with_a_summary() -> Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let (_listener, observe) = watched("--json")?;
        let programs = programs::of_process(observe.pid())?;
        ensure!(!programs.is_empty(), "no probe is loaded");
        observe.signal(signal)?;
        let (code, out, log) = observe.end()?;
        assert_eq!(code, Some(0), "{signal}: {log}");
        let (_, summary) = parse(&out)?;
        assert_eq!(summary["ended"], "interrupted");
        gone(&programs).with_context(|| signal.to_string())?;
    }
    Ok(())
}

#[test]
fn sigkill_leaves_no_probe() -> Result<()> {
    let (_listener, observe) = watched("")?;
    let programs = programs::of_process(observe.pid())?;
    observe.signal(Signal::SIGKILL)?;
    gone(&programs)
}

#[test]
fn it_ends_after_its_duration_and_says_so_in_text() -> Result<()> {
    let start = now_ns();
    let (listener, observe) = watched("--duration 2.2s")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut stream, _) = listener.accept()?;
    client.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    std::io::Read::read(&mut stream, &mut [0; 64])?;
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let programs = programs::of_process(observe.pid())?;
    let (code, out, log) = observe.end()?;
    assert_eq!(code, Some(0), "{log}");
    assert!(now_ns() - start >= 2_200_000_000);
    assert!(out.starts_with("  time"), "{out}");
    assert!(out.contains("; answered requests: 1 ("), "{out}");
    let rows = out.lines().skip(2).take_while(|line| !line.is_empty()).count();
    assert!(rows >= 2, "a line for every second: {out}");
    gone(&programs)
}

/// An answer that still waits in a kept connection counts; what was not over is told of.
#[test]
fn what_is_under_way_at_the_end_is_told_of() -> Result<()> {
    let (listener, observe) = watched("--json")?;
    let exchange = |answer: bool| -> Result<[TcpStream; 2]> {
        let mut client = TcpStream::connect(listener.local_addr()?)?;
        let (mut stream, _) = listener.accept()?;
        client.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        std::io::Read::read(&mut stream, &mut [0; 64])?;
        if answer {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        }
        Ok([client, stream])
    };
    let _kept = (exchange(true)?, exchange(false)?);
    let _waits = TcpStream::connect(listener.local_addr()?)?;
    observe.signal(Signal::SIGINT)?;
    let (_, out, _) = observe.end()?;
    let (_, summary) = parse(&out)?;
    assert_eq!(summary["requests"]["answered"], 1, "{summary:#}");
    assert_eq!(summary["unfinished"]["service"], 1, "{summary:#}");
    assert_eq!(summary["unfinished"]["accept_queue"], 1, "{summary:#}");
    Ok(())
}

#[test]
fn a_service_that_ends_is_an_error_after_the_summary() -> Result<()> {
    const SERVER: &str = "
import socket, sys, time
s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); time.sleep(600)
";
    let mut server = Command::new("python3").args(["-c", SERVER]).stdout(Stdio::piped()).spawn()?;
    let mut port = String::new();
    let mut told = std::io::BufReader::new(server.stdout.take().context("no output")?);
    told.read_line(&mut port)?;
    let observe = Observe::start(&format!("--pid {} --json", server.id()))?;
    server.kill()?;
    server.wait()?;
    let (code, out, log) = observe.end()?;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("error: the service's processes have ended"), "{log}");
    assert_eq!(parse(&out)?.1["ended"], "service_gone");
    Ok(())
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() -> Result<()> {
    let (_listener, mut observe) = watched("--json")?;
    let programs = programs::of_process(observe.pid())?;
    assert_eq!(observe.line()?["type"], "window");
    // A pipe that nobody reads any more.
    observe.out = std::io::BufReader::new(tests_pipe()?);
    let (code, _, log) = observe.end()?;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("error"), "{log}");
    gone(&programs)
}

/// The output of a program that has ended, in place of the agent's.
fn tests_pipe() -> Result<std::process::ChildStdout> {
    let mut child = Command::new("true").stdout(Stdio::piped()).spawn()?;
    child.wait()?;
    child.stdout.take().context("no standard output")
}

#[test]
fn it_keeps_no_capability_that_it_does_not_need() -> Result<()> {
    let (_listener, observe) = watched("--json")?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", observe.pid()))?;
    // CAP_DAC_READ_SEARCH 2, CAP_SYS_PTRACE 19, CAP_SYS_ADMIN 21.
    let kept = 1_u64 << 2 | 1 << 19 | 1 << 21;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd"] {
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{set}:")));
        let bits = u64::from_str_radix(line.context(set)?.trim(), 16)?;
        assert_eq!(bits & !kept, 0, "{set}: {bits:x}");
    }
    Ok(())
}
