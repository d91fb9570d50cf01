//! BPF programs: which a process holds, and which there are. Other processes of the machine, systemd
//! among them, load and free programs at any time, so that only these ids can be waited for.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use aya::programs::ProgramError;

/// Programs that a process holds, from its descriptors.
///
/// # Errors
/// There is no such process.
pub fn of_process(pid: u32) -> Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let Ok(text) = std::fs::read_to_string(entry?.path()) else { continue };
        found.extend(
            text.lines()
                .filter_map(|line| line.strip_prefix("prog_id:"))
                .filter_map(|id| id.trim().parse::<u32>().ok()),
        );
    }
    Ok(found)
}

/// Programs in the kernel.
///
/// # Errors
/// Not root.
pub fn loaded() -> Result<BTreeSet<u32>> {
    aya::programs::loaded_programs()
        .filter_map(|program| match program {
            // It went while it was looked at.
            Err(ProgramError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::NotFound =>
            {
                None
            }
            program => Some(program),
        })
        .map(|program| Ok(program.context("cannot list BPF programs")?.id()))
        .collect()
}
