//! What the study that Dwell reproduces published, to stand beside what was measured.
//!
//! Source: a published load test of Django 4.1 with synchronous and asynchronous views, three
//! setups x three routes x three delays, 500 users, described in this repository's documentation.
//! Figures are as printed there: the largest successful requests per second that the load tool's
//! graph showed, smoothed over 10 seconds, and the overall number of successes.

use super::model::Cell;

/// One published cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Published {
    /// `sync`, `async_limited` or `async_unlimited`.
    pub setup: &'static str,
    /// `cpu`, `io_read` or `io_create`.
    pub route: &'static str,
    /// Delay on everything that leaves the server.
    pub delay_ms: u32,
    /// Largest successful requests per second.
    pub max_srps: f64,
    /// Successes in all.
    pub successes: u32,
}

const fn published(
    setup: &'static str,
    route: &'static str,
    delay_ms: u32,
    max_srps: f64,
    successes: u32,
) -> Published {
    Published { setup, route, delay_ms, max_srps, successes }
}

/// The whole table.
pub const TABLE: [Published; 27] = [
    published("sync", "cpu", 0, 1.5, 255),
    published("sync", "cpu", 100, 1.5, 255),
    published("sync", "cpu", 200, 1.5, 200),
    published("async_limited", "cpu", 0, 0.1, 24),
    published("async_limited", "cpu", 100, 0.2, 30),
    published("async_limited", "cpu", 200, 0.5, 86),
    published("async_unlimited", "cpu", 0, 3.3, 91),
    published("async_unlimited", "cpu", 100, 1.3, 97),
    published("async_unlimited", "cpu", 200, 2.7, 90),
    published("sync", "io_read", 0, 23.0, 3_927),
    published("sync", "io_read", 100, 1.2, 200),
    published("sync", "io_read", 200, 0.6, 105),
    published("async_limited", "io_read", 0, 28.3, 3_053),
    published("async_limited", "io_read", 100, 28.6, 4_555),
    published("async_limited", "io_read", 200, 28.4, 4_312),
    published("async_unlimited", "io_read", 0, 34.1, 4_680),
    published("async_unlimited", "io_read", 100, 36.0, 5_313),
    published("async_unlimited", "io_read", 200, 34.2, 5_123),
    published("sync", "io_create", 0, 143.6, 24_328),
    published("sync", "io_create", 100, 1.4, 242),
    published("sync", "io_create", 200, 0.7, 124),
    published("async_limited", "io_create", 0, 188.8, 11_325),
    published("async_limited", "io_create", 100, 129.0, 12_963),
    published("async_limited", "io_create", 200, 82.6, 8_644),
    published("async_unlimited", "io_create", 0, 187.5, 20_163),
    published("async_unlimited", "io_create", 100, 171.4, 26_145),
    published("async_unlimited", "io_create", 200, 185.0, 23_030),
];

/// What was published for the cell's setup, route and delay, if anything. No delay counts as 0, but
/// for one of somebody else's.
#[must_use]
pub fn beside(cell: &Cell) -> Option<&'static Published> {
    if cell.in_force.as_ref().is_some_and(|others| !others.is_empty()) {
        return None;
    }
    let delay_ms = cell.delay_ms.unwrap_or(0.0);
    TABLE.iter().find(|one| {
        Some(one.setup) == cell.setup.as_deref()
            && Some(one.route) == cell.route.as_deref()
            && (f64::from(one.delay_ms) - delay_ms).abs() < 1e-6
    })
}
