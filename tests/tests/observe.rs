//! `agent observe` with the real binary: what it tells against what the test itself did, how it ends,
//! and whom it refuses.

#[path = "observe/ends.rs"]
mod ends;
#[path = "observe/known.rs"]
mod known;
#[path = "observe/live.rs"]
mod live;
#[path = "observe/metrics.rs"]
mod metrics;
#[path = "observe/refusals.rs"]
mod refusals;
#[path = "observe/support.rs"]
mod support;
