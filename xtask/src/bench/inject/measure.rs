//! What is measured: round trips of small messages, and one connection in bulk.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt};

/// Small messages per second.
pub(super) const RATE: u32 = 2_000;
/// Congestion control of every sender.
pub(super) const CONGESTION: &str = "cubic";
const MESSAGE: usize = 64;
/// A new connection's window has to grow to hold the messages of a round trip.
const WARM_UP: Duration = Duration::from_secs(3);
/// How long the last answers may take.
const LAST: Duration = Duration::from_secs(1);
const BULK_BUFFER: usize = 1 << 20;

/// A network namespace.
#[derive(Debug)]
pub(super) struct Place(File);

impl Place {
    pub(super) fn new(path: &Path) -> Result<Self> {
        File::open(path).map(Self).with_context(|| format!("cannot open {}", path.display()))
    }

    /// Runs `work` on a thread inside; sockets and threads made there stay there.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = || setns(&self.0, CloneFlags::CLONE_NEWNET).map(|()| work());
            let done = scope.spawn(inside).join();
            done.map_err(|_| anyhow::anyhow!("a thread panicked"))?.context("cannot enter")
        })
    }
}

/// Round trips.
#[derive(Debug)]
pub(super) struct Trips {
    /// How much longer than the delay each took, nanoseconds, sorted.
    over_ns: Vec<i64>,
    /// Messages without an answer.
    pub(super) lost: usize,
}

impl Trips {
    /// A quantile, milliseconds.
    pub(super) fn over_ms(&self, quantile: f64) -> f64 {
        let index = (self.over_ns.len() as f64 * quantile) as usize;
        let value = self.over_ns.get(index.min(self.over_ns.len().saturating_sub(1)));
        value.map_or(f64::NAN, |ns| *ns as f64 / 1e6)
    }
}

/// Sends a message every tick for `lasts`; the message holds its time of sending and its number.
fn send_paced(
    begin: Instant,
    lasts: Duration,
    mut send: impl FnMut(&[u8; MESSAGE]) -> std::io::Result<()>,
) -> Result<usize> {
    let tick = Duration::from_secs(1) / RATE;
    let (mut sent, mut next) = (0, begin);
    while next < begin + lasts {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let mut message = [0; MESSAGE];
        let now = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        message[..8].copy_from_slice(&now.to_ne_bytes());
        send(&message).context("cannot send")?;
        sent += 1;
        next += tick;
    }
    Ok(sent)
}

fn over(begin: Instant, message: &[u8; MESSAGE], delay: Duration) -> (Duration, i64) {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&message[..8]);
    let sent = Duration::from_nanos(u64::from_ne_bytes(bytes));
    let took = begin.elapsed().saturating_sub(sent).as_nanos() as i64;
    (sent, took - delay.as_nanos() as i64)
}

fn joined<T>(handle: JoinHandle<Result<T>>) -> Result<T> {
    handle.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
}

/// Datagrams to an echo in `server` and back.
pub(super) fn udp(
    server: &Place,
    client: &Place,
    address: SocketAddr,
    delay: Duration,
    lasts: Duration,
) -> Result<Trips> {
    let echo = server.inside(|| UdpSocket::bind(address))??;
    let to = echo.local_addr()?;
    let patience = delay + LAST;
    echo.set_read_timeout(Some(patience))?;
    let echoing = thread::spawn(move || -> Result<()> {
        let mut message = [0; MESSAGE];
        while let Ok((len, from)) = echo.recv_from(&mut message) {
            echo.send_to(&message[..len], from)?;
        }
        Ok(())
    });
    let socket = client.inside(|| UdpSocket::bind("0.0.0.0:0"))??;
    socket.connect(to)?;
    socket.set_read_timeout(Some(patience))?;
    let receiving = socket.try_clone()?;
    let begin = Instant::now();
    let receiver = thread::spawn(move || -> Result<Vec<i64>> {
        let (mut all, mut message) = (Vec::new(), [0; MESSAGE]);
        while receiving.recv(&mut message).is_ok() {
            all.push(over(begin, &message, delay).1);
        }
        Ok(all)
    });
    let sent = send_paced(begin, lasts, |message| socket.send(message).map(drop))?;
    let mut over_ns = joined(receiver)?;
    joined(echoing)?;
    over_ns.sort_unstable();
    Ok(Trips { lost: sent.saturating_sub(over_ns.len()), over_ns })
}

/// An echo for one TCP connection, in the calling thread's namespace.
pub(super) fn tcp_echo(address: SocketAddr) -> Result<SocketAddr> {
    serve_one(address, |mut stream| {
        let mut message = [0; MESSAGE];
        while stream.read_exact(&mut message).is_ok() && stream.write_all(&message).is_ok() {}
    })
}

/// Messages to a TCP echo and back, after a warm-up; and how long connecting took.
pub(super) fn tcp(
    client: &Place,
    to: SocketAddr,
    delay: Duration,
    lasts: Duration,
) -> Result<(Trips, Duration)> {
    let (mut stream, connect) = client.inside(|| {
        let begin = Instant::now();
        TcpStream::connect(to).map(|stream| (stream, begin.elapsed()))
    })??;
    stream.set_nodelay(true)?;
    let mut receiving = stream.try_clone()?;
    receiving.set_read_timeout(Some(delay + LAST))?;
    let begin = Instant::now();
    let receiver = thread::spawn(move || -> Result<Vec<i64>> {
        let (mut all, mut message) = (Vec::new(), [0; MESSAGE]);
        while receiving.read_exact(&mut message).is_ok() {
            let (sent, over) = over(begin, &message, delay);
            if sent >= WARM_UP {
                all.push(over);
            }
        }
        Ok(all)
    });
    send_paced(begin, WARM_UP + lasts, |message| stream.write_all(message))?;
    let mut over_ns = joined(receiver)?;
    over_ns.sort_unstable();
    Ok((Trips { over_ns, lost: 0 }, connect))
}

/// Sends zeros to one connection as fast as it takes them, in the calling thread's namespace.
pub(super) fn bulk_source(address: SocketAddr) -> Result<SocketAddr> {
    serve_one(address, |mut stream| {
        let buffer = vec![0; BULK_BUFFER];
        while stream.write_all(&buffer).is_ok() {}
    })
}

/// Megabytes per second of one connection, after its first second.
pub(super) fn bulk(client: &Place, from: SocketAddr, lasts: Duration) -> Result<f64> {
    let mut stream = client.inside(|| TcpStream::connect(from))??;
    let mut buffer = vec![0; BULK_BUFFER];
    let mut read_for = |lasts: Duration| -> Result<f64> {
        let (begin, mut bytes) = (Instant::now(), 0);
        while begin.elapsed() < lasts {
            match stream.read(&mut buffer).context("bulk")? {
                0 => bail!("the connection in bulk ended early"),
                len => bytes += len,
            }
        }
        Ok(bytes as f64 / 1e6 / begin.elapsed().as_secs_f64())
    };
    read_for(Duration::from_secs(1))?;
    read_for(lasts)
}

fn serve_one(
    address: SocketAddr,
    serve: impl FnOnce(TcpStream) + Send + 'static,
) -> Result<SocketAddr> {
    let listener = TcpListener::bind(address).context("cannot listen")?;
    // The host's default may be another, and BBR paces by its own idea of the line.
    setsockopt(&listener, sockopt::TcpCongestion, &OsString::from(CONGESTION))
        .with_context(|| format!("the kernel has no congestion control {CONGESTION}"))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        if let Ok((stream, _)) = listener.accept() {
            // Without it an echo's answers would wait for acknowledgements.
            let _ = stream.set_nodelay(true);
            serve(stream);
        }
    });
    Ok(address)
}
