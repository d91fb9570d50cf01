//! Numbers for the person who watches: from the event loops to the progress line.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use hdrhistogram::Histogram;

use crate::record::Outcome;

/// What happened since it was last asked for.
#[derive(Clone, Debug)]
pub struct Span {
    /// Requests that ended.
    pub requests: u64,
    /// Of which successes.
    pub successes: u64,
    /// Latency of those that got a response, in microseconds.
    pub latency_us: Option<Histogram<u64>>,
}

impl Default for Span {
    fn default() -> Self {
        // Bounds that the histogram always accepts: 1 us to an hour, three digits.
        let latency_us = Histogram::new_with_bounds(1, 3_600_000_000, 3).ok();
        Self { requests: 0, successes: 0, latency_us }
    }
}

impl Span {
    /// Counts one request that ended.
    pub(crate) fn count(&mut self, latency_ns: u64, outcome: Outcome) {
        self.requests += 1;
        self.successes += u64::from(outcome == Outcome::Success);
        if let Some(latency) = self.latency_us.as_mut().filter(|_| outcome.has_response()) {
            latency.saturating_record(latency_ns / 1000);
        }
    }

    /// Quantile of the latency in milliseconds; None if nothing was answered.
    #[must_use]
    pub fn quantile_ms(&self, quantile: f64) -> Option<f64> {
        let latency = self.latency_us.as_ref().filter(|latency| !latency.is_empty())?;
        Some(latency.value_at_quantile(quantile) as f64 / 1000.0)
    }

    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.successes += other.successes;
        if let (Some(mine), Some(theirs)) = (&mut self.latency_us, &other.latency_us) {
            // Same bounds, so it always fits.
            let _ = mine.add(theirs);
        }
    }

    fn clear(&mut self) {
        self.requests = 0;
        self.successes = 0;
        if let Some(latency) = &mut self.latency_us {
            latency.reset();
        }
    }
}

/// Shared by the event loops, which add to it now and then, and the progress line.
#[derive(Debug, Default)]
pub struct Live {
    users: AtomicU32,
    span: Mutex<Span>,
}

impl Live {
    /// Users started so far.
    #[must_use]
    pub fn users(&self) -> u32 {
        self.users.load(Ordering::Relaxed)
    }

    /// Takes what happened since the last call.
    #[must_use]
    pub fn take(&self) -> Span {
        let mut span = self.span.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let taken = span.clone();
        span.clear();
        taken
    }

    pub(super) fn started(&self, users: u32) {
        self.users.fetch_add(users, Ordering::Relaxed);
    }

    /// Adds a thread's numbers and clears them there.
    pub(super) fn give(&self, local: &mut Span) {
        if local.requests > 0 {
            self.span.lock().unwrap_or_else(std::sync::PoisonError::into_inner).add(local);
            local.clear();
        }
    }
}
