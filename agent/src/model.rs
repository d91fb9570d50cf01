//! Pure logic: no I/O, no clock, no root.

pub mod aggregate;
pub mod container;
pub mod holding;
pub mod impairment;
pub mod netem;
pub mod nlmsg;
pub mod permission;
pub mod plan;
pub mod postgres;
pub mod proc_net;
pub mod schedule;
pub mod session;
pub mod sql;
pub mod stays;
