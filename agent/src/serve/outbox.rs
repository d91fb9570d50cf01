//! What goes to the peer. A thread of its own writes; a peer that reads too slowly loses records,
//! which are counted, and never holds up the probes.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
    mpsc::{Receiver, Sender, channel},
};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent_common::wire::{self, ErrorReply, ToLoadgen};

use crate::model::text;

/// Bytes that may wait for the peer: seconds of a busy service. Tests fill less.
const RECORD_LIMIT: usize = if cfg!(test) { 1 << 20 } else { 32 << 20 };
/// What replies may take beyond that. They are few, so a peer that exceeds this is gone.
const REPLY_LIMIT: usize = RECORD_LIMIT + (1 << 20);
/// A peer that takes nothing for this long is gone.
pub(super) const STALL_LIMIT: Duration = Duration::from_secs(30);
/// Time to take what waits when a session ends.
const FAREWELL: Duration = Duration::from_secs(3);

/// The sending half of a session.
#[derive(Debug)]
pub(super) struct Outbox {
    to_writer: Option<Sender<Vec<u8>>>,
    queue: Arc<AtomicUsize>,
    stream: UnixStream,
    writer: Option<JoinHandle<()>>,
    /// Records that were dropped.
    dropped: u64,
    limits: (usize, usize),
    full: bool,
    last_waiting: usize,
    last_moved: Instant,
}

impl Outbox {
    /// Starts the writer on `stream`. `on_failure` is called once if the peer cannot be written to.
    ///
    /// # Errors
    /// No thread or descriptor is to be had.
    pub(super) fn new(
        stream: &UnixStream,
        on_failure: impl FnOnce(std::io::Error) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (to_writer, frames) = channel();
        let queue = Arc::new(AtomicUsize::new(0));
        let (shared, socket) = (Arc::clone(&queue), stream.try_clone()?);
        let writer = std::thread::Builder::new()
            .name("pair-writer".to_owned())
            .spawn(move || write(socket, &frames, &shared, on_failure))?;
        Ok(Self {
            to_writer: Some(to_writer),
            queue,
            stream: stream.try_clone()?,
            writer: Some(writer),
            dropped: 0,
            limits: (RECORD_LIMIT, REPLY_LIMIT),
            full: false,
            last_waiting: 0,
            last_moved: Instant::now(),
        })
    }

    /// Sends `count` records, or drops them where too much waits already. Whether they were sent.
    pub(super) fn records(&mut self, message: &ToLoadgen, count: usize) -> bool {
        let sent = self.send(message, self.limits.0);
        if !sent {
            self.dropped += count as u64;
        }
        sent
    }

    /// Sends a reply, for which there is always room while the peer reads at all.
    pub(super) fn reply(&mut self, message: &ToLoadgen) {
        if !self.send(message, self.limits.1) {
            self.full = true;
        }
    }

    /// Sends an error, cut to what a message may hold: it may quote what somebody else wrote.
    pub(super) fn error(&mut self, error: ErrorReply) {
        self.reply(&ToLoadgen::Error(bounded(error)));
    }

    /// Sends a sentence for the user, likewise.
    pub(super) fn notice(&mut self, notice: String) {
        self.reply(&ToLoadgen::Notice(text::for_message(notice)));
    }

    fn send(&mut self, message: &ToLoadgen, limit: usize) -> bool {
        // A peer drops an agent that breaks the protocol's limits.
        debug_assert_eq!(message.check(), Ok(()));
        // While too much waits, dropping must cost next to nothing.
        let mut frame = Vec::new();
        if self.queue.load(Ordering::Acquire) >= limit || wire::encode(message, &mut frame).is_err()
        {
            return false;
        }
        self.push(frame, limit)
    }

    /// Sends bytes that are no frame: the preamble.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.push(bytes.to_vec(), self.limits.1);
    }

    fn push(&mut self, bytes: Vec<u8>, limit: usize) -> bool {
        let length = bytes.len();
        if self.queue.load(Ordering::Acquire) + length > limit {
            return false;
        }
        self.queue.fetch_add(length, Ordering::AcqRel);
        self.to_writer.as_ref().is_some_and(|writer| writer.send(bytes).is_ok())
    }

    /// Records that were dropped so far.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Whether the peer has taken nothing for [`STALL_LIMIT`], or not even replies fit any more.
    pub(super) fn stalled(&mut self) -> bool {
        let waiting = self.queue.load(Ordering::Acquire);
        // More may have been added meanwhile, but a queue that never shrinks grows to its limit.
        if waiting == 0 || waiting < self.last_waiting {
            self.last_moved = Instant::now();
        }
        self.last_waiting = waiting;
        self.full || self.last_moved.elapsed() > STALL_LIMIT
    }

    /// Ends the session: lets the peer take what waits, for a moment, then closes the socket.
    pub(super) fn finish(mut self) -> u64 {
        self.to_writer = None;
        let deadline = Instant::now() + FAREWELL;
        let writer = self.writer.take();
        while writer.as_ref().is_some_and(|thread| !thread.is_finished())
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        // This also wakes a writer or reader that still waits for the peer.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = writer {
            let _ = thread.join();
        }
        self.dropped
    }
}

/// The error, as a message may hold it.
pub(super) fn bounded(error: ErrorReply) -> ErrorReply {
    ErrorReply { message: text::for_message(error.message), ..error }
}

fn write(
    mut socket: UnixStream,
    frames: &Receiver<Vec<u8>>,
    queue: &AtomicUsize,
    on_failure: impl FnOnce(std::io::Error),
) {
    for frame in frames {
        if let Err(error) = socket.write_all(&frame) {
            return on_failure(error);
        }
        queue.fetch_sub(frame.len(), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_peer_that_does_not_read_loses_records_but_not_replies() {
        let (mine, mut peer) = UnixStream::pair().unwrap();
        let mut outbox = Outbox::new(&mine, |_| {}).unwrap();
        outbox.limits = (100_000, 200_000);
        let notice = ToLoadgen::Notice("x".repeat(1_000));
        let sent = (0..2_000).filter(|_| outbox.records(&notice, 7)).count();
        assert!(sent > 90 && sent < 1_000, "{sent} sent");
        assert_eq!(outbox.dropped(), (2_000 - sent as u64) * 7);
        outbox.reply(&ToLoadgen::Bye);
        assert!(!outbox.stalled());
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).unwrap();
            all
        });
        outbox.finish();
        let mut frames = wire::Frames::default();
        frames.push(&reader.join().unwrap());
        let mut messages = Vec::new();
        while let Some(body) = frames.next_frame().unwrap() {
            messages.push(wire::decode::<ToLoadgen>(body).unwrap());
        }
        assert_eq!(messages.len(), sent + 1);
        assert_eq!(messages.last(), Some(&ToLoadgen::Bye));
    }

    #[test]
    fn a_peer_that_never_reads_cannot_keep_a_session_open() {
        let (mine, _peer) = UnixStream::pair().unwrap();
        let mut outbox = Outbox::new(&mine, |_| {}).unwrap();
        let notice = ToLoadgen::Notice("x".repeat(4_000));
        while outbox.records(&notice, 1) {}
        let start = Instant::now();
        outbox.finish();
        assert!(start.elapsed() < FAREWELL + Duration::from_secs(2));
    }

    #[test]
    fn an_error_of_any_length_fits() {
        let (mine, mut peer) = UnixStream::pair().unwrap();
        let mut outbox = Outbox::new(&mine, |_| {}).unwrap();
        let message = "é".repeat(wire::MAX_TEXT);
        outbox.error(ErrorReply { code: wire::ErrorCode::Kernel, message: message.clone() });
        outbox.notice(message);
        outbox.finish();
        let (mut all, mut frames) = (Vec::new(), wire::Frames::default());
        peer.read_to_end(&mut all).unwrap();
        frames.push(&all);
        for _ in 0..2 {
            let body = frames.next_frame().unwrap().unwrap();
            wire::decode::<ToLoadgen>(body).unwrap().check().unwrap();
        }
    }

    #[test]
    fn a_peer_that_left_is_told_of_once() {
        let (mine, peer) = UnixStream::pair().unwrap();
        drop(peer);
        let (tell, told) = channel();
        let mut outbox = Outbox::new(&mine, move |error| tell.send(error).unwrap()).unwrap();
        outbox.reply(&ToLoadgen::Bye);
        let error = told.recv_timeout(Duration::from_secs(5)).unwrap();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        outbox.finish();
    }
}
