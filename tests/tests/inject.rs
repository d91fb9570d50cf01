//! `agent inject` on this kernel, in namespaces of its own: what packets get, and that nothing is
//! ever left.

#[path = "inject/delay.rs"]
mod delay;
#[path = "inject/ends.rs"]
mod ends;
#[path = "inject/engine.rs"]
mod engine;
#[path = "inject/options.rs"]
mod options;
#[path = "inject/receipt.rs"]
mod receipt;
#[path = "inject/refusals.rs"]
mod refusals;
#[path = "inject/retransmissions.rs"]
mod retransmissions;
#[path = "inject/scope.rs"]
mod scope;
#[path = "inject/support.rs"]
#[allow(dead_code, reason = "shared with the tests in virtual machines, and the storms")]
mod support;
#[path = "inject/targets.rs"]
mod targets;
