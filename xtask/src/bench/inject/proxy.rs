//! A TCP proxy that sleeps, as the usual ones do it: what comes from the server is read in chunks of
//! 32 KB, each is stamped, waits in a queue of a thousand, and is written when its delay is over.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::measure::CONGESTION;

const CHUNK: usize = 32 << 10;
const CHUNKS: usize = 1024;

/// Serves one connection to `server`, in the calling thread's namespace; where to connect to.
pub(super) fn start(server: SocketAddr, delay: Duration) -> Result<SocketAddr> {
    let listener =
        TcpListener::bind(SocketAddr::new(server.ip(), 0)).context("the proxy's port")?;
    setsockopt(&listener, sockopt::TcpCongestion, &OsString::from(CONGESTION))?;
    let address = listener.local_addr()?;
    // The connection is made here: a thread inherits the namespace of the one that makes it.
    thread::Builder::new().name("proxy".to_owned()).spawn(move || {
        // Either end may close when its measurement is over.
        let _ = serve(&listener, server, delay);
    })?;
    Ok(address)
}

fn serve(listener: &TcpListener, server: SocketAddr, delay: Duration) -> Result<()> {
    let (mut client, _) = listener.accept()?;
    let mut server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(std::net::Shutdown::Both);
    });
    let (sender, receiver) = sync_channel::<(Instant, Vec<u8>)>(CHUNKS);
    thread::spawn(move || {
        for (read, chunk) in receiver {
            thread::sleep((read + delay).saturating_duration_since(Instant::now()));
            if client.write_all(&chunk).is_err() {
                break;
            }
        }
        let _ = client.shutdown(std::net::Shutdown::Both);
    });
    loop {
        let mut chunk = vec![0; CHUNK];
        let len = server.read(&mut chunk)?;
        chunk.truncate(len);
        if len == 0 || sender.send((Instant::now(), chunk)).is_err() {
            return Ok(());
        }
    }
}
