//! One engine at work on one interface.

use std::time::Duration;

use super::active::End;
use super::error::InjectError;
use super::outcome::Outcome;
use super::registry::Entry;
use crate::model::impairment::{Direction, Engine, Impairment};
use crate::model::netem::{Memory, Request};
use crate::sys::btf::KernelTypes;
use crate::sys::guardian::{Guardian, Ward};
use crate::sys::netem;
use crate::sys::netlink::Conn;
use crate::sys::nfqueue::{Delay, NfqueueError};
use crate::sys::qdisc::QdiscError;
use crate::sys::receipt::{Got, Stays};

/// An engine in force.
#[derive(Debug)]
pub(super) enum Running {
    /// The kernel's own, with the process that takes it away should this one be killed.
    Netem {
        route: Conn,
        ward: Ward,
        guardian: Guardian,
        stays: Result<Box<Stays>, String>,
        memory: Memory,
    },
    /// Ours.
    Nfqueue(Delay),
}

/// How far a change goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Anything may be another; receipts begin anew.
    Whole,
    /// Only the delay; receipts begin anew.
    Phase,
    /// Only the delay, on a ramp; receipts go on.
    Ramp,
}

/// Why it is not what it was to be changed into.
#[derive(Debug)]
pub(super) enum Unchanged {
    /// It is what it was.
    AsBefore(InjectError),
    /// It may be anything.
    Unknown(InjectError),
}

impl Running {
    /// Starts the engine that `entry` names, in the calling thread's namespace. Returns it and the
    /// delay it has.
    pub(super) fn start(
        mut route: Conn,
        entry: &Entry,
        types: &Result<KernelTypes, String>,
    ) -> Result<(Self, Duration), InjectError> {
        let delay = entry.impairment.delay;
        match (entry.engine, &entry.before) {
            (Engine::Netem, Some(before)) => {
                let ward = Ward { index: entry.index, before: before.clone() };
                let guardian = Guardian::start(&ward).map_err(|source| InjectError::Kernel {
                    action: "start the guardian process".to_owned(),
                    source,
                })?;
                // Before netem is there, so that no packet of it is missed.
                let mut stays = watch(entry, types);
                let request = Request::from(&entry.impairment);
                let mut ifb_is_there = |way, ifb| watch_ifb(&mut stays, way, ifb);
                let filter = &entry.filter;
                let delay = netem::add(
                    &mut route,
                    entry.index,
                    &request,
                    before,
                    filter,
                    &mut ifb_is_there,
                )
                .map_err(|error| of_qdisc(error, entry))?;
                let memory = Memory::default().with(&request);
                Ok((Self::Netem { route, ward, guardian, stays, memory }, delay))
            }
            _ => {
                let Request { options, delay_table, .. } = Request::from(&entry.impairment);
                let Entry { index, direction, filter, .. } = entry;
                Delay::start_filtered(*index, &options, delay_table.as_deref(), *direction, filter)
                    .map(|running| (Self::Nfqueue(running), delay))
                    .map_err(|error| of_nfqueue(error, entry))
            }
        }
    }

    /// Changes it in place from `old` to `new`, which but for [`Way::Whole`] differ in the delay.
    /// Returns the delay that it has, and how many packets
    /// were held; those keep what they got, and are not in the receipts that follow.
    pub(super) fn change(
        &mut self,
        entry: &Entry,
        old: &Impairment,
        new: &Impairment,
        way: Way,
    ) -> Result<(Duration, u64), Unchanged> {
        let request = Request::from(new);
        match self {
            Self::Netem { route, ward, stays, memory, .. } => {
                if let Some(what) = memory.spoils(&request) {
                    let device = entry.device.clone();
                    return Err(Unchanged::AsBefore(InjectError::Tables { device, what }));
                }
                let delay = match netem::change(route, ward.index, &request, &ward.before) {
                    Ok(delay) => delay,
                    Err(error) => {
                        let error = of_qdisc(error, entry);
                        let old = Request::from(old);
                        return Err(match netem::change(route, ward.index, &old, &ward.before) {
                            Ok(_) => Unchanged::AsBefore(error),
                            Err(_) => Unchanged::Unknown(error),
                        });
                    }
                };
                *memory = memory.with(&request);
                if way == Way::Ramp {
                    return Ok((delay, 0));
                }
                let held = netem::held(route, ward.index, &ward.before);
                if let Ok(watched) = stays
                    && let Err(error) = watched.start_over()
                {
                    *stays = Err(error.to_string());
                }
                Ok((delay, held))
            }
            Self::Nfqueue(delay) if way != Way::Whole => {
                Ok((new.delay, delay.set_latency(new.delay, way == Way::Phase)))
            }
            Self::Nfqueue(delay) => delay
                .change(&request.options, request.delay_table.as_deref())
                .map(|held| (new.delay, held))
                .map_err(|error| Unchanged::AsBefore(of_nfqueue(error, entry))),
        }
    }

    /// What it did so far.
    pub(super) fn account(&mut self) -> Outcome {
        match self {
            Self::Netem { route, ward, stays, .. } => {
                let dropped = netem::drops(route, ward.index, &ward.before);
                Outcome::of_netem(got(stays), dropped)
            }
            Self::Nfqueue(delay) => delay.account().into(),
        }
    }

    /// What the engine does worse here than elsewhere, if it does.
    pub(super) fn weakness(&self) -> Option<String> {
        match self {
            Self::Netem { .. } => None,
            Self::Nfqueue(delay) => delay.weakness().map(str::to_owned),
        }
    }

    /// What cannot be measured here, and why.
    pub(super) fn unmeasured(&self) -> Option<String> {
        match self {
            Self::Netem { stays, .. } => {
                stays.as_ref().err().map(|why| format!("what packets get is not measured: {why}"))
            }
            Self::Nfqueue(_) => None,
        }
    }

    /// How it ended by itself, if it did. To be called on a thread in its namespace: a guardian that
    /// is gone is replaced.
    pub(super) fn failure(&mut self) -> Option<End> {
        match self {
            Self::Netem { route, ward, guardian, .. } => {
                match netem::failure(route, ward.index, &ward.before) {
                    Ok(Some(reason)) => Some(End::Failed(reason)),
                    Ok(None) => replace_if_gone(guardian, ward),
                    Err(QdiscError::NoDevice) => Some(End::DeviceVanished),
                    // The next look asks again.
                    Err(_) => None,
                }
            }
            Self::Nfqueue(delay) => delay.failure().map(End::Failed),
        }
    }

    /// Ends it and checks that the interface is as it was.
    pub(super) fn clear(mut self, entry: &Entry) -> Result<Outcome, InjectError> {
        let account = match &mut self {
            Self::Netem { .. } => self.account(),
            // It tells its own account, of the packets that it lets go as well.
            Self::Nfqueue(_) => Outcome::default(),
        };
        match self {
            Self::Netem { mut route, ward, guardian, .. } => {
                let restored = netem::restore(&mut route, ward.index, &ward.before);
                drop(guardian);
                let lost = restored.map_err(|error| of_qdisc(error, entry))?.lost;
                Ok(Outcome { lost, ..account })
            }
            Self::Nfqueue(delay) => {
                delay.clear().map(Outcome::from).map_err(|error| of_nfqueue(error, entry))
            }
        }
    }
}

/// Prepares to watch what packets get: of what leaves the interface at once, of what goes through an
/// ifb when that is there.
fn watch(entry: &Entry, types: &Result<KernelTypes, String>) -> Result<Box<Stays>, String> {
    let mut stays = Stays::attach(types.as_ref()?).map_err(|error| error.to_string())?;
    if entry.direction.leaves() && entry.filter.is_all() {
        stays.watch(entry.index).map_err(|error| error.to_string())?;
    }
    Ok(Box::new(stays))
}

fn watch_ifb(stays: &mut Result<Box<Stays>, String>, way: Direction, ifb: i32) {
    let failed = stays.as_mut().ok().and_then(|stays| {
        if way.leaves() { stays.watch(ifb).err() } else { stays.watch_ifb(ifb).err() }
    });
    if let Some(error) = failed {
        *stays = Err(error.to_string());
    }
}

fn got(stays: &Result<Box<Stays>, String>) -> Option<Got> {
    stays.as_ref().ok()?.got().ok()
}

/// An agent without a guardian would leave its qdisc behind if it were killed.
fn replace_if_gone(guardian: &mut Guardian, ward: &Ward) -> Option<End> {
    if guardian.is_alive() {
        return None;
    }
    match Guardian::start(ward) {
        Ok(next) => {
            *guardian = next;
            None
        }
        Err(error) => Some(End::Failed(format!(
            "its guardian process ended, and no other could be started: {error}"
        ))),
    }
}

fn already(entry: &Entry) -> InjectError {
    InjectError::AlreadyImpaired {
        device: entry.device.clone(),
        netns: entry.netns.clone(),
        by: String::new(),
        clear: entry.clear_command(),
    }
}

pub(super) fn of_qdisc(error: QdiscError, entry: &Entry) -> InjectError {
    let device = entry.device.clone();
    match error {
        QdiscError::Exists => already(entry),
        error @ QdiscError::Picker(_) => InjectError::Failed { device, reason: error.to_string() },
        QdiscError::Foreign { kind, handle } => InjectError::ForeignQdisc { device, kind, handle },
        QdiscError::Irreplaceable { kind, reason } => {
            InjectError::Irreplaceable { device, kind, reason }
        }
        QdiscError::ForeignIngress { kind } => InjectError::ForeignIngress { device, kind },
        QdiscError::NoDevice => InjectError::DeviceVanished(device),
        QdiscError::Unknown { kernel, options } => InjectError::KernelLacks { kernel, options },
        QdiscError::ReadBack { asked, got } => InjectError::ReadBack { device, asked, got },
        QdiscError::NotRestored(what) => InjectError::NotRestored { device, what },
        QdiscError::Refused { action, refusal } => InjectError::Kernel {
            action: format!("{action} (interface `{device}`)"),
            source: refusal.into(),
        },
    }
}

pub(super) fn of_nfqueue(error: NfqueueError, entry: &Entry) -> InjectError {
    match error {
        NfqueueError::Exists => already(entry),
        other => InjectError::Failed { device: entry.device.clone(), reason: other.to_string() },
    }
}
