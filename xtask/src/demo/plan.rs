//! What is run, and what the study published for it.

use std::time::Duration;

use tests::lab::App;

/// Rows of the posts table, as in the study.
pub(super) const ROWS: u32 = tests::lab::postgres::STUDY_ROWS;
/// Users at the top of the ramp. The study had 500: the bound is the same, the queue shorter.
pub(super) const USERS: u32 = 100;
/// Users started per second.
pub(super) const RAMP_PER_S: u32 = 10;
/// The route.
pub(super) const ROUTE: &str = "io_read";

/// One run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell {
    /// Name of the setup, as in the study.
    pub(super) setup: &'static str,
    /// Delay added to everything that leaves the server.
    pub(super) delay: Duration,
    /// Length of the hold: at 200 ms the sync server completes one request in 1.6 s.
    hold: Duration,
    /// The study's largest number of successful requests per second.
    pub(super) published_max_srps: f64,
}

const fn sync(delay_ms: u64, published_max_srps: f64) -> Cell {
    let (delay, hold) = (Duration::from_millis(delay_ms), Duration::from_secs(60));
    Cell { setup: "sync", delay, hold, published_max_srps }
}

const fn asynchronous(delay_ms: u64, published_max_srps: f64) -> Cell {
    let (delay, hold) = (Duration::from_millis(delay_ms), Duration::from_secs(20));
    Cell { setup: "async_limited", delay, hold, published_max_srps }
}

/// All runs, in order: the undelayed one of a setup comes before the others.
pub(super) const PLAN: [Cell; 6] = [
    sync(0, 23.0),
    sync(100, 1.2),
    sync(200, 0.6),
    asynchronous(0, 28.3),
    asynchronous(100, 28.6),
    asynchronous(200, 28.4),
];

impl Cell {
    /// Name of the cell, such as `sync/io_read/100ms`.
    pub(super) fn name(&self) -> String {
        format!("{}/{ROUTE}/{}ms", self.setup, self.delay.as_millis())
    }

    /// The same for files.
    pub(super) fn stem(&self) -> String {
        self.name().replace('/', "-")
    }

    /// Seconds of the hold as the load generator takes them.
    pub(super) fn hold(&self) -> String {
        format!("{}s", self.hold.as_secs())
    }

    /// Ramp and hold.
    pub(super) fn length(&self) -> Duration {
        Duration::from_secs(u64::from(USERS / RAMP_PER_S)) + self.hold
    }

    /// The server under test.
    pub(super) fn app(&self) -> App {
        if self.setup == "sync" { App::StudySync } else { App::StudyAsync }
    }
}
