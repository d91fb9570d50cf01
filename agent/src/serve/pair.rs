//! One session with one load generator, from its preamble to the farewell. Runs on a thread of its
//! own, which is also the one that drains the probes: nothing here waits for the peer.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{
    atomic::{AtomicBool, Ordering},
    mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel},
};
use std::time::Duration;

use agent_common::wire::{
    self, Cleared, ErrorCode, ErrorReply, Held, Impaired, Other, ToAgent, ToLoadgen,
};

use super::{
    host,
    inbox::{self, Input},
    kernel::{Impair, Kernel, Service},
    measuring::{Around, Measuring},
    outbox::Outbox,
};
use crate::{
    inject::Outcome,
    model::{
        permission::Policy,
        session::{Action, Session},
    },
    sys::{discover::Life, peer::Peer},
};

/// Messages that may wait while the session is busy; then the peer waits.
const INBOX: usize = 16;
/// The longest that nothing is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often the service is asked whether it lives.
const ALIVE_EVERY_NS: u64 = 1_000_000_000;

/// How a session ended, for the agent's log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The peer said so, or closed the socket.
    Left,
    /// The peer was silent, broke the protocol or did not read; why.
    Dropped(String),
    /// The agent ends.
    Stopped,
}

/// Serves `peer` until it leaves, is dropped, or `stop` is set. `over` is called as soon as nothing
/// more is done for this peer and only the taking down is left.
///
/// # Errors
/// No thread or descriptor is to be had.
pub(super) fn serve(
    stream: UnixStream,
    peer: Peer,
    policy: &Policy,
    kernel: &mut dyn Kernel,
    stop: &AtomicBool,
    over: &dyn Fn(),
) -> io::Result<Ending> {
    let (to_session, inputs) = sync_channel(INBOX);
    let failed = to_session.clone();
    let mut outbox = Outbox::new(&stream, move |error| {
        // If the inbox is full, the reader will tell of the same end.
        let _ = failed.try_send(Input::Failed(error));
    })?;
    outbox.raw(&wire::preamble());
    let reader = std::thread::Builder::new()
        .name("pair-reader".to_owned())
        .spawn(move || inbox::read(stream, &to_session))?;

    let session = Session::new(policy.clone(), kernel.now_ns());
    let mut pair = Pair {
        session,
        peer,
        outbox,
        kernel,
        service: None,
        measuring: None,
        impairment: None,
        next_alive_ns: 0,
        others: None,
        gone: false,
    };
    let ending = pair.run(&inputs, stop);
    over();
    // The impairment first: it is what others suffer from.
    pair.clear();
    pair.measuring = None;
    if ending != Ending::Left {
        pair.outbox.reply(&ToLoadgen::Bye);
    }
    // A reader that waits for room in the inbox, then one that waits for the peer.
    drop(inputs);
    pair.outbox.finish();
    let _ = reader.join();
    Ok(ending)
}

struct Pair<'a> {
    session: Session,
    peer: Peer,
    outbox: Outbox,
    kernel: &'a mut dyn Kernel,
    service: Option<Box<dyn Service>>,
    measuring: Option<Measuring>,
    impairment: Option<Box<dyn Impair>>,
    next_alive_ns: u64,
    /// What the peer was told is in force besides its own impairment, or why that is not known; None
    /// before it measures.
    others: Option<Result<Vec<Other>, String>>,
    /// The peer was told that the service is gone.
    gone: bool,
}

impl Pair<'_> {
    fn run(&mut self, inputs: &Receiver<Input>, stop: &AtomicBool) -> Ending {
        loop {
            if stop.load(Ordering::Relaxed) {
                return Ending::Stopped;
            }
            let now_ns = self.kernel.now_ns();
            self.tick(now_ns);
            // What the peer has said already counts before its silence does.
            let input = match inputs.try_recv() {
                Ok(input) => input,
                Err(TryRecvError::Disconnected) => return Ending::Left,
                Err(TryRecvError::Empty) => {
                    if let Some(farewell) = self.session.expired(now_ns) {
                        return self.drop_peer(farewell);
                    }
                    if self.outbox.stalled() {
                        return Ending::Dropped("it does not read what it is sent".to_owned());
                    }
                    match inputs.recv_timeout(self.nap(now_ns)) {
                        Ok(input) => input,
                        Err(RecvTimeoutError::Timeout) => continue,
                        Err(RecvTimeoutError::Disconnected) => return Ending::Left,
                    }
                }
            };
            if let Some(ending) = self.input(input) {
                return ending;
            }
            // Attaching probes takes a while, in which nobody listened to the peer.
            self.session.heard(self.kernel.now_ns());
        }
    }

    /// How long nothing is due.
    fn nap(&self, now_ns: u64) -> Duration {
        let due_ns = self.measuring.as_ref().map_or(u64::MAX, Measuring::due_ns);
        LOOK_EVERY.min(Duration::from_nanos(due_ns.saturating_sub(now_ns)))
    }

    /// What is due without the peer's doing.
    fn tick(&mut self, now_ns: u64) {
        if let (Some(measuring), Some(service)) = (&mut self.measuring, &self.service) {
            let around =
                Around { service: service.as_ref(), impairment: self.impairment.as_deref() };
            measuring.tick(&around, &mut self.outbox, now_ns);
        }
        if now_ns < self.next_alive_ns {
            return;
        }
        self.next_alive_ns = now_ns + ALIVE_EVERY_NS;
        self.look_after_service();
        self.look_for_others(now_ns);
        let ended = self.impairment.as_ref().and_then(|impairment| impairment.ended());
        if let Some(reason) = ended {
            self.impairment = None;
            self.session.cleared();
            self.error(ErrorCode::Kernel, format!("the impairment has ended: {reason}"));
        }
    }

    /// Whether the service lives, and who it is.
    fn look_after_service(&mut self) {
        let Some(service) = self.service.as_mut().filter(|_| !self.gone) else { return };
        match service.life() {
            Life::Same => {}
            Life::TakenOver => {
                let pids = service.processes();
                let measured = match &mut self.measuring {
                    Some(measuring) => measuring.follow(&pids),
                    None => Ok(()),
                };
                let list: Vec<String> = pids.iter().map(u32::to_string).collect();
                self.outbox.notice(format!(
                    "other processes have taken over the service's socket and are followed from now \
                     on: {}",
                    list.join(", ")
                ));
                if let Err(error) = measured {
                    self.outbox.error(host::kernel(error));
                }
            }
            Life::Gone => {
                self.gone = true;
                self.error(
                    ErrorCode::TargetGone,
                    "the service's processes have ended, or nobody holds its socket any more: \
                     start it again and run again",
                );
            }
        }
    }

    /// Tells a peer that measures what is in force besides its own impairment, if that has changed.
    fn look_for_others(&mut self, now_ns: u64) {
        let (Some(service), Some(_)) = (&self.service, &self.measuring) else { return };
        let found = service.others().map_err(|error| error.message);
        if self.others.as_ref() == Some(&found) {
            return;
        }
        match &found {
            Ok(others) => {
                self.outbox.reply(&ToLoadgen::InForce { at_ns: now_ns, others: others.clone() });
            }
            Err(reason) => self
                .outbox
                .notice(format!("what else impairs the service's network is not known: {reason}")),
        }
        self.others = Some(found);
    }

    /// Takes what came; Some if the session ends by it.
    fn input(&mut self, input: Input) -> Option<Ending> {
        let message = match input {
            Input::Message(message) => message,
            Input::Closed => return Some(Ending::Left),
            Input::Failed(error) => return Some(Ending::Dropped(error.to_string())),
            Input::Broken(error) => return Some(self.drop_peer(invalid(error.to_string()))),
            Input::Truncated => {
                return Some(self.drop_peer(invalid("the stream ended inside a frame")));
            }
        };
        match self.message(message) {
            Ok(leaves) => leaves.then_some(Ending::Left),
            Err(refusal) if self.session.greeted() => {
                self.outbox.error(refusal);
                None
            }
            Err(refusal) => Some(self.drop_peer(refusal)),
        }
    }

    /// Does what a message asks; whether the peer leaves.
    fn message(&mut self, message: ToAgent) -> Result<bool, ErrorReply> {
        let now_ns = self.kernel.now_ns();
        match self.session.receive(now_ns, message)? {
            Action::Greet => self.outbox.reply(&ToLoadgen::Hello(self.kernel.hello())),
            Action::Find(request) => {
                self.session.untargeted();
                self.service = None;
                let service = self.kernel.find(&request, self.peer)?;
                let targeted = service.describe();
                self.session.targeted(targeted.device.clone(), service.place());
                self.gone = false;
                self.outbox.reply(&ToLoadgen::Targeted(targeted));
                if let Some(notice) = service.notice() {
                    self.outbox.notice(notice);
                }
                self.service = Some(service);
            }
            Action::Attach => {
                let service = self.service.as_mut().ok_or_else(no_service)?;
                let probes = service.attach()?;
                let at_ns = self.kernel.now_ns();
                let around =
                    Around { service: service.as_ref(), impairment: self.impairment.as_deref() };
                self.measuring = Some(Measuring::start(probes, &around, &self.outbox, at_ns));
                self.session.started();
                self.outbox.reply(&ToLoadgen::Started { at_ns });
                self.others = None;
                self.look_for_others(at_ns);
            }
            Action::Impair { device, impairment, lease } => {
                let service = self.service.as_mut().ok_or_else(no_service)?;
                let active = service.impair(&device, &impairment)?;
                let at_ns = self.kernel.now_ns();
                let (engine, delay_ns) = (active.engine().to_owned(), active.delay_ns());
                self.impairment = Some(active);
                self.session.impaired(at_ns, lease);
                self.outbox.reply(&ToLoadgen::Impaired(Impaired {
                    engine,
                    device,
                    delay_ns,
                    at_ns,
                }));
            }
            Action::Clear => {
                self.session.cleared();
                if let Some(active) = self.impairment.take() {
                    let outcome = active.clear()?;
                    let at_ns = self.kernel.now_ns();
                    self.outbox.reply(&ToLoadgen::Cleared(cleared(at_ns, outcome)));
                }
            }
            Action::Finish => {
                self.look_for_others(now_ns);
                self.session.stopped();
                if let (Some(measuring), Some(service)) = (self.measuring.take(), &self.service) {
                    let impairment = self.impairment.as_deref();
                    let around = Around { service: service.as_ref(), impairment };
                    let totals = measuring.finish(&around, &mut self.outbox, now_ns);
                    self.outbox.reply(&ToLoadgen::Stopped(totals));
                }
            }
            Action::Renewed => {}
            Action::Leave => return Ok(true),
        }
        Ok(false)
    }

    /// Ends the impairment, if there is one, and tells the peer if it could not be ended cleanly.
    fn clear(&mut self) {
        self.session.cleared();
        if let Some(Err(error)) = self.impairment.take().map(Impair::clear) {
            eprintln!("agent: {}", error.message);
            self.outbox.error(error);
        }
    }

    fn drop_peer(&mut self, why: ErrorReply) -> Ending {
        let ending = Ending::Dropped(why.message.clone());
        self.outbox.error(why);
        ending
    }

    fn error(&mut self, code: ErrorCode, message: impl Into<String>) {
        self.outbox.error(ErrorReply { code, message: message.into() });
    }
}

fn cleared(at_ns: u64, outcome: Outcome) -> Cleared {
    Cleared {
        at_ns,
        dropped: outcome.dropped,
        held: outcome.receipt.map(|receipt| Held {
            packets: receipt.packets,
            p50_ns: receipt.p50_ns,
            p99_ns: receipt.p99_ns,
            max_ns: receipt.max_ns,
        }),
        reordered: outcome.reordered,
        largest_backlog: outcome.largest_backlog,
        retransmissions: outcome.retransmissions,
    }
}

fn invalid(message: impl Into<String>) -> ErrorReply {
    ErrorReply { code: ErrorCode::Invalid, message: message.into() }
}

fn no_service() -> ErrorReply {
    invalid("no service is chosen yet: send Target first")
}
