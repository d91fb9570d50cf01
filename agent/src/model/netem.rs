//! The options of the netem queueing discipline, as the kernel reads and dumps them.
//!
//! `linux/pkt_sched.h`: a `struct tc_netem_qopt` of six u32, then attributes. Times are sent as
//! nanoseconds in the 64-bit attributes, with zero in the legacy tick fields beside them; the
//! kernel's dump fills both, and the 64-bit ones win.

mod codec;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::impairment::{self, Impairment, Loss, SlotTiming};
use super::nlmsg::Attrs;

pub use super::probability::{Correlated, Probability};
pub use codec::{DecodeError, QOPT_LEN};

/// A loss model with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossModel {
    /// Four states: transition probabilities p13, p31, p32, p14, p23.
    FourState([Probability; 5]),
    /// Gilbert-Elliot: p, r, h, k1.
    GilbertElliot([Probability; 4]),
}

/// A rate limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rate {
    /// Bytes per second.
    pub bytes_per_s: u64,
    /// Bytes added to each packet; may be negative.
    pub packet_overhead: i32,
    /// Size of a link-layer cell in bytes, 0 for none.
    pub cell_bytes: u32,
    /// Bytes added to each cell.
    pub cell_overhead: i32,
}

/// Slotted delivery: packets wait for the next slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Shortest slot, nanoseconds.
    pub min_delay_ns: i64,
    /// Longest slot, nanoseconds.
    pub max_delay_ns: i64,
    /// Packets per slot.
    pub max_packets: i32,
    /// Bytes per slot.
    pub max_bytes: i32,
    /// Mean of a distributed slot, nanoseconds.
    pub dist_delay_ns: i64,
    /// Its spread, nanoseconds.
    pub dist_jitter_ns: i64,
}

/// Everything that netem can be told and asked about. Distribution tables, which no kernel dumps, are
/// in [`Request`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetemOptions {
    /// Delay, nanoseconds.
    pub latency_ns: i64,
    /// Random part of it, nanoseconds.
    pub jitter_ns: i64,
    /// Correlation of the random part.
    pub delay_correlation: Probability,
    /// Packets held at most. tc supplies 1000 where none is given, the kernel does not.
    pub limit_packets: u32,
    /// Independent or correlated loss.
    pub loss: Correlated,
    /// Loss by a model instead.
    pub loss_model: Option<LossModel>,
    /// Duplication.
    pub duplicate: Correlated,
    /// Every n-th packet is sent at once, 0 for none.
    pub reorder_gap: u32,
    /// Packets that are sent at once.
    pub reorder: Correlated,
    /// Packets in which one bit is flipped.
    pub corrupt: Correlated,
    /// Rate limit.
    pub rate: Option<Rate>,
    /// Mark instead of dropping.
    pub ecn: bool,
    /// Slotted delivery.
    pub slot: Option<Slot>,
    /// Seed of the random numbers; kernels before 6.6 ignore it.
    pub prng_seed: Option<u64>,
}

/// All that netem is told: its options, and the tables, which no kernel dumps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// What the kernel can be asked about afterwards.
    pub options: NetemOptions,
    /// Distribution of the delay, uniform if there is none.
    pub delay_table: Option<Arc<[i16]>>,
    /// Distribution of the slots.
    pub slot_table: Option<Arc<[i16]>>,
}

impl From<&Impairment> for Request {
    fn from(impairment: &Impairment) -> Self {
        Self {
            options: impairment.into(),
            delay_table: impairment.delay_distribution().and_then(|shape| shape.table()),
            slot_table: impairment.slot_distribution().and_then(|shape| shape.table()),
        }
    }
}

impl Request {
    /// The payload of `TCA_OPTIONS`.
    #[must_use]
    pub fn encode(&self) -> Attrs {
        codec::put_tables(self.options.encode(), self)
    }

    /// The payload of `TCA_OPTIONS` that changes a netem in force into this.
    #[must_use]
    pub fn encode_change(&self) -> Attrs {
        codec::put_tables(self.options.encode_change(), self)
    }
}

/// Tables that a netem was ever told: it keeps them until it gets others, and has no word for none
/// (get_dist_table, net/sched/sch_netem.c).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    delay_table: bool,
    slot_table: bool,
}

impl Memory {
    /// Of a netem that is told this as well.
    #[must_use]
    pub fn with(self, request: &Request) -> Self {
        Self {
            delay_table: self.delay_table | request.delay_table.is_some(),
            slot_table: self.slot_table | request.slot_table.is_some(),
        }
    }

    /// What of `request` this netem would do by an old table; None if it can be changed into it.
    #[must_use]
    pub fn spoils(self, request: &Request) -> Option<&'static str> {
        let Request { options, delay_table, slot_table } = request;
        let uniform = options.jitter_ns > 0 && delay_table.is_none();
        let even = options.slot.is_some() && slot_table.is_none();
        match self {
            Self { delay_table: true, .. } if uniform => Some("uniform jitter"),
            Self { slot_table: true, .. } if even => Some("evenly distributed slots"),
            _ => None,
        }
    }
}

impl From<&Impairment> for NetemOptions {
    fn from(impairment: &Impairment) -> Self {
        let jitter = impairment.jitter.as_ref();
        let (loss, loss_model) = match impairment.loss {
            None => (Correlated::default(), None),
            Some(Loss::Random(event)) => (event, None),
            Some(Loss::State { p13, p31, p32, p23, p14 }) => {
                (Correlated::default(), Some(LossModel::FourState([p13, p31, p32, p14, p23])))
            }
            // The kernel takes h, not 1-h.
            Some(Loss::Gemodel { p, r, loss_bad, loss_good }) => {
                let model = [p, r, loss_bad.complement(), loss_good];
                (Correlated::default(), Some(LossModel::GilbertElliot(model)))
            }
        };
        Self {
            latency_ns: ns(impairment.delay),
            jitter_ns: jitter.map_or(0, |jitter| ns(jitter.spread)),
            delay_correlation: jitter.map(|jitter| jitter.correlation).unwrap_or_default(),
            limit_packets: impairment.limit_packets(),
            loss,
            loss_model,
            duplicate: impairment.duplicate.unwrap_or_default(),
            reorder_gap: impairment.reorder.map_or(0, |reorder| reorder.gap),
            reorder: impairment.reorder.map(|reorder| reorder.which).unwrap_or_default(),
            corrupt: impairment.corrupt.unwrap_or_default(),
            rate: impairment.rate,
            ecn: impairment.ecn,
            slot: impairment.slot.as_ref().map(Slot::from),
            prng_seed: impairment.seed,
        }
    }
}

impl From<&impairment::Slot> for Slot {
    fn from(slot: &impairment::Slot) -> Self {
        let count = |count: Option<u32>| i32::try_from(count.unwrap_or(0)).unwrap_or(i32::MAX);
        let most = Self {
            max_packets: count(slot.packets),
            max_bytes: count(slot.bytes),
            ..Self::default()
        };
        match &slot.timing {
            SlotTiming::Between { min, max } => {
                Self { min_delay_ns: ns(*min), max_delay_ns: ns(*max), ..most }
            }
            SlotTiming::Distributed { mean, spread, .. } => {
                Self { dist_delay_ns: ns(*mean), dist_jitter_ns: ns(*spread), ..most }
            }
        }
    }
}

fn ns(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

impl NetemOptions {
    /// A kernel dumps a rate of 0 and a seed of its own where none was set; this is what it says
    /// about everything that was asked for in `asked`.
    #[must_use]
    pub fn seen_through(mut self, asked: &Self) -> Self {
        if self.rate.is_some_and(|rate| rate.bytes_per_s == 0) && asked.rate.is_none() {
            self.rate = None;
        }
        if asked.prng_seed.is_none() {
            self.prng_seed = None;
        }
        self
    }

    /// Options of the command line that were asked for and of which `dump`, the kernel's answer,
    /// knows nothing. A kernel passes over attributes that came after its time.
    #[must_use]
    pub fn unknown_to(&self, dump: &Self) -> Vec<&'static str> {
        let pairs = [
            ("--rate", self.rate.is_some(), dump.rate.is_some()),
            ("--ecn", self.ecn, dump.ecn),
            ("--slot", self.slot.is_some(), dump.slot.is_some()),
            ("--seed", self.prng_seed.is_some(), dump.prng_seed.is_some()),
            (
                "--loss-state or --loss-gemodel",
                self.loss_model.is_some(),
                dump.loss_model.is_some(),
            ),
        ];
        let unknown = |(name, asked, known): (_, bool, bool)| (asked && !known).then_some(name);
        pairs.into_iter().filter_map(unknown).collect()
    }
}

#[cfg(test)]
mod tests;
