//! What is injected, and what packets really got.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Longest delay that is taken. Longer ones outlast the time-outs of TCP handshakes and of most
/// services, so they are far more often a slip of the unit than a wish.
pub const MAX_DELAY: Duration = Duration::from_secs(60);

/// Packets that an engine holds at most. `LIMIT_PACKETS / delay` bounds the packet rate: a million
/// packets per second at 100 ms.
pub const LIMIT_PACKETS: u32 = 100_000;

/// An impairment: what happens to packets that leave an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Impairment {
    /// Time that is added to each packet.
    #[serde(rename = "delay_ns", with = "nanoseconds")]
    pub delay: Duration,
}

/// Why an impairment makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImpairmentError {
    /// No time at all.
    #[error("delay is zero: nothing would be injected; give one such as 100ms")]
    ZeroDelay,
    /// More than [`MAX_DELAY`].
    #[error("delay {} is above the largest that is taken, {}; is the unit right?",
            agent_common::duration::format(*.0), agent_common::duration::format(MAX_DELAY))]
    DelayTooLong(Duration),
}

impl Impairment {
    /// A fixed delay.
    ///
    /// # Errors
    /// Zero, or above [`MAX_DELAY`].
    pub fn fixed_delay(delay: Duration) -> Result<Self, ImpairmentError> {
        let impairment = Self { delay };
        impairment.check()?;
        Ok(impairment)
    }

    /// Checks the bounds, for values that were read rather than made by [`Self::fixed_delay`].
    ///
    /// # Errors
    /// As [`Self::fixed_delay`].
    pub fn check(&self) -> Result<(), ImpairmentError> {
        if self.delay.is_zero() {
            return Err(ImpairmentError::ZeroDelay);
        }
        if self.delay > MAX_DELAY {
            return Err(ImpairmentError::DelayTooLong(self.delay));
        }
        Ok(())
    }
}

/// How an impairment is put into force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// The kernel's network emulator, as the interface's root queueing discipline.
    Netem,
    /// Packets are held in a netfilter queue until user space lets them go.
    Nfqueue,
}

impl Engine {
    /// The name used in output and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Netem => "netem",
            Self::Nfqueue => "nfqueue",
        }
    }
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Which engine is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineChoice {
    /// netem where the kernel has it, else nfqueue.
    #[default]
    Auto,
    /// netem or nothing.
    Netem,
    /// nfqueue or nothing.
    Nfqueue,
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

mod nanoseconds {
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
    fn bounds_are_inclusive_above_and_exclusive_at_zero() {
        assert_eq!(Impairment::fixed_delay(Duration::ZERO), Err(ImpairmentError::ZeroDelay));
        assert!(Impairment::fixed_delay(Duration::from_nanos(1)).is_ok());
        assert!(Impairment::fixed_delay(MAX_DELAY).is_ok());
        let above = MAX_DELAY + Duration::from_nanos(1);
        let error = Impairment::fixed_delay(above).unwrap_err();
        assert_eq!(
            error.to_string(),
            "delay 60.000000001s is above the largest that is taken, 60s; is the unit right?"
        );
    }

    #[test]
    fn survives_json() {
        let impairment = Impairment::fixed_delay(Duration::from_millis(100)).unwrap();
        let text = serde_json::to_string(&impairment).unwrap();
        assert_eq!(text, r#"{"delay_ns":100000000}"#);
        assert_eq!(serde_json::from_str::<Impairment>(&text).unwrap(), impairment);
    }
}
