//! Two network namespaces joined by a veth pair, gone when dropped.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::paths;
use super::program::Program;
use super::user;

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";
/// What the names of all laboratories begin with; the maker's pid and a number follow.
const PREFIX: &str = "dwell-";
/// Name of the veth pair's end in each namespace.
pub const DEVICE: &str = "eth0";

/// One of the two namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where the server runs.
    Server,
    /// Where its clients and its database run.
    Outside,
}

impl Side {
    const fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Outside => "outside",
        }
    }
}

/// The two namespaces. Deleted when dropped.
#[derive(Debug)]
pub struct Network {
    prefix: String,
    subnet: u32,
}

impl Network {
    /// Makes them, after removing what laboratories that were killed have left.
    ///
    /// # Errors
    /// When `ip` is missing or fails, which names the step.
    pub fn new() -> Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        sweep().context("cannot remove what an earlier laboratory left")?;
        let pid = std::process::id();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // A /30 of the range for benchmarks (RFC 2544). Other laboratories may have the same one:
        // theirs are other namespaces.
        let subnet = pid.wrapping_mul(16).wrapping_add(number) % (1 << 15);
        let network = Self { prefix: format!("{PREFIX}{pid}-{number}"), subnet };
        network.make().context("cannot make the laboratory's network")?;
        Ok(network)
    }

    fn make(&self) -> Result<()> {
        let (server, outside) = (self.name(Side::Server), self.name(Side::Outside));
        ip(&["netns", "add", &server])?;
        ip(&["netns", "add", &outside])?;
        // Made inside a namespace: the host never sees the pair.
        let pair = ["link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns"];
        let into = ["-n", server.as_str()];
        ip(&[&into[..], &pair[..], &[&outside]].concat())?;
        let ipv6 = Path::new("/proc/sys/net/ipv6").exists();
        for (name, v4, v6) in [
            (&server, self.server_v4(), self.server_v6()),
            (&outside, self.outside_v4(), self.outside_v6()),
        ] {
            ip(&["-n", name, "address", "add", &format!("{v4}/30"), "dev", DEVICE])?;
            if ipv6 {
                // No duplicate address detection: the address would be unusable for a second.
                let v6 = format!("{v6}/64");
                ip(&["-n", name, "-6", "address", "add", &v6, "dev", DEVICE, "nodad"])?;
            }
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            ip(&["-n", name, "link", "set", DEVICE, "up"])?;
        }
        Ok(())
    }

    /// Name of a namespace, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self, side: Side) -> String {
        format!("{}-{}", self.prefix, side.name())
    }

    /// Path that stands for a namespace.
    #[must_use]
    pub fn path(&self, side: Side) -> PathBuf {
        Path::new(NAMES).join(self.name(side))
    }

    fn v4(&self, host: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + self.subnet * 4 + host)
    }

    /// The server's address.
    #[must_use]
    pub fn server_v4(&self) -> Ipv4Addr {
        self.v4(1)
    }

    /// Address of the database and of the load generator.
    #[must_use]
    pub fn outside_v4(&self) -> Ipv4Addr {
        self.v4(2)
    }

    /// The server's address, where the kernel has IPv6. Unique local (RFC 4193).
    #[must_use]
    pub fn server_v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd64, 0x7765, 0x6c6c, self.subnet as u16, 0, 0, 0, 1)
    }

    /// The outside's, likewise.
    #[must_use]
    pub fn outside_v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd64, 0x7765, 0x6c6c, self.subnet as u16, 0, 0, 0, 2)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for side in [Side::Server, Side::Outside] {
            if self.path(side).exists()
                && let Err(error) = delete(&self.name(side))
            {
                eprintln!("network namespace {} is left behind: {error:#}", self.name(side));
            }
        }
    }
}

/// Runs `ip` as root.
fn ip(args: &[&str]) -> Result<String> {
    Program::new(paths::system("ip")?).args(args.iter().copied()).identity(user::root()).run()
}

/// Ends every program in one of our namespaces and deletes it; its devices go with it.
fn delete(name: &str) -> Result<()> {
    for pid in ip(&["netns", "pids", name])?.split_whitespace() {
        Program::new(paths::system("kill")?)
            .args(["-KILL", pid])
            .identity(user::root())
            .output()?;
    }
    ip(&["netns", "delete", name]).map(drop)
}

/// Removes the namespaces of laboratories whose maker is gone.
fn sweep() -> Result<()> {
    let entries = match std::fs::read_dir(NAMES) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(NAMES),
    };
    for entry in entries {
        let name = entry.context(NAMES)?.file_name();
        let Some(name) = name.to_str() else { continue };
        if maker(name).is_some_and(|pid| kill(pid, None::<Signal>) == Err(Errno::ESRCH)) {
            delete(name)?;
        }
    }
    Ok(())
}

/// The process that made a namespace, if its name is one of ours.
fn maker(name: &str) -> Option<Pid> {
    let (pid, rest) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let (number, side) = rest.split_once('-')?;
    let ours = [Side::Server, Side::Outside].iter().any(|known| known.name() == side);
    number.parse::<u32>().ok().filter(|_| ours)?;
    pid.parse().ok().filter(|pid| *pid > 1).map(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_laboratories_have_a_maker() {
        assert_eq!(maker("dwell-4321-0-server"), Some(Pid::from_raw(4321)));
        assert_eq!(maker("dwell-4321-7-outside"), Some(Pid::from_raw(4321)));
        for other in [
            "dwell-4321-server",
            "dwell-0-0-server",
            "dwell--1-0-server",
            "eth0",
            "dwell-x-0-server",
            "dwell-5-0-other",
        ] {
            assert_eq!(maker(other), None, "{other}");
        }
    }

    #[test]
    fn addresses_stay_in_the_range_for_benchmarks() {
        for subnet in [0, 1, (1 << 15) - 1] {
            // Dropping it would look for namespaces: leave that out.
            let network = std::mem::ManuallyDrop::new(Network { prefix: "x".to_owned(), subnet });
            assert_eq!(network.server_v4().octets()[1] & 0xfe, 18);
            assert_eq!(network.server_v4().octets()[0], 198);
            assert_eq!(u32::from(network.outside_v4()) / 4, u32::from(network.server_v4()) / 4);
        }
    }
}
