//! What can go wrong when something is injected.

use std::io;

use crate::model::impairment::{Engine, ImpairmentError};
use crate::sys::netns::{NetnsError, Origin};

/// Why an impairment could not be put into force, looked at, or cleared.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// Not root.
    #[error("injecting needs root: run it with sudo")]
    NotRoot,
    /// The impairment itself is out of range.
    #[error(transparent)]
    Impairment(#[from] ImpairmentError),
    /// A process id that is none.
    #[error("`{0}` is not a process id; give the pid of a running process as this host numbers it")]
    BadPid(String),
    /// The namespace is missing or closed to us.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// No such interface.
    #[error("interface `{device}` not found in network namespace {netns}; there are: {}",
            .existing.join(", "))]
    NoDevice {
        /// What was asked for.
        device: String,
        /// Where.
        netns: String,
        /// The interfaces there are.
        existing: Vec<String>,
    },
    /// An impairment of ours is on the interface already.
    #[error(
        "interface `{device}` in network namespace {netns} is impaired already{by}; \
             end that with `{clear}`"
    )]
    AlreadyImpaired {
        /// Interface.
        device: String,
        /// Where.
        netns: String,
        /// ` by process N`, or nothing.
        by: String,
        /// The command that ends it.
        clear: String,
    },
    /// Somebody else's queueing discipline is on the interface.
    #[error(
        "interface `{device}` has the root queueing discipline `{kind}` ({handle}) that somebody \
             else configured; it is left alone. Remove it (`tc qdisc del dev {device} root`) or use \
             --engine nfqueue"
    )]
    ForeignQdisc {
        /// Interface.
        device: String,
        /// Kind, such as `htb`.
        kind: String,
        /// Handle, such as `1:`.
        handle: String,
    },
    /// The engine asked for does not work here.
    #[error("engine {engine} does not work on this kernel: {reason}; {hint}")]
    EngineUnavailable {
        /// Which.
        engine: Engine,
        /// Why not.
        reason: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// No engine works here.
    #[error(
        "no engine works on this kernel. netem: {netem}. nfqueue: {nfqueue}. Load the module \
             sch_netem, or nfnetlink_queue and nft_compat"
    )]
    NoEngine {
        /// Why netem does not.
        netem: String,
        /// Why nfqueue does not.
        nfqueue: String,
    },
    /// What the kernel reads back is not what was asked of it.
    #[error(
        "interface `{device}`: asked the kernel for {asked}, but it has {got}; nothing is left"
    )]
    ReadBack {
        /// Interface.
        device: String,
        /// What was asked.
        asked: String,
        /// What it says.
        got: String,
    },
    /// The interface went away while impaired.
    #[error("interface `{0}` vanished while it was impaired: nothing is delayed any more")]
    DeviceVanished(String),
    /// The namespace went away while impaired.
    #[error(
        "network namespace {netns} ended while interface `{device}` in it was impaired: nothing is \
             delayed any more"
    )]
    NamespaceGone {
        /// Interface.
        device: String,
        /// How the namespace was named.
        netns: String,
    },
    /// The thread that lets packets go failed.
    #[error("the delay on interface `{device}` failed and was ended: {reason}")]
    Failed {
        /// Interface.
        device: String,
        /// Why.
        reason: String,
    },
    /// Something is left that should not be.
    #[error("interface `{device}` is not as it was before: {what}")]
    NotRestored {
        /// Interface.
        device: String,
        /// The difference.
        what: String,
    },
    /// The kernel refused something.
    #[error("{action}: {source}")]
    Kernel {
        /// What was tried.
        action: String,
        /// Its answer.
        source: io::Error,
    },
    /// It is another agent's.
    #[error(
        "{0} is delayed by an agent that keeps its files elsewhere (in a container?), and was left \
             alone; clear it there"
    )]
    HeldElsewhere(String),
    /// Nothing to clear.
    #[error("nothing is injected on interface `{0}`; see `agent inject list`")]
    NothingThere(String),
    /// The process that holds an impairment does not answer.
    #[error(
        "process {pid} holds the delay on interface `{device}` and does not answer; \
             `kill -9 {pid}` ends both"
    )]
    Silent {
        /// Interface.
        device: String,
        /// Process.
        pid: u32,
    },
    /// The list of impairments in force, on disk.
    #[error("cannot {action} {path}: {source}")]
    Registry {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

impl InjectError {
    /// Whether the interface went, and all that was on it.
    pub(super) fn is_end_of_place(&self) -> bool {
        matches!(self, Self::DeviceVanished(_) | Self::NamespaceGone { .. })
    }
}

/// The command that ends the impairment of one interface: others of the same name are in other
/// namespaces.
pub(super) fn clear_command(device: &str, origin: &Origin) -> String {
    format!("agent inject clear --dev {device} {}", origin.arguments())
}
