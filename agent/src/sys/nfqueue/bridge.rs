//! The helper bridge: a way out of the device and back to it that leads through a bridge in a
//! namespace of ours, where packets are queued.
//!
//! Held there, a packet is charged to no socket: TCP keeps only about two segments of a connection
//! charged below its own layer (TCP Small Queues, net/ipv4/tcp_output.c), and a bridge's netfilter
//! hook lets go of the socket (`setup_pre_routing`, net/bridge/br_netfilter_hooks.c).
//!
//! All of it ends with this process: the links by their file descriptors, the namespace with the
//! last socket in it, and with the namespace one end of the veth pair, which takes the other along.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use agent_common::filter::Filter;
use nix::errno::Errno;

use super::queue::Queue;
use super::redirect::{RedirectError, Redirects};
use super::{NfqueueError, bind, queue};
use crate::model::rtlink::{self, ARPHRD_ETHER, Link};
use crate::sys::link;
use crate::sys::netlink::{Conn, Refusal};
use crate::sys::netns::Netns;
use crate::sys::nft::{Place, QueueRules};

/// Names within our namespace.
const BRIDGE: &str = "bridge";
const INNER: &str = "inner";
/// Index of our end: one that the other end does not have. If both had the same, the kernel would
/// take each for a device of its own and let the news of its carrier wait up to a second
/// (`linkwatch_urgent_event`, net/core/link_watch.c).
const INNER_INDEX: i32 = 1_000_000_000;
/// How long a port may take to forward: its carrier can show up to a second late.
const PORT_PATIENCE: Duration = Duration::from_secs(3);

/// The way through the bridge. Dropping it takes it down; packets in the queue are lost then.
#[derive(Debug)]
pub(super) struct Bridge {
    pair: Pair,
    outer: i32,
    name: String,
    redirects: Redirects,
}

/// What is in our namespace, ready to queue.
#[derive(Debug)]
pub(super) struct Inside {
    pub(super) pair: Pair,
    pub(super) queue: Queue,
    pub(super) stats: File,
    pub(super) rules: QueueRules,
}

/// The veth pair, by the end in our namespace. Removed when dropped.
#[derive(Debug)]
pub(super) struct Pair {
    route: Conn,
}

impl Drop for Pair {
    fn drop(&mut self) {
        // It may be gone with the other end's namespace; what else fails, the namespace's end does.
        let _ = link::remove(&mut self.route, INNER_INDEX);
    }
}

/// Name of the end that is seen in the device's namespace; one per device, so that the kernel itself
/// refuses a second.
fn outer_name(device: i32) -> String {
    format!("dwell{device}")
}

/// Waits until the kernel has removed from the calling thread's namespace what an agent that is gone
/// had there for `device`. Not removed here: another agent, whose files are elsewhere, may have the
/// same name there by now.
pub(super) fn await_stale(device: i32) -> Result<(), Refusal> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let (mut route, name) = (link::open()?, outer_name(device));
    let start = Instant::now();
    while link::list(&mut route)?.iter().any(|link| link.name == name) && start.elapsed() < PATIENCE
    {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn unsupported(reason: impl Into<String>) -> NfqueueError {
    NfqueueError::Unsupported(reason.into())
}

/// For requests whose refusal may mean that the kernel lacks a part.
fn refused(action: &'static str) -> impl Fn(Refusal) -> NfqueueError {
    move |refusal| match refusal.errno {
        Errno::EEXIST => NfqueueError::Exists,
        Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT => unsupported(format!("{action}: {refusal}")),
        _ => NfqueueError::Refused { action, refusal },
    }
}

impl Inside {
    /// Makes the namespace and everything in it, for `device` of the calling thread's namespace.
    pub(super) fn make(device: &Link, room: u32, lengths: bool) -> Result<Self, NfqueueError> {
        if device.hardware != ARPHRD_ETHER {
            return Err(unsupported(format!("{} is no Ethernet device", device.name)));
        }
        let target = Netns::current().map_err(|error| unsupported(error.to_string()))?;
        Netns::run_in_scratch(|| Self::make_here(&target, device, room, lengths))
            .map_err(|error| unsupported(error.to_string()))?
    }

    fn make_here(
        target: &Netns,
        device: &Link,
        room: u32,
        lengths: bool,
    ) -> Result<Self, NfqueueError> {
        // Loading it would put every bridge of the host behind iptables: not ours to do.
        if !Path::new("/proc/sys/net/bridge").exists() {
            return Err(unsupported("br_netfilter is not loaded"));
        }
        // No address, no neighbour discovery, no multicast reports: this namespace says nothing.
        for conf in ["all", "default"] {
            disable_ipv6(conf);
        }
        let mut route = link::open().map_err(refused("open rtnetlink"))?;
        let make_bridge = rtlink::new_bridge(BRIDGE);
        link::make(&mut route, &make_bridge).map_err(refused("make a bridge"))?;
        let fd = target.as_fd().as_raw_fd().cast_unsigned();
        let outer = outer_name(device.index);
        let make_pair = rtlink::new_veth((INNER_INDEX, INNER), &outer, fd, device.gso);
        link::make(&mut route, &make_pair).map_err(refused("make a veth pair"))?;
        let mut pair = Pair { route };
        let bridge = index_of(&mut pair.route, BRIDGE)?;
        let inner = INNER_INDEX;
        let mut change = |content| {
            link::change(&mut pair.route, &content).map_err(refused("set up the helper bridge"))
        };
        change(rtlink::set_master(inner, bridge))?;
        change(rtlink::set_reflecting_port(inner))?;
        // A kernel without IPv6 has none to turn off.
        let _ = change(rtlink::set_no_ipv6_address(inner));
        let _ = change(rtlink::set_no_ipv6_address(bridge));
        change(rtlink::set_up(bridge))?;
        change(rtlink::set_up(inner))?;

        let queue = bind(room, lengths)?;
        let stats = queue::open_stats().map_err(NfqueueError::statistics)?;
        let place = Place::Bridge(device.index);
        let rules = QueueRules::add(place, queue.number(), None)
            .map_err(refused("add the nftables rule that queues packets"))?;
        Ok(Self { pair, queue, stats, rules })
    }
}

impl Bridge {
    /// Leads what leaves `device` and `filter` takes through `pair`, in the calling thread's namespace. The queue must
    /// be served by then.
    pub(super) fn connect(
        mut pair: Pair,
        device: &Link,
        filter: Option<&Filter>,
    ) -> Result<Self, NfqueueError> {
        let name = outer_name(device.index);
        disable_ipv6(&name);
        let mut route = link::open().map_err(refused("open rtnetlink"))?;
        let outer = index_of(&mut route, &name)?;
        let _ = link::change(&mut route, &rtlink::set_no_ipv6_address(outer));
        link::change(&mut route, &rtlink::set_up(outer)).map_err(refused("set a veth up"))?;
        pair.wait_until_forwarding()?;
        // `route` would keep the device's namespace alive.
        drop(route);
        let redirects = Redirects::attach((device.index, &device.name), (outer, &name), filter);
        let redirects = redirects.map_err(|error| match error {
            RedirectError::NoTcx => unsupported(error.to_string()),
            RedirectError::Other(reason) => NfqueueError::Local {
                action: "attach the programs that redirect packets",
                source: io::Error::other(reason),
            },
        })?;
        Ok(Self { pair, outer, name, redirects })
    }

    /// From now on packets go straight out of the device; those inside still find their way.
    pub(super) fn stop(&mut self) {
        self.redirects.stop();
    }

    /// Why packets no longer get through, if they do not. What leaves the device is lost then, until
    /// this is taken down.
    pub(super) fn failure(&mut self) -> Option<String> {
        match self.pair.link() {
            Ok(link) if link.forwarding => None,
            Ok(_) => Some(format!("somebody took the veth {} down", self.name)),
            Err(refusal) if refusal.errno == Errno::ENODEV => {
                Some(format!("somebody removed the veth {}", self.name))
            }
            // The next look asks again.
            Err(_) => None,
        }
    }

    /// Packets that went in and did not come out yet, those lost inside included; None if the pair
    /// is gone.
    pub(super) fn inside(&mut self) -> Option<u64> {
        let counters = self.pair.link().ok()?.counters;
        Some(counters.rx_packets.saturating_sub(counters.tx_packets))
    }

    /// Packets for which there was no room on the way in or out. Each end counts those it sends; the
    /// other end is asked for from here, since a socket over there would keep its namespace alive.
    pub(super) fn dropped(&mut self) -> u64 {
        let Ok(inner) = self.pair.link() else { return 0 };
        let others = inner.peer_netnsid.map(|id| link::list_in(&mut self.pair.route, id));
        let others = others.and_then(Result::ok).unwrap_or_default();
        let outer = others.iter().find(|link| link.index == self.outer);
        inner.counters.dropped + outer.map_or(0, |link| link.counters.dropped)
    }
}

impl Pair {
    fn link(&mut self) -> Result<Link, Refusal> {
        link::find(&mut self.route, |link| link.index == INNER_INDEX)
    }

    /// Before that the bridge would swallow packets.
    fn wait_until_forwarding(&mut self) -> Result<(), NfqueueError> {
        let action = "wait for the helper bridge";
        let deadline = Instant::now() + PORT_PATIENCE;
        while !self.link().map_err(refused(action))?.forwarding {
            if Instant::now() > deadline {
                let source = io::ErrorKind::TimedOut.into();
                return Err(NfqueueError::Local { action, source });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

fn index_of(route: &mut Conn, name: &str) -> Result<i32, NfqueueError> {
    let found = link::find(route, |link| link.name == name);
    found.map(|link| link.index).map_err(refused("find what was made"))
}

/// In the calling thread's namespace. Fails where /proc/sys may not be written, as in some
/// containers; an interface without an address says next to nothing anyway.
fn disable_ipv6(conf: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{conf}/disable_ipv6"), "1");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_fits() {
        // IFNAMSIZ, with the zero at its end.
        assert!(outer_name(i32::MAX).len() < 16);
    }
}
