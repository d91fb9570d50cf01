//! The nfqueue engine: packets stay in the kernel, in a netfilter queue, until this process says
//! that they may go.
//!
//! What leaves a device takes a way of ours through a helper bridge ([`bridge`]) and is queued there.
//! What comes in, and what loopback carries, is queued where it arrives (PREROUTING). Where the
//! kernel cannot build the bridge, what leaves is queued at POSTROUTING: then TCP feels that its
//! packets are held (see [`Delay::weakness`]).
//!
//! Queues and the rules that fill them ([`super::nft`]) belong to sockets of this process, so the
//! kernel removes them when it ends, however it ends. ARP is not delayed.

mod bridge;
mod path;
mod queue;
mod redirect;
mod threads;

use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::time::Duration;

use agent_common::filter::{ARRIVING, LEAVING};
use nix::errno::Errno;

use self::path::Path;
use self::queue::Queue;
use super::link;
use super::netlink::Refusal;
use super::nft::Place;
use crate::model::filter::{FilterError, PacketFilter};
use crate::model::held_times::HeldTimes;
use crate::model::holding::{Holding, Tally};
use crate::model::impairment::{Direction, Receipt};
use crate::model::netem::NetemOptions;
use crate::model::rtlink;
use crate::model::scheduler::{Scheduler, Unable};

/// Queue numbers that are tried, in order.
const QUEUE_NUMBERS: std::ops::Range<u16> = 53_249..53_505;
/// Room in the kernel beyond the limit, which this process enforces: for packets of which it has not
/// heard yet. What finds no room passes undelayed, and is counted.
const SLACK: u32 = 4_096;

/// Why the engine could not start, or what it died of.
#[derive(Debug, thiserror::Error)]
pub enum NfqueueError {
    /// The options are not for this engine.
    #[error(transparent)]
    Unable(#[from] Unable),
    /// The filter has too many rules.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// Rules for this interface exist.
    #[error("the interface has a delay already")]
    Exists,
    /// Every number is taken.
    #[error(
        "netfilter queues {} to {} of this network namespace are all taken; end another user of them",
        QUEUE_NUMBERS.start, QUEUE_NUMBERS.end - 1
    )]
    NoFreeQueue,
    /// It is a part of another interface, which is what netfilter sees.
    #[error(
        "{device} is a part of a {kind}, and netfilter sees the packets of that: impair the {kind}, \
             or only what leaves (direction egress)"
    )]
    Part {
        /// Interface.
        device: String,
        /// Kind of the other one.
        kind: String,
    },
    /// The kernel lacks a part of the helper bridge.
    #[error("{0}")]
    Unsupported(String),
    /// The kernel refused.
    #[error("{action}: {refusal}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// Its answer.
        refusal: Refusal,
    },
    /// Something of this process failed.
    #[error("{action}: {source}")]
    Local {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl NfqueueError {
    fn refused(action: &'static str) -> impl FnOnce(Refusal) -> Self {
        move |refusal| Self::Refused { action, refusal }
    }

    fn local(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Local { action, source }
    }

    fn statistics(source: io::Error) -> Self {
        Self::Local { action: "read the queues' statistics", source }
    }
}

/// What packets got, and what became of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// How long those that were held and let go were held.
    pub receipt: Receipt,
    /// Dropped, since that was asked (loss).
    pub lost: u64,
    /// Dropped against the wish of nobody, or let through undelayed: no room.
    pub dropped: u64,
    /// Gone later than one that came after them.
    pub reordered: u64,
    /// Most that were held at once, of either direction.
    pub largest_backlog: u64,
}

/// An impairment in force.
#[derive(Debug)]
pub struct Delay {
    paths: Vec<Path>,
    weakness: Option<String>,
}

impl Delay {
    /// Impairs interface `index` of the calling thread's namespace as `options` say. The jitter
    /// follows `table`, as netem's distributions do, and is uniform without one. On loopback every
    /// packet leaves and comes in at once: it is impaired once, whatever the direction.
    ///
    /// # Errors
    /// [`NfqueueError`]; nothing is left then.
    pub fn start(
        index: i32,
        options: &NetemOptions,
        table: Option<&[i16]>,
        direction: Direction,
    ) -> Result<Self, NfqueueError> {
        Self::start_filtered(index, options, table, direction, &PacketFilter::default())
    }

    /// As [`Self::start`], for the packets that `filter` takes. The others pass as if nothing were
    /// there.
    ///
    /// # Errors
    /// As [`Self::start`], or the filter has too many rules.
    pub fn start_filtered(
        index: i32,
        options: &NetemOptions,
        table: Option<&[i16]>,
        direction: Direction,
        filter: &PacketFilter,
    ) -> Result<Self, NfqueueError> {
        let room = options.limit_packets.saturating_add(SLACK);
        Self::begin(index, options, table, direction, filter, room)
    }

    /// As [`Self::start`], with a kernel queue for `room` packets; what finds none passes undelayed.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with_room(
        index: i32,
        options: &NetemOptions,
        table: Option<&[i16]>,
        direction: Direction,
        room: u32,
    ) -> Result<Self, NfqueueError> {
        Self::begin(index, options, table, direction, &PacketFilter::default(), room)
    }

    fn begin(
        index: i32,
        options: &NetemOptions,
        table: Option<&[i16]>,
        direction: Direction,
        filter: &PacketFilter,
        room: u32,
    ) -> Result<Self, NfqueueError> {
        let rules = |ways| (!filter.is_all()).then(|| filter.rules(ways)).transpose();
        // Each direction has random numbers of its own, as two qdiscs would; a seed makes both alike.
        let holding = || Scheduler::new(options, table, any_seed()).map(Holding::new);
        let ready = holding()?;
        let mut route = link::open().map_err(NfqueueError::refused("open rtnetlink"))?;
        let device = link::find(&mut route, |link| link.index == index)
            .map_err(NfqueueError::refused("find the interface"))?;
        drop(route);
        if device.hardware == rtlink::ARPHRD_LOOPBACK {
            let rules = rules(LEAVING | ARRIVING)?;
            let path = Path::by_rule(Place::In(index), &device, ready, room, rules.as_ref())?;
            return Ok(Self { paths: vec![path], weakness: None });
        }
        let (mut paths, mut weakness) = (Vec::new(), None);
        if direction != Direction::Ingress {
            let rules = rules(LEAVING)?;
            paths.push(match Path::by_bridge(&device, ready, room, rules.as_ref()) {
                Err(NfqueueError::Unsupported(reason)) => {
                    weakness = Some(reason);
                    Path::by_rule(Place::Out(index), &device, holding()?, room, rules.as_ref())?
                }
                other => other?,
            });
        }
        if direction != Direction::Egress {
            let rules = rules(ARRIVING)?;
            let path = Path::by_rule(Place::In(index), &device, holding()?, room, rules.as_ref())?;
            paths.push(path);
        }
        Ok(Self { paths, weakness })
    }

    /// Impairs as `options` and `table` say from now on. Packets that are held keep their time. What
    /// packets got is told of those that come from now on; how many were held, and are in no receipt,
    /// is returned.
    ///
    /// # Errors
    /// The options are not for this engine: then nothing was changed. Or the kernel refused.
    pub fn change(
        &mut self,
        options: &NetemOptions,
        table: Option<&[i16]>,
    ) -> Result<u64, NfqueueError> {
        let scheduler = || Scheduler::new(options, table, any_seed());
        let ready: Vec<_> = self.paths.iter().map(|_| scheduler()).collect::<Result<_, _>>()?;
        let room = options.limit_packets.saturating_add(SLACK);
        self.paths.iter_mut().zip(ready).map(|(path, ready)| path.change(ready, room)).sum()
    }

    /// Delays by `latency` from now on, and decides all else as before. With `anew`, what packets got
    /// is told of those that come from now on; how many were held, and are in no receipt, is returned.
    pub fn set_latency(&self, latency: Duration, anew: bool) -> u64 {
        let latency_ns = i64::try_from(latency.as_nanos()).unwrap_or(i64::MAX);
        self.paths.iter().map(|path| path.set_latency(latency_ns, anew)).sum()
    }

    /// Tries whether the kernel has all that is needed, in the calling thread's namespace, on its
    /// loopback interface (1). Nothing is left.
    ///
    /// # Errors
    /// What is missing.
    pub fn probe() -> Result<(), NfqueueError> {
        let options =
            NetemOptions { latency_ns: 1_000_000, limit_packets: 16, ..NetemOptions::default() };
        Self::start(1, &options, None, Direction::Egress)?.clear().map(drop)
    }

    /// Waits until what a killed agent's impairment of interface `index` left in the calling thread's
    /// namespace is gone: the kernel removes it, up to a second later. What stays longer is a live
    /// agent's.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn await_stale(index: i32) -> Result<(), NfqueueError> {
        bridge::await_stale(index)
            .map_err(NfqueueError::refused("look for what a killed agent left"))
    }

    /// Why what leaves is held at POSTROUTING, if it is: TCP then keeps only about two segments of a
    /// connection on their way, so that what is longer takes more than one delay to send.
    #[must_use]
    pub fn weakness(&self) -> Option<&str> {
        self.weakness.as_deref()
    }

    /// What packets got so far.
    #[must_use]
    pub fn receipt(&self) -> Receipt {
        receipt(self.paths.iter().map(Path::times))
    }

    /// Everything that is known of packets so far. Costs some system calls.
    pub fn account(&mut self) -> Account {
        let dropped = self.paths.iter_mut().map(Path::dropped).sum();
        let tallies = self.paths.iter().map(Path::tally);
        account(self.receipt(), tallies, dropped)
    }

    /// Packets that were dropped or let through undelayed for want of room. Reading it costs some
    /// system calls.
    pub fn dropped(&mut self) -> u64 {
        self.paths.iter_mut().map(|path| path.dropped() + path.tally().full).sum()
    }

    /// Why it no longer works, if it does not. Costs a system call or two.
    pub fn failure(&mut self) -> Option<String> {
        self.paths.iter_mut().find_map(Path::failure)
    }

    /// Lets every packet go and removes everything.
    ///
    /// # Errors
    /// The kernel refused a step; what is left of it goes with this process's sockets.
    pub fn clear(self) -> Result<Account, NfqueueError> {
        let mut paths = self.paths;
        let settled: Vec<_> = paths.iter_mut().map(Path::settle).collect();
        let settled: Vec<path::Settled> = settled.into_iter().collect::<Result<_, _>>()?;
        let ended: Vec<_> =
            paths.into_iter().zip(&settled).map(|(path, settled)| path.end(settled)).collect();
        let ended: Vec<path::Ended> = ended.into_iter().collect::<Result<_, _>>()?;
        let dropped = ended.iter().map(|path| path.dropped).sum();
        let tallies = ended.iter().map(|path| path.tally);
        let receipt = receipt(ended.iter().map(|path| path.times.clone()));
        Ok(account(receipt, tallies, dropped))
    }
}

fn receipt(times: impl Iterator<Item = HeldTimes>) -> Receipt {
    let sum = times.reduce(|mut sum, other| {
        sum.add(&other);
        sum
    });
    let none = Receipt { packets: 0, p50_ns: 0, p99_ns: 0, max_ns: 0 };
    sum.map_or(none, |times| times.receipt())
}

fn account(receipt: Receipt, tallies: impl Iterator<Item = Tally>, dropped: u64) -> Account {
    let nothing = Account { receipt, lost: 0, dropped, reordered: 0, largest_backlog: 0 };
    tallies.fold(nothing, |sum, tally| Account {
        lost: sum.lost + tally.lost,
        dropped: sum.dropped + tally.full,
        reordered: sum.reordered + tally.reordered,
        largest_backlog: sum.largest_backlog.max(tally.largest_backlog),
        ..sum
    })
}

/// A number that nobody chose: the standard library's hash maps are seeded by the kernel.
fn any_seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

/// Binds a free queue in the calling thread's namespace.
fn bind(room: u32, lengths: bool) -> Result<Queue, NfqueueError> {
    let taken: Vec<u16> = match queue::open_stats() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => vec![],
        opened => opened
            .and_then(|file: File| queue::read_stats(&file))
            .map_err(NfqueueError::statistics)?
            .into_iter()
            .map(|stats| stats.number)
            .collect(),
    };
    for number in QUEUE_NUMBERS.filter(|number| !taken.contains(number)) {
        match Queue::bind(number, room, lengths) {
            Ok(queue) => return Ok(queue),
            // Somebody else was faster.
            Err(Refusal { errno: Errno::EBUSY | Errno::EPERM, .. }) => {}
            Err(refusal) => {
                return Err(NfqueueError::Refused { action: "bind a netfilter queue", refusal });
            }
        }
    }
    Err(NfqueueError::NoFreeQueue)
}
