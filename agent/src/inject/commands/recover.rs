//! `agent inject recover`.

use std::process::ExitCode;

use super::say;
use crate::inject::engines::require_root;
use crate::inject::recover;
use crate::inject::registry::{self, Unreadable};

/// Does again what an agent or its guardian would have done, and nothing where both did it.
pub(super) fn run() -> anyhow::Result<ExitCode> {
    require_root()?;
    registry::prepare()?;
    let _lock = registry::lock()?;
    let mut done = 0;
    let stale = recover::stale(|_| true)?;
    for cleaned in &stale.cleaned {
        say(&cleaned.told());
        done += 1;
    }
    for orphan in recover::orphans(|_, _| true)? {
        if orphan.guarded {
            say(&format!("{}: an agent that lives holds it; left alone", orphan.place));
            continue;
        }
        say(&orphan.told());
        done += 1;
    }
    for path in registry::litter()? {
        match std::fs::remove_file(&path) {
            // It ended just now.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other?,
        }
        say(&format!("removed {}, which is of no use any more", path.display()));
        done += 1;
    }
    for Unreadable { path, holder } in registry::read()?.1 {
        if let Some(pid) = holder {
            say(&format!(
                "{} is of another version of the agent, process {pid}, which lives; left alone",
                path.display()
            ));
        }
    }
    // The rest was done in spite of one that failed.
    if let Some((_, error)) = stale.failed.into_iter().next() {
        return Err(error.into());
    }
    if done == 0 {
        say("nothing was left");
    }
    Ok(ExitCode::SUCCESS)
}
