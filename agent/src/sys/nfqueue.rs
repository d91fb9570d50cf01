//! The nfqueue engine: packets stay in the kernel, in a netfilter queue, until this process says
//! that they may go.
//!
//! Both the queue and the rules that fill it ([`super::nft`]) belong to sockets of this process, so
//! the kernel removes them when it ends, however it ends.
//!
//! Known limit: a packet that is held stays charged to the socket that sent it, and TCP keeps only
//! about two segments of a connection charged below its own layer (TCP Small Queues,
//! `net/ipv4/tcp_output.c`). So what fits two segments takes one delay, 8 KB take two, 64 KB about
//! eighteen; netem has no such limit. ARP is not delayed.

mod queue;
mod threads;

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use self::queue::{Queue, Stats};
use self::threads::Threads;
use super::netlink::Refusal;
use super::nft::QueueRules;
use crate::model::impairment::Receipt;

/// Queue numbers that are tried, in order.
const QUEUE_NUMBERS: std::ops::Range<u16> = 53_249..53_505;
/// How long a clear waits for stragglers: packets that met the rule just before it went.
const STRAGGLERS: Duration = Duration::from_millis(200);

/// Why the engine could not start, or what it died of.
#[derive(Debug, thiserror::Error)]
pub enum NfqueueError {
    /// Rules for this interface exist.
    #[error("the interface has a delay already")]
    Exists,
    /// Every number is taken.
    #[error(
        "netfilter queues {} to {} of this network namespace are all taken; end another user of them",
        QUEUE_NUMBERS.start, QUEUE_NUMBERS.end - 1
    )]
    NoFreeQueue,
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
}

/// A delay in force.
#[derive(Debug)]
pub struct Delay {
    rules: QueueRules,
    threads: Threads,
    queue: Arc<Queue>,
    stats: File,
    /// Largest number of packets let through that was ever seen; it must not shrink.
    passed_over: AtomicU64,
}

impl Delay {
    /// Delays what leaves interface `index` of the calling thread's namespace by `delay`.
    ///
    /// # Errors
    /// [`NfqueueError`]; nothing is left then.
    pub fn start(index: i32, delay: Duration, queue_len: u32) -> Result<Self, NfqueueError> {
        let queue = Arc::new(Self::bind(queue_len)?);
        let stats =
            queue::open_stats().map_err(NfqueueError::local("open the queues' statistics"))?;
        // The queue is served before anything can come.
        let threads = Threads::start(Arc::clone(&queue), delay)
            .map_err(NfqueueError::local("start the threads that let packets go"))?;
        let rules = match QueueRules::add(index, queue.number()) {
            Ok(rules) => rules,
            Err(Refusal { errno: Errno::EEXIST | Errno::EPERM, .. }) => {
                return Err(NfqueueError::Exists);
            }
            Err(refusal) => {
                let action = "add the nftables rule that queues packets";
                return Err(NfqueueError::Refused { action, refusal });
            }
        };
        Ok(Self { rules, threads, queue, stats, passed_over: AtomicU64::new(0) })
    }

    /// Tries whether the kernel has all that is needed, in the calling thread's namespace, on its
    /// loopback interface (1). Nothing is left.
    ///
    /// # Errors
    /// What is missing.
    pub fn probe() -> Result<(), NfqueueError> {
        Self::start(1, Duration::from_millis(1), 16)?.clear().map(drop)
    }

    fn bind(queue_len: u32) -> Result<Queue, NfqueueError> {
        let taken: Vec<u16> = match queue::open_stats() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => vec![],
            opened => opened
                .and_then(|file| queue::read_stats(&file))
                .map_err(NfqueueError::local("read the queues' statistics"))?
                .into_iter()
                .map(|stats| stats.number)
                .collect(),
        };
        for number in QUEUE_NUMBERS.filter(|number| !taken.contains(number)) {
            match Queue::bind(number, queue_len) {
                Ok(queue) => return Ok(queue),
                // Somebody else was faster.
                Err(Refusal { errno: Errno::EBUSY | Errno::EPERM, .. }) => {}
                Err(refusal) => {
                    return Err(NfqueueError::Refused {
                        action: "bind a netfilter queue",
                        refusal,
                    });
                }
            }
        }
        Err(NfqueueError::NoFreeQueue)
    }

    /// What packets got so far.
    #[must_use]
    pub fn receipt(&self) -> Receipt {
        self.threads.receipt()
    }

    /// Packets that the full queue let through undelayed, or that the kernel dropped from it. Reading
    /// it costs two system calls.
    pub fn dropped(&mut self) -> u64 {
        // First the counter, then the queue's numbering: what is numbered in between hides a loss
        // until the next look, and never invents one.
        let counted = self.rules.packets();
        let stats = self.own_stats();
        if let (Ok(counted), Some(stats)) = (counted, stats) {
            let unnumbered = (counted as u32).wrapping_sub(stats.numbered) as i32;
            let now = u64::try_from(unnumbered).unwrap_or(0) + stats.dropped;
            self.passed_over.fetch_max(now, Ordering::Relaxed);
        }
        self.passed_over.load(Ordering::Relaxed) + self.threads.skipped()
    }

    /// Why the threads gave up, if they did.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.threads.failure()
    }

    /// Lets every packet go and removes queue and rules.
    ///
    /// # Errors
    /// The kernel refused a step; what is left of it goes with this process's sockets.
    pub fn clear(mut self) -> Result<(Receipt, u64), NfqueueError> {
        let dropped = self.dropped();
        self.rules.stop().map_err(NfqueueError::refused("remove the nftables rule"))?;
        self.threads.release();
        let deadline = Instant::now() + STRAGGLERS;
        while self.own_stats().is_some_and(|stats| stats.waiting > 0) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let receipt = self.threads.stop();
        self.rules.remove().map_err(NfqueueError::refused("remove the nftables tables"))?;
        Ok((receipt, dropped))
    }

    fn own_stats(&self) -> Option<Stats> {
        let number = self.queue.number();
        queue::read_stats(&self.stats).ok()?.into_iter().find(|stats| stats.number == number)
    }
}
