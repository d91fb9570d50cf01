//! Who is at the other end of a Unix socket, as the kernel vouches for.

use std::io;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// A peer as it was when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Effective user.
    pub uid: u32,
    /// Process in this process's pid namespace; None if it is in none that is visible from here.
    pub pid: Option<u32>,
}

/// The process that connected `socket`.
///
/// # Errors
/// The kernel's, which for a connected Unix socket has none to give.
pub fn credentials(socket: &UnixStream) -> io::Result<Peer> {
    let credentials = getsockopt(socket, PeerCredentials)?;
    Ok(Peer {
        uid: credentials.uid(),
        pid: u32::try_from(credentials.pid()).ok().filter(|&pid| pid > 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_pair_are_this_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = credentials(&one).unwrap();
        assert_eq!(peer.pid, Some(std::process::id()));
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
    }
}
