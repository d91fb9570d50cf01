//! The cookie by which the kernel half knows a network namespace.

#![allow(unsafe_code, reason = "nix has no wrapper for SO_NETNS_COOKIE")]

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsRawFd, RawFd},
};

/// Cookie of the namespace that the calling thread is in (Linux 5.14, `sock_net(sk)->net_cookie`
/// in net/core/sock.c).
///
/// # Errors
/// When no socket can be made, or the kernel is too old.
pub fn current() -> io::Result<u64> {
    let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    read(socket.as_raw_fd())
}

fn read(socket: RawFd) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `length` live through the call, and `length` is the size of `cookie`.
    let status = unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if status == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
