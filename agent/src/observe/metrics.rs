//! `--metrics`: what happened so far, for a Prometheus to scrape. One small question is answered at a
//! time, in bounded time, by a thread of its own: the probes never wait for it.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::session::Output;
use crate::model::account::{Account, Figures, Summary};

/// Longest question that is read.
const MAX_QUESTION: usize = 8 << 10;
/// Whoever takes longer to ask and to read the answer is left.
const PATIENCE: Duration = Duration::from_secs(2);
/// accept() has failed, for want of descriptors, say.
const PAUSE: Duration = Duration::from_millis(100);

/// Reads `9464`, which is on 127.0.0.1, or an address with a port.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse().map_err(|_| {
        format!("`{text}` is neither a port nor an address with one; write 127.0.0.1:9464")
    })
}

/// An output that answers scrapes besides.
pub(super) struct WithMetrics {
    inner: Box<dyn Output>,
    exposed: Arc<Mutex<String>>,
}

impl WithMetrics {
    /// Answers on `listener` with what `inner` was told.
    ///
    /// # Errors
    /// No thread is to be had.
    pub(super) fn new(inner: Box<dyn Output>, listener: TcpListener) -> io::Result<Self> {
        let exposed = Arc::new(Mutex::new(String::new()));
        let shown = Arc::clone(&exposed);
        std::thread::Builder::new().name("metrics".to_owned()).spawn(move || {
            for stream in listener.incoming() {
                match stream {
                    // One that does not ask, or does not read, gets nothing.
                    Ok(stream) => drop(answer(&stream, &shown, Instant::now() + PATIENCE)),
                    Err(_) => std::thread::sleep(PAUSE),
                }
            }
        })?;
        Ok(Self { inner, exposed })
    }
}

impl Output for WithMetrics {
    fn window(&mut self, figures: &Figures, account: &Account) -> anyhow::Result<()> {
        *self.exposed.lock().unwrap_or_else(PoisonError::into_inner) = account.exposition();
        self.inner.window(figures, account)
    }

    fn notice(&mut self, notice: &str) {
        self.inner.notice(notice);
    }

    fn wait(&mut self, time: Duration) -> anyhow::Result<bool> {
        self.inner.wait(time)
    }

    fn end(&mut self, summary: &Summary, ended: &'static str) -> anyhow::Result<()> {
        self.inner.end(summary, ended)
    }
}

fn answer(stream: &TcpStream, exposed: &Mutex<String>, until: Instant) -> io::Result<()> {
    let answer = match question(stream, until)? {
        Question::Metrics => {
            let body = exposed.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if body.is_empty() {
                response("503 Service Unavailable", "text/plain", "nothing was measured yet\n")
            } else {
                response("200 OK", "text/plain; version=0.0.4; charset=utf-8", &body)
            }
        }
        Question::Other => response("404 Not Found", "text/plain", "see /metrics\n"),
        Question::Bad => response("400 Bad Request", "text/plain", "GET /metrics only\n"),
    };
    let mut rest = answer.as_bytes();
    while !rest.is_empty() {
        stream.set_write_timeout(Some(left(until)?))?;
        let mut to = stream;
        match to.write(rest)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => rest = &rest[written..],
        }
    }
    Ok(())
}

fn left(until: Instant) -> io::Result<Duration> {
    match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Metrics,
    Other,
    Bad,
}

fn question(mut stream: &TcpStream, until: Instant) -> io::Result<Question> {
    let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
    while !ends(&head) {
        stream.set_read_timeout(Some(left(until)?))?;
        let bytes = stream.read(&mut buffer)?;
        if bytes == 0 || head.len() + bytes > MAX_QUESTION {
            return Ok(Question::Bad);
        }
        head.extend_from_slice(&buffer[..bytes]);
    }
    Ok(asked(&head))
}

fn ends(head: &[u8]) -> bool {
    head.windows(4).any(|four| four == b"\r\n\r\n")
}

fn asked(head: &[u8]) -> Question {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(b"GET"), Some(path), Some(version), None) if version.starts_with(b"HTTP/1.") => {
            let path = path.split(|byte| *byte == b'?').next().unwrap_or_default();
            if path == b"/metrics" { Question::Metrics } else { Question::Other }
        }
        _ => Question::Bad,
    }
}

fn response(status: &str, kind: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n\
         {body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(address("9464"), Ok(([127, 0, 0, 1], 9464).into()));
        assert_eq!(address("[::1]:9"), Ok((std::net::Ipv6Addr::LOCALHOST, 9).into()));
        assert_eq!(address("0.0.0.0:9464"), Ok(([0, 0, 0, 0], 9464).into()));
        assert!(address("localhost").unwrap_err().contains("127.0.0.1:9464"));
    }

    #[test]
    fn questions() {
        assert_eq!(asked(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"), Question::Metrics);
        assert_eq!(asked(b"GET /metrics?x=1 HTTP/1.0\r\n\r\n"), Question::Metrics);
        assert_eq!(asked(b"GET / HTTP/1.1\r\n\r\n"), Question::Other);
        assert_eq!(asked(b"POST /metrics HTTP/1.1\r\n\r\n"), Question::Bad);
        assert_eq!(asked(b"\x16\x03\x01\r\n\r\n"), Question::Bad);
    }

    #[test]
    fn whoever_asks_nothing_is_left_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _silent = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let until = Instant::now() + Duration::from_millis(50);
        assert!(answer(&stream, &Mutex::new(String::new()), until).is_err());
    }

    #[test]
    fn a_question_without_an_end_is_bad() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut endless = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        endless.write_all(&vec![b'x'; MAX_QUESTION + 1]).unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        assert_eq!(question(&stream, until).unwrap(), Question::Bad);
    }
}
