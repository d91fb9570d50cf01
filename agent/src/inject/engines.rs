//! Which engines this kernel has, found by trying them in a namespace made for that.

use super::error::InjectError;
use crate::model::impairment::{Direction, Engine, EngineChoice, Impairment};
use crate::sys::netns::{Netns, NetnsError};
use crate::sys::{nfqueue, qdisc};

/// What works here; for each that does not, the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engines {
    /// Whether netem works.
    pub netem: Result<(), String>,
    /// Whether nfqueue works.
    pub nfqueue: Result<(), String>,
}

/// Tries each engine on the loopback interface of a namespace of its own, which then ends. Takes a
/// few milliseconds, or a module's load; touches nothing else.
///
/// # Errors
/// Not root, or no namespace can be made.
pub fn engines_available() -> Result<Engines, InjectError> {
    require_root()?;
    Ok(Engines { netem: try_netem()?, nfqueue: try_nfqueue()? })
}

fn try_netem() -> Result<Result<(), String>, NetnsError> {
    Netns::run_in_scratch(|| qdisc::probe().map_err(|error| error.to_string()))
}

fn try_nfqueue() -> Result<Result<(), String>, NetnsError> {
    Netns::run_in_scratch(|| nfqueue::Delay::probe().map_err(|error| error.to_string()))
}

pub(super) fn require_root() -> Result<(), InjectError> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(InjectError::NotRoot) }
}

/// The engine for `impairment` by `choice`, and why it is that one.
pub(super) fn choose(
    choice: EngineChoice,
    impairment: &Impairment,
    direction: Direction,
) -> Result<(Engine, String), InjectError> {
    let (engine, why) = find(choice)?;
    match engine.lacks(impairment, direction) {
        None => Ok((engine, why)),
        Some(feature) => {
            let asked = choice != EngineChoice::Auto;
            let because = if asked { String::new() } else { format!(" ({why})") };
            Err(InjectError::Lacks { engine, feature, because })
        }
    }
}

fn find(choice: EngineChoice) -> Result<(Engine, String), InjectError> {
    let unavailable =
        |engine, reason, hint| InjectError::EngineUnavailable { engine, reason, hint };
    match choice {
        EngineChoice::Netem => match try_netem()? {
            Ok(()) => Ok((Engine::Netem, "as asked".to_owned())),
            Err(reason) => {
                let hint = "load the module sch_netem, or use --engine nfqueue";
                Err(unavailable(Engine::Netem, reason, hint))
            }
        },
        EngineChoice::Nfqueue => match try_nfqueue()? {
            Ok(()) => Ok((Engine::Nfqueue, "as asked".to_owned())),
            Err(reason) => {
                let hint = "load the modules nfnetlink_queue, nft_compat and xt_NFQUEUE, or use \
                            --engine netem";
                Err(unavailable(Engine::Nfqueue, reason, hint))
            }
        },
        EngineChoice::Auto => {
            let Err(netem) = try_netem()? else {
                return Ok((Engine::Netem, "this kernel has it".to_owned()));
            };
            match try_nfqueue()? {
                Ok(()) => Ok((Engine::Nfqueue, format!("netem does not work here: {netem}"))),
                Err(nfqueue) => Err(InjectError::NoEngine { netem, nfqueue }),
            }
        }
    }
}
