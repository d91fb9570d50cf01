//! Which impairments make no sense, and which ones will not do what they seem to say.

use std::time::Duration;

use agent_common::{duration, rate};

use super::{
    Correlated, Impairment, Jitter, Loss, MAX_DELAY, MAX_JITTER, Probability, Slot, SlotTiming,
};
use crate::model::distribution::Distribution;
use crate::model::netem::Rate;

/// Both tables and all other options have to fit one netlink attribute of 65,535 bytes.
const MAX_TABLE_ENTRIES: usize = 32_000;
/// No packet is shorter: an IPv4 header without anything behind it, on a device without a link-layer
/// header.
const SHORTEST_PACKET_BYTES: i32 = 20;
/// What a full packet is taken to be in the arithmetic of [`Impairment::warnings`].
const FULL_PACKET_BYTES: u128 = 1500;
/// Below this many packets per second a limit is worth a word.
const FEW_PACKETS_PER_S: u128 = 10_000;

/// Why an impairment makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImpairmentError {
    /// Nothing at all.
    #[error("delay is zero: nothing would be injected; give one such as 100ms")]
    ZeroDelay,
    /// More than [`MAX_DELAY`].
    #[error("delay {} is above the largest that is taken, {}; is the unit right?",
            duration::format(*.0), duration::format(MAX_DELAY))]
    DelayTooLong(Duration),
    /// Another time that is too long.
    #[error("{what} {} is above the largest that is taken, {}; is the unit right?",
            duration::format(*.time), duration::format(*.most))]
    TooLong {
        /// Which.
        what: &'static str,
        /// What was asked.
        time: Duration,
        /// The limit.
        most: Duration,
    },
    /// Nothing to spread.
    #[error("jitter without a delay would cut off half of itself; give --delay as well")]
    JitterWithoutDelay,
    /// A spread of nothing.
    #[error("{0} is zero; leave it out, or give one such as 10ms")]
    ZeroTime(&'static str),
    /// An event that never happens.
    #[error("{0} is 0%: it would never happen; leave it out, or give one such as 1%")]
    Never(&'static str),
    /// A number of nothing.
    #[error("{0} is zero; leave it out, or give at least 1")]
    ZeroCount(&'static str),
    /// Beyond what the kernel counts.
    #[error("{what} {value} is above the largest that the kernel takes, {most}")]
    TooMany {
        /// Which.
        what: &'static str,
        /// What was asked.
        value: u64,
        /// The limit.
        most: u64,
    },
    /// Nobody to overtake.
    #[error("reorder sends some packets without the delay of the others; give --delay as well")]
    ReorderWithoutDelay,
    /// Nothing to mark.
    #[error("ecn marks packets instead of losing them; give one of the --loss options as well")]
    EcnWithoutLoss,
    /// Two ways out of one state that are taken more than always.
    #[error(
        "the loss model leaves {state} with {first} + {second}, which is 100% or more after the \
         kernel's rounding; lower one"
    )]
    MoreThanAlways {
        /// The state.
        state: &'static str,
        /// One way.
        first: Probability,
        /// The other.
        second: Probability,
    },
    /// The kernel would compute with a packet of negative length, and hold it for ever.
    #[error(
        "packet overhead {0} is longer than a short packet; give at least -{SHORTEST_PACKET_BYTES}"
    )]
    OverheadTooNegative(i32),
    /// The kernel ignores it.
    #[error("cell overhead does nothing without cells; give --cell-size as well")]
    CellOverheadWithoutCells,
    /// A cell that takes no time, or a negative one.
    #[error("cell overhead {overhead} leaves nothing of a cell of {cell_bytes} bytes")]
    CellOverheadTooNegative {
        /// What was asked.
        overhead: i32,
        /// The cell.
        cell_bytes: u32,
    },
    /// The longest is shorter than the shortest.
    #[error("slot {} is shorter than {}; give the shorter one first",
            duration::format(*.max), duration::format(*.min))]
    SlotBackwards {
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
    },
    /// netem draws slots from a table only.
    #[error("a uniform slot distribution is written --slot MIN MAX")]
    UniformSlot,
    /// More than one message holds.
    #[error(
        "the distribution tables hold {0} numbers together, more than the kernel can be told, \
         {MAX_TABLE_ENTRIES}"
    )]
    TablesTooLong(usize),
}

impl Impairment {
    /// Checks that it makes sense.
    ///
    /// # Errors
    /// The first contradiction, or value out of its bounds.
    pub fn check(&self) -> Result<(), ImpairmentError> {
        use ImpairmentError as E;
        if self.delay > MAX_DELAY {
            return Err(E::DelayTooLong(self.delay));
        }
        if let Some(jitter) = &self.jitter {
            self.check_jitter(jitter)?;
        }
        if let Some(loss) = &self.loss {
            check_loss(loss)?;
        } else if self.ecn {
            return Err(E::EcnWithoutLoss);
        }
        let events = [("duplicate", self.duplicate), ("corrupt", self.corrupt)];
        for (name, event) in events {
            check_event(name, event)?;
        }
        if let Some(reorder) = self.reorder {
            if self.delay.is_zero() {
                return Err(E::ReorderWithoutDelay);
            }
            check_event("reorder", Some(reorder.which))?;
            if reorder.gap == 0 {
                return Err(E::ZeroCount("reorder gap"));
            }
        }
        self.rate.as_ref().map_or(Ok(()), check_rate)?;
        self.slot.as_ref().map_or(Ok(()), check_slot)?;
        if self.limit_packets == Some(0) {
            return Err(E::ZeroCount("limit"));
        }
        let entries = [self.delay_distribution(), self.slot_distribution()]
            .into_iter()
            .flatten()
            .map(|distribution| distribution.table().map_or(0, |table| table.len()))
            .sum();
        if entries > MAX_TABLE_ENTRIES {
            return Err(E::TablesTooLong(entries));
        }
        if self.delay.is_zero() && !self.does_something_else() {
            return Err(E::ZeroDelay);
        }
        Ok(())
    }

    /// What it does that its words do not say at first sight: one sentence each, with the
    /// arithmetic.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let spread = self.jitter.as_ref().map_or(Duration::ZERO, |jitter| jitter.spread);
        if spread > self.delay {
            warnings.push(format!(
                "jitter {} is above the delay {}: packets that would have to leave before they came \
                 leave at once, so that the mean is above the delay",
                duration::format(spread),
                duration::format(self.delay)
            ));
        }
        warnings.extend(self.limit_warning(self.delay + spread));
        warnings
    }

    /// A limit that drops packets at the asked rate, or already at a modest one.
    fn limit_warning(&self, longest: Duration) -> Option<String> {
        let (limit, ns) = (u128::from(self.limit_packets()), longest.as_nanos());
        if ns == 0 {
            return None;
        }
        let time = duration::format(longest);
        if let Some(asked) = self.rate {
            let bytes = u128::from(asked.bytes_per_s) * ns / 1_000_000_000;
            let packets = bytes.div_ceil(FULL_PACKET_BYTES);
            return (packets > limit).then(|| {
                format!(
                    "a limit of {limit} packets drops at the asked rate: {} for {time} are {bytes} \
                     bytes on their way, {packets} packets of {FULL_PACKET_BYTES} bytes; give \
                     --limit {} or more",
                    rate::format(asked.bytes_per_s),
                    packets * 2
                )
            });
        }
        let per_s = limit * 1_000_000_000 / ns;
        (per_s < FEW_PACKETS_PER_S).then(|| {
            format!(
                "more than {per_s} packets per second are dropped: the limit of {limit} packets \
                 divided by {time}; give a higher --limit if more may come"
            )
        })
    }

    fn does_something_else(&self) -> bool {
        self.loss.is_some()
            || self.duplicate.is_some()
            || self.corrupt.is_some()
            || self.rate.is_some()
            || self.slot.is_some()
    }

    fn check_jitter(&self, jitter: &Jitter) -> Result<(), ImpairmentError> {
        if self.delay.is_zero() {
            return Err(ImpairmentError::JitterWithoutDelay);
        }
        check_time("jitter", jitter.spread, MAX_JITTER)
    }
}

fn check_time(what: &'static str, time: Duration, most: Duration) -> Result<(), ImpairmentError> {
    if time.is_zero() {
        return Err(ImpairmentError::ZeroTime(what));
    }
    if time > most {
        return Err(ImpairmentError::TooLong { what, time, most });
    }
    Ok(())
}

fn check_event(name: &'static str, event: Option<Correlated>) -> Result<(), ImpairmentError> {
    match event {
        Some(event) if event.probability.is_never() => Err(ImpairmentError::Never(name)),
        _ => Ok(()),
    }
}

fn check_loss(loss: &Loss) -> Result<(), ImpairmentError> {
    match *loss {
        Loss::Random(event) => check_event("loss", Some(event)),
        Loss::State { p13, p31, p32, p14, .. } => {
            if p13.is_never() && p14.is_never() {
                return Err(ImpairmentError::Never("loss state P13"));
            }
            at_most_always("state 1", p13, p14)?;
            at_most_always("state 3", p31, p32)
        }
        Loss::Gemodel { p, loss_bad, loss_good, .. } => {
            if loss_good.is_never() && (p.is_never() || loss_bad.is_never()) {
                return Err(ImpairmentError::Never("loss gemodel"));
            }
            Ok(())
        }
    }
}

/// The kernel adds both in 32 bits, so that above 100 % the sum would start again at 0. 50 % and 50 %
/// are above: each is rounded up.
fn at_most_always(
    state: &'static str,
    first: Probability,
    second: Probability,
) -> Result<(), ImpairmentError> {
    match first.0.checked_add(second.0) {
        Some(_) => Ok(()),
        None => Err(ImpairmentError::MoreThanAlways { state, first, second }),
    }
}

fn check_rate(rate: &Rate) -> Result<(), ImpairmentError> {
    use ImpairmentError as E;
    if rate.bytes_per_s == 0 {
        return Err(E::ZeroCount("rate"));
    }
    if rate.packet_overhead < -SHORTEST_PACKET_BYTES {
        return Err(E::OverheadTooNegative(rate.packet_overhead));
    }
    if rate.cell_bytes == 0 && rate.cell_overhead != 0 {
        return Err(E::CellOverheadWithoutCells);
    }
    let cell = i64::from(rate.cell_bytes) + i64::from(rate.cell_overhead);
    if rate.cell_bytes > 0 && cell <= 0 {
        let (overhead, cell_bytes) = (rate.cell_overhead, rate.cell_bytes);
        return Err(E::CellOverheadTooNegative { overhead, cell_bytes });
    }
    Ok(())
}

fn check_slot(slot: &Slot) -> Result<(), ImpairmentError> {
    use ImpairmentError as E;
    match &slot.timing {
        SlotTiming::Between { min, max } => {
            check_time("slot", *max, MAX_DELAY)?;
            let difference =
                max.checked_sub(*min).ok_or(E::SlotBackwards { min: *min, max: *max })?;
            if difference > MAX_JITTER {
                let what = "difference of slot times";
                return Err(E::TooLong { what, time: difference, most: MAX_JITTER });
            }
        }
        SlotTiming::Distributed { distribution: Distribution::Uniform, .. } => {
            return Err(E::UniformSlot);
        }
        SlotTiming::Distributed { mean, spread, .. } => {
            check_time("slot mean", *mean, MAX_DELAY)?;
            check_time("slot jitter", *spread, MAX_JITTER)?;
        }
    }
    // The largest number itself means `any` to the kernel.
    let most = i32::MAX as u32 - 1;
    for (what, count) in [("slot packets", slot.packets), ("slot bytes", slot.bytes)] {
        match count {
            Some(0) => return Err(E::ZeroCount(what)),
            Some(value) if value > most => {
                return Err(E::TooMany { what, value: value.into(), most: most.into() });
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
