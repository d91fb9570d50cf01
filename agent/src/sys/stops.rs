//! Stops from the terminal, which must not stop whoever holds packets.

use std::io;

use nix::sys::signal::{SigSet, Signal};

/// Keeps Ctrl-Z, and a background process's touch of its terminal, from stopping this process: the
/// packets that it holds would wait for as long as it is stopped, which is an outage and no delay.
/// Call it before any thread is started: threads and children inherit it. Of the children, the
/// guardian must not be stopped either.
///
/// # Errors
/// The kernel's, which has none to give.
pub fn block() -> io::Result<()> {
    let mut stops = SigSet::empty();
    for signal in [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU] {
        stops.add(signal);
    }
    Ok(stops.thread_block()?)
}
