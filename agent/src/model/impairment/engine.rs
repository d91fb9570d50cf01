//! How, and in which direction, an impairment is put into force.

use serde::{Deserialize, Serialize};

/// Which packets are impaired, as seen from the interface's namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Those that leave.
    #[default]
    Egress,
    /// Those that arrive.
    Ingress,
    /// All, each direction by itself: a round trip takes two delays.
    Both,
}

impl Direction {
    /// The name used in output and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
            Self::Both => "both",
        }
    }

    /// Whether packets that leave are impaired.
    #[must_use]
    pub const fn leaves(self) -> bool {
        matches!(self, Self::Egress | Self::Both)
    }

    /// Whether packets that arrive are impaired.
    #[must_use]
    pub const fn arrives(self) -> bool {
        matches!(self, Self::Ingress | Self::Both)
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
