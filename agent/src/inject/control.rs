//! The thread beside an impairment: answers `agent inject list`, `change` and `clear`, and notices when the
//! interface or its namespace goes, or the engine fails.
//!
//! One exchange per connection on a Unix socket that only root can reach: a line of JSON each way.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::active::End;
use super::error::InjectError;
use super::outcome::Outcome;
use super::shared::Shared;
use crate::model::impairment::Impairment;
use crate::sys::link;
use crate::sys::netlink::Conn;
use crate::sys::netns_end::Presence;

/// How often the engine's health is looked at.
const HEALTH_MS: u16 = 500;
/// How long one peer may keep the thread.
const PEER_PATIENCE: Duration = Duration::from_secs(1);
/// How long a peer waits for the answer; a clear takes some milliseconds.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// Tables of distributions are in an impairment, number by number.
const MAX_LINE: u64 = 1 << 20;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Question {
    Status,
    Change(Box<Impairment>),
    Clear,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Status {
        /// What is in force now.
        impairment: Box<Impairment>,
        outcome: Outcome,
    },
    /// What was before.
    Changed(Outcome),
    Cleared(Outcome),
    Failed(String),
}

/// Runs until the impairment has ended. To be called on a thread in its namespace.
pub(super) fn run(shared: &Shared, listener: &UnixListener, events: &Conn, presence: &Presence) {
    loop {
        let mut fds = [
            PollFd::new(shared.stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(events.as_fd(), PollFlags::POLLIN),
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::from(HEALTH_MS)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return end(shared, End::Failed(format!("wait for events: {errno}"))),
        }
        let [stop, news, peer] = fds.map(|fd| fd.any().unwrap_or(false));
        if stop {
            return;
        }
        if news {
            match link::went_away(events, shared.entry.index) {
                Ok(false) => {}
                Ok(true) => return end(shared, End::DeviceVanished),
                Err(refusal) => {
                    return end(shared, End::Failed(format!("listen for news: {refusal}")));
                }
            }
        }
        if let Some(how) = shared.failure() {
            return end(shared, how);
        }
        if presence.is_over() {
            return end(shared, End::NamespaceGone);
        }
        if peer && let Ok((stream, _)) = listener.accept() {
            // A peer that fails to ask or to listen is no concern of the impairment.
            if let Ok(true) = serve(shared, stream) {
                return;
            }
        }
    }
}

fn end(shared: &Shared, end: End) {
    // The holder gets the result, with the end, from `clear`.
    let _ = shared.finish(Some(end));
}

/// Answers one question; true if it ended the impairment.
fn serve(shared: &Shared, mut stream: UnixStream) -> io::Result<bool> {
    stream.set_read_timeout(Some(PEER_PATIENCE))?;
    stream.set_write_timeout(Some(PEER_PATIENCE))?;
    let mut line = String::new();
    BufReader::new((&stream).take(MAX_LINE)).read_line(&mut line)?;
    let question = serde_json::from_str(&line);
    let ended = matches!(question, Ok(Question::Clear));
    let answered = |result: Result<Outcome, InjectError>, answer: fn(Outcome) -> Answer| {
        result.map_or_else(|error| Answer::Failed(error.to_string()), answer)
    };
    let answer = match question {
        Ok(Question::Status) => {
            let (impairment, outcome) = (Box::new(shared.impairment()), shared.outcome());
            Answer::Status { impairment, outcome }
        }
        Ok(Question::Change(_)) if shared.entry.by.is_session() => {
            Answer::Failed(InjectError::OfSession(shared.entry.device.clone()).to_string())
        }
        Ok(Question::Change(_)) if shared.entry.schedule.is_some() => {
            Answer::Failed(InjectError::OnSchedule(shared.entry.device.clone()).to_string())
        }
        Ok(Question::Change(wanted)) => answered(shared.change(&wanted), Answer::Changed),
        Ok(Question::Clear) => answered(shared.finish(Some(End::Cleared)), Answer::Cleared),
        Err(error) => Answer::Failed(format!("not understood: {error}")),
    };
    let written = serde_json::to_vec(&answer).map_err(io::Error::from).and_then(|mut text| {
        text.push(b'\n');
        stream.write_all(&text)
    });
    // The end stands even where its answer could not be delivered.
    if ended { Ok(true) } else { written.map(|()| false) }
}

/// Asks the holder behind `socket`.
pub(super) fn ask(socket: &Path, question: Question) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
    stream.set_write_timeout(Some(PEER_PATIENCE))?;
    let mut text = serde_json::to_vec(&question)?;
    text.push(b'\n');
    stream.write_all(&text)?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
