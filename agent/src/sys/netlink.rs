//! A netlink socket that asks and waits for the answer.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};

use crate::model::nlmsg::{self, Attrs, MSG_DONE, MSG_ERROR, Message, flag};

pub use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

/// The kernel answers at once; this only keeps a fault from becoming a hang.
const PATIENCE: Duration = Duration::from_secs(5);
/// More than any message of the subsystems in use.
const DATAGRAM: usize = 64 << 10;

/// `NLMSGERR_ATTR_MSG`: what the kernel has to say about an error.
const EXTACK_TEXT: u16 = 1;

/// What a request came to when the kernel refused it.
#[derive(Debug, thiserror::Error)]
#[error("{errno}{}", extack_text(.text))]
pub struct Refusal {
    /// Its error code.
    pub errno: Errno,
    /// Its words, if it had any.
    pub text: Option<String>,
}

fn extack_text(text: &Option<String>) -> String {
    text.as_ref().map_or_else(String::new, |text| format!(" ({text})"))
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        match refusal.text {
            None => refusal.errno.into(),
            Some(_) => Self::new(Self::from(refusal.errno).kind(), refusal),
        }
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno, text: None }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO)).into()
    }
}

/// A netlink socket in the namespace of the thread that made it.
pub struct Conn {
    socket: Socket,
    sequence: u32,
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conn").field("fd", &self.socket.as_raw_fd()).finish_non_exhaustive()
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One message of a batch: type, flags and content.
pub type Request = (u16, u16, Attrs);

impl Conn {
    /// Opens a socket of `protocol`, such as [`NETLINK_ROUTE`].
    ///
    /// # Errors
    /// The kernel lacks the protocol.
    pub fn open(protocol: isize) -> Result<Self, Refusal> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.set_ext_ack(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Opens a socket that hears of changes to interfaces (`RTMGRP_LINK`) in its namespace.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_link_events() -> Result<Self, Refusal> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 1))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The socket itself, for its options.
    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Sends one request and waits until the kernel has done it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn request(&mut self, kind: u16, flags: u16, content: &Attrs) -> Result<(), Refusal> {
        self.sequence += 1;
        let message = content.message(kind, flags | flag::REQUEST | flag::ACK, self.sequence);
        self.send(&message)?;
        self.wait_for_acks(1)
    }

    /// Sends requests as one datagram and waits until the kernel has done them all. For nftables,
    /// whose batches take effect as a whole or not at all.
    ///
    /// # Errors
    /// The first refusal.
    pub fn batch(
        &mut self,
        begin: (u16, Attrs),
        requests: &[Request],
        end: (u16, Attrs),
    ) -> Result<(), Refusal> {
        self.sequence += 1;
        let mut datagram = begin.1.message(begin.0, flag::REQUEST, self.sequence);
        for (kind, flags, content) in requests {
            self.sequence += 1;
            let flags = flags | flag::REQUEST | flag::ACK;
            datagram.extend_from_slice(&content.message(*kind, flags, self.sequence));
        }
        self.sequence += 1;
        datagram.extend_from_slice(&end.1.message(end.0, flag::REQUEST, self.sequence));
        self.send(&datagram)?;
        self.wait_for_acks(requests.len())
    }

    /// Sends a request for one object, and gives what the kernel answers before its acknowledgement
    /// to `each`: nothing where it shows nothing.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn get(
        &mut self,
        kind: u16,
        flags: u16,
        content: &Attrs,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<(), Refusal> {
        self.sequence += 1;
        self.send(&content.message(kind, flags | flag::REQUEST | flag::ACK, self.sequence))?;
        let (mut buffer, deadline) = (vec![0; DATAGRAM], Instant::now() + PATIENCE);
        loop {
            let len = self.receive(&mut buffer, deadline)?;
            for message in nlmsg::messages(&buffer[..len]) {
                match message.kind {
                    _ if message.sequence != self.sequence => {}
                    MSG_ERROR => return error_of(&message).map_or(Ok(()), Err),
                    _ => each(&message),
                }
            }
        }
    }

    /// Sends a request for a dump and gives each message of the answer to `each`. A dump during
    /// which something changed is made again: it may have skipped what was there throughout.
    ///
    /// # Errors
    /// The kernel's refusal; `EINTR` if things change faster than they can be dumped.
    pub fn dump(
        &mut self,
        kind: u16,
        content: &Attrs,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<(), Refusal> {
        let (mut buffer, deadline) = (vec![0; DATAGRAM], Instant::now() + PATIENCE);
        while Instant::now() < deadline {
            self.sequence += 1;
            self.send(&content.message(kind, flag::REQUEST | flag::DUMP, self.sequence))?;
            let mut answer = Dump::default();
            while !answer.is_whole {
                let len = self.receive(&mut buffer, deadline)?;
                answer.take(&buffer[..len], self.sequence)?;
            }
            if !answer.interrupted {
                answer.messages(self.sequence).for_each(|message| each(&message));
                return Ok(());
            }
        }
        Err(Errno::EINTR.into())
    }

    /// Sends bytes and waits for nothing.
    ///
    /// # Errors
    /// The socket's.
    pub fn send(&self, bytes: &[u8]) -> Result<(), Refusal> {
        self.socket.send(bytes, 0)?;
        Ok(())
    }

    /// Receives one datagram if there is one.
    ///
    /// # Errors
    /// `EAGAIN` if there is none; the socket's others.
    pub fn try_receive(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)
    }

    fn receive(&self, buffer: &mut [u8], deadline: Instant) -> Result<usize, Refusal> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Errno::ETIMEDOUT.into());
            }
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            match self.try_receive(buffer) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                other => return Ok(other?),
            }
        }
    }

    fn wait_for_acks(&mut self, count: usize) -> Result<(), Refusal> {
        let (mut buffer, deadline) = (vec![0; DATAGRAM], Instant::now() + PATIENCE);
        let (mut answered, mut first_error) = (0, None);
        while answered < count {
            let len = self.receive(&mut buffer, deadline)?;
            for message in nlmsg::messages(&buffer[..len]) {
                if message.kind != MSG_ERROR {
                    continue;
                }
                answered += 1;
                if first_error.is_none() {
                    first_error = error_of(&message);
                }
            }
            // An abandoned batch need not answer every message of it.
            if let Some(refusal) = first_error {
                return Err(refusal);
            }
        }
        Ok(())
    }
}

/// The answer to a dump, as it comes.
#[derive(Debug, Default)]
struct Dump {
    datagrams: Vec<Vec<u8>>,
    is_whole: bool,
    interrupted: bool,
}

impl Dump {
    /// # Errors
    /// The kernel's, at the start or where it broke off.
    fn take(&mut self, datagram: &[u8], sequence: u32) -> Result<(), Refusal> {
        for message in nlmsg::messages(datagram).filter(|message| message.sequence == sequence) {
            self.interrupted |= message.flags & flag::DUMP_INTR != 0;
            match message.kind {
                MSG_ERROR => match error_of(&message) {
                    Some(refusal) => return Err(refusal),
                    None => self.is_whole = true,
                },
                MSG_DONE => match nlmsg::done_code(&message) {
                    code @ ..0 => return Err(Errno::from_raw(-code).into()),
                    _ => self.is_whole = true,
                },
                _ => {}
            }
        }
        self.datagrams.push(datagram.to_vec());
        Ok(())
    }

    fn messages(&self, sequence: u32) -> impl Iterator<Item = Message<'_>> {
        let wanted = move |message: &Message<'_>| {
            message.sequence == sequence && ![MSG_DONE, MSG_ERROR].contains(&message.kind)
        };
        self.datagrams.iter().flat_map(|bytes| nlmsg::messages(bytes)).filter(wanted)
    }
}

/// The refusal that an `NLMSG_ERROR` carries; None for an acknowledgement.
pub fn error_of(message: &Message<'_>) -> Option<Refusal> {
    let code = nlmsg::array(message.body, 0).map(i32::from_ne_bytes).unwrap_or(-nix::libc::EPROTO);
    if code == 0 {
        return None;
    }
    // The request's header follows, and the request itself unless it was capped.
    let request_len = if message.flags & flag::CAPPED != 0 {
        nlmsg::HEADER_LEN
    } else {
        nlmsg::read_u32(message.body, 4).unwrap_or(0) as usize
    };
    let text = (message.flags & flag::ACK_TLVS != 0)
        .then(|| message.body.get(4 + ((request_len + 3) & !3)..))
        .flatten()
        .and_then(|tlvs| nlmsg::find(tlvs, EXTACK_TEXT))
        .map(nlmsg::text);
    Some(Refusal { errno: Errno::from_raw(-code), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, sequence: u32, code: i32) -> Vec<u8> {
        Attrs::new().raw(&code.to_ne_bytes()).message(kind, flags, sequence)
    }

    #[test]
    fn a_dump_is_whole_at_its_end_and_holds_what_answers_it() {
        let mut dump = Dump::default();
        dump.take(&[message(16, 2, 7, 1), message(16, 2, 6, 2)].concat(), 7).unwrap();
        assert!(!dump.is_whole);
        dump.take(&[message(16, 2, 7, 3), message(MSG_DONE, 2, 7, 0)].concat(), 7).unwrap();
        assert!(dump.is_whole && !dump.interrupted);
        let bodies: Vec<_> = dump.messages(7).map(|message| message.body[0]).collect();
        assert_eq!(bodies, [1, 3]);
    }

    #[test]
    fn a_dump_during_which_something_changed_says_so_in_any_of_its_messages() {
        for (first, last) in [(flag::DUMP_INTR, 0), (0, flag::DUMP_INTR)] {
            let mut dump = Dump::default();
            dump.take(&message(16, 2 | first, 7, 0), 7).unwrap();
            dump.take(&message(MSG_DONE, 2 | last, 7, 0), 7).unwrap();
            assert!(dump.is_whole && dump.interrupted);
        }
        let mut dump = Dump::default();
        dump.take(&message(16, flag::DUMP_INTR, 6, 0), 7).unwrap();
        assert!(!dump.interrupted, "that of another request");
    }

    #[test]
    fn a_dump_that_broke_off_is_an_error() {
        let code = -(Errno::ENOMEM as i32);
        let refusal = Dump::default().take(&message(MSG_DONE, 2, 7, code), 7).unwrap_err();
        assert_eq!(refusal.errno, Errno::ENOMEM);
        let refusal = Dump::default().take(&message(MSG_ERROR, 0, 7, code), 7).unwrap_err();
        assert_eq!(refusal.errno, Errno::ENOMEM);
    }
}
