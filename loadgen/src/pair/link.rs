//! Messages over the socket.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use agent_common::wire::{self, FrameError, Frames, OverLimit, ToAgent, ToLoadgen};

/// An agent that does not read for this long is lost.
const WRITE_LIMIT: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 64 << 10;

/// Why the socket cannot be used further.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The agent closed it.
    #[error("the agent closed the socket")]
    Closed,
    /// The kernel says so.
    #[error("the socket failed: {0}")]
    Io(std::io::Error),
    /// Not the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The protocol, beyond its limits.
    #[error(transparent)]
    Limit(#[from] OverLimit),
    /// A statement's number is no index.
    #[error("statement number {0} is out of range")]
    Statement(u32),
    /// Nothing came.
    #[error("the agent said nothing for {0:?}")]
    Silent(Duration),
}

/// The socket, its unread bytes and its peer's preamble.
pub(super) struct Link {
    stream: UnixStream,
    frames: Frames,
    preamble: Vec<u8>,
    out: Vec<u8>,
    buffer: Box<[u8]>,
}

impl Link {
    /// Connects and says the preamble.
    pub(super) fn connect(path: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_write_timeout(Some(WRITE_LIMIT))?;
        // A peer that closes at once is heard first: it may say why.
        let _ = (&stream).write_all(&wire::preamble());
        let buffer = vec![0; READ_BYTES].into_boxed_slice();
        Ok(Self {
            stream,
            frames: Frames::default(),
            preamble: Vec::with_capacity(8),
            out: Vec::new(),
            buffer,
        })
    }

    pub(super) fn send(&mut self, message: &ToAgent) -> Result<(), LinkError> {
        self.out.clear();
        wire::encode(message, &mut self.out)?;
        self.stream.write_all(&self.out).map_err(LinkError::Io)
    }

    /// The next message, or None if none came within `patience`.
    pub(super) fn receive(&mut self, patience: Duration) -> Result<Option<ToLoadgen>, LinkError> {
        if let Some(message) = self.next()? {
            return Ok(Some(message));
        }
        // Zero would mean to wait for ever.
        let patience = patience.max(Duration::from_millis(1));
        self.stream.set_read_timeout(Some(patience)).map_err(LinkError::Io)?;
        let count = match self.stream.read(&mut self.buffer) {
            Ok(0) => return Err(LinkError::Closed),
            Ok(count) => count,
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(LinkError::Io(error)),
        };
        let mut bytes = &self.buffer[..count];
        if self.preamble.len() < 8 {
            let take = bytes.len().min(8 - self.preamble.len());
            self.preamble.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if let Ok(whole) = <[u8; 8]>::try_from(self.preamble.as_slice()) {
                wire::read_preamble(whole)?;
            }
        }
        self.frames.push(bytes);
        self.next()
    }

    fn next(&mut self) -> Result<Option<ToLoadgen>, LinkError> {
        let Some(body) = self.frames.next_frame()? else { return Ok(None) };
        let message: ToLoadgen = wire::decode(body)?;
        message.check()?;
        Ok(Some(message))
    }
}
