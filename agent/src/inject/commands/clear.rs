//! `agent inject clear`.

use std::process::ExitCode;

use super::{Namespace, outcome_text, say};
use crate::inject::InjectError;
use crate::inject::control::{Answer, Question, ask};
use crate::inject::engines::require_root;
use crate::inject::recover;
use crate::inject::registry::{self, Entry, Unreadable};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sudo agent inject clear\n  \
    sudo agent inject clear --dev eth0 --netns shop\n  \
    sudo agent inject clear --container 4f3a1b6a")]
pub(super) struct Args {
    /// Only what is injected on this interface.
    #[arg(long, value_name = "DEV")]
    dev: Option<String>,
    #[command(flatten)]
    namespace: Namespace,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    require_root()?;
    let inode = args.namespace.given()?.map(|netns| netns.inode());
    let wanted = |device: &str, netns: u64| {
        args.dev.as_deref().is_none_or(|wanted| wanted == device)
            && inode.is_none_or(|wanted| wanted == netns)
    };

    registry::prepare()?;
    let (entries, damaged) = registry::read()?;
    // An interface that was renamed goes by its new name, unless there is none of that name.
    let indices = args.dev.as_deref().map(|name| recover::indices(name, &entries));
    let wanted_entry = |entry: &Entry| match indices.as_ref().map(|all| all.get(&entry.netns_inode))
    {
        Some(Some(Some(index))) => {
            *index == entry.index && inode.is_none_or(|wanted| wanted == entry.netns_inode)
        }
        _ => wanted(&entry.device, entry.netns_inode),
    };
    let (mut ended, mut failures) = (0, Vec::new());
    for entry in entries.iter().filter(|entry| entry.is_live() && wanted_entry(entry)) {
        match end(entry) {
            Ok(text) => {
                say(&text);
                ended += 1;
            }
            Err(error) => failures.push(error),
        }
    }

    // Not before: a holder that is being cleared takes no lock, but one that is starting does.
    let lock = registry::lock()?;
    let stale = recover::stale(wanted_entry)?;
    for cleaned in &stale.cleaned {
        say(&cleaned.told());
        ended += 1;
    }
    failures.extend(stale.failed.into_iter().map(|(_, error)| error));
    for orphan in recover::orphans(wanted)? {
        if orphan.guarded {
            failures.push(InjectError::HeldElsewhere(orphan.place));
            continue;
        }
        say(&orphan.told());
        ended += 1;
    }
    if args.dev.is_none() && inode.is_none() {
        for Unreadable { path, holder } in damaged {
            match holder {
                Some(pid) => failures
                    .push(InjectError::OtherVersion { path: path.display().to_string(), pid }),
                None => {
                    std::fs::remove_file(&path)?;
                    say(&format!("removed {}, which could not be read", path.display()));
                }
            }
        }
    }
    drop(lock);

    match failures.into_iter().next() {
        Some(error) => Err(error.into()),
        None if ended > 0 => Ok(ExitCode::SUCCESS),
        None => match &args.dev {
            Some(device) => Err(InjectError::NothingThere(device.clone()).into()),
            None => {
                say("nothing is injected");
                Ok(ExitCode::SUCCESS)
            }
        },
    }
}

fn end(entry: &Entry) -> Result<String, InjectError> {
    let place = format!("{} in network namespace {}", entry.device, entry.netns);
    match ask(&entry.socket(), Question::Clear) {
        Ok(Answer::Cleared(outcome)) => Ok(format!("{place}: cleared; {}", outcome_text(&outcome))),
        Ok(Answer::Failed(reason)) => {
            Err(InjectError::Failed { device: entry.device.clone(), reason })
        }
        // It ended while it was asked, which is what was wanted.
        _ if !entry.is_live() || gone(entry) => Ok(format!("{place}: ended meanwhile")),
        Ok(_) | Err(_) => Err(InjectError::Silent { device: entry.device.clone(), pid: entry.pid }),
    }
}

fn gone(entry: &Entry) -> bool {
    registry::read().is_ok_and(|(entries, _)| entries.iter().all(|other| other.id != entry.id))
}
