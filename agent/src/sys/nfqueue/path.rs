//! One way that packets take: what fills a queue, the queue, and the threads that serve it.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agent_common::filter::Filter;
use nix::errno::Errno;

use super::bridge::{Bridge, Inside};
use super::queue::{self, Queue, Stats};
use super::threads::Threads;
use super::{NfqueueError, bind};
use crate::model::held_times::HeldTimes;
use crate::model::holding::{Holding, Tally};
use crate::model::rtlink::Link;
use crate::model::scheduler::Scheduler;
use crate::sys::netlink::Refusal;
use crate::sys::nft::{Place, QueueRules};
use crate::sys::scope::Picker;

/// How long a clear waits for packets that had begun their way when it came.
const STRAGGLERS: Duration = Duration::from_millis(200);

/// How long what is held may take to go in a clear.
const RELEASE: Duration = Duration::from_secs(1);
/// A packet takes far less from the rules' counter to its number in the queue.
const CONFIRM: Duration = Duration::from_millis(2);

/// A way in force.
#[derive(Debug)]
pub(super) struct Path {
    /// Where it leads through one. Before the threads, so that nothing more comes when those end.
    bridge: Option<Bridge>,
    threads: Threads,
    rules: QueueRules,
    queue: Arc<Queue>,
    /// Packets that the queue takes.
    room: u32,
    /// Whether packets come with their lengths.
    lengths: bool,
    stats: File,
    /// Largest number of packets let through that was ever seen; it must not shrink.
    passed_over: AtomicU64,
}

/// What became of packets on a way that takes no more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settled {
    tally: Tally,
    dropped: u64,
}

/// What a way came to.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) times: HeldTimes,
    pub(super) tally: Tally,
    pub(super) dropped: u64,
}

impl Path {
    /// Queues packets at `place` that `filter` takes.
    pub(super) fn by_rule(
        place: Place,
        device: &Link,
        holding: Holding,
        room: u32,
        filter: Option<&Filter>,
    ) -> Result<Self, NfqueueError> {
        // At these hooks a bridge's or a bond's packets show the bridge or the bond. A VRF hands its
        // packets on to the routing of its parts.
        if let Some(master) = device.master.as_ref().filter(|master| master.kind != "vrf") {
            let (device, kind) = (device.name.clone(), master.kind.clone());
            return Err(NfqueueError::Part { device, kind });
        }
        let failed = |reason: String| {
            let source = std::io::Error::other(reason);
            NfqueueError::Local { action: "load the program that picks packets", source }
        };
        let picker = filter.map(Picker::for_netfilter).transpose().map_err(failed)?;
        let lengths = holding.needs_lengths();
        let queue = Arc::new(bind(room, lengths)?);
        let stats = queue::open_stats().map_err(NfqueueError::statistics)?;
        // The queue is served before anything can come.
        let threads = serve(&queue, device, holding)?;
        let program = picker.as_ref().map(Picker::fd).transpose().map_err(failed)?;
        let rules = match QueueRules::add(place, queue.number(), program) {
            Ok(rules) => rules,
            Err(Refusal { errno: Errno::EEXIST | Errno::EPERM, .. }) => {
                return Err(NfqueueError::Exists);
            }
            Err(refusal) => {
                let action = match program {
                    None => "add the nftables rule that queues packets",
                    Some(_) => {
                        "add the nftables rule that picks and queues packets (module xt_bpf)"
                    }
                };
                return Err(NfqueueError::Refused { action, refusal });
            }
        };
        let passed_over = AtomicU64::new(0);
        Ok(Self { bridge: None, threads, rules, queue, room, lengths, stats, passed_over })
    }

    /// Leads what leaves `device` and `filter` takes through a bridge and queues it there.
    pub(super) fn by_bridge(
        device: &Link,
        holding: Holding,
        room: u32,
        filter: Option<&Filter>,
    ) -> Result<Self, NfqueueError> {
        let lengths = holding.needs_lengths();
        let Inside { pair, queue, stats, rules } = Inside::make(device, room, lengths)?;
        let queue = Arc::new(queue);
        let threads = serve(&queue, device, holding)?;
        let bridge = Some(Bridge::connect(pair, device, filter)?);
        let passed_over = AtomicU64::new(0);
        Ok(Self { bridge, threads, rules, queue, room, lengths, stats, passed_over })
    }

    /// Decides by `scheduler` from now on, with `room` packets in the queue; how many were held then.
    pub(super) fn change(&mut self, scheduler: Scheduler, room: u32) -> Result<u64, NfqueueError> {
        // Not less: while more than that are held, new ones would pass undelayed.
        let (room, lengths) = (room.max(self.room), self.lengths || scheduler.needs_lengths());
        if (room, lengths) != (self.room, self.lengths) {
            self.queue
                .change(room, lengths)
                .map_err(NfqueueError::refused("change the netfilter queue"))?;
            // News that was sent before is read by then; it has no lengths.
            std::thread::sleep(CONFIRM);
            (self.room, self.lengths) = (room, lengths);
        }
        Ok(self.threads.change(|holding| holding.change(scheduler), true))
    }

    /// Delays by this from now on; with `anew`, times are of what comes from now on, and how many were
    /// held is returned.
    pub(super) fn set_latency(&self, latency_ns: i64, anew: bool) -> u64 {
        self.threads.change(|holding| holding.set_latency(latency_ns), anew)
    }

    pub(super) fn times(&self) -> HeldTimes {
        self.threads.times()
    }

    pub(super) fn tally(&self) -> Tally {
        self.threads.tally()
    }

    /// Packets that the full queue let through undelayed, or that were dropped against all wishes.
    pub(super) fn dropped(&mut self) -> u64 {
        let passed_over = self.passed_over();
        self.passed_over.fetch_max(passed_over, Ordering::Relaxed);
        let on_the_way = self.bridge.as_mut().map_or(0, Bridge::dropped);
        self.passed_over.load(Ordering::Relaxed) + self.threads.missed() + on_the_way
    }

    /// First the rules' counter, then the queue's numbering: what is numbered in between hides a loss
    /// until the next look. A packet on its way from one to the other would invent one, so a second
    /// look has to confirm it.
    fn passed_over(&mut self) -> u64 {
        let Ok(counted) = self.rules.packets() else { return 0 };
        let look = |path: &Self| {
            path.own_stats().map_or(0, |stats| {
                let unnumbered = (counted as u32).wrapping_sub(stats.numbered) as i32;
                u64::try_from(unnumbered).unwrap_or(0) + stats.dropped
            })
        };
        let first = look(self);
        if first == 0 {
            return 0;
        }
        std::thread::sleep(CONFIRM);
        first.min(look(self))
    }

    pub(super) fn failure(&mut self) -> Option<String> {
        self.threads.failure().or_else(|| self.bridge.as_mut().and_then(Bridge::failure))
    }

    /// Lets every packet go and sends no more here. Removing a table makes the kernel drop all that is
    /// queued in its namespace, so every path is settled before any is [ended](Self::end).
    pub(super) fn settle(&mut self) -> Result<Settled, NfqueueError> {
        let dropped = self.dropped();
        // What is held goes first, and what comes meanwhile follows through the queue: no packet
        // overtakes another.
        self.threads.release(RELEASE);
        match &mut self.bridge {
            Some(bridge) => bridge.stop(),
            None => self.rules.stop().map_err(NfqueueError::refused("remove the nftables rule"))?,
        }
        let deadline = Instant::now() + STRAGGLERS;
        let mut inside = self.inside();
        while inside > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
            inside = self.inside();
        }
        Ok(Settled { tally: self.tally(), dropped: dropped + inside })
    }

    /// Takes the way down.
    pub(super) fn end(mut self, settled: &Settled) -> Result<Ended, NfqueueError> {
        self.threads.stop();
        drop(self.bridge.take());
        self.rules.remove().map_err(NfqueueError::refused("remove the nftables tables"))?;
        let Settled { tally, dropped } = *settled;
        Ok(Ended { times: self.threads.times(), tally, dropped })
    }

    /// Packets that are still on their way, as far as is known: those that a bridge swallowed, such
    /// as broken ones, stay in this number.
    fn inside(&mut self) -> u64 {
        let gone = self.tally().lost + self.tally().full + self.threads.missed();
        match self.bridge.as_mut().and_then(Bridge::inside) {
            Some(inside) => inside.saturating_sub(gone),
            None => self.own_stats().map_or(0, |stats| stats.waiting),
        }
    }

    fn own_stats(&self) -> Option<Stats> {
        let number = self.queue.number();
        queue::read_stats(&self.stats).ok()?.into_iter().find(|stats| stats.number == number)
    }
}

fn serve(queue: &Arc<Queue>, device: &Link, holding: Holding) -> Result<Threads, NfqueueError> {
    Threads::start(Arc::clone(queue), device.mtu, holding)
        .map_err(NfqueueError::local("start the threads that let packets go"))
}
