//! Probabilities as netem counts them, and as people write them.

use std::fmt;

use agent_common::percent;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A probability as netem counts: 0 is never, `u32::MAX` is always. As text, and in JSON, it is the
/// shortest percentage that means exactly this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probability(pub u32);

impl Probability {
    /// Always.
    pub const ALWAYS: Self = Self(u32::MAX);

    /// From a fraction; values outside 0 to 1 are brought to the nearer end, NaN to 0. Halves go to
    /// the even neighbour, as with tc's `rint`.
    #[must_use]
    pub fn from_fraction(fraction: f64) -> Self {
        // A float-to-integer cast saturates and takes NaN to 0.
        Self((fraction * f64::from(u32::MAX)).round_ties_even() as u32)
    }

    /// As a fraction.
    #[must_use]
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / f64::from(u32::MAX)
    }

    /// The opposite event's.
    #[must_use]
    pub const fn complement(self) -> Self {
        Self(u32::MAX - self.0)
    }

    /// Whether the event never happens.
    #[must_use]
    pub const fn is_never(self) -> bool {
        self.0 == 0
    }
}

/// Reads a percentage, such as `0.1%`.
///
/// # Errors
/// As [`percent::parse`].
impl std::str::FromStr for Probability {
    type Err = percent::ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        percent::parse(text).map(Self::from_fraction)
    }
}

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.fraction() * 100.0;
        // Ten digits tell all 2^32 apart.
        let text = (0..=10)
            .map(|digits| format!("{percent:.digits$}%"))
            .find(|text| text.parse() == Ok(*self))
            .unwrap_or_else(|| format!("{percent}%"));
        f.write_str(&text)
    }
}

impl Serialize for Probability {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Probability {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

/// An event's probability and how much each one resembles the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Correlated {
    /// How often.
    pub probability: Probability,
    /// Correlation with the previous event.
    #[serde(default)]
    pub correlation: Probability,
}

/// `25%`, or `25% (each 50% like the one before)`.
impl fmt::Display for Correlated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.probability)?;
        if self.correlation.is_never() {
            return Ok(());
        }
        write!(f, " (each {} like the one before)", self.correlation)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn probabilities_scale_to_the_whole_range() {
        assert_eq!(Probability::from_fraction(1.0).0, u32::MAX);
        assert_eq!(Probability::from_fraction(0.0).0, 0);
        assert_eq!(Probability::from_fraction(-1.0).0, 0);
        assert_eq!(Probability::from_fraction(f64::NAN).0, 0);
        assert!((Probability::from_fraction(0.25).fraction() - 0.25).abs() < 1e-9);
        assert_eq!(Probability(1).complement().0, u32::MAX - 1);
    }

    /// 10 % of 2^32 - 1 is 429496729.5.
    #[test]
    fn halves_go_to_the_even_neighbour() {
        assert_eq!(Probability::from_fraction(0.1).0, 429_496_730);
        assert_eq!(Probability::from_fraction(0.9).0, 3_865_470_566);
    }

    #[test]
    fn the_text_is_what_people_would_write() {
        for text in ["0%", "1%", "0.1%", "12.5%", "33.3%", "99.99%", "100%", "0.0001%"] {
            assert_eq!(text.parse::<Probability>().unwrap().to_string(), text);
        }
        let correlated = Correlated { probability: "25%".parse().unwrap(), ..Default::default() };
        assert_eq!(correlated.to_string(), "25%");
        let correlated = Correlated { correlation: "50%".parse().unwrap(), ..correlated };
        assert_eq!(correlated.to_string(), "25% (each 50% like the one before)");
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(value: u32) {
            prop_assert_eq!(Probability(value).to_string().parse(), Ok(Probability(value)));
        }
    }
}
