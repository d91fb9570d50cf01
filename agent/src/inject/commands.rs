//! The commands `agent inject add`, `change`, `list`, `clear` and `recover`.

mod add;
mod change;
mod clear;
mod list;
mod options;
mod packets;
mod recover;

use std::process::ExitCode;

use clap::{Args as _, FromArgMatches as _, Subcommand};

use super::error::InjectError;
use crate::model::impairment::Impairment;
use crate::sys::container;
use crate::sys::guardian;
use crate::sys::netns::{Netns, Origin};

/// Impairs what leaves an interface (delay, loss and more), lists what is injected, and clears it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Impairs everything that leaves an interface, until Ctrl-C or `agent inject clear`.
    Add(Box<add::Args>),
    /// Changes what is injected on an interface into something else, without losing what is held.
    Change(Box<change::Args>),
    /// Lists what is injected.
    List(list::Args),
    /// Ends what is injected, in every namespace unless --netns, --pid or --container names one, and
    /// removes what a killed agent left.
    Clear(clear::Args),
    /// Removes what agents left that were killed together with their guardians. Ends well also where
    /// nothing is left, and leaves alone what a living agent holds.
    Recover,
    /// The process that takes a qdisc away when its agent is gone.
    #[command(hide = true)]
    Guardian {
        /// What it watches over, as JSON.
        #[arg(long)]
        ward: String,
    },
}

/// Runs the command.
///
/// # Errors
/// One that names the thing and the fix; nothing is left behind then.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Add(args) => add::run(args),
        Verb::Change(args) => change::run(args),
        Verb::List(args) => list::run(args),
        Verb::Clear(args) => clear::run(args),
        Verb::Recover => recover::run(),
        Verb::Guardian { ward } => guardian::guard(ward).map(|()| ExitCode::SUCCESS),
    }
}

/// The impairment that these options of `agent inject add` ask for, such as `--delay 100ms --loss
/// 1%`. Table files are read.
///
/// # Errors
/// One that names the option and the fix.
pub fn impairment_from_args<I: IntoIterator<Item: Into<std::ffi::OsString>>>(
    options: I,
) -> anyhow::Result<Impairment> {
    let command = options::Options::augment_args(clap::Command::new("add").no_binary_name(true));
    let matches = command.try_get_matches_from(options.into_iter().map(Into::into))?;
    Ok(options::Options::from_arg_matches(&matches)?.impairment()?)
}

/// Which network namespace; the current one if not said.
#[derive(Debug, Default, clap::Args)]
#[group(multiple = false)]
struct Namespace {
    /// Network namespace by name, as `ip netns` lists it.
    #[arg(long, value_name = "NAME")]
    netns: Option<String>,
    /// Network namespace of a process.
    #[arg(long, value_name = "PID", allow_hyphen_values = true)]
    pid: Option<String>,
    /// Network namespace of a container, by the first digits of its id, as `docker ps` and
    /// `podman ps` list it.
    #[arg(long, value_name = "ID")]
    container: Option<String>,
}

impl Namespace {
    fn given(&self) -> Result<Option<Netns>, InjectError> {
        if let Some(id) = &self.container {
            return Ok(Some(Netns::of_pid(container::first_process(id)?.pid)?));
        }
        match (&self.netns, &self.pid) {
            (Some(name), _) => Ok(Some(Netns::named(name)?)),
            (None, Some(pid)) => {
                let pid = pid.parse().map_err(|_| InjectError::BadPid(pid.clone()))?;
                Ok(Some(Netns::of_pid(pid)?))
            }
            (None, None) => Ok(None),
        }
    }

    fn origin(&self) -> Origin {
        let inside = self.container.as_ref().and_then(|id| container::first_process(id).ok());
        if let Some(first) = inside {
            return Origin::Process(first.pid);
        }
        match (&self.netns, self.pid.as_ref().and_then(|pid| pid.parse().ok())) {
            (Some(name), _) => Origin::Named(name.clone()),
            (None, Some(pid)) => Origin::Process(pid),
            (None, None) => Origin::Current,
        }
    }
}

/// Writes a line to the terminal. One that went away must not keep an impairment from its end.
fn say(line: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// `1 packet`, `2 packets`.
fn packets(count: u64) -> String {
    if count == 1 { "1 packet".to_owned() } else { format!("{count} packets") }
}

/// Nanoseconds as milliseconds with three digits.
fn ms(ns: u64) -> String {
    format!("{:.3} ms", ns as f64 / 1e6)
}

/// What an impairment did, in words.
fn outcome_text(outcome: &super::Outcome) -> String {
    let mut parts = vec![match outcome.receipt {
        None => "what packets got was not measured".to_owned(),
        Some(receipt) if receipt.packets == 0 => "no packet was held".to_owned(),
        Some(receipt) => format!(
            "{} held, median {}, p99 {}, longest {}",
            packets(receipt.packets),
            ms(receipt.p50_ns),
            ms(receipt.p99_ns),
            ms(receipt.max_ns),
        ),
    }];
    if let Some(backlog) = outcome.largest_backlog.filter(|backlog| *backlog > 0) {
        parts[0] += &format!(", at most {backlog} at once");
    }
    if let Some(reordered) = outcome.reordered.filter(|reordered| *reordered > 0) {
        parts.push(format!("{} went out of order", packets(reordered)));
    }
    if let Some(lost) = outcome.lost_as_asked.filter(|lost| *lost > 0) {
        parts.push(format!("{} lost as was asked", packets(lost)));
    }
    parts.push(match outcome.dropped {
        0 => "none was dropped or let through undelayed".to_owned(),
        n if outcome.lost_as_asked.is_some() => {
            format!("{} dropped or let through undelayed: the queue was full", packets(n))
        }
        n => format!("{} dropped: the queue was full, or they were to be lost", packets(n)),
    });
    if outcome.lost > 0 {
        let lost = packets(outcome.lost);
        parts.push(format!("{lost} in it were lost when it was taken away"));
    }
    parts.push(
        outcome.retransmissions.map_or_else(
            || "what TCP sent again was not counted".to_owned(),
            |sent| sent.to_string(),
        ),
    );
    parts.join("; ")
}
