//! A measurement in progress, whoever it is for: probes are drained every few milliseconds, windows
//! closed every second.

use agent_common::{
    abi::{QueueGauge, ThreadTime},
    wire::Window,
};

use crate::{
    inject::Outcome,
    model::aggregate::{Aggregator, Counters, Snapshot},
    sys::observe::{Event, ObserveError, Observer},
};

const MS: u64 = 1_000_000;
/// The ring buffer is looked at this often. Nothing wakes the agent: see agent-ebpf's emit.
const DRAIN_EVERY_NS: u64 = 5 * MS;
/// A record waits at most this long for its batch to fill.
const FLUSH_EVERY_NS: u64 = 100 * MS;
/// Length of a window.
const WINDOW_NS: u64 = 1_000 * MS;

/// Probes that are attached; dropping them detaches them.
pub(crate) trait Probes {
    /// Takes further processes into the service.
    ///
    /// # Errors
    /// There are more than fit.
    fn follow(&mut self, tgids: &[u32]) -> Result<(), ObserveError>;
    /// Hands over every record that waits. Never blocks.
    fn drain(&mut self, sink: &mut dyn FnMut(Event));
    /// Every thread's counters, open intervals closed at `now_ns`.
    fn threads(&mut self, now_ns: u64) -> Vec<ThreadTime>;
    /// The accept queue.
    fn queue(&mut self) -> QueueGauge;
    /// Losses and oddities.
    fn counters(&mut self) -> Counters;
    /// Detaches the probes, and gives what waits and what is in progress on every live socket.
    fn outstanding(&mut self) -> Vec<Event>;
    /// Path of the Unix socket to a database, if one was seen.
    fn unix_database(&mut self) -> Option<String>;
}

/// What is read beside the probes.
pub(crate) trait Surroundings {
    /// ListenDrops of the service's namespace; None if the kernel does not tell.
    fn listen_drops(&self) -> Option<u64>;
    /// What the injector did so far, if it is at work.
    fn outcome(&self) -> Option<Outcome>;
    /// Name of one of the service's threads.
    fn thread_name(&self, tgid: u32, tid: u32) -> Option<String>;
}

/// Whom it is for.
pub(crate) trait Sink {
    /// One record. Ends of threads do not come: they are in the windows.
    fn record(&mut self, event: Event);
    /// What was in progress when the measurement ended.
    fn outstanding(&mut self, event: Event);
    /// Records have waited long enough.
    fn flush(&mut self);
    /// A window was closed.
    fn window(&mut self, window: Window);
}

/// What is known at the end.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Losses and oddities of the kernel half.
    pub(crate) counters: Counters,
    /// Path of a Unix socket through which the service reaches a database, if seen.
    pub(crate) unix_database: Option<String>,
}

/// Probes, and what is made of their counters.
pub(crate) struct Measurement {
    probes: Box<dyn Probes>,
    aggregator: Aggregator,
    unix_database: Option<String>,
    next_drain_ns: u64,
    next_flush_ns: u64,
    next_window_ns: u64,
}

impl Measurement {
    /// Begins with probes that were attached by `now_ns`.
    pub(crate) fn start(
        mut probes: Box<dyn Probes>,
        around: &dyn Surroundings,
        now_ns: u64,
    ) -> Self {
        let first = snapshot(probes.as_mut(), around, now_ns);
        Self {
            probes,
            aggregator: Aggregator::new(first),
            unix_database: None,
            next_drain_ns: now_ns,
            next_flush_ns: now_ns + FLUSH_EVERY_NS,
            next_window_ns: now_ns + WINDOW_NS,
        }
    }

    /// When [`Self::tick`] is due.
    pub(crate) fn due_ns(&self) -> u64 {
        self.next_drain_ns
    }

    /// Does what is due. Whether a window was closed.
    pub(crate) fn tick(
        &mut self,
        around: &dyn Surroundings,
        sink: &mut dyn Sink,
        now_ns: u64,
    ) -> bool {
        if now_ns < self.next_drain_ns {
            return false;
        }
        // From now, not from when it was due: after a delay one drain catches up.
        self.next_drain_ns = now_ns + DRAIN_EVERY_NS;
        self.drain(sink);
        if now_ns >= self.next_flush_ns {
            self.next_flush_ns = now_ns + FLUSH_EVERY_NS;
            sink.flush();
        }
        if now_ns < self.next_window_ns {
            return false;
        }
        // On the second, however late each one is.
        self.next_window_ns += ((now_ns - self.next_window_ns) / WINDOW_NS + 1) * WINDOW_NS;
        let now = self.look(around, now_ns);
        self.close(now, around, sink);
        true
    }

    fn drain(&mut self, sink: &mut dyn Sink) {
        let aggregator = &mut self.aggregator;
        self.probes.drain(&mut |event| match event {
            Event::ThreadExit(exit) => aggregator.thread_exit(&exit),
            event => sink.record(event),
        });
        aggregator.sample_queue(&self.probes.queue());
    }

    fn look(&mut self, around: &dyn Surroundings, now_ns: u64) -> Snapshot {
        // It also lets waits on such a socket count as the database's from now on.
        self.unix_database = self.probes.unix_database().or(self.unix_database.take());
        snapshot(self.probes.as_mut(), around, now_ns)
    }

    fn close(&mut self, now: Snapshot, around: &dyn Surroundings, sink: &mut dyn Sink) {
        let name = |tgid, tid| around.thread_name(tgid, tid);
        for window in self.aggregator.close(now, name) {
            sink.window(window);
        }
    }

    /// Takes further processes into the service.
    ///
    /// # Errors
    /// There are more than fit.
    pub(crate) fn follow(&mut self, tgids: &[u32]) -> Result<(), ObserveError> {
        self.probes.follow(tgids)
    }

    /// Ends the measurement: detaches the probes, hands over what is left and a last window.
    pub(crate) fn finish(
        mut self,
        around: &dyn Surroundings,
        sink: &mut dyn Sink,
        now_ns: u64,
    ) -> Ended {
        // Twice: one drain takes at most what fits the buffer, and more may have come meanwhile.
        self.drain(sink);
        self.drain(sink);
        // Detaching takes a while, in which one probe is gone and another still counts: the last
        // window ends before it.
        let mut last = self.look(around, now_ns);
        for event in self.probes.outstanding() {
            match event {
                Event::ThreadExit(exit) => self.aggregator.thread_exit(&exit),
                event => sink.outstanding(event),
            }
        }
        sink.flush();
        // The ends of threads came with the rest; they and all losses count in this window.
        let counters = self.probes.counters();
        last.counters = counters;
        if now_ns > self.aggregator.since_ns() {
            self.close(last, around, sink);
        }
        Ended { counters, unix_database: self.unix_database }
    }
}

fn snapshot(probes: &mut dyn Probes, around: &dyn Surroundings, now_ns: u64) -> Snapshot {
    let outcome = around.outcome();
    Snapshot {
        at_ns: now_ns,
        threads: probes.threads(now_ns),
        queue: probes.queue(),
        counters: probes.counters(),
        listen_drops: around.listen_drops(),
        injector_dropped: outcome.map_or(0, |outcome| outcome.dropped),
        retransmissions: outcome.and_then(|outcome| outcome.retransmissions),
    }
}

impl Probes for Observer {
    fn follow(&mut self, tgids: &[u32]) -> Result<(), ObserveError> {
        Self::follow(self, tgids)
    }

    fn drain(&mut self, sink: &mut dyn FnMut(Event)) {
        Self::drain(self, sink);
    }

    fn threads(&mut self, now_ns: u64) -> Vec<ThreadTime> {
        Self::threads(self, now_ns)
    }

    fn queue(&mut self) -> QueueGauge {
        Self::queue(self)
    }

    fn counters(&mut self) -> Counters {
        Self::counters(self)
    }

    fn outstanding(&mut self) -> Vec<Event> {
        Self::outstanding(self)
    }

    fn unix_database(&mut self) -> Option<String> {
        Self::unix_database(self)
    }
}
