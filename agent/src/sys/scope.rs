//! The programs that say of each packet whether a filter takes it.

use std::os::fd::{AsFd, BorrowedFd};

use agent_common::filter::Filter;
use aya::maps::Array;
use aya::programs::SocketFilter;
use aya::{Ebpf, EbpfLoader};

/// The programs, as `cargo xtask build-ebpf` made them.
#[cfg(not(ebpf_object_missing))]
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("DWELL_REDIRECT_OBJECT"));
/// sys/observe.rs says that it is missing.
#[cfg(ebpf_object_missing)]
pub(super) static OBJECT: &[u8] = &[];

const MAP: &str = "FILTER";

/// Gives the programs of a loaded object their rules. Before any is attached.
pub(super) fn set(programs: &mut Ebpf, filter: &Filter) -> Result<(), String> {
    let map = programs.map_mut(MAP).ok_or("it has no map of rules: rebuild it")?;
    let mut map: Array<_, Filter> = Array::try_from(map).map_err(|error| error.to_string())?;
    map.set(0, filter, 0).map_err(|error| error.to_string())
}

/// The program for a netfilter rule. The rule holds on to it: this is needed until it is added.
pub(super) struct Picker {
    programs: Ebpf,
}

impl std::fmt::Debug for Picker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Picker").finish_non_exhaustive()
    }
}

impl Picker {
    const PROGRAM: &str = "queued";

    /// Loads it.
    pub(super) fn load(filter: &Filter) -> Result<Self, String> {
        let mut programs = EbpfLoader::new().load(OBJECT).map_err(|error| causes(&error))?;
        set(&mut programs, filter)?;
        let program: &mut SocketFilter = programs
            .program_mut(Self::PROGRAM)
            .and_then(|program| program.try_into().ok())
            .ok_or("the program that picks packets is missing: rebuild it")?;
        program.load().map_err(|error| causes(&error))?;
        Ok(Self { programs })
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.programs.program(Self::PROGRAM)?.fd().ok()?.as_fd())
    }
}

/// An error with all that caused it.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
