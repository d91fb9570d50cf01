//! What comes from the peer, one message at a time. A thread of its own reads, and waits while the
//! session is busy.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::SyncSender;

use agent_common::wire::{self, FrameError, Frames, ToAgent};

/// What the session gets to know.
#[derive(Debug)]
pub(super) enum Input {
    /// A message.
    Message(ToAgent),
    /// Bytes that are none; nothing more is read.
    Broken(FrameError),
    /// The stream ended inside a preamble or frame.
    Truncated,
    /// The peer closed its end.
    Closed,
    /// The socket failed.
    Failed(io::Error),
}

/// Reads from `socket` until it ends; tells everything to `session`.
pub(super) fn read(mut socket: UnixStream, session: &SyncSender<Input>) {
    let end = match read_all(&mut socket, session) {
        Ok(end) => end,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Input::Closed,
        Err(error) => Input::Failed(error),
    };
    // A session that is over does not listen any more.
    let _ = session.send(end);
}

fn read_all(socket: &mut impl Read, session: &SyncSender<Input>) -> io::Result<Input> {
    let mut preamble = [0; 8];
    let mut got = 0;
    while got < preamble.len() {
        match socket.read(&mut preamble[got..])? {
            0 if got == 0 => return Ok(Input::Closed),
            0 => return Ok(Input::Truncated),
            bytes => got += bytes,
        }
    }
    if let Err(error) = wire::read_preamble(preamble) {
        return Ok(Input::Broken(error));
    }
    let mut frames = Frames::default();
    let mut buffer = [0; 16 << 10];
    loop {
        loop {
            let message = match frames.next_frame() {
                Ok(None) => break,
                Ok(Some(body)) => wire::decode(body),
                Err(error) => Err(error),
            };
            match message {
                // A session that is over takes nothing any more.
                Ok(message) => match session.send(Input::Message(message)) {
                    Ok(()) => {}
                    Err(_) => return Ok(Input::Closed),
                },
                Err(error) => return Ok(Input::Broken(error)),
            }
        }
        match socket.read(&mut buffer)? {
            0 if frames.is_between() => return Ok(Input::Closed),
            0 => return Ok(Input::Truncated),
            bytes => frames.push(&buffer[..bytes]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    fn inputs(bytes: &[u8]) -> Vec<Input> {
        let (to, from) = sync_channel(1_000);
        let end = read_all(&mut &bytes[..], &to).unwrap();
        drop(to);
        from.into_iter().chain([end]).collect()
    }

    fn stream() -> Vec<u8> {
        let mut bytes = wire::preamble().to_vec();
        wire::encode(&ToAgent::Start, &mut bytes).unwrap();
        wire::encode(&ToAgent::Renew, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn messages_come_in_order() {
        use ToAgent::{Renew, Start};
        let inputs = inputs(&stream());
        assert!(
            matches!(inputs[..], [Input::Message(Start), Input::Message(Renew), Input::Closed]),
            "{inputs:?}"
        );
    }

    #[test]
    fn every_cut_is_noticed() {
        let whole = stream();
        for length in 0..whole.len() {
            let end = inputs(&whole[..length]).pop().unwrap();
            let between = length == 0 || length == 8 || length == 13;
            assert_eq!(matches!(end, Input::Closed), between, "{length}: {end:?}");
            assert_eq!(matches!(end, Input::Truncated), !between, "{length}: {end:?}");
        }
    }

    #[test]
    fn what_is_no_message_ends_it() {
        let with = |tail: &[u8]| [wire::preamble().as_slice(), tail].concat();
        for bytes in [
            b"GET / HTTP/1.1\r\n".to_vec(),
            with(&[0xff; 8]),
            with(&[1, 0, 0, 0, 99]),
            with(&[0, 0, 0, 0]),
            with(&[2, 0, 0, 0, 2, 0]),
        ] {
            let end = inputs(&bytes).pop().unwrap();
            assert!(matches!(end, Input::Broken(_)), "{bytes:?}: {end:?}");
        }
    }
}
