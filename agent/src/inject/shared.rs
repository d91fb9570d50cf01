//! An impairment as its holder and the thread beside it share it: in force, changed, or ended.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::eventfd::EventFd;

use super::active::End;
use super::error::InjectError;
use super::outcome::Outcome;
use super::registry::Entry;
use super::running::{Running, Unchanged, Way};
use crate::model::impairment::Impairment;
use crate::sys::retransmissions::Watch;

/// What the holder and the control thread share.
#[derive(Debug)]
pub(super) struct Shared {
    /// As it was at first.
    pub(super) entry: Entry,
    pub(super) now: Mutex<Now>,
    pub(super) why: String,
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    pub(super) stop: EventFd,
}

/// What is in force, changes included.
#[derive(Clone, Debug)]
pub(super) struct Now {
    pub(super) impairment: Impairment,
    /// As the engine has it.
    pub(super) delay: Duration,
}

#[derive(Debug)]
pub(super) enum State {
    /// With what counts TCP's retransmissions, or why nothing does.
    InForce(Running, Result<Watch, String>),
    /// Ended, in which way, with what outcome.
    Ended(Option<End>, Result<Outcome, String>),
    /// Only while it is being ended.
    Ending,
}

fn account(running: &mut Running, watch: &Result<Watch, String>) -> Outcome {
    let retransmissions = watch.as_ref().ok().and_then(|watch| watch.count().ok());
    Outcome { retransmissions, ..running.account() }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Now {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn impairment(&self) -> Impairment {
        self.now().impairment
    }

    /// The entry as it has to be on disk where `impairment` is in force.
    fn entry_with(&self, impairment: &Impairment) -> Entry {
        Entry { impairment: impairment.clone(), ..self.entry.clone() }
    }

    /// Changes it in place. Packets that are held keep their times. What packets got before is
    /// returned, and told no more; `lost` in it is none, `held_over` those that are in neither.
    ///
    /// # Errors
    /// It is as it was then, or has ended.
    pub(super) fn change(&self, impairment: &Impairment) -> Result<Outcome, InjectError> {
        impairment.check()?;
        let Entry { engine, direction, .. } = &self.entry;
        if let Some(feature) = engine.lacks(impairment, *direction) {
            return Err(InjectError::Lacks { engine: *engine, feature, because: String::new() });
        }
        self.put(impairment, Way::Whole)
    }

    /// Delays by this from now on, and does all else as before; with `anew`, receipts begin anew.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub(super) fn set_delay(
        &self,
        delay: Duration,
        anew: bool,
    ) -> Result<Option<Outcome>, InjectError> {
        let impairment = Impairment { delay, ..self.impairment() };
        let outcome = self.put(&impairment, if anew { Way::Phase } else { Way::Ramp })?;
        Ok(anew.then_some(outcome))
    }

    fn put(&self, impairment: &Impairment, way: Way) -> Result<Outcome, InjectError> {
        let mut state = self.lock();
        let State::InForce(running, watch) = &mut *state else {
            return Err(self.failed("it has ended".to_owned()));
        };
        let outcome = match way {
            Way::Ramp => Outcome::default(),
            Way::Whole | Way::Phase => account(running, watch),
        };
        let before = self.now().impairment;
        if way == Way::Whole {
            // First, so that what is refused leaves all as it was. Locked all the while, so that no
            // end overtakes it and leaves a file of nothing. Of a schedule the file tells the whole
            // already.
            self.entry_with(impairment).write()?;
        }
        let changed = running.change(&self.entry, &before, impairment, way);
        let (delay, held_over) = match changed {
            Ok(changed) => changed,
            Err(Unchanged::AsBefore(error)) => {
                if way == Way::Whole {
                    // A file that cannot be written again tells what was refused; what is on an
                    // interface is asked of the kernel, whatever it says.
                    let _ = self.entry_with(&before).write();
                }
                return Err(error);
            }
            Err(Unchanged::Unknown(error)) => {
                drop(state);
                let reason = format!("it could not be changed ({error}), nor changed back");
                // What is in force is not known: better nothing than that.
                self.finish(Some(End::Failed(reason.clone())))?;
                return Err(self.failed(reason));
            }
        };
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) =
            Now { impairment: impairment.clone(), delay };
        Ok(Outcome { held_over, ..outcome })
    }

    /// What it did so far, or in all.
    pub(super) fn outcome(&self) -> Outcome {
        match &mut *self.lock() {
            State::InForce(running, watch) => account(running, watch),
            State::Ended(_, Ok(outcome)) => *outcome,
            _ => Outcome::default(),
        }
    }

    pub(super) fn failure(&self) -> Option<End> {
        match &mut *self.lock() {
            State::InForce(running, _) => running.failure(),
            _ => None,
        }
    }

    /// Ends the impairment, once; later calls get the first one's result.
    pub(super) fn finish(&self, end: Option<End>) -> Result<Outcome, InjectError> {
        let mut state = self.lock();
        let (running, watch) = match std::mem::replace(&mut *state, State::Ending) {
            State::InForce(running, watch) => (running, watch),
            State::Ended(first, outcome) => {
                let again = outcome.clone();
                *state = State::Ended(first, outcome);
                return again.map_err(|reason| self.failed(reason));
            }
            // Unreachable: the lock is held throughout.
            State::Ending => return Err(self.failed("it is being ended already".to_owned())),
        };
        // Before: what taking it away loses is sent again, and is no part of the experiment.
        let retransmissions = watch.ok().and_then(|watch| watch.count().ok());
        let result = running.clear(&self.entry).map(|done| Outcome { retransmissions, ..done });
        let kept = match &result {
            Ok(outcome) => Ok(*outcome),
            Err(error) => Err(error.to_string()),
        };
        *state = State::Ended(end, kept);
        drop(state);
        match &result {
            // What nfqueue made goes with its sockets in any case.
            Err(error) if self.entry.before.is_some() && !error.is_end_of_place() => {
                self.entry_with(&self.impairment()).abandon();
            }
            _ => self.entry.remove(),
        }
        self.changed.notify_all();
        result
    }

    pub(super) fn failed(&self, reason: String) -> InjectError {
        InjectError::Failed { device: self.entry.device.clone(), reason }
    }
}
