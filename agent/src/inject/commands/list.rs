//! `agent inject list`.

use std::process::ExitCode;
use std::time::Duration;

use agent_common::duration;
use serde::Serialize;

use super::{ms, say};
use crate::inject::by::By;
use crate::inject::control::{Answer, Question, ask};
use crate::inject::engines::require_root;
use crate::inject::registry::{self, Entry, Unreadable};
use crate::model::filter::PacketFilter;
use crate::model::impairment::{Direction, Engine, Impairment, Receipt, Retransmissions};
use crate::model::schedule::Schedule;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sudo agent inject list\n  \
    sudo agent inject list --json | jq '.[].receipt'")]
pub(super) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One impairment as `--json` prints it.
#[derive(Debug, Serialize)]
struct Line {
    device: String,
    netns: String,
    direction: Direction,
    /// Which packets.
    filter: PacketFilter,
    engine: Engine,
    delay_ns: u64,
    /// The whole impairment.
    impairment: Impairment,
    /// What, and of which packets, in words.
    description: String,
    /// Process that holds it.
    pid: u32,
    /// Who asked for it.
    by: By,
    /// Seconds since 1970.
    since: u64,
    /// How it will end: `at_time`, `with_session` (when the load generator that it is for leaves, or is
    /// not heard of any more) or `when_cleared`.
    ends: &'static str,
    /// When, in seconds since 1970, if that is set.
    until: Option<u64>,
    /// How its delay goes with time.
    schedule: Option<Schedule>,
    /// `in_force`, `silent` (its process lives but does not answer) or `stale` (its process is gone).
    state: &'static str,
    receipt: Option<Receipt>,
    dropped: Option<u64>,
    lost_as_asked: Option<u64>,
    reordered: Option<u64>,
    largest_backlog: Option<u64>,
    retransmissions: Option<Retransmissions>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    require_root()?;
    let (entries, damaged) = registry::read()?;
    let lines: Vec<Line> = entries.iter().map(line).collect();
    for Unreadable { path, holder } in damaged {
        let path = path.display();
        match holder {
            Some(pid) => eprintln!(
                "warning: {path} is of another version of the agent, process {pid}, which holds an \
                 impairment"
            ),
            None => eprintln!("warning: {path} cannot be read; `agent inject clear` removes it"),
        }
    }
    if args.json {
        say(&serde_json::to_string_pretty(&lines)?);
    } else if lines.is_empty() {
        say("nothing is injected");
    } else {
        table(&lines);
    }
    Ok(ExitCode::SUCCESS)
}

fn line(entry: &Entry) -> Line {
    // What its holder says is newer than the file.
    let (state, outcome, impairment) = if !entry.is_live() {
        ("stale", None, entry.impairment_now())
    } else {
        match ask(&entry.socket(), Question::Status) {
            Ok(Answer::Status { impairment, outcome }) => ("in_force", Some(outcome), *impairment),
            _ => ("silent", None, entry.impairment_now()),
        }
    };
    let told = outcome.unwrap_or_default();
    Line {
        device: entry.device.clone(),
        netns: entry.netns.clone(),
        direction: entry.direction,
        filter: entry.filter.clone(),
        engine: entry.engine,
        delay_ns: u64::try_from(impairment.delay.as_nanos()).unwrap_or(u64::MAX),
        description: entry.words_of(&impairment),
        impairment,
        pid: entry.pid,
        by: entry.by.clone(),
        since: entry.since,
        ends: match entry.until {
            Some(_) => "at_time",
            None if entry.by.is_session() => "with_session",
            None => "when_cleared",
        },
        until: entry.until,
        schedule: entry.schedule.clone(),
        state,
        receipt: told.receipt,
        dropped: outcome.map(|_| told.dropped),
        lost_as_asked: told.lost_as_asked,
        reordered: told.reordered,
        largest_backlog: told.largest_backlog,
        retransmissions: told.retransmissions,
    }
}

fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "out",
        Direction::Ingress => "in",
        Direction::Both => "both",
    }
}

/// How long it will last.
fn until(line: &Line) -> String {
    match line.until {
        Some(end) => {
            let left = Duration::from_secs(end.saturating_sub(registry::unix_now()));
            format!("for {}", duration::format(left))
        }
        None => line.ends.replace('_', " "),
    }
}

fn table(lines: &[Line]) {
    let header = [
        "DEV",
        "NETNS",
        "WAY",
        "ENGINE",
        "PID",
        "BY",
        "ENDS",
        "STATE",
        "PACKETS",
        "MEDIAN",
        "DROPPED",
        "REORDERED",
        "BACKLOG",
        "RESENT",
        "TIMEOUTS",
        "IMPAIRMENT",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(lines.iter().map(|line| {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let median = line.receipt.filter(|receipt| receipt.packets > 0).map(|r| ms(r.p50_ns));
        [
            line.device.clone(),
            line.netns.clone(),
            way(line.direction).to_owned(),
            line.engine.to_string(),
            line.pid.to_string(),
            line.by.to_string(),
            until(line),
            line.state.replace('_', " "),
            or_dash(line.receipt.map(|receipt| receipt.packets.to_string())),
            or_dash(median),
            or_dash(line.dropped.map(|dropped| dropped.to_string())),
            or_dash(line.reordered.map(|reordered| reordered.to_string())),
            or_dash(line.largest_backlog.map(|backlog| backlog.to_string())),
            or_dash(line.retransmissions.map(|sent| sent.segments.to_string())),
            or_dash(line.retransmissions.map(|sent| sent.timeouts.to_string())),
            line.description.clone(),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        say(cells.join("  ").trim_end());
    }
    if lines.iter().any(|line| line.state == "stale") {
        say("stale: its process is gone; `agent inject clear` removes what it left");
    }
}
