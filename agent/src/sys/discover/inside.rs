//! What is only seen from inside a network namespace: its addresses, its cookie, its backlogs, who
//! owns it.

#![allow(unsafe_code, reason = "nix has no wrapper for NS_GET_USERNS")]

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::{
    model::nlmsg::{self, Attrs},
    sys::{netlink::Conn, netns_cookie},
};

// See include/uapi/linux/sock_diag.h and inet_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `1 << TCP_LISTEN`.
const STATE_LISTEN: u32 = 1 << 10;
/// `inet_diag_msg.idiag_wqueue`: of a listener, the limit of its backlog.
const WQUEUE: usize = 60;
/// `inet_diag_msg.idiag_inode`.
const INODE: usize = 68;

/// What is asked from inside.
#[derive(Clone, Debug, Default)]
pub(super) struct Inside {
    pub(super) cookie: u64,
    /// Every address and the interface that carries it.
    pub(super) addresses: Vec<(IpAddr, String)>,
    /// Length that listen() was given, capped by somaxconn, by the socket's inode.
    pub(super) backlogs: HashMap<u64, u32>,
    /// It belongs to the first user namespace: no unprivileged user made it.
    pub(super) of_host: bool,
}

mod request {
    // `NS_GET_USERNS` of include/uapi/linux/nsfs.h.
    nix::ioctl_none!(user_namespace, 0xb7, 0x1);
}

/// Whether the calling thread's network namespace belongs to the first user namespace.
/// `PROC_USER_INIT_INO` is the inode of that (include/linux/proc_ns.h).
fn of_host() -> io::Result<bool> {
    const PROC_USER_INIT_INO: u64 = 0xEFFF_FFFD;
    let namespace = File::open("/proc/thread-self/ns/net")?;
    // SAFETY: takes no argument beside the descriptor, which is open.
    let owner = match unsafe { request::user_namespace(namespace.as_raw_fd()) } {
        Ok(owner) => owner,
        // Outside of what the agent's own user namespace holds.
        Err(nix::errno::Errno::EPERM) => return Ok(false),
        Err(errno) => return Err(errno.into()),
    };
    // SAFETY: the kernel has just made this descriptor, for nobody else.
    let owner = File::from(unsafe { OwnedFd::from_raw_fd(owner) });
    Ok(owner.metadata()?.ino() == PROC_USER_INIT_INO)
}

impl Inside {
    /// Looks about in the calling thread's namespace.
    pub(super) fn look() -> io::Result<Self> {
        Ok(Self {
            cookie: netns_cookie::current()?,
            addresses: addresses()?,
            backlogs: backlogs()?,
            of_host: of_host()?,
        })
    }

    /// The interface that carries `ip`, if it is local here. All of 127/8 is.
    pub(super) fn device_of(&self, ip: IpAddr) -> Option<&str> {
        let carried = self.addresses.iter().find(|(address, _)| *address == ip);
        let loopback = || {
            let lo = self.addresses.iter().find(|(address, _)| address.is_loopback());
            lo.filter(|_| ip.is_loopback() && ip.is_ipv4())
        };
        carried.or_else(loopback).map(|(_, device)| device.as_str())
    }
}

fn addresses() -> io::Result<Vec<(IpAddr, String)>> {
    let mut found = Vec::new();
    for entry in nix::ifaddrs::getifaddrs()? {
        let Some(storage) = entry.address else { continue };
        let ip = match (storage.as_sockaddr_in(), storage.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::from(v4.ip()),
            (_, Some(v6)) => IpAddr::from(v6.ip()),
            _ => continue,
        };
        // An IPv4 address may have a label, `eth0:1`.
        let device = entry.interface_name.split(':').next().unwrap_or_default().to_owned();
        found.push((ip, device));
    }
    Ok(found)
}

/// Asks sock_diag for every listening TCP socket.
fn backlogs() -> io::Result<HashMap<u64, u32>> {
    let mut found = HashMap::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        Conn::open(NETLINK_SOCK_DIAG)?.dump(
            SOCK_DIAG_BY_FAMILY,
            &listeners_of(family as u8),
            |message| {
                let word = |at| nlmsg::read_u32(message.body, at);
                if let (Some(limit), Some(inode)) = (word(WQUEUE), word(INODE)) {
                    found.insert(u64::from(inode), limit);
                }
            },
        )?;
    }
    Ok(found)
}

/// `struct inet_diag_req_v2` for all listeners of a family.
fn listeners_of(family: u8) -> Attrs {
    Attrs::new()
        .raw(&[family, libc::IPPROTO_TCP as u8, 0, 0])
        .raw(&STATE_LISTEN.to_ne_bytes())
        .raw(&[0; 48])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_about_here() {
        let inside = Inside::look().unwrap();
        assert_ne!(inside.cookie, 0);
        assert_eq!(inside.device_of("127.0.0.1".parse().unwrap()), Some("lo"));
        assert_eq!(inside.device_of("127.8.9.10".parse().unwrap()), Some("lo"));
        assert_eq!(inside.device_of("192.0.2.77".parse().unwrap()), None);
    }

    #[test]
    fn the_backlog_is_what_listen_was_given() {
        use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn};
        use nix::sys::socket::{bind, listen, socket};
        let socket =
            socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
        listen(&socket, Backlog::new(37).unwrap()).unwrap();
        let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
        let inode = std::fs::metadata(path).unwrap().ino();
        assert_eq!(backlogs().unwrap().get(&inode), Some(&37));
    }
}
