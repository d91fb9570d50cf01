//! A scripted HTTP server on loopback: one thread per connection, every answer decided by the test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What happens to a connection after an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    Keep,
    Close,
    Reset,
}

/// A request as the script sees it.
pub(crate) struct Turn {
    /// Number of the connection, from 0.
    pub(crate) connection: u64,
    /// Ordinal on it, from 0.
    pub(crate) ordinal: u64,
    /// Head and body.
    pub(crate) text: String,
}

#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) connections: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) bytes: AtomicU64,
    stop: AtomicBool,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) counts: Arc<Counts>,
}

impl Server {
    pub(crate) fn start<F>(script: F) -> Self
    where
        F: Fn(&Turn, &mut TcpStream) -> Then + Send + Sync + 'static,
    {
        Self::start_on("127.0.0.1:0", script)
    }

    pub(crate) fn start_on<F>(address: &str, script: F) -> Self
    where
        F: Fn(&Turn, &mut TcpStream) -> Then + Send + Sync + 'static,
    {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::new(Counts::default());
        let script = Arc::new(script);
        let shared = Arc::clone(&counts);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stop.load(Ordering::Relaxed) {
                    return;
                }
                let connection = shared.connections.fetch_add(1, Ordering::Relaxed);
                let (shared, script) = (Arc::clone(&shared), Arc::clone(&script));
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    stream.set_nodelay(true).unwrap();
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    let mut ordinal = 0;
                    while let Some(text) = read_request(&mut reader) {
                        shared.requests.fetch_add(1, Ordering::Relaxed);
                        shared.bytes.fetch_add(text.len() as u64, Ordering::Relaxed);
                        match script(&Turn { connection, ordinal, text }, &mut stream) {
                            Then::Keep => ordinal += 1,
                            Then::Close => return,
                            Then::Reset => {
                                let zero = Some(std::time::Duration::ZERO);
                                socket2::SockRef::from(&stream).set_linger(zero).unwrap();
                                return;
                            }
                        }
                    }
                });
            }
        });
        Self { address, counts }
    }

    pub(crate) fn requests(&self) -> u64 {
        self.counts.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

/// A script that writes the same bytes every time.
pub(crate) fn answer(
    bytes: impl Into<Vec<u8>>,
    then: Then,
) -> impl Fn(&Turn, &mut TcpStream) -> Then {
    let bytes = bytes.into();
    move |_, stream| {
        // The client may have gone at the end of its run.
        let _ = stream.write_all(&bytes);
        then
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let mut text = String::new();
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().unwrap();
        }
        text.push_str(&line);
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    text.push_str(std::str::from_utf8(&body).unwrap());
    Some(text)
}
