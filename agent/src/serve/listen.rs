//! Takes connections: one becomes the session, the others are told why not.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};
use std::time::{Duration, Instant};

use agent_common::wire::{self, ErrorCode, ErrorReply, ToLoadgen};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::{
    kernel::Kernel,
    outbox::bounded,
    pair::{self, Ending},
};
use crate::{
    model::permission::Policy,
    sys::peer::{self, Peer},
};

/// Refused peers that are told why at the same time; more are just closed.
const MAX_FAREWELLS: usize = 8;
/// Time that a refused peer has to read why.
const FAREWELL: Duration = Duration::from_secs(1);
/// A peer that has just left may not have been noticed yet.
const GRACE: Duration = Duration::from_millis(100);
/// A new peer waits this long for a session that is ending already.
const HANDOVER: Duration = Duration::from_secs(5);

/// Serves until SIGINT, SIGTERM or SIGHUP.
///
/// # Errors
/// Signals cannot be caught, or the listener fails.
pub(super) fn until_signal(
    listener: &UnixListener,
    policy: &Policy,
    kernel: &mut (dyn Kernel + Send),
) -> io::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let (wake, waker) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: whoever is woken finds the flag set.
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
        signal_hook::low_level::pipe::register(signal, waker.try_clone()?)?;
    }
    until(&stop, &wake, listener, policy, kernel)
}

/// Serves until `stop` is set and `wake` can be read.
pub(super) fn until(
    stop: &AtomicBool,
    mut wake: &UnixStream,
    listener: &UnixListener,
    policy: &Policy,
    kernel: &mut (dyn Kernel + Send),
) -> io::Result<()> {
    wake.set_nonblocking(true)?;
    let slot = Slot::default();
    let kernel = std::sync::Mutex::new(kernel);
    std::thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            wait_for([&listener.as_fd(), &wake.as_fd()])?;
            let _ = wake.read(&mut [0; 64]);
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if is_passing(&error) => continue,
                Err(error) => return Err(error),
            };
            let peer = match admit(&stream, policy) {
                Ok(peer) => peer,
                Err(refusal) => {
                    eprintln!("agent: refused: {}", refusal.message);
                    slot.refuse(scope, stream, refusal);
                    continue;
                }
            };
            if !slot.take() {
                eprintln!("agent: refused pid {}: a session is active", pid(peer));
                slot.refuse(scope, stream, busy());
                continue;
            }
            let (slot, kernel) = (&slot, &kernel);
            // Frees the slot however the thread ends, and also where it never begins.
            let free = Free(slot);
            let pair = std::thread::Builder::new().name("pair".to_owned());
            let refused = stream.try_clone();
            let spawned = pair.spawn_scoped(scope, move || {
                let _free = free;
                // Never contended: the slot is taken by one.
                let mut kernel = kernel.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                session(stream, peer, policy, &mut **kernel, slot, stop);
            });
            if let Err(error) = spawned {
                eprintln!("agent: no session with pid {}: {error}", pid(peer));
                // No thread is to be had, so the farewell is said from here, to a peer whose socket
                // has room for it.
                if let Ok(mut stream) = refused {
                    let _ = say_farewell(&mut stream, short_of(&error));
                }
            }
        }
        Ok(())
    })
}

fn session(
    stream: UnixStream,
    peer: Peer,
    policy: &Policy,
    kernel: &mut dyn Kernel,
    slot: &Slot,
    stop: &AtomicBool,
) {
    eprintln!("agent: paired with pid {} of user {}", pid(peer), peer.uid);
    let over = || slot.ending.store(true, Ordering::Release);
    match pair::serve(stream, peer, policy, kernel, stop, &over) {
        Ok(Ending::Left) => eprintln!("agent: pid {} left", pid(peer)),
        Ok(Ending::Stopped) => eprintln!("agent: ended while paired with pid {}", pid(peer)),
        Ok(Ending::Dropped(why)) => eprintln!("agent: dropped pid {}: {why}", pid(peer)),
        Err(error) => eprintln!("agent: no session with pid {}: {error}", pid(peer)),
    }
}

/// The place that one session has.
#[derive(Debug, Default)]
struct Slot {
    taken: AtomicBool,
    /// Its peer has left; what it used is being taken down.
    ending: AtomicBool,
    farewells: AtomicUsize,
}

impl Slot {
    /// Takes the place, if need be after the session that is ending.
    fn take(&self) -> bool {
        let start = Instant::now();
        loop {
            if !self.taken.swap(true, Ordering::AcqRel) {
                self.ending.store(false, Ordering::Release);
                return true;
            }
            let ending = self.ending.load(Ordering::Acquire);
            if start.elapsed() > if ending { HANDOVER } else { GRACE } {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Tells a peer why it is refused, without waiting for it here.
    fn refuse<'scope>(
        &'scope self,
        scope: &'scope std::thread::Scope<'scope, '_>,
        stream: UnixStream,
        why: ErrorReply,
    ) {
        if self.farewells.fetch_add(1, Ordering::AcqRel) >= MAX_FAREWELLS {
            self.farewells.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let tell = std::thread::Builder::new().name("refuse".to_owned());
        let spawned = tell.spawn_scoped(scope, || {
            // A peer that is gone need not be told.
            let _ = farewell(stream, why);
            self.farewells.fetch_sub(1, Ordering::AcqRel);
        });
        if spawned.is_err() {
            self.farewells.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Frees the slot however the session's thread ends.
struct Free<'a>(&'a Slot);

impl Drop for Free<'_> {
    fn drop(&mut self) {
        self.0.taken.store(false, Ordering::Release);
    }
}

/// Whether the user at the other end may connect.
fn admit(stream: &UnixStream, policy: &Policy) -> Result<Peer, ErrorReply> {
    let forbidden = |message| ErrorReply { code: ErrorCode::Forbidden, message };
    stream.set_nonblocking(false).map_err(|error| forbidden(error.to_string()))?;
    let peer = peer::credentials(stream)
        .map_err(|error| forbidden(format!("the kernel does not say who connects: {error}")))?;
    policy.may_connect(peer.uid).map_err(|refusal| forbidden(refusal.to_string()))?;
    Ok(peer)
}

fn busy() -> ErrorReply {
    ErrorReply {
        code: ErrorCode::Busy,
        message: "the agent is paired with another load generator: wait for its end, or start \
                  another agent on another socket"
            .to_owned(),
    }
}

fn short_of(error: &io::Error) -> ErrorReply {
    ErrorReply {
        code: ErrorCode::Kernel,
        message: format!(
            "the agent's host has no thread left for a session ({error}): end something there, or \
             raise the limit of its threads, and connect again"
        ),
    }
}

fn farewell(mut stream: UnixStream, why: ErrorReply) -> io::Result<()> {
    say_farewell(&mut stream, why)?;
    // Let the peer's own greeting arrive, so that it reads ours rather than a broken pipe.
    let deadline = Instant::now() + FAREWELL;
    while Instant::now() < deadline && stream.read(&mut [0; 1024])? > 0 {}
    Ok(())
}

fn say_farewell(stream: &mut UnixStream, why: ErrorReply) -> io::Result<()> {
    stream.set_write_timeout(Some(FAREWELL))?;
    stream.set_read_timeout(Some(FAREWELL))?;
    let mut bytes = wire::preamble().to_vec();
    wire::encode(&ToLoadgen::Error(bounded(why)), &mut bytes).map_err(io::Error::other)?;
    stream.write_all(&bytes)?;
    stream.shutdown(Shutdown::Write)
}

fn pid(peer: Peer) -> String {
    peer.pid.map_or_else(|| "(not visible)".to_owned(), |pid| pid.to_string())
}

fn wait_for(fds: [&std::os::fd::BorrowedFd<'_>; 2]) -> io::Result<()> {
    let mut fds = fds.map(|fd| PollFd::new(*fd, PollFlags::POLLIN));
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether accept() can be tried again: the peer may have given up, or a descriptor was short.
fn is_passing(error: &io::Error) -> bool {
    let short = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM));
    if short {
        std::thread::sleep(Duration::from_millis(100));
    }
    let kinds =
        [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted, io::ErrorKind::ConnectionAborted];
    short || kinds.contains(&error.kind())
}
