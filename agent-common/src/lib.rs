//! What both sides of a boundary share, so that neither can drift.
//!
//! In the order in which a measurement travels:
//! - [`abi`]: kernel to agent. Map names, capacities, event records, offsets. `no_std`.
//! - [`filter`]: agent to kernel: which packets are impaired, and how that is decided. `no_std`.
//! - [`histogram`]: kernel to agent as well: times that are counted where they are measured. `no_std`.
//! - [`receipt`]: and what else is counted of packets that are impaired. `no_std`.
//! - [`wire`]: agent to loadgen. Messages of the pairing socket and their framing.
//! - [`duration`], [`percent`], [`rate`]: what command lines take, each read in one place.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod abi;
#[cfg(feature = "std")]
pub mod duration;
pub mod filter;
pub mod histogram;
#[cfg(feature = "std")]
pub mod percent;
#[cfg(feature = "std")]
pub mod rate;
pub mod receipt;
#[cfg(feature = "std")]
pub mod wire;
