//! Framing: preamble, length, postcard body. Pure: bytes in, messages out.

use serde::{Serialize, de::DeserializeOwned};

use super::{MAX_FRAME, VERSION};

const MAGIC: [u8; 4] = *b"DWEL";

/// Why bytes could not be a message. The connection cannot go on after any of them.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// The first bytes are not Dwell's.
    #[error("the peer does not speak Dwell's pairing protocol (its first bytes are {0:02x?})")]
    NotDwell([u8; 4]),
    /// The peer speaks another version.
    #[error(
        "the peer speaks protocol version {theirs}, this program version {ours}: use agent and \
         loadgen of the same release"
    )]
    Version {
        /// Version of the peer.
        theirs: u16,
        /// Version of this program.
        ours: u16,
    },
    /// The announced length is over the limit.
    #[error("a frame of {0} bytes is over the limit of {MAX_FRAME}")]
    TooLong(usize),
    /// The body is no message.
    #[error("a frame of {0} bytes holds no valid message")]
    Malformed(usize),
}

/// The eight bytes that each side sends first.
#[must_use]
pub const fn preamble() -> [u8; 8] {
    let version = VERSION.to_le_bytes();
    [MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3], version[0], version[1], 0, 0]
}

/// Checks the peer's preamble.
///
/// # Errors
/// [`FrameError::NotDwell`] or [`FrameError::Version`].
pub fn read_preamble(bytes: [u8; 8]) -> Result<(), FrameError> {
    let [m0, m1, m2, m3, v0, v1, _, _] = bytes;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(FrameError::NotDwell([m0, m1, m2, m3]));
    }
    let theirs = u16::from_le_bytes([v0, v1]);
    if theirs == VERSION { Ok(()) } else { Err(FrameError::Version { theirs, ours: VERSION }) }
}

/// Appends one frame to `out`.
///
/// # Errors
/// [`FrameError::TooLong`] if the message is larger than a frame may be; `out` is unchanged then.
pub fn encode<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let body =
        postcard::to_extend(message, std::mem::take(out)).map_err(|_| FrameError::Malformed(0))?;
    *out = body;
    let length = out.len() - start - 4;
    if length > MAX_FRAME {
        out.truncate(start);
        return Err(FrameError::TooLong(length));
    }
    out[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(())
}

/// Decodes the body of one frame. Trailing bytes are refused.
///
/// # Errors
/// [`FrameError::Malformed`].
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(FrameError::Malformed(body.len())),
    }
}

/// Cuts a byte stream into frame bodies; holds at most one frame and what one read adds.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: Vec<u8>,
    consumed: usize,
}

impl Frames {
    /// Adds bytes as they come from the socket.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.consumed);
        self.consumed = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The body of the next whole frame, or None until more bytes come.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] as soon as the length is known, before its bytes are awaited.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let Some(rest) = self.buffer.get(self.consumed..) else { return Ok(None) };
        let Some((length, body)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLong(length));
        }
        if body.len() < length {
            return Ok(None);
        }
        let start = self.consumed + 4;
        self.consumed = start + length;
        Ok(Some(&self.buffer[start..start + length]))
    }

    /// Whether no part of a frame waits for its rest: a stream may end here.
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.consumed == self.buffer.len()
    }
}

#[cfg(test)]
mod tests;
