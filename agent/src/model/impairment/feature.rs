//! What an impairment asks of an engine, and which engine can do it: the one place that says so.

use super::{Direction, Engine, Impairment, Loss};
use crate::model::distribution::Distribution;

/// Something that an engine can do or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// A fixed delay.
    Delay,
    /// Random delay.
    Jitter,
    /// Delays that resemble the one before.
    DelayCorrelation,
    /// Random delay by a table.
    DelayDistribution,
    /// Independent loss.
    LossRandom,
    /// Loss that resembles the one before.
    LossCorrelation,
    /// Loss by a Markov chain.
    LossState,
    /// Loss by Gilbert and Elliott's model.
    LossGemodel,
    /// Marking instead of losing.
    Ecn,
    /// Sending twice.
    Duplicate,
    /// Flipping a bit.
    Corrupt,
    /// Overtaking.
    Reorder,
    /// A rate limit.
    Rate,
    /// Slotted delivery.
    Slot,
    /// A limit of the user's.
    Limit,
    /// Repeatable random numbers.
    Seed,
    /// What arrives.
    Ingress,
}

impl Feature {
    /// The option of `agent inject add` that asks for it.
    #[must_use]
    pub const fn option(self) -> &'static str {
        match self {
            Self::Delay => "--delay",
            Self::Jitter => "--jitter",
            Self::DelayCorrelation => "--delay-correlation",
            Self::DelayDistribution => "--distribution",
            Self::LossRandom => "--loss",
            Self::LossCorrelation => "--loss-correlation",
            Self::LossState => "--loss-state",
            Self::LossGemodel => "--loss-gemodel",
            Self::Ecn => "--ecn",
            Self::Duplicate => "--duplicate",
            Self::Corrupt => "--corrupt",
            Self::Reorder => "--reorder",
            Self::Rate => "--rate",
            Self::Slot => "--slot",
            Self::Limit => "--limit",
            Self::Seed => "--seed",
            Self::Ingress => "--direction ingress or both",
        }
    }
}

impl Engine {
    /// Whether this engine does that. netem's kernel may still be too old for an option: that shows
    /// when it is read back.
    #[must_use]
    pub const fn does(self, feature: Feature) -> bool {
        match self {
            Self::Netem => true,
            Self::Nfqueue => match feature {
                Feature::Delay => true,
                Feature::Jitter => true,
                Feature::DelayCorrelation => true,
                Feature::DelayDistribution => true,
                Feature::LossRandom => true,
                Feature::LossCorrelation => true,
                Feature::LossState => true,
                Feature::LossGemodel => true,
                Feature::Ecn => false,
                Feature::Duplicate => false,
                Feature::Corrupt => false,
                Feature::Reorder => true,
                Feature::Rate => true,
                Feature::Slot => false,
                Feature::Limit => true,
                Feature::Seed => true,
                Feature::Ingress => true,
            },
        }
    }

    /// The first thing that `impairment` in this direction asks for and this engine cannot do.
    #[must_use]
    pub fn lacks(self, impairment: &Impairment, direction: Direction) -> Option<Feature> {
        let way = direction.arrives().then_some(Feature::Ingress);
        impairment.features().into_iter().chain(way).find(|feature| !self.does(*feature))
    }
}

impl Impairment {
    /// Everything that it asks of an engine.
    #[must_use]
    pub fn features(&self) -> Vec<Feature> {
        // Without a `..`, so that a new field is not forgotten here.
        let Self {
            delay,
            jitter,
            loss,
            ecn,
            duplicate,
            corrupt,
            reorder,
            rate,
            slot,
            limit_packets,
            seed,
        } = self;
        let correlated = jitter.as_ref().is_some_and(|jitter| !jitter.correlation.is_never());
        let shaped =
            jitter.as_ref().is_some_and(|jitter| jitter.distribution != Distribution::Uniform);
        let resembling = matches!(loss, Some(Loss::Random(event)) if !event.correlation.is_never());
        let asked = [
            (Feature::Delay, !delay.is_zero()),
            (Feature::Jitter, jitter.is_some()),
            (Feature::DelayCorrelation, correlated),
            (Feature::DelayDistribution, shaped),
            (Feature::LossRandom, matches!(loss, Some(Loss::Random(_)))),
            (Feature::LossCorrelation, resembling),
            (Feature::LossState, matches!(loss, Some(Loss::State { .. }))),
            (Feature::LossGemodel, matches!(loss, Some(Loss::Gemodel { .. }))),
            (Feature::Ecn, *ecn),
            (Feature::Duplicate, duplicate.is_some()),
            (Feature::Corrupt, corrupt.is_some()),
            (Feature::Reorder, reorder.is_some()),
            (Feature::Rate, rate.is_some()),
            (Feature::Slot, slot.is_some()),
            (Feature::Limit, limit_packets.is_some()),
            (Feature::Seed, seed.is_some()),
        ];
        asked.into_iter().filter_map(|(feature, is_asked)| is_asked.then_some(feature)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_fixed_delay_is_for_every_engine() {
        let delay = Impairment::fixed_delay(Duration::from_millis(1)).unwrap();
        assert_eq!(delay.features(), [Feature::Delay]);
        assert_eq!(Engine::Netem.lacks(&delay, Direction::Both), None);
        assert_eq!(Engine::Nfqueue.lacks(&delay, Direction::Egress), None);
    }

    #[test]
    fn every_engine_goes_both_ways() {
        let delay = Impairment::fixed_delay(Duration::from_millis(1)).unwrap();
        for direction in [Direction::Ingress, Direction::Both] {
            assert_eq!(Engine::Nfqueue.lacks(&delay, direction), None);
        }
    }

    #[test]
    fn what_is_lacking_is_named() {
        let mut impairment = Impairment::fixed_delay(Duration::from_millis(1)).unwrap();
        impairment.limit_packets = Some(10);
        impairment.corrupt = Some(
            "1%".parse()
                .map(|p| super::super::Correlated { probability: p, ..Default::default() })
                .unwrap(),
        );
        assert_eq!(Engine::Netem.lacks(&impairment, Direction::Ingress), None);
        let lacking = Engine::Nfqueue.lacks(&impairment, Direction::Egress);
        assert_eq!(lacking.map(Feature::option), Some("--corrupt"));
    }
}
