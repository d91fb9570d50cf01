//! The agent's parts, in the order in which data flows:
//!
//! - [`sys`]: what is asked of the kernel: the only privileged (and unsafe) code.
//! - [`model`]: pure logic over what came from there.
//! - `measure`: a measurement in progress, whoever it is for.
//! - [`doctor`]: what this kernel can do, and from that the probe plan.
//! - [`inject`]: adds, lists and clears impairments.
//! - [`observe`]: shows where a service's requests wait, without a load generator.
//! - [`serve`]: the pairing socket: one session with one load generator.

pub mod doctor;
pub mod inject;
mod measure;
pub mod model;
pub mod observe;
pub mod serve;
pub mod sys;
