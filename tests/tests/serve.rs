//! `agent serve` with the real binary, in namespaces of its own: who is refused and how, what a
//! session measures and delays, and that nothing is ever left.

#[path = "serve/discovery.rs"]
mod discovery;
#[path = "serve/ends.rs"]
mod ends;
#[path = "inject/support.rs"]
#[allow(dead_code, reason = "shared with the tests of injection")]
mod inject;
#[path = "serve/others.rs"]
mod others;
#[path = "serve/refusals.rs"]
mod refusals;
#[path = "serve/session.rs"]
mod session;
#[path = "serve/support.rs"]
mod support;
