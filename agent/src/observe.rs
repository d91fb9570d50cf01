//! `agent observe`: where the requests to a service wait, without a load generator.

use std::io::{self, IsTerminal as _};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::{Arc, atomic::AtomicBool};
use std::time::Duration;

use agent_common::{abi, duration};
use anyhow::{Context as _, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::{
    measure::Measurement,
    model::text as escape,
    sys::{
        clock,
        discover::{self, Listening, Wanted},
        observe::{Observer, Target},
        privilege, stops,
    },
};

mod json;
mod live;
mod metrics;
mod session;
mod text;

use session::{Ending, Output};

/// Followed unless told otherwise: Postgres's.
const DEFAULT_DB_PORT: u16 = 5432;
/// Longest measurement; beyond it, leave --duration out.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);

/// Shows where the requests to a service wait; no load generator is needed
///
/// Every second: how long connections waited to be accepted and requests to be read, how long the
/// service took for them, what its threads did with their time, and what it asked the database. At
/// the end, or at Ctrl-C, the sums and the slowest requests. On a terminal a live view, else a line
/// for every second. Nothing of the service is changed.
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("service").args(["port", "pid"]).required(true).multiple(true),
    after_help = "Exit status: 0 at the end of --duration, at Ctrl-C and when nobody reads any more; 1 if \
    the service ended, or could not be measured.\n\nExamples:\n  \
    sudo agent observe --port 8000\n  \
    sudo agent observe --pid $(pgrep -o gunicorn) --db-port 5433 --duration 30s\n  \
    sudo agent observe --port 8000 --metrics 9464\n  \
    sudo agent observe --port 8000 --json | jq .stages.accept_queue.p99_ms"
)]
pub struct Args {
    /// Port that the service listens on
    ///
    /// In the agent's own network namespace if anybody listens on it there, else in the only other
    /// one. All that listen on the port there are measured together.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Process of the service, of any network namespace or container
    ///
    /// All that share its listening socket are measured, also when it ends itself. With several
    /// listening ports, choose one with --port.
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    pid: Option<u32>,
    /// Port of the service's database; may be given several times [default: 5432]
    ///
    /// It need not have connections yet. Its round trips are named where it is a Postgres.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    db_port: Vec<u16>,
    /// How long to measure [default: until Ctrl-C]
    #[arg(long, value_name = "TIME", value_parser = length)]
    duration: Option<Duration>,
    /// Serve what happened so far to a Prometheus, at http://ADDRESS/metrics
    ///
    /// A bare port is on 127.0.0.1. On an address that others reach, they read it too: statements
    /// are among it, without their literals.
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = metrics::address)]
    metrics: Option<SocketAddr>,
    /// Print one line of JSON for every second and one, of type `summary`, for all
    #[arg(long)]
    json: bool,
}

fn length(text: &str) -> Result<Duration, String> {
    let length = duration::parse(text).map_err(|error| error.to_string())?;
    if length.is_zero() {
        return Err("a measurement of no length shows nothing; write one such as 30s".to_owned());
    }
    if length > MAX_DURATION {
        return Err("longer than a year; leave it out to measure until Ctrl-C".to_owned());
    }
    Ok(length)
}

/// Runs the command until its end.
///
/// # Errors
/// Not root, no such service, the kernel refuses the probes, or the service ends.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("measuring needs root: run `sudo agent observe ...`");
    }
    if args.db_port.len() > abi::MAX_DB_PORTS {
        bail!(
            "--db-port was given {} times, at most {} are followed",
            args.db_port.len(),
            abi::MAX_DB_PORTS
        );
    }
    let wanted = match (args.pid, args.port) {
        (Some(pid), port) => Wanted::Process(pid, port),
        (None, Some(port)) => Wanted::Port(port),
        (None, None) => bail!("say which service: --port PORT or --pid PID"),
    };
    let (mut service, port) = discover::wanted(wanted)?;
    let db_ports = db_ports(&args.db_port, port)?;
    let target = Target {
        netns_cookie: service.cookie,
        port,
        db_ports: db_ports.clone(),
        tgids: service.processes.iter().map(|process| process.pid).collect(),
        client_tgid: None,
    };
    // As many pipes and files as there are: a view is for a person who looks at it.
    let live = !args.json && io::stdout().is_terminal();
    let stop = stop_at_signals(live).context("cannot catch signals")?;
    let scraped = args
        .metrics
        .map(|address| {
            TcpListener::bind(address).with_context(|| format!("cannot serve metrics on {address}"))
        })
        .transpose()?;
    let mut observer = Observer::attach(&target)?;
    // From here on the fork hook follows children; those born before it are looked up again.
    observer.follow(&service.current_processes())?;
    // While this is the only thread: the others inherit what is left.
    privilege::keep_what_observing_needs()
        .context("cannot give up the capabilities that are not needed")?;
    let start_ns = clock::monotonic_ns();
    let measurement = Measurement::start(Box::new(observer), &service, start_ns);
    // What happens from now on counts in full.
    eprintln!("agent: {}", said(&service, port, &db_ports));

    let mut output: Box<dyn Output> = if args.json {
        Box::new(json::Lines::new(io::stdout()))
    } else if live {
        let name = service.processes.first().map_or("", |process| &process.comm);
        let live = live::Live::new(escape::printable(name), port);
        Box::new(
            live.context("cannot draw on this terminal; `agent observe ... | cat` prints lines")?,
        )
    } else {
        Box::new(text::Table::new(io::stdout(), port))
    };
    if let Some(listener) = scraped {
        output =
            Box::new(metrics::WithMetrics::new(output, listener).context("cannot serve metrics")?);
    }
    match session::run(&mut service, (start_ns, measurement), &stop, args.duration, output.as_mut())
    {
        Ok(Ending::Asked) => Ok(ExitCode::SUCCESS),
        Ok(Ending::Gone) => bail!(
            "the service's processes have ended, or nobody holds its socket any more: start it again \
             and observe again"
        ),
        // As of `agent observe | head`.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error),
    }
}

/// The database's ports, of a service on `port`.
fn db_ports(given: &[u16], port: u16) -> anyhow::Result<Vec<u16>> {
    let mut ports = given.to_vec();
    ports.sort_unstable();
    ports.dedup();
    if ports.contains(&port) {
        bail!("port {port} cannot be both the service's and its database's");
    }
    if ports.is_empty() && port != DEFAULT_DB_PORT {
        ports.push(DEFAULT_DB_PORT);
    }
    Ok(ports)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// A flag that signals set. Without a live view a second signal ends the agent at once, as when its
/// output is stuck; the kernel then takes the probes away. With one, the terminal is to be given back
/// first, and nothing may stop the agent half-way.
fn stop_at_signals(live: bool) -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    if live {
        stops::block()?;
        signal_hook::flag::register(SIGQUIT, Arc::clone(&stop))?;
    }
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        if !live {
            // Before the other: the first signal finds the flag not yet set.
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))?;
        }
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// What is measured, in words.
fn said(service: &Listening, port: u16, db_ports: &[u16]) -> String {
    const NAMED: usize = 5;
    let mut processes: Vec<String> = service
        .processes
        .iter()
        .take(NAMED)
        .map(|process| format!("{} ({})", process.pid, escape::printable(&process.comm)))
        .collect();
    if service.processes.len() > NAMED {
        processes.push(format!("{} more", service.processes.len() - NAMED));
    }
    let ports: Vec<String> = db_ports.iter().map(u16::to_string).collect();
    format!(
        "measuring port {port} in network namespace {}: pid {}; {}; Ctrl-C ends",
        service.netns.label(),
        processes.join(", "),
        match &ports[..] {
            [] => "no database".to_owned(),
            ports => format!("database port {}", ports.join(", ")),
        }
    )
}

#[cfg(test)]
mod tests;
