//! The state machine of the pairing protocol: which message is allowed when, and how long a peer may
//! be silent. It decides; `serve` acts and tells it what came of that.

use std::time::Duration;

use agent_common::{
    duration,
    wire::{self, ErrorCode, ErrorReply, ImpairRequest, TargetRequest, ToAgent},
};

use super::{
    impairment::Impairment,
    permission::{Place, Policy, Refusal},
};

/// A peer must have said Hello by then.
pub const GREETING_LIMIT: Duration = Duration::from_secs(5);
/// A peer that neither measures nor impairs may be silent this long.
pub const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Shortest lease.
pub const MIN_LEASE: Duration = Duration::from_millis(100);
/// Longest lease.
pub const MAX_LEASE: Duration = Duration::from_secs(60);

/// What is to be done about a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer with our own Hello.
    Greet,
    /// Find the service; then [`Session::targeted`].
    Find(TargetRequest),
    /// Attach the probes; then [`Session::started`].
    Attach,
    /// Impair; then [`Session::impaired`].
    Impair {
        /// Interface, allowed.
        device: String,
        /// What it gets, allowed and in range.
        impairment: Impairment,
        /// Time without a word after which it ends.
        lease: Duration,
    },
    /// End the impairment; then [`Session::cleared`].
    Clear,
    /// Stop measuring; then [`Session::stopped`].
    Finish,
    /// Nothing: the peer is alive.
    Renewed,
    /// The peer leaves.
    Leave,
}

/// How far a session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing was said yet.
    Greeting,
    /// Hello was said.
    Ready,
    /// A service is chosen.
    Targeted,
    /// Its probes report.
    Measuring,
}

/// One pair's session.
#[derive(Debug)]
pub struct Session {
    policy: Policy,
    stage: Stage,
    device: String,
    place: Place,
    lease: Option<Duration>,
    heard_ns: u64,
}

impl Session {
    /// A peer connected at `now_ns`.
    #[must_use]
    pub fn new(policy: Policy, now_ns: u64) -> Self {
        Self {
            policy,
            stage: Stage::Greeting,
            device: String::new(),
            place: Place::default(),
            lease: None,
            heard_ns: now_ns,
        }
    }

    /// Takes a message.
    ///
    /// # Errors
    /// The refusal that the peer is to get. The session goes on, unless [`Self::greeted`] is false.
    pub fn receive(&mut self, now_ns: u64, message: ToAgent) -> Result<Action, ErrorReply> {
        self.heard(now_ns);
        message.check().map_err(|error| invalid(error.to_string()))?;
        match (message, self.stage) {
            (ToAgent::Bye, _) => Ok(Action::Leave),
            (ToAgent::Hello(hello), Stage::Greeting) => self.greet(now_ns, &hello),
            (_, Stage::Greeting) => Err(invalid("the first message must be Hello")),
            (ToAgent::Hello(_), _) => Err(invalid("Hello was said already")),
            (ToAgent::Renew, _) => Ok(Action::Renewed),
            (ToAgent::Target(request), _) => self.target(request),
            (ToAgent::Start | ToAgent::Impair(_), Stage::Ready) => {
                Err(invalid("no service is chosen yet: send Target first"))
            }
            (ToAgent::Start, Stage::Targeted) => Ok(Action::Attach),
            (ToAgent::Start, Stage::Measuring) => Err(invalid("measuring already")),
            (ToAgent::Impair(request), _) => self.impair(&request),
            (ToAgent::Clear, _) if self.lease.is_some() => Ok(Action::Clear),
            (ToAgent::Clear, _) => Err(invalid("nothing is impaired")),
            (ToAgent::Stop, Stage::Measuring) => Ok(Action::Finish),
            (ToAgent::Stop, _) => Err(invalid("not measuring: send Start first")),
        }
    }

    /// The peer lives: a message came, also if it is refused, or one was being served until now.
    /// Before Hello that buys no time.
    pub fn heard(&mut self, now_ns: u64) {
        if self.greeted() {
            self.heard_ns = now_ns;
        }
    }

    fn greet(&mut self, now_ns: u64, hello: &wire::Hello) -> Result<Action, ErrorReply> {
        if hello.version != wire::VERSION {
            return Err(invalid(format!(
                "{} speaks protocol version {}, this agent version {}: use agent and loadgen of \
                 the same release",
                hello.tool,
                hello.version,
                wire::VERSION
            )));
        }
        self.stage = Stage::Ready;
        self.heard_ns = now_ns;
        Ok(Action::Greet)
    }

    fn target(&self, request: TargetRequest) -> Result<Action, ErrorReply> {
        if self.stage == Stage::Measuring {
            return Err(invalid("measuring already: send Stop before another Target"));
        }
        if self.lease.is_some() {
            return Err(invalid("something is impaired: send Clear before another Target"));
        }
        if request.address.port() == 0 || request.db_ports.contains(&0) {
            return Err(invalid("port 0 is no port that a service can listen on"));
        }
        if request.address.ip().is_unspecified() {
            return Err(invalid(format!(
                "{} names no host: give the address that the load generator connects to",
                request.address.ip()
            )));
        }
        self.policy.may_measure(request.address.port()).map_err(forbidden)?;
        Ok(Action::Find(request))
    }

    fn impair(&self, request: &ImpairRequest) -> Result<Action, ErrorReply> {
        if self.lease.is_some() {
            return Err(invalid("something is impaired already: send Clear first"));
        }
        let lease = Duration::from_millis(u64::from(request.lease_ms));
        if !(MIN_LEASE..=MAX_LEASE).contains(&lease) {
            return Err(invalid(format!(
                "a lease of {} is out of range; give one from {} to {}",
                duration::format(lease),
                duration::format(MIN_LEASE),
                duration::format(MAX_LEASE)
            )));
        }
        let device = request.device.as_ref().unwrap_or(&self.device);
        let delay = Duration::from_nanos(request.delay_ns);
        let impairment =
            Impairment::fixed_delay(delay).map_err(|error| invalid(error.to_string()))?;
        self.policy.may_impair(device, &self.place, delay).map_err(forbidden)?;
        Ok(Action::Impair { device: device.clone(), impairment, lease })
    }

    /// A service was found; `device` is the interface to impair by default, and `place` where all
    /// of its interfaces are.
    pub fn targeted(&mut self, device: String, place: Place) {
        self.stage = Stage::Targeted;
        self.place = place;
        self.device = device;
    }

    /// The service is gone, or another one was looked for in vain.
    pub fn untargeted(&mut self) {
        self.stage = Stage::Ready;
    }

    /// The probes report.
    pub fn started(&mut self) {
        self.stage = Stage::Measuring;
    }

    /// They do not any more.
    pub fn stopped(&mut self) {
        if self.stage == Stage::Measuring {
            self.stage = Stage::Targeted;
        }
    }

    /// The impairment is in force, for as long as the peer is heard.
    pub fn impaired(&mut self, now_ns: u64, lease: Duration) {
        self.lease = Some(lease);
        self.heard(now_ns);
    }

    /// It is gone.
    pub fn cleared(&mut self) {
        self.lease = None;
    }

    /// Whether Hello was said. A refusal before that ends the session.
    #[must_use]
    pub fn greeted(&self) -> bool {
        self.stage != Stage::Greeting
    }

    /// How long the peer may be silent now; None: for ever, since it is written to every second and
    /// a dead one shows by that.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        match (self.stage, self.lease) {
            (Stage::Greeting, _) => Some(GREETING_LIMIT),
            (_, Some(lease)) => Some(lease),
            (Stage::Measuring, None) => None,
            (Stage::Ready | Stage::Targeted, None) => Some(IDLE_LIMIT),
        }
    }

    /// When the peer's silence ends the session.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        self.patience().map(|patience| self.heard_ns.saturating_add(patience.as_nanos() as u64))
    }

    /// The farewell to a peer that was silent for too long, once it was.
    #[must_use]
    pub fn expired(&self, now_ns: u64) -> Option<ErrorReply> {
        if now_ns < self.deadline_ns()? {
            return None;
        }
        let patience = duration::format(self.patience()?);
        Some(invalid(match self.lease {
            Some(_) => format!(
                "nothing was heard for {patience}, the lease: the impairment ends, and the session \
                 with it"
            ),
            None => format!("nothing was heard for {patience}: the session ends"),
        }))
    }
}

fn invalid(message: impl Into<String>) -> ErrorReply {
    ErrorReply { code: ErrorCode::Invalid, message: message.into() }
}

#[allow(clippy::needless_pass_by_value, reason = "made for map_err")]
fn forbidden(refusal: Refusal) -> ErrorReply {
    ErrorReply { code: ErrorCode::Forbidden, message: refusal.to_string() }
}

#[cfg(test)]
mod tests;
