//! The two threads of the engine. One stamps packets the moment their news arrives; the other lets
//! each go when its time has come, so that work on the way out never delays a stamp.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::prctl::set_timerslack;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

use super::queue::{MSG_PACKET, News, Queue, news};
use crate::model::held_times::{Gaps, HeldTimes, Verdicts};
use crate::model::holding::{Arrival, Due, Holding, Tally};
use crate::model::nlmsg::{self, MSG_ERROR};
use crate::model::packet::wire_bytes;
use crate::sys::netlink::error_of;
use crate::sys::realtime;

/// Packets per verdict: enough to be cheap, few enough that the stamp of the last one still tells
/// when the first one left.
const BATCH: usize = 64;
/// Read at most this many packets before handing them over.
const READ_BATCH: usize = 256;

#[derive(Debug)]
struct Shared {
    queue: Arc<Queue>,
    /// Largest packet of the device, for the lengths of segments.
    mtu: u32,
    holding: Mutex<Holding>,
    times: Mutex<Times>,
    /// Something came while nothing was held, or it is time to release or stop.
    wake: EventFd,
    stop_reader: EventFd,
    releasing: AtomicBool,
    /// What was held when the release began has gone.
    released: AtomicBool,
    stopping: AtomicBool,
    /// Packets without news.
    skipped: AtomicU64,
    /// Packets that the kernel dropped while they were held.
    vanished: AtomicU64,
    failure: Mutex<Option<String>>,
}

/// What packets got since the last change.
#[derive(Debug)]
struct Times {
    held: HeldTimes,
    verdicts: Verdicts,
    /// How many changes came before. Packets of earlier ones do not count.
    changes: u32,
}

/// The threads, running until [`Self::stop`] or drop.
#[derive(Debug)]
pub(super) struct Threads {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    pub(super) fn start(queue: Arc<Queue>, mtu: u32, holding: Holding) -> io::Result<Self> {
        let held = HeldTimes::new().map_err(io::Error::other)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let shared = Arc::new(Shared {
            queue,
            mtu,
            holding: Mutex::new(holding),
            times: Mutex::new(Times { held, verdicts: Verdicts::default(), changes: 0 }),
            wake: EventFd::from_flags(flags)?,
            stop_reader: EventFd::from_flags(flags)?,
            releasing: AtomicBool::new(false),
            released: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            skipped: AtomicU64::new(0),
            vanished: AtomicU64::new(0),
            failure: Mutex::new(None),
        });
        let mut threads = Self { shared, handles: Vec::new() };
        threads.spawn("delay-in", read)?;
        threads.spawn("delay-out", let_go)?;
        Ok(threads)
    }

    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce(&Shared) -> Result<(), String> + Send + 'static,
    ) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let handle = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            if let Err(reason) = work(&shared) {
                lock(&shared.failure).get_or_insert(reason);
            }
        })?;
        self.handles.push(handle);
        Ok(())
    }

    /// How long packets were held of which was decided since the last change. Those let go by
    /// [`Self::release`] do not count.
    pub(super) fn times(&self) -> HeldTimes {
        lock(&self.shared.times).held.clone()
    }

    /// Decides otherwise from now on. What is held stays held as long as it was to be. With `anew`
    /// the times are of what comes from now on; how many packets are held then.
    pub(super) fn change(&self, how: impl FnOnce(&mut Holding), anew: bool) -> u64 {
        let mut holding = lock(&self.shared.holding);
        how(&mut holding);
        if !anew {
            return 0;
        }
        let held = holding.start_over();
        let mut times = lock(&self.shared.times);
        times.held.start_over();
        times.verdicts.start_over();
        times.changes = holding.changes();
        held
    }

    pub(super) fn tally(&self) -> Tally {
        lock(&self.shared.holding).tally()
    }

    /// Packets of whose news there was no trace, and those that the kernel dropped while they were
    /// held.
    pub(super) fn missed(&self) -> u64 {
        self.shared.skipped.load(Ordering::Relaxed) + self.shared.vanished.load(Ordering::Relaxed)
    }

    pub(super) fn failure(&self) -> Option<String> {
        lock(&self.shared.failure).clone()
    }

    /// From now on packets go as soon as they come, those held first. Waits until those have gone,
    /// at most for `patience`.
    pub(super) fn release(&self, patience: Duration) {
        self.shared.releasing.store(true, Ordering::SeqCst);
        wake(&self.shared.wake);
        let deadline = Instant::now() + patience;
        while !self.shared.released.load(Ordering::SeqCst) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Ends both threads.
    pub(super) fn stop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        wake(&self.shared.stop_reader);
        wake(&self.shared.wake);
        for handle in self.handles.drain(..) {
            if handle.join().is_err() {
                lock(&self.shared.failure).get_or_insert_with(|| "a thread panicked".to_owned());
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wake(event: &EventFd) {
    // It can only fail by being full, and then it wakes as well.
    let _ = event.write(1);
}

fn now_ns() -> Result<u64, String> {
    let now =
        clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(|e| format!("read the clock: {e}"))?;
    Ok(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

fn wait(fds: &mut [PollFd<'_>], timeout_ns: Option<u64>) -> Result<(), String> {
    let timeout = timeout_ns.map(|ns| TimeSpec::from_duration(Duration::from_nanos(ns)));
    match ppoll(fds, timeout, None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(format!("wait for packets: {errno}")),
    }
}

fn prefer() {
    // Where it is not allowed, packets are held longer under load, and the receipt shows by how much.
    let _ = realtime::prefer_this_thread();
}

fn read(shared: &Shared) -> Result<(), String> {
    prefer();
    let (mut buffer, mut gaps) = (vec![0; 64 << 10], Gaps::default());
    let (mut packets, mut drops) = (Vec::with_capacity(READ_BATCH), Vec::new());
    while !shared.stopping.load(Ordering::SeqCst) {
        while packets.len() < READ_BATCH {
            match shared.queue.try_receive(&mut buffer) {
                Ok(len) => take_in(shared, &buffer[..len], &mut gaps, &mut packets)?,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(format!("read from the queue: {errno}")),
            }
        }
        if packets.is_empty() {
            let mut fds = [
                PollFd::new(shared.queue.as_fd(), PollFlags::POLLIN),
                PollFd::new(shared.stop_reader.as_fd(), PollFlags::POLLIN),
            ];
            wait(&mut fds, None)?;
            continue;
        }
        let mut holding = lock(&shared.holding);
        let before = holding.next_due();
        for (News { id, ip_bytes, segment_header_bytes }, now) in packets.drain(..) {
            let bytes = wire_bytes(ip_bytes, segment_header_bytes, shared.mtu);
            if !holding.take_in(id, now, bytes) {
                drops.push(id);
            }
        }
        let after = holding.next_due();
        // Before the other thread may let go all up to a number: those in between would go as well.
        shared.queue.refuse(&drops).map_err(|e| format!("drop packets: {e}"))?;
        drops.clear();
        drop(holding);
        // The other thread sleeps until the first was due.
        let earlier = after.is_some_and(|after| before.is_none_or(|before| after < before));
        if earlier || shared.releasing.load(Ordering::SeqCst) {
            wake(&shared.wake);
        }
    }
    Ok(())
}

fn take_in(
    shared: &Shared,
    datagram: &[u8],
    gaps: &mut Gaps,
    packets: &mut Vec<(News, u64)>,
) -> Result<(), String> {
    for message in nlmsg::messages(datagram) {
        match message.kind {
            MSG_PACKET => {
                let news = news(&message).ok_or("a packet came without a number")?;
                shared.skipped.fetch_add(gaps.before(news.id), Ordering::Relaxed);
                packets.push((news, now_ns()?));
            }
            MSG_ERROR => match error_of(&message) {
                None => {}
                // The kernel had dropped the packets of a verdict.
                Some(refusal) if refusal.errno == Errno::ENOENT => {
                    let Times { held, verdicts, .. } = &mut *lock(&shared.times);
                    let gone = verdicts.failed(message.sequence, held).unwrap_or(0);
                    shared.vanished.fetch_add(gone, Ordering::Relaxed);
                }
                Some(refusal) => return Err(format!("let packets go: {refusal}")),
            },
            _ => {}
        }
    }
    Ok(())
}

fn let_go(shared: &Shared) -> Result<(), String> {
    // A wake-up 50 us late, the default, would show in every packet.
    set_timerslack(1).map_err(|e| format!("set the timer slack: {e}"))?;
    prefer();
    loop {
        // First, so that a wake-up after the looks that follow is not lost.
        let _ = shared.wake.read();
        let releasing = shared.releasing.load(Ordering::SeqCst);
        let stopping = shared.stopping.load(Ordering::SeqCst);
        let now = now_ns()?;
        let mut holding = lock(&shared.holding);
        let due = if releasing || stopping {
            holding.let_all_pass()
        } else {
            holding.take_due(now, BATCH)
        };
        let next = holding.next_due();
        drop(holding);
        if let Some(Due { ids, all_up_to_last, arrivals }) = due {
            give(shared, &ids, all_up_to_last, &arrivals)?;
            continue;
        }
        if releasing {
            shared.released.store(true, Ordering::SeqCst);
        }
        if stopping {
            return Ok(());
        }
        let mut fds = [PollFd::new(shared.wake.as_fd(), PollFlags::POLLIN)];
        wait(&mut fds, next.map(|due| due.saturating_sub(now_ns().unwrap_or(due))))?;
    }
}

/// Lets packets go and counts how long they were held. Those of a release have no `arrivals`, and do
/// not count.
fn give(shared: &Shared, ids: &[u32], together: bool, arrivals: &[Arrival]) -> Result<(), String> {
    // Held throughout: the kernel's answer must not be read before the verdict is known.
    let Times { held, verdicts, changes } = &mut *lock(&shared.times);
    let number = verdicts.number(ids.len(), together);
    let accepted = match ids.last() {
        Some(last) if together => shared.queue.accept_up_to(*last, number),
        _ => shared.queue.accept(ids, number),
    };
    accepted.map_err(|e| format!("let packets go: {e}"))?;
    let gone = now_ns()?;
    let held_ns =
        |arrival: &Arrival| (arrival.changes == *changes).then(|| gone.saturating_sub(arrival.ns));
    verdicts.given(number, together, arrivals.iter().map(held_ns).collect(), held);
    Ok(())
}
