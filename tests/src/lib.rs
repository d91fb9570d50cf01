//! What privileged and end-to-end tests, the demo and the benches share.

pub mod capture;
pub mod lab;
#[cfg(feature = "agent")]
pub mod observed;
pub mod paired;
#[cfg(feature = "agent")]
pub mod programs;
pub mod strace;
