//! The injector's own eBPF objects: attaching their programs, and taking their maps.

use aya::Ebpf;
use aya::maps::{Map, MapError};
use aya::programs::RawTracePoint;

use super::observe::ObserveError;

/// Attaches the program `name` to the raw tracepoint of that name, for as long as `programs` lives.
///
/// # Errors
/// The kernel refuses.
pub(super) fn attach(programs: &mut Ebpf, name: &'static str) -> Result<(), ObserveError> {
    try_attach(programs, name).map_err(|reason| ObserveError::Attach {
        program: name,
        hook: format!("raw_tracepoint/{name}"),
        reason,
    })
}

fn try_attach(programs: &mut Ebpf, name: &str) -> Result<(), String> {
    let program: &mut RawTracePoint = programs
        .program_mut(name)
        .ok_or("it is not in the eBPF object: rebuild it")?
        .try_into()
        .map_err(|error: aya::programs::ProgramError| error.to_string())?;
    program.load().map_err(|error| error.to_string())?;
    program.attach(name).map(drop).map_err(|error| error.to_string())
}

/// The map `name`.
///
/// # Errors
/// It is not there, or is another.
pub(super) fn map<M: TryFrom<Map, Error = MapError>>(
    programs: &mut Ebpf,
    name: &'static str,
) -> Result<M, ObserveError> {
    programs
        .take_map(name)
        .ok_or_else(|| "it is not in the eBPF object: rebuild it".to_owned())
        .and_then(|map| M::try_from(map).map_err(|error| error.to_string()))
        .map_err(|reason| ObserveError::Map { map: name, reason })
}
