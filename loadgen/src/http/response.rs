//! Finds the end of a response in the bytes as they come: head by `httparse`, then the body by
//! Content-Length, chunks or the close of the connection (RFC 9112, section 6.3). Bodies are
//! counted by the caller and never kept.

use std::mem::MaybeUninit;

use httparse::{ParserConfig, Response, Status};

/// Longest response head in bytes.
pub const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 128;

/// The bytes are no HTTP/1.x response.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadResponse {
    /// Malformed status line or header.
    #[error("the response's head is malformed")]
    Head,
    /// Over [`MAX_HEAD`].
    #[error("the response's head is over {MAX_HEAD} bytes")]
    TooLong,
    /// Content-Length is no number, or there are two that differ.
    #[error("the response's Content-Length is malformed")]
    Length,
    /// Malformed chunk.
    #[error("the response's chunks are malformed")]
    Chunk,
    /// 101, which nobody asked for.
    #[error("the server switched protocols")]
    Switched,
}

/// What the end of the byte stream means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eof {
    /// The response was delimited by it and is whole.
    Complete,
    /// It came in the middle.
    Truncated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Length(u64),
    Chunked(Chunk),
    UntilClose,
    Done,
}

/// Where in a chunked body (RFC 9112, section 7.1). A bare LF ends a line too, as most clients let it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    Size { value: u64, digits: bool },
    Extension { last: bool, value: u64 },
    Data(u64),
    DataEnd { cr: bool },
    Trailer { empty: bool },
}

/// Follows one response. Reused for the next by [`Parser::reset`].
#[derive(Debug)]
pub struct Parser {
    state: State,
    /// A head that came in pieces; empty otherwise.
    partial: Vec<u8>,
    status: u16,
    keep_alive: bool,
}

impl Default for Parser {
    fn default() -> Self {
        Self { state: State::Head, partial: Vec::new(), status: 0, keep_alive: false }
    }
}

impl Parser {
    /// Makes ready for the next response.
    pub fn reset(&mut self) {
        self.state = State::Head;
        self.partial.clear();
        self.status = 0;
        self.keep_alive = false;
    }

    /// Takes the next bytes and returns how many of them belong to this response. `head` says that
    /// the request was a HEAD.
    ///
    /// # Errors
    /// [`BadResponse`]; the connection cannot be used further.
    pub fn feed(&mut self, bytes: &[u8], head: bool) -> Result<usize, BadResponse> {
        let mut used = 0;
        while used < bytes.len() {
            let rest = &bytes[used..];
            match self.state {
                State::Head => used += self.feed_head(rest, head)?,
                State::Length(left) => {
                    let take = left.min(rest.len() as u64);
                    used += take as usize;
                    self.state =
                        if take == left { State::Done } else { State::Length(left - take) };
                }
                State::Chunked(chunk) => used += self.feed_chunk(chunk, rest)?,
                State::UntilClose => used = bytes.len(),
                State::Done => break,
            }
        }
        Ok(used)
    }

    /// The stream ended.
    #[must_use]
    pub fn eof(&mut self) -> Eof {
        match self.state {
            State::UntilClose | State::Done => {
                self.state = State::Done;
                Eof::Complete
            }
            _ => Eof::Truncated,
        }
    }

    /// The response is whole.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Status of the final response; 0 until its head is whole.
    #[must_use]
    pub const fn status(&self) -> u16 {
        self.status
    }

    /// The server keeps the connection open after this response.
    #[must_use]
    pub const fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    fn feed_head(&mut self, bytes: &[u8], to_head: bool) -> Result<usize, BadResponse> {
        if self.partial.is_empty() {
            return match parse_head(bytes)? {
                Some(head) => self.begin_body(&head, to_head),
                None if bytes.len() >= MAX_HEAD => Err(BadResponse::TooLong),
                None => {
                    self.partial.extend_from_slice(bytes);
                    Ok(bytes.len())
                }
            };
        }
        let before = self.partial.len();
        let take = bytes.len().min(MAX_HEAD - before);
        self.partial.extend_from_slice(&bytes[..take]);
        match parse_head(&self.partial)? {
            Some(head) => {
                self.partial.clear();
                Ok(self.begin_body(&head, to_head)?.saturating_sub(before))
            }
            None if self.partial.len() >= MAX_HEAD => Err(BadResponse::TooLong),
            None => Ok(take),
        }
    }

    /// Sets the state from a whole head; returns its length.
    fn begin_body(&mut self, head: &Head, to_head: bool) -> Result<usize, BadResponse> {
        match head.status {
            101 => return Err(BadResponse::Switched),
            100..=199 => return Ok(head.bytes),
            0..100 => return Err(BadResponse::Head),
            _ => {}
        }
        self.status = head.status;
        self.keep_alive = head.keep_alive;
        self.state = if to_head || matches!(head.status, 204 | 304) {
            State::Done
        } else {
            match head.framing {
                Framing::Chunked => State::Chunked(Chunk::Size { value: 0, digits: false }),
                Framing::Length(0) => State::Done,
                Framing::Length(length) => State::Length(length),
                Framing::Close => {
                    self.keep_alive = false;
                    State::UntilClose
                }
            }
        };
        Ok(head.bytes)
    }

    fn feed_chunk(&mut self, chunk: Chunk, bytes: &[u8]) -> Result<usize, BadResponse> {
        let Some(&byte) = bytes.first() else { return Ok(0) };
        let sized = |value| match value {
            0 => Chunk::Trailer { empty: true },
            _ => Chunk::Data(value),
        };
        let next = match chunk {
            Chunk::Data(left) => {
                let take = left.min(bytes.len() as u64);
                let left = left - take;
                self.state = State::Chunked(match left {
                    0 => Chunk::DataEnd { cr: false },
                    _ => Chunk::Data(left),
                });
                return Ok(take as usize);
            }
            Chunk::Size { value, digits } => match (byte, char::from(byte).to_digit(16)) {
                (_, Some(digit)) => {
                    let value = value.checked_mul(16).ok_or(BadResponse::Chunk)?;
                    Chunk::Size { value: value + u64::from(digit), digits: true }
                }
                _ if !digits => return Err(BadResponse::Chunk),
                (b'\n', _) => sized(value),
                (b'\r', _) => Chunk::Extension { last: true, value },
                (b';' | b' ' | b'\t', _) => Chunk::Extension { last: false, value },
                _ => return Err(BadResponse::Chunk),
            },
            Chunk::Extension { last, value } => match byte {
                b'\n' => sized(value),
                _ if last => return Err(BadResponse::Chunk),
                b'\r' => Chunk::Extension { last: true, value },
                _ => chunk,
            },
            Chunk::DataEnd { cr } => match byte {
                b'\n' => Chunk::Size { value: 0, digits: false },
                b'\r' if !cr => Chunk::DataEnd { cr: true },
                _ => return Err(BadResponse::Chunk),
            },
            Chunk::Trailer { empty } => match byte {
                b'\n' if empty => {
                    self.state = State::Done;
                    return Ok(1);
                }
                b'\n' => Chunk::Trailer { empty: true },
                b'\r' => chunk,
                _ => Chunk::Trailer { empty: false },
            },
        };
        self.state = State::Chunked(next);
        Ok(1)
    }
}

enum Framing {
    Length(u64),
    Chunked,
    Close,
}

struct Head {
    bytes: usize,
    status: u16,
    keep_alive: bool,
    framing: Framing,
}

/// Reads a head from the start of `bytes`; None if it is not whole yet.
fn parse_head(bytes: &[u8]) -> Result<Option<Head>, BadResponse> {
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = Response::new(&mut []);
    let parsed = ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        bytes,
        &mut headers,
    );
    let bytes = match parsed {
        Ok(Status::Complete(bytes)) => bytes,
        Ok(Status::Partial) => return Ok(None),
        Err(_) => return Err(BadResponse::Head),
    };
    let mut length = None;
    let mut chunked = None;
    let (mut close, mut keep_alive) = (false, false);
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let value = parse_length(header.value).ok_or(BadResponse::Length)?;
            if length.replace(value).is_some_and(|before| before != value) {
                return Err(BadResponse::Length);
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            let last = tokens(header.value).last().unwrap_or_default();
            chunked = Some(last.eq_ignore_ascii_case(b"chunked"));
        } else if header.name.eq_ignore_ascii_case("connection") {
            for token in tokens(header.value) {
                close |= token.eq_ignore_ascii_case(b"close");
                keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
            }
        }
    }
    let framing = match (chunked, length) {
        (Some(true), _) => Framing::Chunked,
        (None, Some(length)) => Framing::Length(length),
        (Some(false), _) | (None, None) => Framing::Close,
    };
    // Both framings at once may be an attempt at smuggling: RFC 9112, 6.3, says to close.
    let ambiguous = chunked.is_some() && length.is_some();
    let persistent = if response.version == Some(1) { !close } else { keep_alive && !close };
    Ok(Some(Head {
        bytes,
        status: response.code.unwrap_or(0),
        keep_alive: persistent && !ambiguous,
        framing,
    }))
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

fn parse_length(value: &[u8]) -> Option<u64> {
    let digits = value.trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
#[path = "response_tests.rs"]
mod tests;
