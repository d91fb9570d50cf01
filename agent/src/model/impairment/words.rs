//! An impairment in words.

use std::fmt;

use agent_common::{duration, rate};

use super::{Impairment, Jitter, Loss, Slot, SlotTiming};
use crate::model::distribution::Distribution;
use crate::model::netem::Rate;

/// All of it, as it would follow "packets are": `delayed by 100ms ± 10ms, lost: 1%`.
impl fmt::Display for Impairment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.delay.is_zero() {
            let jitter = self.jitter.as_ref().map(jitter).unwrap_or_default();
            parts.push(format!("delayed by {}{jitter}", duration::format(self.delay)));
        }
        if let Some(asked) = &self.rate {
            parts.push(rate_words(asked));
        }
        if let Some(asked) = &self.slot {
            parts.push(slot(asked));
        }
        if let Some(asked) = &self.loss {
            let instead = if self.ecn { ", marked instead where ECN allows" } else { "" };
            parts.push(format!("{}{instead}", loss(asked)));
        }
        if let Some(event) = self.duplicate {
            parts.push(format!("sent twice: {event}"));
        }
        if let Some(event) = self.corrupt {
            parts.push(format!("changed by one bit: {event}"));
        }
        if let Some(reorder) = self.reorder {
            let of = match reorder.gap {
                1 => String::new(),
                gap => format!(" of every {}", ordinal(gap)),
            };
            parts.push(format!("sent ahead of others: {}{of}", reorder.which));
        }
        if let Some(limit) = self.limit_packets {
            parts.push(format!("dropped when {limit} are held"));
        }
        if let Some(seed) = self.seed {
            parts.push(format!("chosen by seed {seed}"));
        }
        if parts.is_empty() {
            // Between the delays of a schedule.
            parts.push("not delayed".to_owned());
        }
        f.write_str(&parts.join("; "))
    }
}

fn jitter(jitter: &Jitter) -> String {
    let mut text = format!(" ± {}", duration::format(jitter.spread));
    if jitter.distribution != Distribution::Uniform {
        text += &format!(" ({})", shape(&jitter.distribution));
    }
    if !jitter.correlation.is_never() {
        text += &format!(" (each {} like the one before)", jitter.correlation);
    }
    text
}

fn shape(distribution: &Distribution) -> String {
    match distribution {
        Distribution::Table(table) => {
            format!("distribution {} of {} entries", distribution.name(), table.entries())
        }
        _ => format!("{} distribution", distribution.name()),
    }
}

fn loss(loss: &Loss) -> String {
    match loss {
        Loss::Random(event) => format!("lost: {event}"),
        Loss::State { p13, p31, p32, p23, p14 } => {
            format!("lost by four states: p13 {p13}, p31 {p31}, p32 {p32}, p23 {p23}, p14 {p14}")
        }
        Loss::Gemodel { p, r, loss_bad, loss_good } => format!(
            "lost by Gilbert and Elliott's model: good to bad {p}, bad to good {r}, lost when bad \
             {loss_bad}, lost when good {loss_good}"
        ),
    }
}

fn rate_words(asked: &Rate) -> String {
    let mut text = format!("sent at {}", rate::format(asked.bytes_per_s));
    if asked.packet_overhead != 0 {
        text += &format!(", {:+} bytes per packet", asked.packet_overhead);
    }
    if asked.cell_bytes != 0 {
        text += &format!(", in cells of {} bytes", asked.cell_bytes);
    }
    if asked.cell_overhead != 0 {
        text += &format!(", {:+} bytes per cell", asked.cell_overhead);
    }
    text
}

fn slot(slot: &Slot) -> String {
    let mut text = match &slot.timing {
        SlotTiming::Between { min, max } if min == max => {
            format!("sent in slots every {}", duration::format(*min))
        }
        SlotTiming::Between { min, max } => {
            format!("sent in slots every {} to {}", duration::format(*min), duration::format(*max))
        }
        SlotTiming::Distributed { distribution, mean, spread } => format!(
            "sent in slots every {} ± {} ({})",
            duration::format(*mean),
            duration::format(*spread),
            shape(distribution)
        ),
    };
    if let Some(packets) = slot.packets {
        text += &format!(", {packets} packets each");
    }
    if let Some(bytes) = slot.bytes {
        text += &format!(", {bytes} bytes each");
    }
    text
}

fn ordinal(number: u32) -> String {
    let ending = match (number % 100, number % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Correlated, Reorder};
    use super::*;

    fn event(probability: &str, correlation: &str) -> Correlated {
        Correlated {
            probability: probability.parse().unwrap(),
            correlation: correlation.parse().unwrap(),
        }
    }

    #[test]
    fn every_part_is_told() {
        let ms = Duration::from_millis;
        let mut impairment = Impairment::fixed_delay(ms(100)).unwrap();
        assert_eq!(impairment.to_string(), "delayed by 100ms");
        impairment.jitter = Some(Jitter {
            spread: ms(10),
            correlation: "25%".parse().unwrap(),
            distribution: Distribution::Normal,
        });
        impairment.loss = Some(Loss::Random(event("1%", "0")));
        impairment.ecn = true;
        impairment.duplicate = Some(event("2%", "10%"));
        impairment.corrupt = Some(event("0.1%", "0"));
        impairment.reorder = Some(Reorder { which: event("25%", "0"), gap: 22 });
        impairment.rate =
            Some(Rate { bytes_per_s: 625, packet_overhead: -14, cell_bytes: 48, cell_overhead: 5 });
        let timing = SlotTiming::Between { min: ms(1), max: ms(5) };
        impairment.slot = Some(Slot { timing, packets: Some(10), bytes: None });
        impairment.limit_packets = Some(1000);
        impairment.seed = Some(7);
        assert_eq!(
            impairment.to_string(),
            "delayed by 100ms ± 10ms (normal distribution) (each 25% like the one before); sent at \
             5kbit, -14 bytes per packet, in cells of 48 bytes, +5 bytes per cell; sent in slots \
             every 1ms to 5ms, 10 packets each; lost: 1%, marked instead where ECN allows; sent \
             twice: 2% (each 10% like the one before); changed by one bit: 0.1%; sent ahead of \
             others: 25% of every 22nd; dropped when 1000 are held; chosen by seed 7"
        );
    }

    #[test]
    fn models_of_loss_are_spelled_out() {
        let told = |loss| Impairment { loss: Some(loss), ..Impairment::default() }.to_string();
        assert_eq!(
            told(Loss::state(0.01, &[])),
            "lost by four states: p13 1%, p31 99%, p32 0%, p23 100%, p14 0%"
        );
        assert_eq!(
            told(Loss::gemodel(0.01, &[0.1, 0.7, 0.001])),
            "lost by Gilbert and Elliott's model: good to bad 1%, bad to good 10%, lost when bad \
             70%, lost when good 0.1%"
        );
    }

    #[test]
    fn ordinals() {
        let all = [1, 2, 3, 5, 11, 12, 21, 102, 113].map(ordinal);
        assert_eq!(all, ["1st", "2nd", "3rd", "5th", "11th", "12th", "21st", "102nd", "113th"]);
    }
}
