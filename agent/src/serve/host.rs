//! The machine as it is: probes, injection and /proc behind the session's traits.

use std::time::Duration;

use agent_common::wire::{
    self, ErrorCode, ErrorReply, Hello, Other, PlanLine, TargetRequest, Targeted,
};

use super::kernel::{Impair, Kernel, Service};
use crate::{
    inject::{self, ActiveImpairment, By, Direction, End, EngineChoice, Outcome, Scope},
    measure::Probes,
    model::{filter::PacketFilter, impairment::Impairment, permission::Place, plan, text},
    sys::{
        clock,
        discover::{self, DiscoverError, Life},
        facts,
        observe::{Observer, Target},
        peer::Peer,
    },
};

/// This machine.
#[derive(Debug)]
pub(super) struct Host {
    plan: Vec<PlanLine>,
}

impl Host {
    /// Asks the kernel what it can do.
    ///
    /// # Errors
    /// It cannot even be asked; `agent doctor` tells more.
    pub(super) fn new() -> Result<Self, crate::sys::observe::ObserveError> {
        let mut lines = plan::plan(&facts::gather()?).lines;
        for line in &mut lines {
            line.reason = line.reason.take().map(text::for_message);
        }
        Ok(Self { plan: lines })
    }
}

impl Kernel for Host {
    fn now_ns(&self) -> u64 {
        clock::monotonic_ns()
    }

    fn hello(&self) -> Hello {
        let read = |path| {
            std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
        };
        Hello {
            tool: format!("agent {}", env!("CARGO_PKG_VERSION")),
            version: wire::VERSION,
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            kernel: read("/proc/sys/kernel/osrelease"),
        }
    }

    fn find(
        &mut self,
        request: &TargetRequest,
        peer: Peer,
    ) -> Result<Box<dyn Service>, ErrorReply> {
        let found = discover::find(request.address, peer.pid).map_err(|error| ErrorReply {
            code: match error {
                DiscoverError::Netns(_) | DiscoverError::Look { .. } => ErrorCode::Kernel,
                _ => ErrorCode::NoTarget,
            },
            message: error.to_string(),
        })?;
        let target = Target {
            netns_cookie: found.listening.cookie,
            port: request.address.port(),
            db_ports: request.db_ports.clone(),
            tgids: found.listening.processes.iter().map(|process| process.pid).collect(),
            client_tgid: peer.pid,
        };
        Ok(Box::new(Local { found, target, plan: self.plan.clone(), peer }))
    }
}

/// A service on this machine.
struct Local {
    found: discover::Service,
    target: Target,
    plan: Vec<PlanLine>,
    /// Who asks.
    peer: Peer,
}

impl Service for Local {
    fn describe(&self) -> Targeted {
        Targeted {
            netns: self.found.listening.cookie,
            processes: self
                .found
                .listening
                .processes
                .iter()
                .take(wire::MAX_BATCH)
                .cloned()
                .collect(),
            plan: self.plan.clone(),
            backlog: self.found.listening.backlog,
            device: self.found.device.clone(),
        }
    }

    fn notice(&self) -> Option<String> {
        let device = &self.found.device;
        (self.found.beside_peer && device != "lo").then(|| {
            format!(
                "the load generator is in the service's network namespace: its packets travel over \
                 lo, which an impairment of {device} does not reach"
            )
        })
    }

    fn attach(&mut self) -> Result<Box<dyn Probes>, ErrorReply> {
        // Target may be long ago.
        self.target.tgids = self.found.listening.current_processes();
        let mut observer = Observer::attach(&self.target).map_err(kernel)?;
        // From here on the fork hook follows children; those born before it are looked up again.
        observer.follow(&self.found.listening.current_processes()).map_err(kernel)?;
        Ok(Box::new(observer))
    }

    fn impair(
        &mut self,
        device: &str,
        impairment: &Impairment,
    ) -> Result<Box<dyn Impair>, ErrorReply> {
        let scope = Scope {
            netns: self.found.listening.netns.clone(),
            device: device.to_owned(),
            direction: Direction::Egress,
            filter: PacketFilter::default(),
            replace: false,
            by: By::session(self.peer),
        };
        let active = inject::apply(impairment, &scope, EngineChoice::Auto).map_err(kernel)?;
        Ok(Box::new(active))
    }

    fn others(&self) -> Result<Vec<Other>, ErrorReply> {
        let found = inject::others::in_force(&self.found.listening.netns).map_err(kernel)?;
        let told = |other: inject::others::Other| Other {
            device: other.device,
            direction: other.direction.name().to_owned(),
            engine: other.engine.name().to_owned(),
            words: text::for_message(other.words),
            delay_ns: nanoseconds(other.delay),
            pid: other.pid,
        };
        Ok(found.into_iter().take(wire::MAX_OTHERS).map(told).collect())
    }

    fn place(&self) -> Place {
        self.found.place.clone()
    }

    fn life(&mut self) -> Life {
        self.found.listening.life()
    }

    fn processes(&self) -> Vec<u32> {
        self.found.listening.processes.iter().map(|process| process.pid).collect()
    }

    fn listen_drops(&self) -> Option<u64> {
        self.found.listening.listen_drops()
    }

    fn thread_name(&self, tgid: u32, tid: u32) -> Option<String> {
        discover::thread_name(tgid, tid)
    }
}

impl Impair for ActiveImpairment {
    fn engine(&self) -> &'static str {
        self.engine().name()
    }

    fn delay_ns(&self) -> u64 {
        nanoseconds(self.delay())
    }

    fn outcome(&self) -> Outcome {
        self.outcome()
    }

    fn ended(&self) -> Option<String> {
        Some(match self.ended()? {
            End::Cleared => "somebody cleared it with `agent inject clear`".to_owned(),
            End::DeviceVanished => "its interface is gone".to_owned(),
            End::NamespaceGone => {
                "its network namespace is gone, or nobody is in it any more".to_owned()
            }
            End::Failed(reason) => reason,
        })
    }

    fn clear(self: Box<Self>) -> Result<Outcome, ErrorReply> {
        (*self).clear().map_err(kernel)
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The kernel's refusal, causes included.
#[allow(clippy::needless_pass_by_value, reason = "made for map_err")]
pub(super) fn kernel(error: impl std::error::Error) -> ErrorReply {
    ErrorReply { code: ErrorCode::Kernel, message: text::with_causes(&error) }
}
