//! `agent inject change`.

use std::process::ExitCode;

use super::options::Options;
use super::{Namespace, outcome_text, packets, say};
use crate::inject::InjectError;
use crate::inject::control::{Answer, Question, ask};
use crate::inject::engines::require_root;
use crate::inject::recover;
use crate::inject::registry::{self, Entry};
use crate::sys::netns::Netns;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The options say all of what is done to packets, not only what is new. Which packets, the direction and
the end (--for) stay as they are: clear and add for others. Packets that are held keep the
time that they were given when they came; the random numbers begin anew. --limit without a number is
100000 again.")]
pub(super) struct Args {
    /// Interface that is impaired.
    #[arg(long, value_name = "DEV")]
    dev: String,
    #[command(flatten)]
    namespace: Namespace,
    #[command(flatten)]
    options: Options,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let impairment = args.options.impairment()?;
    require_root()?;
    for warning in impairment.warnings() {
        eprintln!("warning: {warning}");
    }
    let netns = match args.namespace.given()? {
        Some(netns) => netns,
        None => Netns::current().map_err(InjectError::from)?,
    };
    registry::prepare()?;
    let entry = find(&args.dev, netns.inode())?;
    let outcome = match ask(&entry.socket(), Question::Change(Box::new(impairment.clone()))) {
        Ok(Answer::Changed(outcome)) => outcome,
        Ok(Answer::Failed(reason)) => return Err(InjectError::Refused(reason).into()),
        _ if !entry.is_live() => return Err(InjectError::NothingThere(args.dev.clone()).into()),
        _ => return Err(InjectError::Silent { device: args.dev.clone(), pid: entry.pid }.into()),
    };
    say(&format!(
        "packets of {} in network namespace {} are {}\nbefore: {}; {} held over",
        entry.device,
        entry.netns,
        entry.words_of(&impairment),
        outcome_text(&outcome),
        packets(outcome.held_over),
    ));
    Ok(ExitCode::SUCCESS)
}

/// What is in force on the interface that is called `device` now.
fn find(device: &str, netns_inode: u64) -> Result<Entry, InjectError> {
    let (entries, _) = registry::read()?;
    let here: Vec<Entry> = entries
        .into_iter()
        .filter(|entry| entry.netns_inode == netns_inode && entry.is_live())
        .collect();
    let index = recover::indices(device, &here).get(&netns_inode).copied().flatten();
    here.into_iter()
        .find(|entry| index == Some(entry.index))
        .ok_or_else(|| InjectError::NothingThere(device.to_owned()))
}
