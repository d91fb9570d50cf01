//! Pure logic: no I/O, no clock, no root.

pub mod account;
pub mod aggregate;
pub mod container;
pub mod distribution;
pub mod filter;
pub mod held_times;
pub mod holding;
pub mod impairment;
pub mod netem;
pub mod nlmsg;
pub mod packet;
pub mod permission;
pub mod plan;
pub mod postgres;
pub mod prng;
pub mod probability;
pub mod proc_net;
pub mod proc_stat;
pub mod qdisc_tree;
pub mod rtlink;
pub mod schedule;
pub mod scheduler;
pub mod session;
pub mod sql;
pub mod stays;
pub mod text;
