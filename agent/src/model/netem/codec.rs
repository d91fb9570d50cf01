//! The bytes of netem's options.

use super::{Correlated, LossModel, NetemOptions, Probability, Rate, Request, Slot};
use crate::model::nlmsg::{Attrs, array, attributes};

/// Length of `struct tc_netem_qopt`.
pub const QOPT_LEN: usize = 24;

/// `TCA_NETEM_*`.
pub(super) mod attr {
    pub(in super::super) const CORR: u16 = 1;
    pub(in super::super) const DELAY_DIST: u16 = 2;
    pub(in super::super) const REORDER: u16 = 3;
    pub(in super::super) const CORRUPT: u16 = 4;
    pub(in super::super) const LOSS: u16 = 5;
    pub(in super::super) const RATE: u16 = 6;
    pub(in super::super) const ECN: u16 = 7;
    pub(in super::super) const RATE64: u16 = 8;
    pub(in super::super) const LATENCY64: u16 = 10;
    pub(in super::super) const JITTER64: u16 = 11;
    pub(in super::super) const SLOT: u16 = 12;
    pub(in super::super) const SLOT_DIST: u16 = 13;
    pub(in super::super) const PRNG_SEED: u16 = 14;
}

/// `NETEM_LOSS_*`, within [`attr::LOSS`].
pub(super) mod loss {
    pub(in super::super) const GI: u16 = 1;
    pub(in super::super) const GE: u16 = 2;
}

/// Why options cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than `struct tc_netem_qopt`.
    #[error("netem options of {0} bytes are shorter than their fixed part")]
    Short(usize),
    /// An attribute is shorter than its struct.
    #[error("netem attribute {kind} has only {len} bytes")]
    ShortAttribute {
        /// `TCA_NETEM_*`.
        kind: u16,
        /// Its length.
        len: usize,
    },
}

impl NetemOptions {
    /// The payload of `TCA_OPTIONS`.
    #[must_use]
    pub fn encode(&self) -> Attrs {
        let qopt = [
            0,
            self.limit_packets,
            self.loss.probability.0,
            self.reorder_gap,
            self.duplicate.probability.0,
            0,
        ];
        let mut out = Attrs::new()
            .raw(&u32s(&qopt))
            .put(attr::LATENCY64, &self.latency_ns.to_ne_bytes())
            .put(attr::JITTER64, &self.jitter_ns.to_ne_bytes());
        let correlations =
            [self.delay_correlation.0, self.loss.correlation.0, self.duplicate.correlation.0];
        if correlations != [0; 3] {
            out = out.put(attr::CORR, &u32s(&correlations));
        }
        if self.reorder != Correlated::default() {
            out = out.put(attr::REORDER, &self.reorder.bytes());
        }
        if self.corrupt != Correlated::default() {
            out = out.put(attr::CORRUPT, &self.corrupt.bytes());
        }
        out = match self.loss_model {
            None => out,
            Some(LossModel::FourState(p)) => {
                out.put_nested(attr::LOSS, Attrs::new().put(loss::GI, &u32s(&p.map(|p| p.0))))
            }
            Some(LossModel::GilbertElliot(p)) => {
                out.put_nested(attr::LOSS, Attrs::new().put(loss::GE, &u32s(&p.map(|p| p.0))))
            }
        };
        if let Some(rate) = self.rate {
            // The kernel takes the larger of RATE and RATE64.
            let low = u32::try_from(rate.bytes_per_s).unwrap_or(u32::MAX);
            if low == u32::MAX {
                out = out.put(attr::RATE64, &rate.bytes_per_s.to_ne_bytes());
            }
            let fields =
                [low, rate.packet_overhead as u32, rate.cell_bytes, rate.cell_overhead as u32];
            out = out.put(attr::RATE, &u32s(&fields));
        }
        if self.ecn {
            out = out.put_u32(attr::ECN, 1);
        }
        if let Some(slot) = self.slot {
            out = out.put(attr::SLOT, &slot.bytes());
        }
        if let Some(seed) = self.prng_seed {
            out = out.put(attr::PRNG_SEED, &seed.to_ne_bytes());
        }
        out
    }

    /// The payload of `TCA_OPTIONS` that changes a netem that is in force into this one. The kernel
    /// leaves alone what it is not told of (netem_change, net/sched/sch_netem.c), so what is not
    /// wanted any more is told as zero. Tables cannot be taken back: [`super::Memory`].
    #[must_use]
    pub fn encode_change(&self) -> Attrs {
        let mut out = self.encode();
        let correlations =
            [self.delay_correlation, self.loss.correlation, self.duplicate.correlation];
        if correlations == [Probability(0); 3] {
            out = out.put(attr::CORR, &u32s(&[0; 3]));
        }
        // Where there is a gap, the kernel sets this one by itself.
        if self.reorder == Correlated::default() && self.reorder_gap == 0 {
            out = out.put(attr::REORDER, &self.reorder.bytes());
        }
        if self.corrupt == Correlated::default() {
            out = out.put(attr::CORRUPT, &self.corrupt.bytes());
        }
        if self.rate.is_none() {
            out = out.put(attr::RATE, &u32s(&[0; 4]));
        }
        if !self.ecn {
            out = out.put_u32(attr::ECN, 0);
        }
        if self.slot.is_none() {
            out = out.put(attr::SLOT, &Slot::default().bytes());
        }
        out
    }

    /// Reads a payload of `TCA_OPTIONS`: one made by [`Self::encode`], or a kernel's dump.
    ///
    /// # Errors
    /// Something is shorter than its struct.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let short = DecodeError::Short(bytes.len());
        let qopt: [u32; 6] = read_u32s(bytes).ok_or(short)?;
        let [_, limit_packets, loss_probability, reorder_gap, duplicate_probability, _] = qopt;
        let mut options = Self { limit_packets, reorder_gap, ..Self::default() };
        options.loss.probability.0 = loss_probability;
        options.duplicate.probability.0 = duplicate_probability;
        let mut rate64 = None;
        for (kind, value) in attributes(bytes.get(QOPT_LEN..).ok_or(short)?) {
            let short = DecodeError::ShortAttribute { kind, len: value.len() };
            match kind {
                attr::LATENCY64 => options.latency_ns = read_i64(value, 0).ok_or(short)?,
                attr::JITTER64 => options.jitter_ns = read_i64(value, 0).ok_or(short)?,
                attr::CORR => {
                    let [delay, loss, duplicate] = read_u32s(value).ok_or(short)?;
                    options.delay_correlation.0 = delay;
                    options.loss.correlation.0 = loss;
                    options.duplicate.correlation.0 = duplicate;
                }
                attr::REORDER => options.reorder = Correlated::read(value).ok_or(short)?,
                attr::CORRUPT => options.corrupt = Correlated::read(value).ok_or(short)?,
                attr::LOSS => options.loss_model = read_loss_model(value)?,
                attr::RATE64 => {
                    rate64 = Some(array(value, 0).map(u64::from_ne_bytes).ok_or(short)?)
                }
                attr::RATE => {
                    let [low, packet_overhead, cell_bytes, cell_overhead] =
                        read_u32s(value).ok_or(short)?;
                    options.rate = Some(Rate {
                        bytes_per_s: u64::from(low),
                        packet_overhead: packet_overhead as i32,
                        cell_bytes,
                        cell_overhead: cell_overhead as i32,
                    });
                }
                attr::ECN => options.ecn = read_u32s(value).ok_or(short)? != [0],
                attr::SLOT => options.slot = Some(Slot::read(value).ok_or(short)?),
                attr::PRNG_SEED => {
                    options.prng_seed = Some(array(value, 0).map(u64::from_ne_bytes).ok_or(short)?);
                }
                // Padding, delay tables, and what later kernels add.
                _ => {}
            }
        }
        if let (Some(rate), Some(bytes_per_s)) = (options.rate.as_mut(), rate64) {
            rate.bytes_per_s = bytes_per_s;
        }
        Ok(options)
    }
}

impl Correlated {
    fn bytes(self) -> Vec<u8> {
        u32s(&[self.probability.0, self.correlation.0])
    }

    fn read(value: &[u8]) -> Option<Self> {
        let [probability, correlation] = read_u32s(value)?;
        Some(Self { probability: Probability(probability), correlation: Probability(correlation) })
    }
}

impl Slot {
    fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(40);
        bytes.extend_from_slice(&self.min_delay_ns.to_ne_bytes());
        bytes.extend_from_slice(&self.max_delay_ns.to_ne_bytes());
        bytes.extend_from_slice(&self.max_packets.to_ne_bytes());
        bytes.extend_from_slice(&self.max_bytes.to_ne_bytes());
        bytes.extend_from_slice(&self.dist_delay_ns.to_ne_bytes());
        bytes.extend_from_slice(&self.dist_jitter_ns.to_ne_bytes());
        bytes
    }

    fn read(value: &[u8]) -> Option<Self> {
        Some(Self {
            min_delay_ns: read_i64(value, 0)?,
            max_delay_ns: read_i64(value, 8)?,
            max_packets: array(value, 16).map(i32::from_ne_bytes)?,
            max_bytes: array(value, 20).map(i32::from_ne_bytes)?,
            dist_delay_ns: read_i64(value, 24)?,
            dist_jitter_ns: read_i64(value, 32)?,
        })
    }
}

fn read_loss_model(value: &[u8]) -> Result<Option<LossModel>, DecodeError> {
    for (kind, inner) in attributes(value) {
        let short = DecodeError::ShortAttribute { kind: attr::LOSS, len: inner.len() };
        match kind {
            loss::GI => {
                let p: [u32; 5] = read_u32s(inner).ok_or(short)?;
                return Ok(Some(LossModel::FourState(p.map(Probability))));
            }
            loss::GE => {
                let p: [u32; 4] = read_u32s(inner).ok_or(short)?;
                return Ok(Some(LossModel::GilbertElliot(p.map(Probability))));
            }
            _ => {}
        }
    }
    Ok(None)
}

fn u32s(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn read_u32s<const N: usize>(bytes: &[u8]) -> Option<[u32; N]> {
    let mut values = [0; N];
    for (index, value) in values.iter_mut().enumerate() {
        *value = array(bytes, index * 4).map(u32::from_ne_bytes)?;
    }
    Some(values)
}

fn read_i64(bytes: &[u8], at: usize) -> Option<i64> {
    array(bytes, at).map(i64::from_ne_bytes)
}

/// Adds the tables; their length tells the kernel how many numbers there are.
pub(super) fn put_tables(mut out: Attrs, request: &Request) -> Attrs {
    let tables = [(attr::DELAY_DIST, &request.delay_table), (attr::SLOT_DIST, &request.slot_table)];
    for (kind, table) in tables {
        if let Some(table) = table {
            let bytes: Vec<u8> = table.iter().flat_map(|value| value.to_ne_bytes()).collect();
            out = out.put(kind, &bytes);
        }
    }
    out
}
