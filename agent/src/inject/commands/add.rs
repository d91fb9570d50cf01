//! `agent inject add`.

use std::io::{Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agent_common::duration;
use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::options::{EXAMPLES, Options};
use super::packets::Packets;
use super::{Namespace, outcome_text, packets, say};
use crate::inject::active::{ActiveImpairment, Course, End, Scope, apply_for};
use crate::inject::by::By;
use crate::inject::engines::require_root;
use crate::inject::error::{InjectError, clear_command};
use crate::model::filter::PacketFilter;
use crate::model::impairment::{Direction, EngineChoice, Impairment};
use crate::model::proc_net::Connection;
use crate::model::schedule::Schedule;
use crate::sys::netns::Netns;
use crate::sys::{discover, operator, stops};

/// How soon a signal is noticed.
const SIGNAL_LATENCY: Duration = Duration::from_millis(20);
/// What the background process waits for after it has told that all is well.
const GO: u8 = b'g';

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Interface whose packets are impaired.
    #[arg(long, value_name = "DEV")]
    dev: String,
    #[command(flatten)]
    namespace: Namespace,
    #[command(flatten)]
    options: Options,
    /// Delays that follow each other: TIME:DELAY for a step, TIME~DELAY for a ramp that gets there at
    /// TIME. The last one stays.
    #[arg(long, conflicts_with = "delay", value_parser = Schedule::parse)]
    schedule: Option<Schedule>,
    /// Which packets: those that leave the interface, those that arrive, or both (a round trip then
    /// takes the delay twice).
    #[arg(long, value_enum, default_value_t)]
    direction: Direction,
    /// Put a root queueing discipline that somebody configured aside, and back afterwards with all
    /// that hangs on it. What could not be put back (filters, netem's tables) is refused.
    #[arg(long)]
    replace: bool,
    /// How to impair.
    #[arg(long, value_enum, default_value_t)]
    engine: EngineChoice,
    /// End by itself after this time, such as 30s or 5min.
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    length: Option<Duration>,
    /// Also where the SSH session that this is typed in goes through the interface.
    #[arg(long)]
    force: bool,
    /// Return as soon as the impairment is in force; a background process holds it until
    /// `agent inject clear`.
    #[arg(long)]
    detach: bool,
    /// This is that background process.
    #[arg(long, hide = true, conflicts_with = "detach")]
    hold: bool,
    // Last: what follows is under its heading in the help.
    #[command(flatten)]
    packets: Packets,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let filter = args.packets.filter()?;
    let impairment = args.impairment()?;
    require_root()?;
    if !args.hold {
        for warning in impairment.warnings() {
            eprintln!("warning: {warning}");
        }
    }
    if args.detach {
        // What cannot be meant is told by this process, not by way of the other.
        args.namespace.given()?;
        return detach(args);
    }
    stops::block().context("cannot prepare for Ctrl-Z")?;
    // Before anything is in force, so that no signal finds it unguarded.
    let ending = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&ending))
            .context("cannot prepare for signals")?;
    }
    if args.hold {
        nix::unistd::setsid().context("cannot leave the terminal")?;
        // Files were read from where the command was given; from now on it holds no place.
        std::env::set_current_dir("/").context("cannot leave the directory")?;
    }
    let netns = match args.namespace.given()? {
        Some(netns) => netns,
        None => Netns::current().map_err(InjectError::from)?,
    };
    if !args.force {
        refuse_own_session(&netns, &args.dev, &filter, args.direction)?;
    }
    let server = args.packets.see_server(&filter, &netns, &args.dev)?;
    let scope = Scope {
        netns,
        device: args.dev.clone(),
        direction: args.direction,
        filter,
        replace: args.replace,
        by: By::this_command(),
    };
    let course = Course { schedule: args.schedule.clone(), length: args.length };
    let active = apply_for(&impairment, &scope, args.engine, &course)?;
    let start = Instant::now();
    describe(&active, &scope);
    if let Some(server) = server {
        say(&server);
    }
    if let Some(length) = args.length {
        say(&format!("it ends by itself after {}", duration::format(length)));
    }
    if let Some(schedule) = &args.schedule {
        say(&format!("and then as the schedule says: {schedule}"));
    }
    if args.hold {
        match hand_over() {
            Ok(true) => {}
            // Whoever started this was interrupted: the delay is not wanted any more.
            _ => ending.store(true, Ordering::SeqCst),
        }
    } else {
        say(&format!("end it with Ctrl-C or `{}`", args.clear_command()));
    }
    hold(active, &ending, start, &course)
}

fn time(text: &str) -> Result<Duration, String> {
    match duration::parse(text) {
        Ok(Duration::ZERO) => Err("no time at all; give one such as 30s".to_owned()),
        parsed => parsed.map_err(|error| error.to_string()),
    }
}

/// Whoever types over SSH should not cut off the branch they sit on.
fn refuse_own_session(
    netns: &Netns,
    device: &str,
    filter: &PacketFilter,
    direction: Direction,
) -> anyhow::Result<()> {
    let Some(session) = operator::ssh_session() else { return Ok(()) };
    if session.netns_inode != netns.inode() {
        return Ok(());
    }
    let Connection { local, remote, .. } = session.connection;
    // On loopback every packet goes both ways.
    let direction = if device == "lo" { Direction::Both } else { direction };
    if !filter.is_all() && !filter.takes_connection(local, remote, direction) {
        return Ok(());
    }
    let local = local.ip();
    let carries = netns
        .run(|| discover::device_of(local))
        .map_err(InjectError::from)?
        .context("cannot tell which interface carries the SSH session")?;
    if carries.as_deref() == Some(device) {
        return Err(InjectError::OwnSession { device: device.to_owned(), peer: remote.ip() }.into());
    }
    Ok(())
}

impl Args {
    /// What is injected; with a schedule at its longest.
    pub(super) fn impairment(&self) -> Result<Impairment, InjectError> {
        match &self.schedule {
            None => self.options.impairment(),
            Some(schedule) => self.options.scheduled(schedule),
        }
    }

    fn clear_command(&self) -> String {
        clear_command(&self.dev, &self.namespace.origin())
    }
}

fn describe(active: &ActiveImpairment, scope: &Scope) {
    let netns = scope.netns.label();
    let place =
        format!("{} {} in network namespace {netns}", way(active.direction()), active.device());
    let which = if scope.filter.is_all() {
        format!("everything that {place} is")
    } else {
        format!("of what {place}, {} are", scope.filter)
    };
    say(&format!(
        "{which} {}\nengine {} ({})",
        active.impairment(),
        active.engine(),
        active.why_engine(),
    ));
    if let Some(why) = active.weakness() {
        say(&format!(
            "packets are held where TCP feels it ({why}): a connection keeps about two segments on \
             their way, and what is longer than 2 KB takes more than one delay to send"
        ));
    }
    for sentence in active.unmeasured() {
        say(&sentence);
    }
}

fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "leaves",
        Direction::Ingress => "arrives at",
        Direction::Both => "leaves or arrives at",
    }
}

fn hold(
    active: ActiveImpairment,
    ending: &AtomicBool,
    start: Instant,
    course: &Course,
) -> anyhow::Result<ExitCode> {
    let mut followed = course.schedule.as_ref().map(Followed::new);
    let end = loop {
        let since = start.elapsed();
        if ending.load(Ordering::SeqCst) || course.length.is_some_and(|length| since >= length) {
            break None;
        }
        let pause = match &mut followed {
            None => SIGNAL_LATENCY,
            Some(followed) => match followed.keep_up(&active, since) {
                Ok(next) => next.map_or(SIGNAL_LATENCY, |next| next.min(SIGNAL_LATENCY)),
                // It ended while it was to be changed.
                Err(_) if active.ended().is_some() => Duration::ZERO,
                Err(error) => {
                    active.clear()?;
                    return Err(error.into());
                }
            },
        };
        if let Some(end) = active.wait(pause) {
            break Some(end);
        }
    };
    let outcome = active.clear()?;
    let by = if end == Some(End::Cleared) { " by another command" } else { "" };
    say(&format!("cleared{by}: {}", outcome_text(&outcome)));
    Ok(ExitCode::SUCCESS)
}

/// A schedule, and how far it was followed.
struct Followed<'a> {
    schedule: &'a Schedule,
    phase: usize,
    /// When the delay is to be set next.
    next: Option<Duration>,
}

impl<'a> Followed<'a> {
    /// From its beginning, which is in force.
    fn new(schedule: &'a Schedule) -> Self {
        Self { schedule, phase: 0, next: schedule.next_change(Duration::ZERO) }
    }

    /// Sets the delay if that is due, and says what packets got in a phase that is over. Returns the
    /// time until the next one is due.
    fn keep_up(
        &mut self,
        active: &ActiveImpairment,
        since: Duration,
    ) -> Result<Option<Duration>, InjectError> {
        if self.next.is_some_and(|next| since >= next) {
            let phase = self.schedule.phase_at(since);
            let outcome = active.set_delay(self.schedule.delay_at(since), phase != self.phase)?;
            if let Some(outcome) = outcome {
                say(&format!(
                    "{}: {}; {} held over",
                    self.schedule.phase_words(self.phase),
                    outcome_text(&outcome),
                    packets(outcome.held_over)
                ));
            }
            for skipped in self.phase + 1..phase {
                say(&format!(
                    "{}: was not in force, since this process did not get to run",
                    self.schedule.phase_words(skipped)
                ));
            }
            self.phase = phase;
            self.next = self.schedule.next_change(since);
        }
        Ok(self.next.map(|next| next.saturating_sub(since)))
    }
}

/// Starts this program again in the background and waits until the impairment is in force there.
fn detach(args: &Args) -> anyhow::Result<ExitCode> {
    // The same words again, but for one.
    let words = std::env::args_os().skip(1);
    let words = words.map(|word| if word == "--detach" { "--hold".into() } else { word });
    let mut child = Command::new("/proc/self/exe")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start the background process")?;
    let (mut told, mut complaint) = (String::new(), String::new());
    // It closes both when it is ready, and ends when it fails.
    if let Some(mut out) = child.stdout.take() {
        out.read_to_string(&mut told).context("cannot hear from the background process")?;
    }
    if let Some(mut err) = child.stderr.take() {
        err.read_to_string(&mut complaint).context("cannot hear from the background process")?;
    }
    let go = child.stdin.take().map(|mut stdin| stdin.write_all(&[GO]));
    if !matches!(go, Some(Ok(()))) || !complaint.is_empty() {
        let _ = child.wait();
        let reason = complaint.trim().trim_start_matches("error: ");
        let reason = if reason.is_empty() { "the background process ended early" } else { reason };
        anyhow::bail!("{reason}");
    }
    say(&format!(
        "{}\nheld by process {}; end it with `{}`",
        told.trim_end(),
        child.id(),
        args.clear_command()
    ));
    Ok(ExitCode::SUCCESS)
}

/// In the background process: lets go of the pipes to the process that started this one, and waits
/// for its word. False if it went away instead.
fn hand_over() -> anyhow::Result<bool> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    let mut word = [0];
    let len = std::io::stdin().read(&mut word)?;
    nix::unistd::dup2_stdin(&null)?;
    Ok(len == 1 && word[0] == GO)
}
