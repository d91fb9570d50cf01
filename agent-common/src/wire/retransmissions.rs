//! What TCP sent again while something was impaired.

use std::fmt;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// What TCP sent again, of the connections of the service's namespace that leave by the impaired
/// interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retransmissions {
    /// Segments sent again, SYN and SYN/ACK included.
    pub segments: u64,
    /// Of those, SYN/ACK: by their own timer, or since the peer's had sent the SYN again.
    pub synacks: u64,
    /// Of those, probes for a loss at the tail, which wait for less than the timeout.
    pub probes: u64,
    /// Retransmission timeouts, those of a SYN included, and those whose segment was still held on
    /// the host and could not be sent again.
    pub timeouts: u64,
}

impl Retransmissions {
    /// What came since `before`.
    #[must_use]
    pub const fn since(self, before: Self) -> Self {
        Self {
            segments: self.segments.saturating_sub(before.segments),
            synacks: self.synacks.saturating_sub(before.synacks),
            probes: self.probes.saturating_sub(before.probes),
            timeouts: self.timeouts.saturating_sub(before.timeouts),
        }
    }
}

impl AddAssign for Retransmissions {
    fn add_assign(&mut self, more: Self) {
        self.segments = self.segments.saturating_add(more.segments);
        self.synacks = self.synacks.saturating_add(more.synacks);
        self.probes = self.probes.saturating_add(more.probes);
        self.timeouts = self.timeouts.saturating_add(more.timeouts);
    }
}

impl fmt::Display for Retransmissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::default() {
            return f.write_str("TCP sent nothing again");
        }
        let plural = |n: u64, one: &str| format!("{n} {one}{}", if n == 1 { "" } else { "s" });
        write!(f, "TCP sent {} again", plural(self.segments, "segment"))?;
        let parts = [(self.probes, "to probe for a lost tail"), (self.synacks, "SYN/ACK")];
        let told: Vec<String> = parts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        if !told.is_empty() {
            write!(f, " ({})", told.join(", "))?;
        }
        write!(f, ", {}", plural(self.timeouts, "retransmission timeout"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_told_and_compared() {
        let none = Retransmissions::default();
        assert_eq!(none.to_string(), "TCP sent nothing again");
        let some = Retransmissions { segments: 5, synacks: 1, probes: 2, timeouts: 1 };
        assert_eq!(
            some.to_string(),
            "TCP sent 5 segments again (2 to probe for a lost tail, 1 SYN/ACK), 1 retransmission \
             timeout"
        );
        let mut more = some;
        more += Retransmissions { segments: 1, timeouts: 1, ..none };
        assert_eq!(more.since(some), Retransmissions { segments: 1, timeouts: 1, ..none });
        // Held back on the host: a timeout without a segment.
        let held = Retransmissions { timeouts: 2, ..none };
        assert_eq!(held.to_string(), "TCP sent 0 segments again, 2 retransmission timeouts");
    }
}
