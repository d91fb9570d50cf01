//! `agent inject` on this kernel, in namespaces of its own: what packets get, and that nothing is
//! ever left.

#[path = "inject/change.rs"]
mod change;
#[path = "inject/delay.rs"]
mod delay;
#[path = "inject/ends.rs"]
mod ends;
#[path = "inject/engine.rs"]
mod engine;
#[path = "inject/held_over.rs"]
mod held_over;
#[path = "inject/listed.rs"]
mod listed;
#[path = "inject/options.rs"]
mod options;
#[path = "inject/receipt.rs"]
mod receipt;
#[path = "inject/recovered.rs"]
mod recovered;
#[path = "inject/refusals.rs"]
mod refusals;
#[path = "inject/retransmissions.rs"]
mod retransmissions;
#[path = "inject/schedule.rs"]
mod schedule;
#[path = "inject/scope.rs"]
mod scope;
#[path = "inject/support.rs"]
#[allow(dead_code, reason = "shared with the tests in virtual machines, and the storms")]
mod support;
#[path = "inject/targets.rs"]
mod targets;
