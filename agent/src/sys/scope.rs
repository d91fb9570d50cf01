//! The programs that say of each packet whether a filter takes it.

use std::os::fd::{AsFd, BorrowedFd};

use agent_common::filter::Filter;
use aya::maps::Array;
use aya::programs::{SchedClassifier, SocketFilter};
use aya::{Ebpf, EbpfLoader};

use crate::model::text::with_causes;

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

/// The program for a netfilter rule or for a filter of traffic control. Either holds on to it: this is
/// needed until it is added.
pub(super) struct Picker {
    programs: Ebpf,
    name: &'static str,
}

impl std::fmt::Debug for Picker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Picker").finish_non_exhaustive()
    }
}

impl Picker {
    const MISSING: &str = "the program that picks packets is missing: rebuild it";

    /// Loads the one for netfilter.
    pub(super) fn for_netfilter(filter: &Filter) -> Result<Self, String> {
        let name = "queued";
        let mut programs = object(filter)?;
        let program: &mut SocketFilter = programs
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(Self::MISSING)?;
        program.load().map_err(|error| with_causes(&error))?;
        Ok(Self { programs, name })
    }

    /// Loads the one for traffic control.
    pub(super) fn for_tc(filter: &Filter) -> Result<Self, String> {
        let name = "picked";
        let mut programs = object(filter)?;
        let program: &mut SchedClassifier = programs
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(Self::MISSING)?;
        program.load().map_err(|error| with_causes(&error))?;
        Ok(Self { programs, name })
    }

    pub(super) fn fd(&self) -> Result<BorrowedFd<'_>, String> {
        let program = self.programs.program(self.name).ok_or(Self::MISSING)?;
        program.fd().map(AsFd::as_fd).map_err(|error| with_causes(&error))
    }
}

fn object(filter: &Filter) -> Result<Ebpf, String> {
    let mut programs = EbpfLoader::new().load(OBJECT).map_err(|error| with_causes(&error))?;
    set(&mut programs, filter)?;
    Ok(programs)
}
