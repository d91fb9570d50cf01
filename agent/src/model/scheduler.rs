//! When a packet may go, or that it is lost: netem's decisions (`netem_enqueue`,
//! net/sched/sch_netem.c) for the engine that holds packets itself, so that options mean the same
//! with either.

mod loss;

use self::loss::Loss;
use super::netem::{NetemOptions, Rate};
use super::prng::{Correlated, Prng};

/// A table's entry that stands for one jitter away from the delay (`NETEM_DIST_SCALE`).
const TABLE_SCALE: i64 = 8192;
/// Most entries of a table (`NETEM_DIST_MAX`).
pub const TABLE_MAX: usize = 16_384;

/// Why this engine cannot do what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unable {
    /// Packets stay in the kernel: there is no second one, and their bytes are out of reach.
    #[error(
        "engine nfqueue cannot {0}: packets stay in the kernel, which only lets it hold or drop \
             each of them; use --engine netem where the kernel has it"
    )]
    Do(&'static str),
    /// A table that netem would not take.
    #[error("a delay distribution has 1 to {TABLE_MAX} values, not {0}")]
    Table(usize),
    /// Negative times and rates of zero.
    #[error("{0}")]
    Senseless(&'static str),
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes at this time, in the order of those times.
    At(u64),
    /// It goes at once, before all others.
    Front,
    /// It is lost.
    Lost,
    /// It is dropped, since as many as may be are held.
    Full,
}

/// Decides about packets, in the order in which they come.
#[derive(Clone, Debug)]
pub struct Scheduler {
    latency_ns: i64,
    jitter_ns: i64,
    table: Vec<i16>,
    limit: usize,
    gap: u32,
    reorder: u32,
    rate: Option<Rate>,
    delay_numbers: Correlated,
    reorder_numbers: Correlated,
    loss: Loss,
    prng: Prng,
    /// Packets since the last one that went ahead.
    counter: u32,
}

impl Scheduler {
    /// For `options`; without a `table` the jitter is uniform. Random numbers come from the options'
    /// seed, else from `seed`.
    ///
    /// # Errors
    /// [`Unable`], with a sentence for the user.
    pub fn new(options: &NetemOptions, table: Option<&[i16]>, seed: u64) -> Result<Self, Unable> {
        check(options, table)?;
        let seed = options.prng_seed.unwrap_or(seed);
        // netem does not take these from its seeded numbers either.
        let mut firsts = Prng::seeded(!seed);
        let mut numbers = |correlation| Correlated::new(correlation, firsts.next_u32());
        let gap = options.reorder_gap;
        Ok(Self {
            latency_ns: options.latency_ns,
            // netem's own bound: its table arithmetic has 32 bits for it.
            jitter_ns: options.jitter_ns.min(i64::from(i32::MAX)),
            table: table.unwrap_or_default().to_vec(),
            limit: options.limit_packets as usize,
            gap,
            // A gap alone means that every gap-th packet goes ahead.
            reorder: if options.reorder == Default::default() {
                u32::MAX
            } else {
                options.reorder.probability.0
            },
            rate: options.rate.filter(|rate| rate.bytes_per_s > 0),
            delay_numbers: numbers(options.delay_correlation.0),
            reorder_numbers: numbers(options.reorder.correlation.0),
            loss: Loss::new(options, firsts.next_u32()),
            prng: Prng::seeded(seed),
            counter: 0,
        })
    }

    /// Delays by this from now on; all else goes on as it was, random numbers and bursts of loss
    /// included.
    pub fn set_latency(&mut self, latency_ns: i64) {
        self.latency_ns = latency_ns;
    }

    /// Whether the lengths of packets matter.
    #[must_use]
    pub fn needs_lengths(&self) -> bool {
        self.rate.is_some()
    }

    /// Decides about the packet of `bytes` bytes that came at `now_ns`, while `held` packets wait of
    /// which the last goes at `last_ns`.
    pub fn decide(&mut self, now_ns: u64, bytes: u64, held: usize, last_ns: Option<u64>) -> Fate {
        if self.loss.next(&mut self.prng) {
            return Fate::Lost;
        }
        if held >= self.limit {
            return Fate::Full;
        }
        let in_line = self.gap == 0
            || self.counter < self.gap - 1
            || self.reorder < self.reorder_numbers.next_u32(&mut self.prng);
        if !in_line {
            self.counter = 0;
            return Fate::Front;
        }
        self.counter = self.counter.saturating_add(1);
        let mut delay = self.delay_ns();
        let mut start = now_ns;
        if let Some(rate) = self.rate {
            if let Some(last) = last_ns {
                // The line is busy until the last one has gone; waiting for that counts as delay.
                let ahead = i64::try_from(i128::from(last) - i128::from(now_ns)).unwrap_or(0);
                delay = delay.saturating_sub(ahead).max(0);
                start = last;
            }
            delay = delay.saturating_add(transmit_ns(&rate, bytes));
        }
        Fate::At(start.saturating_add_signed(delay))
    }

    /// `tabledist`: the delay, plus or minus its random part.
    fn delay_ns(&mut self) -> i64 {
        if self.jitter_ns == 0 {
            return self.latency_ns;
        }
        let number = self.delay_numbers.next_u32(&mut self.prng);
        let jitter = self.jitter_ns;
        let deviation = match self.table.len() {
            0 => i64::from(number) % (2 * jitter) - jitter,
            len => {
                let value = i64::from(self.table[number as usize % len]);
                let rest = (jitter % TABLE_SCALE) * value;
                let half = TABLE_SCALE / 2;
                let rounded = if rest >= 0 { rest + half } else { rest - half };
                rounded / TABLE_SCALE + (jitter / TABLE_SCALE) * value
            }
        };
        self.latency_ns.saturating_add(deviation)
    }
}

fn check(options: &NetemOptions, table: Option<&[i16]>) -> Result<(), Unable> {
    let wants = [
        (options.duplicate.probability.0 > 0, "duplicate packets"),
        (options.corrupt.probability.0 > 0, "corrupt packets"),
        (options.slot.is_some(), "deliver in slots"),
        (options.ecn, "mark packets (ecn)"),
    ];
    if let Some((_, what)) = wants.into_iter().find(|(wanted, _)| *wanted) {
        return Err(Unable::Do(what));
    }
    if let Some(table) = table
        && !(1..=TABLE_MAX).contains(&table.len())
    {
        return Err(Unable::Table(table.len()));
    }
    if options.latency_ns < 0 || options.jitter_ns < 0 {
        return Err(Unable::Senseless("a delay or jitter cannot be negative"));
    }
    Ok(())
}

/// `packet_time_ns`: how long a packet occupies the line.
fn transmit_ns(rate: &Rate, bytes: u64) -> i64 {
    let bytes = i128::from(bytes) + i128::from(rate.packet_overhead);
    let bytes = match i128::from(rate.cell_bytes) {
        0 => bytes,
        cell => {
            let cells = bytes.div_euclid(cell) + i128::from(bytes.rem_euclid(cell) > 0);
            cells * (cell + i128::from(rate.cell_overhead))
        }
    };
    let ns = bytes.max(0) * 1_000_000_000 / i128::from(rate.bytes_per_s);
    i64::try_from(ns).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
