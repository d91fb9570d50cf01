//! What is injected, and what packets really got.
//!
//! The vocabulary is netem's; [`super::netem`] puts it into the kernel's numbers. What contradicts
//! itself or would come out otherwise than asked is refused by [`Impairment::check`].

mod check;
mod engine;
mod feature;
mod words;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use agent_common::wire::Retransmissions;
pub use check::ImpairmentError;
pub use engine::{Direction, Engine, EngineChoice};
pub use feature::Feature;

use super::distribution::Distribution;
use super::netem::Rate;
use super::probability::{Correlated, Probability};

/// Longest delay that is taken. Longer ones outlast the time-outs of TCP handshakes and of most
/// services, so they are far more often a slip of the unit than a wish.
pub const MAX_DELAY: Duration = Duration::from_secs(60);

/// Largest jitter, and largest difference of slot times: netem computes with 32 bits of nanoseconds
/// (`net/sched/sch_netem.c`, tabledist and get_slot_next), and cuts off what is above.
pub const MAX_JITTER: Duration = Duration::from_nanos(i32::MAX as u64);

/// Packets that an engine holds at most unless told otherwise. `LIMIT_PACKETS / delay` bounds the
/// packet rate: a million packets per second at 100 ms.
pub const LIMIT_PACKETS: u32 = 100_000;

/// An impairment: what happens to packets that pass an interface. [`Default`] is none at all; set what
/// is wanted and [`Self::check`] it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Impairment {
    /// Time that is added to each packet.
    #[serde(rename = "delay_ns", with = "nanoseconds")]
    pub delay: Duration,
    /// Randomness of that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Jitter>,
    /// Packets that are dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
    /// Mark packets that would be dropped, if they can be marked, instead of dropping them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ecn: bool,
    /// Packets that are sent twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate: Option<Correlated>,
    /// Packets in which one bit is flipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrupt: Option<Correlated>,
    /// Packets that overtake others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reorder: Option<Reorder>,
    /// Rate limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Slotted delivery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<Slot>,
    /// Packets held at most; [`LIMIT_PACKETS`] unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_packets: Option<u32>,
    /// Seed of the random numbers: the same one gives the same decisions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// Randomness of a delay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jitter {
    /// Half the width of a uniform distribution, the standard deviation of another.
    #[serde(rename = "spread_ns", with = "nanoseconds")]
    pub spread: Duration,
    /// How much each delay resembles the one before.
    #[serde(default)]
    pub correlation: Probability,
    /// Shape.
    #[serde(default)]
    pub distribution: Distribution,
}

/// How it is decided which packets are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Loss {
    /// Each by itself, or by resemblance to the one before.
    Random(Correlated),
    /// A Markov chain of four states: 1 good, 2 good within a burst, 3 lost within a burst, 4 lost
    /// alone. Each probability is of going from the state of its first digit to that of its second.
    State {
        /// Good to burst loss.
        p13: Probability,
        /// Burst loss to good.
        p31: Probability,
        /// Burst loss to good within the burst.
        p32: Probability,
        /// Good within a burst to burst loss.
        p23: Probability,
        /// Good to a single loss.
        p14: Probability,
    },
    /// Gilbert and Elliott's: a good and a bad state, each with its own loss.
    Gemodel {
        /// Good to bad.
        p: Probability,
        /// Bad to good.
        r: Probability,
        /// Loss in the bad state, 1-h in the literature.
        loss_bad: Probability,
        /// Loss in the good state, 1-k in the literature.
        loss_good: Probability,
    },
}

/// Packets that are sent at once, ahead of those that are delayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reorder {
    /// How many of the candidates.
    pub which: Correlated,
    /// Every `gap`-th packet is a candidate; 1 is each.
    pub gap: u32,
}

/// Slotted delivery: packets wait for the next slot, as behind a radio that sends now and then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slot {
    /// When the next one comes.
    pub timing: SlotTiming,
    /// Packets per slot at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u32>,
    /// Bytes per slot at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u32>,
}

/// Time from one slot to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SlotTiming {
    /// Evenly between two times.
    Between {
        /// Shortest.
        #[serde(rename = "min_ns", with = "nanoseconds")]
        min: Duration,
        /// Longest.
        #[serde(rename = "max_ns", with = "nanoseconds")]
        max: Duration,
    },
    /// By a distribution.
    Distributed {
        /// Shape.
        distribution: Distribution,
        /// Mean.
        #[serde(rename = "mean_ns", with = "nanoseconds")]
        mean: Duration,
        /// Standard deviation.
        #[serde(rename = "spread_ns", with = "nanoseconds")]
        spread: Duration,
    },
}

impl Impairment {
    /// A fixed delay.
    ///
    /// # Errors
    /// Zero, or above [`MAX_DELAY`].
    pub fn fixed_delay(delay: Duration) -> Result<Self, ImpairmentError> {
        let impairment = Self { delay, ..Self::default() };
        impairment.check()?;
        Ok(impairment)
    }

    /// What of it goes by packets before, so that a netem that is changed all the time never gets to do
    /// it: the option that asks for it, if any.
    #[must_use]
    pub fn remembers(&self) -> Option<&'static str> {
        let alike =
            |event: Option<Correlated>| event.is_some_and(|event| !event.correlation.is_never());
        let random = |loss| match loss {
            Loss::Random(event) => alike(Some(event)).then_some("--loss-correlation"),
            Loss::State { .. } => Some("--loss-state"),
            Loss::Gemodel { .. } => Some("--loss-gemodel"),
        };
        self.loss.and_then(random).or_else(|| {
            [
                (self.seed.is_some(), "--seed"),
                (self.slot.is_some(), "--slot"),
                (alike(self.duplicate), "--duplicate-correlation"),
                (alike(self.corrupt), "--corrupt-correlation"),
            ]
            .into_iter()
            .find_map(|(does, option)| does.then_some(option))
        })
    }

    /// Packets held at most.
    #[must_use]
    pub fn limit_packets(&self) -> u32 {
        self.limit_packets.unwrap_or(LIMIT_PACKETS)
    }

    /// The distribution of the delay, if it has one.
    #[must_use]
    pub fn delay_distribution(&self) -> Option<&Distribution> {
        self.jitter.as_ref().map(|jitter| &jitter.distribution)
    }

    /// The distribution of the slots, if they have one.
    #[must_use]
    pub fn slot_distribution(&self) -> Option<&Distribution> {
        match self.slot.as_ref().map(|slot| &slot.timing) {
            Some(SlotTiming::Distributed { distribution, .. }) => Some(distribution),
            _ => None,
        }
    }
}

impl Loss {
    /// The Markov chain, with what is not given as tc has it: alone, `p13` is independent loss.
    /// Takes the fractions p13, p31, p32, p23, p14.
    #[must_use]
    pub fn state(p13: f64, rest: &[f64]) -> Self {
        let or = |index: usize, default| {
            Probability::from_fraction(rest.get(index).copied().unwrap_or(default))
        };
        Self::State {
            p13: Probability::from_fraction(p13),
            p31: or(0, 1.0 - p13),
            p32: or(1, 0.0),
            p23: or(2, 1.0),
            p14: or(3, 0.0),
        }
    }

    /// Gilbert and Elliott's model, with what is not given as tc has it: alone, `p` is independent
    /// loss. Takes the fractions p, r, 1-h, 1-k.
    #[must_use]
    pub fn gemodel(p: f64, rest: &[f64]) -> Self {
        let or = |index: usize, default| {
            Probability::from_fraction(rest.get(index).copied().unwrap_or(default))
        };
        Self::Gemodel {
            p: Probability::from_fraction(p),
            r: or(0, 1.0 - p),
            loss_bad: or(1, 1.0),
            loss_good: or(2, 0.0),
        }
    }
}

/// What packets really got: the time each was held, from when the engine saw it to when it had let
/// it go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Packets that were held and let go.
    pub packets: u64,
    /// Median time held, nanoseconds; 0 if there were no packets.
    pub p50_ns: u64,
    /// 99th percentile, nanoseconds.
    pub p99_ns: u64,
    /// Longest, nanoseconds.
    pub max_ns: u64,
}

pub(super) mod nanoseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(value.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_json() {
        let impairment = Impairment::fixed_delay(Duration::from_millis(100)).unwrap();
        let text = serde_json::to_string(&impairment).unwrap();
        assert_eq!(text, r#"{"delay_ns":100000000}"#);
        assert_eq!(serde_json::from_str::<Impairment>(&text).unwrap(), impairment);
        assert!(serde_json::from_str::<Impairment>(r#"{"delay_ns":1,"magic":2}"#).is_err());
    }

    #[test]
    fn all_of_it_survives_json() {
        let some = Correlated { probability: Probability(7), correlation: Probability(9) };
        let normal = Distribution::Normal;
        let timing = SlotTiming::Distributed {
            distribution: normal.clone(),
            mean: MAX_JITTER,
            spread: MAX_JITTER,
        };
        let impairment = Impairment {
            delay: MAX_DELAY,
            jitter: Some(Jitter {
                spread: MAX_JITTER,
                correlation: Probability(1),
                distribution: normal,
            }),
            loss: Some(Loss::gemodel(0.01, &[0.1])),
            ecn: true,
            duplicate: Some(some),
            corrupt: Some(some),
            reorder: Some(Reorder { which: some, gap: 5 }),
            rate: Some(Rate { bytes_per_s: 625, ..Rate::default() }),
            slot: Some(Slot { timing, packets: Some(1), bytes: Some(2) }),
            limit_packets: Some(3),
            seed: Some(u64::MAX),
        };
        let text = serde_json::to_string(&impairment).unwrap();
        assert_eq!(serde_json::from_str::<Impairment>(&text).unwrap(), impairment, "{text}");
    }

    /// What tc supplies where fewer are given (`tc/q_netem.c`).
    #[test]
    fn models_of_loss_are_completed() {
        let never = Probability(0);
        let percent = |text: &str| text.parse::<Probability>().unwrap();
        assert_eq!(
            Loss::state(0.01, &[]),
            Loss::State {
                p13: percent("1%"),
                p31: percent("99%"),
                p32: never,
                p23: Probability::ALWAYS,
                p14: never,
            }
        );
        let Loss::State { p31, p32, p23, p14, .. } = Loss::state(0.01, &[0.2, 0.3, 0.4, 0.5])
        else {
            panic!("another model");
        };
        assert_eq!([p31, p32, p23, p14], ["20%", "30%", "40%", "50%"].map(percent));
        assert_eq!(
            Loss::gemodel(0.01, &[0.1]),
            Loss::Gemodel {
                p: percent("1%"),
                r: percent("10%"),
                loss_bad: Probability::ALWAYS,
                loss_good: never,
            }
        );
    }
}
