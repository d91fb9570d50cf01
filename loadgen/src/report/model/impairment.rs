//! What was done to the service's network.

use serde::{Deserialize, Serialize};

/// What was injected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Injection {
    /// `netem` or `nfqueue`.
    pub engine: String,
    /// Interface that was impaired (added to schema version 1).
    pub device: String,
    /// Delay asked for.
    pub requested_ms: f64,
    /// Delay that packets really got, taken from the handshakes of the load generator's
    /// connections: the undelayed path, tens of microseconds, is in it. Null where it was not
    /// measured.
    pub achieved_ms: Option<Achieved>,
    /// Packets dropped or let through because the engine's queue was full.
    pub dropped: u64,
    /// What packets got of it, as the injector measured it for each; null where it could not, or its
    /// end was not told (added to schema version 1).
    #[serde(default)]
    pub receipt: Option<Receipt>,
    /// What TCP sent again meanwhile, of the connections of the service's namespace that leave by the
    /// interface; null where it was not counted (added to schema version 1).
    #[serde(default)]
    pub retransmissions: Option<Retransmissions>,
    /// Seconds from the start of the run from which on it is not known to have been in force: the
    /// agent was lost, or told that it had ended. Null: throughout (added to schema version 1).
    #[serde(default)]
    pub until_s: Option<f64>,
}

/// An impairment that was there and that the run had not asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InForce {
    /// Interface.
    pub device: String,
    /// `egress`, `ingress` or `both`.
    pub direction: String,
    /// `netem` or `nfqueue`.
    pub engine: String,
    /// All of it, in words.
    pub words: String,
    /// Its delay without the random part.
    pub delay_ms: f64,
    /// Agent that holds it; null if it is no agent's.
    pub pid: Option<u32>,
    /// Seconds from the start of the run from which on it was seen; 0 from the start.
    pub from_s: f64,
    /// Seconds until which; null to the end.
    pub until_s: Option<f64>,
}

/// What packets got of an impairment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// Packets that were held and let go.
    pub packets: u64,
    /// Median time held.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Longest.
    pub max_ms: f64,
    /// Packets that went later than one that had come after them; null where it was not counted.
    pub reordered: Option<u64>,
    /// Most packets that were held at once; null where it was not counted.
    pub largest_backlog: Option<u64>,
}

/// What TCP sent again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retransmissions {
    /// Segments sent again, SYN and SYN/ACK included.
    pub segments: u64,
    /// Of those, SYN/ACK.
    pub synacks: u64,
    /// Of those, probes for a loss at the tail.
    pub probes: u64,
    /// Retransmission timeouts.
    pub timeouts: u64,
}

/// A measured delay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Achieved {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
}
