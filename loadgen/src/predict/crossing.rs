//! How often a database round trip crosses the delayed interface, judged by what was measured: the
//! load generator does not see which way the service's packets to its database take.
//!
//! What leaves an interface is delayed: the question of a round trip that leaves through it, not
//! the answer that comes in. On loopback the answer leaves through it as well.

use crate::report::model::{Kernel, Ledger};

/// A round trip shorter than this many delays did not wait for one.
const WAITED: f64 = 0.9;
/// One that waited for two delays is at least this many long.
const WAITED_TWICE: f64 = 1.9;
/// A longer one takes so long by itself that it does not show whether it waited.
const TELLING: f64 = 3.0;

/// How often each database round trip crosses the delayed interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crossing {
    /// Not at all: round trips are shorter than the delay.
    Never,
    /// On its way out.
    Once,
    /// There and back: both ends are on the delayed loopback interface.
    Twice,
    /// All together take less than the delays would: not each of them waits for one.
    NotEach,
    /// What was measured does not tell.
    Unclear,
}

impl Crossing {
    /// Judges a run with `delay_ms` on `device`.
    pub(crate) fn judge(kernel: &Kernel, device: &str, delay_ms: f64) -> Self {
        let lines = || kernel.db_round_trips.iter().filter(|line| line.per_request > 0.0);
        // Connecting costs the database nothing, so that all it takes is the way.
        let connect = lines().find(|line| line.kind == "tcp_connect").map(|line| line.mean_ms);
        let shortest = lines().map(|line| line.mean_ms).min_by(f64::total_cmp);
        let Some(shown) = connect.or(shortest).filter(|_| delay_ms > 0.0) else {
            return Self::Unclear;
        };
        let delays = shown / delay_ms;
        if delays < WAITED {
            return Self::Never;
        }
        if connect.is_none() {
            // A statement may take as long as the delay by itself.
            return Self::Unclear;
        }
        let crossing = match (device == LOOPBACK, delays) {
            (_, delays) if delays > TELLING => return Self::Unclear,
            (true, delays) if delays >= WAITED_TWICE => Self::Twice,
            (true, _) => return Self::Unclear,
            (false, _) => Self::Once,
        };
        let waited = crossing.factor().unwrap_or(0.0)
            * kernel.db_round_trips_per_request.unwrap_or(0.0)
            * delay_ms;
        let all: f64 = lines().map(|line| line.per_request * line.mean_ms).sum();
        let held = kernel.held_by_class_ms.as_ref().and_then(|held| held.get("database"));
        if waited > all {
            Self::NotEach
        } else if held.is_some_and(|&held| waited > held) {
            // They overlap, or the worker does not wait in the socket.
            Self::Unclear
        } else {
            crossing
        }
    }

    /// Delays that each round trip waits for; None if that is not known.
    pub(crate) fn factor(self) -> Option<f64> {
        match self {
            Self::Never => Some(0.0),
            Self::Once => Some(1.0),
            Self::Twice => Some(2.0),
            Self::NotEach | Self::Unclear => None,
        }
    }
}

/// The interface on which both directions leave.
pub(crate) const LOOPBACK: &str = "lo";

/// Delays that a client waits for outside the hold, in a run with `delay_ms` on `device`: that of
/// the response, and on a new connection that of the SYN-ACK. Where both directions are delayed,
/// that of the request and of the SYN as well. Without a ledger all connections are taken to be
/// kept: what is promised on less waiting stays an upper bound.
pub(crate) fn of_client(ledger: Option<&Ledger>, device: &str, delay_ms: f64) -> f64 {
    let stage =
        |name| ledger.and_then(|ledger| ledger.stages.iter().find(|stage| stage.stage == name));
    if stage("response_net").is_some_and(|response| response.mean_ms < WAITED * delay_ms) {
        return 0.0;
    }
    let new = ledger.and_then(|ledger| ledger.new_connections).unwrap_or_else(|| {
        // A kept connection has no handshake at all.
        if stage("connect").is_some_and(|connect| connect.p50_ms > 0.0) { 1.0 } else { 0.0 }
    });
    (1.0 + new) * if device == LOOPBACK { 2.0 } else { 1.0 }
}
