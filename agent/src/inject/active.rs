//! Puts an impairment into force and holds it there.

use std::os::unix::net::UnixListener;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::by::By;
use super::control;
use super::engines::{choose, require_root};
use super::error::InjectError;
use super::outcome::Outcome;
use super::recover;
use super::registry::{self, Entry};
use super::running::{Running, of_qdisc};
use super::shared::{Now, Shared, State};
use crate::model::filter::PacketFilter;
use crate::model::impairment::{Direction, Engine, EngineChoice, Impairment};
use crate::model::rtlink;
use crate::model::schedule::Schedule;
use crate::sys::btf::KernelTypes;
use crate::sys::link::{self, Link};
use crate::sys::netem;
use crate::sys::netlink::{Conn, Refusal};
use crate::sys::netns::Netns;
use crate::sys::netns_end::Presence;
use crate::sys::qdisc::{self, QdiscError};
use crate::sys::retransmissions::Watch;

/// Where an impairment goes: what leaves `device` in `netns`, arrives there, or both, and is in the
/// filter.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Network namespace.
    pub netns: Netns,
    /// Name of the interface in it.
    pub device: String,
    /// Which way packets go.
    pub direction: Direction,
    /// Which of those packets.
    pub filter: PacketFilter,
    /// Whether a root qdisc that somebody configured may be put aside, and back afterwards.
    pub replace: bool,
    /// Who wants it.
    pub by: By,
}

/// How an impairment goes with time.
#[derive(Clone, Debug, Default)]
pub struct Course {
    /// How its delay goes. Whoever holds the impairment [follows it](ActiveImpairment::set_delay).
    pub schedule: Option<Schedule>,
    /// When its holder will end it.
    pub length: Option<Duration>,
}

/// How an impairment ended other than by its holder's [`ActiveImpairment::clear`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// `agent inject clear` asked for it.
    Cleared,
    /// The interface is gone.
    DeviceVanished,
    /// The namespace is gone: its name, or all who were in it.
    NamespaceGone,
    /// The engine failed, with the reason.
    Failed(String),
}

/// An impairment in force. It ends with [`Self::clear`] or when this is dropped, and if the process
/// is killed, within a second.
#[derive(Debug)]
pub struct ActiveImpairment {
    shared: Arc<Shared>,
    control: Option<JoinHandle<()>>,
}

/// Puts `impairment` into force. Blocks for some milliseconds; makes its own threads and needs no
/// async runtime. With netem it starts this program again as `inject guardian`, so only `agent` can
/// do that.
///
/// # Errors
/// [`InjectError`]; nothing is left behind then.
pub fn apply(
    impairment: &Impairment,
    scope: &Scope,
    choice: EngineChoice,
) -> Result<ActiveImpairment, InjectError> {
    apply_for(impairment, scope, choice, &Course::default())
}

/// As [`apply`], for a time or by a schedule: with one, the delay of `impairment` is that of its
/// beginning.
///
/// # Errors
/// As [`apply`].
pub fn apply_for(
    impairment: &Impairment,
    scope: &Scope,
    choice: EngineChoice,
    course: &Course,
) -> Result<ActiveImpairment, InjectError> {
    require_root()?;
    let mut impairment = impairment.clone();
    if let Some(schedule) = &course.schedule {
        // What makes sense at its longest does at any time.
        impairment.delay = schedule.longest();
    }
    impairment.check()?;
    scope.filter.check()?;
    registry::prepare()?;
    let _lock = registry::lock()?;
    // What cannot be put back elsewhere is no reason not to begin here.
    let here = scope.netns.inode();
    let failed = recover::stale(|_| true)?.failed;
    if let Some((_, error)) = failed.into_iter().find(|(entry, _)| entry.netns_inode == here) {
        return Err(error);
    }
    let link = scope.netns.run(|| find(scope))??;
    let (engine, why) = choose(choice, &impairment, scope.direction)?;
    if let Some(schedule) = &course.schedule {
        impairment.delay = schedule.delay_at(Duration::ZERO);
        match impairment.remembers() {
            Some(what) if engine == Engine::Netem && schedule.has_ramp() => {
                return Err(InjectError::RampForgets(what));
            }
            _ => {}
        }
    }
    let pid = std::process::id();
    let (id, number) = registry::new_id();
    let entry = Entry {
        id,
        pid,
        started: registry::start_time(pid).unwrap_or(0),
        engine,
        impairment,
        direction: direction(scope, engine, &link),
        filter: scope.filter.clone(),
        device: link.name,
        index: link.index,
        netns: scope.netns.label().to_owned(),
        origin: scope.netns.origin().clone(),
        netns_inode: scope.netns.inode(),
        since: registry::unix_now(),
        by: scope.by.clone(),
        schedule: course.schedule.clone(),
        until: course
            .length
            .map(|length| registry::unix_now() + length.as_millis().div_ceil(1000) as u64),
        before: None,
    };
    refuse_second(&entry)?;
    let presence = Presence::of(&scope.netns);
    // Sockets and the guardian belong to the namespace of the thread that makes them.
    let own = qdisc::own_handle(number);
    scope.netns.run(|| start(entry, own, why, presence, scope.replace))?
}

/// On loopback every packet leaves and arrives: once is enough, as with the other engine.
fn direction(scope: &Scope, engine: Engine, link: &Link) -> Direction {
    if engine == Engine::Netem && link.hardware == rtlink::ARPHRD_LOOPBACK {
        Direction::Egress
    } else {
        scope.direction
    }
}

fn kernel(action: &'static str) -> impl Fn(Refusal) -> InjectError {
    move |refusal| InjectError::Kernel { action: action.to_owned(), source: refusal.into() }
}

fn find(scope: &Scope) -> Result<Link, InjectError> {
    let mut route = link::open().map_err(kernel("open rtnetlink"))?;
    let links = link::list(&mut route).map_err(kernel("list the interfaces"))?;
    links.iter().find(|link| link.name == scope.device).cloned().ok_or_else(|| {
        InjectError::NoDevice {
            device: scope.device.clone(),
            netns: scope.netns.label().to_owned(),
            existing: links.into_iter().map(|link| link.name).collect(),
        }
    })
}

fn refuse_second(entry: &Entry) -> Result<(), InjectError> {
    let same =
        |other: &&Entry| (other.netns_inode, other.index) == (entry.netns_inode, entry.index);
    match registry::read()?.0.iter().filter(same).find(|other| other.is_live()) {
        None => Ok(()),
        Some(other) => Err(InjectError::AlreadyImpaired {
            device: entry.device.clone(),
            netns: entry.netns.clone(),
            by: format!(" by process {}, for {}", other.pid, other.by),
            clear: entry.clear_command(),
        }),
    }
}

fn start(
    mut entry: Entry,
    own: u32,
    why: String,
    presence: Presence,
    replace: bool,
) -> Result<ActiveImpairment, InjectError> {
    let mut route = link::open().map_err(kernel("open rtnetlink"))?;
    let events = Conn::open_link_events().map_err(kernel("listen for news of interfaces"))?;
    match entry.engine {
        Engine::Netem => {
            let filtered = !entry.filter.is_all();
            let before =
                netem::look(&mut route, entry.index, entry.direction, own, (replace, filtered))
                    .map_err(|error| of_qdisc(error, &entry))?;
            entry.before = Some(before);
        }
        // nfqueue goes before any qdisc and gets along with all of them but ours.
        Engine::Nfqueue => match qdisc::look(&mut route, entry.index, own, false) {
            Ok(_) | Err(QdiscError::Foreign { .. }) => {}
            Err(error) => return Err(of_qdisc(error, &entry)),
        },
    }
    // On disk first, so that there is never an impairment that no file tells of.
    entry.write()?;
    let begun = begin(route, events, &entry, why, presence);
    if begun.is_err() {
        match recover::put_back(&entry) {
            Ok(()) => entry.remove(),
            Err(_) => entry.abandon(),
        }
    }
    begun
}

fn begin(
    mut route: Conn,
    events: Conn,
    entry: &Entry,
    why: String,
    presence: Presence,
) -> Result<ActiveImpairment, InjectError> {
    let local = |action: &str, source| InjectError::Kernel { action: action.to_owned(), source };
    let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|errno| local("make an eventfd", errno.into()))?;
    let socket = entry.socket();
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)
        .map_err(|source| local(&format!("bind {}", socket.display()), source))?;
    let types = KernelTypes::load().map_err(|error| error.to_string());
    // Before anything is delayed, so that nothing is missed.
    let watch = watch(&mut route, entry.index, &types);
    let (running, delay) = Running::start(route, entry, &types)?;
    let shared = Arc::new(Shared {
        entry: entry.clone(),
        now: Mutex::new(Now { impairment: entry.impairment.clone(), delay }),
        why,
        state: Mutex::new(State::InForce(running, watch)),
        changed: Condvar::new(),
        stop,
    });
    let mut active = ActiveImpairment { shared: Arc::clone(&shared), control: None };
    // From here on a failure drops `active`, which clears.
    let thread = std::thread::Builder::new()
        .name("inject-control".to_owned())
        .spawn(move || control::run(&shared, &listener, &events, &presence))
        .map_err(|source| local("start a thread", source))?;
    active.control = Some(thread);
    Ok(active)
}

fn watch(
    route: &mut Conn,
    index: i32,
    types: &Result<KernelTypes, String>,
) -> Result<Watch, String> {
    let link = link::get(route, index).map_err(|refusal| refusal.to_string())?;
    let is_loopback = link.hardware == rtlink::ARPHRD_LOOPBACK;
    Watch::start(types.as_ref()?, index, is_loopback).map_err(|error| error.to_string())
}

impl ActiveImpairment {
    /// Which engine it is.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.shared.entry.engine
    }

    /// Why it is that engine, in words.
    #[must_use]
    pub fn why_engine(&self) -> &str {
        &self.shared.why
    }

    /// What is injected now.
    #[must_use]
    pub fn impairment(&self) -> Impairment {
        self.shared.impairment()
    }

    /// Injects something else from now on, without losing or hurrying a packet that is held: those
    /// keep the time that they were given when they came. Returns what packets got before.
    ///
    /// # Errors
    /// It is as it was then, or has ended.
    pub fn change(&self, impairment: &Impairment) -> Result<Outcome, InjectError> {
        self.shared.change(impairment)
    }

    /// Delays by this from now on, and does all else as before. With `anew` the receipt is of what
    /// comes from now on, the entry on disk is written, and what packets got before is returned.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub fn set_delay(&self, delay: Duration, anew: bool) -> Result<Option<Outcome>, InjectError> {
        self.shared.set_delay(delay, anew)
    }

    /// Which way packets go.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.shared.entry.direction
    }

    /// The interface.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.shared.entry.device
    }

    /// The delay as the engine has it, read back where the kernel can be asked.
    #[must_use]
    pub fn delay(&self) -> Duration {
        self.shared.now().delay
    }

    /// Why packets are held where TCP feels it, if they are: a connection then keeps only about two
    /// segments on their way.
    #[must_use]
    pub fn weakness(&self) -> Option<String> {
        match &*self.shared.lock() {
            State::InForce(running, _) => running.weakness(),
            _ => None,
        }
    }

    /// What cannot be measured here, and why, in sentences.
    #[must_use]
    pub fn unmeasured(&self) -> Vec<String> {
        let State::InForce(running, watch) = &*self.shared.lock() else { return vec![] };
        let sent_again =
            watch.as_ref().err().map(|why| format!("what TCP sends again is not counted: {why}"));
        // The rest of a refusal is the verifier's account of it.
        let first_line = |text: String| text.lines().next().unwrap_or_default().to_owned();
        running.unmeasured().into_iter().chain(sent_again).map(first_line).collect()
    }

    /// What it did so far, or in all once it has ended. Costs some system calls.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.shared.outcome()
    }

    /// Whether it has ended by itself or by somebody else's wish; poll this while it matters.
    #[must_use]
    pub fn ended(&self) -> Option<End> {
        match &*self.shared.lock() {
            State::Ended(end, _) => end.clone(),
            _ => None,
        }
    }

    /// Waits until it ends by itself or by somebody else's wish, at most for `timeout`.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> Option<End> {
        let in_force = |state: &mut State| !matches!(state, State::Ended(..));
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), timeout, in_force);
        match &*waited.unwrap_or_else(PoisonError::into_inner).0 {
            State::Ended(end, _) => end.clone(),
            _ => None,
        }
    }

    /// Ends it and checks that the interface is as it was before. Blocks for some milliseconds.
    ///
    /// # Errors
    /// Something is left, or it had ended before by failure.
    pub fn clear(mut self) -> Result<Outcome, InjectError> {
        let outcome = self.shared.finish(None);
        self.stop_control();
        let Entry { device, netns, .. } = &self.shared.entry;
        let why = match self.ended() {
            None | Some(End::Cleared) => return outcome,
            Some(End::DeviceVanished) => InjectError::DeviceVanished(device.clone()),
            Some(End::NamespaceGone) => {
                InjectError::NamespaceGone { device: device.clone(), netns: netns.clone() }
            }
            Some(End::Failed(reason)) => self.shared.failed(reason),
        };
        Err(match outcome {
            Ok(_) => why,
            Err(left) => self.shared.failed(format!("{why}. And then: {left}")),
        })
    }

    fn stop_control(&mut self) {
        if let Some(thread) = self.control.take() {
            // It can only fail by being full, and then it wakes as well.
            let _ = self.shared.stop.write(1);
            let _ = thread.join();
        }
    }
}

impl Drop for ActiveImpairment {
    fn drop(&mut self) {
        // A second end after `clear` does nothing; an error has nobody to go to here.
        let _ = self.shared.finish(None);
        self.stop_control();
    }
}
