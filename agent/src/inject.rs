//! `agent inject`: adds, lists and clears impairments. The library half, [`apply`], serves the
//! pairing session as well.
//!
//! From the command to the packet: `commands` reads the arguments, `active` puts the impairment
//! into force by one of the `engines` and keeps it there (`running`, `shared`), `control` answers
//! other commands about it, `outcome` is what it did, `registry` is how they find it, `recover` removes
//! what a killed agent left, [`others`] tells a pairing session what is in force that is not its own.

mod active;
mod by;
mod commands;
mod control;
mod engines;
mod error;
pub mod others;
mod outcome;
pub mod recover;
mod registry;
mod running;
mod shared;

pub use active::{ActiveImpairment, Course, End, Scope, apply, apply_for};
pub use by::By;
pub use commands::{Args, impairment_from_args, run};
pub use engines::{Engines, engines_available};
pub use error::InjectError;
pub use outcome::Outcome;

pub use crate::model::impairment::{
    Direction, Engine, EngineChoice, Impairment, Receipt, Retransmissions,
};
