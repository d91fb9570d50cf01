//! `loadgen run`: pair and target, impair, start the probes, run the users, analyse, report.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent_common::duration;
use anyhow::{Context as _, Result, anyhow, bail};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::reports::{self, check_output, colour_wanted};
use super::{EXIT_INVALID, EXIT_OK, RunArgs, Stop, host, resolve, tell};
use crate::clock::now_ns;
use crate::engine::{self, Running};
use crate::http::{RequestSpec, Target};
use crate::pair::{self, Session};
use crate::predict::Prediction;
use crate::progress::{self, Moment};
use crate::record::{KernelData, RunData, RunSpec};
use crate::schedule::Schedule;
use crate::{Inputs, analyse};

/// Longest wait for the service to take the first connection.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// An impairment outlives a load generator that hangs by at most this.
const LEASE: Duration = Duration::from_secs(5);
/// Longest silence of the agent after the run before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often the watcher looks.
const TICK: Duration = Duration::from_millis(20);
/// Code that a second Ctrl-C ends the program with, as a shell would see it.
const EXIT_SIGNAL: i32 = 130;

pub(super) fn run(args: &RunArgs) -> Result<u8, Stop> {
    let db_ports = args.db_ports()?;
    let request = RequestSpec::new(args.method(), &args.url.target, &args.headers, &args.form)
        .map_err(|error| Stop::Usage(error.into()))?;
    check_output(&args.output)?;
    let prediction = args.predicted.as_deref().map(reports::read_prediction).transpose()?;
    check_prediction(prediction.as_ref(), args)?;
    let host = host::host()?;
    let target = probe(&args.url.target)?;

    let session = match &args.agent {
        None => None,
        Some(socket) => {
            let delay =
                args.delay.map(|delay| pair::Delay { delay, device: args.delay_dev.clone() });
            let setup =
                pair::Setup { socket: socket.clone(), target, db_ports, delay, lease: LEASE };
            // For somebody who watches; in a log the outcome says it.
            if std::io::stderr().is_terminal() {
                tell(format_args!("pairing with the agent on {} ...", socket.display()));
            }
            let session = pair::begin(&setup, PATIENCE)?;
            announce(&session);
            Some(session)
        }
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order the first signal only sets the flag, and the second ends the program.
        signal_hook::flag::register_conditional_shutdown(
            signal,
            EXIT_SIGNAL,
            Arc::clone(&interrupted),
        )
        .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&interrupted)))
        .context("cannot handle Ctrl-C")?;
    }
    let hold_ns = u64::try_from(args.hold.as_nanos()).context("the hold is out of range")?;
    let plan = engine::Plan {
        target,
        request,
        schedule: Schedule::new(args.users, args.ramp, hold_ns),
        threads: args.threads,
        timeout: args.timeout,
        max_records: engine::MAX_RECORDS,
    };
    let running = engine::start(plan)?;
    watch(&running, args.users, session.as_ref(), &interrupted);
    let outcome = running.join()?;
    // Unfinished requests stay visible in the kernel until the agent has told of them.
    let kernel = session.map(Session::finish);
    drop(outcome.open);

    let data = RunData {
        spec: spec(args, hold_ns),
        start: outcome.start,
        hold_start: outcome.hold_start,
        end: outcome.end,
        user_starts: outcome.user_starts,
        records: outcome.records,
        beyond: outcome.beyond,
        stale_retries: outcome.stale_retries,
        loop_busy_max: outcome.loop_busy_max,
        engine_cpu_share: outcome.cpu_share,
        engine_runqueue_share: outcome.runqueue_share,
        interrupted: interrupted.load(Ordering::Relaxed),
        kernel,
    };
    let cell = analyse(&data, &Inputs { prediction, cpus: host.cpus });
    let valid = cell.validity.valid;
    let mut report = host::empty_report(host);
    report.cells.push(cell);
    // One output that fails does not cost the others, and the files least of all.
    let written = reports::write_files(&report, &args.output);
    let shown = reports::show(&report, &args.output);
    let remarked = reports::print(&remarks(&outcome.system_errors, &data), args.output.text());
    written.and(shown).and(remarked)?;
    Ok(if valid { EXIT_OK } else { EXIT_INVALID })
}

/// A prediction for another delay would be compared with the wrong run.
fn check_prediction(prediction: Option<&Prediction>, args: &RunArgs) -> Result<(), Stop> {
    let Some(prediction) = prediction else { return Ok(()) };
    let asked_ms = args.delay.map_or(0.0, |delay| delay.as_secs_f64() * 1e3);
    if (prediction.delay_ms - asked_ms).abs() > 1e-6 {
        return Err(Stop::Usage(anyhow!(
            "--predicted is for a delay of {} ms, but this run has {asked_ms} ms",
            prediction.delay_ms
        )));
    }
    Ok(())
}

/// The first of the host's addresses that takes a connection.
fn probe(target: &Target) -> Result<SocketAddr> {
    let mut failures = Vec::new();
    for address in resolve(target)? {
        match TcpStream::connect_timeout(&address, PROBE_LIMIT) {
            Ok(_) => return Ok(address),
            Err(error) => failures.push(format!("{address}: {error}")),
        }
    }
    bail!(
        "nobody answers on {} ({}): start the service, or check host and port of the URL",
        target.authority,
        failures.join("; ")
    )
}

fn announce(session: &Session) {
    let targeted = session.targeted();
    let names: Vec<_> =
        targeted.processes.iter().map(|p| format!("{} ({})", p.comm, p.pid)).collect();
    tell(format_args!("measuring {}, backlog {}", names.join(", "), targeted.backlog));
    for line in &targeted.plan {
        if line.hook.is_none() {
            let reason = line.reason.as_deref().unwrap_or("no reason given");
            tell(format_args!("not measured: {} ({reason})", line.mark));
        }
    }
    if let Some(impaired) = session.impaired() {
        tell(format_args!(
            "delayed by {} on {} ({})",
            duration::format(Duration::from_nanos(impaired.delay_ns)),
            impaired.device,
            impaired.engine
        ));
    }
}

/// Shows progress until the engine has ended; a Ctrl-C ends it.
fn watch(running: &Running, users: u32, session: Option<&Session>, interrupted: &AtomicBool) {
    let terminal = std::io::stderr().is_terminal();
    let colour = colour_wanted(terminal);
    let interval = progress::interval_ns(terminal);
    let mut last = running.start();
    let mut failures = 0;
    let mut told_lost = false;
    while !running.is_finished() {
        std::thread::sleep(TICK);
        if interrupted.load(Ordering::Relaxed) {
            running.stop();
        }
        let now = now_ns();
        let lost_at = session.and_then(Session::lost_at);
        if let Some(at) = lost_at.filter(|_| !told_lost) {
            let seconds = at.saturating_sub(running.start()) as f64 / 1e9;
            let clear = if terminal { "\r\x1b[2K" } else { "" };
            tell(format_args!("{clear}kernel side lost at {seconds:.1} s; the run goes on"));
            told_lost = true;
        }
        if now - last < interval {
            continue;
        }
        let span = running.live().take();
        failures += span.requests - span.successes;
        let moment = Moment {
            left_ns: running.end().saturating_sub(now),
            users: running.live().users(),
            users_in_all: users,
            span,
            span_ns: now - last,
            failures,
            agent_lost: lost_at.is_some(),
        };
        last = now;
        show_line(&progress::line(&moment, colour), terminal);
    }
    if terminal {
        show_line("", true);
    }
}

/// Progress that cannot be shown is no reason to end a run.
fn show_line(line: &str, terminal: bool) {
    let mut out = std::io::stderr().lock();
    let _ = if terminal { write!(out, "\r\x1b[2K{line}") } else { writeln!(out, "{line}") };
    let _ = out.flush();
}

fn spec(args: &RunArgs, hold_ns: u64) -> RunSpec {
    RunSpec {
        name: args.name(),
        setup: args.setup.clone(),
        route: args.route.clone(),
        url: args.url.text.clone(),
        method: args.method().to_owned(),
        users: args.users,
        ramp_per_s: args.ramp,
        hold_ns,
        delay_ns: args.delay.and_then(|delay| u64::try_from(delay.as_nanos()).ok()),
    }
}

/// What the engine met that the report has no field for.
fn remarks(errors: &BTreeMap<String, u64>, data: &RunData) -> String {
    let mut out = String::new();
    if data.stale_retries > 0 {
        out.push_str(&format!(
            "{} requests were sent again on a new connection: the server had closed the kept \
             one\n",
            data.stale_retries
        ));
    }
    for (error, count) in errors {
        out.push_str(&format!("{count} times: {error}\n"));
    }
    let full = std::io::Error::from_raw_os_error(libc::EADDRNOTAVAIL).to_string();
    if errors.contains_key(&full) {
        out.push_str(
            "this host ran out of local ports: closed connections keep theirs for a minute; widen \
             net.ipv4.ip_local_port_range, or let the server keep connections\n",
        );
    }
    if data.interrupted {
        out.push_str("the run was interrupted: the report covers what there is\n");
    }
    if let Some(KernelData { lost_at: Some(at), .. }) = &data.kernel {
        let seconds = at.saturating_sub(data.start) as f64 / 1e9;
        out.push_str(&format!("kernel side lost at {seconds:.1} s\n"));
    }
    out
}
