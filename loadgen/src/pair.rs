//! The client's side of the pairing socket: a session with the agent from before the first user to
//! after the last.
//!
//! [`begin`] says who we are, names the service, has it impaired if asked, starts the probes and
//! then leaves the socket to a thread that renews the lease and keeps what comes. Losing the agent
//! in mid-run does not end the run: [`KernelData::lost_at`] says when it happened.

mod collect;
mod link;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent_common::wire::{
    ErrorReply, Hello, ImpairRequest, Impaired, TargetRequest, Targeted, ToAgent, ToLoadgen,
    VERSION,
};

use crate::clock::now_ns;
use crate::record::KernelData;
use collect::Collector;
use link::{Link, LinkError};

/// Longest wait for one answer before the run: attaching probes may take seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How often the thread looks up from the socket to renew or to stop.
const LOOK_UP: Duration = Duration::from_millis(50);
/// An agent that measures but does not impair also wants to hear from us: within 60 s.
const LONGEST_SILENCE: Duration = Duration::from_secs(15);

/// What the session is to do.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The agent's socket.
    pub socket: PathBuf,
    /// Address of the service, as the users will connect to it.
    pub target: SocketAddr,
    /// Ports of the service's databases.
    pub db_ports: Vec<u16>,
    /// What to impair; None: nothing.
    pub delay: Option<Delay>,
    /// The impairment ends when the agent did not hear from us for this long.
    pub lease: Duration,
}

/// A delay to ask for.
#[derive(Clone, Debug)]
pub struct Delay {
    /// How long.
    pub delay: Duration,
    /// Interface in the service's namespace; None: the agent chooses.
    pub device: Option<String>,
}

/// Why no session came about.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// Nobody answers on the socket.
    #[error(
        "no agent on {}: {error}; start one as root with `agent serve --socket {}`",
        socket.display(), socket.display()
    )]
    NoAgent {
        /// The socket.
        socket: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The socket is there and not for us.
    #[error(
        "the agent's socket {} is not open to this user; root allows it with `agent serve \
         --allow-uid {uid}`",
        socket.display()
    )]
    NotAllowed {
        /// The socket.
        socket: PathBuf,
        /// This user.
        uid: u32,
    },
    /// The socket failed, closed or carried nonsense.
    #[error("pairing with the agent failed {during}: {error}")]
    Link {
        /// What was going on.
        during: &'static str,
        /// What happened.
        error: LinkError,
    },
    /// The agent said no; the sentence is its own.
    #[error("the agent refused {what}: {}", reply.message)]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Its answer.
        reply: ErrorReply,
    },
    /// It did not answer in time.
    #[error("the agent did not answer {0} within {ANSWER_LIMIT:?}")]
    Silent(&'static str),
    /// It answered something else.
    #[error("the agent answered {0} with another message: this is a bug in the agent")]
    Unexpected(&'static str),
    /// Another kernel.
    #[error(
        "the agent runs on another machine or boot (boot id {theirs}, here {ours}): marks of two \
         kernels share no clock; run loadgen on the agent's host"
    )]
    OtherClock {
        /// The agent's.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// Our own `/proc` cannot be read.
    #[error("cannot read {path}: {error}")]
    Proc {
        /// File.
        path: &'static str,
        /// Why.
        error: std::io::Error,
    },
    /// No thread.
    #[error("cannot start the pairing thread: {0}")]
    Thread(std::io::Error),
}

/// A session that measures.
#[derive(Debug)]
pub struct Session {
    thread: JoinHandle<KernelData>,
    stop: Arc<AtomicBool>,
    lost: Arc<AtomicU64>,
    targeted: Targeted,
    impaired: Option<Impaired>,
}

impl Session {
    /// The service as found.
    #[must_use]
    pub const fn targeted(&self) -> &Targeted {
        &self.targeted
    }

    /// The impairment in force.
    #[must_use]
    pub const fn impaired(&self) -> Option<&Impaired> {
        self.impaired.as_ref()
    }

    /// When the agent was lost, if it was.
    #[must_use]
    pub fn lost_at(&self) -> Option<u64> {
        Some(self.lost.load(Ordering::Relaxed)).filter(|at| *at != 0)
    }

    /// Ends the measurement and waits until the agent has sent what is outstanding, for at most
    /// `patience` without a word from it. Keep the users' sockets open until this returns: requests
    /// that were not finished are then still visible in the kernel as such.
    #[must_use]
    pub fn finish(self) -> KernelData {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| KernelData {
            targeted: Some(self.targeted),
            impaired: self.impaired,
            lost_at: Some(now_ns()),
            notices: vec!["the pairing thread crashed; what the agent sent is gone".to_owned()],
            ..KernelData::default()
        })
    }
}

/// Opens a session: pairs, targets, impairs, starts the probes. `patience` bounds the wait for the
/// agent's next word after the run.
///
/// # Errors
/// [`PairError`], with the agent's own sentence where it refused; nothing is left running.
pub fn begin(setup: &Setup, patience: Duration) -> Result<Session, PairError> {
    let mut opening = Opening::connect(&setup.socket)?;
    opening.hello()?;
    let request = TargetRequest { address: setup.target, db_ports: setup.db_ports.clone() };
    opening.send(&ToAgent::Target(request), "to the target")?;
    let targeted = opening.answer("the target", |message| match message {
        ToLoadgen::Targeted(targeted) => Some(targeted),
        _ => None,
    })?;
    let impaired = match &setup.delay {
        Some(delay) => Some(opening.impair(delay, setup.lease)?),
        None => None,
    };
    opening.send(&ToAgent::Start, "to the start")?;
    let started_at = opening.answer("the start", |message| match message {
        ToLoadgen::Started { at_ns } => Some(at_ns),
        _ => None,
    })?;
    opening.collector.data.targeted = Some(targeted.clone());
    opening.collector.data.impaired.clone_from(&impaired);
    opening.collector.data.started_at = started_at;

    let stop = Arc::new(AtomicBool::new(false));
    let lost = Arc::new(AtomicU64::new(0));
    let mut keeper = Keeper {
        link: opening.link,
        collector: opening.collector,
        stop: Arc::clone(&stop),
        lost: Arc::clone(&lost),
        renew_every: (setup.lease / 3).min(LONGEST_SILENCE),
        impaired: impaired.is_some(),
        patience,
    };
    let thread = std::thread::Builder::new()
        .name("pair".to_owned())
        .spawn(move || {
            keeper.keep();
            keeper.collector.data
        })
        .map_err(PairError::Thread)?;
    Ok(Session { thread, stop, lost, targeted, impaired })
}

/// A session before its probes have started.
struct Opening {
    link: Link,
    collector: Collector,
}

impl Opening {
    fn connect(socket: &Path) -> Result<Self, PairError> {
        let link = Link::connect(socket).map_err(|error| match error.kind() {
            std::io::ErrorKind::PermissionDenied => PairError::NotAllowed {
                socket: socket.to_owned(),
                uid: nix::unistd::geteuid().as_raw(),
            },
            _ => PairError::NoAgent { socket: socket.to_owned(), error },
        })?;
        Ok(Self { link, collector: Collector::default() })
    }

    fn hello(&mut self) -> Result<(), PairError> {
        let ours = read_proc("/proc/sys/kernel/random/boot_id")?;
        let hello = Hello {
            tool: concat!("loadgen ", env!("CARGO_PKG_VERSION")).to_owned(),
            version: VERSION,
            boot_id: ours.clone(),
            kernel: read_proc("/proc/sys/kernel/osrelease")?,
        };
        self.send(&ToAgent::Hello(hello), "at the greeting")?;
        let agent = self.answer("the greeting", |message| match message {
            ToLoadgen::Hello(hello) => Some(hello),
            _ => None,
        })?;
        if agent.boot_id == ours {
            Ok(())
        } else {
            Err(PairError::OtherClock { theirs: agent.boot_id, ours })
        }
    }

    fn impair(&mut self, delay: &Delay, lease: Duration) -> Result<Impaired, PairError> {
        let request = ImpairRequest {
            device: delay.device.clone(),
            delay_ns: u64::try_from(delay.delay.as_nanos()).unwrap_or(u64::MAX),
            lease_ms: u32::try_from(lease.as_millis()).unwrap_or(u32::MAX),
        };
        self.send(&ToAgent::Impair(request), "to the delay")?;
        self.answer("the delay", |message| match message {
            ToLoadgen::Impaired(impaired) => Some(impaired),
            _ => None,
        })
    }

    fn send(&mut self, message: &ToAgent, during: &'static str) -> Result<(), PairError> {
        // A peer that refuses may close before it has read: what it said comes first.
        match self.link.send(message) {
            Ok(()) | Err(LinkError::Io(_)) => Ok(()),
            Err(error) => Err(PairError::Link { during, error }),
        }
    }

    /// Waits for the answer that `wanted` picks out; notices and records may come before it.
    fn answer<T>(
        &mut self,
        what: &'static str,
        wanted: impl Fn(ToLoadgen) -> Option<T>,
    ) -> Result<T, PairError> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        let link = |error| PairError::Link { during: "before the run", error };
        while Instant::now() < deadline {
            match self.link.receive(LOOK_UP).map_err(link)? {
                None => {}
                Some(ToLoadgen::Error(reply)) => return Err(PairError::Refused { what, reply }),
                Some(ToLoadgen::Bye) => return Err(link(LinkError::Closed)),
                Some(message) if Collector::takes(&message) => {
                    self.collector.take(now_ns(), message).map_err(link)?;
                }
                Some(message) => return wanted(message).ok_or(PairError::Unexpected(what)),
            }
        }
        Err(PairError::Silent(what))
    }
}

/// Owns the socket while the run lasts.
struct Keeper {
    link: Link,
    collector: Collector,
    stop: Arc<AtomicBool>,
    lost: Arc<AtomicU64>,
    renew_every: Duration,
    impaired: bool,
    patience: Duration,
}

impl Keeper {
    fn keep(&mut self) {
        if let Err(error) = self.measure().and_then(|()| self.stop()) {
            let now = now_ns();
            self.lost.store(now, Ordering::Relaxed);
            self.collector.data.lost_at = Some(now);
            self.collector.data.notices.push(format!("the agent was lost: {error}"));
            return;
        }
        // The measurement is whole: what goes wrong from here on loses none of it.
        if self.impaired {
            let _ = self.clear();
        }
        let _ = self.link.send(&ToAgent::Bye);
    }

    /// Keeps what comes and renews until the run is over.
    fn measure(&mut self) -> Result<(), LinkError> {
        let mut renewed = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            if renewed.elapsed() >= self.renew_every {
                self.link.send(&ToAgent::Renew)?;
                renewed = Instant::now();
            }
            let rest = self.renew_every.saturating_sub(renewed.elapsed()).min(LOOK_UP);
            match self.link.receive(rest)? {
                None => {}
                Some(ToLoadgen::Bye) => return Err(LinkError::Closed),
                Some(message) => self.collector.take(now_ns(), message)?,
            }
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), LinkError> {
        self.link.send(&ToAgent::Stop)?;
        self.until(|collector| collector.data.totals.is_some())
    }

    fn clear(&mut self) -> Result<(), LinkError> {
        self.collector.cleared = false;
        self.link.send(&ToAgent::Clear)?;
        self.until(|collector| collector.cleared)
    }

    fn until(&mut self, done: impl Fn(&Collector) -> bool) -> Result<(), LinkError> {
        let mut heard = Instant::now();
        let mut renewed = heard;
        while !done(&self.collector) {
            if renewed.elapsed() >= self.renew_every {
                self.link.send(&ToAgent::Renew)?;
                renewed = Instant::now();
            }
            match self.link.receive(LOOK_UP)? {
                None if heard.elapsed() > self.patience => {
                    return Err(LinkError::Silent(self.patience));
                }
                None => {}
                Some(ToLoadgen::Bye) => return Err(LinkError::Closed),
                Some(message) => {
                    heard = Instant::now();
                    self.collector.take(now_ns(), message)?;
                }
            }
        }
        Ok(())
    }
}

fn read_proc(path: &'static str) -> Result<String, PairError> {
    let text = std::fs::read_to_string(path).map_err(|error| PairError::Proc { path, error })?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
#[path = "pair/tests.rs"]
mod tests;
