//! What can go wrong when something is injected.

use std::io;

use crate::model::container::ContainerError;
use crate::model::filter::FilterError;
use crate::model::impairment::{Engine, Feature, ImpairmentError};
use crate::sys::discover::ServingError;
use crate::sys::netns::{NetnsError, Origin};

/// Why an impairment could not be put into force, looked at, or cleared.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// Not root.
    #[error("injecting needs root: run it with sudo")]
    NotRoot,
    /// No option that does anything.
    #[error("nothing to inject: {0}")]
    NothingAsked(&'static str),
    /// What was given for an option cannot be read.
    #[error("{option}: {reason}")]
    Unreadable {
        /// Such as `--loss`.
        option: &'static str,
        /// What is wrong, and what to write.
        reason: String,
    },
    /// The impairment itself is out of range.
    #[error(transparent)]
    Impairment(#[from] ImpairmentError),
    /// Which packets it is for makes no sense.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// No such server.
    #[error(transparent)]
    Serving(#[from] ServingError),
    /// What was asked for does not come by.
    #[error("{what} go through `{others}`, not `{device}`: give --dev {others}")]
    OtherInterface {
        /// Whose packets.
        what: String,
        /// What was asked for.
        device: String,
        /// The interfaces that they go through.
        others: String,
    },
    /// A process id that is none.
    #[error("`{0}` is not a process id; give the pid of a running process as this host numbers it")]
    BadPid(String),
    /// No container, or several.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The operator would be hit.
    #[error(
        "interface `{device}` carries the SSH session that this is typed in (from {peer}): it would \
             be impaired as well. Add --force if that is meant"
    )]
    OwnSession {
        /// Interface.
        device: String,
        /// Where the operator sits.
        peer: std::net::IpAddr,
    },
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
             else configured; it is left alone. Use --replace, which puts it back afterwards, or \
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
    /// Somebody else's queueing discipline, which could not be put back.
    #[error(
        "interface `{device}` has the root queueing discipline `{kind}`, which could not be put back \
             afterwards: {reason}; it is left alone. Use --engine nfqueue, or remove it yourself"
    )]
    Irreplaceable {
        /// Interface.
        device: String,
        /// Kind, such as `mq`.
        kind: String,
        /// Why not.
        reason: String,
    },
    /// Somebody else filters what arrives at the interface.
    #[error(
        "interface `{device}` has filters for what arrives (qdisc `{kind}`) that somebody else \
             configured, and which a redirect would go round; they are left alone. Remove them (`tc \
             qdisc del dev {device} {kind}`) or use --direction egress"
    )]
    ForeignIngress {
        /// Interface.
        device: String,
        /// `clsact` or `ingress`.
        kind: String,
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
    /// The engine works here, but cannot do all that is asked.
    #[error(
        "engine {engine} cannot do {}{because}; leave it out, or use --engine netem on a kernel that \
             has sch_netem", .feature.option()
    )]
    Lacks {
        /// Which.
        engine: Engine,
        /// What it cannot do.
        feature: Feature,
        /// Why this engine was chosen, if it was not asked for.
        because: String,
    },
    /// The kernel's netem is older than an option.
    #[error(
        "kernel {kernel} does not know {options}: its netem would pass over it; leave it out, or use \
             a newer kernel; nothing is left"
    )]
    KernelLacks {
        /// Release of the kernel.
        kernel: String,
        /// The options of the command line.
        options: String,
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
    /// A netem that was told a table keeps it.
    #[error(
        "interface `{device}` cannot be changed to {what}: netem has a distribution table now, and the \
             kernel has no way to take it back without what is queued; nothing was changed. Clear it \
             and add it anew, or keep a --distribution"
    )]
    Tables {
        /// Interface.
        device: String,
        /// What was asked for.
        what: &'static str,
    },
    /// netem begins anew with every change.
    #[error(
        "a ramp changes netem all the time, and each change begins {0} anew: it would not do what it \
             says. Use steps, leave {0} out, or use --engine nfqueue"
    )]
    RampForgets(&'static str),
    /// What a schedule says, or does not say.
    #[error("interface `{0}` follows a schedule; clear it first, or wait for its end")]
    OnSchedule(String),
    /// A report will speak of it.
    #[error(
        "interface `{0}` is impaired for a load generator that is paired with `agent serve`, and its \
             report tells what was asked for there: nothing was changed"
    )]
    OfSession(String),
    /// Its holder could not do what was asked.
    #[error("{0}")]
    Refused(String),
    /// What another version of the agent holds.
    #[error(
        "{path} is of another version of the agent: process {pid} holds an impairment; `kill {pid}` ends \
             both"
    )]
    OtherVersion {
        /// File.
        path: String,
        /// Process.
        pid: u32,
    },
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
    /// Whether the command line is at fault, whatever the machine.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NothingAsked(_)
                | Self::Unreadable { .. }
                | Self::Impairment(_)
                | Self::Filter(_)
                | Self::BadPid(_)
        )
    }

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
